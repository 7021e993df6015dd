"""Which files of a user's folder can be used, and why the others cannot.

Photographs of any size, format and orientation, good and broken ones mixed, in the
layouts of :mod:`uss_utils.datasets.folder` or simply side by side.
"""

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError
from tqdm.auto import tqdm

from uss_utils.datasets.files import FileDataset, list_files, read_ids, reason
from uss_utils.datasets.folder import (
    IMAGE_FOLDERS,
    LABEL_FOLDER,
    NAMES_FILE,
    Layout,
    find_layout,
    read_names,
)
from uss_utils.paths import user_path
from uss_utils.pictures import read_picture

IGNORED = 255  # stored id of pixels without label
LONGEST = 150  # bytes of a name


@dataclass(frozen=True)
class Found:
    """Files of a folder before any is opened.

    Attributes:
        folder: where they lie; for a single picture its folder.
        files: everything that may be a picture, by name.
        names: a name for every file, without suffix where that is unique: what its
            results are called.
        labels: label files of some of them.
        skipped: what is no file of pictures, with the reason.
        classes_file: a file of class names, if there is one.
    """

    folder: Path
    files: tuple[Path, ...]
    names: dict[Path, str]
    labels: dict[Path, Path]
    skipped: dict[str, str]
    classes_file: Path | None = None

    def shown(self, path: Path) -> str:
        """A file as it is called in messages: its place in the folder."""
        return printable(path.relative_to(self.folder).as_posix())


@dataclass(frozen=True)
class Scan:
    """A folder looked through: what can be read, and why the rest cannot.

    Attributes:
        pictures: files that decode to their last pixel, by name.
        skipped: reason of every other file, by its place in the folder.
        found: all files, their names and labels.
        sizes: upright (H, W) of every picture.
        labels: label files that can be read and fit their pictures.
        classes: names of the labels' classes; empty without labels.
    """

    pictures: tuple[Path, ...]
    skipped: dict[str, str]
    found: Found = field(repr=False)
    sizes: dict[Path, tuple[int, int]] = field(repr=False)
    labels: dict[Path, Path] = field(repr=False)
    classes: tuple[str, ...] = ()


def printable(name: str) -> str:
    """A file's name without bytes that are no text, which no page can show."""
    plain = name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    return plain.replace("\ufffd", "_")


def find(folder: str | Path) -> Found:
    """List the files of a folder, or a single picture; none is opened.

    Hidden files are left out: copies from a Mac carry ``._name.jpg`` twins. Subfolders
    other than those of the layouts are not searched; those with pictures are told.

    Raises:
        FileNotFoundError: there is no such folder, or no file in it.
    """
    folder = user_path(folder)
    if folder.is_file():
        names = {folder: _short(folder.stem)}
        return Found(folder.parent, (folder,), names, {}, {})
    if not folder.is_dir():
        raise FileNotFoundError(
            f"no folder of photographs at {folder}; give a folder, or one picture"
        )
    try:
        layout = find_layout(folder)
    except FileNotFoundError:  # files without a known ending may be pictures, too
        layout = Layout(folder, folder, None, ())
    places = [layout.images / split for split in layout.splits] or [layout.images]
    classes = folder / NAMES_FILE
    files = tuple(
        path for place in places for path in _visible(place) if path != classes
    )
    if not files:
        raise FileNotFoundError(
            f"{folder} holds no file; put photographs in it, or in {folder / 'imgs'}"
        )
    return Found(
        folder,
        files,
        _names(files),
        _labels(layout, places),
        _subfolders(folder, places),
        classes if classes.is_file() else None,
    )


def _visible(folder: Path) -> list[Path]:
    inside = (path for path in folder.iterdir() if not path.name.startswith("."))
    return sorted(path for path in inside if not path.is_dir())


def _names(files: Sequence[Path]) -> dict[Path, str]:
    """A name for each file, unique even where capitals do not count."""
    stems = Counter(_short(path.stem).casefold() for path in files)
    names, taken = {}, set()
    for path in files:
        name = _short(path.stem)
        if stems[name.casefold()] > 1:
            name = _short(path.name)
        # The same name in two splits, or "a.jpg" beside "a.jpg.png".
        if name.casefold() in taken:
            name = _short(f"{path.parent.name}-{path.name}")
        plain, number = name, 2
        while name.casefold() in taken:
            name, number = f"{plain}-{number}", number + 1
        taken.add(name.casefold())
        names[path] = name
    return names


def _short(name: str) -> str:
    """Room for endings: file systems allow 255 bytes."""
    return printable(name).encode()[:LONGEST].decode("utf-8", "ignore")


def _labels(layout: Layout, places: Sequence[Path]) -> dict[Path, Path]:
    if layout.labels is None:
        return {}
    labels = {}
    for place in places:
        folder = layout.labels / place.relative_to(layout.images)
        by_stem = {p.stem: p for p in list_files(folder)} if folder.is_dir() else {}
        for path in _visible(place):
            if path.stem in by_stem:
                labels[path] = by_stem[path.stem]
    return labels


def _subfolders(folder: Path, places: Sequence[Path]) -> dict[str, str]:
    """Subfolders with pictures that are not looked into."""
    known = {folder / name for name in (*IMAGE_FOLDERS, LABEL_FOLDER)}
    inside = {p for p in folder.iterdir() if p.is_dir() and p.name[0] != "."} - known
    told = {}
    for path in sorted(inside - set(places)):
        try:
            if list_files(path):
                why = "a folder: not searched, give it by itself"
                told[printable(path.name) + "/"] = why
        except OSError as error:
            told[printable(path.name) + "/"] = f"a folder: {_reason(error)}"
    return told


