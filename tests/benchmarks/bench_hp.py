"""HP: head and local mixing, and the contrastive loss, forward and backward.

Memory must grow with the rows of one anchor image, not with their square over the
batch: hence two batches.
"""

import torch
import torch.nn.functional as F

from tests.benchmarks.__main__ import alone
from tests.benchmarks.cases import Case, Released
from uss_utils.contrast import contrast
from uss_utils.heads import SegmentationHead
from uss_utils.local_attention import mix_local, neighbour_weights
from uss_utils.positives import HiddenPositives

SIDE, C, D, M, HEADS = 28, 384, 512, 2048, 6
N = SIDE * SIDE


def head_and_mixing():
    feat = torch.randn(4, C, SIDE, SIDE)
    logits = torch.randn(4, HEADS, N + 1, N + 1)
    head = SegmentationHead(C, D)

    def work():
        weights = neighbour_weights(logits, (SIDE, SIDE))
        mix_local(head(feat), weights).square().sum().backward()

    return work


def unit(*shape):
    return F.normalize(torch.randn(*shape), dim=-1)


def contrastive(batch: int):
    rows = batch * N
    z, z_mix = (unit(rows, D).requires_grad_() for _ in range(2))
    f, t, uniform = unit(rows, C), unit(rows, D), torch.rand(N, rows)
    pools = unit(M, C), unit(M, D)

    def work():
        z.grad = z_mix.grad = None
        pairs = HiddenPositives(f, t, pools, uniform, rho=0.02, lam=0.5, tau=0.8)
        contrast(torch.stack([z, z_mix]), pairs, 0.8).backward()

    return work


SECTION = "hp, section 11"
CASES = (
    Case(
        *("head and local mixing", "B 4, 28 x 28, C 384, D 512", head_and_mixing),
        repeats=3,
        memory="in all",
        target=0.35,
        memory_target=0.8,
        released=Released(SECTION, 8.13, 1.9),
    ),
    Case(
        *("contrastive loss", "B 4, 28 x 28, D 512, M 2048", contrastive, (4,)),
        repeats=3,
        target=1.3,
        memory_target=0.3,
        released=Released(SECTION, 1.60, 0.97),
    ),
    Case(
        *("contrastive loss", "B 8, 28 x 28, D 512, M 2048", contrastive, (8,)),
        repeats=3,
    ),
)

if __name__ == "__main__":
    raise SystemExit(alone("hp"))
