"""Your own photographs: a folder of images, with or without label maps.

Three layouts are recognised; ``imgs`` may also be called ``images``::

    root/*.jpg                          images only
    root/imgs/*   root/labels/*.png     labels are optional
    root/imgs/{train,val}/*   root/labels/{train,val}/*.png

A label has the name of its image and holds one class id per pixel, 255 = no label.
"""

import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from uss_utils import paths
from uss_utils.datasets.files import (
    IMAGE_SUFFIXES,
    FileDataset,
    by_stem,
    list_files,
    pair_files,
    read_ids,
    read_text,
    stored_size,
)
from uss_utils.datasets.labels import MOST_CLASSES, strict_table, voc_palette
from uss_utils.datasets.transforms import Transform

IMAGE_FOLDERS = ("imgs", "images")
LABEL_FOLDER = "labels"
WHOLE = "all"
# Class names, one per line, beside the images.
NAMES_FILE = "classes.txt"


@dataclass(frozen=True)
class Layout:
    """Where the images and labels of a folder lie.

    Attributes:
        root: the folder itself.
        images: folder that holds the images, or one folder per split.
        labels: the same for the labels; None without labels.
        splits: names of the split folders; empty if there are none.
    """

    root: Path
    images: Path
    labels: Path | None
    splits: tuple[str, ...]


def find_layout(root: str | Path | None = None) -> Layout:
    """Recognise the layout of a folder.

    Args:
        root: the folder; None: ``folder`` under the data folder.

    Raises:
        FileNotFoundError: the folder is absent or holds no images; the message lists
            the layouts.
    """
    root = paths.dataset_root("folder", root)
    named = [root / name for name in IMAGE_FOLDERS if (root / name).is_dir()]
    images = named[0] if named else root
    labels = root / LABEL_FOLDER
    has_labels = labels.is_dir()
    if list_files(images):
        return Layout(root, images, labels if has_labels else None, ())
    splits = tuple(
        sorted(p.name for p in images.iterdir() if p.is_dir() and list_files(p))
    )
    if not splits or not named:
        raise FileNotFoundError(
            f"no images in {images}: expected files ending in "
            f"{' '.join(IMAGE_SUFFIXES)} (upper case too) directly in it, or in "
            f"{root / 'imgs'} (labels in {root / 'labels'}), or in "
            f"{root / 'imgs' / 'train'} and {root / 'imgs' / 'val'}; other subfolders "
            "are not searched"
        )
    return Layout(root, images, labels if has_labels else None, splits)


def find_pairs(layout: Layout, split: str) -> list[tuple[Path, Path | None]]:
    """Image and label files of one split, sorted by name.

    Args:
        layout: from :func:`find_layout`.
        split: name of a split folder. A folder without splits is one set: "train" and
            "all" name it; every other split gives the same images with a warning.

    Raises:
        FileNotFoundError: the split is absent, or a file has no partner.
    """
    images, labels = layout.images, layout.labels
    if layout.splits:
        if split not in layout.splits:
            raise FileNotFoundError(
                f"no split {split!r} under {images}; "
                f"splits there: {', '.join(layout.splits)}"
            )
        images = images / split
        labels = labels / split if labels is not None else None
        if labels is not None and not labels.is_dir():
            raise FileNotFoundError(
                f"images in {images}, but no labels in {labels}; add them, or move "
                f"{layout.labels} away to use the images without labels"
            )
    elif split not in ("train", WHOLE):
        warnings.warn(
            f"{images} has no split folders, so {split!r} is the same images as "
            "'train'; scores on it are not on unseen images",
            stacklevel=3,
        )
    if labels is None:
        return [(path, None) for path in by_stem(list_files(images)).values()]
    return pair_files(images, labels)


def _label_files(layout: Layout) -> list[Path]:
    if layout.labels is None:
        return []
    folders = [layout.labels / name for name in layout.splits or ("",)]
    return [p for folder in folders if folder.is_dir() for p in list_files(folder)]


