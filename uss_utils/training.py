"""The one training loop: :func:`fit`.

It owns what every method needs and none should write again: the order of the data,
devices and mixed precision (accelerate), several optimisers with schedules, clipping,
averaged weights, history, progress, checkpoints that resume to the same bit, and a
guard against a loss that is no number.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from uss_utils.batches import Batches, ahead, batch_indices, mix_seed
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
    step_schedule,
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
    "step_schedule",
]


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
    accumulate: int = 1,
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

    Several processes (``torchrun``, ``accelerate launch`` or ``notebook_launcher``)
    draw alike and share every batch, see :mod:`uss_utils.ranks`: gradients and logged
    figures are averaged, the first process writes. Their number is no setting: a
    checkpoint of two is continued by one, or four.

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
            ``step.generator``. What has to be drawn while fetching (a partner of each
            item) is drawn by ``data.draw(indices, generator)``, which is preferred
            where it exists; its generator depends on seed and step alone.
        steps: optimiser steps, at least 1.
        batch_size: items per step, over all processes and parts.
        optimisers: one, or several by name, over parameters of the model.
        schedule: factor on each initial learning rate; by optimiser name if a dict.
        ema: averaged weights, updated after every step.
        accumulate: parts that a batch is computed in, one after the other, to need less
            memory; gradients are averaged. A loss that compares the items of a batch
            compares those of a part then. No setting either.
        clip_norm: largest L2 norm of the gradients of all optimisers together, or by
            name of each one's own (an optimiser that is not named is not clipped).
        precision: "no" (float32), "bf16", or "fp16" (GPU; with loss scaling).
        scaler: options of torch.amp.GradScaler, e.g. ``{"init_scale": 2048.0}``.
        seed: of the data order, of ``step.generator`` and of the global generators.
        device: None takes the best one.
        drop_last: leave out each epoch's incomplete last batch.
        prefetch: threads that fetch coming batches meanwhile; changes no result.
        checkpoint: file to write at the start, at times and at the end. If it exists,
            the run continues from there. A second run into it waits for the first.
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
        accumulate=accumulate,
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
        "drop_last": drop_last,
        "clip_norm": clip_norm,
        "optimisers": describe_optimisers(named),
        "config": config or {},
    }
    with own_accelerator(precision, device, scaler) as accelerator:
        workers = accelerator.num_processes
        draws = generator(mix_seed(seed, 1, 0))
        batches = Batches(data, batch_size, seed, drop_last, accumulate, workers)
        update = Update(model, loss_fn, named, schedule, clip_norm, accelerator)
        for average in averages.values():
            average.module.to(accelerator.device)
        state = RunState(
            checkpoint, settings, accelerator, model, named, averages, draws
        )

        def after(index: int, row: dict[str, Any]) -> None:
            for average in averages.values():
                average.update(index, steps)
            known = len(row)
            if on_step is not None:
                on_step(index, model, row)
            done = index + 1
            if done == steps or done % log_every == 0 or len(row) > known:
                history.rows.append({name: figure(row[name]) for name in row})
            history.seconds = time.perf_counter() - begun
            if done == steps or done % checkpoint_every == 0:
                update.check_weights(index)
                state.save(done, history)

        with (
            own_random_state(mix_seed(seed, 2, 0), accelerator.device),
            _training_mode(model),
            closing(update),
            state.alone(),
        ):
            start, history = state.resume()
            accelerator.wait_for_everyone()  # before the first one writes
            state.save(start, history)
            begun = time.perf_counter() - history.seconds
            shown = progress if accelerator.is_main_process else None
            with (
                closing(Progress(shown, start, steps)) as bar,
                closing(ahead(batches, start, steps, prefetch)) as coming,
                _explained(state, history),
            ):
                for index, (epoch, fetched) in enumerate(coming, start):
                    parts = [
                        (Step(index, steps, epoch, items, draws, k, len(fetched)), part)
                        for k, (items, part) in enumerate(fetched)
                    ]
                    row = update(parts)
                    after(index, row)
                    bar.show(index + 1, row)
    return history


@contextmanager
def _training_mode(model: nn.Module) -> Iterator[None]:
    before = model.training
    model.train()
    try:
        yield
    finally:
        model.train(before)


@contextmanager
def _explained(state: RunState, history: History) -> Iterator[None]:
    """Tell an error about figures or values what was kept."""
    try:
        yield
    except (FloatingPointError, ValueError) as error:
        error.history = history
        # Those derived from them have arguments of their own kind.
        plain = type(error) in (FloatingPointError, ValueError)
        if plain and state.saved is not None:
            kept = f"{state.path} keeps the state after {state.saved} steps"
            error.args = (f"{error}. {kept}",)
        raise


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
    readable = hasattr(data, "draw") or callable(getattr(data, "batch", data))
    if not hasattr(data, "__len__") or not readable:
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
