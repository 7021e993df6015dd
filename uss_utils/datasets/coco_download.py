"""COCO-Stuff, or MSCOCO's images alone, unpacked as their readers want them.

Images come from the servers of COCO, labels from those of COCO-Stuff; no login. What is
there already is kept: a broken download or unpacking goes on where it stopped, and of a
set from elsewhere only what is missing is added.
"""

import shutil
import zipfile
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from tqdm.auto import tqdm

from uss_utils import paths
from uss_utils.datasets import coco, cocostuff, download, roots
from uss_utils.datasets.download import REGISTRY, DownloadError
from uss_utils.paths import atomic_file, clear_leftovers
from uss_utils.resumable import explained, locked


@dataclass(frozen=True)
class Part:
    """One archive and where its files go.

    Attributes:
        archive: name in the registry of downloads.
        folder: below the folder of the set.
        suffix: of the files.
        splits: that it holds.
    """

    archive: str
    folder: str
    suffix: str
    splits: tuple[str, ...]

    def missing(self, root: Path) -> int:
        """Number of files that are not there, or are empty."""
        return sum(
            max(0, cocostuff.IMAGES[split] - self._found(root, split))
            for split in self.splits
        )

    def share_missing(self, root: Path) -> float:
        """The same as a share of all its files."""
        return self.missing(root) / sum(cocostuff.IMAGES[s] for s in self.splits)

    def _found(self, root: Path, split: str) -> int:
        place = root / self.folder / cocostuff.SPLITS[split]
        return len(roots.written(place, self.suffix)) if place.is_dir() else 0


# Small ones first, so that evaluation can begin while the large one is fetched.
PARTS = (
    Part("coco-val2017", "images", ".jpg", ("val",)),
    Part("cocostuff-labels", "annotations", ".png", ("train", "val")),
    Part("coco-train2017", "images", ".jpg", ("train",)),
)


def download_cocostuff(
    root: str | Path | None = None,
    split: str | None = None,
    progress: bool = True,
) -> Path:
    """Get COCO-Stuff, or what is missing of it, and make its curated lists.

    Args:
        root: folder that holds, or will hold, ``images/`` and ``annotations/``; None:
            ``cocostuff`` under the data folder.
        split: "val" (1.5 GB) or "train"; None: both (21 GB). Labels always come for
            both, as they are one archive.
        progress: show bars.

    Returns:
        The folder.

    Raises:
        ValueError: unknown split.
        DownloadError: an archive could not be had or is not the published one.
        OSError: the folder cannot be written, or the disk is too full.
    """
    splits = _splits("COCO-Stuff", split)
    target = _target(cocostuff.find_root, root, "cocostuff")
    with locked(target):
        _fetch("COCO-Stuff", target, PARTS, splits, progress)
        for name in splits:
            if cocostuff.list_file(target, name) is None:
                cocostuff.curate(target, name, progress)
    print(f"COCO-Stuff ({', '.join(splits)}) is complete at {target}")
    return target


def download_coco(
    root: str | Path | None = None,
    split: str | None = None,
    progress: bool = True,
) -> Path:
    """Get the images of MSCOCO, or what is missing of them.

    Images that COCO-Stuff has brought are used, and completed in their place.

    Args:
        root: folder that holds, or will hold, ``images/``; None: ``coco`` under the
            data folder.
        split: "train" (19 GB) or "val" (0.8 GB); None: both.
        progress: show bars.

    Returns:
        The folder.

    Raises:
        ValueError: unknown split.
        DownloadError: an archive could not be had or is not the published one.
        OSError: the folder cannot be written, or the disk is too full.
    """
    splits = _splits("MSCOCO", split)
    target = _target(coco.find_root, root, coco.NAME)
    parts = []
    for part in PARTS:
        if part.suffix == coco.SUFFIX:
            place = coco.image_folder(target, part.splits[0]).parent
            parts.append(replace(part, folder=str(place.relative_to(target))))
    with locked(target):
        _fetch("MSCOCO", target, parts, splits, progress)
    print(f"MSCOCO ({', '.join(splits)}) is complete at {target}")
    return target


