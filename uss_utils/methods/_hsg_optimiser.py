"""HSG's optimiser: SGD whose rate sits inside the momentum, its groups, its schedule.

The settings are those of Ke, Hwang, Guo, Wang, Yu, Unsupervised Hierarchical Semantic
Segmentation with Multiview Cosegmentation and Clustering Transformers, CVPR 2022.
"""

from collections.abc import Callable, Iterable
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.optim import Optimizer

from uss_utils.hierarchy_network import HSGNet
from uss_utils.schedules import Schedule, poly_schedule, step_schedule

Decay = Literal["step", "poly"]
MARKS = (0.32, 0.56, 0.75)  # shares of the run at which the rate falls tenfold


class InnerRateSGD(Optimizer):
    """SGD with v <- m v + lr (g + wd w) and w <- w - v.

    torch's SGD multiplies the whole momentum by the rate of the moment; here every
    gradient keeps the rate that it arrived with, so that a fall of the rate takes some
    steps to be felt. At a constant rate both are the same.

    Args:
        params: parameters, or groups of them with options of their own.
        lr: rate.
        momentum: m, in [0, 1).
        weight_decay: wd, at least 0.

    Raises:
        ValueError: an option outside its range.
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
    ):
        options = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay}
        super().__init__(params, options)
        for group in self.param_groups:
            _check(group)

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor | None:
        """One step; parameters without a gradient stay as they are.

        Args:
            closure: evaluates the loss again, as for every optimiser of torch.

        Returns:
            What the closure does.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            weights = [p for p in group["params"] if p.grad is not None]
            if weights:
                self._step(weights, group)
        return loss

    def _step(self, weights: list[Tensor], group: dict[str, Any]) -> None:
        speeds = [self._speed(weight) for weight in weights]
        grads = [weight.grad for weight in weights]
        if group["weight_decay"]:
            grads = torch._foreach_add(grads, weights, alpha=group["weight_decay"])
        torch._foreach_mul_(speeds, group["momentum"])
        torch._foreach_add_(speeds, grads, alpha=group["lr"])
        torch._foreach_sub_(weights, speeds)

    def _speed(self, weight: Tensor) -> Tensor:
        state = self.state[weight]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(weight)
        return state["momentum_buffer"]


def _check(group: dict[str, Any]) -> None:
    if not (group["lr"] >= 0 and group["weight_decay"] >= 0):
        raise ValueError(
            "learning rate and weight decay are at least 0, got "
            f"{group['lr']} and {group['weight_decay']}"
        )
    if not 0 <= group["momentum"] < 1:
        raise ValueError(f"the momentum lies in [0, 1), got {group['momentum']}")


def param_groups(
    net: HSGNet, lr: float, weight_decay: float = 1e-4, factor: float = 1.0
) -> list[dict[str, Any]]:
    """Parameters of a network as groups with their rates and decays.

    Biases, those of batch norms included, have twice the rate of weights and no decay.
    Scales of batch norms, the position table and queries count as weights.

    Args:
        net: parameters that need no gradient are left out.
        lr: rate of the embedding's weights.
        weight_decay: of weights.
        factor: rate of the grouping over that of the embedding: 10 where it starts
            beside a trained embedding (second stage on COCO), else 1.

    Returns:
        For :class:`InnerRateSGD`: "weights", "biases" and, with a grouping, "grouping
        weights" and "grouping biases", as ``group["name"]``; empty ones are left out.
    """
    found: dict[str, dict[str, Any]] = {}
    for name, parameter in net.named_parameters():
        if not parameter.requires_grad:
            continue
        grouping = name.startswith("grouping.")
        bias = name.endswith("bias")
        key = ("grouping " if grouping else "") + ("biases" if bias else "weights")
        options = {
            "name": key,
            "lr": lr * (factor if grouping else 1) * (2 if bias else 1),
            "weight_decay": 0.0 if bias else weight_decay,
            "params": [],
        }
        found.setdefault(key, options)["params"].append(parameter)
    return list(found.values())


def schedule(
    decay: Decay = "step", warmup: int = 100, marks: tuple[float, ...] = MARKS
) -> Schedule:
    """Linear warm-up from a tenth, then tenfold falls or a polynomial.

    With W steps of warm-up, the factor of step s < W is r = 0.1 + 0.9 s / W. Behind it
    "step" gives 0.1^n, where n marks floor(share x steps) are reached; "poly" gives
    (1 - s / steps)^0.9, and the smaller of it and r during the warm-up.

    Args:
        decay: "step" (the paper's) or "poly".
        warmup: W, steps.
        marks: shares of the run.

    Raises:
        ValueError: an unknown decay, or a negative warm-up.
    """
    if decay not in get_args(Decay):
        known = ", ".join(get_args(Decay))
        raise ValueError(f"unknown decay {decay!r}; known: {known}")
    if warmup < 0:
        raise ValueError(f"the warm-up takes at least 0 steps, got {warmup}")
    poly = poly_schedule()

    def factor(step: int, total: int) -> float:
        ramp = 0.1 + 0.9 * step / warmup if step < warmup else 1.0
        if decay == "poly":
            return min(ramp, poly(step, total))
        if step < warmup:
            return ramp
        # A milestone counts as passed one step later than a mark is reached.
        return step_schedule([int(m * total) - 1 for m in marks])(step, total)

    return factor
