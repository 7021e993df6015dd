"""Getting CamVid: one archive, unpacked beside its place and put there at once."""

import shutil
import zipfile
from pathlib import Path, PurePosixPath

from uss_utils import paths
from uss_utils.datasets import camvid
from uss_utils.datasets.download import (
    REGISTRY,
    DownloadError,
    announce,
    check_growth,
    fetch,
)
from uss_utils.resumable import locked


def download_camvid(root: str | Path | None = None) -> Path:
    """Get CamVid from its public source and unpack it.

    Args:
        root: folder that will hold ``train/`` and so on; None: ``camvid`` under the
            data folder.

    Returns:
        That folder.

    Raises:
        FileExistsError: the folder holds something else or an incomplete set.
        DownloadError: the archive could not be had or is damaged.
        OSError: the folder cannot be written, or the disk is full.
    """
    target = Path(root).expanduser() if root else paths.data_dir() / "camvid"
    if target.is_dir() and any(target.iterdir()):
        if _complete(target):
            print(f"CamVid is complete at {target}")
            return target
        raise FileExistsError(
            f"{target} is not empty and holds no complete CamVid (found "
            f"{_counted(target)}); move it away or give another --data-root"
        )
    print(announce("camvid"))
    archive = fetch("camvid")
    try:
        _install(archive, target)
    except DownloadError:
        raise
    except OSError as error:
        raise OSError(
            f"could not unpack CamVid to {target} ({error.strerror or error}). Free "
            "some space or give another --data-root, and run the command again: the "
            "archive is kept until it is unpacked"
        ) from error
    # 180 MB that nobody needs twice.
    archive.unlink(missing_ok=True)
    print(f"CamVid: {_counted(target)} in {target}")
    return target


def _install(archive: Path, target: Path) -> None:
    """Unpack the archive beside the target, count, and put all in place at once."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with locked(target.parent, f".{target.name}.lock"):
        if target.is_dir() and _complete(target):
            return  # by another process, meanwhile
        with paths.temporary_folder(target) as folder:
            unpacked = folder / "CamVid"
            try:
                _extract(archive, unpacked)
                if not _complete(unpacked):
                    raise zipfile.BadZipFile(f"it holds {_counted(unpacked)}")
            except (zipfile.BadZipFile, EOFError) as error:
                archive.unlink(missing_ok=True)
                raise DownloadError(
                    f"the archive from {REGISTRY['camvid'].url} is damaged or not the "
                    f"published set: {error}; expected {camvid.SPLITS} frames. It was "
                    "removed; run the command again"
                ) from error
            if target.is_dir():
                target.rmdir()
            unpacked.rename(target)


def _extract(archive: Path, target: Path) -> None:
    with zipfile.ZipFile(archive) as file:
        members = {m: place for m in file.infolist() if (place := _place(m))}
        check_growth(tuple(members), archive)
        for member, inner in members.items():
            place = target / inner
            place.parent.mkdir(parents=True, exist_ok=True)
            with file.open(member) as source, place.open("wb") as copy:
                shutil.copyfileobj(source, copy)


def _place(member: zipfile.ZipInfo) -> str | None:
    """Where a member belongs; None: nowhere."""
    wanted = {f"{split}{kind}" for split in camvid.SPLITS for kind in ("", "annot")}
    # <repository>-<branch>/CamVid/<folder>/<name>: only the last two are used, so no
    # member can leave the target folder.
    parts = PurePosixPath(member.filename).parts
    if len(parts) != 4 or parts[1] != "CamVid" or parts[2] not in wanted:
        return None
    if member.is_dir() or ".." in parts or "\\" in parts[3]:
        return None
    return f"{parts[2]}/{parts[3]}"


def _complete(root: Path) -> bool:
    counts = camvid.count(root)
    return all(counts[split] == (n, n) for split, n in camvid.SPLITS.items())


def _counted(root: Path) -> str:
    return ", ".join(
        f"{split} {images} images and {labels} labels"
        for split, (images, labels) in camvid.count(root).items()
    )
