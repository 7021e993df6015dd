"""One optimiser step, checked before anything of it is applied."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, NoReturn

import torch
from accelerate import Accelerator
from accelerate.utils import send_to_device
from torch import Tensor, nn
from torch.optim import Optimizer

from uss_utils.schedules import Schedule, constant


@dataclass(frozen=True)
class Step:
    """What a loss function may know about where the run is.

    Attributes:
        index: step, from 0.
        total: number of steps of the run.
        epoch: pass over the data, from 0.
        indices: items of this batch (of all processes), int64, shape (B,).
        generator: CPU generator of the run, for augmentations and every other draw;
            its state is part of the checkpoint. All processes have the same.
        part: which part of the step's batch this is, from 0.
        parts: how many there are.
    """

    index: int
    total: int
    epoch: int
    indices: Tensor
    generator: torch.Generator
    part: int = 0
    parts: int = 1


class Update:
    """Loss, guard, backward pass, clipping, learning rates and optimiser steps.

    Args:
        model: trained module; moved to the accelerator's device.
        loss_fn: as for ``training.fit``.
        optimisers: by name; the one of an unnamed optimiser is "".
        schedule: one for all, or by name.
        clip_norm: one for all gradients together, or by name.
        accelerator: of the run.

    Raises:
        ValueError: a schedule or a norm is given for an unknown optimiser, or an
            optimiser trains something outside the model.
    """

    def __init__(
        self,
        model: nn.Module,
        loss_fn: Callable[..., dict[str, Any]],
        optimisers: dict[str, Optimizer],
        schedule: Schedule | dict[str, Schedule] | None,
        clip_norm: float | dict[str, float] | None,
        accelerator: Accelerator,
    ):
        self.model = model.to(accelerator.device)
        self.accelerator = accelerator
        self.optimisers = optimisers
        if not isinstance(schedule, dict):
            schedule = dict.fromkeys(optimisers, schedule or constant())
        self.schedule = schedule
        _known("schedule", schedule, optimisers)
        self.clips = _clips(clip_norm, optimisers)
        self.weights = _parameters(list(optimisers.values()))
        _inside(self.weights, model)
        self.rates = {
            name: [group["lr"] for group in optimiser.param_groups]
            for name, optimiser in optimisers.items()
        }
        self.loss_of = _Loss(model, loss_fn)
        if accelerator.num_processes > 1:
            # Gradients are averaged only for what runs inside the wrapped forward.
            self.loss_of = accelerator.prepare_model(self.loss_of)

    def __call__(self, parts: Sequence[tuple[Step, Any]]) -> dict[str, Any]:
        """Apply a step and return its row of figures.

        Args:
            parts: of its batch, with what was fetched for each; losses and figures are
                the mean over all items.
        """
        self._clear()
        n, found = sum(len(step.indices) for step, _ in parts), []
        for step, batch in parts:
            last = step.part == step.parts - 1
            with nullcontext() if last else self.accelerator.no_sync(self.loss_of):
                share = len(step.indices) / n
                found.append((share, self._add_gradients(step, batch, share)))
        row = {"step": step.index} | _mean(found)
        row |= self._clip(step.index)
        self._set_rates(step, row)
        self._apply()
        return row

    def _add_gradients(self, step: Step, batch: Any, share: float) -> dict[str, Any]:
        """Figures of one part, weighted by its share of the batch."""
        batch = send_to_device(batch, self.accelerator.device)
        with self.accelerator.autocast(), _told(step):
            terms = self.loss_of(batch, step)
        figures = self._figures(terms)
        if not math.isfinite(figures["loss"]):
            self._clear()
            wrong = {k: v for k, v in figures.items() if not math.isfinite(v)}
            self._refuse(step.index, "the loss is not finite", wrong)
        self.accelerator.backward(terms["loss"] * share)
        return figures

    def _figures(self, terms: dict[str, Any]) -> dict[str, float]:
        """Values of all terms: one transfer from the device, mean over processes."""
        if not isinstance(terms, dict) or not isinstance(terms.get("loss"), Tensor):
            raise ValueError(
                "loss_fn has to return a dict of scalars with a tensor 'loss', got "
                + (
                    str(list(terms))
                    if isinstance(terms, dict)
                    else type(terms).__name__
                )
            )
        if not terms["loss"].requires_grad:
            raise ValueError("the loss depends on no parameter that can be trained")
        for name, value in terms.items():
            shape = getattr(value, "shape", ())
            if math.prod(shape) != 1 or not isinstance(value, Tensor | int | float):
                raise ValueError(
                    f"the term {name!r} is a {type(value).__name__} of shape "
                    f"{tuple(shape)}; every term is one number"
                )
        tensors = {k: v.detach() for k, v in terms.items() if isinstance(v, Tensor)}
        values = torch.stack(
            [
                v.reshape(()).to(self.accelerator.device, torch.float32)
                for v in tensors.values()
            ]
        )
        if self.accelerator.num_processes > 1:
            values = self.accelerator.reduce(values, "mean")
        numbers = dict(zip(tensors, values.tolist(), strict=True))
        return {k: numbers.get(k, v) for k, v in terms.items()}

    def _clip(self, index: int) -> dict[str, float]:
        scaler = self.accelerator.scaler
        row = {}
        for name, norm, optimisers in self.clips:
            if scaler is not None:
                for optimiser in filter(_has_gradients, optimisers):
                    scaler.unscale_(optimiser)
            found = nn.utils.clip_grad_norm_(_parameters(optimisers), norm)
            row[name] = float(found)
            # With loss scaling an overflow is routine: the scaler skips the step.
            if scaler is None and not math.isfinite(row[name]):
                self._clear()
                wrong = {name: row[name]}
                self._refuse(index, "the gradients are not finite", wrong)
        return row

    def _clear(self) -> None:
        for weight in self.weights:
            weight.grad = None

    def _set_rates(self, step: Step, row: dict[str, Any]) -> None:
        for name, optimiser in self.optimisers.items():
            factor = 1.0
            if name in self.schedule:
                factor = self.schedule[name](step.index, step.total)
            groups = zip(optimiser.param_groups, self.rates[name], strict=True)
            for group, rate in groups:
                group["lr"] = rate * factor
            row[f"lr/{name}" if name else "lr"] = self.rates[name][0] * factor

    def _apply(self) -> None:
        scaler = self.accelerator.scaler
        if scaler is None:
            for optimiser in self.optimisers.values():
                optimiser.step()
            return
        # By hand rather than through accelerate's wrapped optimisers: those update the
        # scale after each optimiser, and would unscale clipped gradients twice.
        for optimiser in filter(_has_gradients, self.optimisers.values()):
            scaler.step(optimiser)
        scaler.update()

    def check_weights(self, index: int) -> None:
        """Refuse to go on, or to save, with weights that are not finite.

        Raises:
            FloatingPointError: gradients that were not finite got into the weights.
        """
        trained = set(map(id, self.weights))
        for name, weight in self.model.named_parameters():
            if id(weight) not in trained:
                continue
            largest = float(weight.detach().abs().amax()) if weight.numel() else 0.0
            if not math.isfinite(largest):
                self._refuse(index, "weights are not finite", {name: largest})
            # Normalised, they would silently become zeros.
            if not weight.detach().float().square().sum().isfinite():
                what = "the length of weights is not finite"
                self._refuse(index, what, {f"largest of {name}": largest})

    def close(self) -> None:
        """Drop the gradients and put the initial learning rates back."""
        self._clear()
        for name, optimiser in self.optimisers.items():
            groups = zip(optimiser.param_groups, self.rates[name], strict=True)
            for group, rate in groups:
                group["lr"] = rate

    def _refuse(self, index: int, what: str, wrong: dict[str, float]) -> NoReturn:
        figures = ", ".join(f"{name} = {value}" for name, value in wrong.items())
        raise FloatingPointError(
            f"step {index}: {what} ({figures}). Training stopped before it was kept; "
            "try a lower learning rate, gradient clipping or precision 'no'"
        )


def _mean(parts: list[tuple[float, dict[str, Any]]]) -> dict[str, Any]:
    """Figures of a batch from those of its parts, each with its share of the items."""
    if len(parts) == 1:
        return parts[0][1]
    names = parts[0][1]
    return {name: sum(share * row[name] for share, row in parts) for name in names}


@contextmanager
def _told(step: Step) -> Iterator[None]:
    """Mistakes that a loss function finds say in which step."""
    try:
        yield
    except ValueError as error:
        if type(error) is ValueError:
            error.args = (f"step {step.index}: {error}",)
        raise


class _Loss(nn.Module):
    """Model and loss as one module, for the wrapper of several processes."""

    def __init__(self, model: nn.Module, loss_fn: Callable[..., dict[str, Any]]):
        super().__init__()
        self.model = model
        self.loss_fn = loss_fn

    def forward(self, batch: Any, step: Any) -> dict[str, Any]:
        return self.loss_fn(self.model, batch, step)


def _clips(
    clip_norm: float | dict[str, float] | None, optimisers: dict[str, Optimizer]
) -> list[tuple[str, float, list[Optimizer]]]:
    """What is clipped together: name of the logged norm, largest norm, optimisers."""
    if clip_norm is None:
        return []
    if not isinstance(clip_norm, dict):
        return [("grad_norm", clip_norm, list(optimisers.values()))]
    _known("clip_norm", clip_norm, optimisers)
    return [(f"grad_norm/{k}", v, [optimisers[k]]) for k, v in clip_norm.items()]


def _known(what: str, given: dict[str, Any], optimisers: dict[str, Optimizer]) -> None:
    unknown = sorted(set(given) - set(optimisers))
    if unknown:
        raise ValueError(
            f"{what} is given for unknown optimisers {unknown}; there are "
            f"{sorted(optimisers)}"
        )


def _inside(weights: list[nn.Parameter], model: nn.Module) -> None:
    own = {id(weight) for weight in model.parameters()}
    if not own.issuperset(map(id, weights)):
        raise ValueError(
            "an optimiser trains parameters that are not in the model, so that a "
            "checkpoint would miss them; put all trained modules into one nn.ModuleDict"
        )


def _parameters(optimisers: list[Optimizer]) -> list[nn.Parameter]:
    return [p for o in optimisers for group in o.param_groups for p in group["params"]]


def _has_gradients(optimiser: Optimizer) -> bool:
    return any(p.grad is not None for p in _parameters([optimiser]))
