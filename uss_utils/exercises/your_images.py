"""Exercises of ``11_your_images``."""

import math
from collections.abc import Iterator

import torch

from uss_utils.environment import generator
from uss_utils.exercises import register


@register("usage_entropy")
def usage_entropy() -> Iterator:
    """``f(share)``: evenness of K shares, 1 where all are alike, 0 where one is all."""
    yield (torch.full((5,), 0.2),), 1.0
    yield (torch.tensor([0.0, 1.0, 0.0]),), 0.0
    yield (torch.tensor([0.5, 0.5, 0.0, 0.0]),), 0.5
    share = torch.tensor([0.6, 0.3, 0.1])
    entropy = -sum(p * math.log(p) for p in share.tolist()) / math.log(3)
    yield (share,), entropy


@register("rand_index")
def rand_index() -> Iterator:
    """``f(a, b)``: share of pairs of places on which two clusterings agree.

    A pair counts if both put it together or both put it apart; names play no part.
    """
    a = torch.tensor([0, 0, 1, 1])
    yield (a, 1 - a), 1.0
    # Together: pair (0, 1) in both; apart in both: (0, 3) and (1, 3).
    yield (a, torch.tensor([0, 0, 0, 1])), 0.5
    yield (torch.zeros(6, dtype=torch.int64), torch.arange(6)), 0.0
    draw = generator(0)
    first, second = (torch.randint(8, (300,), generator=draw) for _ in range(2))
    yield (first, second), _rand(first, second)


def _rand(a: torch.Tensor, b: torch.Tensor) -> float:
    """Pair by pair."""
    i, j = torch.triu_indices(len(a), len(a), offset=1)
    return float(((a[i] == a[j]) == (b[i] == b[j])).double().mean())
