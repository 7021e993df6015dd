"""Region maps of a data set on disk: made once, or those that HSG's authors released.

Two kinds of folders: ``000000.png`` and so on, made by :func:`make_regions`, with
``options.json`` beside them; and ``<name of the image>.png``, at any depth, as the
release has them. Inside the package the regions of an image are numbered from 0 without
gaps, and a map has the size of its image behind the data set's transform.
"""

import os
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from uss_utils import regions
from uss_utils.datasets.base import SegmentationDataset
from uss_utils.datasets.files import read_ids, reason
from uss_utils.datasets.processes import cores, spread
from uss_utils.map_files import MapFiles, default_folder, to_be_made, write_map
from uss_utils.paths import user_path

FORMAT = 1  # another number: regions are made anew
PER_PROCESS = 100  # images that are worth the seconds a process takes to start
PHOTOGRAPH = "_leftImg8bit"  # ends file names of Cityscapes, not its items' names


@dataclass(frozen=True)
class RegionRecipe:
    """How regions are made, see :func:`uss_utils.regions.regions_of`.

    HSG's tracks: the defaults are those of MSCOCO; Cityscapes has ``threshold=0.05,
    max_regions=128``. (The release means to cap the latter, too, but a misplaced
    parenthesis keeps all regions.)

    Attributes:
        side: longer side of the copy of the image that regions are found in, in pixels.
        threshold: of the cut, before it rises.
        max_regions: of an image.
    """

    side: int = regions.SIDE
    threshold: float = regions.THRESHOLD
    max_regions: int = regions.MAX_REGIONS

    def __post_init__(self) -> None:
        """Check the numbers.

        Raises:
            ValueError: one is out of range.
        """
        regions.check_cut(self.threshold, self.max_regions)
        regions.working_size((1, 1), self.side)
        if self.max_regions > 2**16:
            raise ValueError(
                f"max_regions={self.max_regions}: files hold ids up to {2**16 - 1}"
            )


class Settings(Protocol):
    """What is read of a method's settings here."""

    region_side: int
    region_threshold: float
    region_max: int
    region_folder: str


class RegionFiles(MapFiles):
    """Read access to the regions of a data set; ids are 0..n-1 in every map.

    Args:
        paths: file of every image, in the data set's order.
        names: of the images.
        dataset: give it where the files have the size of the stored images: they are
            checked against these and go through the data set's transform.
    """

    what = "region maps"

    def __init__(
        self,
        paths: Iterable[Path],
        names: Iterable[str],
        dataset: SegmentationDataset | None = None,
    ):
        super().__init__(paths)
        self.names = tuple(names)
        self.dataset = dataset

    def decode(self, index: int) -> np.ndarray:
        """Regions of one image from its file, unsigned integers (H, W)."""
        ids = _readable(self.paths[index])
        if self.dataset is not None:
            size = self.dataset.read_size(index)
            if ids.shape != size:
                raise ValueError(
                    f"sizes differ: {self.names[index]} has {size[0]}x{size[1]} pixels "
                    f"(height x width), its region map {self.paths[index]} "
                    f"{ids.shape[0]}x{ids.shape[1]}; fetch the map again, or make "
                    "regions with region_folder=''"
                )
            ids = self.dataset.transform.apply_label(ids)
        return _compact(regions.dense(ids))


def _readable(path: Path) -> np.ndarray:
    """Ids as stored, integers from 0 on (H, W)."""
    try:
        ids = read_ids(path)
        if ids.min() < 0:
            raise ValueError(f"it holds {ids.min()}; regions are numbered from 0")
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{path} is no readable region map ({reason(error.__cause__ or error)}); "
            "delete it, and make or fetch it again"
        ) from error
    return ids


def _compact(ids: np.ndarray) -> np.ndarray:
    return ids.astype(np.min_scalar_type(int(ids.max())))


