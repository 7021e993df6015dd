"""Exercises of ``00_start_here``."""

from collections.abc import Iterator

import torch

from uss_utils.exercises import register


@register("count_patches")
def count_patches() -> Iterator:
    """``f(height, width, patch)``: how many patches the image has."""
    yield (128, 128, 8), 256
    yield (64, 512, 16), 128


@register("pixel_accuracy")
def pixel_accuracy() -> Iterator:
    """``f(pred, label)``: share of right pixels among those with label >= 0."""
    label = torch.tensor([[0, 1, 1], [-1, 2, 2]])
    yield (label, label), 1.0
    yield (torch.tensor([[0, 1, 0], [2, 2, 0]]), label), 0.6


@register("mask_iou")
def mask_iou() -> Iterator:
    """``f(pred, truth)``: overlap over union of two yes/no masks of one size."""
    truth = torch.tensor([[True, True, False], [True, True, False]])
    yield (truth, truth), 1.0
    yield (truth.roll(1, dims=1), truth), 2 / 6
    yield (~truth, truth), 0.0
