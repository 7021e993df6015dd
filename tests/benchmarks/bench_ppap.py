"""PPAP: sets and loss of one chunk, probes at evaluation, a whole step."""

import torch
import torch.nn.functional as F

from tests.benchmarks.__main__ import alone
from tests.benchmarks.cases import Case, Released
from uss_utils.environment import generator
from uss_utils.methods import ppap
from uss_utils.probes import (
    ClusterProbe,
    LinearProbe,
    cluster_log_probs_upsampled,
    linear_log_probs_upsampled,
)

N, C, ANCHORS, SIDE = 12_544, 384, 196, 14


def blobs(n: int, dim: int, seed: int) -> torch.Tensor:
    """Unit rows around a few directions, as features are."""
    draw = generator(seed)
    centres = F.normalize(torch.randn(20, dim, generator=draw), dim=1)
    own = centres[torch.randint(20, (n,), generator=draw)]
    return F.normalize(own + 0.04 * torch.randn(n, dim, generator=draw), dim=1)


def loss(steps: int, backward: bool):
    """Propagation and loss of one chunk."""
    ref = blobs(N, C, 0).reshape(-1, SIDE, SIDE, C).movedim(3, 1).contiguous()
    z = blobs(N, C, 1).requires_grad_(backward)
    anchors = ppap.sample_anchors(N, 784, ANCHORS, generator(2))[:1]
    loss = ppap.PPAPLoss(0.55, 0.15, 3, 4, steps, 0.8)

    def work():
        z.grad = None
        found, _ = loss(z, ref, anchors, generator=generator(3))
        if backward:
            found.backward()

    return work


def probes():
    """Both, 40 x 40 patches to 320 x 320 pixels."""
    code = torch.randn(2, C, 40, 40, generator=generator(0))
    cluster, linear = ClusterProbe(C, 27), LinearProbe(C, 27)

    @torch.no_grad()
    def work():
        cluster_log_probs_upsampled(cluster, code, (320, 320))
        linear_log_probs_upsampled(linear, code, (320, 320))

    return work


def step():
    """A training step of the scenes preset from cached tokens, optimisers included."""
    cfg = ppap.Config.preset("scenes", n_train=16)
    material = ppap.prepare(cfg)
    trainer = ppap.build(cfg, material)
    batch = material.source.batch(range(16))
    optimisers = trainer.optimisers().values()

    def work():
        losses = trainer.step(batch["input"], batch["label"], generator(0))
        losses["loss"].backward()
        for optimiser in optimisers:
            optimiser.step()
            optimiser.zero_grad()

    return work


SECTION = "ppap, section 10"
SIZE = "N 12 544, C 384, 196 anchors"
FORWARD = "propagation and loss forward"
CASES = (
    Case(
        *(f"{FORWARD}, T 1", SIZE, loss, (1, False)),
        released=Released(SECTION, 2.7),
    ),
    Case(
        *(f"{FORWARD}, T 2", SIZE, loss, (2, False)),
        target=0.20,
        memory_target=0.3,
        released=Released(SECTION, 7.2, 4.1),
    ),
    Case(
        *(f"{FORWARD}, T 3", SIZE, loss, (3, False)),
        released=Released(SECTION, 9.9),
    ),
    Case("forward and backward, T 2", SIZE, loss, (2, True)),
    Case(
        *("probes at evaluation", "2 images 320 x 320, C 384, 27 classes", probes),
        target=0.1,
        released=Released(SECTION, 1.14, 1.0),
    ),
    Case("step of the scenes preset", "B 16, 16 x 16, C 192", step, repeats=3),
)

if __name__ == "__main__":
    raise SystemExit(alone("ppap"))
