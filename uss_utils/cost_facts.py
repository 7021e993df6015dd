"""What a run will read, compute and keep, known before anything is started.

Numbers of images, sizes of features, files and steps follow from the settings. A data
set that is not there is counted as its publisher says.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from math import prod
from types import ModuleType
from typing import Literal, NamedTuple

import torch

from uss_utils import backbones, sources
from uss_utils.datasets import SCENES_SIZE, SCENES_SPLITS
from uss_utils.datasets.base import SegmentationDataset
from uss_utils.datasets.crops import PER_IMAGE, RATIO
from uss_utils.local_attention import WINDOW
from uss_utils.mask_files import RELEASED
from uss_utils.recipe import Recipe

FP16, FP32 = 2, 4  # bytes per number: of a cache on disk, of features in memory
# Bytes per pixel of a stored crop, JPEG and label: those of CamVid's frames.
CROP_BYTES = 0.2


class Known(NamedTuple):
    """A data set as its publisher describes it.

    Attributes:
        splits: split -> images.
        size: (H, W) of an image; the commonest where they differ.
        gigabytes: of the stored set, as data/README.md says; None: not said there.
    """

    splits: dict[str, int]
    size: tuple[int, int]
    gigabytes: float | None


_SCENES = Known(SCENES_SPLITS, (SCENES_SIZE, SCENES_SIZE), 0.0)
_CITYSCAPES = Known({"train": 2975, "val": 500}, (1024, 2048), 11.0)
# The numbers stand in data/README.md as well.
KNOWN = {
    "scenes": _SCENES,
    "scenes-aerial": _SCENES,
    "camvid": Known({"train": 367, "val": 101, "test": 233}, (360, 480), 0.18),
    "cocostuff27": Known({"train": 49_629, "val": 2175}, (480, 640), 20.0),
    "cityscapes27": _CITYSCAPES,
    "cityscapes19": _CITYSCAPES,
    "coco": Known({"train": 118_287, "val": 5000}, (480, 640), 20.0),
    "potsdam3": Known({"train": 4545, "val": 855}, (200, 200), None),
    "potsdam3-tiles": Known({"train": 4500, "val": 900}, (200, 200), None),
    "voc": Known({"train": 1464, "trainaug": 10_582, "val": 1449}, (375, 500), 3.4),
}


class Made(NamedTuple):
    """Files of one kind that a run makes.

    Attributes:
        what: in words.
        number: of files.
        size: bytes of all of them; None: known only when some were made.
        kept: what of a run makes them, for what is measured.
    """

    what: str
    number: int
    size: int | None = None
    kept: str = ""


class Split(NamedTuple):
    """Images of one part of a run.

    Attributes:
        dataset: name of the data set.
        split: of it.
        number: of images, crops counted as images.
        size: (H, W) as stored.
        found: the data set itself; None where it is not there.
    """

    dataset: str
    split: str
    number: int
    size: tuple[int, int]
    found: SegmentationDataset | None


@dataclass(frozen=True)
class Facts:
    """What settings alone say about a run.

    Attributes:
        method: the method's module.
        preset: name of the settings.
        train: images that features are computed of.
        val: images that are scored.
        cut: images that views are cut from, where these are others than ``train``.
        crops: the training images are crops.
        size: (H, W) of the training images.
        shape: of the features that are kept or computed again, (N, C, h, w).
        place: where they are: "memory", "disk" or "images" (computed again).
        files: what is written.
        steps: optimiser steps; 0: nothing is trained by steps.
        batch_size: images per step, over all processes.
        reads_masks: masks are read, not made.
    """

    method: str
    preset: str
    train: Split
    val: Split
    cut: Split | None
    crops: bool
    size: tuple[int, int]
    shape: tuple[int, int, int, int]
    place: sources.Place
    files: tuple[Made, ...] = ()
    steps: int = 0
    batch_size: int = 1
    reads_masks: bool = False

    @property
    def items(self) -> int:
        """Images that the steps go through."""
        return (self.cut or self.train).number

    @property
    def epochs(self) -> float:
        """Times that every item is seen."""
        return self.steps * self.batch_size / self.items

    @property
    def cache_bytes(self) -> int:
        """Bytes of the features that are kept; 0 where none are."""
        width = {"memory": FP32, "disk": FP16, "images": 0}[self.place]
        return prod(self.shape) * width

    @property
    def present(self) -> bool:
        """Whether all images are there."""
        parts = [self.train, self.val, *([self.cut] if self.cut else [])]
        return all(part.found is not None for part in parts)


def facts(method: ModuleType, cfg: Recipe, *, look: bool = True) -> Facts:
    """What the settings of a method say; nothing is computed and nothing written.

    Args:
        method: the method's module.
        cfg: its settings.
        look: for the data set; otherwise it is counted as published, and is not opened.

    Raises:
        ValueError: settings that do not fit the data set, or images of a folder that is
            not named.
        FileNotFoundError: the set is not there, and its size is not known.
    """
    name = method.__name__.rpartition(".")[2]
    crops = cfg.crops == "five"
    train, val = _split(cfg, "train", look), _split(cfg, "val", look)
    size = _brought_to(cfg.size, train.size)
    shape = _shape(name, cfg, train.number, size)
    place = _place(name, cfg, shape)
    found = Facts(
        method=name,
        preset=cfg.name,
        train=train,
        val=val,
        cut=_cut(cfg, look),
        crops=crops,
        size=size,
        shape=shape,
        place=place,
        steps=cfg.steps if hasattr(method, "prepare") else 0,
        batch_size=cfg.batch_size,
        reads_masks=getattr(cfg, "masks", "") in RELEASED,
    )
    return replace(found, files=tuple(_files(found, cfg)))


def _split(cfg: Recipe, part: str, look: bool) -> Split:
    """One part of the data, opened if it is there."""
    training = part == "train"
    split = cfg.train_split if training else part
    limit = cfg.n_train if training else cfg.n_val
    crops = training and cfg.crops == "five"
    return _counted(
        cfg, cfg.dataset, split, limit, crops, look and (lambda: cfg.open(part))
    )


def _counted(
    cfg: Recipe,
    name: str,
    split: str,
    limit: int | None,
    crops: bool,
    opener: Callable[[], SegmentationDataset] | Literal[False],
) -> Split:
    """Images that are there, or those that are published."""
    if opener:
        try:
            found = opener()
            return Split(name, split, len(found), found.read_size(0), found)
        except FileNotFoundError:
            if cfg.root is not None or name not in KNOWN:
                raise
    return _as_published(name, split, limit, crops)


def _as_published(name: str, split: str, limit: int | None, crops: bool) -> Split:
    known = KNOWN[name]
    number = known.splits[split] * (PER_IMAGE if crops else 1)
    height, width = known.size
    if crops:
        height, width = int(height * RATIO), int(width * RATIO)
    number = number if limit is None else min(limit, number)
    return Split(name, split, number, (height, width), None)


def _cut(cfg: Recipe, look: bool) -> Split | None:
    """Images as stored that views are cut from, where the settings say so."""
    images = getattr(cfg, "images", "")
    if not (images or getattr(cfg, "whole", False)):
        return None
    opener = getattr(cfg, "open_images", None) or cfg.open_whole
    name = images or cfg.dataset
    split = "train" if images else cfg.train_split
    return _counted(cfg, name, split, cfg.n_train, False, look and opener)


def _brought_to(
    size: int | tuple[int, int] | None, stored: tuple[int, int]
) -> tuple[int, int]:
    if size is None:
        return stored
    return (size, size) if isinstance(size, int) else size


def _shape(
    name: str, cfg: Recipe, number: int, size: tuple[int, int]
) -> tuple[int, int, int, int]:
    """Shape of the features; two methods keep more than these of an image."""
    backbone = backbones.untrained(cfg.backbone, device="meta")
    height, width = backbone.grid(torch.empty(1, 3, *size, device="meta"))
    extra_channels = WINDOW if name == "hp" else 0
    extra_rows = 1 if name == "ppap" else 0
    return number, backbone.dim + extra_channels, height + extra_rows, width


def _place(name: str, cfg: Recipe, shape: tuple[int, ...]) -> sources.Place:
    if name == "kmeans":
        return "memory"
    return sources.choose(shape) if cfg.cache == "auto" else cfg.cache


def _files(found: Facts, cfg: Recipe) -> Iterator[Made]:
    """What ``data prepare`` and the run write, in their order."""
    n, channels = found.shape[:2]
    if found.crops:
        height, width = found.train.size
        size = round(CROP_BYTES * height * width * found.train.number)
        yield Made("five crops, by data prepare", 2 * found.train.number, size)
    if found.place == "disk":
        yield Made("feature cache", 1, found.cache_bytes)
    if found.method == "stego" and found.place != "memory":
        lists = 8 * (cfg.neighbours + 1)
        yield Made("lists of similar images", 1, n * (lists + FP32 * channels))
    if found.method == "primaps" or (hasattr(cfg, "masks") and not found.reads_masks):
        yield Made("masks", found.items, kept="maps")
    if hasattr(cfg, "region_folder") and not cfg.region_folder:
        yield Made("maps of regions", found.items, kept="maps")
    if found.steps:
        # PriMaPs' start keeps its own checkpoint; its running prototypes a model.
        twice = 2 if found.method == "primaps" else 1
        yield Made("checkpoints", twice, kept="checkpoints")
        yield Made("models", twice, kept="models")
    else:
        yield Made("models", 1, kept="models")
