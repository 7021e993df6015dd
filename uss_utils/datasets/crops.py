"""Five crops per image, stored: what STEGO and its successors train on.

Four corners and the centre of every image, half as high and half as wide, cut from the
full resolution (STEGO, appendix B)::

    <root>/cropped/<name>_five_crop_0.5/
      img/<split>/0.jpg      JPEG of quality 75; crop c of item i has number 5 i + c
      label/<split>/0.png    class + 1; 0: ignored
      <split>.json           what the crops were made from; written when all are there
"""

import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from uss_utils import paths
from uss_utils.datasets import roots
from uss_utils.datasets.base import SegmentationDataset, text_bytes
from uss_utils.datasets.files import FileDataset
from uss_utils.datasets.labels import CLASS_NAMES, FORBIDDEN, IGNORE, palette
from uss_utils.datasets.processes import spread
from uss_utils.datasets.transforms import Transform, five_crops
from uss_utils.json_files import read_object
from uss_utils.paths import atomic_file, clear_leftovers
from uss_utils.resumable import locked

RATIO = 0.5
PER_IMAGE = 5
QUALITY = 75  # Pillow's default, named because published scores depend on it
KINDS = {"img": ".jpg", "label": ".png"}


def crops_folder(root: Path, name: str) -> Path:
    """Where the crops of a set lie.

    Args:
        root: folder of the set.
        name: of the set.
    """
    return root / "cropped" / f"{name}_five_crop_{RATIO}"


def count_crops(root: Path, name: str, split: str) -> tuple[int, int]:
    """Number of cropped images and labels of a split."""
    folder = crops_folder(root, name)
    return tuple(len(roots.listed(folder / k / split, KINDS[k])) for k in KINDS)


def write_crops(
    dataset: SegmentationDataset,
    root: Path,
    *,
    processes: int | None = None,
    progress: bool = True,
) -> Path:
    """Cut and store the crops of a split; a killed run is continued.

    Args:
        dataset: the split, in full resolution, with labels.
        root: folder of the set.
        processes: None: one per core.
        progress: show a bar.

    Returns:
        The folder of the crops.

    Raises:
        ValueError: the folder holds crops of other images, or too many files.
        OSError: a file cannot be read or written.
    """
    folder = crops_folder(root, dataset.name)
    record = _record(dataset)
    for kind in KINDS:
        place = folder / kind / dataset.split
        place.mkdir(parents=True, exist_ok=True)
        clear_leftovers(place)
    with locked(folder):
        _claim(folder, dataset.split, record)
        jobs = _missing(folder, dataset)
        done = spread(
            write_item,
            (dataset, folder),
            jobs,
            processes=processes,
            desc=f"five crops of {dataset.split}",
            progress=progress,
        )
        for _ in done:
            pass
        paths.settle()
        _verify(folder, dataset)
        _note(folder, dataset.split, {**record, "complete": True})
    return folder


def _record(dataset: SegmentationDataset) -> dict:
    """What decides the content of the crops."""
    names = "\n".join(dataset.item_name(i) for i in range(len(dataset)))
    return {
        "items": len(dataset),
        "names_sha256": hashlib.sha256(text_bytes(names)).hexdigest(),
        "ratio": RATIO,
        "quality": QUALITY,
        "classes": dataset.n_classes,
    }


def _claim(folder: Path, split: str, record: dict) -> None:
    """Say what is being made; refuse a folder in which something else was made."""
    path = folder / f"{split}.json"
    there = _read_record(path)
    if there and {**there, **record} != there:
        raise ValueError(
            f"{folder} holds crops of another list of images ({there.get('items')} "
            f"items there, {record['items']} now); remove it, and run this again"
        )
    if not there:
        if any(any((folder / kind / split).iterdir()) for kind in KINDS):
            raise ValueError(
                f"{folder} holds crops of {split} of unknown origin ({path.name} is "
                "missing); move them away, and run this again"
            )
        _note(folder, split, {**record, "complete": False})


def _note(folder: Path, split: str, record: dict) -> None:
    with atomic_file(folder / f"{split}.json") as path:
        path.write_text(json.dumps(record, indent=1), encoding="utf-8")


