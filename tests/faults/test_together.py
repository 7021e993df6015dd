"""Several processes at once; ``python -m tests.faults.together`` has all trainings."""

import errno
import fcntl
import os

import pytest

from tests.faults.together import SHARED
from tests.processes import run_alone
from uss_utils import resumable


def test_processes_that_write_the_same_at_once_do_no_harm():
    names = [*SHARED, "train stego"]
    done = run_alone("-m", "tests.faults.together", *names)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("as alone; one killed after") == len(names)
    assert "records of 4 processes: 41" in done.stdout


def test_a_disk_without_locks_is_written_all_the_same(tmp_path, monkeypatch):
    """As clusters mount theirs: nobody waits, and nothing is left behind."""

    def flock(file, operation):
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(fcntl, "flock", flock)
    with resumable.locked(tmp_path), resumable.locked(tmp_path):
        (tmp_path / "a").write_text("a")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]

    def broken(file, operation):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(fcntl, "flock", broken)
    with pytest.raises(OSError, match="Input/output error"):
        with resumable.locked(tmp_path):
            pytest.fail("entered")


def test_writers_of_different_names_do_not_wait(tmp_path, capsys):
    with resumable.locked(tmp_path, ".a.lock"), resumable.locked(tmp_path, ".b.lock"):
        pass
    assert capsys.readouterr().out == "" and not list(tmp_path.iterdir())
