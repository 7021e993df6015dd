"""What the chapter on scaling up measures: steps, parts of a batch, killed runs.

Trainings get processes of their own: started by the commands that a person would type,
watched through their checkpoint, killed without warning.
"""

import copy
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import psutil
import torch
from torch import Tensor, nn

from uss_utils.batches import batch_indices
from uss_utils.checkpoints import load_tensors
from uss_utils.environment import generator
from uss_utils.history import History
from uss_utils.training import fit

LOG = "log.txt"
LAST = 20  # lines of a failed run that are told
PAUSE = 0.1  # seconds between two looks at a checkpoint


class Kept(NamedTuple):
    """What a run left in its folder.

    Attributes:
        history: of its training.
        weights: of its model, by name.
    """

    history: History
    weights: dict[str, Tensor]


def step_seconds(
    trainer: nn.Module,
    pairs: Any,
    network: Callable[[Tensor], Tensor],
    batch_size: int,
    steps: int = 4,
) -> dict[str, float]:
    """Seconds of the parts of a step on pairs of images; nothing is kept.

    Args:
        trainer: has ``step(batch, generator)`` and ``optimisers()``; sees features.
        pairs: ``draw(indices, generator)`` gives "input" and "positive".
        network: makes features of these.
        batch_size: pairs per step.
        steps: the median is taken over so many, the first one left out.
    """
    names = ("reading", "frozen network", "head, loss, update")
    draw, rows, optimisers = generator(0), [], trainer.optimisers().values()
    for step in range(steps + 1):
        times = [time.perf_counter()]
        batch = pairs.draw(batch_indices(step, len(pairs), batch_size), draw)
        times.append(time.perf_counter())
        seen = {name: network(batch[name]) for name in ("input", "positive")}
        times.append(time.perf_counter())
        for optimiser in optimisers:
            optimiser.zero_grad()
        trainer.step(batch | seen, draw)["loss"].backward()
        for optimiser in optimisers:
            optimiser.step()
        times.append(time.perf_counter())
        rows.append([b - a for a, b in zip(times, times[1:], strict=False)])
    each = zip(*rows[1:], strict=True)
    return dict(zip(names, map(median, each), strict=True))


def in_parts(
    model: nn.Module,
    loss: Callable[..., dict[str, Tensor]],
    items: Tensor,
    parts: int = 2,
    steps: int = 5,
) -> float:
    """Largest difference of weights between whole batches and batches in parts.

    Args:
        model: stays as it is; copies of it are trained.
        loss: as for :func:`uss_utils.training.fit`.
        items: shape (N, ...); a batch is half of them.
        parts: that a batch is computed in.
        steps: of plain gradient descent.
    """
    ends = []
    for accumulate in (1, parts):
        own = copy.deepcopy(model)
        fit(
            own,
            loss,
            _Items(items),
            steps=steps,
            batch_size=len(items) // 2,
            accumulate=accumulate,
            optimisers=torch.optim.SGD(own.parameters(), lr=0.1),
            device="cpu",
            progress=None,
        )
        ends.append(nn.utils.parameters_to_vector(own.parameters()).detach())
    return float((ends[0] - ends[1]).abs().max())


class _Items:
    """Rows of a tensor, as a training fetches them."""

    def __init__(self, rows: Tensor):
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def batch(self, indices: Tensor) -> Tensor:
        return self.rows[indices]


def command(
    method: str,
    preset: str,
    folder: Path,
    processes: int = 1,
    *,
    steps: int,
    **settings: Any,
) -> list[str]:
    """The words of ``uss_utils train``, by one process or several of this machine.

    Args:
        method: the method's module.
        preset: its settings.
        folder: where the run is kept.
        processes: torch's launcher starts so many, if there is more than one.
        steps: optimiser steps.
        settings: further changes.
    """
    words = ["-m", "uss_utils", "train", method, "--preset", preset]
    words += ["--steps", str(steps), "--device", "cpu", "--out", str(folder)]
    for name, value in settings.items():
        words += ["-s", f"{name}={value!r}"]
    if processes > 1:
        # A free port of its own: two notebooks may run at once.
        launcher = ["-m", "torch.distributed.run", "--standalone"]
        words = [*launcher, "--nproc-per-node", str(processes), *words]
    return [sys.executable, *words]


