"""Street scenes, seen by a camera above the road; painted back to front.

Positions on the ground are metres: ``u`` to the right of the road's centre and the
image's vertical position below the horizon, which fixes the scale (see :class:`View`).
"""

from typing import NamedTuple

import numpy as np

from uss_utils.datasets import _street_buildings as buildings
from uss_utils.datasets import _street_objects as objects
from uss_utils.datasets._paint import (
    RGB,
    Dice,
    Light,
    Painter,
    draw_light,
    fraction,
    mix,
    scaled,
)
from uss_utils.datasets._street_buildings import FOCAL
from uss_utils.datasets._street_objects import ROAD, SIDEWALK, SKY, VEGETATION


class View(NamedTuple):
    """The camera and the road.

    Attributes:
        horizon: vertical position of the horizon.
        vanish: horizontal position of the road's vanishing point.
        height: of the camera, metres; ``(y - horizon) / height`` is the scale
            (canvas sides per metre) of what stands on the ground at y.
        aside: the road's centre, metres to the right of the camera.
        bend: horizontal shift of the road at the horizon.
        road: half the width of the road, metres.
    """

    horizon: float
    vanish: float
    height: float
    aside: float
    bend: float
    road: float

    def scale(self, y):
        """Canvas sides per metre on the ground at y."""
        return (y - self.horizon) / self.height

    def centre(self, scale):
        """Horizontal position of the road's centre where the scale is given."""
        # Far away (small scale) the bend counts most; it is gone at 12 metres.
        far = np.clip(1 - scale * (12 / FOCAL), 0, 1)
        return self.vanish + self.aside * scale + self.bend * far * far


class Side(NamedTuple):
    """What lies beside the road, metres from its edge."""

    sign: int
    grass: tuple[tuple[float, float], ...]
    walk: float


def paint(painter: Painter, dice: Dice) -> Light:
    """Paint a street; returns the light to develop it with."""
    view = View(
        horizon=dice.u(0.3, 0.58),
        vanish=dice.u(0.28, 0.72),
        height=dice.u(2.1, 3.2),
        aside=dice.u(-2.2, 2.2),
        bend=dice.u(-0.2, 0.2) if dice.chance(0.4) else 0.0,
        road=dice.u(2.6, 4.0),
    )
    haze = _sky(painter, dice, view)
    tint = _foliage(dice)
    _skyline(painter, dice, view, haze)
    if dice.chance(0.5):
        _hedge(painter, dice, view, tint)
    sides = [_side(dice, sign) for sign in (-1, 1)]
    _ground(painter, dice, view, sides, tint)
    _road(painter, dice, view)
    for side in sides:
        if not view.bend and dice.chance(0.45):
            _wall(painter, dice, view, side)
    _things(painter, dice, view, sides, tint)
    return draw_light(dice, gain=(0.75, 1.25))


def _foliage(dice: Dice) -> RGB:
    """Colour of leaves and grass: green, autumn or any tint."""
    kind = dice.u()
    if kind < 0.45:
        return dice.colour((0.2, 0.42), (0.3, 0.8), (0.3, 0.7))
    if kind < 0.7:
        return dice.colour((0.0, 0.16), (0.35, 0.85), (0.35, 0.75))
    return dice.colour((0.0, 1.0), (0.15, 0.7), (0.3, 0.75))


def _sky(painter: Painter, dice: Dice, view: View) -> RGB:
    """Gradient and soft clouds; returns the colour of the haze at the horizon."""
    kind = dice.n(0, 3)
    top, low = (
        (dice.colour((0.55, 0.64), (0.3, 0.75), (0.5, 0.95)), (0.85, 0.92, 0.98)),
        (dice.colour((0.5, 0.75), (0.0, 0.12), (0.4, 0.85)), (0.82, 0.82, 0.84)),
        (
            dice.colour((0.66, 0.92), (0.25, 0.6), (0.25, 0.65)),
            dice.colour((0.97, 1.12), (0.25, 0.6), (0.75, 0.98)),
        ),
        (
            dice.colour((0.42, 0.54), (0.3, 0.7), (0.35, 0.8)),
            dice.colour((0.1, 0.5), (0.1, 0.35), (0.75, 0.95)),
        ),
    )[kind]
    low = mix(top, low, dice.u(0.4, 1.0))
    coarse, small = dice.grid(4, 5), dice.grid(9, 11)
    cover, strength = dice.u(-0.45, 0.35), dice.u(0.25, 0.85)
    cloud = mix(low, (1.0, 1.0, 1.0) if kind != 2 else (0.95, 0.75, 0.7), dice.u())
    cloud = scaled(cloud, dice.u(0.7, 1.05))
    patch = painter.patch(bottom=view.horizon + 0.03)
    if patch is not None:
        down = np.clip(patch.y / np.float32(view.horizon), 0, 1)
        clouds = patch.field(coarse) + patch.field(small) * np.float32(0.6)
        clouds = np.clip((clouds + cover) * 1.1, 0, 1) * strength
        for plane, a, b, c in zip(patch.image, top, low, cloud, strict=True):
            plane[:] = a + (b - a) * down
            plane += (c - plane) * clouds
        patch.label[:] = SKY
    return low


