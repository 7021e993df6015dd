"""Every write of the package fails once, in every place; then it is tried again.

    python -m tests.faults.writes [WRITER ...] [--kill] [--disk]

Without options the n-th write, sync, rename or new file fails, for every n, alone and
with all writes after it. ``--kill``: the process dies there instead (SIGKILL).
``--disk``: a small file system in memory is really full (needs Linux's user
namespaces). After each: one clear error, earlier files untouched, no half file under a
final name; and a second run ends like an undisturbed one, with nothing left behind.
"""

import argparse
import io
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, redirect_stderr, redirect_stdout
from functools import partial
from pathlib import Path

import torch

from tests.faults.failing import Disk, on
from tests.faults.forked import Child
from tests.faults.trees import contents, differences, digest
from tests.faults.writers import WRITERS, Writer

# What is not under a final name.
GROWING = (".tmp-", ".partial", ".progress", ".part", ".lock")
SMALL = 5  # MB that are more than any writer needs


@contextmanager
def _places(folder: Path) -> Iterator[None]:
    """Data and runs lie below the folder; nothing is printed, no disk waited for."""
    before = {name: os.environ.get(name) for name in ("USS_DATA", "USS_RUNS")}
    os.environ |= {"USS_DATA": str(folder / "data"), "USS_RUNS": str(folder / "runs")}
    sync, os.sync = os.sync, lambda: None
    try:
        with redirect_stdout(None), redirect_stderr(io.StringIO()):
            yield
    finally:
        os.sync = sync
        for name, value in before.items():
            os.environ.pop(name)
            if value is not None:
                os.environ[name] = value


def check(name: str, folder: Path, *, lasting: bool, stride: int = 1) -> int:
    """Let every ``stride``-th operation of a writer fail.

    Args:
        name: of the writer.
        folder: for its files.
        lasting: the disk stays full until the second try.
        stride: distance of the operations.

    Returns:
        How many failures were injected.

    Raises:
        AssertionError: a file was harmed, or an error does not say which.
    """
    writer, expected = WRITERS[name], undisturbed(name, folder / "whole")
    failures = 0
    for number in range(1, 10_000, stride):
        trial = Trial(name, writer, folder / "trial", expected)
        disk = Disk(number, lasting)
        error = trial.fail(disk)
        if not disk.failed:
            if error is not None:
                raise error
            return failures
        failures += 1
        trial.check(error, f"operation {number}")
    raise AssertionError(f"{name} never ends")


def check_kills(name: str, folder: Path, *, stride: int = 1) -> int:
    """The process is killed at every ``stride``-th operation; as :func:`check`."""
    writer, expected = WRITERS[name], undisturbed(name, folder / "whole")
    for count, number in enumerate(range(1, 10_000, stride)):
        trial = Trial(name, writer, folder / "trial", expected)
        disk = Disk(number, kill=True)
        child = Child(partial(trial.work, disk), folder / "log")
        status = child.wait()
        assert status in (0, -9), child.explain()
        if not status:
            return count
        trial.check(None, f"killed at operation {number}")
    raise AssertionError(f"{name} never ends")