def train(words: list[str], folder: Path) -> None:
    """Run a training to its end.

    Args:
        words: from :func:`command`.
        folder: its folder; what the run prints goes into a file there.

    Raises:
        RuntimeError: it failed; the message ends with what it said last.
    """
    with _running(words, folder) as run:
        if run.wait():
            raise _failed(folder)


def kill(words: list[str], folder: Path, step: int, method: str = "stego") -> int:
    """Run a training until some step is kept, and kill it at a moment after that.

    Nothing is told to the processes (SIGKILL), and no seed says when.

    Args:
        words: from :func:`command`.
        folder: its folder.
        step: its checkpoint holds at least so many steps then.
        method: the method's module.

    Returns:
        Steps that the checkpoint holds.

    Raises:
        RuntimeError: the run failed by itself.
    """
    with _running(words, folder) as run:
        begun = time.perf_counter()
        while (done := steps_done(folder, method)) < step and run.poll() is None:
            if done < 0:
                begun = time.perf_counter()
            time.sleep(PAUSE)
        if run.poll():
            raise _failed(folder)
        spent = time.perf_counter() - begun
        time.sleep(random.uniform(0, spent / 2))  # noqa: S311 - meant to be unforeseen
    return steps_done(folder, method)


def steps_done(folder: Path, method: str = "stego") -> int:
    """Steps that a run's checkpoint holds; -1 where there is none yet."""
    path = _checkpoint(folder, method)
    return load_tensors(path)[1]["step"] if path.is_file() else -1


def kept(folder: Path, method: str = "stego") -> Kept:
    """Read what a finished run left.

    Raises:
        FileNotFoundError: it is not finished.
    """
    meta = load_tensors(_checkpoint(folder, method))[1]
    weights = load_tensors(folder / "models" / f"{method}-seed0.safetensors")[0]
    return Kept(History.from_json(meta["history"]), weights)


def differences(one: Kept, other: Kept) -> dict[str, float]:
    """Largest differences of two runs: of "loss", over all steps, and of "weights"."""
    losses = one.history.series("loss") - other.history.series("loss")
    pairs = zip(_in_order(one.weights), _in_order(other.weights), strict=True)
    weights = [float((a.double() - b.double()).abs().max()) for a, b in pairs]
    return {"loss": float(abs(losses).max()), "weights": max(weights)}


def _in_order(weights: Mapping[str, Tensor]) -> list[Tensor]:
    return [weights[name] for name in sorted(weights)]


def _checkpoint(folder: Path, method: str) -> Path:
    return folder / "checkpoints" / f"{method}-seed0.safetensors"


@contextmanager
def _running(words: list[str], folder: Path) -> Iterator[subprocess.Popen]:
    """A run that is killed, if it still runs, when the block is left."""
    folder.mkdir(parents=True, exist_ok=True)
    # As many threads as here: other numbers round sums differently.
    env = os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    with (folder / LOG).open("w") as log:
        run = subprocess.Popen(words, stdout=log, stderr=subprocess.STDOUT, env=env)
    try:
        yield run
    finally:
        _kill_all(run)


def _kill_all(run: subprocess.Popen) -> None:
    """The launcher, and what it has started; nothing if it has ended."""
    if run.poll() is not None:
        return
    family = psutil.Process(run.pid).children(recursive=True)
    run.kill()  # first: it would start its children anew, or report their end
    for process in family:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue
    run.wait()
    psutil.wait_procs(family)


def _failed(folder: Path) -> RuntimeError:
    said = (folder / LOG).read_text(encoding="utf-8", errors="replace")
    last = "\n".join(said.splitlines()[-LAST:])
    return RuntimeError(f"the training in {folder.name} failed:\n{last}")
