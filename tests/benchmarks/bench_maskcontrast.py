"""MaskContrast: loss, prototypes, and whole training steps at stride 8."""

import torch
import torch.nn.functional as F
from torch import nn

from tests.benchmarks.__main__ import alone
from tests.benchmarks.cases import Case, Released
from tests.methods.test_maskcontrast_loss import plain_loss
from uss_utils.methods._maskcontrast_loss import (
    mask_contrastive_loss,
    object_prototypes,
)
from uss_utils.methods._maskcontrast_network import MaskContrast
from uss_utils.pixel_embedder import PixelEmbedder
from uss_utils.resnets import DilatedResNet

B, SIDE, D, K = 8, 224, 32, 128
ROWS = 67  # of 224 are object: 120 064 pixels


def inputs():
    draw = torch.Generator().manual_seed(0)
    query, key = (torch.randn(B, D, SIDE, SIDE, generator=draw) for _ in range(2))
    masks = torch.zeros(B, SIDE, SIDE, dtype=torch.int64)
    masks[:, :ROWS] = 1
    queue = F.normalize(torch.randn(D, K, generator=draw), dim=0)
    return query.requires_grad_(), key, masks, queue


def contrastive(closed_form: bool):
    query, key, masks, queue = inputs()
    prototypes = object_prototypes(key, masks)
    loss = mask_contrastive_loss if closed_form else plain_loss

    def step():
        query.grad = None
        loss(query, masks, prototypes, queue, 0.5).backward()

    return step


def prototypes():
    _, key, masks, _ = inputs()
    return lambda: object_prototypes(key, masks)


def step(kind: str):
    """Forward and backward of a batch of 16."""
    if kind == "features":
        parts, view = (nn.Identity(), 192), (192, 16, 16)
    else:
        parts, view = (DilatedResNet("resnet18"), 512), (3, 128, 128)
    embedder = PixelEmbedder(*parts, mid_channels=64, head="conv", upsample=False)
    model = MaskContrast(embedder, K).train()
    draw = torch.Generator().manual_seed(0)
    views = torch.randn(2, 16, *view, generator=draw)
    masks = torch.zeros(2, 16, 128, 128, dtype=torch.int64)
    masks[:, :, :40, :60], masks[:, :, 64:, :40] = 1, 2
    return lambda: model(*views, *masks)["loss"].backward()


SECTION = "maskcontrast, section 9"
SIZE = "B 8, 224 x 224, D 32, K 128"
CASES = (
    Case(
        *("loss, forward and backward", SIZE, contrastive, (True,)),
        target=0.45,
        memory_target=0.3,
        released=Released(SECTION, 0.72, 0.47),
    ),
    Case("the same by autograd", SIZE, contrastive, (False,), repeats=3),
    Case("prototypes", "B 8, 224 x 224, D 32", prototypes),
    Case("step on ViT features", "B 16, 16 x 16", step, ("features",), repeats=3),
    Case("step of ResNet-18", "B 16, 128 x 128", step, ("pixels",), repeats=3),
)

if __name__ == "__main__":
    raise SystemExit(alone("maskcontrast"))
