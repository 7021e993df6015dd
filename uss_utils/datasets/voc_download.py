"""PASCAL VOC 2012 and SBD from their public addresses, unpacked as the reader wants it.

No login. What is there already is kept: a broken download or unpacking goes on where it
stopped.
"""

import gzip
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path, PurePosixPath

from tqdm.auto import tqdm

from uss_utils import paths
from uss_utils.datasets import download, roots, sbd, voc
from uss_utils.datasets.download import REGISTRY, DownloadError
from uss_utils.paths import atomic_file
from uss_utils.resumable import explained, locked

# Photographs in the archive; those without labels of VOC may have labels of SBD.
IMAGES = 17_125
_FOLDERS = (voc.OFFICIAL.images, voc.LABELS, voc.OFFICIAL.lists)


def download_voc(
    root: str | Path | None = None,
    split: str | None = None,
    progress: bool = True,
) -> Path:
    """Get PASCAL VOC 2012, or what is missing of it, and the labels of trainaug.

    Args:
        root: folder in which ``VOCdevkit/VOC2012`` is or will be, or which holds the
            set in one of the layouts that are read; None: ``voc`` under the data
            folder.
        split: "train" or "val" leaves SBD's labels (1.4 GB) out; "trainaug" or None:
            everything (3.4 GB).
        progress: show bars.

    Returns:
        The folder of the set.

    Raises:
        ValueError: unknown split.
        FileExistsError: an incomplete set of the other layout is there.
        DownloadError: an archive could not be had or is not the published one.
        OSError: the folder cannot be written, or the disk is too full.
    """
    if split is not None and split not in voc.SPLITS:
        raise ValueError(
            f"PASCAL VOC has no split {split!r}; known: {', '.join(voc.SPLITS)}"
        )
    target = _target(root)
    with explained(target):
        target.mkdir(parents=True, exist_ok=True)
    with locked(target):
        if not _is_complete(target):
            _refuse_release(target)
            _bring("voc2012", target, _place_of_voc, _is_complete, progress)
        if split in (None, "trainaug") and not sbd.is_made(target):
            _bring_sbd(target, progress)
            sbd.make_trainaug(target, progress=progress)
    print(f"PASCAL VOC 2012 ({split or ', '.join(voc.SPLITS)}) is complete at {target}")
    return target


def _target(root: str | Path | None) -> Path:
    try:
        return voc.find_root(root)
    except FileNotFoundError:
        return roots.expected_root(root, voc.NAME) / "VOCdevkit" / "VOC2012"


def _is_complete(target: Path) -> bool:
    """Whether images, labels and lists of VOC itself are all there."""
    images = roots.written(target / voc.layout_of(target).images, ".jpg")
    if voc.layout_of(target) is voc.OFFICIAL and len(images) < IMAGES:
        return False
    labels = roots.written(target / voc.LABELS, ".png")
    lists = [voc.list_file(target, split) for split in ("train", "val")]
    if not all(path.is_file() for path in lists):
        return False
    listed = {name for path in lists for name in voc.read_list(path)}
    return listed <= images & labels


def _refuse_release(target: Path) -> None:
    if voc.layout_of(target) is voc.RELEASE:
        raise FileExistsError(
            f"{target} holds an incomplete copy of MaskContrast's release, which this "
            f"command cannot complete (`data check {voc.NAME}` counts). Unpack its "
            "archive again, or give another --data-root to get the official set"
        )


def _bring_sbd(target: Path, progress: bool) -> None:
    """Labels and lists of SBD, unless they are there."""
    if _has_sbd(target):
        return
    _bring("sbd", target / sbd.FOLDER, _place_of_sbd, _has_all_labels, progress)


def _has_sbd(target: Path) -> bool:
    try:
        return _has_all_labels(sbd.find_sbd(target))
    except FileNotFoundError:
        return False


def _has_all_labels(folder: Path) -> bool:
    lists = all((folder / f"{split}.txt").is_file() for split in ("train", "val"))
    return lists and len(roots.written(folder / "cls", ".mat")) >= sbd.IMAGES


def _place_of_voc(name: PurePosixPath) -> str | None:
    """Place of an archive's member below the folder of the set; None: not wanted."""
    parts = name.parts
    if "VOC2012" not in parts or name.name.startswith("."):
        return None
    inner = PurePosixPath(*parts[parts.index("VOC2012") + 1 :])
    return str(inner) if str(inner.parent) in _FOLDERS else None


def _place_of_sbd(name: PurePosixPath) -> str | None:
    """The same for SBD, whose images and boundaries are those of VOC or not needed."""
    if name.parent.name == "cls" and name.suffix == ".mat" and name.stem[0] != ".":
        return f"cls/{name.name}"
    if name.parent.name == "dataset" and name.name in ("train.txt", "val.txt"):
        return name.name
    return None


def _bring(
    archive: str,
    folder: Path,
    place: Callable[[PurePosixPath], str | None],
    complete: Callable[[Path], bool],
    progress: bool,
) -> None:
    """Fetch an archive, unpack what is wanted of it, and remove it."""
    with explained(folder):
        folder.mkdir(parents=True, exist_ok=True)
    size = REGISTRY[archive].megabytes * 1e6
    download.check_room("PASCAL VOC 2012", folder, size, size)
    print(download.announce(archive))
    path = download.fetch(archive)
    try:
        unpack(path, folder, place, progress)
        if not complete(folder):
            raise tarfile.ReadError("files are missing in it")
    except (tarfile.TarError, gzip.BadGzipFile, zlib.error, EOFError) as error:
        path.unlink()
        raise DownloadError(
            f"the archive from {REGISTRY[archive].url} is damaged or not the published "
            f"one: {error}. It was removed; run the command again, what was unpacked "
            "is kept"
        ) from error
    path.unlink()


def unpack(
    archive: Path,
    folder: Path,
    place: Callable[[PurePosixPath], str | None],
    progress: bool = True,
) -> None:
    """Bring wanted files of a tar archive to their places; those there are left alone.

    Every file appears whole or not at all, and a killed run is continued.

    Args:
        archive: plain or compressed.
        folder: where the files go.
        place: from a member's name to its place below the folder; None: not wanted.
        progress: show a bar.

    Raises:
        tarfile.TarError: the archive is damaged (gzip.BadGzipFile, zlib.error and
            EOFError likewise).
        OSError: a file cannot be written.
    """
    cleared = set()
    with tarfile.open(archive) as file:
        for member in tqdm(file, f"unpacking {archive.name}", disable=not progress):
            inner = place(PurePosixPath(member.name)) if member.isreg() else None
            # Elsewhere a backslash separates folders.
            if inner is None or "\\" in inner:
                continue
            target = folder / inner
            if target.parent not in cleared:
                paths.clear_leftovers(target.parent)
                cleared.add(target.parent)
            if target.is_file() and target.stat().st_size == member.size:
                continue
            # Read first: a damaged archive must not look like a full disk.
            content = file.extractfile(member).read()
            with atomic_file(target, bulk=True) as path:
                path.write_bytes(content)
    paths.settle()
