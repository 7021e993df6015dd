"""Work over processes: order, errors, and the death of the parent."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from uss_utils.datasets import processes
from uss_utils.datasets.processes import spread


def power(exponent, base):
    if base == 9:
        raise ValueError(f"no {base}")
    return base**exponent


@pytest.mark.parametrize("n", [1, 2])
def test_results_come_in_order(n, capsys):
    options = {"processes": n, "desc": "powers"}
    assert list(spread(power, 2, range(8), **options)) == [i * i for i in range(8)]
    assert "powers" in capsys.readouterr().err
    with pytest.raises(ValueError, match="no 9"):
        list(spread(power, 2, range(20), **options, progress=False))


def test_nothing_to_do_and_no_process(monkeypatch):
    monkeypatch.setattr(processes, "ProcessPoolExecutor", None)
    assert list(spread(power, 2, [], processes=4, progress=False)) == []
    assert list(spread(power, 2, [3], processes=4, progress=False)) == [9]
    with pytest.raises(ValueError, match="processes=0 must be at least 1"):
        list(spread(power, 2, [3], processes=0))
    assert processes.cores() >= 1


WORKERS = """
import sys, time
from pathlib import Path
from uss_utils.datasets import processes

def work(folder, job):
    (folder / str(job)).touch()
    time.sleep(60)

if __name__ == "__main__":
    list(processes.spread(work, Path(sys.argv[1]), range(2), processes=2))
"""


def children(pid: int) -> list[int]:
    found = []
    for task in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = task.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == pid and fields[0] != "Z":
            found.append(int(task.parent.name))
    return found


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks into /proc")
def test_workers_end_when_their_parent_is_killed(tmp_path):
    script, folder = tmp_path / "work.py", tmp_path / "jobs"
    script.write_text(WORKERS)
    folder.mkdir()
    with subprocess.Popen([sys.executable, script, folder]) as parent:
        wait(lambda: len(list(folder.iterdir())) == 2)
        workers = children(parent.pid)
        parent.kill()
    assert len(workers) >= 2
    wait(lambda: not any(alive(pid) for pid in workers))


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"


def wait(condition, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)
