"""Exercises of ``01_datasets``."""

from collections.abc import Iterator

import numpy as np

from uss_utils.exercises import register


@register("remap")
def remap() -> Iterator:
    """``f(ids, table)``: ids to classes by lookup; an id beyond the table to -1."""
    table = np.full(34, -1)
    table[[7, 8, 26]] = [0, 0, 1]
    ids = np.array([[7, 8, 26], [33, 3, 7]], dtype=np.uint8)
    yield (ids, table), np.array([[0, 0, 1], [-1, -1, 0]])
    beyond = np.array([[7, 255, 26], [34, 8, 200]], dtype=np.uint8)
    yield (beyond, table), np.array([[0, -1, 1], [-1, 0, -1]])


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
    """``f(image, size)``: the central square of an (H, W, 3) image.

    The last case needs Python's rounding of halves: (7 - 4) / 2 begins at 2 and
    (9 - 4) / 2 at 2 too.
    """
    image = np.arange(6 * 8 * 3).reshape(6, 8, 3)
    yield (image, 4), image[1:5, 2:6]
    yield (image, 6), image[:, 1:7]
    odd = np.arange(7 * 9 * 3).reshape(7, 9, 3)
    yield (odd, 4), odd[2:6, 2:6]