def check_disk(name: str, folder: Path, *, sizes: int = 12) -> int:
    """A real file system is full, at several fillings; as :func:`check`.

    The folder is the mount point of a small file system.
    """
    writer, expected = WRITERS[name], undisturbed(name, folder / "whole")
    used = sum(f.stat().st_blocks * 512 for f in (folder / "whole").rglob("*"))
    shutil.rmtree(folder / "whole")
    failures = 0
    for k in range(sizes):
        trial = Trial(name, writer, folder / "trial", expected)
        leave = (used * k // sizes) // 4096 * 4096
        with filled(folder, leave):
            error = trial.fail()
            if error is not None:
                failures += 1
                trial.check_state(error, f"{leave} bytes free")
        trial.check_retry(f"{leave} bytes free")
    return failures


@contextmanager
def filled(folder: Path, leave: int) -> Iterator[None]:
    """Fill a small file system up to some bytes."""
    ballast = folder / "ballast"
    state = os.statvfs(folder)
    with ballast.open("wb") as file:
        os.posix_fallocate(
            file.fileno(), 0, max(1, state.f_bavail * state.f_bsize - leave)
        )
    try:
        yield
    finally:
        ballast.unlink()


def undisturbed(name: str, folder: Path) -> dict[str, str]:
    """What a writer leaves where nothing happens."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    writer = WRITERS[name]
    with _places(folder):
        writer.before(folder)
        writer.work(folder)
    return contents(folder)


class Trial:
    """One disturbed run and the one after it."""

    def __init__(self, name: str, writer: Writer, folder: Path, expected: dict):
        self.name, self.writer, self.folder = name, writer, folder
        self.expected = expected
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        with _places(folder):
            writer.before(folder)
        self.before = contents(folder)

    def work(self, disk: Disk | None = None) -> None:
        """Write on this disk."""
        torch.set_num_threads(1)
        with _places(self.folder), nullcontext() if disk is None else on(disk):
            self.writer.work(self.folder)

    def fail(self, disk: Disk | None = None) -> OSError | None:
        """Write where that fails; the error."""
        try:
            self.work(disk)
        except OSError as error:
            return error
        return None

    def check(self, error: OSError | None, when: str) -> None:
        """All that has to be true after a failure, and after the second try."""
        self.check_state(error, when)
        self.check_retry(when)

    def check_state(self, error: OSError | None, when: str) -> None:
        """Earlier files untouched, none half; without an error, after a kill."""
        told = f"{self.name}, {when}: {error}"
        if error is not None:
            assert str(self.folder) in str(error), f"names no file: {told}"
            left = [f.name for f in self.folder.rglob(".tmp-*")]
            assert not left, f"left {left}: {told}"
        for path in self.folder.rglob("*"):
            place = path.relative_to(self.folder)
            hidden = any(
                part.startswith(GROWING) or part.endswith(GROWING)
                for part in place.parts
            )
            if hidden or not path.is_file():
                continue
            good = {t.get(str(place)) for t in (self.before, self.expected)}
            now = digest(path)  # raises where it is no whole file of its kind
            if path.name not in self.writer.passing:
                assert now in good, f"{place} is neither old nor new: {told}"
        gone = [f for f in self.before if not (self.folder / f).is_file()]
        gone = [f for f in gone if f in self.expected]
        assert not gone, f"{gone} are gone: {told}"

    def check_retry(self, when: str) -> None:
        """The second try ends as if nothing had happened."""
        self.work()
        wrong = differences(self.expected, contents(self.folder))
        assert not wrong, f"{self.name}, {when}: {wrong} differ in the end"


def mounted(arguments: list[str]) -> int:
    """Run this command again where it may mount a small file system."""
    script = (
        f'mount -t tmpfs -o size={SMALL}m none "$0" && exec "$@" --folder "$0" --disk'
    )
    with tempfile.TemporaryDirectory() as folder:
        command = ["unshare", "-Urm", "sh", "-c", script, folder]
        command += [sys.executable, "-m", "tests.faults.writes", *arguments]
        return subprocess.run(command).returncode


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("writers", nargs="*", metavar="WRITER", help=", ".join(WRITERS))
    parser.add_argument("--kill", action="store_true", help="SIGKILL at every place")
    parser.add_argument("--disk", action="store_true", help="a disk that is full")
    parser.add_argument("--stride", type=int, default=1, help="every n-th place")
    parser.add_argument("--folder", type=Path, help="a small file system")
    options = parser.parse_args()
    names = options.writers or list(WRITERS)
    if unknown := set(names) - set(WRITERS):
        parser.error(f"unknown {sorted(unknown)}; writers are {', '.join(WRITERS)}")
    if options.disk and options.folder is None:
        return mounted([*options.writers, "--stride", str(options.stride)])
    torch.set_num_threads(1)
    good = True
    for name in names:
        begun = time.perf_counter()
        with tempfile.TemporaryDirectory(dir=options.folder) as place:
            folder = options.folder or Path(place)
            try:
                if options.disk:
                    sizes = max(2, 12 // options.stride)
                    said = f"{check_disk(name, folder, sizes=sizes)} full disks"
                elif options.kill:
                    said = f"{check_kills(name, folder, stride=options.stride)} kills"
                else:
                    counts = [
                        check(name, folder, lasting=each, stride=options.stride)
                        for each in (False, True)
                    ]
                    said = f"{counts[0]} failures alone, {counts[1]} lasting"
            except AssertionError as error:
                said, good = f"WRONG: {error}", False
        print(f"{name}: {said}; {time.perf_counter() - begun:.1f} s", flush=True)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
