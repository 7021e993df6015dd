import math
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import nn

from tests.folders import read_only_folder
from uss_utils.checkpoints import flatten, load_tensors, save_tensors, unflatten

ROOT = Path(__file__).resolve().parent.parent


def kinds_of_tensors():
    base = torch.randn(4, 5)
    return {
        "float": base,
        "again": base,  # the same memory twice
        "row": base[1],
        "turned": base.t(),
        "scalar": torch.tensor(2.5),
        "empty": torch.zeros(0, 3),
        "mask": torch.tensor([True, False]),
        "long": torch.tensor([-1, 2**60]),
        "half": torch.randn(3).half(),
        "brain": torch.randn(3).bfloat16(),
        "double": torch.tensor([math.nan, math.inf], dtype=torch.float64),
        "channels_last": torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last),
        "parameter": nn.Parameter(torch.randn(2)),
    }


def test_tensors_and_meta_come_back_exactly(tmp_path):
    path = tmp_path / "new" / "folder" / "a.safetensors"
    tensors = kinds_of_tensors()
    meta = {"kind": "test", "names": ["Straße", "sky"], "nested": {"a": [1, None, 0.1]}}
    save_tensors(path, tensors, meta)
    loaded, loaded_meta = load_tensors(path)
    assert loaded_meta == meta
    assert loaded.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert loaded[name].dtype == tensor.dtype
        torch.testing.assert_close(
            loaded[name], tensor.detach(), rtol=0, atol=0, equal_nan=True
        )
    loaded["again"].add_(1)  # writable, and no longer sharing memory
    assert torch.equal(loaded["float"], tensors["float"])


def test_same_content_gives_the_same_bytes(tmp_path):
    tensors = kinds_of_tensors()
    for name in ("a", "b"):
        save_tensors(tmp_path / name, tensors, {"k": 1})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_file_is_ordinary_safetensors(tmp_path):
    path = tmp_path / "a.safetensors"
    save_tensors(path, {"w": torch.ones(2)}, {})
    assert torch.equal(safetensors.torch.load_file(path)["w"], torch.ones(2))


@pytest.mark.parametrize("meta", [{"x": math.nan}, {"x": {1, 2}}, {"x": Path("a")}])
def test_meta_that_is_not_json_is_refused_before_writing(meta, tmp_path):
    with pytest.raises(ValueError, match="meta data of .* is not JSON"):
        save_tensors(tmp_path / "a.safetensors", {}, meta)
    assert not list(tmp_path.iterdir())


# ----------------------------------------------------------------- damaged and foreign


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "a.safetensors"
    save_tensors(path, {"w": torch.arange(100.0)}, {"kind": "probe", "note": "abc"})
    return path


def test_absent_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no file .*absent"):
        load_tensors(tmp_path / "absent.safetensors")
    with pytest.raises(FileNotFoundError):
        load_tensors(tmp_path)


@pytest.mark.parametrize("size", [0, 1, 7, 8, 40, 300, -1])
def test_every_truncation_is_found(size, path):
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(ValueError, match="cut off, damaged or of another kind.*anew"):
        load_tensors(path)


def test_every_flipped_byte_is_found(path):
    content = path.read_bytes()
    for place in range(len(content)):
        changed = bytearray(content)
        changed[place] ^= 1
        path.write_bytes(bytes(changed))
        with pytest.raises(ValueError, match="damaged|none that this package wrote"):
            load_tensors(path)


def test_text_and_other_peoples_weights_are_refused(path):
    path.write_text("this is not a checkpoint, but a letter " * 20)
    with pytest.raises(ValueError, match="not a readable safetensors file"):
        load_tensors(path)
    safetensors.torch.save_file({"w": torch.ones(2)}, path)
    with pytest.raises(ValueError, match="none that this package wrote"):
        load_tensors(path)


def test_kind_is_checked_where_asked_for(path):
    assert load_tensors(path, kind="probe")[1]["note"] == "abc"
    with pytest.raises(ValueError, match="holds a 'probe', but a 'segmenter' was"):
        load_tensors(path, kind="segmenter")


# ---------------------------------------------------------------------- failing writes


