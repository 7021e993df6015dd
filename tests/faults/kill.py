"""Trainings killed at random moments and resumed, compared with uninterrupted ones.

    python -m tests.faults.kill [METHOD ...] --times 10 --seed 0

One line per method: kills, in which phase each landed (steps kept at that moment), and
whether every file at the end (checkpoints, models, caches) has the same bits as that of
an uninterrupted run. Exit status 1 if one has not.
"""

import argparse
import importlib
import os
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import torch

from tests.faults.forked import Child
from tests.faults.trees import contents, differences
from uss_utils import runs
from uss_utils.checkpoints import load_tensors

METHODS = ("stego", "hp", "ppap", "primaps", "maskcontrast", "hsg")
SHORT = ("checkpoint", "step")
LONGEST = 120.0  # seconds that one child may take


def train(name: str, folder: Path) -> None:
    """What the command line does, with a checkpoint after every step.

    Features go to the disk, so that the making of caches is killed as well.
    """
    torch.set_num_threads(1)
    os.environ |= {"USS_DATA": str(folder / "data"), "USS_RUNS": str(folder / "runs")}
    method = importlib.import_module(f"uss_utils.methods.{name}")
    eager = SimpleNamespace(
        __name__=method.__name__,
        prepare=method.prepare,
        train=partial(method.train, checkpoint_every=1),
    )
    cfg = method.Config.preset("smoke", cache="disk")
    for done in runs.trainings(eager, cfg, [0], folder / "runs"):
        print(*done.paths)


class Crashed(RuntimeError):
    """A child died by a signal that nobody sent.

    Seen once in some 400 lives, a segmentation fault while the cache was made: the
    child is forked, and watched from a thread, which no real training is.
    """


def failure(name: str, status: int, child: Child) -> RuntimeError:
    """What a child's exit status means, with the end of what it printed."""
    kind = Crashed if status < 0 else RuntimeError
    return kind(f"{name} failed with status {status}:\n{child.explain()}")


class Life:
    """A training in a folder of its own, with its phases and how long they took."""

    def __init__(self, name: str, folder: Path):
        self.name, self.folder = name, folder
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)

    def begin(self) -> Child:
        """Start, or resume."""
        log = self.folder.with_suffix(".log")
        return Child(partial(train, self.name, self.folder), log, watched=True)

    def whole(self) -> dict[str, float]:
        """Run to the end; seconds by phase, in the order in which they begin."""
        child, spent, last = self.begin(), {}, time.perf_counter()
        while (status := child.ended()) is None:
            time.sleep(0.001)
            now = time.perf_counter()
            spent[child.phase] = spent.get(child.phase, 0.0) + now - last
            last = now
        if status:
            raise failure(self.name, status, child)
        return {phase: seconds for phase, seconds in spent.items() if phase}

    def steps(self) -> int:
        """Steps that the checkpoints keep."""
        found = (self.folder / "runs" / "checkpoints").glob("[!.]*.safetensors")
        return sum(load_tensors(path)[1]["step"] for path in found)


def killed(life: Life, phase: str, offset: float) -> str | None:
    """Resume a training and kill it in a phase.

    Args:
        life: the training.
        phase: kill as soon as it has been in this one for ``offset`` seconds.
        offset: seconds, over as many visits of the phase as that takes.

    Returns:
        Where it was when it was killed; None if it had ended before.
    """
    child = life.begin()
    begun = last = time.perf_counter()
    inside = 0.0
    while inside < offset or child.phase != phase:
        time.sleep(0.0005)
        now = time.perf_counter()
        if child.phase == phase:
            inside += now - last
        last = now
        status = child.ended()
        if status:
            raise failure(life.name, status, child)
        if status == 0:
            return None
        if now - begun > LONGEST:
            child.kill()
            raise RuntimeError(f"{life.name} hangs in {child.phase!r}")
    child.kill()
    return child.phase


def moments(
    spent: dict[str, float], times: int, draw: random.Random
) -> list[tuple[str, float]]:
    """Random moments of a life, in order: half of them in phases of their own.

    Moments drawn from the time alone would rarely meet what is short, such as a step or
    a checkpoint's writing: these two come first among the phases.
    """
    phases = list(spent)
    others = [phase for phase in phases if phase not in SHORT]
    own = [phase for phase in SHORT if phase in spent]
    own = (own + draw.sample(others, len(others)))[: (times + 1) // 2]
    own += draw.choices(phases, list(spent.values()), k=times - len(own))
    drawn = [(phases.index(p), draw.uniform(0, 0.9 * spent[p])) for p in own]
    return [(phases[place], offset) for place, offset in sorted(drawn)]


def sweep(name: str, times: int, seed: int, folder: Path) -> tuple[str, bool]:
    """Kill one method's training; the printed line, and whether all is identical."""
    begun = time.perf_counter()
    reference = Life(name, folder / f"{name}-whole")
    spent = reference.whole()
    expected = contents(reference.folder)
    draw, landed, wrong = random.Random(f"{name} {seed}"), [], []
    lives = 0
    while len(landed) < times:
        lives += 1
        if lives > 3 * times + 3:
            raise RuntimeError(f"{name}: only {len(landed)} of {times} kills landed")
        life = Life(name, folder / f"{name}-killed")
        for phase, offset in moments(spent, times - len(landed), draw):
            found = killed(life, phase, offset)
            if found is not None:
                landed.append(f"{found} ({life.steps()})")
        life.whole()
        wrong += differences(expected, contents(life.folder))
    places = ", ".join(
        f"{place} x{n}" if n > 1 else place for place, n in Counter(landed).items()
    )
    said = "yes" if not wrong else f"NO: {', '.join(sorted(set(wrong))[:5])}"
    line = f"{name}: {len(landed)} kills in {lives} lives: {places}; identical: {said}"
    return f"{line}; {time.perf_counter() - begun:.0f} s", not wrong


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("methods", nargs="*", metavar="METHOD", help=", ".join(METHODS))
    parser.add_argument("--times", type=int, default=10, help="kills per method")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    options = parser.parse_args()
    unknown = set(options.methods) - set(METHODS)
    if unknown or options.times < 1:
        parser.error(f"methods are {', '.join(METHODS)}; at least one kill")
    methods = options.methods or METHODS
    for name in methods:
        importlib.import_module(f"uss_utils.methods.{name}")
    good = True
    with tempfile.TemporaryDirectory() as folder:
        for name in methods:
            job = (name, options.times, options.seed, Path(folder))
            try:
                line, same = sweep(*job)
            except Crashed as error:  # said, and tried once more from nothing
                print(f"begun again: {error}", flush=True)
                line, same = sweep(*job)
            print(line, flush=True)
            good &= same
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
