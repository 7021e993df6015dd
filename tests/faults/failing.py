"""A disk that fails at a chosen moment: at the n-th write, sync, rename or new file.

The layer lies below Python's buffers, so that a failing write takes half of its bytes
and what is buffered fails when the file is closed, as on a full disk.
"""

import builtins
import errno
import io
import os
import signal
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

    def ask(self, half: Callable[[], object] | None = None) -> None:
        """One operation is due; it may fail.

        Args:
            half: does half of it.

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
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


class _File(io.FileIO):
    """Unbuffered file on a failing disk."""

    disk: Disk

    def write(self, data) -> int:
        data = memoryview(data).cast("B")
        plain = super().write
        self.disk.ask(lambda: plain(data[: len(data) // 2]))
        return plain(data)


@contextmanager
def on(disk: Disk) -> Iterator[Disk]:
    """Let everything that Python writes go to this disk."""

    def opened(file, mode="r", buffering=-1, encoding=None, *args, **options):
        if not set(mode) & set("wax+") or isinstance(file, int):
            return _OPEN(file, mode, buffering, encoding, *args, **options)
        if not Path(os.fsdecode(file)).exists():
            disk.ask()
        raw = _File(file, mode.replace("b", "").replace("t", ""))
        raw.disk = disk
        if buffering == 0:
            return raw
        if "+" in mode:
            buffered = io.BufferedRandom(raw)
        else:
            buffered = io.BufferedWriter(raw)
        if "b" in mode:
            return buffered
        return io.TextIOWrapper(buffered, encoding, *args, **options)

    def os_open(path, flags, *args, **options):
        if flags & os.O_CREAT:
            disk.ask()
        return _OS_OPEN(path, flags, *args, **options)

    def asking(name: str):
        def call(*args, **options):
            disk.ask()
            return _REAL[name](*args, **options)

        return call

    fakes = {name: asking(name) for name in _REAL} | {"open": os_open}
    before = {name: getattr(os, name) for name in fakes}
    # Where pathlib keeps references of its own, or calls os's.
    replace = Path.replace
    try:
        for name, fake in fakes.items():
            setattr(os, name, fake)
        builtins.open = io.open = opened
        Path.replace = lambda own, to: (fakes["replace"](own, to), Path(to))[1]
        yield disk
    finally:
        for name, own in before.items():
            setattr(os, name, own)
        builtins.open = io.open = _OPEN
        Path.replace = replace
