"""MaskContrast on one thread: loss, prototypes, and whole training steps at stride 8.

Target figures are for the loss, forward and backward, at B 8, 224 x 224, D 32, K 128
and 120 000 object pixels; the released code took 0.72 s and 0.47 GB.
"""

import multiprocessing

import torch
import torch.nn.functional as F
from torch import nn

from tests.benchmarks.timing import Peak, cpu_seconds
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


def figures(closed_form: bool) -> tuple[float, float]:
    """Seconds, and bytes added."""
    torch.set_num_threads(1)
    query, key, masks, queue = inputs()
    prototypes = object_prototypes(key, masks)
    loss = mask_contrastive_loss if closed_form else plain_loss

    def step():
        query.grad = None
        loss(query, masks, prototypes, queue, 0.5).backward()

    with Peak() as peak:
        seconds = cpu_seconds(step, 5)
    return seconds, peak.added


def prototype_figures() -> tuple[float, float]:
    """Seconds, and bytes added."""
    torch.set_num_threads(1)
    _, key, masks, _ = inputs()
    with Peak() as peak:
        seconds = cpu_seconds(lambda: object_prototypes(key, masks), 5)
    return seconds, peak.added


def step_figures(kind: str) -> tuple[float, float]:
    """Seconds, and bytes added, of a step on a batch of 16."""
    torch.set_num_threads(1)
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

    def step():
        model(*views, *masks)["loss"].backward()

    with Peak() as peak:
        seconds = cpu_seconds(step, 5)
    return seconds, peak.added


def main() -> None:
    # A process of its own for each figure: freed memory of another one would hide.
    context = multiprocessing.get_context("spawn")
    with context.Pool(1, maxtasksperchild=1) as pool:
        for name, work, arguments, target in (
            ("loss", figures, (True,), " (targets 0.45 s, 0.3 GB)"),
            ("loss by autograd", figures, (False,), ""),
            ("prototypes", prototype_figures, (), ""),
            ("step on ViT features, B 16", step_figures, ("features",), ""),
            ("step of ResNet-18, B 16, 128 px", step_figures, ("pixels",), ""),
        ):
            seconds, added = pool.apply(work, arguments)
            print(f"{name}: {seconds:.3f} s, {added / 1e9:.2f} GB added{target}")


if __name__ == "__main__":
    main()
