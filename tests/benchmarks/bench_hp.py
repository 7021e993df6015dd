"""HP on one thread: head and local mixing, and the contrastive loss.

Target figures are for B 4, 28 x 28 patches, C 384, D 512, M 2048; the released code
took 8.1 s and 1.9 GB, and 1.6 s and 0.97 GB.
"""

import multiprocessing

import torch
import torch.nn.functional as F

from tests.benchmarks.timing import Peak, cpu_seconds
from uss_utils.contrast import contrast
from uss_utils.heads import SegmentationHead
from uss_utils.local_attention import mix_local, neighbour_weights
from uss_utils.positives import HiddenPositives

SIDE, C, D, M, HEADS = 28, 384, 512, 2048, 6
N = SIDE * SIDE


def head_and_mixing(feat, logits, head):
    weights = neighbour_weights(logits, (SIDE, SIDE))
    mix_local(head(feat), weights).square().sum().backward()


def contrastive(z, z_mix, f, t, pools, uniform):
    z.grad = z_mix.grad = None
    pairs = HiddenPositives(f, t, pools, uniform, rho=0.02, lam=0.5, tau=0.8)
    contrast(torch.stack([z, z_mix]), pairs, 0.8).backward()


def unit(*shape):
    return F.normalize(torch.randn(*shape), dim=-1)


def mixing_figures() -> tuple[float, float]:
    """Seconds, and bytes of memory at the peak."""
    torch.set_num_threads(1)
    feat = torch.randn(4, C, SIDE, SIDE)
    logits = torch.randn(4, HEADS, N + 1, N + 1)
    head = SegmentationHead(C, D)
    with Peak() as peak:
        seconds = cpu_seconds(lambda: head_and_mixing(feat, logits, head), 3)
    return seconds, peak.top


def contrast_figures(batch: int) -> tuple[float, float]:
    """Seconds, and bytes added."""
    torch.set_num_threads(1)
    rows = batch * N
    z, z_mix = (unit(rows, D).requires_grad_() for _ in range(2))
    f, t, uniform = unit(rows, C), unit(rows, D), torch.rand(N, rows)
    pools = unit(M, C), unit(M, D)
    with Peak() as peak:
        seconds = cpu_seconds(lambda: contrastive(z, z_mix, f, t, pools, uniform), 3)
    return seconds, peak.added


def main() -> None:
    # A process of its own for each figure: freed memory of another one would hide.
    context = multiprocessing.get_context("spawn")
    with context.Pool(1, maxtasksperchild=1) as pool:
        seconds, peak = pool.apply(mixing_figures)
        print(
            f"head and local mixing, B 4: {seconds:.2f} s (target 0.35), "
            f"{peak / 1e9:.2f} GB in all (target 0.8)"
        )
        for batch, target in ((4, " (targets 1.3 s, 0.3 GB)"), (8, "")):
            seconds, added = pool.apply(contrast_figures, (batch,))
            print(
                f"contrastive loss, forward and backward, B {batch}: {seconds:.2f} s, "
                f"{added / 1e9:.2f} GB added{target}"
            )


if __name__ == "__main__":
    main()
