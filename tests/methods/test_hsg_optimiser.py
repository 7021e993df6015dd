"""HSG's optimiser, its groups, its schedule, and what a resumed run makes of them."""

import pytest
import torch
from torch import nn

from uss_utils.environment import generator
from uss_utils.grouping import Grouping
from uss_utils.hierarchy_network import HSGNet
from uss_utils.methods._hsg_loss import HSGLoss
from uss_utils.methods._hsg_optimiser import InnerRateSGD, param_groups, schedule
from uss_utils.training import fit


def net(levels=True, seed=0) -> HSGNet:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        hierarchy = Grouping(4, 3, 2, heads=2, layers=1, hidden=6) if levels else False
        return HSGNet(4, None, hierarchy=hierarchy, in_channels=3, mid_channels=5)


def steps(optimiser, weights, grads, rates):
    for grad, rate in zip(grads, rates, strict=True):
        for group in optimiser.param_groups:
            group["lr"] = rate
        for weight in weights:
            weight.grad = grad.clone()
        optimiser.step()


def test_at_a_constant_rate_it_is_torchs():
    draw = generator(0)
    grads = torch.randn(5, 3, generator=draw)
    own, other = (nn.Parameter(torch.ones(3)) for _ in range(2))
    steps(InnerRateSGD([own], 0.1, 0.9, 0.01), [own], grads, [0.1] * 5)
    like = torch.optim.SGD([other], 0.1, 0.9, weight_decay=0.01)
    steps(like, [other], grads, [0.1] * 5)
    torch.testing.assert_close(own, other)


def test_every_gradient_keeps_its_rate():
    weight = nn.Parameter(torch.zeros(1))
    rates = [1.0, 0.1, 0.01]
    steps(InnerRateSGD([weight], 1.0, 0.5), [weight], torch.ones(3, 1), rates)
    # After three steps the first gradient has moved it by 1 + .5 + .25.
    expected = 1.0 * (1 + 0.5 + 0.25) + 0.1 * (1 + 0.5) + 0.01
    assert float(weight.detach()) == pytest.approx(-expected)


def test_without_gradient_nothing_moves():
    still, moved = (nn.Parameter(torch.ones(2)) for _ in range(2))
    optimiser = InnerRateSGD([still, moved], 0.1, weight_decay=0.1)
    moved.grad = torch.ones(2)
    optimiser.step()
    assert torch.equal(still.detach(), torch.ones(2)) and (moved < 1).all()
    assert optimiser.step(lambda: 7) == 7


def test_bad_options():
    weight = nn.Parameter(torch.ones(2))
    with pytest.raises(ValueError, match="at least 0, got -1 and 0.0"):
        InnerRateSGD([weight], -1)
    with pytest.raises(ValueError, match="at least 0, got 0.1 and -0.1"):
        InnerRateSGD([weight], 0.1, weight_decay=-0.1)
    with pytest.raises(ValueError, match=r"momentum lies in \[0, 1\), got 1.0"):
        InnerRateSGD([weight], 0.1, 1.0)


# ------------------------------------------------------------------------------ groups


def test_groups():
    own = net()
    groups = {g["name"]: g for g in param_groups(own, 0.01, 1e-4, 10)}
    assert list(groups) == ["weights", "biases", "grouping weights", "grouping biases"]
    settings = {k: (round(g["lr"], 6), g["weight_decay"]) for k, g in groups.items()}
    assert settings == {
        "weights": (0.01, 1e-4),
        "biases": (0.02, 0.0),
        "grouping weights": (0.1, 1e-4),
        "grouping biases": (0.2, 0.0),
    }
    names = {id(p): n for n, p in own.named_parameters()}
    held = {k: [names[id(p)] for p in g["params"]] for k, g in groups.items()}
    assert held["weights"] == ["head.0.weight", "head.1.weight", "head.3.weight"]
    assert held["biases"] == ["head.1.bias", "head.3.bias"]
    for name in ("positions.rows", "fine.queries", "coarse.norm.weight"):
        assert f"grouping.{name}" in held["grouping weights"]
    assert "grouping.fine.encoder.0.attention.in_proj_bias" in held["grouping biases"]
    assert sorted(sum(held.values(), [])) == sorted(names.values())


def test_groups_of_the_first_stage_and_of_frozen_parts():
    own = net(levels=False)
    own.head[1].requires_grad_(False)
    groups = param_groups(own, 0.1)
    assert [(g["name"], len(g["params"])) for g in groups] == [
        ("weights", 2),
        ("biases", 1),
    ]


# ---------------------------------------------------------------------------- schedule


def test_schedule_by_steps():
    factor = schedule(warmup=10)
    assert factor(0, 100) == pytest.approx(0.1)
    assert factor(5, 100) == pytest.approx(0.55)
    found = [factor(step, 100) for step in (10, 31, 32, 55, 56, 74, 75, 99)]
    assert found == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.01, 0.001, 0.001])
    assert schedule(warmup=0)(0, 10) == 1


def test_schedule_by_a_polynomial():
    factor = schedule("poly", warmup=10)
    assert factor(0, 100) == pytest.approx(0.1)
    assert factor(9, 100) == pytest.approx(min(0.91, 0.91**0.9))
    assert factor(60, 100) == pytest.approx(0.4**0.9)


def test_schedules_there_are_not():
    with pytest.raises(ValueError, match="unknown decay 'cosine'; known: step, poly"):
        schedule("cosine")
    with pytest.raises(ValueError, match="at least 0 steps, got -1"):
        schedule(warmup=-1)


# -------------------------------------------------------------------------- resumption


class Views:
    """Features of two views of an image, and its regions."""

    def __len__(self):
        return 6

    def batch(self, indices):
        draw = generator(0)
        features = torch.randn(6, 2, 3, 6, 6, generator=draw)[indices]
        regions = torch.randint(3, (6, 1, 6, 6), generator=draw).expand(-1, 2, -1, -1)
        return features.flatten(0, 1), regions[indices].flatten(0, 1)


def train(path, fail_at=None):
    own = net()
    loss = HSGLoss(grid=(2, 2), iterations=3)

    def terms(model, batch, step):
        features, regions = batch
        image = torch.arange(len(regions)) // 2
        valid = torch.ones_like(regions, dtype=torch.bool)
        found = loss(model(features), regions, valid, image, model.grouping)
        return {"loss": found.pop("total"), **found}

    def on_step(index, model, row):
        if index == fail_at:
            raise KeyboardInterrupt

    history = fit(
        own,
        terms,
        Views(),
        steps=8,
        batch_size=3,
        optimisers=InnerRateSGD(param_groups(own, 0.05, factor=10), 0.05),
        schedule=schedule(warmup=3),
        device="cpu",
        progress=None,
        checkpoint=path,
        checkpoint_every=2,
        on_step=on_step,
    )
    return own, history


def test_killed_and_resumed_is_the_same_to_the_bit(tmp_path):
    whole, expected = train(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "cut", fail_at=5)
    resumed, history = train(tmp_path / "cut")
    assert history.rows == expected.rows and len(history.rows) == 8
    for name, value in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], value), name
    rates = [row["lr"] for row in history.rows]
    assert rates == pytest.approx([0.005, 0.02, 0.035, 5e-3, 5e-4, 5e-4, 5e-5, 5e-5])
    assert history.rows[-1]["modularity_fine"] > 0
