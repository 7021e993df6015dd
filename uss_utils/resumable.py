"""A large .npy file that is written batch by batch and survives being killed.

The data grow in ``<name>.partial``; a journal ``<name>.progress`` says how much of them
is safely on disk and what they belong to. The final name appears in one step, when
everything is complete.
"""

import errno
import fcntl
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from io import BytesIO, FileIO
from math import prod
from multiprocessing import current_process
from pathlib import Path
from typing import IO

import numpy as np

from uss_utils.json_files import read_object
from uss_utils.paths import atomic_file

JOURNAL_EVERY = 8  # batches between two entries of the journal
LOCK, OPTIONS = ".lock", "options.json"
# What a file system answers that has no locks.
NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL)

HALF = "<f2"  # float16, little-endian


def npy_header(shape: Sequence[int], dtype: str = HALF) -> bytes:
    """First bytes of a .npy file."""
    buffer = BytesIO()
    fields = {"descr": dtype, "fortran_order": False, "shape": tuple(shape)}
    np.lib.format.write_array_header_1_0(buffer, fields)
    return buffer.getvalue()


def npy_size(shape: Sequence[int], dtype: str = HALF) -> int:
    """Bytes of a complete .npy file."""
    return len(npy_header(shape, dtype)) + np.dtype(dtype).itemsize * prod(shape)


class ArrayWriter:
    """Writes an array of known shape, row after row.

    Args:
        path: final name of the file; its folder exists.
        shape: shape of the whole array, (N, ...).
        belongs_to: JSON-able description of what is written. An unfinished file of an
            earlier run is taken over only if its description is the same.
        dtype: of the file, little-endian, e.g. "<f2"; what is appended is cast to it.

    Attributes:
        done: rows that are safely written.
    """

    def __init__(
        self, path: Path, shape: Sequence[int], belongs_to: dict, dtype: str = HALF
    ):
        self.path, self.shape, self.belongs_to = path, tuple(shape), belongs_to
        self.dtype = dtype
        self.partial = path.with_suffix(".partial")
        self.journal = path.with_suffix(".progress")
        self.row_bytes = np.dtype(dtype).itemsize * prod(self.shape[1:])
        self.done = self._taken_over()

    def _taken_over(self) -> int:
        try:
            entry = read_object(self.journal)
            size = self.partial.stat().st_size
        except (OSError, ValueError):
            return 0
        done = entry.get("done")
        if entry.get("belongs_to") != self.belongs_to or type(done) is not int:
            return 0
        return done if 0 <= done <= self.shape[0] and size >= self._end(done) else 0

    def _end(self, rows: int) -> int:
        """Length of the file after some rows."""
        return len(npy_header(self.shape, self.dtype)) + rows * self.row_bytes

    def check_space(self) -> None:
        """Refuse to start what cannot be finished.

        Raises:
            OSError: too little room on the disk.
        """
        needed = self._end(self.shape[0]) - self._end(self.done)
        free = shutil.disk_usage(self.path.parent).free
        if needed > free:
            raise OSError(
                f"{self.path} needs {needed / 1e6:.0f} MB more, but only "
                f"{free / 1e6:.0f} MB are free; use fewer or smaller images, or set "
                "USS_DATA to a folder on a larger disk",
            )

    def append(self, parts: Iterable[np.ndarray]) -> None:
        """Write arrays (B, ...) one after another, keeping the journal.

        Raises:
            OSError: the file cannot be written.
        """
        with self._opened() as file:
            for count, part in enumerate(parts, start=1):
                with explained(self.path):
                    write_all(file, part.astype(self.dtype, copy=False).tobytes())
                self.done += len(part)
                if count % JOURNAL_EVERY == 0:
                    self._note(file)
            self._note(file)

    @contextmanager
    def _opened(self) -> Iterator[FileIO]:
        """The partial file, cut to what is known to be good; unbuffered."""
        with explained(self.path):
            file = self.partial.open("r+b" if self.done else "wb", buffering=0)
        with file:
            with explained(self.path):
                if not self.done:
                    write_all(file, npy_header(self.shape, self.dtype))
                file.truncate(self._end(self.done))
                file.seek(0, os.SEEK_END)
            yield file

    def _note(self, file: FileIO) -> None:
        """One journal entry; the data reach the disk before it."""
        with explained(self.path):
            os.fsync(file.fileno())
        entry = {"belongs_to": self.belongs_to, "done": self.done}
        with atomic_file(self.journal) as path:
            path.write_text(json.dumps(entry), encoding="utf-8")

    def finish(self) -> None:
        """Give the complete file its final name and drop the journal."""
        with explained(self.path):
            self.partial.replace(self.path)
            self.journal.unlink(missing_ok=True)


