"""Drawing tools shared by the street and the aerial scenes, numpy only.

Two properties carry the generator:

* The same pixels on every machine. Per-pixel arithmetic is made of ``+ - * /``,
  comparisons, integers and table look-ups, which IEEE arithmetic fixes to the last
  bit; no sums over pixels (their order varies) and no transcendental function of an
  array (its last bit varies).
* Only what is seen gets painted. Positions are fractions of the canvas; a
  :class:`Painter` shows a square window of it and every shape is evaluated on the
  part of its bounding box inside the window. Random numbers never depend on the
  window, so a window shows exactly what the whole canvas shows there.
"""

import colorsys
import math
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.random import Generator

RGB = tuple[float, float, float]
T = TypeVar("T")

_TEXTURE_SEED = 20


class Dice:
    """Scalar random numbers in bulk: a generator's single draws are slow.

    Args:
        rng: source of the numbers.
    """

    def __init__(self, rng: Generator):
        self.rng = rng
        self._pool: list[float] = []

    def u(self, low: float = 0.0, high: float = 1.0) -> float:
        """Uniform number in [low, high)."""
        if not self._pool:
            self._pool = self.rng.random(512).tolist()
        return low + (high - low) * self._pool.pop()

    def n(self, low: int, high: int) -> int:
        """Integer in low..high, both included."""
        return low + int((high - low + 1) * self.u())

    def chance(self, p: float) -> bool:
        """True with probability p."""
        return self.u() < p

    def sign(self) -> int:
        """-1 or 1."""
        return 1 if self.u() < 0.5 else -1

    def pick(self, items: Sequence[T]) -> T:
        """One of the items."""
        return items[int(len(items) * self.u())]

    def grid(self, rows: int, cols: int) -> np.ndarray:
        """Uniform numbers in [-1, 1), float32, shape (rows, cols)."""
        return (self.rng.random((rows, cols)) * 2 - 1).astype(np.float32)

    def colour(
        self,
        hue: tuple[float, float] = (0.0, 1.0),
        saturation: tuple[float, float] = (0.0, 1.0),
        value: tuple[float, float] = (0.2, 0.9),
    ) -> RGB:
        """Colour whose hue, saturation and value lie in the given ranges."""
        return colorsys.hsv_to_rgb(
            self.u(*hue) % 1.0, self.u(*saturation), self.u(*value)
        )


def direction(angle: float) -> tuple[float, float]:
    """Cosine and sine of an angle, rounded to what every machine agrees on."""
    return round(math.cos(angle), 9), round(math.sin(angle), 9)


def mix(a: RGB, b: RGB, t: float) -> RGB:
    """Colour between a (t = 0) and b (t = 1)."""
    return tuple(p + (q - p) * t for p, q in zip(a, b, strict=True))


def scaled(colour: RGB, factor: float) -> RGB:
    """Colour made darker or brighter."""
    return tuple(c * factor for c in colour)


def fraction(x: np.ndarray) -> np.ndarray:
    """Distance to the next lower integer, in [0, 1)."""
    return x - np.floor(x)


def profile(
    x: np.ndarray, knots: Sequence[float], values: Sequence[float]
) -> np.ndarray:
    """Piecewise linear function of a float32 array, constant outside the knots.

    ``np.interp`` may fuse multiplication and addition, differently per machine.
    """
    out = np.full(x.shape, values[0], np.float32)
    for i in range(len(knots) - 1):
        part = np.clip((x - knots[i]) * (1.0 / (knots[i + 1] - knots[i])), 0, 1)
        out += part * (values[i + 1] - values[i])
    return out


def _knots(positions: np.ndarray, count: int):
    """Indices of both neighbours and smooth weight of the upper one."""
    place = np.clip(positions, 0, 1) * np.float32(count - 1)
    low = np.minimum(place.astype(np.intp), max(count - 2, 0))
    weight = place - low
    weight = (weight * weight * (3 - 2 * weight)).astype(np.float32)
    return low, np.minimum(low + 1, count - 1), weight