def test_full_disk_leaves_the_old_file(path):
    before = path.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, hard))
    try:
        with pytest.raises(OSError, match="File too large.*before is untouched; free"):
            save_tensors(path, {"w": torch.zeros(10_000)}, {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


def test_place_that_cannot_be_written(path):
    with pytest.raises(OSError, match="could not write .*choose a folder"):
        save_tensors(path / "b.safetensors", {}, {})


def test_read_only_folder():
    with read_only_folder() as folder:
        with pytest.raises(OSError, match="could not write .*a.st .Permission denied"):
            save_tensors(folder / "a.st", {}, {})
        assert not list(folder.iterdir())


def test_killed_while_writing_leaves_the_old_file(path):
    before = path.read_bytes()
    code = (
        "import os, signal, sys, torch\n"
        "from pathlib import Path\n"
        "from uss_utils.checkpoints import save_tensors\n"
        "write = Path.write_bytes\n"
        "def half(self, content):\n"
        "    write(self, content[: len(content) // 2])\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "Path.write_bytes = half\n"
        "save_tensors(sys.argv[1], {'w': torch.zeros(1000)}, {})\n"
    )
    child = subprocess.run([sys.executable, "-c", code, str(path)], cwd=ROOT)
    assert child.returncode == -9
    assert path.read_bytes() == before
    assert load_tensors(path)[1]["kind"] == "probe"


# ------------------------------------------------------------------------ nested state


def test_nested_state_comes_back_with_its_types():
    state = {
        "state": {0: {"step": torch.tensor(3.0), "m": torch.ones(2)}, 1: {}},
        "groups": [{"betas": (0.9, 0.999), "params": [0, 1], "foreach": None}],
        "best": math.inf,
        "name": "adam",
        "flag": True,
        "empty": [],
        "none": {},
    }
    tensors, tree = flatten(state)
    assert sorted(tensors) == ["state/0/m", "state/0/step"]
    back = unflatten(tensors, tree)
    assert back["state"].keys() == {0, 1}
    assert torch.equal(back["state"][0]["m"], torch.ones(2))
    for part in (back, state):
        part["state"][0] = None
    assert back == state
    assert type(back["groups"][0]["betas"]) is tuple
    assert math.isnan(unflatten(*flatten({"x": math.nan}))["x"])


@pytest.mark.parametrize(
    "make",
    [
        lambda p: torch.optim.AdamW(p, lr=1e-3, amsgrad=True),
        lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
        lambda p: torch.optim.RMSprop(p, lr=0.1, centered=True),
        lambda p: torch.optim.LBFGS(p, lr=0.1),
    ],
)
def test_optimiser_state_survives_the_file(make, tmp_path):
    def step(model, optimiser):
        def closure():
            optimiser.zero_grad()
            loss = model(torch.ones(1, 3)).square().sum()
            loss.backward()
            return loss

        optimiser.step(closure)

    model = nn.Linear(3, 2)
    optimiser = make(model.parameters())
    step(model, optimiser)
    tensors, tree = flatten(
        {"model": model.state_dict(), "optimiser": optimiser.state_dict()}
    )
    save_tensors(tmp_path / "o", tensors, {"tree": tree})
    tensors, meta = load_tensors(tmp_path / "o")
    state = unflatten(tensors, meta["tree"])
    other = nn.Linear(3, 2)
    other.load_state_dict(state["model"])
    other_optimiser = make(other.parameters())
    other_optimiser.load_state_dict(state["optimiser"])
    step(model, optimiser)
    step(other, other_optimiser)
    assert torch.equal(model.weight, other.weight)


@pytest.mark.parametrize(
    "state, message",
    [
        ({"a": object()}, "cannot store a object .at 'a'."),
        ({"a": [{1.5: 2}]}, "a key at 'a/0' is neither"),
        (
            {"a": {"b": torch.ones(1)}, "a/b": torch.ones(1)},
            "two tensors would be stored as 'a/b'",
        ),
    ],
)
def test_state_that_cannot_be_stored(state, message):
    with pytest.raises(ValueError, match=message):
        flatten(state)


def test_missing_tensor_is_named():
    _, tree = flatten({"a": torch.ones(1)})
    with pytest.raises(ValueError, match="tensor 'a' is missing"):
        unflatten({}, tree)
