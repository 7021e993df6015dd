"""Exercises of ``04_stego``."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from uss_utils.environment import generator
from uss_utils.exercises import register


@register("silent_share")
def silent_share() -> Iterator:
    """``f(feat_corr, code_corr, shift)``: share of pairs without any gradient.

    The clamped pair loss is flat exactly where the codes' correlation is negative.
    """
    draw = generator(0)
    for lift in (0.0, 0.3):
        feats, codes = torch.rand(2, 6, 40, generator=draw) * 2 - 1
        codes = (codes + lift).clamp(-1, 1)
        yield (feats, codes, 0.1), (codes < 0).float().mean()
    yield (feats, -codes.abs() - 0.1, 0.1), 1.0


@register("shift_for")
def shift_for() -> Iterator:
    """``f(feat_corr, share)``: the b above which a share of all entries lies."""
    values = torch.randn(7, 11, generator=generator(0))
    for share in (0.25, 0.6, 0.1):
        yield (values, share), _parts(values, share)


def _parts(values: Tensor, share: float) -> Callable[[Any], str]:
    def complaint(got: Any) -> str:
        try:
            above = float((values > float(got)).float().mean())
        except (TypeError, ValueError):
            return f"got {got!r}, expected one number"
        if abs(above - share) <= 1 / values.numel() + 1e-6:
            return ""
        return f"{above:.0%} of the entries lie above {float(got):.3f}, not {share:.0%}"

    return complaint


@register("three_gaps")
def three_gaps() -> Iterator:
    """``f(code, weight, centroids, size)``: what enlarging before or after changes.

    The largest difference of the linear scores, the share of pixels whose cluster
    differs, the largest difference of the soft probabilities from enlarged cosines.
    """
    draw = generator(0)
    for channels, clusters, grid in ((5, 3, (4, 4)), (8, 4, (3, 6))):
        code = torch.randn(2, channels, *grid, generator=draw)
        weight = torch.randn(clusters, channels, generator=draw)
        centroids = torch.randn(clusters, channels, generator=draw)
        size = (6 * grid[0], 6 * grid[1])
        gap = _soft_gap(code, F.normalize(centroids, dim=1), size)
        yield (code, weight, centroids, size), (0.0, 0.0, gap)


def _soft_gap(code: Tensor, centroids: Tensor, size: tuple[int, int]) -> float:
    """Largest difference of softmax(2 z) of enlarged code and of enlarged cosines."""

    def enlarge(x: Tensor) -> Tensor:
        return F.interpolate(x, size, mode="bilinear")

    def cosines(x: Tensor) -> Tensor:
        return torch.einsum("bdhw,kd->bkhw", F.normalize(x, dim=1), centroids)

    right, cheap = cosines(enlarge(code)), enlarge(cosines(code))
    return float(((2 * right).softmax(1) - (2 * cheap).softmax(1)).abs().max())
