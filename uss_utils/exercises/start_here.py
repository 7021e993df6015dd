"""Exercise of ``00_start_here``."""

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
