import random

import numpy as np
import pytest
import torch

from uss_utils import environment


def test_cuda_asked_for_and_absent(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="no CUDA GPU here; use 'cpu' or 'auto'"):
        environment.pick_device("cuda")


def test_a_gpu_that_does_not_exist(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(ValueError, match="only 2 GPU"):
        environment.pick_device("cuda:5")


def test_unknown_device_names_the_known():
    with pytest.raises(ValueError, match="unknown device 'gpu'; use 'auto'"):
        environment.pick_device("gpu")


def test_auto_gives_a_device_that_computes():
    device = environment.pick_device()
    assert torch.ones(2, device=device).sum().item() == 2


def test_bf16_is_slow_where_an_x86_cpu_emulates_it(monkeypatch):
    cpu = torch.device("cpu")
    facts = {"_is_avx512_bf16_supported": False, "_is_amx_tile_supported": False}

    def machine(name="x86_64", **changed):
        monkeypatch.setattr("platform.machine", lambda: name)
        for fact, value in (facts | changed).items():
            monkeypatch.setattr(torch.cpu, fact, lambda v=value: v, raising=False)

    machine()
    assert environment.slow_bf16(cpu)
    assert not environment.slow_bf16(torch.device("meta"))
    for changed in facts:
        machine(**{changed: True})
        assert not environment.slow_bf16(cpu)
    machine("arm64")
    assert not environment.slow_bf16(cpu)
    machine()
    for fact in facts:  # a torch that does not tell
        monkeypatch.delattr(torch.cpu, fact)
    assert not environment.slow_bf16(cpu)


def test_seed_all_repeats_three_generators():
    def draws():
        environment.seed_all(7)
        legacy = np.random.rand()  # noqa: NPY002 - the global generator is the point
        return random.random(), legacy, torch.rand(1).item()

    assert draws() == draws()


def test_own_generator_leaves_the_global_one_alone():
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    torch.rand(3, generator=environment.generator(5))
    assert torch.equal(torch.rand(1), expected)


def test_report_names_versions_and_device():
    text = environment.report(torch.device("cpu"))
    assert f"torch {torch.__version__.split('+')[0]}" in text and "device cpu" in text


def test_peak_memory_is_plausible():
    assert 50 < environment.peak_memory_mb() < 1e6
