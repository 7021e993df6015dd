"""Exercises of ``02_dense_features``."""

from collections.abc import Iterator

import torch
from torch.nn.functional import normalize

from uss_utils.environment import generator
from uss_utils.exercises import register


@register("similarity_map")
def similarity_map() -> Iterator:
    """``f(feat, row, column)``: cosine of every patch of (C, h, w) to one patch."""
    feat = torch.randn(6, 3, 4, generator=generator(0))
    unit = normalize(feat, dim=0)
    yield (feat, 1, 2), torch.einsum("chw,c->hw", unit, unit[:, 1, 2])


@register("patch_of_pixel")
def patch_of_pixel() -> Iterator:
    """``f(y, x, patch)``: (row, column) of the patch that holds a pixel."""
    yield (0, 0, 8), (0, 0)
    yield (63, 64, 8), (7, 8)
    yield (100, 17, 16), (6, 1)


@register("variance_term")
def variance_term() -> Iterator:
    """``f(x)``: mean over dimensions of max(0, 1 - sd) for x (N, D), sd unbiased."""
    x = torch.randn(50, 4, generator=generator(0)) * torch.tensor([0.1, 0.5, 1, 3])
    yield (x,), (1 - x.std(dim=0)).clamp(min=0).mean()
    yield (torch.ones(8, 3),), 1.0
