"""Failing disks and kills, in part; ``python -m tests.faults.writes`` has all."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.faults import writes
from tests.faults.writers import WRITERS

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("name", WRITERS)
def test_a_disk_that_fails_at_every_third_operation(name, tmp_path):
    stride = 3 if name not in ("crops", "segment", "regions") else 11
    assert writes.check(name, tmp_path, lasting=True, stride=stride) >= 2


def run(*options: str) -> str:
    """Forks, so it needs a process in which torch has not computed."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.faults.writes", *options],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_killed_at_every_eleventh_operation():
    assert run("--kill", "--stride", "11").count(" kills; ") == len(WRITERS)


def test_disks_that_are_really_full():
    able = ["unshare", "-Urm", "sh", "-c", "mount -t tmpfs none /tmp"]
    if shutil.which("unshare") is None or subprocess.run(able).returncode:
        pytest.skip("no file systems of one's own here (Linux's user namespaces)")
    assert run("--disk", "--stride", "4").count(" full disks; ") == len(WRITERS)