def _skyline(painter: Painter, dice: Dice, view: View, haze: RGB):
    """Two to five buildings in front view behind the ground."""
    count = dice.n(2, 5)
    place = dice.u(-0.1, 0.15)
    for _ in range(count):
        width = dice.u(0.12, 0.34)
        height = dice.u(0.06, 0.14) if dice.chance(0.35) else dice.u(0.14, 0.36)
        height = min(height, view.horizon - 0.05)
        top = view.horizon - height
        buildings.facade(painter, dice, place, top, place + width, view.horizon, haze)
        place += width + (dice.u(0.01, 0.2) if dice.chance(0.6) else 0.0)


def _hedge(painter: Painter, dice: Dice, view: View, tint: RGB):
    """A row of bushes along the horizon."""
    low, high = dice.u(0.02, 0.05), dice.u(0.05, 0.13)
    outline = dice.grid(1, dice.n(8, 22))
    offset, colour = (dice.u(), dice.u()), scaled(tint, dice.u(0.5, 0.85))
    start, stop = (0.0, 1.0) if dice.chance(0.6) else sorted((dice.u(), dice.u()))
    patch = painter.patch(start, view.horizon - high, stop, view.horizon + 0.03)
    if patch is None:
        return
    leaf = patch.texture("leaflet", offset)
    lift = (patch.field(outline)[:1] + 1) * ((high - low) / 2) + low
    rise = (np.float32(view.horizon) - patch.y) + leaf * np.float32(0.012)
    shade = 0.8 + 0.55 * leaf + (rise / high) * np.float32(0.35)
    patch.fill(rise < lift, colour, shade, VEGETATION)


def _side(dice: Dice, sign: int) -> Side:
    """Choose paved ground, a verge behind the sidewalk, or a planted strip."""
    walk = dice.u(1.8, 3.4)
    kind = dice.u()
    if kind < 0.38:
        return Side(sign, (), walk + dice.u(0, 3))
    if kind < 0.75:
        return Side(sign, ((walk, 1e4),), walk)
    strip = dice.u(0.9, 2.2)
    return Side(sign, ((0.25, strip), (strip + walk, 1e4)), strip + walk)


def _ground(painter: Painter, dice: Dice, view: View, sides: list[Side], tint: RGB):
    """Sidewalk with tile lines in perspective, kerb, grass."""
    paving = dice.colour(saturation=(0.0, 0.32), value=(0.4, 0.85))
    grass = scaled(mix(tint, dice.colour((0.1, 0.4), (0.3, 0.7)), 0.3), dice.u(0.7, 1))
    tile, kind = dice.u(0.55, 1.3), dice.n(0, 2)
    joint, kerb = dice.u(0.55, 0.8), dice.u(1.1, 1.35)
    offsets = [(dice.u(), dice.u()) for _ in range(3)]
    patch = painter.patch(top=view.horizon)
    if patch is None:
        return
    scale = np.maximum(view.scale(patch.y), np.float32(1e-3))
    across = (patch.x - view.centre(scale)) / scale
    depth = FOCAL / scale
    fine = patch.texture("grain", offsets[0])
    # Joints thinner than a pixel would flicker: they fade with distance.
    fade = np.clip(scale * 14 - 0.08, 0, 1)
    row = depth / tile
    column = across / tile
    if kind == 1:  # bricks: every second row is shifted
        column = column + (np.floor(row) % 2) * np.float32(0.5)
    lines = (fraction(row) < 0.11) | (fraction(column) < 0.09)
    shade = np.where(lines, 1 + (joint - 1) * fade, np.float32(1))
    if kind == 2:  # checkerboard of two stones
        odd = (np.floor(row) + np.floor(column)) % 2
        shade -= odd * (fade * np.float32(0.16))
    shade += fine * np.float32(0.09)
    patch.fill(np.True_, paving, shade, SIDEWALK)
    blade = patch.texture("leaflet", offsets[1])
    coarse = patch.texture("leaf", offsets[2])
    leaf = 0.85 + 0.4 * blade + 0.25 * coarse
    for side in sides:
        outward = across if side.sign > 0 else -across
        edge = outward - np.float32(view.road)
        stone = (edge > 0) & (edge < 0.28)
        patch.fill(stone, scaled(paving, kerb), 1 + fine * np.float32(0.05))
        # The rim of the grass is ragged, a few centimetres.
        ragged = edge + blade * np.float32(0.1)
        for start, stop in side.grass:
            patch.fill((ragged > start) & (ragged < stop), grass, leaf, VEGETATION)


