"""Several processes behind one command."""

import json

import numpy as np
import pytest
import torch

from tests.processes import run_together
from uss_utils import launch
from uss_utils.checkpoints import load_tensors

TRAIN = "-m uss_utils train stego --preset smoke -s cache=disk -s limit_crf=5 --crf"


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The same command by one and by two processes: folders, and what was printed."""
    found = {}
    for n in (1, 2):
        root = tmp_path_factory.mktemp(f"by{n}")
        place = {"USS_DATA": str(root / "data"), "USS_RUNS": str(root / "runs")}
        found[n] = root, run_together(n, *TRAIN.split(), "--device", "cpu", **place)
    return found


def only(root, pattern):
    (path,) = root.rglob(pattern)
    return path


def test_records_are_equal_down_to_every_pixel(runs):
    one, two = (
        json.loads(only(root / "runs", "records/*.json").read_text())
        for root, _ in runs.values()
    )
    assert one.pop("run")["versions"] == two.pop("run")["versions"]
    assert one["crf"]["images"] == 5
    assert one == two


def test_shared_cache_holds_the_same_features(runs):
    """The backbone sees 8 images instead of 16: rounding, then half precision."""
    one, two = (
        torch.from_numpy(features(root)).float().flatten(1) for root, _ in runs.values()
    )
    assert one.shape == two.shape
    torch.testing.assert_close(one, two, rtol=1e-3, atol=1e-3)


def features(root):
    return np.load(only(root / "data", "features.npy"))


def test_models_agree(runs):
    one, two = (
        load_tensors(only(root / "runs", "models/*.safetensors"))[0]
        for root, _ in runs.values()
    )
    assert one.keys() == two.keys()
    for name in one:
        torch.testing.assert_close(two[name], one[name], rtol=1e-4, atol=1e-5)


def test_only_the_first_speaks(runs):
    _, (first, second) = runs[2]
    assert "| STEGO |" in first and "model:" in first
    assert second == ""


def test_alone_nothing_happens(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with launch.together("cpu"):
        assert not torch.distributed.is_initialized()


def test_gpus_that_are_not_enough(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with (
        pytest.raises(ValueError, match="process 1 of this machine has no GPU"),
        launch.together("auto"),
    ):
        pass
    with (
        pytest.raises(ValueError, match="2 processes cannot share 'cuda:0'"),
        launch.together("cuda:0"),
    ):
        pass