def read(path: Path) -> np.ndarray:
    """Pixels of a picture, upright uint8 RGB (H, W, 3); of an animation the first.

    Raises:
        OSError: it cannot be read; the message is the reason alone, in a few words.
    """
    if not path.is_file():
        raise OSError("neither a file nor a link to one")
    if not path.stat().st_size:
        raise OSError("the file is empty")
    try:
        return read_picture(path)
    except OSError as error:
        raise OSError(_reason(error)) from error


def _reason(error: Exception) -> str:
    """What went wrong, without the path, which is told already."""
    while isinstance(error.__cause__, Exception):
        error = error.__cause__
    if isinstance(error, UnidentifiedImageError):
        return "no picture, or its beginning is damaged"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    text = printable(reason(error))
    # What this package refuses, and pictures that would not fit into memory.
    if type(error) in (ValueError, FileNotFoundError, Image.DecompressionBombError):
        return text
    # Others are accidents inside Pillow, whose words explain nothing.
    told = isinstance(error, OSError | SyntaxError)
    return f"cut off or damaged ({text})" if told else "cut off or damaged"


def scan(folder: str | Path, *, progress: bool = False) -> Scan:
    """Read every file of a folder once, to its last pixel.

    Args:
        folder: a folder, or one picture; see :func:`find`.
        progress: show a bar.

    Returns:
        What can be read and, file by file, why the rest cannot. A label that cannot be
        used is told, too; its picture is used without it.

    Raises:
        FileNotFoundError: there is no such folder, or no file in it.
        ValueError: not a single picture can be read; the message gives the reasons.
    """
    found = find(folder)
    sizes, skipped = {}, dict(found.skipped)
    for path, result in _each(_size, found.files, progress):
        if isinstance(result, str):
            skipped[found.shown(path)] = result
        else:
            sizes[path] = result
    if not sizes:
        raise nothing_readable(folder, skipped)
    labels, classes, useless = usable_labels(found, sizes)
    return Scan(tuple(sizes), skipped | useless, found, sizes, labels, classes)


def usable_labels(
    found: Found, sizes: Mapping[Path, tuple[int, int]]
) -> tuple[dict[Path, Path], tuple[str, ...], dict[str, str]]:
    """Labels that can be read and fit their pictures.

    Args:
        found: the folder's files.
        sizes: upright (H, W) of its pictures.

    Returns:
        Label files by picture, names of the classes, and why the other labels cannot be
        used.
    """
    files = {path: file for path, file in found.labels.items() if path in sizes}
    largest, useless = {}, {}
    for path, result in _each(lambda p: _largest(files[p], sizes[p]), files, False):
        if isinstance(result, str):
            useless[found.shown(files[path])] = result
        else:
            largest[path] = result
    classes = _classes(found.classes_file, largest)
    for path in [path for path, most in largest.items() if most >= len(classes)]:
        useless[found.shown(files[path])] = (
            f"label id {largest.pop(path)} is out of range: {NAMES_FILE} names "
            f"{len(classes)} classes"
        )
    labels = {path: files[path] for path in largest}
    return labels, classes if labels else (), useless


def nothing_readable(folder: str | Path, skipped: dict[str, str]) -> ValueError:
    """The error for a folder without a single picture that can be read."""
    first = [f"{name} ({reason})" for name, reason in list(skipped.items())[:3]]
    more = f" and {len(skipped) - 3} more" if len(skipped) > 3 else ""
    return ValueError(
        f"none of the {len(skipped)} files in {folder} can be read as a picture: "
        f"{', '.join(first)}{more}"
    )


def _each(
    work: Callable[[Path], object], files: Collection[Path], progress: bool
) -> list[tuple[Path, object]]:
    """Results by file, a few at a time: decoding leaves Python's lock free."""
    with ThreadPoolExecutor(FileDataset.threads) as pool:
        bar = tqdm(
            zip(files, pool.map(work, files), strict=True),
            "read",
            len(files),
            unit="file",
            disable=not progress,
        )
        return list(bar)


def _size(path: Path) -> tuple[int, int] | str:
    try:
        return read(path).shape[:2]
    except OSError as error:
        return str(error)


def _largest(path: Path, size: tuple[int, int]) -> int | str:
    """Largest id of a label, -1 if all is ignored; or why it cannot be used."""
    try:
        ids = read_ids(path)
    except (OSError, ValueError) as error:
        return _reason(error)
    if ids.shape != size:
        return (
            f"the label is {ids.shape[1]}x{ids.shape[0]} pixels (width x height), its "
            f"picture {size[1]}x{size[0]}"
        )
    if ids.min() < 0 or ids.max() > IGNORED:
        return f"label ids reach from {ids.min()} to {ids.max()}, expected 0..254"
    used = ids[ids != IGNORED]
    return int(used.max()) if used.size else -1


def _classes(file: Path | None, largest: dict[Path, int]) -> tuple[str, ...]:
    if not largest:
        return ()
    if file is not None:
        names = read_names(file)
        if names:
            return names
    return tuple(f"class {k}" for k in range(max(largest.values()) + 1))
