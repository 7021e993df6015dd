"""Loss scaling of several optimisers, which only a GPU run would use otherwise.

`fit` offers fp16 on GPUs alone; the scaler itself works on a CPU too, so the step is
tested here with it and a stand-in for the Accelerator.
"""

import math
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from tests.training_run import Pairs
from uss_utils.update import Step, Update


def stand_in(scaler):
    """What `Update` uses of an Accelerator, in one process on the CPU."""

    def backward(loss):
        (loss if scaler is None else scaler.scale(loss)).backward()

    return SimpleNamespace(
        device=torch.device("cpu"),
        num_processes=1,
        scaler=scaler,
        autocast=nullcontext,
        backward=backward,
    )


class _Times(torch.autograd.Function):
    """Identity whose gradient is multiplied."""

    @staticmethod
    def forward(ctx, x, factor):
        ctx.factor = factor
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        return grad * ctx.factor, None


def two_optimisers(scaler, clip_norm, overflow_at=None, steps=4):
    """Train two layers, each with its own optimiser; returns weights and rows."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.ModuleDict({"a": nn.Linear(6, 4), "b": nn.Linear(4, 2)})

    def loss(model, batch, step):
        x, y = batch
        code = model["a"](x)
        if step.index == overflow_at:
            code = _Times.apply(code, float("inf"))  # only "a" overflows
        return {"loss": 5 * (model["b"](code) - y).square().sum()}

    optimisers = {
        key: torch.optim.SGD(model[key].parameters(), lr=1e-3) for key in ("a", "b")
    }
    update = Update(model, loss, optimisers, None, clip_norm, stand_in(scaler))
    batch = Pairs().batch(torch.arange(40))
    weights, rows = [], []
    for index in range(steps):
        step = Step(index, steps, 0, torch.arange(40), torch.Generator())
        rows.append(update([(step, batch)]))
        weights.append([model[key].weight.detach().clone() for key in ("a", "b")])
    return weights, rows


def scaler(**options):
    return torch.amp.GradScaler("cpu", init_scale=1024.0, **options)


@pytest.mark.parametrize("clip_norm", [None, 1.0, {"a": 0.5}, {"a": 0.5, "b": 0.1}])
def test_scaling_changes_nothing_but_the_gradients_range(clip_norm):
    plain, plain_rows = two_optimisers(None, clip_norm)
    scaled, scaled_rows = two_optimisers(scaler(), clip_norm)
    for one, other in zip(plain, scaled, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-7)
    for one, other in zip(plain_rows, scaled_rows, strict=True):
        assert other == pytest.approx(one, rel=1e-4)


def test_an_overflow_skips_that_optimisers_step_and_halves_the_scale():
    own = scaler()
    weights, rows = two_optimisers(own, {"a": 0.5}, overflow_at=2)
    (_, before), (_, after) = weights[1], weights[2]
    assert torch.equal(weights[1][0], weights[2][0])
    assert not torch.equal(before, after)
    assert not torch.equal(weights[2][0], weights[3][0])
    assert own.get_scale() == 512
    assert not math.isfinite(rows[2]["grad_norm/a"])


def test_an_optimiser_without_gradients_waits():
    model = nn.ModuleDict({"a": nn.Linear(6, 2), "idle": nn.Linear(2, 2)})
    optimisers = {
        key: torch.optim.SGD(model[key].parameters(), lr=0.1) for key in model
    }

    def loss(model, batch, step):
        return {"loss": model["a"](batch[0]).square().mean()}

    update = Update(model, loss, optimisers, None, 1.0, stand_in(scaler()))
    before = model["idle"].weight.detach().clone()
    items = torch.arange(8)
    update([(Step(0, 1, 0, items, None), Pairs().batch(items))])
    assert torch.equal(model["idle"].weight, before)


def test_closing_drops_gradients_and_puts_rates_back():
    model = nn.Linear(6, 2)
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
    update = Update(
        model,
        lambda m, b, s: {"loss": m(b[0]).sum()},
        {"": optimiser},
        lambda step, total: 0.5,
        None,
        stand_in(None),
    )
    items = torch.arange(8)
    row = update([(Step(0, 1, 0, items, None), Pairs().batch(items))])
    assert row["lr"] == optimiser.param_groups[0]["lr"] == 0.05
    update.close()
    assert optimiser.param_groups[0]["lr"] == 0.1
    assert model.weight.grad is None
