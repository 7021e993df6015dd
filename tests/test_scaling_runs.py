"""Trainings in processes of their own: started, failed, killed, compared."""

import sys

import psutil
import pytest
import torch
from torch import nn

from uss_utils import scaling_runs as apart
from uss_utils.checkpoints import save_tensors
from uss_utils.history import History

# Writes a checkpoint of three steps, begins a child, and would never end.
ENDLESS = """
import subprocess, sys, time
from pathlib import Path
from uss_utils.checkpoints import save_tensors
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"],
                         start_new_session=True)
folder = Path(sys.argv[1])
(folder / "child").write_text(str(child.pid))
meta = {"kind": "test", "step": 3}
save_tensors(folder / "checkpoints" / "stego-seed0.safetensors", {}, meta)
time.sleep(600)
"""


def test_the_command_is_the_one_to_type(tmp_path):
    words = apart.command("hp", "smoke", tmp_path, steps=3, cache="images", n_val=4)
    assert words[:6] == [sys.executable, "-m", "uss_utils", "train", "hp", "--preset"]
    assert words[-4:] == ["-s", "cache='images'", "-s", "n_val=4"]
    two = apart.command("hp", "smoke", tmp_path, 2, steps=3, cache="images", n_val=4)
    assert two[1:3] == ["-m", "torch.distributed.run"]
    assert two[-len(words) + 1 :] == words[1:]


def test_a_failed_run_tells_its_last_words(tmp_path):
    words = [sys.executable, "-c", "print('so it goes'); raise SystemExit(3)"]
    with pytest.raises(RuntimeError, match=r"in run failed:\nso it goes"):
        apart.train(words, tmp_path / "run")
    with pytest.raises(RuntimeError, match="so it goes"):
        apart.kill(words, tmp_path / "run", 1)
    apart.train([sys.executable, "-c", "pass"], tmp_path / "run")


def test_a_kill_ends_the_whole_family(tmp_path):
    assert apart.steps_done(tmp_path) == -1
    words = [sys.executable, "-c", ENDLESS, str(tmp_path)]
    assert apart.kill(words, tmp_path, 2) == 3
    child = int((tmp_path / "child").read_text())
    gone = not psutil.pid_exists(child)
    assert gone or psutil.Process(child).status() == psutil.STATUS_ZOMBIE


def write(folder, loss, weight):
    history = History([{"step": i, "loss": x} for i, x in enumerate(loss)])
    meta = {"kind": "test", "step": len(loss), "history": history.to_json()}
    save_tensors(folder / "checkpoints" / "stego-seed0.safetensors", {}, meta)
    tensors = {"a": torch.tensor(weight), "b": torch.zeros(2)}
    save_tensors(folder / "models" / "stego-seed0.safetensors", tensors, {"kind": "m"})
    return apart.kept(folder)


def test_differences_of_two_runs(tmp_path):
    one = write(tmp_path / "one", [1.0, 0.5], [1.0])
    other = write(tmp_path / "other", [1.0, 0.25], [3.0])
    assert apart.differences(one, other) == {"loss": 0.25, "weights": 2.0}
    assert apart.differences(one, one) == {"loss": 0.0, "weights": 0.0}


class Toy(nn.Module):
    """Counts its steps."""

    def __init__(self):
        super().__init__()
        self.weight, self.seen = nn.Parameter(torch.ones(1)), []

    def step(self, batch, generator):
        self.seen.append(batch)
        return {"loss": (self.weight * batch["input"]).sum()}

    def optimisers(self):
        return {"": torch.optim.SGD(self.parameters(), lr=0.1)}


class Pairs:
    def __len__(self):
        return 6

    def draw(self, rows, generator):
        return {"input": rows.float(), "positive": rows.float() + 1}


def test_parts_of_a_step_are_timed():
    toy = Toy()
    found = apart.step_seconds(toy, Pairs(), lambda x: x + 10, 2, steps=3)
    assert list(found) == ["reading", "frozen network", "head, loss, update"]
    assert all(0 < seconds < 10 for seconds in found.values())
    assert len(toy.seen) == 4 and toy.seen[0]["input"].min() >= 10


def mean(model, x, step):
    return {"loss": model(x).square().mean()}


def test_parts_of_a_batch_matter_where_images_meet():
    torch.manual_seed(0)
    items, layer = torch.randn(16, 6), nn.Linear(6, 4)
    before = layer.weight.clone()
    assert apart.in_parts(layer, mean, items) < 1e-6
    assert apart.in_parts(nn.Sequential(layer, nn.BatchNorm1d(4)), mean, items) > 1e-4
    assert torch.equal(before, layer.weight)
