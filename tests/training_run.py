"""A small run that uses everything `fit` keeps, for tests that kill it.

As a script: ``python -m tests.training_run CHECKPOINT MOMENT WHERE PREFETCH`` starts
the run and sends itself SIGKILL at that moment.
"""

import os
import random
import signal
import sys
from pathlib import Path

import numpy as np
import torch
from torch import nn

from uss_utils import ranks
from uss_utils.environment import generator
from uss_utils.training import EMA, History, cosine_ramp, cosine_schedule, fit

STEPS = 20
EVERY = 5


class Pairs:
    """Random inputs (n, 6), and targets (n, 2) that are two of them with some noise."""

    def __init__(self, n=40):
        self.x = torch.randn(n, 6, generator=generator(1))
        noise = torch.randn(n, 2, generator=generator(2))
        self.y = self.x[:, :2] + 0.3 * noise

    def __len__(self):
        return len(self.x)

    def batch(self, indices):
        return self.x[indices], self.y[indices]


class Net(nn.Module):
    """Dropout and batch norm have state; the teacher changes in a hook."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.Dropout(0.3))
        self.head = nn.Linear(16, 2)
        self.teacher = nn.Linear(16, 2).requires_grad_(False)

    def forward(self, x):
        return self.head(self.body(x))


def loss_fn(model, batch, step):
    """Draws from every generator that a method could draw from."""
    x, y = batch
    x = x + 0.1 * torch.randn(x.shape, generator=step.generator)
    x = x * (1 + 0.1 * random.random()) + 0.1 * np.random.rand()  # noqa: NPY002
    code = model.body(x)
    fit_term = (model.head(code) - y).square().mean()
    pull = (model.head(code) - model.teacher(code)).square().mean()
    return {"loss": fit_term + 0.1 * pull, "fit": fit_term, "pull": pull, "n": len(x)}


def update_teacher(index, model, row):
    """A hook with state inside the model and a figure of its own."""
    model.teacher.weight.lerp_(model.head.weight.detach(), 0.2)
    if index % 7 == 6:
        row["teacher"] = model.teacher.weight.norm()


def run(checkpoint=None, *, on_step=update_teacher, loss=loss_fn, **changes):
    """Train from fixed initial weights; returns (model, averaged module, history)."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = Net()
    ema = EMA(model, cosine_ramp(0.8))
    arguments = {
        "steps": STEPS,
        "batch_size": 12,
        "optimisers": {
            "body": torch.optim.AdamW(model.body.parameters(), lr=1e-2),
            "head": torch.optim.SGD(model.head.parameters(), lr=1e-2, momentum=0.9),
        },
        "schedule": {"body": cosine_schedule(warmup=3)},
        "ema": ema,
        "clip_norm": {"body": 1.0},
        "seed": 5,
        "device": "cpu",
        "checkpoint": checkpoint,
        "checkpoint_every": EVERY,
        "log_every": 3,
        "progress": None,
    }
    history: History = fit(model, loss, Pairs(), on_step=on_step, **arguments | changes)
    return model, ema.module, history


def linear_run(**changes):
    """Least squares without any randomness; returns (model, history)."""
    model = nn.Linear(6, 2)
    nn.init.zeros_(model.weight)
    nn.init.zeros_(model.bias)

    def loss(model, batch, step):
        x, y = batch
        return {"loss": (model(x) - y).square().mean()}

    arguments = {
        "loss_fn": loss,
        "data": Pairs(),
        "steps": 10,
        "batch_size": 8,
        "optimisers": torch.optim.SGD(model.parameters(), lr=0.1),
        "device": "cpu",
        "log_every": 1,
        "progress": None,
    } | changes
    loss, data = arguments.pop("loss_fn"), arguments.pop("data")
    return model, fit(model, loss, data, **arguments)


class SharedPairs(Pairs):
    """Of a batch, this process's rows."""

    def batch(self, indices):
        return super().batch(indices[ranks.share(len(indices))])


def shared_run(stop=10, **changes):
    """As :func:`linear_run`, shared by processes, interrupted after ``stop`` steps."""

    def loss(model, batch, step):
        x, y = batch
        total = (model(x) - y).square().sum()
        return {"loss": total * ranks.world_size() / (2 * len(step.indices))}

    hook = stop_at(stop) if stop < 10 else None
    options = {"loss_fn": loss, "data": SharedPairs(), "batch_size": 9}
    try:
        return linear_run(**options, on_step=hook, checkpoint_every=1, **changes)
    except KeyboardInterrupt:
        return None


def stop_at(step):
    """A hook that interrupts the run after some steps, once they are saved."""

    def hook(index, model, row):
        if index == step:
            raise KeyboardInterrupt

    return hook


def die():
    """No handler, no clean-up: what a power cut or the out-of-memory killer does."""
    os.kill(os.getpid(), signal.SIGKILL)


def main(checkpoint, moment, where, prefetch):
    """Run until step or write number ``moment``, then die there."""
    torch.set_num_threads(1)
    moment = int(moment)
    write = Path.write_bytes
    writes = []

    def loss(model, batch, step):
        if where == "forward" and step.index == moment:
            die()
        return loss_fn(model, batch, step)

    def hook(index, model, row):
        update_teacher(index, model, row)
        if where == "hook" and index == moment:
            die()

    def write_half(path, content):
        writes.append(path)
        if where == "write" and len(writes) == moment:
            write(path, content[: len(content) // 2])
            die()
        return write(path, content)

    Path.write_bytes = write_half
    run(checkpoint, loss=loss, on_step=hook, prefetch=int(prefetch))


if __name__ == "__main__":
    main(*sys.argv[1:])
