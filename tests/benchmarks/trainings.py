"""A method's own training, taken out in front of its first step to be measured.

Nothing is built anew here: the method prepares and builds, and what it hands to the one
training loop is kept. Images and weights are stand-ins where they are not there.
"""

import contextlib
import gc
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import ModuleType
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

from uss_utils import fitting, training
from uss_utils.cost_facts import facts
from uss_utils.cost_stand_ins import Networks, stand_in
from uss_utils.environment import generator


class _Handed(Exception):
    """Carries what a method hands to the training loop."""


@dataclass
class Training:
    """What a method hands to :func:`uss_utils.training.fit`.

    Attributes:
        model: with all that is trained.
        loss: of a batch.
        data: by index.
        options: further arguments.
        device: where it trains.
        frozen: the backbone.
    """

    model: nn.Module
    loss: Callable
    data: Any
    options: dict[str, Any]
    device: torch.device
    frozen: nn.Module

    def run(self, steps: int, data: Any = None, **changes: Any) -> None:
        """Train for some steps; nothing is written."""
        fixed = {"steps": steps, "progress": None, "checkpoint": None}
        fixed |= {"log_every": steps, "on_step": None}
        data = self.data if data is None else data
        training.fit(self.model, self.loss, data, **self.options | fixed | changes)

    @property
    def batch(self) -> int:
        return self.options["batch_size"]

    def synchronise(self) -> None:
        """Wait for the device."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def forget(self) -> None:
        """Give back the memory of gradients and of whatever an error kept alive."""
        self.model.zero_grad(set_to_none=True)
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()


@contextlib.contextmanager
def training_of(
    method: ModuleType, preset: str, place: str, device: str, images: int = 32
) -> Iterator[Training]:
    """The training of a preset, in front of its first step.

    Args:
        method: the method's module.
        preset: its name.
        place: "images" (the backbone runs in every step) or "disk" (from a cache).
        device: where to train.
        images: distinct ones; they are repeated.
    """
    cfg = method.Config.preset(preset)
    known = facts(method, cfg)
    sample = stand_in(cfg, known, Networks(cfg), images, 2)
    changes = {"cache": place, "batch_size": cfg.batch_size, "refine": False}
    # What is only as large as the sample again; the start is not what is measured.
    changes |= {"pool": getattr(cfg, "pool", None), "start_steps": 1}
    sample = sample.override(**{k: v for k, v in changes.items() if hasattr(cfg, k)})
    with tempfile.TemporaryDirectory() as folder:
        with mock.patch.dict(os.environ, {"USS_DATA": folder}):
            material = method.prepare(sample, device=device)
            model, loss, data, options = _handed(method, sample, material)
        data = Repeated(data, 2 * cfg.batch_size)
        yield Training(model, loss, data, options, material.device, material.backbone)


def _handed(method: ModuleType, cfg: Any, material: Any) -> tuple:
    """Arguments of the training loop; a start with steps of its own is trained."""
    starts = iter([True] * hasattr(method, "start"))

    def fit(model, loss, data, **options):
        if next(starts, False):
            data = Repeated(data, 2 * cfg.batch_size)
            return training.fit(model, loss, data, **options)
        raise _Handed(model, loss, data, options)

    with mock.patch.object(fitting, "fit", fit):
        try:
            method.train(cfg, material)
        except _Handed as handed:
            return handed.args
    raise RuntimeError(f"{method.__name__} trains without fitting.run")


class Repeated:
    """Data whose items come again and again.

    Args:
        data: as the training loop reads it.
        n: length to pretend.
    """

    def __init__(self, data: Any, n: int):
        self.data, self.n = data, n

    def __len__(self) -> int:
        return self.n

    def draw(self, indices: Tensor, generator: torch.Generator) -> Any:
        """A batch, fetched as the data does it."""
        rows = indices % len(self.data)
        if hasattr(self.data, "draw"):
            return self.data.draw(rows, generator)
        return getattr(self.data, "batch", self.data)(rows)


class Tiled(Repeated):
    """One small batch, tiled to any size: fetching costs nothing."""

    SIZE = 4

    def __init__(self, data: Any, n: int):
        super().__init__(data, n)
        self.small = data.draw(torch.arange(self.SIZE), generator(0))

    def draw(self, indices: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        """As many rows as if the batch were of this size."""
        return {name: self._tile(x, len(indices)) for name, x in self.small.items()}

    def _tile(self, x: Tensor, n: int) -> Tensor:
        each = len(x) // self.SIZE  # views per item
        items = torch.arange(n) % self.SIZE
        return x[(items[:, None] * each + torch.arange(each)).flatten()]


def largest_batch(
    fits: Callable[[int], bool | None], start: int, most: int
) -> tuple[int, bool]:
    """The largest batch that fits, to an eighth: doubled, then bisected.

    Args:
        fits: says whether a batch fits; None: it does, but larger ones take too long.
        start: first batch to try.
        most: no larger one is tried.

    Returns:
        The batch, 0 if none fits; and whether a larger one does not.
    """
    low, high, batch = 0, None, min(start, most)
    while batch:
        found = fits(batch)
        if found or found is None:
            low = batch
        else:
            high = batch
        if found is None or low == most:
            return low, False
        if high is None:
            batch = min(2 * low, most)
        elif high - low <= max(1, low // 8):
            batch = 0
        else:
            batch = (low + high) // 2
    return low, True


def batch_that_fits(
    work: Training, most: int, limit: float, **changes: Any
) -> tuple[int, bool]:
    """The largest batch on this device; see :func:`largest_batch`.

    Args:
        work: the training.
        most: no larger one is tried.
        limit: seconds of a step beyond which no larger one is tried.
        changes: of the training's options.
    """

    def fits(batch: int) -> bool | None:
        data = Tiled(work.data, batch)
        begun = time.perf_counter()
        try:
            work.run(2, data, batch_size=batch, prefetch=0, **changes)
            work.synchronise()
        except torch.cuda.OutOfMemoryError:
            return False
        except RuntimeError:
            # Libraries that find no memory, or too many numbers for 32 bits, say so in
            # words of their own; the preset's own batch has been trained before.
            if batch <= work.batch:
                raise
            return False
        return None if time.perf_counter() - begun > 2 * limit else True

    def tried(batch: int) -> bool | None:
        found = fits(batch)
        work.forget()  # after the error is gone, which holds on to tensors
        return found

    return largest_batch(tried, work.batch, most)
