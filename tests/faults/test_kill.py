"""Every method once; ``python -m tests.faults.kill`` kills more often."""

from tests.faults.kill import METHODS
from tests.processes import run_alone


def test_killed_trainings_end_with_the_weights_of_uninterrupted_ones():
    done = run_alone("-m", "tests.faults.kill", "--times", "1", "--seed", "1")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("1 kills in") == len(METHODS)
    assert done.stdout.count("identical: yes") == len(METHODS)
