"""A short run of a method's own training, timed part by part.

It happens in a process of its own, which may be stopped at any time, has a memory of
its own to look at, and writes into a folder that is removed.
"""

import contextlib
import importlib
import io
import multiprocessing
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from types import ModuleType

import psutil
import torch

from uss_utils import backbones
from uss_utils.cost_facts import Facts, facts
from uss_utils.cost_passes import Measured, Pass, Runner
from uss_utils.cost_stand_ins import KEPT_BLOCKS
from uss_utils.environment import pick_device
from uss_utils.recipe import Recipe

FIRST = {"n": 4, "n_val": 2, "batch": 2}  # images of the first pass
SLOW = {"n": 2, "n_val": 1, "batch": 2}  # where the network takes seconds
PASSES = 30  # images that it sends through a network, about
SHARES = (0.25, 0.75)  # of the time that is left, for the third and the fourth pass
PATIENCE = 5.0  # seconds until a process that was asked to end is killed
START = 300.0  # seconds until the process has to be there
GRACE = 15.0  # seconds that a pass may take longer than planned


def measure(
    method: ModuleType, cfg: Recipe, *, device: str = "auto", seconds: float = 40.0
) -> Measured:
    """Time a short run in a process of its own.

    Args:
        method: the method's module.
        cfg: the settings.
        device: where to compute; "auto" picks.
        seconds: about how long measuring may take; what is not done somewhat later is
            left out.

    Raises:
        ValueError: settings that do not fit.
        RuntimeError: nothing could be measured; the message says why.
    """
    pick_device(device)
    begun = time.perf_counter()
    deadline, there_yet = begun + START, False
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe(duplex=False)
    found = Measured()
    with tempfile.TemporaryDirectory() as folder:
        task = (there, method.__name__, cfg, device, seconds, folder)
        job = context.Process(target=_work, args=task)
        job.start()
        there.close()
        try:
            while here.poll(max(0.0, deadline - time.perf_counter())):
                found = here.recv()
                if not there_yet:  # the time begins to count
                    deadline = time.perf_counter() + seconds + GRACE
                    there_yet = True
            found.complaint = "there was not enough time"
        except EOFError:  # it is done, or was killed by the system
            if not found.passes:
                found.complaint = found.complaint or "its process ended early"
        finally:
            _stop(job)
            here.close()
    found.seconds = time.perf_counter() - begun
    if not found.passes or not found.passes[0].seconds:
        raise RuntimeError(
            f"nothing could be measured within {seconds:g} s: {found.complaint}. "
            "--seconds gives more time; with --seconds 0 the sizes alone are told"
        )
    return found


def _stop(job: multiprocessing.Process) -> None:
    """End the process and those that it has started, gently at first."""
    if job.is_alive():
        own = psutil.Process(job.pid).children(recursive=True)
        job.terminate()
        job.join(PATIENCE)
        for child in own:
            with contextlib.suppress(psutil.Error):
                child.kill()
    job.kill()
    job.join()


