"""What is not a number stops every method, and never reaches a file."""

import importlib
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
import pytest
import torch

from tests.faults.kill import METHODS
from uss_utils.checkpoints import load_tensors
from uss_utils.update import Update

BAD = 2  # the step, from 0, at which something breaks


@lru_cache
def prepared(name: str):
    """A method, its smoke settings, and what it trains on; features in memory."""
    method = importlib.import_module(f"uss_utils.methods.{name}")
    cfg = method.Config.preset("smoke", cache="memory")
    return method, cfg, method.prepare(cfg)


@pytest.fixture(autouse=True)
def places(monkeypatch, tmp_path):
    monkeypatch.setenv("USS_DATA", str(tmp_path / "data"))


def break_at(monkeypatch, harm: Callable[[Update, Any], Any]) -> None:
    """Harm a step's weights or batch, in the last training of the method."""
    plain = Update.__call__

    def broken(self, parts):
        if parts[0][0].index == BAD:
            parts = [(step, harm(self, batch)) for step, batch in parts]
        return plain(self, parts)

    monkeypatch.setattr(Update, "__call__", broken)


def poison(value: float) -> Callable[[Update, Any], Any]:
    """One number of every array of real numbers in a batch."""

    def walk(node):
        if isinstance(node, torch.Tensor) and node.is_floating_point():
            node = node.clone()
            node.reshape(-1)[node.numel() // 2] = value
            return node
        if isinstance(node, dict):
            return {key: walk(each) for key, each in node.items()}
        if isinstance(node, list | tuple):
            return type(node)(walk(each) for each in node)
        return node

    return lambda update, batch: walk(batch)


def spoil(value: float) -> Callable[[Update, Any], Any]:
    """One number of every trained weight."""

    def harm(update, batch):
        with torch.no_grad():
            for weight in update.weights:
                weight.view(-1)[0] = value
        return batch

    return harm


def assert_kept(folder) -> None:
    """Checkpoints are whole and finite, and there is nothing else."""
    found = sorted(folder.rglob("*"))
    assert found and all(path.suffix == ".safetensors" for path in found)
    for path in found:
        tensors, meta = load_tensors(path)
        numbers = [v for v in tensors.values() if v.is_floating_point()]
        assert all(bool(v.isfinite().all()) for v in numbers)


FAULTS = {
    "NaN in the batch": poison(float("nan")),
    "infinity in the batch": poison(float("inf")),
    "NaN in the weights": spoil(float("nan")),
    "infinity in the weights": spoil(float("inf")),
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("name", METHODS)
def test_a_step_that_is_no_number_stops_and_keeps(name, fault, monkeypatch, tmp_path):
    method, cfg, material = prepared(name)
    break_at(monkeypatch, FAULTS[fault])
    place = tmp_path / "runs" / "last.safetensors"
    told = r"(not finite \(\w|features or codes hold NaN)"
    message = rf"^step {BAD}: .*{told}.*safetensors keeps the state after {BAD} steps$"
    with pytest.raises((FloatingPointError, ValueError), match=message):
        method.train(cfg, material, checkpoint=place, checkpoint_every=1)
    assert_kept(place.parent)


@pytest.mark.parametrize("precision", ["no", "bf16"])
@pytest.mark.parametrize("name", METHODS)
def test_a_rate_beyond_all_bounds(name, precision, tmp_path):
    method, cfg, material = prepared(name)
    place = tmp_path / "runs" / "last.safetensors"
    wild = cfg.override(lr=1e30, precision=precision)
    with pytest.raises(FloatingPointError, match=r"step \d+: .*not finite \(\w.*keeps"):
        method.train(wild, material, checkpoint=place, checkpoint_every=1)
    assert_kept(place.parent)


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("name", METHODS)
def test_images_that_are_no_numbers_never_become_features(
    name, value, monkeypatch, tmp_path
):
    method, cfg, _ = prepared(name)
    data = cfg.open("train")
    plain = data.batch

    def batch(indices):
        images, label = plain(indices)
        for row, index in enumerate(indices):
            if int(index) == 3:
                images[row, 0, 0, 0] = value
        return images, label

    monkeypatch.setattr(data, "batch", batch)
    with pytest.raises(ValueError, match="gives NaN or infinite features for image 3"):
        method.prepare(cfg.override(cache="disk"), data)
    assert not list(tmp_path.rglob("features.npy"))
