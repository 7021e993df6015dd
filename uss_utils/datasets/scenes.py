"""Generated street and aerial scenes with exact labels: the embedded default.

A scene is painted on a canvas 1.5 times as large as the image, of which a random
window is kept: so the horizon, and with it the layout, moves from image to image.
Hues are drawn at random for every object; what tells the classes apart is shape and
texture.

Object masks: every car and every person of a street, every building and every car of
an aerial scene has its own number.
"""

import operator
from typing import Literal, NamedTuple

import numpy as np

from uss_utils.datasets import _aerial, _street
from uss_utils.datasets._paint import Dice, Painter, develop
from uss_utils.datasets.base import SegmentationDataset
from uss_utils.datasets.transforms import Transform

Kind = Literal["street", "aerial"]

STREET_CLASSES = (
    "sky",
    "building",
    "road",
    "sidewalk",
    "vegetation",
    "car",
    "person",
)
AERIAL_CLASSES = ("grass", "road", "building", "tree", "water", "car")
# Colours of Okabe and Ito, chosen to stay apart for colour-blind readers.
STREET_PALETTE = np.array(
    [
        (86, 180, 233),
        (240, 228, 66),
        (80, 80, 80),
        (204, 121, 167),
        (0, 158, 115),
        (0, 114, 178),
        (213, 94, 0),
    ],
    np.uint8,
)
AERIAL_PALETTE = np.array(
    [
        (0, 158, 115),
        (80, 80, 80),
        (213, 94, 0),
        (0, 72, 60),
        (86, 180, 233),
        (240, 228, 66),
    ],
    np.uint8,
)
# The tag keeps the random numbers of the kinds apart.
_KINDS = {"street": (11, _street.paint), "aerial": (12, _aerial.paint)}
_SETS = {
    "street": ("scenes", STREET_CLASSES, STREET_PALETTE),
    "aerial": ("scenes-aerial", AERIAL_CLASSES, AERIAL_PALETTE),
}
_SPLIT_SIZE = 1_000_000
_SPLITS = {"train": 0, "val": 1, "pretrain": 2}


class Scene(NamedTuple):
    """A picture and what is in it.

    Attributes:
        image: uint8 RGB, shape (S, S, 3).
        label: class indices, int64, shape (S, S).
        instances: object numbers, int64, shape (S, S); 0 where there is no object.
            Objects that are hidden or outside the window leave gaps in the numbers.
    """

    image: np.ndarray
    label: np.ndarray
    instances: np.ndarray


def scene(index: int, seed: int = 0, kind: Kind = "street", size: int = 128) -> Scene:
    """Draw a scene: a random window of a larger canvas.

    Args:
        index: which scene, 0 or more.
        seed: another seed gives other scenes, 0 or more.
        kind: "street" or "aerial".
        size: side S of the picture in pixels, 64..512.

    Returns:
        The scene; the same arguments give the same pixels on any machine.

    Raises:
        ValueError: the kind is unknown, or a number is out of range.
    """
    return _render(index, seed, kind, size, cut=True)


def canvas(index: int, seed: int = 0, kind: Kind = "street", size: int = 128) -> Scene:
    """Draw the whole canvas that :func:`scene` shows a window of.

    Args:
        index: as for :func:`scene`.
        seed: as for :func:`scene`.
        kind: as for :func:`scene`.
        size: side of the window; the canvas has 1.5 times this side.

    Returns:
        The uncut scene. In the window labels and objects are those of
        :func:`scene`; the sensor noise of the picture differs.

    Raises:
        ValueError: the kind is unknown, or a number is out of range.
    """
    return _render(index, seed, kind, size, cut=False)


def _check(index: int, seed: int, kind: str, size: int) -> tuple[int, int, int]:
    _check_known("kind of scene", kind, _KINDS)
    index, seed, size = (operator.index(value) for value in (index, seed, size))
    if not 64 <= size <= 512:
        raise ValueError(f"scene size {size} is outside 64..512 pixels")
    if index < 0 or seed < 0:
        raise ValueError(
            f"scene index and seed must be 0 or more, got {index} and {seed}"
        )
    return index, seed, size


def _check_known(what: str, name: str, known: dict):
    if name not in known:
        raise ValueError(f"unknown {what} {name!r}; known: {', '.join(known)}")


def _render(index: int, seed: int, kind: str, size: int, cut: bool) -> Scene:
    index, seed, size = _check(index, seed, kind, size)
    tag, paint = _KINDS[kind]
    rng = np.random.default_rng([tag, seed, index])
    dice = Dice(rng)
    side = round(1.5 * size)
    top, left = (int(dice.u() * (side - size + 1)) for _ in range(2))
    painter = Painter(side, top, left, size) if cut else Painter(side, 0, 0, side)
    light = paint(painter, dice)
    image = develop(painter, light, rng)
    label, instances = painter.label, painter.instances
    return Scene(image, label.astype(np.int64), instances.astype(np.int64))


def split_start(split: str) -> int:
    """Index of the first scene of a split; the splits' ranges do not overlap.

    Raises:
        ValueError: the split is unknown.
    """
    _check_known("split of the scenes", split, _SPLITS)
    return _SPLITS[split] * _SPLIT_SIZE


class Scenes(SegmentationDataset):
    """Generated scenes as a data set.

    Scenes are drawn when first asked for and then kept in memory. Splits use
    disjoint ranges of indices, so no scene is in two of them.

    Args:
        kind: "street" or "aerial".
        split: "train", "val" or "pretrain".
        n: number of scenes, up to a million.
        size: side of the pictures in pixels, 64..512.
        seed: another seed gives another data set.
        transform: geometry applied to every item.

    Raises:
        ValueError: the kind or the split is unknown, or a number is out of range.
    """

    threads = 1

    def __init__(
        self,
        kind: Kind = "street",
        split: str = "train",
        n: int = 200,
        size: int = 128,
        seed: int = 0,
        transform: Transform | None = None,
    ):
        _check(0, seed, kind, size)
        self._first = split_start(split)
        if not 1 <= operator.index(n) <= _SPLIT_SIZE:
            raise ValueError(f"number of scenes {n} is outside 1..{_SPLIT_SIZE}")
        name, classes, palette = _SETS[kind]
        super().__init__(name, split, classes, palette, transform)
        self.kind, self.size, self.seed = kind, size, seed
        self._n = operator.index(n)
        self._drawn: dict[int, tuple[np.ndarray, ...]] = {}

    def __len__(self) -> int:
        return self._n

    def _draw(self, index: int) -> tuple[np.ndarray, ...]:
        """Picture, label and object numbers of one scene, uint8 to save memory."""
        index = self._checked(index)
        if index not in self._drawn:
            drawn = scene(self._first + index, self.seed, self.kind, self.size)
            self._drawn[index] = tuple(part.astype(np.uint8) for part in drawn)
        return self._drawn[index]

    def read(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Picture, uint8 (S, S, 3), and label, int64 (S, S), of one scene."""
        image, label, _ = self._draw(index)
        return image.copy(), label.astype(np.int64)

    def instances(self, index: int) -> np.ndarray:
        """Object numbers of one scene, int64 (S, S); 0 where there is no object."""
        return self._draw(index)[2].astype(np.int64)
