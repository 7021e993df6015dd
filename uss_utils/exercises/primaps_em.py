"""Exercises of ``07_primaps_em``."""

import math
from collections.abc import Iterator

import torch

from uss_utils.environment import generator
from uss_utils.exercises import register


@register("own_probability")
def own_probability() -> Iterator:
    """``f(k, gain)``: probability of a pixel's own label, of ``k`` masks."""
    for k, gain in ((9, 1.0), (9, 5.0), (1, 1.0), (254, 1.0)):
        yield (k, gain), math.exp(gain) / (math.exp(gain) + k)


@register("vote")
def vote() -> Iterator:
    """``f(classes, masks, k)``: the commonest class of every pixel's mask."""
    draw = generator(0)
    for shape, k, most in (((4, 4), 3, 3), ((9, 7), 5, 6)):
        classes = torch.randint(k, shape, generator=draw)
        masks = torch.randint(1, most + 1, shape, generator=draw)
        masks[0, 0] = 255
        expected = torch.full_like(classes, 255)
        for mask in masks.unique():
            if mask != 255:
                inside = masks == mask
                expected[inside] = classes[inside].bincount(minlength=k).argmax()
        yield (classes, masks, k), expected


@register("snapshot_weights")
def snapshot_weights() -> Iterator:
    """``f(n)``: weight of each of ``n`` snapshots in the slow prototypes."""
    for n in (2, 5, 50, 80):
        weights = torch.zeros(n)
        for call in range(1, n + 1):
            decay = 0.0 if call <= 2 else min(1 - 1 / call, 0.98)
            weights *= decay
            weights[call - 1] += 1 - decay
        yield (n,), weights
