"""Every method once; ``python -m tests.faults.kill`` kills more often."""

import os
import subprocess
import sys
from pathlib import Path

from tests.faults.kill import METHODS


def test_killed_trainings_end_with_the_weights_of_uninterrupted_ones():
    """In a process of its own: forking one that has computed with torch can hang."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.faults.kill", "--times", "1", "--seed", "1"],
        cwd=Path(__file__).parents[2],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("1 kills in") == len(METHODS)
    assert done.stdout.count("identical: yes") == len(METHODS)
