"""A disk that fails at a chosen moment: at the n-th write, sync, rename or new file.

The layer lies below Python's buffers, so that a failing write takes half of its bytes
and what is buffered fails when the file is closed, as on a full disk.
"""

import builtins
import errno
import io
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

_REAL = {name: getattr(os, name) for name in ("fsync", "replace", "rename", "mkdir")}
_OPEN, _OS_OPEN = io.open, os.open


class Disk:
    """Counts what is done to the disk, and breaks at one moment.

    Args:
        fail_at: number of the operation that fails, from 1; None: none.
        lasting: all after it fail, too, as long as files grow: renames then work.
        kill: the process dies there instead, half of the bytes written.

    Attributes:
        count: operations so far.
        failed: how many of them failed.
    """

    def __init__(
        self, fail_at: int | None = None, lasting: bool = False, kill: bool = False
    ):
        self.fail_at, self.lasting, self.kill = fail_at, lasting, kill
        self.count = self.failed = 0

    def ask(self, half: Callable[[], object] | None = None, path: object = None):
        """One operation is due; it may fail.

        Args:
            half: does half of it.
            path: what the system would name.

        Raises:
            OSError: ENOSPC.
        """
        self.count += 1
        if self.fail_at is None or self.count < self.fail_at:
            return
        if self.count > self.fail_at and not (self.lasting and half):
            return
        if half:
            half()
        if self.kill:
            os.kill(os.getpid(), signal.SIGKILL)
        self.failed += 1
        said = (errno.ENOSPC, os.strerror(errno.ENOSPC))
        raise OSError(*said, os.fspath(path)) if path is not None else OSError(*said)


class _File(io.FileIO):
    """Unbuffered file on a failing disk."""

    disk: Disk

    def write(self, data) -> int:
        data = memoryview(data).cast("B")
        plain = super().write
        self.disk.ask(lambda: plain(data[: len(data) // 2]))
        return plain(data)


class _Hidden:
    """Pillow and shutil do not get the number of the file: they would write past us."""

    def fileno(self) -> int:
        if sys._getframe(1).f_globals.get("__name__") in ("PIL.ImageFile", "shutil"):
            raise io.UnsupportedOperation("fileno")
        return super().fileno()


class _Writer(_Hidden, io.BufferedWriter):
    pass


class _Random(_Hidden, io.BufferedRandom):
    pass


@contextmanager
def on(disk: Disk) -> Iterator[Disk]:
    """Let everything that Python writes go to this disk."""

    def opened(file, mode="r", buffering=-1, *args, closefd=True, opener=None, **more):
        if not set(mode) & set("wax+") or isinstance(file, int):
            rest = {"closefd": closefd, "opener": opener, **more}
            return _OPEN(file, mode, buffering, *args, **rest)
        if not Path(os.fsdecode(file)).exists():
            disk.ask(path=file)
        raw = _File(file, mode.replace("b", "").replace("t", ""), closefd, opener)
        raw.disk = disk
        if buffering == 0:
            return raw
        buffered = (_Random if "+" in mode else _Writer)(raw)
        return buffered if "b" in mode else io.TextIOWrapper(buffered, *args, **more)

    def os_open(path, flags, *args, **options):
        if flags & os.O_CREAT:
            disk.ask(path=path)
        return _OS_OPEN(path, flags, *args, **options)

    def asking(name: str):
        def call(first, *args, **options):
            if name != "mkdir" or not Path(first).exists():
                disk.ask(path=None if name == "fsync" else first)
            return _REAL[name](first, *args, **options)

        return call

    fakes = {name: asking(name) for name in _REAL} | {"open": os_open}
    before = {name: getattr(os, name) for name in fakes}
    try:
        for name, fake in fakes.items():
            setattr(os, name, fake)
        builtins.open = io.open = opened
        yield disk
    finally:
        for name, own in before.items():
            setattr(os, name, own)
        builtins.open = io.open = _OPEN
