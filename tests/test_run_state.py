import random
import warnings

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState, PartialState

from uss_utils import run_state
from uss_utils.checkpoints import flatten, load_tensors, save_tensors, unflatten
from uss_utils.run_state import (
    own_accelerator,
    own_random_state,
    random_state,
    set_random_state,
)

CPU = torch.device("cpu")


def draw():
    return (
        random.random(),
        random.gauss(0, 1),
        np.random.rand(),  # noqa: NPY002
        np.random.randn(),  # noqa: NPY002
        torch.rand(1).item(),
    )


def test_random_state_survives_a_file(tmp_path):
    draw()  # leaves a second Gaussian waiting in python's and in numpy's generator
    tensors, tree = flatten(random_state(CPU))
    save_tensors(tmp_path / "state", tensors, {"tree": tree})
    expected = [draw() for _ in range(3)]
    tensors, meta = load_tensors(tmp_path / "state")
    set_random_state(unflatten(tensors, meta["tree"]), CPU)
    assert [draw() for _ in range(3)] == expected


def test_own_random_state_is_seeded_and_leaves_no_trace():
    before = random_state(CPU)
    outside = draw()
    set_random_state(before, CPU)
    with own_random_state(4, CPU):
        first = draw()
    assert draw() == outside
    with pytest.raises(KeyError), own_random_state(4, CPU):
        assert draw() == first
        raise KeyError
    with own_random_state(5, CPU):
        assert draw() != first


def test_accelerators_keep_to_themselves():
    before = dict(AcceleratorState._shared_state), dict(PartialState._shared_state)
    with own_accelerator("bf16", "cpu") as outer:
        with own_accelerator("no", "cpu") as inner:
            assert inner.mixed_precision == "no"
        assert outer.mixed_precision == "bf16"
        assert outer.device == CPU
    assert before == (AcceleratorState._shared_state, PartialState._shared_state)


@pytest.mark.parametrize("slow", [True, False])
def test_emulated_bf16_is_warned_of(monkeypatch, slow):
    monkeypatch.setattr(run_state, "slow_bf16", lambda device: slow)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        for precision in ("no", "bf16", "bf16"):
            with own_accelerator(precision, "cpu"):
                pass
    found = [str(warning.message) for warning in caught]
    assert len(found) == slow
    assert not slow or "choose precision 'no' (--precision no)" in found[0]


def test_accumulation_asked_for_elsewhere_does_not_scale_the_loss(monkeypatch):
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    weight = torch.ones(1, requires_grad=True)
    with own_accelerator("no", "cpu") as accelerator:
        accelerator.backward(weight.sum())
    assert weight.grad.item() == 1


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_absent_device():
    with pytest.raises(ValueError, match="torch sees no CUDA GPU"):
        with own_accelerator("no", "cuda"):
            pass
