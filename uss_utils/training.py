"""The one training loop: :func:`fit`.

It owns what every method needs and none should write again: the order of the data,
devices and mixed precision (accelerate), several optimisers with schedules, clipping,
averaged weights, history, progress, checkpoints that resume to the same bit, and a
guard against a loss that is no number.
"""

import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import send_to_device
from torch import Tensor, nn
from torch.optim import Optimizer

from uss_utils.environment import generator
from uss_utils.history import History, Progress, figure
from uss_utils.run_state import (
    RunState,
    describe_optimisers,
    own_accelerator,
    own_random_state,
)
from uss_utils.schedules import (
    EMA,
    Schedule,
    constant,
    cosine_ramp,
    cosine_schedule,
    poly_schedule,
)
from uss_utils.update import Step, Update

__all__ = [
    "EMA",
    "History",
    "Schedule",
    "Step",
    "batch_indices",
    "constant",
    "cosine_ramp",
    "cosine_schedule",
    "fit",
    "poly_schedule",
]


def batch_indices(
    step: int, n: int, batch_size: int, seed: int = 0, drop_last: bool = False
) -> Tensor:
    """Items of a batch: a pure function of seed and step.

    Every epoch visits all ``n`` items once, in an order of its own.

    Args:
        step: from 0, over all epochs.
        n: number of items.
        batch_size: items per batch, at most ``n``.
        seed: of the order.
        drop_last: leave out an epoch's incomplete last batch.

    Returns:
        int64, shape (batch_size,), or fewer in the last batch of an epoch.
    """
    epoch, place = divmod(step, _batches_per_epoch(n, batch_size, drop_last))
    order = _permutation(n, seed, epoch)
    return order[place * batch_size : (place + 1) * batch_size].clone()