def field(grid: np.ndarray, y: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Smooth interpolation of a small grid that spans the unit square.

    Args:
        grid: float32, shape (rows, cols).
        y: positions in [0, 1], shape (h,).
        x: positions in [0, 1], shape (w,).

    Returns:
        Interpolated values, float32, shape (h, w).
    """
    low, high, weight = _knots(y, grid.shape[0])
    rows = grid[low]
    rows += (grid[high] - rows) * weight[:, None]
    low, high, weight = _knots(x, grid.shape[1])
    out = rows[:, low]
    out += (rows[:, high] - out) * weight
    return out


# Cells per canvas side (vertical, horizontal) and weight of each octave.
_TEXTURES = {
    "grain": (((400, 400), 0.7), ((200, 200), 0.5)),
    "fine": (((130, 130), 0.7), ((44, 44), 0.4)),
    "blotch": (((26, 26), 0.6), ((10, 10), 0.6)),
    "leaf": (((30, 30), 0.75), ((84, 84), 0.65)),
    "leaflet": (((54, 54), 0.7), ((130, 130), 0.6)),
    "blade": (((60, 150), 0.8), ((24, 24), 0.35)),
}


@lru_cache(maxsize=3)
def textures(side: int) -> dict[str, np.ndarray]:
    """Periodic noise textures of a canvas size, drawn once.

    Args:
        side: side of the canvas in pixels.

    Returns:
        Name -> values about in [-1, 1], float32, shape (2 side, 2 side): the texture
        has period ``side``, so a window at any offset is a view.
    """
    rng = np.random.default_rng([_TEXTURE_SEED, side])
    where = (np.arange(side, dtype=np.float32) + 0.5) / np.float32(side)
    bank = {}
    for name, octaves in _TEXTURES.items():
        total = np.zeros((side, side), np.float32)
        for (rows, cols), weight in octaves:
            rows, cols = min(rows, side), min(cols, side)
            grid = (rng.random((rows, cols)) * 2 - 1).astype(np.float32)
            grid = np.pad(grid, ((0, 1), (0, 1)), mode="wrap")
            total += field(grid, where, where) * np.float32(weight)
        bank[name] = np.tile(total, (2, 2))
        bank[name].setflags(write=False)
    return bank


class Patch:
    """The visible part of a rectangle, with its coordinates and its buffers.

    Attributes:
        y: vertical positions of the pixel centres, float32, shape (h, 1).
        x: horizontal positions, float32, shape (1, w).
        image: view of the colours, float32, shape (3, h, w).
        label: view of the class indices, uint8, shape (h, w).
        instances: view of the object numbers, uint8, shape (h, w).
    """

    __slots__ = ("image", "instances", "label", "painter", "rows", "cols", "x", "y")

    def __init__(self, painter: "Painter", rows: slice, cols: slice):
        self.painter = painter
        self.rows, self.cols = rows, cols
        self.y = painter.y[rows, None]
        self.x = painter.x[None, cols]
        self.image = painter.image[:, rows, cols]
        self.label = painter.label[rows, cols]
        self.instances = painter.instances[rows, cols]

    def fill(self, mask, colour: RGB, shade=None, label: int | None = None, thing=0):
        """Paint a colour, times a shade if given, where the mask holds.

        Args:
            mask: bool, broadcastable to (h, w).
            colour: three numbers, 1 = white.
            shade: factor, broadcastable to (h, w); None for none.
            label: class of these pixels; None leaves class and object as they are.
            thing: number of the object, 0 for none.
        """
        for plane, value in zip(self.image, colour, strict=True):
            value = np.float32(value)
            np.copyto(plane, value if shade is None else shade * value, where=mask)
        if label is not None:
            np.copyto(self.label, np.uint8(label), where=mask)
            np.copyto(self.instances, np.uint8(thing), where=mask)

    def multiply(self, mask, factor):
        """Darken (or brighten) what is there where the mask holds."""
        np.multiply(self.image, np.float32(factor), out=self.image, where=mask)

    def texture(self, name: str, offset: tuple[float, float]) -> np.ndarray:
        """Window (h, w) of a noise texture shifted by fractions of its period."""
        painter = self.painter
        top = painter.top + self.rows.start + int(offset[0] * painter.side)
        left = painter.left + self.cols.start + int(offset[1] * painter.side)
        height, width = self.label.shape
        bank = textures(painter.side)[name]
        return bank[top : top + height, left : left + width]

    def field(self, grid: np.ndarray) -> np.ndarray:
        """Window (h, w) of a small grid that spans the canvas."""
        return field(grid, self.y[:, 0], self.x[0])


class Painter:
    """A square window of a canvas, painted back to front.

    Args:
        side: side of the whole canvas in pixels.
        top: first row of the window.
        left: first column of the window.
        size: side of the window in pixels.
    """

    def __init__(self, side: int, top: int, left: int, size: int):
        self.side, self.top, self.left, self.size = side, top, left, size
        steps = np.arange(size, dtype=np.float32) + np.float32(0.5)
        self.y = (steps + np.float32(top)) / np.float32(side)
        self.x = (steps + np.float32(left)) / np.float32(side)
        self.image = np.zeros((3, size, size), np.float32)
        self.label = np.zeros((size, size), np.uint8)
        self.instances = np.zeros((size, size), np.uint8)
        self._things = 0

    def new_thing(self) -> int:
        """Number of the next object, from 1."""
        self._things += 1
        return self._things

    def patch(self, left=0.0, top=0.0, right=1.0, bottom=1.0) -> Patch | None:
        """The visible part of a rectangle of the canvas; None when out of sight."""
        first = max(math.floor(top * self.side) - self.top, 0)
        last = min(math.ceil(bottom * self.side) - self.top, self.size)
        start = max(math.floor(left * self.side) - self.left, 0)
        stop = min(math.ceil(right * self.side) - self.left, self.size)
        if first >= last or start >= stop:
            return None
        return Patch(self, slice(first, last), slice(start, stop))


class Light(NamedTuple):
    """What the camera and the weather do to a whole scene."""

    tint: RGB
    slope: tuple[float, float]
    haze: float
    haze_colour: RGB
    blur: float
    noise: float
    gamma: float


def draw_light(dice: Dice, gain: tuple[float, float]) -> Light:
    """Choose tint, gain, direction of light, haze, blur, noise and gamma."""
    level = dice.u(*gain)
    haze = dice.u(0.0, 0.22) if dice.chance(0.5) else dice.u(0.0, 0.05)
    return Light(
        tint=tuple(level * dice.u(0.85, 1.15) for _ in range(3)),
        slope=(dice.u(-0.3, 0.3), dice.u(-0.4, 0.4)),
        haze=haze,
        haze_colour=dice.colour(saturation=(0.0, 0.2), value=(0.55, 0.9)),
        blur=dice.u(0.02, 0.2),
        noise=dice.u(0.01, 0.045),
        gamma=dice.u(0.8, 1.25),
    )


def _blur(image: np.ndarray, strength: float, step: int) -> np.ndarray:
    """Three-tap blur along both axes; the outermost pixels stay as they are."""
    side, centre = np.float32(strength), np.float32(1 - 2 * strength)
    for axis in (1, 2):
        source = np.moveaxis(image, axis, 1)
        out = source * centre
        out[:, step:-step] += (source[:, : -2 * step] + source[:, 2 * step :]) * side
        out[:, :step] = source[:, :step]
        out[:, -step:] = source[:, -step:]
        image = np.moveaxis(out, 1, axis)
    return image


def develop(painter: Painter, light: Light, rng: Generator) -> np.ndarray:
    """Turn the painted colours into a photograph.

    Args:
        painter: the painted window.
        light: see :func:`draw_light`.
        rng: source of the sensor noise.

    Returns:
        Image, uint8, shape (size, size, 3).
    """
    slope = np.float32(light.slope[0]) * (painter.y[:, None] - np.float32(0.5)) + (
        np.float32(light.slope[1]) * (painter.x[None, :] - np.float32(0.5))
    )
    slope += np.float32(1)
    size = painter.size
    image = np.empty_like(painter.image)
    for plane, out, tint, haze in zip(
        painter.image, image, light.tint, light.haze_colour, strict=True
    ):
        np.multiply(plane, slope, out=out)
        out *= np.float32(tint * (1 - light.haze))
        out += np.float32(haze * light.haze * min(1.0, sum(light.tint) / 3))
    step = max(1, round(painter.side / 192))
    image = _blur(image, light.blur, step)
    # The sum of two bytes is triangular: close enough to a Gaussian, and exact.
    noise = np.frombuffer(rng.bytes(2 * 3 * size * size), np.uint8)
    noise = noise.reshape(2, 3, size, size)
    noise = np.add(noise[0], noise[1], dtype=np.int16).astype(np.float32)
    # Standard deviation of that sum: sqrt(2 (256^2 - 1) / 12), about 104.5.
    noise *= np.float32(light.noise / 104.5)
    image = image + noise
    image -= np.float32(255 * light.noise / 104.5)
    np.clip(image, 0, 1, out=image)
    image *= np.float32(1023)
    table = [round(255 * (i / 1023) ** light.gamma) for i in range(1024)]
    out = np.array(table, np.uint8)[image.astype(np.int16)]
    return np.ascontiguousarray(out.transpose(1, 2, 0))