def write_all(file: FileIO, data: bytes) -> None:
    """Write all of it: unbuffered files may take less than they are given."""
    rest = memoryview(data)
    while rest:
        rest = rest[file.write(rest) :]


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Say where writing failed and what to do about it."""
    try:
        yield
    except OSError as error:
        raise OSError(
            f"cannot write {path} ({error.strerror or error}); free some space, or "
            "set USS_DATA to a folder you may write to. What is safely written "
            "will be used by the next run",
        ) from error


@contextmanager
def locked(folder: Path, name: str = LOCK) -> Iterator[None]:
    """One writer per folder, or per name in it, at a time; the others wait.

    The system releases the lock of a killed process, so none is ever left behind. On
    a disk that knows no locks (some clusters' are mounted so) nobody waits: every
    file is then still written whole, but perhaps twice.

    Args:
        folder: exists.
        name: of the file that is locked; writers of different names do not wait.

    Raises:
        RuntimeError: a script without ``if __name__ == "__main__":`` is being run again
            by a process that it started itself, and would wait for ever.
    """
    # Python's own mark of a process that is still importing its parent's script.
    if getattr(current_process(), "_inheriting", False):
        raise RuntimeError(
            "the files are made by several processes, each of which imports your "
            'script first: put what it does under `if __name__ == "__main__":`'
        )
    path = folder / name
    while True:
        with explained(path):
            file = path.open("ab")
        with file:
            if _lock(file, path) and not _same_file(path, file):
                continue  # the last owner has removed this one: take the new one
            try:
                yield
            finally:
                path.unlink(missing_ok=True)
            return


def _lock(file: IO, path: Path) -> bool:
    """Wait for a lock; False where there are none."""
    try:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"another process is writing in {path.parent}; waiting for it")
            fcntl.flock(file, fcntl.LOCK_EX)
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        return False
    return True


def _same_file(path: Path, file: IO) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False


def claim(folder: Path, options: dict, what: str) -> None:
    """Write what a folder of files is made from, or check that it is for the same.

    Args:
        folder: holds, or is going to hold, PNG files, in folders of its own or not.
        options: JSON-able.
        what: the files, for messages.

    Raises:
        ValueError: it is for something else, or holds files of unknown origin.
    """
    path = folder / OPTIONS
    if path.is_file():
        try:
            stored = read_object(path)
        except ValueError as error:
            raise ValueError(
                f"{path} is damaged, so nobody knows what the {what} beside it were "
                "made from; delete the folder, and they are made again"
            ) from error
        wrong = [k for k in options if stored.get(k) != options[k]]
        if wrong:
            raise ValueError(
                f"the {what} in {folder} were made from something else (they differ in "
                f"{', '.join(wrong)}); delete the folder, or take another one"
            )
        return
    if next(folder.rglob("*.png"), None) is not None:
        raise ValueError(
            f"{folder} holds {what} without {OPTIONS}, which says what they were made "
            "from; delete the folder, or take another one"
        )
    with atomic_file(path) as temporary:
        temporary.write_text(json.dumps(options, indent=1), encoding="utf-8")
