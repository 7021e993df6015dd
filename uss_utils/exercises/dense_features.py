"""Exercises of ``02_dense_features``."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.nn.functional import normalize

from uss_utils.environment import generator
from uss_utils.exercises import register


@register("similarity_map")
def similarity_map() -> Iterator:
    """``f(feat, row, column)``: cosine of every patch of (C, h, w) to one patch."""
    toy = torch.tensor([[[3.0, 2.0]], [[0.0, 2.0]]])
    yield (toy, 0, 0), [[1.0, 0.5**0.5]]
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
    """``f(x)``: mean over the columns of x (P, D) of max(0, 1 - standard deviation).

    With P or P - 1 under the root, and with or without the package's 1e-4: all count
    as right. In the second case nothing varies; in the third one column is satisfied.
    """
    scale = torch.tensor([0.1, 0.5, 1, 3])
    x = torch.randn(200, 4, generator=generator(0)) * scale + 2
    yield (x,), _about((1 - x.std(dim=0)).clamp(min=0).mean())
    yield (torch.ones(8, 3),), _about(1.0)
    yield (torch.tensor([[0.5, 9.0], [-0.5, -9.0]] * 50),), _about(0.25)


def _about(expected: float) -> Callable[[Any], str]:
    def complaint(got: Any) -> str:
        try:
            close = abs(float(got) - float(expected)) < 0.011
        except (TypeError, ValueError):
            return f"got {got!r}, expected one number"
        return "" if close else f"got {float(got):.3f}, expected {float(expected):.3f}"

    return complaint
