"""Exercises of ``12_scaling_up``."""

from collections.abc import Iterator
from math import prod

import torch

from uss_utils.exercises import register


@register("cache_bytes")
def cache_bytes() -> Iterator:
    """``f(n, size, patch, dim)``: bytes of n images' features in half precision.

    ``size`` is (H, W) in pixels, a multiple of the patch.
    """
    yield (1, (8, 8), 8, 1), 2
    for n, size, patch, dim in ((3, (16, 24), 8, 5), (200, (128, 96), 16, 192)):
        grid = [side // patch for side in size]
        yield (n, size, patch, dim), 2 * n * dim * prod(grid)


@register("own_rows")
def own_rows() -> Iterator:
    """``f(n, process, processes)``: first row, and the one after the last.

    Processes count from 0. Consecutive shares that differ by at most one row; the first
    processes take the rows that are left over.
    """
    for n, processes in ((8, 2), (5, 2), (10, 4), (3, 3), (7, 1)):
        for process, own in enumerate(torch.arange(n).tensor_split(processes)):
            yield (n, process, processes), (int(own[0]), int(own[-1]) + 1)


@register("speedup")
def speedup() -> Iterator:
    """``f(share, processes)``: times as fast, where a share of the work is shared."""
    yield (1.0, 4), 4.0
    yield (0.0, 4), 1.0
    yield (0.5, 2), 1 / 0.75
    yield (0.9, 1000), 1 / (0.1 + 0.9 / 1000)
