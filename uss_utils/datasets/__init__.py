"""The table of data sets and the one function that opens them.

>>> from uss_utils import datasets
>>> train = datasets.load("scenes", "train")
>>> image, label = train.batch(range(8))
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from uss_utils.datasets import (
    camvid,
    cityscapes,
    coco,
    cocostuff,
    inventory,
    potsdam,
    voc,
)
from uss_utils.datasets.base import SegmentationDataset, Subset
from uss_utils.datasets.crops import FiveCrops
from uss_utils.datasets.folder import FolderDataset
from uss_utils.datasets.labels import CLASS_NAMES, palette, voc_palette
from uss_utils.datasets.scenes import Scenes
from uss_utils.datasets.transforms import Transform

__all__ = [
    "DATASETS",
    "DatasetInfo",
    "SegmentationDataset",
    "Subset",
    "Transform",
    "check",
    "info",
    "load",
    "names",
]

SCENES_SIZE = 128
# Number of generated images per split.
SCENES_SPLITS = {"train": 200, "val": 150, "pretrain": 2000}


@dataclass(frozen=True)
class DatasetInfo:
    """One row of the table of data sets.

    Attributes:
        description: one line.
        licence: terms of use.
        splits: names of the splits; empty where the user's folder decides.
        classes: class names, index = id; empty where the user's data decide.
        palette: class colours, uint8 (K, 3).
        loader: ``(split, root, size, limit, transform, **options)`` to data set.
        checker: ``(root)`` to a report of what is there.
        options: names of the reader's own options.
        upright: the images have an up; False for views from above.
    """

    description: str
    licence: str
    splits: tuple[str, ...]
    classes: tuple[str, ...]
    palette: np.ndarray = field(repr=False)
    loader: Callable[..., SegmentationDataset] = field(repr=False)
    checker: inventory.Checker = field(repr=False)
    options: tuple[str, ...] = ()
    upright: bool = True


def _thin(data: SegmentationDataset, limit: int | None) -> SegmentationDataset:
    """At most ``limit`` items, evenly spaced: neighbouring frames look alike."""
    if limit is None or limit >= len(data):
        return data
    return data.subset(np.linspace(0, len(data) - 1, limit).round().astype(int))


def _geometry(
    size: int | tuple[int, int] | None, transform: Transform | None, resample=None
) -> Transform | None:
    """Transform of a file set: a pair squeezes the image, a number cuts the centre."""
    if transform is not None and (size is not None or resample is not None):
        given = f"size {size}" if size is not None else f"resample {resample!r}"
        raise ValueError(
            f"{given} and a transform were both given; put it into the transform"
        )
    if size is None:
        if resample is not None:
            raise ValueError(
                f"resample {resample!r} says how images are resized; give a size too"
            )
        return transform
    kind = "resize" if isinstance(size, tuple | list) else "center"
    return Transform(kind, size, resample or "bilinear")


def _open_folder(
    split, root, size, limit, transform, resample=None, **options
) -> SegmentationDataset:
    geometry = _geometry(size, transform, resample)
    return _thin(FolderDataset(root, split, transform=geometry, **options), limit)


def _open_coco(
    split, root, size, limit, transform, resample=None, list_file=None
) -> SegmentationDataset:
    geometry = _geometry(size, transform, resample)
    return _thin(coco.Coco(split, root, geometry, list_file), limit)


def _open_published(
    reader: Callable[..., SegmentationDataset],
    find_root: Callable[[str | Path | None], Path] | None = None,
    name: str = "",
) -> Callable[..., SegmentationDataset]:
    """Loader of a published set; with ``find_root``, also of its stored crops."""

    def loader(split, root, size, limit, transform, resample=None, crops=None):
        geometry = _geometry(size, transform, resample)
        if crops is None:
            return _thin(reader(split, root, geometry), limit)
        if crops != "five":
            raise ValueError(f"unknown crops {crops!r}; known: five")
        return _thin(FiveCrops(name, split, find_root(root), geometry), limit)

    return loader


def _open_scenes(kind: str) -> Callable[..., SegmentationDataset]:
    def loader(split, root, size, limit, transform, seed=0) -> SegmentationDataset:
        n = SCENES_SPLITS[split] if limit is None else limit
        size = SCENES_SIZE if size is None else size
        if isinstance(size, tuple | list):
            if len(set(size)) != 1:
                raise ValueError(f"generated scenes are square, got size {size}")
            size = size[0]
        return Scenes(kind, split, n, size=size, seed=seed, transform=transform)

    return loader


DATASETS: dict[str, DatasetInfo] = {
    "scenes": DatasetInfo(
        description="generated street scenes, 7 classes, exact labels",
        licence="MIT, as this repository",
        splits=tuple(SCENES_SPLITS),
        classes=CLASS_NAMES["scenes"],
        palette=palette("scenes"),
        loader=_open_scenes("street"),
        checker=inventory.check_generated("scenes"),
        options=("seed",),
    ),
    "scenes-aerial": DatasetInfo(
        description="generated aerial views, 6 classes, exact labels",
        licence="MIT, as this repository",
        splits=tuple(SCENES_SPLITS),
        classes=CLASS_NAMES["scenes-aerial"],
        palette=palette("scenes-aerial"),
        loader=_open_scenes("aerial"),
        checker=inventory.check_generated("scenes-aerial"),
        options=("seed",),
        upright=False,
    ),
    "camvid": DatasetInfo(
        description="CamVid, 701 frames of a drive, 11 classes",
        licence="CC BY-NC 4.0",
        splits=tuple(camvid.SPLITS),
        classes=CLASS_NAMES["camvid11"],
        palette=palette("camvid11"),
        loader=_open_published(camvid.CamVid),
        checker=inventory.check_camvid,
        options=("resample",),
    ),
    "cocostuff27": DatasetInfo(
        description="COCO-Stuff, photographs of everyday scenes, 27 classes",
        licence="labels CC BY 4.0; images under the terms of Flickr",
        splits=tuple(cocostuff.SPLITS),
        classes=CLASS_NAMES["cocostuff27"],
        palette=palette("cocostuff27"),
        loader=_open_published(
            cocostuff.CocoStuff, cocostuff.find_root, cocostuff.NAME
        ),
        checker=inventory.check_cocostuff,
        options=("resample", "crops"),
    ),
    "cityscapes27": DatasetInfo(
        description="Cityscapes, 3475 street scenes of 21 cities, 27 classes",
        licence="research, not commercial; login needed",
        splits=tuple(cityscapes.SPLITS),
        classes=CLASS_NAMES["cityscapes27"],
        palette=palette("cityscapes27"),
        loader=_open_published(
            cityscapes.Cityscapes, cityscapes.find_root, cityscapes.NAME
        ),
        checker=inventory.check_cityscapes,
        options=("resample", "crops"),
    ),
    "cityscapes19": DatasetInfo(
        description="Cityscapes with the 19 classes of its benchmark",
        licence="research, not commercial; login needed",
        splits=tuple(cityscapes.SPLITS),
        classes=CLASS_NAMES["cityscapes19"],
        palette=palette("cityscapes19"),
        loader=_open_published(cityscapes.Cityscapes19),
        checker=inventory.check_cityscapes19,
        options=("resample",),
    ),
    "coco": DatasetInfo(
        description="MSCOCO, 118287 photographs of everyday scenes, no labels",
        licence="images under the terms of Flickr",
        splits=tuple(coco.SPLITS),
        classes=coco.CLASSES,
        palette=voc_palette(len(coco.CLASSES)),
        loader=_open_coco,
        checker=inventory.check_coco,
        options=("resample", "list_file"),
    ),
    "potsdam3": DatasetInfo(
        description="Potsdam, 5400 aerial patches in the published split, 3 classes",
        licence="research; ISPRS",
        splits=tuple(potsdam.SPLITS),
        classes=CLASS_NAMES["potsdam3"],
        palette=palette("potsdam3"),
        loader=_open_published(potsdam.Potsdam),
        checker=inventory.check_potsdam,
        options=("resample",),
        upright=False,
    ),
    "potsdam3-tiles": DatasetInfo(
        description="Potsdam, 5400 aerial patches split by tile, 3 classes",
        licence="research; ISPRS",
        splits=tuple(potsdam.SPLITS),
        classes=CLASS_NAMES["potsdam3"],
        palette=palette("potsdam3"),
        loader=_open_published(potsdam.PotsdamTiles),
        checker=inventory.check_potsdam_tiles,
        options=("resample",),
        upright=False,
    ),
    "voc": DatasetInfo(
        description="PASCAL VOC 2012, photographs of 20 kinds of objects, 21 classes",
        licence="images under the terms of Flickr; labels for research",
        splits=tuple(voc.SPLITS),
        classes=CLASS_NAMES["voc21"],
        palette=palette("voc21"),
        loader=_open_published(voc.Voc),
        checker=inventory.check_voc,
        options=("resample",),
    ),
    "folder": DatasetInfo(
        description="your own images, labels optional",
        licence="yours",
        splits=(),
        classes=(),
        palette=voc_palette(0),
        loader=_open_folder,
        checker=inventory.check_folder,
        options=("resample", "classes", "ignore"),
    ),
}


def names() -> tuple[str, ...]:
    """Names of all data sets."""
    return tuple(DATASETS)


def info(name: str) -> DatasetInfo:
    """The row of a data set.

    Raises:
        ValueError: the name is unknown.
    """
    if name not in DATASETS:
        raise ValueError(f"unknown data set {name!r}; known: {', '.join(DATASETS)}")
    return DATASETS[name]


def load(
    name: str,
    split: str = "train",
    root: str | Path | None = None,
    *,
    size: int | tuple[int, int] | None = None,
    limit: int | None = None,
    transform: Transform | None = None,
    **options,
) -> SegmentationDataset:
    """Open one split of a data set.

    Args:
        name: one of :func:`names`.
        split: name of the split.
        root: folder of a stored set; None: its folder under the data folder. Generated
            sets need none.
        size: generated sets: side of the image that is drawn (default 128). Stored
            sets: shorthand for a transform, (H, W) resizes to that size, one number
            cuts the square centre.
        limit: at most this many items: the first ones of a generated set, evenly
            spaced ones of a stored set, whose neighbours look alike.
        transform: geometry, instead of ``size``.
        **options: of the reader; None means its default. ``resample`` (stored sets):
            how ``size`` resizes images, "nearest" as STEGO and its successors do,
            "bilinear" (antialiased, the default), "tensor" as PriMaPs-EM evaluates,
            or "cubic" as MaskContrast evaluates
            (:class:`~uss_utils.datasets.transforms.Transform` describes them);
            ``crops="five"`` (cocostuff27, cityscapes27): the crops that ``data
            prepare`` stored, instead of the whole images; ``seed`` (generated sets);
            ``list_file`` (coco): names the images that are read;
            ``classes`` and ``ignore`` (folder).

    Raises:
        ValueError: unknown data set, split or option, or settings that make no sense.
        FileNotFoundError: the set is not there; the message says how to get it.
    """
    row = info(name)
    if row.splits and split not in row.splits:
        raise ValueError(
            f"data set {name!r} has no split {split!r}; known: {', '.join(row.splits)}"
        )
    if limit is not None and limit < 1:
        raise ValueError(f"limit {limit} leaves no images; give at least 1, or None")
    options = {key: value for key, value in options.items() if value is not None}
    strange = sorted(options.keys() - set(row.options))
    if strange:
        raise ValueError(
            f"data set {name!r} has no option {strange[0]!r}; "
            f"known: {', '.join(row.options) or 'none'}"
        )
    return row.loader(split, root, size, limit, transform, **options)


def check(name: str, root: str | Path | None = None) -> inventory.Report:
    """Look for a data set without opening it.

    Args:
        name: one of :func:`names`.
        root: folder of a stored set; None: its folder under the data folder.

    Returns:
        A report that prints as one line per item and, if anything is missing, the
        step that gets it.

    Raises:
        ValueError: the name is unknown.
    """
    return info(name).checker(root)