def _road(painter: Painter, dice: Dice, view: View):
    """The carriageway: speckle, wheel tracks, marks, perhaps a crosswalk."""
    asphalt = dice.colour(saturation=(0.0, 0.28), value=(0.2, 0.62))
    offsets = [(dice.u(), dice.u()) for _ in range(2)]
    speckle, track = dice.u(0.06, 0.16), dice.u(0.0, 0.12)
    paint_colour = (0.92, 0.9, 0.86) if dice.chance(0.75) else (0.9, 0.75, 0.3)
    centre_line, period = dice.n(0, 2), dice.u(3.0, 6.0)
    edge_line, phase = dice.chance(0.4), dice.u()
    crossing = dice.u(5.0, 14.0) if dice.chance(0.3) else None
    patch = painter.patch(top=view.horizon)
    if patch is None:
        return
    scale = np.maximum(view.scale(patch.y), np.float32(1e-3))
    across = (patch.x - view.centre(scale)) / scale
    aside = np.abs(across)
    on_road = aside < view.road
    shade = 1 + speckle * patch.texture("grain", offsets[0])
    shade += np.float32(0.06) * patch.texture("blotch", offsets[1])
    shade -= track * (np.abs(aside - np.float32(view.road / 2)) < 0.55)
    patch.fill(on_road, asphalt, shade, ROAD)
    patch.fill((aside > view.road - 0.12) & on_road, scaled(asphalt, 0.7))
    depth = FOCAL / scale
    marks = np.zeros(aside.shape, bool)
    if centre_line:
        dashes = np.True_ if centre_line == 1 else fraction(depth / period + phase)
        marks |= (aside < 0.11) & (dashes if centre_line == 1 else dashes < 0.5)
    if edge_line:
        marks |= np.abs(aside - np.float32(view.road - 0.4)) < 0.08
    if crossing is not None:
        zone = (depth > crossing) & (depth < crossing + 2.6)
        marks &= ~((depth > crossing - 0.8) & (depth < crossing + 3.4))
        marks |= zone & (fraction(across / np.float32(1.0)) < 0.5) & on_road
    patch.fill(marks, paint_colour, 0.94 + (shade - 1))


def _wall(painter: Painter, dice: Dice, view: View, side: Side):
    """A row of houses along the street, seen in perspective."""
    lateral = side.sign * (view.road + side.walk + dice.u(0.2, 1.5)) + view.aside
    if lateral * side.sign < 2.0:
        return
    near = dice.u(4.0, 9.0)
    for _ in range(dice.n(1, 3)):
        far = near + dice.u(5.0, 12.0)
        floors = dice.n(2, 4)
        edges = sorted(view.vanish + FOCAL * lateral / z for z in (near, far))
        buildings.house(painter, dice, view, edges, lateral, 3.0 * floors)
        near = far + (dice.u(1.0, 5.0) if dice.chance(0.4) else 0.0)


def _things(painter: Painter, dice: Dice, view: View, sides: list[Side], tint: RGB):
    """Trees, cars and persons, the farthest first."""
    deep = 1 - view.horizon
    todo = []
    for _ in range(dice.n(1, 5)):
        side = dice.pick(sides)
        u = side.sign * (view.road + dice.u(0.6, max(side.walk, 1.2) + 3.0))
        colour = tint if dice.chance(0.6) else _foliage(dice)
        colour = scaled(colour, dice.u(0.8, 1.25))
        todo.append((dice.u(0.06, 0.5), u, objects.tree, (colour,)))
    for _ in range(dice.n(1, 4)):
        todo.append((dice.u(0.1, 0.46), dice.u(-0.8, 0.8) * view.road, objects.car, ()))
    for _ in range(dice.n(2, 5)):
        u = dice.pick(sides).sign * (view.road + dice.u(0.4, 2.6))
        if dice.chance(0.25):
            u = dice.u(-0.9, 0.9) * view.road
        todo.append((dice.u(0.3, 0.9), u, objects.person, ()))
    todo.sort(key=lambda entry: entry[0])
    for down, u, draw, extra in todo:
        y = view.horizon + deep * down
        scale = view.scale(y)
        x = float(view.centre(scale)) + u * scale
        # What stood outside the picture is moved to its rim.
        x = min(max(x, dice.u(0.02, 0.2)), 1 - dice.u(0.02, 0.2))
        draw(painter, dice, x, y, scale, *extra)
