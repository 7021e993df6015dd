"""What the training loop adds to a bare one, and a checkpoint costs."""

import tempfile
import time
from pathlib import Path

import torch
from torch import nn

from tests.benchmarks.__main__ import alone
from tests.benchmarks.cases import Case
from uss_utils.backbones import tiny_vit
from uss_utils.training import cosine_schedule, fit

STEPS = 1000
ROUNDS = 5


class Data:
    """A thousand vectors in memory."""

    def __init__(self):
        self.x = torch.randn(1000, 64)

    def __len__(self):
        return len(self.x)

    def batch(self, indices):
        return self.x[indices]


def loss_fn(model, batch, step):
    """A loss and one logged term, as any method has."""
    loss = model(batch).square().mean()
    return {"loss": loss, "term": loss.detach()}


def small():
    """A model whose own step takes a fraction of a millisecond."""
    model = nn.Sequential(nn.Linear(64, 64), nn.GELU(), nn.Linear(64, 8))
    return model, torch.optim.AdamW(model.parameters(), lr=1e-3)


def bare(data, clip_norm=None, precision="no"):
    """Processor seconds of a loop that does the same work and nothing else."""
    model, optimiser = small()
    half = torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16")
    begun = time.process_time()
    for _ in range(STEPS):
        batch = data.batch(torch.randint(1000, (32,)))
        with half:
            loss = loss_fn(model, batch, None)["loss"]
        optimiser.zero_grad()
        loss.backward()
        if clip_norm is not None:
            nn.utils.clip_grad_norm_(model.parameters(), clip_norm)
        optimiser.step()
    return time.process_time() - begun


def ours(data, **extras):
    """Processor seconds of `fit`, its start included."""
    model, optimiser = small()
    begun = time.process_time()
    fit(
        model,
        loss_fn,
        data,
        steps=STEPS,
        batch_size=32,
        optimisers=optimiser,
        schedule=cosine_schedule(0.1),
        device="cpu",
        progress=None,
        **extras,
    )
    return time.process_time() - begun


def added(extras: dict) -> float:
    """Seconds per step.

    Both loops in turns, and the best of each: other work on the machine hits both
    alike.
    """
    data = Data()
    pairs = [(bare(data, **extras), ours(data, **extras)) for _ in range(ROUNDS)]
    one, other = (min(column) for column in zip(*pairs, strict=True))
    return (other - one) / STEPS


def checkpoint() -> float:
    """Seconds by the clock of writing the tiny ViT with AdamW."""
    path = Path(tempfile.mkdtemp()) / "last.safetensors"
    model = tiny_vit()
    took = []

    def hook(index, model, row):
        took.append(time.perf_counter())

    fit(
        model,
        lambda m, b, s: {"loss": sum(p.sum() for p in m.parameters())},
        Data(),
        steps=6,
        batch_size=32,
        optimisers=torch.optim.AdamW(model.parameters()),
        device="cpu",
        progress=None,
        checkpoint=path,
        checkpoint_every=2,
        on_step=hook,
    )
    # A checkpoint follows steps 1 and 3; the other gaps are plain steps.
    gaps = [b - a for a, b in zip(took, took[1:], strict=False)]
    return min(gaps[1], gaps[3]) - min(gaps[0], gaps[2])


LOOP = "a step's cost over a bare loop"
CASES = (
    Case(LOOP, "plain", added, ({},), target=3e-4),
    Case(LOOP, "clipping", added, ({"clip_norm": 1.0},), target=3e-4),
    Case(LOOP, "bf16", added, ({"precision": "bf16"},), target=3e-4),
    Case("checkpoint, by the clock", "tiny ViT, AdamW", checkpoint, target=0.3),
)

if __name__ == "__main__":
    raise SystemExit(alone("training"))