def _read_record(path: Path) -> dict:
    try:
        record = read_object(path)
        if not isinstance(record["items"], int):
            raise ValueError("it does not say how many items were cropped")
    except FileNotFoundError:
        return {}
    except (KeyError, ValueError) as error:
        raise ValueError(f"{path} is damaged; remove the folder around it") from error
    return record


def _missing(folder: Path, dataset: SegmentationDataset) -> list[tuple[int, tuple]]:
    """Items of which a file is missing, each with what is missing: (kind, crop)."""
    jobs: dict[int, list] = {}
    for kind, suffix in KINDS.items():
        there = roots.written(folder / kind / dataset.split, suffix)
        for number in range(PER_IMAGE * len(dataset)):
            if str(number) not in there:
                item, crop = divmod(number, PER_IMAGE)
                jobs.setdefault(item, []).append((kind, crop))
    return [(item, tuple(jobs[item])) for item in sorted(jobs)]


def write_item(
    shared: tuple[SegmentationDataset, Path],
    job: tuple[int, Iterable[tuple[str, int]]],
) -> None:
    """Write some crops of one item.

    Args:
        shared: data set and folder.
        job: the item, and which files: (kind, crop).
    """
    (dataset, folder), (item, wanted) = shared, job
    image, label = dataset.read(item)
    if label is None:
        label = np.full(image.shape[:2], IGNORE)
    crops = {
        "img": five_crops(image.transpose(2, 0, 1), RATIO).transpose(0, 2, 3, 1),
        "label": five_crops((label + 1).astype(np.uint8), RATIO),
    }
    for kind, crop in wanted:
        name = f"{PER_IMAGE * item + crop}{KINDS[kind]}"
        picture = Image.fromarray(np.ascontiguousarray(crops[kind][crop]))
        with atomic_file(folder / kind / dataset.split / name, bulk=True) as path:
            if kind == "img":
                picture.save(path, "JPEG", quality=QUALITY)
            else:
                picture.save(path, "PNG")


def _verify(folder: Path, dataset: SegmentationDataset) -> None:
    expected = PER_IMAGE * len(dataset)
    for kind, suffix in KINDS.items():
        place = folder / kind / dataset.split
        found = len(roots.written(place, suffix))
        if found != expected:
            raise ValueError(
                f"{place} holds {found} files, but {len(dataset)} images make "
                f"{expected} crops; remove what does not belong there"
            )


class FiveCrops(FileDataset):
    """The stored crops of one split.

    Args:
        name: of the set.
        split: of the set.
        root: folder of the set.
        transform: geometry; None keeps the crops' own sizes.

    Raises:
        FileNotFoundError: the crops are not there, or not all of them; the message
            names the command that makes them.
    """

    def __init__(
        self, name: str, split: str, root: Path, transform: Transform | None = None
    ):
        folder = crops_folder(root, name)
        record = _read_record(folder / f"{split}.json")
        expected = PER_IMAGE * record.get("items", 0)
        found = count_crops(root, name, split)
        if not record.get("complete") or found != (expected, expected):
            made = f"{found[0]} images and {found[1]} labels"
            of = f" of {expected} each" if expected else ""
            raise FileNotFoundError(
                f"no complete five crops of {name} {split} at {folder} ({made}{of}). "
                f"`python -m uss_utils data prepare {name} --split {split} --crops "
                f"--no-neighbours --data-root {root}` makes what is missing"
            )
        classes = CLASS_NAMES[name]
        super().__init__(
            name,
            split,
            Numbered(folder, split, expected),
            classes,
            palette(name),
            crop_table(len(classes)),
            transform,
        )


def crop_table(n_classes: int) -> np.ndarray:
    """Table of labels stored as class + 1, int64 (256,)."""
    table = np.full(256, FORBIDDEN, dtype=np.int64)
    table[: n_classes + 1] = np.arange(n_classes + 1) - 1
    return table


class Numbered(Sequence):
    """Pairs of crop files by number; made when asked for, as there may be a million.

    Args:
        folder: of the crops.
        split: of the set.
        n: number of crops.
    """

    def __init__(self, folder: Path, split: str, n: int):
        self.images, self.labels = (folder / kind / split for kind in KINDS)
        self.n = n

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, index: int) -> tuple[Path, Path]:
        if not 0 <= index < self.n:
            raise IndexError(index)
        return self.images / f"{index}.jpg", self.labels / f"{index}.png"