def fit(
    model: nn.Module,
    loss_fn: Callable[[nn.Module, Any, Step], dict[str, Tensor | float]],
    data: Any,
    *,
    steps: int,
    batch_size: int,
    optimisers: Optimizer | dict[str, Optimizer],
    schedule: Schedule | dict[str, Schedule] | None = None,
    ema: EMA | dict[str, EMA] | None = None,
    clip_norm: float | dict[str, float] | None = None,
    precision: str = "no",
    scaler: dict[str, Any] | None = None,
    seed: int = 0,
    device: str | torch.device | None = None,
    drop_last: bool = False,
    prefetch: int = 0,
    checkpoint: str | Path | None = None,
    checkpoint_every: int | None = None,
    log_every: int | None = None,
    progress: str | bool | None = True,
    on_step: Callable[[int, nn.Module, dict[str, Any]], None] | None = None,
    config: dict[str, Any] | None = None,
) -> History:
    """Train a model.

    The result is a function of the model's weights, the data and the arguments: global
    generators (dropout draws from them) are seeded for the run and put back afterwards.
    On one machine's CPU it is so to the bit, killed and resumed or not; on a GPU as far
    as its kernels are deterministic.

    One step: batch, ``loss_fn`` under autocast, check, backward, clip, optimisers, EMA,
    ``on_step``, history, checkpoint.

    Several processes (``accelerate launch``, ``notebook_launcher``) share every batch:
    each takes every n-th item, gradients and logged figures are averaged, the first
    process writes. Incomplete batches are dropped then, and everything the loss trains
    has to be inside ``model``.

    Args:
        model: everything that is trained or whose state changes (a teacher, a queue as
            a buffer): this is what a checkpoint holds. A frozen backbone is better kept
            out of it, in the closure of ``loss_fn``. Moved to the device, trained in
            training mode.
        loss_fn: called as ``loss_fn(model, batch, step)``; returns named scalars.
            "loss" is minimised, the others are logged.
        data: ``data.batch(indices)``, or ``data(indices)``, returns a batch (a tensor,
            or tuples, lists and dicts of them) for an int64 tensor of indices;
            ``len(data)`` items. It must not draw at random: ``loss_fn`` augments, with
            ``step.generator``.
        steps: optimiser steps, at least 1.
        batch_size: items per step, over all processes.
        optimisers: one, or several by name, over parameters of the model.
        schedule: factor on each initial learning rate; by optimiser name if a dict.
        ema: averaged weights, updated after every step.
        clip_norm: largest L2 norm of the gradients of all optimisers together, or by
            name of each one's own (an optimiser that is not named is not clipped).
        precision: "no" (float32), "bf16", or "fp16" (GPU; with loss scaling).
        scaler: options of torch.amp.GradScaler, e.g. ``{"init_scale": 2048.0}``.
        seed: of the data order, of ``step.generator`` and of the global generators.
        device: None takes the best one.
        drop_last: leave out each epoch's incomplete last batch.
        prefetch: threads that fetch coming batches meanwhile; changes no result.
        checkpoint: file to write at the start, at times and at the end. If it exists,
            the run continues from there.
        checkpoint_every: steps between two checkpoints; None means a tenth of the run.
        log_every: steps between two rows; None means about 200 rows in all.
        progress: "bar", "lines" (one per 10 %), True (whichever fits) or None.
        on_step: called as ``on_step(index, model, row)`` after each step, e.g. to
            update a teacher or evaluate. ``row`` holds the step's figures; figures it
            adds are kept. It has to leave the model in training mode, and keep no
            state of its own outside ``model``: that would be lost on resuming.
        config: JSON-able settings of the caller; a checkpoint of others is refused.

    Returns:
        The history, that of earlier, interrupted parts included.

    Raises:
        ValueError: an argument makes no sense, or the checkpoint is damaged or belongs
            to other settings.
        FloatingPointError: the loss, the clipped gradients or the weights are not
            finite. Nothing of that step is applied and the last checkpoint stays; the
            error's attribute ``history`` holds the history so far.
        OSError: a checkpoint could not be written; the one before it is untouched.
    """
    _check(
        data,
        batch_size,
        seed,
        steps=steps,
        prefetch=prefetch,
        checkpoint_every=checkpoint_every,
        log_every=log_every,
    )
    named = optimisers if isinstance(optimisers, dict) else {"": optimisers}
    averages = {"": ema} if isinstance(ema, EMA) else ema or {}
    log_every = log_every or max(1, steps // 200)
    checkpoint_every = checkpoint_every or -(-steps // 10)
    settings = {
        "steps": steps,
        "batch_size": batch_size,
        "seed": seed,
        "precision": precision,
        "items": len(data),
        "log_every": log_every,
        "clip_norm": clip_norm,
        "optimisers": describe_optimisers(named),
        "config": config or {},
    }
    was_training = model.training
    history = History()
    with own_accelerator(precision, device, scaler) as accelerator:
        rank, workers = accelerator.process_index, accelerator.num_processes
        if batch_size % workers:
            raise ValueError(
                f"batch_size {batch_size} does not divide over {workers} processes"
            )
        drop_last = drop_last or workers > 1
        settings |= {"drop_last": drop_last, "processes": workers}
        draws = generator(_mix(seed, 1, rank))
        update = Update(model, loss_fn, named, schedule, clip_norm, accelerator)
        state = RunState(
            checkpoint, settings, accelerator, model, named, averages, draws
        )

        def fetch(index: int) -> tuple[Step, Any]:
            items = batch_indices(index, len(data), batch_size, seed, drop_last)
            epoch = index // _batches_per_epoch(len(data), batch_size, drop_last)
            step = Step(index, steps, epoch, items[rank::workers], draws)
            return step, getattr(data, "batch", data)(step.indices)

        def finish(index: int, row: dict[str, Any]) -> None:
            for average in averages.values():
                average.update(index, steps)
            known = len(row)
            if on_step is not None:
                on_step(index, model, row)
            last = index + 1 == steps
            if last or (index + 1) % log_every == 0 or len(row) > known:
                history.rows.append({name: figure(row[name]) for name in row})
            history.seconds = time.perf_counter() - begun
            if last or (index + 1) % checkpoint_every == 0:
                update.check_weights(index)
                state.save(index + 1, history)

        for average in averages.values():
            average.module.to(accelerator.device)
        shown = progress if accelerator.is_main_process else None
        with own_random_state(_mix(seed, 2, rank), accelerator.device):
            done, history = state.resume()
            state.save(done, history)
            begun = time.perf_counter() - history.seconds
            model.train()
            try:
                with (
                    closing(Progress(shown, done, steps)) as bar,
                    closing(_ahead(fetch, done, steps, prefetch)) as coming,
                ):
                    for step, batch in coming:
                        row = update(step, send_to_device(batch, accelerator.device))
                        finish(step.index, row)
                        bar.show(step.index + 1, row)
            except FloatingPointError as error:
                error.history = history
                if state.saved is not None:
                    kept = f"{state.path} keeps the state after {state.saved} steps"
                    error.args = (f"{error}. {kept}",)
                raise
            finally:
                update.restore_rates()
                model.train(was_training)
    return history


def _batches_per_epoch(n: int, batch_size: int, drop_last: bool) -> int:
    return n // batch_size if drop_last else -(-n // batch_size)


# An epoch's order is drawn once; two are kept as prefetching looks into the next epoch.
@lru_cache(maxsize=2)
def _permutation(n: int, seed: int, epoch: int) -> Tensor:
    return torch.randperm(n, generator=generator(_mix(seed, 0, epoch)))


def _mix(*numbers: int) -> int:
    """A seed of 32 bits; tuples that differ give unrelated ones."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


def _ahead(
    fetch: Callable[[int], Any], start: int, stop: int, threads: int
) -> Iterator[Any]:
    """``fetch(i)`` for i from start to stop, in order, ``threads`` of them early."""
    if not threads:
        yield from map(fetch, range(start, stop))
        return
    pool = ThreadPoolExecutor(threads)
    try:
        waiting: deque[Future] = deque()
        for index in range(start, stop):
            waiting.append(pool.submit(fetch, index))
            if len(waiting) > threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def _check(data: Any, batch_size: int, seed: int, **counts: int | None) -> None:
    """Refuse arguments that make no sense, each with its reason."""
    for name, value in counts.items():
        least = 0 if name == "prefetch" else 1
        optional = name in ("checkpoint_every", "log_every")
        if value is None and optional:
            continue
        if not isinstance(value, int) or value < least:
            raise ValueError(
                f"{name} has to be an integer of at least {least}, got {value}"
            )
    if not isinstance(seed, int) or seed < 0:
        raise ValueError(f"seed has to be an integer of at least 0, got {seed}")
    if not hasattr(data, "__len__") or not callable(getattr(data, "batch", data)):
        raise ValueError(
            "data needs len(data) and data.batch(indices) (or data(indices)), which a "
            f"{type(data).__name__} has not"
        )
    if not len(data):
        raise ValueError("there is nothing to train on: the data has no items")
    if not isinstance(batch_size, int) or not 1 <= batch_size <= len(data):
        raise ValueError(
            f"batch_size is {batch_size}, but has to lie between 1 and the number of "
            f"items, {len(data)}"
        )
