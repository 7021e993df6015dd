"""Frozen backbones by name: ``load("vit_tiny_scenes")``, DINO, DINOv2, any timm ViT.

Every backbone turns ``image (B,3,H,W)`` into ``feat (B,C,h,w)`` behind one interface
(:class:`~uss_utils.vit.Frozen`). Two controls that learn nothing, "colour" and "row",
stand behind the same interface, so that a comparison is one code path.
"""

import torch
from timm.models.vision_transformer import VisionTransformer


def tiny_vit(seed: int = 0) -> VisionTransformer:
    """The course's own small ViT, freshly initialised (1.9 million parameters).

    Patch 8, width 192, depth 4, 3 heads; position table for 128 x 128 images.

    Args:
        seed: seed of the initial weights; the global generators are left as found.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return VisionTransformer(
            img_size=128,
            patch_size=8,
            embed_dim=192,
            depth=4,
            num_heads=3,
            mlp_ratio=4,
            num_classes=0,
            dynamic_img_size=True,
        )