def _splits(what: str, split: str | None) -> tuple[str, ...]:
    known = tuple(cocostuff.SPLITS)
    if split is not None and split not in known:
        raise ValueError(f"{what} has no split {split!r}; known: {', '.join(known)}")
    return known if split is None else (split,)


def _target(
    find_root: Callable[[str | Path | None], Path],
    root: str | Path | None,
    name: str,
) -> Path:
    """Folder of a set, which exists afterwards."""
    try:
        return find_root(root)
    except FileNotFoundError:
        target = roots.expected_root(root, name)
    with explained(target):
        target.mkdir(parents=True, exist_ok=True)
    return target


def _fetch(
    what: str,
    target: Path,
    parts: Sequence[Part],
    splits: tuple[str, ...],
    progress: bool,
) -> None:
    """Fetch and unpack the archives of some splits of which files are missing."""
    wanted = [part for part in parts if set(part.splits) & set(splits)]
    wanted = [part for part in wanted if part.missing(target)]
    if wanted:
        megabytes = sum(REGISTRY[part.archive].megabytes for part in wanted)
        print(f"{what}: {len(wanted)} archives, {megabytes / 1000:.1f} GB")
        check_room(target, wanted, what)
    for part in wanted:
        print(download.announce(part.archive))
        archive = download.fetch(part.archive)
        unpack(archive, part, target, progress)
        archive.unlink()


def check_room(target: Path, parts: list[Part], what: str = "COCO-Stuff") -> None:
    """Refuse to begin what the disk cannot hold: one archive at a time, and all files.

    Args:
        target: folder of the set.
        parts: archives to be fetched.
        what: the set, as the message calls it.

    Raises:
        OSError: naming what is needed and what is free.
    """
    sizes = [REGISTRY[part.archive].megabytes * 10**6 for part in parts]
    unpacked = sum(
        size * part.share_missing(target)
        for size, part in zip(sizes, parts, strict=True)
    )
    hint = "; --split val needs little"
    download.check_room(what, target, max(sizes), unpacked, hint)


def unpack(archive: Path, part: Part, target: Path, progress: bool = True) -> None:
    """Bring the files of an archive to their places; those there are left alone.

    Every file appears whole or not at all, and a killed run is continued.

    Args:
        archive: zip file with ``train2017/`` and ``val2017/``, or one of them.
        part: what is expected in it.
        target: folder of the set.
        progress: show a bar.

    Raises:
        DownloadError: the archive is damaged or holds something else; it is removed.
        OSError: a file cannot be written; the archive is kept.
    """
    folders = {cocostuff.SPLITS[split] for split in part.splits}
    for folder in folders:
        clear_leftovers(target / part.folder / folder)
    try:
        with zipfile.ZipFile(archive) as file:
            members = [m for m in file.infolist() if _belongs(m, folders, part.suffix)]
            download.check_growth(members, archive)
            for member in tqdm(
                members, f"unpacking {part.folder}", disable=not progress
            ):
                _extract(file, member, target / part.folder)
        paths.settle()
        missing = part.missing(target)
        if missing:
            raise zipfile.BadZipFile(f"{missing} files are missing in it")
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as error:
        archive.unlink()
        expected = ", ".join(
            f"{cocostuff.IMAGES[s]} files {cocostuff.SPLITS[s]}/*{part.suffix}"
            for s in part.splits
        )
        raise DownloadError(
            f"the archive from {REGISTRY[part.archive].url} is damaged or not the "
            f"published one: {error}; expected {expected}. It was removed; run the "
            "command again, what was unpacked is kept"
        ) from error


def _belongs(member: zipfile.ZipInfo, folders: set[str], suffix: str) -> bool:
    path = PurePosixPath(member.filename)
    return (
        not member.is_dir()
        and path.parent.name in folders
        and path.name.endswith(suffix)
        and not path.name.startswith(".")
        and "\\" not in path.name
    )


def _extract(file: zipfile.ZipFile, member: zipfile.ZipInfo, folder: Path) -> None:
    # Only the last two parts of a name are used, so none can leave the folder.
    name = PurePosixPath(member.filename)
    place = folder / name.parent.name / name.name
    if place.is_file() and place.stat().st_size == member.file_size:
        return
    with atomic_file(place, bulk=True) as path:
        with file.open(member) as source, path.open("wb") as copy:
            shutil.copyfileobj(source, copy)
