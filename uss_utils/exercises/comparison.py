"""Exercises of ``10_comparison``."""

from collections.abc import Iterator
from itertools import permutations

import torch
from torch import Tensor

from uss_utils.environment import generator
from uss_utils.exercises import register


@register("win_share")
def win_share() -> Iterator:
    """``f(a, b)``: share of all pairs of seeds in which a beats b; ties count half.

    Neither the order of the seeds matters nor their number.
    """
    yield ([3.0, 4.0], [1.0, 2.0]), 1.0
    yield ([1.0, 4.0], [2.0, 3.0, 5.0]), 2 / 6
    yield ([2.0, 2.0], [2.0]), 0.5
    yield ([1.0, 2.0, 3.0], [1.0, 2.0, 3.0]), 0.5


@register("habit_gain")
def habit_gain() -> Iterator:
    """``f(train, val)``: points of accuracy that naming by the scored labels adds.

    Both are (K, K) counts, clusters in rows, classes in columns. In the first case the
    names agree, in the second the best names of the training images are wrong.
    """
    same = torch.tensor([[8, 1], [1, 10]])
    yield (same, same), 0.0
    yield (torch.tensor([[6, 4], [0, 5]]), torch.tensor([[2, 8], [6, 4]])), 40.0
    draw = generator(0)
    for _ in range(2):
        train, val = torch.randint(0, 50, (2, 4, 4), generator=draw)
        yield (train, val), _accuracy(val, _names(val)) - _accuracy(val, _names(train))


def _names(counts: Tensor) -> tuple[int, ...]:
    """The best one-to-one names by trying all."""
    return max(permutations(range(len(counts))), key=lambda n: _accuracy(counts, n))


def _accuracy(counts: Tensor, names: tuple[int, ...]) -> float:
    right = sum(int(counts[cluster, name]) for cluster, name in enumerate(names))
    return 100 * right / int(counts.sum())
