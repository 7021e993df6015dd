"""The only builder of paths, and the only way the package replaces a file.

Two environment variables move the two things that grow: ``USS_DATA`` (data sets,
downloads, caches) and ``USS_RUNS`` (what runs write).
"""

import glob
import os
import platform
import shutil
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def repo_root() -> Path:
    """Folder that holds ``uss_utils``, ``notebooks`` and ``data``."""
    return Path(__file__).resolve().parent.parent


def weights_dir() -> Path:
    """Folder of the weights that ship with the course."""
    return repo_root() / "data"


def notebooks_dir() -> Path:
    """Folder of the notebooks."""
    return repo_root() / "notebooks"


def data_dir() -> Path:
    """Folder of data sets and caches: ``$USS_DATA`` or ``data/``."""
    return Path(os.environ.get("USS_DATA") or repo_root() / "data").expanduser()


def cache_dir() -> Path:
    """Folder of feature caches and downloads."""
    return data_dir() / "cache"


def runs_dir() -> Path:
    """Folder that runs write to: ``$USS_RUNS`` or ``runs/``."""
    return Path(os.environ.get("USS_RUNS") or repo_root() / "runs").expanduser()


def user_path(path: str | Path) -> Path:
    """A path that a person has given: ``~`` is a home, if there is such a user."""
    try:
        return Path(path).expanduser()
    except RuntimeError:  # nobody of this name: a folder called so
        return Path(path)


def dataset_root(name: str, root: str | Path | None = None) -> Path:
    """Folder of a data set that has to exist already.

    Args:
        name: folder name under :func:`data_dir`, used when ``root`` is None.
        root: the user's own folder.

    Raises:
        FileNotFoundError: the folder is absent; the message names the ways to set it.
    """
    folder = user_path(root) if root is not None else data_dir() / name
    if not folder.is_dir():
        raise FileNotFoundError(
            f"no data set folder at {folder}. Give its place with --data-root "
            "(notebooks: DATA_ROOT), or put the set under $USS_DATA/" + name
        )
    return folder


@contextmanager
def atomic_file(path: str | Path, *, bulk: bool = False) -> Iterator[Path]:
    """Write a file completely or not at all.

    Yields a temporary path in the same folder; it replaces ``path`` when the block
    ends without an error and is removed otherwise. A killed process can leave a
    ``.tmp-*`` file behind, never a half-written ``path``; the next write of the same
    file clears such leftovers away.

    Args:
        path: the file to create or replace; missing folders are made.
        bulk: one of very many files in its folder. Nothing is cleared away and nothing
            waits for the disk: the caller does both once (:func:`clear_leftovers`,
            :func:`settle`), and after a power cut the file may be empty.

    Raises:
        OSError: the folder is read-only or the disk is full; the message names
            ``path``, which is untouched, and what to do.
    """
    path = Path(path)
    temporary = None
    try:
        if not bulk:
            clear_leftovers(path.parent, path.name)
        temporary = _beside(path)
        yield temporary
        if not bulk:
            # A rename is only durable once the content is: sync before replacing.
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
        temporary.chmod(0o644)
        temporary.replace(path)
    except OSError as error:
        raise OSError(
            f"could not write {path} ({error.strerror or error}). Whatever was there "
            "before is untouched; free some space, or choose a folder you may write "
            "to (USS_DATA and USS_RUNS name other places for data and results)"
        ) from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


@contextmanager
def temporary_folder(path: str | Path) -> Iterator[Path]:
    """An empty folder beside ``path``, in which it is made; removed at the end.

    What a killed process left is removed by the next one that makes the same.

    Args:
        path: file or folder that is going to be made; missing folders are made.

    Raises:
        OSError: the folder around it cannot be written.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    clear_leftovers(path.parent, path.name)
    with tempfile.TemporaryDirectory(
        prefix=f"{_mark()}{os.getpid()}-", suffix=f"-{path.name}", dir=path.parent
    ) as folder:
        yield Path(folder)


def settle() -> None:
    """Wait until what was written in bulk has reached the disk."""
    if hasattr(os, "sync"):
        os.sync()


def _beside(path: Path) -> Path:
    """An empty temporary file in the folder of ``path``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(
        prefix=f"{_mark()}{os.getpid()}-", suffix=f"-{path.name}", dir=path.parent
    )
    os.close(handle)
    return Path(name)


def clear_leftovers(folder: Path, name: str | None = None) -> None:
    """Remove temporary files and folders whose writer on this machine is dead.

    Args:
        folder: where to look; may be absent.
        name: only those of this file; None: of any.
    """
    of = f"-{glob.escape(name)}" if name is not None else ""
    for leftover in folder.glob(f"{_mark()}*{of}"):
        writer = leftover.name.removeprefix(_mark()).partition("-")[0]
        if writer.isdecimal() and not _alive(int(writer)):
            if leftover.is_dir():
                shutil.rmtree(leftover, ignore_errors=True)
            else:
                leftover.unlink(missing_ok=True)


def _mark() -> str:
    """Beginning of temporary names: machines that share a folder share no processes."""
    return f".tmp-{zlib.crc32(platform.node().encode()):08x}-"


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # somebody else's, but alive
        return True
    return True