def _work(
    pipe: Connection,
    module: str,
    cfg: Recipe,
    device: str,
    seconds: float,
    folder: str,
) -> None:
    """The process: sends what it has found after every part."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    found = Measured()
    with _aside(), contextlib.suppress(BrokenPipeError):
        try:
            pipe.send(found)
            method = importlib.import_module(module)
            _passes(method, cfg, device, seconds, Path(folder), found, pipe.send)
        except Exception as error:  # noqa: BLE001 - told by the parent
            found.complaint = str(error) or type(error).__name__
            if os.environ.get("USS_DEBUG"):
                raise
        finally:
            pipe.send(found)


@contextlib.contextmanager
def _aside() -> Iterator[None]:
    """Nothing is printed."""
    with (
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.ExitStack() as stack,
    ):
        if not os.environ.get("USS_DEBUG"):
            stack.enter_context(contextlib.redirect_stderr(io.StringIO()))
        yield


def _passes(
    method: ModuleType,
    cfg: Recipe,
    device: str,
    seconds: float,
    folder: Path,
    found: Measured,
    send: Callable[[Measured], None],
) -> None:
    """A cold pass, a warm one, and larger ones as far as the time allows."""
    begun = time.perf_counter()
    known = facts(method, cfg)
    place = pick_device(device)
    found.per_image, found.cut, found.missing = _network(cfg, known, place, seconds)
    # Features, masks and regions go there; the data stay where they were found.
    os.environ["USS_DATA"] = str(folder)
    runner = Runner(method, cfg, known, place, found, folder, send)

    def left() -> float:
        return seconds - (time.perf_counter() - begun)

    large = getattr(cfg, "network", "") == "resnet50" and place.type == "cpu"
    least = SLOW if found.cut or large else FIRST
    small = Pass(
        min(least["n"], known.train.number, known.items),
        min(least["n_val"], known.val.number),
        min(least["batch"], known.batch_size),
        steps=1,
    )
    first = _timed(lambda: runner.run(small))
    if left() < first:
        return
    wider = {"n": min(2 * small.n, known.train.number, known.items), "steps": 3}
    wider |= {"n_val": min(2 * small.n_val, known.val.number)}
    runner.run(replace(small, **wider, seconds={}, network={}, files={}))
    for share in SHARES:
        larger = _larger(cfg, known, found.passes[1:], share * left())
        if larger is None:
            return
        runner.run(larger)


def _timed(function: Callable[[], object]) -> float:
    begun = time.perf_counter()
    function()
    return time.perf_counter() - begun


def _larger(
    cfg: Recipe, known: Facts, passes: Sequence[Pass], budget: float
) -> Pass | None:
    """As many images and steps as fit into some seconds; None: no more than before."""
    last = passes[-1]
    step = last.seconds.get("step", 0.0) + last.seconds.get("start", 0.0)
    batch = last.batch
    while batch < known.batch_size:
        wider = min(2 * batch, known.batch_size)
        # Losses that compare all with all grow faster than the batch.
        if 3 * step * (wider / last.batch) ** 1.5 > 0.4 * budget:
            break
        batch = wider
    steps = int(0.4 * budget / max(step * batch / last.batch, 1e-3))
    most = min(known.train.number, known.items)
    n = _fitting([(p.n, _made(p)) for p in passes], 0.35 * budget)
    n_val = _fitting([(p.n_val, p.seconds["score"]) for p in passes], 0.25 * budget)
    n, n_val = max(batch, last.n, min(n, most)), min(n_val, known.val.number)
    if n < 2 * last.n and n_val < 2 * last.n_val and batch == last.batch:
        return None
    return Pass(n, max(n_val, last.n_val), batch, max(3, min(steps, cfg.steps)))


def _made(part: Pass) -> float:
    return part.seconds.get("prepare", 0.0) + part.seconds["finish"]


def _fitting(points: Sequence[tuple[int, float]], budget: float) -> int:
    """How many images fit into some seconds, at most eight times as many as before."""
    n, spent = points[-1]
    slope, fixed = spent / n, 0.0
    if len(points) > 1 and points[-2][0] < n and points[-2][1] < spent:
        slope = (spent - points[-2][1]) / (n - points[-2][0])
        fixed = max(0.0, spent - slope * n)
    return min(8 * n, int((budget - fixed) / max(slope, 1e-4)))


def _network(
    cfg: Recipe, known: Facts, place: torch.device, seconds: float
) -> tuple[float, bool, int]:
    """Seconds per image of the frozen network, whether to cut it, and by how much."""
    name = cfg.backbone
    if name in backbones.CONTROLS:
        return 0.0, False, 0
    network = backbones.untrained(name, device=place)
    full = _per_image(network, known.size, place)
    if full * PASSES < seconds / 4 or network.depth <= KEPT_BLOCKS:
        return full, False, 0
    gone = network.vit.blocks[:-KEPT_BLOCKS]
    return full, True, sum(4 * p.numel() for p in gone.parameters())


@torch.no_grad()
def _per_image(
    network: torch.nn.Module, size: tuple[int, int], place: torch.device
) -> float:
    """Seconds that an image takes, once the first one is through."""
    images = torch.zeros(1, 3, *size, device=place)
    spent, done = [], 0.0
    while len(spent) < 2 or (done < 1.0 and len(spent) < 5):
        spent.append(_timed(lambda: _finished(network.features(images), place)))
        done += spent[-1]
        if spent[-1] > 3.0:  # what is so slow has no first time
            break
    return min(spent)


def _finished(x: torch.Tensor, place: torch.device) -> None:
    if place.type == "cuda":
        torch.cuda.synchronize(place)
