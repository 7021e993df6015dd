"""Tiny cases for the tests of tests/benchmarks: one good, others that go wrong."""

import os
import signal
import tempfile
import time
from pathlib import Path

from tests.benchmarks.cases import Case, Released

MARK = "left-behind.txt"


def work(size: int):
    def call():
        print("chatter")
        return [0] * size

    return call


def files() -> float:
    """A figure of its own, and a file that nobody takes away."""
    folder = Path(tempfile.mkdtemp())
    (folder / MARK).write_text("x")
    return float(len(str(folder)))


def wrong():
    raise ValueError("no such thing\nand more lines")


def killed():
    os.kill(os.getpid(), signal.SIGKILL)


def endless():
    time.sleep(60)


CASES = (
    Case(
        *("fast", "10 numbers", work, (10,)),
        target=1e-9,
        released=Released("toy, section 1", 60.0, 2.0),
    ),
    Case("per second", "10 numbers", work, (10,), unit="lists/s", items=2, target=1),
    Case("by itself", "one", files, unit="x", repeats=1),
    Case("wrong", "one", wrong),
    Case("killed", "one", killed, target=1),
    Case("endless", "one", endless, slow=True),
)
