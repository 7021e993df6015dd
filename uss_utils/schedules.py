"""What changes slowly while training runs: learning rates and averaged weights."""

import copy
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

# (step from 0, number of steps) -> factor or decay
Schedule = Callable[[int, int], float]


def constant() -> Schedule:
    """Factor 1 throughout."""
    return lambda step, total: 1.0


def cosine_schedule(warmup: int | float = 0, final: float = 0.0) -> Schedule:
    """Linear warm-up, then half a cosine (Loshchilov and Hutter, 2017, eq. 5).

    With W warm-up steps of T, the factor of step s (from 0) is (s + 1) / W for s < W,
    then final + (1 - final) (1 + cos(pi (s - W) / (T - W))) / 2.

    Args:
        warmup: W as a number of steps (int), or as a share of T (float in [0, 1)).
        final: factor that the curve approaches at the end.

    Raises:
        ValueError: the warm-up is negative or, when the schedule is used, no shorter
            than the run.
    """
    if warmup < 0 or (isinstance(warmup, float) and warmup >= 1):
        raise ValueError(
            f"warmup is {warmup}: give a number of steps (int) or a share of them "
            "(float from 0 to below 1)"
        )

    def factor(step: int, total: int) -> float:
        ramp = round(warmup * total) if isinstance(warmup, float) else warmup
        if ramp >= total and ramp > 0:
            raise ValueError(f"a warm-up of {ramp} steps does not fit into {total}")
        if step < ramp:
            return (step + 1) / ramp
        share = (step - ramp) / (total - ramp)
        return final + (1 - final) * (1 + math.cos(math.pi * share)) / 2

    return factor


def poly_schedule(power: float = 0.9, every: int = 1) -> Schedule:
    """Polynomial decay: the factor of step s (from 0) of T is (1 - s / T)^power.

    Args:
        power: exponent; 0.9 is the field's habit.
        every: the factor changes every so many steps (s is rounded down to a multiple),
            such as the length of an epoch.

    Raises:
        ValueError: ``every`` is below 1.
    """
    if every < 1:
        raise ValueError(f"every has to be at least 1, got {every}")
    return lambda step, total: (1 - step // every * every / total) ** power


def step_schedule(
    milestones: Sequence[int], decay: float = 0.1, every: int = 1
) -> Schedule:
    """Constant but for drops: the factor is decay^n once n milestones are passed.

    A milestone is passed when the step (rounded down to a multiple of ``every``) is
    larger: with epochs and a milestone of 25, epoch 26 (from 0) is the first reduced.

    Args:
        milestones: in units of ``every`` steps.
        decay: factor per milestone.
        every: steps per unit, such as the length of an epoch.

    Raises:
        ValueError: ``every`` is below 1.
    """
    if every < 1:
        raise ValueError(f"every has to be at least 1, got {every}")
    return lambda step, total: (
        decay ** sum(step // every > milestone for milestone in milestones)
    )


def cosine_ramp(start: float, end: float = 1.0) -> Schedule:
    """From ``start`` to ``end`` along half a cosine, for a teacher's momentum.

    The value after step s (from 0) of T is
    end - (end - start) (1 + cos(pi (s + 1) / T)) / 2 (BYOL, Grill et al., 2020,
    section 3.2); the last step gives ``end``.
    """
    return lambda step, total: (
        end - (end - start) * (1 + math.cos(math.pi * (step + 1) / total)) / 2
    )


class EMA:
    """A running average of a module's weights: average <- d average + (1 - d) weights.

    Buffers (such as batch-norm statistics) are copied. ``training.fit`` updates it
    after every optimiser step and keeps it in the checkpoint.

    Args:
        source: the trained module.
        decay: d, or a schedule of it, e.g. :func:`cosine_ramp`; 0 copies the weights.
        target: module of the same structure that receives the average (a teacher
            inside the model); None makes a copy of ``source``.
        start: first step (from 0) after which the average is updated.
        every: an update happens after steps start, start + every, start + 2 every, ...

    Attributes:
        module: the averaged module, in eval mode, without gradients.

    Raises:
        ValueError: ``target`` has other parameters, or ``decay`` leaves [0, 1].
    """

    def __init__(
        self,
        source: nn.Module,
        decay: float | Schedule,
        *,
        target: nn.Module | None = None,
        start: int = 0,
        every: int = 1,
    ):
        module = copy.deepcopy(source) if target is None else target
        shapes = [
            [(name, tensor.shape) for name, tensor in m.state_dict().items()]
            for m in (source, module)
        ]
        if shapes[0] != shapes[1]:
            raise ValueError(
                "the target of an EMA needs the same parameters as its source"
            )
        self.source = source
        self.module = module.requires_grad_(False).eval()
        self.decay = decay if callable(decay) else lambda step, total: decay
        self.start = start
        self.every = every

    @torch.no_grad()
    def update(self, step: int, total: int) -> None:
        """Move the average after optimiser step ``step`` (from 0) of ``total``."""
        if step < self.start or (step - self.start) % self.every:
            return
        decay = self.decay(step, total)
        if not 0 <= decay <= 1:
            raise ValueError(f"an EMA's decay lies in [0, 1], got {decay}")
        average = list(self.module.parameters())
        weights = list(self.source.parameters())
        if average:
            torch._foreach_lerp_(average, weights, 1 - decay)
        for own, other in zip(
            self.module.buffers(), self.source.buffers(), strict=True
        ):
            own.copy_(other)

    def state_dict(self) -> dict[str, Any]:
        """The averaged weights."""
        return self.module.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put averaged weights back."""
        self.module.load_state_dict(state)