def make_regions(
    dataset: SegmentationDataset,
    recipe: RegionRecipe | None = None,
    *,
    folder: str | Path | None = None,
    workers: int | None = None,
    progress: bool = False,
) -> RegionFiles:
    """Make the region maps that are missing.

    Args:
        dataset: images of any sizes, seen through the set's transform.
        recipe: how; None: the defaults.
        folder: where to put them; None: a folder under the cache directory, named by
            data set and content.
        workers: processes; None: as many as there are cores and work for.
        progress: show a bar.

    Returns:
        The regions of every image.

    Raises:
        ValueError: ``folder`` holds regions of something else.
        OSError: the place cannot be written, or an image cannot be read.
    """
    recipe = recipe or RegionRecipe()
    options = {
        "format": FORMAT,
        "images": len(dataset),
        "dataset": dataset.fingerprint(),
        **asdict(recipe),
    }
    if folder is None:
        names = dataset.name, dataset.split
        folder = default_folder("regions", options, *names)
    with to_be_made(folder, len(dataset), options, "region maps") as (files, missing):
        if workers is None:
            workers = max(1, min(cores(), len(missing) // PER_PROCESS))
        done = spread(
            _make,
            (dataset, recipe),
            [(index, files[index]) for index in sorted(missing)],
            processes=workers,
            desc="regions",
            progress=progress and bool(missing),
        )
        for _ in done:
            pass
    return RegionFiles(files, _names(dataset))


def _make(shared: tuple, job: tuple[int, Path]) -> None:
    """Regions of one image; called in processes of their own."""
    (dataset, recipe), (index, path) = shared, job
    image = dataset.transform.apply_image(dataset.read_image(index))
    ids = regions.regions_of(image, recipe.side, recipe.threshold, recipe.max_regions)
    write_map(path, _compact(ids))


def _names(dataset: SegmentationDataset) -> list[str]:
    return [dataset.item_name(index) for index in range(len(dataset))]


def released(folder: str | Path, dataset: SegmentationDataset) -> RegionFiles:
    """Region maps that come with HSG's release, of integers of any width.

    Args:
        folder: one of its folders ``seginst/...``; files lie in it, or deeper, and have
            the names of the images.
        dataset: the images. Maps have the size they are stored in.

    Raises:
        FileNotFoundError: no such folder, or an image without a map.
        ValueError: an image with two maps.
    """
    folder = user_path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(
            f"no folder of region maps at {folder}; take the release's seginst folder, "
            "or make regions with region_folder=''"
        )
    names, there = _names(dataset), {}
    for path in _maps_below(folder):
        other = there.setdefault(path.stem.removesuffix(PHOTOGRAPH), path)
        if other is not path:
            raise ValueError(
                f"two region maps of one image, {other} and {path}; name the folder "
                "that holds those of one kind"
            )
    absent = [name for name in names if name not in there]
    if absent:
        raise FileNotFoundError(
            f"{len(absent)} of {len(names)} images have no region map in {folder}, the "
            f"first is {absent[0]}.png; fetch them all, or make regions with "
            "region_folder=''"
        )
    return RegionFiles([there[name] for name in names], names, dataset)


def _maps_below(folder: Path) -> Iterator[Path]:
    """PNG files at any depth; no ``._name.png`` twins, which Macs leave."""
    for place, _, files in os.walk(folder):
        for name in files:
            if name.endswith(".png") and not name.startswith("."):
                yield Path(place, name)


def open_regions(
    cfg: Settings,
    dataset: SegmentationDataset,
    *,
    folder: str | Path | None = None,
    workers: int | None = None,
    progress: bool = False,
) -> RegionFiles:
    """The regions that a method's settings ask for; what is missing is made.

    Args:
        cfg: the settings; an empty ``region_folder`` means that regions are made.
        dataset: images of any sizes.
        folder: where made regions lie, see :func:`make_regions`.
        workers: processes, see :func:`make_regions`.
        progress: show a bar.

    Raises:
        ValueError: a setting is out of range, or see :func:`make_regions` and
            :func:`released`.
        FileNotFoundError: released regions that are not there.
    """
    if cfg.region_folder:
        return released(cfg.region_folder, dataset)
    recipe = RegionRecipe(cfg.region_side, cfg.region_threshold, cfg.region_max)
    return make_regions(
        dataset, recipe, folder=folder, workers=workers, progress=progress
    )
