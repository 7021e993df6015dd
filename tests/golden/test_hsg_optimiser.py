"""HSG's optimiser and its schedule: recorded pairs."""

import pytest
import torch
from torch import nn

from tests.golden.golden import assert_close, golden_files, load
from uss_utils.methods._hsg_optimiser import InnerRateSGD, schedule

pytestmark = pytest.mark.golden


@pytest.mark.parametrize("path", golden_files("hsg", "23_sgd*.npz"))
def test_steps_of_sgd(path):
    pair = load(path)
    weight, bias = (nn.Parameter(pair[f"in_{x}"].clone()) for x in ("weight", "bias"))
    groups = [
        {"params": [weight], "weight_decay": pair["param_weight_decay"]},
        {"params": [bias], "weight_decay": 0.0},
    ]
    factors = [pair["param_weight_lr_factor"], pair["param_bias_lr_factor"]]
    optimiser = InnerRateSGD(groups, 0.1, pair["param_momentum"])
    for step, rate in enumerate(pair["param_lr"].tolist()):
        for group, factor in zip(optimiser.param_groups, factors, strict=True):
            group["lr"] = rate * factor
        weight.grad = pair["in_weight_grads"][step].clone()
        bias.grad = pair["in_bias_grads"][step].clone()
        optimiser.step()
        assert_close(weight.detach(), pair["out_weights"][step], 1e-5)
        assert_close(bias.detach(), pair["out_biases"][step], 1e-5)


@pytest.mark.parametrize("path", golden_files("hsg", "17_lr_schedule*.npz"))
@pytest.mark.parametrize("decay", ["step", "poly"])
def test_schedule(path, decay):
    pair = load(path)
    marks = tuple(pair["param_decay_fractions"].tolist())
    factor = schedule(decay, pair["param_warmup"], marks)
    rates = [
        pair["param_base_lr"] * factor(step, pair["param_max_iteration"])
        for step in pair["in_iteration"].tolist()
    ]
    expected = pair[f"out_lr_{decay}_f64"]
    found = torch.tensor(rates, dtype=torch.float64)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=0)
