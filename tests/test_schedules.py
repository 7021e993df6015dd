import math

import pytest
import torch
from torch import nn

from uss_utils.schedules import (
    EMA,
    constant,
    cosine_ramp,
    cosine_schedule,
    poly_schedule,
    step_schedule,
)


def values(schedule, total):
    return [schedule(step, total) for step in range(total)]


def test_constant():
    assert values(constant(), 3) == [1.0, 1.0, 1.0]


def test_cosine_without_warmup_falls_from_one_towards_final():
    factors = values(cosine_schedule(final=0.1), 100)
    assert factors[0] == 1
    assert factors[50] == pytest.approx(0.55)
    assert factors == sorted(factors, reverse=True)
    assert 0.1 < factors[-1] < 0.101


@pytest.mark.parametrize("warmup", [4, 0.2])
def test_cosine_warmup_in_steps_or_as_a_share(warmup):
    factors = values(cosine_schedule(warmup), 20)
    assert factors[:5] == pytest.approx([0.25, 0.5, 0.75, 1, 1])
    assert factors[12] == pytest.approx(0.5)


@pytest.mark.parametrize("warmup", [-1, 1.0, 1.5])
def test_cosine_refuses_odd_warmups(warmup):
    with pytest.raises(ValueError, match="warmup is"):
        cosine_schedule(warmup)


def test_cosine_refuses_a_warmup_longer_than_the_run():
    with pytest.raises(ValueError, match="a warm-up of 10 steps does not fit into 10"):
        cosine_schedule(10)(0, 10)


def test_poly_per_step_and_per_epoch():
    assert values(poly_schedule(2), 4) == [1, 0.75**2, 0.5**2, 0.25**2]
    assert values(poly_schedule(1, every=2), 5) == pytest.approx([1, 1, 0.6, 0.6, 0.2])
    with pytest.raises(ValueError, match="every has to be at least 1"):
        poly_schedule(every=0)


def test_step_drops_after_its_milestones():
    assert values(step_schedule([1, 3], 0.5), 6) == [1, 1, 0.5, 0.5, 0.25, 0.25]
    assert values(step_schedule([0], 0.1, every=2), 4) == [1, 1, 0.1, 0.1]
    assert values(step_schedule([]), 3) == [1, 1, 1]
    with pytest.raises(ValueError, match="every has to be at least 1"):
        step_schedule([1], every=0)


def test_ramp_ends_at_its_end():
    ramp = values(cosine_ramp(0.9), 50)
    assert ramp == sorted(ramp)
    assert 0.9 < ramp[0] < 0.9002
    assert ramp[24] == pytest.approx(0.95)
    assert ramp[-1] == 1


# ------------------------------------------------------------------------------- EMA


def shifted(source, value):
    with torch.no_grad():
        for parameter in source.parameters():
            parameter.fill_(value)


def test_average_follows_the_formula():
    source = nn.Linear(2, 1)
    shifted(source, 1.0)
    ema = EMA(source, 0.75)
    shifted(source, 5.0)
    ema.update(0, 10)
    assert torch.equal(ema.module.weight, torch.full((1, 2), 2.0))
    ema.update(1, 10)
    assert torch.equal(ema.module.bias, torch.tensor([2.75]))


@pytest.mark.parametrize("decay, kept", [(0.0, 5.0), (1.0, 1.0)])
def test_extreme_decays_copy_or_keep_exactly(decay, kept):
    source = nn.Linear(2, 1)
    shifted(source, 1.0)
    ema = EMA(source, lambda step, total: decay)
    shifted(source, 5.0)
    ema.update(3, 10)
    assert torch.equal(ema.module.weight, torch.full((1, 2), kept))


def test_running_mean_by_a_decay_ramp():
    """d = 1 - 1/n at the n-th update averages all snapshots equally."""
    source = nn.Linear(2, 1)
    ema = EMA(source, lambda step, total: 1 - 1 / (step + 1))
    snapshots = []
    for step in range(6):
        shifted(source, math.sin(step))
        snapshots.append(math.sin(step))
        ema.update(step, 6)
    mean = sum(snapshots) / len(snapshots)
    torch.testing.assert_close(ema.module.bias, torch.tensor([mean]))


def test_updates_every_tenth_step_from_the_tenth():
    source = nn.Linear(2, 1)
    shifted(source, 0.0)
    ema = EMA(source, 0.0, start=10, every=10)
    changed = []
    for step in range(35):
        shifted(source, float(step))
        before = ema.module.bias.item()
        ema.update(step, 35)
        if ema.module.bias.item() != before:
            changed.append(step)
    assert changed == [10, 20, 30]


def test_buffers_are_copied_and_nothing_has_gradients():
    source = nn.BatchNorm1d(2)
    ema = EMA(source, 0.99)
    source(torch.randn(8, 2))
    ema.update(0, 1)
    assert torch.equal(ema.module.running_mean, source.running_mean)
    assert ema.module.num_batches_tracked == 1
    assert not any(p.requires_grad for p in ema.module.parameters())
    assert all(p.requires_grad for p in source.parameters())
    assert not ema.module.training


def test_state_comes_back():
    source = nn.Linear(2, 1)
    ema = EMA(source, 0.5)
    shifted(source, 3.0)
    ema.update(0, 1)
    other = EMA(nn.Linear(2, 1), 0.5)
    other.load_state_dict(ema.state_dict())
    assert torch.equal(other.module.weight, ema.module.weight)


def test_target_is_used_in_place_and_has_to_fit():
    source, target = nn.Linear(2, 1), nn.Linear(2, 1)
    ema = EMA(source, 0.0, target=target)
    ema.update(0, 1)
    assert torch.equal(target.weight, source.weight)
    with pytest.raises(ValueError, match="same parameters as its source"):
        EMA(source, 0.0, target=nn.Linear(3, 1))


def test_decay_outside_its_range():
    with pytest.raises(ValueError, match=r"decay lies in \[0, 1\], got 1.5"):
        EMA(nn.Linear(1, 1), 1.5).update(0, 1)
