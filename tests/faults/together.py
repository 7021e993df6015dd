"""Several processes that write the same at the same time, one of them killed meanwhile.

    python -m tests.faults.together [WRITER ...] [--processes 3] [--rounds 3]

Writers are those of ``tests.faults.writes`` and, as "train METHOD", whole trainings of
the smoke preset. Those that live have to end well, and what lies there in the end has
to be what one process alone leaves.
"""

import argparse
import random
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import torch

from tests.faults import kill, writers
from tests.faults.forked import Child
from tests.faults.trees import contents, differences
from tests.faults.writes import Trial, undisturbed
from uss_utils.records import read_records, write_record

# All that may be written by several; an archive that is unpacked has one owner.
SHARED = [name for name in writers.WRITERS if name not in ("COCO", "notebook")]
RECORDS = 10  # per process


def check(name: str, folder: Path, draw: random.Random, processes: int = 3) -> str:
    """Let processes run one writer at once, then again with one of them killed.

    Returns:
        When the killed one died.

    Raises:
        AssertionError: one failed, or the result is not that of a lone one.
    """
    method = name.removeprefix("train ") if name.startswith("train ") else None
    begun = time.perf_counter()
    if method:
        alone = Child(partial(kill.train, method, folder / "whole"), folder / "log")
        (folder / "whole").mkdir(parents=True)
        assert not alone.wait(), alone.explain()
        expected = contents(folder / "whole")
    else:
        expected = undisturbed(name, folder / "whole")
    lone = time.perf_counter() - begun
    said = ""
    for victim in (None, 0):
        place = folder / f"shared{victim}"
        if method:
            place.mkdir()
            work = partial(kill.train, method, place)
        else:
            work = Trial(name, writers.WRITERS[name], place, expected).work
        children = [Child(work, folder / "log") for _ in range(processes)]
        if victim is not None:
            wait = draw.uniform(0, lone)
            time.sleep(wait)
            children.pop(victim).kill()
            said = f"{wait:.2f} of {lone:.2f} s"
        for child in children:
            assert child.wait() == 0, f"{name}: {child.explain()}"
        # What a dead one left beside the others is cleared by the next that writes.
        if victim is not None and not method:
            work()
        wrong = differences(expected, contents(place))
        wrong = [f for f in wrong if not (method and victim is not None and _dead(f))]
        assert not wrong, f"{name}: {wrong} differ"
    return said


def _dead(file: str) -> bool:
    """A temporary file or a lock that nobody holds: its owner was killed."""
    return Path(file).name.startswith(".tmp-") or file.endswith(".lock")


def check_records(folder: Path, processes: int = 4) -> int:
    """Processes write records of their own, and one that they share; none is lost."""
    folder.mkdir(parents=True)

    def write(first: int) -> None:
        for seed in range(first, first + RECORDS):
            write_record(writers.record(seed), folder / "records")
            write_record(writers.record(10**6), folder / "records")

    starts = [RECORDS * k for k in range(processes)]
    children = [Child(partial(write, k), folder / "log") for k in starts]
    for child in children:
        assert child.wait() == 0, child.explain()
    seeds = sorted(found["seed"] for found in read_records(folder / "records"))
    assert seeds == [*range(RECORDS * processes), 10**6]
    assert not list((folder / "records").glob(".*"))
    return len(seeds)


def main() -> int:
    """The command."""
    trainings = [f"train {method}" for method in kill.METHODS]
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    known = SHARED + trainings
    parser.add_argument("writers", nargs="*", metavar="WRITER", help=", ".join(known))
    parser.add_argument("--processes", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=1)
    options = parser.parse_args()
    names = options.writers or known
    if unknown := set(names) - set(known):
        parser.error(f"unknown {sorted(unknown)}; there are {', '.join(known)}")
    torch.set_num_threads(1)
    good = True
    for name in names:
        for number in range(options.rounds):
            draw = random.Random(f"{name} {number}")
            with tempfile.TemporaryDirectory() as folder:
                try:
                    died = check(name, Path(folder), draw, options.processes)
                    print(f"{name}: as alone; one killed after {died}", flush=True)
                except AssertionError as error:
                    good = False
                    print(f"{name}: WRONG: {error}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        print("records of 4 processes:", check_records(Path(folder) / "all"))
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
