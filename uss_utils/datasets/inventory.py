"""What of a data set is there, what is missing, and the step that gets it."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from uss_utils.datasets import (
    camvid,
    cityscapes,
    coco,
    cocostuff,
    crops,
    folder,
    potsdam,
    potsdam_tiles,
    roots,
    voc,
)
from uss_utils.datasets.base import SegmentationDataset

# A broken folder can have thousands of problems; these many are read.
SHOWN = 5
SAMPLED = 100  # labels of a split that are read to see whether files are sound


@dataclass(frozen=True)
class Count:
    """Files of one kind: how many are there and how many should be.

    Attributes:
        what: e.g. "train images".
        found: number of files.
        expected: published number, or None where any number is right.
        extra: not part of the set, but made from it: how. Its absence is no fault.
    """

    what: str
    found: int
    expected: int | None = None
    extra: str = ""

    @property
    def complete(self) -> bool:
        """All there; at least one where no number is prescribed; or not needed."""
        if self.extra:
            return True
        return self.found == self.expected if self.expected else self.found > 0

    def __str__(self) -> str:
        of = f" of {self.expected}" if self.expected else ""
        text = f"{self.what}: {self.found}{of}"
        if self.extra and self.found != self.expected:
            return f"[--]   {text} (optional: {self.extra})"
        return f"{'[OK]  ' if self.complete else '[MISS]'} {text}"


@dataclass(frozen=True)
class Report:
    """Result of looking at one data set; ``print`` it.

    Attributes:
        name: data set.
        place: folder that was looked at, or how the set comes about.
        counts: what was counted.
        problems: sentences about files that would fail when read.
        step: what to do about anything missing; empty if nothing is.
    """

    name: str
    place: str
    counts: tuple[Count, ...]
    problems: tuple[str, ...] = ()
    step: str = ""

    @property
    def complete(self) -> bool:
        """Nothing is missing and nothing is wrong."""
        return not self.problems and all(count.complete for count in self.counts)

    def __str__(self) -> str:
        lines = [f"{self.name}: {self.place}", *map(str, self.counts)]
        lines += [f"[FAIL] {text}" for text in self.problems[:SHOWN]]
        if len(self.problems) > SHOWN:
            lines.append(f"[FAIL] ... and {len(self.problems) - SHOWN} more")
        if not self.complete and self.step:
            lines.append(f"next step: {self.step}")
        return "\n".join(lines)


Checker = Callable[[str | Path | None], Report]


def check_camvid(root: str | Path | None = None) -> Report:
    """Count frames and labels of the three splits of CamVid."""
    try:
        place = camvid.find_root(root)
    except FileNotFoundError:
        place = roots.expected_root(root, "camvid")
    counts = tuple(
        Count(f"{split} {kind}", found, camvid.SPLITS[split])
        for split, pair in camvid.count(place).items()
        for kind, found in zip(("images", "labels"), pair, strict=True)
    )
    step = (
        f"`{camvid.FETCH}` (about 180 MB), or name the folder that holds train/ and "
        "trainannot/ with --data-root. A split that is complete can be used already"
    )
    return Report("camvid", str(place), counts, step=step)


def _sampled_problems(
    opened: Callable[[str, Path], SegmentationDataset], splits: Iterable[str], at: Path
) -> list[str]:
    """What reading some evenly spaced labels of every split complains about.

    Splits without any file are counted as missing already, so their absence is not
    repeated here.
    """
    problems = []
    for split in splits:
        try:
            data = opened(split, at)
        except (OSError, ValueError) as error:
            problems.append(str(error))
            continue
        for i in np.unique(np.linspace(0, len(data) - 1, SAMPLED).round().astype(int)):
            try:
                data.read_label(int(i))
            except (OSError, ValueError) as error:
                problems.append(str(error))
    return problems


def _crop_counts(place: Path, name: str, n_train: int) -> list[Count]:
    images, labels = crops.count_crops(place, name, "train")
    made = f"python -m uss_utils data prepare {name}"
    expected = crops.PER_IMAGE * n_train
    return [
        Count("five crops of train, images", images, expected, made),
        Count("five crops of train, labels", labels, expected, made),
    ]


def check_cocostuff(root: str | Path | None = None) -> Report:
    """Count images, labels, lists and crops of COCO-Stuff."""
    try:
        place = cocostuff.find_root(root)
    except FileNotFoundError:
        place = roots.expected_root(root, "cocostuff")
    counts, problems, n_train = [], [], cocostuff.CURATED["train"]
    for split, folder_name in cocostuff.SPLITS.items():
        for kind, suffix in cocostuff.KINDS.items():
            found = len(roots.listed(place / kind / folder_name, suffix))
            counts.append(Count(f"{split} {kind}", found, cocostuff.IMAGES[split]))
        path = cocostuff.list_file(place, split)
        try:
            listed = len(cocostuff.read_list(path)) if path else 0
        except ValueError as error:
            listed, problems = 0, [*problems, str(error)]
        usual = path is None or path.name == cocostuff.LIST
        expected = cocostuff.CURATED[split] if usual else listed
        name = path.name if path else cocostuff.LIST
        how = "made from the labels when first needed"
        counts.append(Count(f"{split} list {name}", listed, expected, how))
        if split == "train" and listed:
            n_train = listed
        if listed:
            problems += _sampled_problems(cocostuff.CocoStuff, [split], place)
    counts += _crop_counts(place, cocostuff.NAME, n_train)
    step = (
        f"`{cocostuff.FETCH}` (20 GB, no login; with `--split val` 1.5 GB), or name "
        "the folder that holds images/ and annotations/ with --data-root. A split that "
        "is complete can be used already"
    )
    return Report(cocostuff.NAME, str(place), tuple(counts), tuple(problems), step)


def check_coco(root: str | Path | None = None) -> Report:
    """Count the images of MSCOCO and look at the headers of some."""
    try:
        place = coco.find_root(root)
    except FileNotFoundError:
        place = roots.expected_root(root, coco.NAME)
    counts, problems = [], []
    for split in coco.SPLITS:
        found = len(roots.listed(coco.image_folder(place, split), coco.SUFFIX))
        # Nothing is learned from val, and nothing can be scored on it.
        how = "" if split == "train" else f"{coco.FETCH} --split {split}"
        counts.append(Count(f"{split} images", found, cocostuff.IMAGES[split], how))
        if found:
            problems += _sampled_problems(coco.Coco, [split], place)
    step = (
        f"`{coco.FETCH} --split train` (19 GB, no login), or name the folder that "
        "holds train2017/ or images/ with --data-root. Images of cocostuff27 are used"
    )
    return Report(coco.NAME, str(place), tuple(counts), tuple(problems), step)


def check_cityscapes(root: str | Path | None = None) -> Report:
    """Count images, labels and crops of Cityscapes."""
    report = _check_cityscapes(root, cityscapes.Cityscapes)
    crops = _crop_counts(
        Path(report.place), cityscapes.NAME, cityscapes.SPLITS["train"]
    )
    return replace(report, counts=(*report.counts, *crops))


def check_cityscapes19(root: str | Path | None = None) -> Report:
    """Count images and labels of Cityscapes."""
    return _check_cityscapes(root, cityscapes.Cityscapes19)


def _check_cityscapes(
    root: str | Path | None, reader: type[cityscapes.Cityscapes]
) -> Report:
    try:
        place = cityscapes.find_root(root)
    except FileNotFoundError:
        place = roots.expected_root(root, "cityscapes")
    counts = [
        Count(f"{split} {kind}", len(cityscapes.find_files(place, kind, split)), n)
        for split, n in cityscapes.SPLITS.items()
        for kind in (cityscapes.IMAGES, cityscapes.LABELS)
    ]
    there = [split for split in cityscapes.SPLITS if _any(counts, split)]
    problems = _sampled_problems(reader, there, place)
    step = f"{cityscapes.HOW}; name it with --data-root"
    return Report(reader.maps, str(place), tuple(counts), tuple(problems), step)


def _any(counts: list[Count], split: str) -> bool:
    """Whether anything of a split was found."""
    return any(count.found for count in counts if count.what.startswith(split))


def _patch_counts(place: Path, suffix: str, splits: dict[str, int]) -> list[Count]:
    counts = []
    there = {kind: roots.listed(place / kind, suffix) for kind in ("imgs", "gt")}
    for split, n in splits.items():
        path = place / potsdam.LISTS[split]
        listed = potsdam.read_list(path) if path.is_file() else []
        counts.append(Count(f"{split} list {path.name}", len(listed), n))
        for kind, what in (("imgs", "patches"), ("gt", "labels")):
            found = len(there[kind] & set(listed))
            counts.append(Count(f"{split} {what}", found, n))
    return counts


def check_potsdam(root: str | Path | None = None) -> Report:
    """Count patches, labels and lists of the published patches of Potsdam."""
    try:
        place = potsdam.find_root(root)
    except FileNotFoundError:
        place = roots.expected_root(root, "potsdam")
    counts = _patch_counts(place, potsdam.Potsdam.SUFFIX, potsdam.SPLITS)
    there = [split for split in potsdam.SPLITS if _any(counts, split)]
    problems = _sampled_problems(potsdam.Potsdam, there, place)
    step = (
        f"{potsdam.HOW}, and name it with --data-root. From the tiles of ISPRS "
        "potsdam3-tiles can be made instead"
    )
    return Report(
        potsdam.Potsdam.NAME, str(place), tuple(counts), tuple(problems), step
    )


def check_potsdam_tiles(root: str | Path | None = None) -> Report:
    """Count the tiles of Potsdam and the patches cut from them."""
    given = roots.expected_root(root, "potsdam")
    try:
        place = potsdam.find_tiles_root(root)
    except FileNotFoundError:
        place = given / potsdam.BY_TILE
    counts = _patch_counts(place, potsdam.PotsdamTiles.SUFFIX, potsdam.TILE_SPLITS)
    if not all(count.complete for count in counts):
        found = potsdam_tiles.find_tiles(given) if given.is_dir() else {}
        for kind in ("image", "label"):
            n = len(set(found.get(kind, ())) & set(potsdam_tiles.TILES))
            counts.append(Count(f"tiles, {kind}s", n, len(potsdam_tiles.TILES)))
    step = potsdam.HOW_TILES
    return Report(potsdam.PotsdamTiles.NAME, str(place), tuple(counts), step=step)


def check_voc(root: str | Path | None = None) -> Report:
    """Count images, labels and lists of PASCAL VOC, and saliency masks if there are."""
    try:
        place = voc.find_root(root)
    except FileNotFoundError:
        place = roots.expected_root(root, voc.NAME)
    folder = place / voc.layout_of(place).images
    photographs, counts, problems = roots.written(folder, ".jpg"), [], []
    for split, n in voc.SPLITS.items():
        how = voc.FETCH if split == "trainaug" else ""
        path = voc.list_file(place, split)
        try:
            listed = set(voc.read_list(path)) if path.is_file() else set()
        except ValueError as error:
            listed, problems = set(), [*problems, str(error)]
        labels = roots.written(place / voc.label_folder(split), ".png")
        for kind, found in (("images", photographs), ("labels", labels)):
            counts.append(Count(f"{split} {kind}", len(found & listed), n, how))
        if listed:
            problems += _sampled_problems(voc.Voc, [split], place)
    for kind in voc.SALIENCY:
        masks = roots.written(voc.saliency_folder(place, kind), ".png")
        if masks:
            counts.append(Count(f"{kind} saliency masks", len(masks)))
    step = (
        f"`{voc.FETCH}` (3.4 GB, no login; with `--split val` 2 GB), or name the "
        "folder that holds VOCdevkit/ with --data-root"
    )
    return Report(voc.NAME, str(place), tuple(counts), tuple(problems), step)


def check_folder(root: str | Path | None = None) -> Report:
    """Count images and labels of an image folder and look at every file's header."""
    place = roots.expected_root(root, "folder")
    step = (
        "mend or remove the files named above; labels are 8-bit PNG of the same size "
        "and name as their image"
    )
    try:
        found, wrong = folder.problems(place)
    except OSError as error:
        return Report("folder", str(place), (Count("images", 0),), (str(error),))
    counts = []
    for split, (images, labels) in found.items():
        counts.append(Count(f"{split} images", images))
        if labels:
            counts.append(Count(f"{split} labels", labels, images))
    return Report("folder", str(place), tuple(counts), tuple(wrong), step)


def check_generated(name: str) -> Checker:
    """Checker of a generated set, which is never missing."""

    def check(root: str | Path | None = None) -> Report:
        return Report(name, "generated on the fly, nothing to download", ())

    return check
