"""Several processes at once; ``python -m tests.faults.together`` has all trainings."""

import os
import subprocess
import sys
from pathlib import Path

from tests.faults.together import SHARED


def test_processes_that_write_the_same_at_once_do_no_harm():
    """In a process of its own: forking one that has computed with torch can hang."""
    names = [*SHARED, "train stego"]
    done = subprocess.run(
        [sys.executable, "-m", "tests.faults.together", *names],
        cwd=Path(__file__).parents[2],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("as alone; one killed after") == len(names)
    assert "records of 4 processes: 41" in done.stdout
