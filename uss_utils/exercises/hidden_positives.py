"""Exercises of ``05_hidden_positives``."""

from collections.abc import Iterator

import torch

from uss_utils.environment import generator
from uss_utils.exercises import register
from uss_utils.local_attention import WINDOW


@register("positives")
def positives() -> Iterator:
    """``f(cosine, limit)``: pairs whose cosine beats the limit of either."""
    draw = generator(0)
    for n in (4, 9):
        cosine = torch.rand(n, n, generator=draw) * 2 - 1
        cosine = (cosine + cosine.T) / 2
        limit = torch.rand(n, generator=draw) - 0.3
        either = (cosine > limit[:, None]) | (cosine > limit[None])
        either.fill_diagonal_(False)
        yield (cosine, limit), either


@register("chance")
def chance() -> Iterator:
    """``f(M)``: how often one value exceeds M others drawn like it."""
    for m in (1, 31, 63, 2048):
        yield (m,), 1 / (m + 1)


@register("handed_on")
def handed_on() -> Iterator:
    """``f(code, weights, row, column)``: gradient of one mixed patch."""
    draw, (h, w) = generator(0), (4, 5)
    for row, column, cells in ((1, 2, 9), (0, 2, 6), (3, 4, 4)):
        code = torch.randn(1, 3, h, w, generator=draw)
        weights = torch.rand(1, h * w, WINDOW, generator=draw)
        expected = torch.zeros(h, w)
        for k in range(WINDOW):
            y, x = row + k // 3 - 1, column + k % 3 - 1
            if 0 <= y < h and 0 <= x < w:
                expected[y, x] = weights[0, row * w + column, k] / cells
        yield (code, weights, row, column), expected
