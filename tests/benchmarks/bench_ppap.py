"""PPAP on one thread: sets and loss of one chunk, probes at evaluation, a whole step.

Target figures are for N 12 544, C 384, 196 anchors, T 2 (one chunk); the released code
took 7.2 s and 4.1 GB.
"""

import multiprocessing

import torch
import torch.nn.functional as F

from tests.benchmarks.timing import Peak, cpu_seconds
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


def loss_figures(steps: int, backward: bool) -> tuple[float, float]:
    """Seconds, and bytes above the inputs."""
    torch.set_num_threads(1)
    ref = blobs(N, C, 0).reshape(-1, SIDE, SIDE, C).movedim(3, 1).contiguous()
    z = blobs(N, C, 1).requires_grad_(backward)
    anchors = ppap.sample_anchors(N, 784, ANCHORS, generator(2))[:1]
    loss = ppap.PPAPLoss(0.55, 0.15, 3, 4, steps, 0.8)

    def run():
        found, _ = loss(z, ref, anchors, generator=generator(3))
        if backward:
            found.backward()

    run()  # what the libraries keep for themselves is no part of it
    with Peak() as peak:
        run()
    return cpu_seconds(run, 5), peak.added


def probe_seconds() -> float:
    """Both probes of two images, 40 x 40 patches to 320 x 320 pixels, 27 classes."""
    torch.set_num_threads(1)
    code = torch.randn(2, C, 40, 40, generator=generator(0))
    cluster, linear = ClusterProbe(C, 27), LinearProbe(C, 27)

    @torch.no_grad()
    def run():
        cluster_log_probs_upsampled(cluster, code, (320, 320))
        linear_log_probs_upsampled(linear, code, (320, 320))

    return cpu_seconds(run, 5)


def step_seconds() -> float:
    """A training step of the scenes preset from cached tokens, optimisers included."""
    torch.set_num_threads(1)
    cfg = ppap.Config.preset("scenes", n_train=16)
    material = ppap.prepare(cfg)
    trainer = ppap.build(cfg, material)
    batch = material.source.batch(range(16))
    optimisers = trainer.optimisers().values()

    def run():
        losses = trainer.step(batch["input"], batch["label"], generator(0))
        losses["loss"].backward()
        for optimiser in optimisers:
            optimiser.step()
            optimiser.zero_grad()

    return cpu_seconds(run, 3)


def main() -> None:
    # A process of its own for each figure: freed memory of another one would hide.
    context = multiprocessing.get_context("spawn")
    with context.Pool(1, maxtasksperchild=1) as pool:
        for steps in (1, 2, 3):
            seconds, added = pool.apply(loss_figures, (steps, False))
            aim = " (targets 0.20 s, 0.3 GB)" if steps == 2 else ""
            print(
                f"propagation and loss forward, T {steps}: {seconds:.3f} s, "
                f"{added / 1e9:.2f} GB above the inputs{aim}"
            )
        seconds, added = pool.apply(loss_figures, (2, True))
        print(f"forward and backward, T 2: {seconds:.3f} s, {added / 1e9:.2f} GB")
        print(f"probes of 2 images: {pool.apply(probe_seconds):.3f} s (target 0.1)")
        print(f"step of the scenes preset: {pool.apply(step_seconds):.3f} s")


if __name__ == "__main__":
    main()
