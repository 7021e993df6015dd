import resource
import signal
import subprocess
import sys

import pytest

from tests.folders import read_only_folder
from uss_utils import paths

WRITER = """
import sys, time
from uss_utils.paths import atomic_file
with atomic_file(sys.argv[1]) as temporary:
    temporary.write_text("half")
    print("writing", flush=True)
    time.sleep(60)
"""


def test_environment_variables_move_data_and_runs(monkeypatch, tmp_path):
    monkeypatch.setenv("USS_DATA", str(tmp_path / "d"))
    monkeypatch.setenv("USS_RUNS", str(tmp_path / "r"))
    assert paths.data_dir() == tmp_path / "d"
    assert paths.cache_dir() == tmp_path / "d" / "cache"
    assert paths.runs_dir() == tmp_path / "r"
    monkeypatch.delenv("USS_DATA")
    monkeypatch.delenv("USS_RUNS")
    assert paths.data_dir() == paths.repo_root() / "data"
    assert paths.runs_dir() == paths.repo_root() / "runs"


def test_weights_stay_put_when_the_data_folder_moves(monkeypatch, tmp_path):
    monkeypatch.setenv("USS_DATA", str(tmp_path))
    assert paths.weights_dir() == paths.repo_root() / "data"


def test_missing_data_set_folder_names_the_ways_to_set_it(tmp_path):
    with pytest.raises(FileNotFoundError, match="--data-root.*DATA_ROOT.*USS_DATA"):
        paths.dataset_root("camvid", tmp_path / "nowhere")


def test_an_error_leaves_the_old_file_and_nothing_else(tmp_path):
    target = tmp_path / "a" / "file.txt"
    with paths.atomic_file(target) as temporary:
        temporary.write_text("old")
    with pytest.raises(RuntimeError), paths.atomic_file(target) as temporary:
        temporary.write_text("new")
        raise RuntimeError("stop")
    assert target.read_text() == "old"
    assert list(target.parent.iterdir()) == [target]


def test_a_killed_writer_leaves_no_file_and_the_next_write_clears_up(tmp_path):
    target = tmp_path / "file.txt"
    command = [sys.executable, "-c", WRITER, str(target)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout.readline() == "writing\n"
        writer.send_signal(signal.SIGKILL)
    assert not target.exists() and len(list(tmp_path.iterdir())) == 1
    with paths.atomic_file(target) as temporary:
        temporary.write_text("whole")
    assert list(tmp_path.iterdir()) == [target] and target.read_text() == "whole"


def test_a_writer_on_another_machine_is_left_alone(tmp_path, monkeypatch):
    target = tmp_path / "file.txt"
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr(paths.platform, "node", lambda: "another-machine")
        elsewhere.setattr(paths.os, "getpid", lambda: 2**22 + 1)  # no process here
        theirs = paths._beside(target)
    with paths.atomic_file(target) as temporary:
        temporary.write_text("mine")
    assert sorted(tmp_path.iterdir()) == sorted([target, theirs])


def test_very_many_files_are_cleared_of_leftovers_once(tmp_path, monkeypatch):
    target, other = tmp_path / "file.txt", tmp_path / "other.txt"
    with monkeypatch.context() as dead:
        dead.setattr(paths.os, "getpid", lambda: 2**22 + 1)  # no process here
        for path in (target, other):
            paths._beside(path)
    with paths.atomic_file(target, bulk=True) as temporary:
        temporary.write_text("whole")
    paths.settle()
    assert len(list(tmp_path.glob(".tmp-*"))) == 2
    paths.clear_leftovers(tmp_path, "other.txt")
    assert len(list(tmp_path.glob(".tmp-*-file.txt"))) == 1
    paths.clear_leftovers(tmp_path)
    paths.clear_leftovers(tmp_path / "absent")
    assert list(tmp_path.iterdir()) == [target] and target.read_text() == "whole"


def test_the_folder_of_a_dead_writer_is_cleared_away(tmp_path, monkeypatch):
    target = tmp_path / "set"
    with monkeypatch.context() as dead:
        dead.setattr(paths.os, "getpid", lambda: 2**22 + 1)  # no process here
        left = paths.temporary_folder(target)
        (left.__enter__() / "half").write_text("half")
    with paths.temporary_folder(target) as folder:
        assert list(tmp_path.iterdir()) == [folder]
        (folder / "a").write_text("a")
    assert not list(tmp_path.iterdir())
    with pytest.raises(RuntimeError), paths.temporary_folder(target):
        raise RuntimeError("stop")
    assert not list(tmp_path.iterdir())


def test_a_living_writer_is_left_alone(tmp_path):
    target = tmp_path / "file.txt"
    command = [sys.executable, "-c", WRITER, str(target)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout.readline() == "writing\n"
        with paths.atomic_file(target) as temporary:
            temporary.write_text("mine")
        assert len(list(tmp_path.glob(".tmp-*"))) == 1
        writer.kill()
    assert target.read_text() == "mine"


def test_an_unwritable_place_says_which_and_what_to_do(tmp_path):
    (tmp_path / "file").write_text("in the way")
    message = "could not write .*file/x .*choose a folder you may write to .USS_DATA"
    with pytest.raises(OSError, match=message):
        with paths.atomic_file(tmp_path / "file" / "x"):
            pytest.fail("entered")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("place", ["new", "new/folder/deep"])
def test_a_read_only_folder(place):
    with read_only_folder() as folder:
        message = f"could not write {folder / place} .Permission denied"
        with pytest.raises(OSError, match=message):
            with paths.atomic_file(folder / place):
                pytest.fail("entered")
        assert not list(folder.iterdir())


def test_a_full_disk_leaves_the_old_file(tmp_path):
    """The system refuses to let files grow beyond 100 bytes."""
    target = tmp_path / "file.txt"
    target.write_text("old")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
    try:
        with pytest.raises(OSError, match="could not write .*file.txt .File too large"):
            with paths.atomic_file(target) as temporary:
                temporary.write_text("new" * 100)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]
