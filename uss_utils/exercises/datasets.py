"""Exercises of ``01_datasets``."""

from collections.abc import Iterator

import numpy as np

from uss_utils.exercises import register


@register("remap")
def remap() -> Iterator:
    """``f(ids, table)``: ids 0..255 to classes by lookup; 255 and unknown to -1."""
    table = np.full(256, -1)
    table[[7, 8, 26]] = [0, 0, 1]
    ids = np.array([[7, 8, 26], [255, 3, 7]], dtype=np.uint8)
    yield (ids, table), np.array([[0, 0, 1], [-1, -1, 0]])


@register("colour_in")
def colour_in() -> Iterator:
    """``f(label, palette)``: (H, W) classes to (H, W, 3) colours; -1 to grey 128."""
    palette = np.array([[255, 0, 0], [0, 0, 255]], dtype=np.uint8)
    label = np.array([[0, 1], [1, -1]])
    grey = [128, 128, 128]
    picture = [[[255, 0, 0], [0, 0, 255]], [[0, 0, 255], grey]]
    yield (label, palette), np.array(picture)


@register("centre_crop")
def centre_crop() -> Iterator:
    """``f(image, size)``: the central square of an (H, W, 3) image."""
    image = np.arange(6 * 8 * 3).reshape(6, 8, 3)
    yield (image, 4), image[1:5, 2:6]
    yield (image, 6), image[:, 1:7]