def infer_n_classes(layout: Layout, ignore: int = 255) -> int:
    """One more than the largest id in any label of any split; 1 without labels.

    Raises:
        OSError: a label cannot be read.
        ValueError: it holds colours, or numbers that are no classes' ids.
    """
    files = _label_files(layout)

    def largest(path: Path) -> int:
        ids = read_ids(path)
        ids = ids[ids != ignore]
        most = int(ids.max()) if ids.size else -1
        if most >= MOST_CLASSES:
            raise ValueError(
                f"label id {most} in {path} is out of range: classes are numbered from "
                f"0, up to {MOST_CLASSES - 1}"
            )
        return most

    with ThreadPoolExecutor(FileDataset.threads) as pool:
        return max([0, *pool.map(largest, files)]) + 1


def read_names(path: Path) -> tuple[str, ...]:
    """Names of classes, one per line; empty lines are left out.

    Raises:
        OSError: the file cannot be read.
    """
    lines = read_text(path).splitlines()
    return tuple(line.strip() for line in lines if line.strip())


def _class_names(
    layout: Layout, classes: int | Sequence[str] | None, ignore: int
) -> tuple[str, ...]:
    if classes is None and (layout.root / NAMES_FILE).is_file():
        classes = read_names(layout.root / NAMES_FILE)
    if classes is None:
        classes = infer_n_classes(layout, ignore)
    if isinstance(classes, int):
        # One more than can be, so that the check of all such numbers refuses it.
        classes = [f"class {i}" for i in range(min(classes, MOST_CLASSES + 1))]
    if not classes:
        raise ValueError("a data set needs at least one class")
    return tuple(classes)


class FolderDataset(FileDataset):
    """An image folder with optional labels.

    Args:
        root: the folder, in one of the layouts above; None: ``folder`` under the data
            folder.
        split: see :func:`find_pairs`.
        classes: number of classes or their names, index = id. None: the lines of
            ``classes.txt`` in the folder, else counted from the largest id in use.
        ignore: stored id that means "no label"; the other ids keep their numbers, so
            with 0 the first class name is never used.
        transform: geometry; None keeps the pixels as they are.

    Raises:
        FileNotFoundError: no folder, no images, no such split, or a file without its
            partner.
        ValueError: names that clash, or class settings that make no sense.
    """

    def __init__(
        self,
        root: str | Path | None = None,
        split: str = WHOLE,
        *,
        classes: int | Sequence[str] | None = None,
        ignore: int = 255,
        transform: Transform | None = None,
    ):
        layout = find_layout(root)
        names = _class_names(layout, classes, ignore)
        super().__init__(
            "folder",
            split,
            find_pairs(layout, split),
            names,
            voc_palette(len(names)),
            strict_table(len(names), ignore),
            transform,
        )


def problems(root: str | Path | None) -> tuple[dict[str, tuple[int, int]], list[str]]:
    """Look at every file's header: what is there, what would fail.

    Args:
        root: see :func:`find_layout`.

    Returns:
        Number of images and labels per split, and one sentence per problem.
    """
    layout = find_layout(root)
    counts, found = {}, []
    for split in layout.splits or (WHOLE,):
        try:
            pairs = find_pairs(layout, split)
        except (OSError, ValueError) as error:
            found.append(str(error))
            continue
        counts[split] = (len(pairs), sum(label is not None for _, label in pairs))
        found += [text for pair in pairs if (text := _pair_problem(*pair))]
    return counts, found


def _pair_problem(image: Path, label: Path | None) -> str | None:
    try:
        sizes = [stored_size(path) for path in (image, label) if path is not None]
    except OSError as error:
        return str(error)
    if len(set(sizes)) > 1:
        (a, b), (c, d) = sizes
        return f"sizes differ: {image} is {a}x{b} (width x height), {label} is {c}x{d}"
    return None
