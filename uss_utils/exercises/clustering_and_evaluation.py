"""Exercises of ``03_clustering_and_evaluation``."""

from collections.abc import Iterator

import torch

from uss_utils.environment import generator
from uss_utils.exercises import register


@register("iou")
def iou() -> Iterator:
    """``f(matrix)``: IoU per class of a (K, K) confusion, rows predicted.

    A class that neither occurs nor is predicted has none: NaN.
    """
    yield (torch.eye(3, dtype=torch.int64) * 7,), torch.ones(3)
    yield (torch.tensor([[6, 2], [0, 4]]),), torch.tensor([6 / 8, 4 / 6])
    absent = torch.tensor([[6, 0, 2], [0, 0, 0], [0, 0, 4]])
    yield (absent,), torch.tensor([6 / 8, torch.nan, 4 / 6])


@register("match")
def match() -> Iterator:
    """``f(matrix)``: for each cluster (row) its class, one to one, most pixels right.

    The second case is one where taking the best free class row by row loses.
    """
    yield (torch.tensor([[1, 9, 0], [8, 0, 1], [0, 2, 7]]),), [1, 0, 2]
    yield (torch.tensor([[10, 9, 0], [9, 0, 0], [0, 1, 3]]),), [1, 0, 2]


@register("centroids")
def centroids() -> Iterator:
    """``f(x, assignment, k)``: unit-length mean of each cluster's unit vectors."""
    corner = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
    half = 0.5**0.5
    yield (corner, torch.tensor([1, 1, 0]), 2), [[0.0, 1.0], [half, half]]
    x = torch.randn(12, 3, generator=generator(0))
    x = x / x.norm(dim=1, keepdim=True)
    assignment = torch.arange(12) % 3
    means = torch.stack([x[assignment == i].mean(dim=0) for i in range(3)])
    yield (x, assignment, 3), means / means.norm(dim=1, keepdim=True)


@register("majority")
def majority() -> Iterator:
    """``f(matrix)``: for each of more clusters than classes its commonest class."""
    yield (torch.tensor([[1, 9], [8, 0], [3, 2], [0, 4]]),), [1, 0, 0, 1]
