"""Which images of a set look alike: one descriptor per image, ranked by cosine."""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from uss_utils.rows import check_finite

# Images compared with others at a time: such a block stays in a CPU's cache.
ROWS, COLUMNS = 512, 8192


def global_descriptors(feat: Tensor) -> Tensor:
    """One unit vector per image: the direction of its mean feature.

    Args:
        feat: shape (N, C, h, w).

    Returns:
        Unit vectors, shape (N, C).
    """
    return F.normalize(feat.flatten(2).mean(2), dim=1)


def nearest(descriptors: Tensor, k: int, chunk: int = ROWS) -> tuple[Tensor, Tensor]:
    """The k most similar images of every image, itself first.

    Args:
        descriptors: unit vectors, shape (N, C).
        k: list length, 1..N; STEGO draws its partners from ranks 1..7, so k = 8.
        chunk: images whose lists are made at a time.

    Returns:
        indices, int64 (N, k), column 0 = the image itself; and their cosines (N, k).

    Raises:
        ValueError: ``k`` outside 1..N, wrong shape, or NaN.
    """
    parts = list(nearest_batches(descriptors, k, chunk=chunk))
    indices, cosines = zip(*parts, strict=True)
    return torch.cat(indices), torch.cat(cosines)


def nearest_batches(
    descriptors: Tensor, k: int, *, start: int = 0, chunk: int = ROWS
) -> Iterator[tuple[Tensor, Tensor]]:
    """The lists of :func:`nearest`, some images at a time.

    ``chunk`` images are compared with :data:`COLUMNS` others at a time, so that memory
    beside the descriptors does not grow with N. ``start`` skips the first images.
    """
    if descriptors.ndim != 2:
        raise ValueError(
            f"descriptors must have shape (N, C), got {tuple(descriptors.shape)}"
        )
    check_length(k, len(descriptors))
    check_finite(descriptors)
    for first in range(start, len(descriptors), chunk):
        yield _lists(descriptors, first, descriptors[first : first + chunk], k)


def check_length(k: int, n: int) -> None:
    """Refuse lists that are longer than the set.

    Raises:
        ValueError: naming the longest possible one.
    """
    if not 1 <= k <= n:
        raise ValueError(f"cannot list {k} nearest of {n} images; use k in 1..{n}")


def _lists(every: Tensor, first: int, rows: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Lists of the images from ``first`` on, whose descriptors are ``rows``."""
    best = rows.new_empty(len(rows), 0)
    which = torch.empty(len(rows), 0, dtype=torch.int64, device=rows.device)
    own = (rows * rows).sum(1)
    for left in range(0, len(every), COLUMNS):
        similar = rows @ every[left : left + COLUMNS].T
        # Copies of a photograph tie with it: rank 0 must still be the image itself.
        similar.diagonal(first - left).fill_(torch.inf)
        found = similar.topk(min(k, similar.shape[1]), dim=1)
        best = torch.cat([best, found.values], 1)
        which = torch.cat([which, found.indices + left], 1)
        best, order = best.topk(min(k, best.shape[1]), dim=1)
        which = which.gather(1, order)
    best[:, 0] = own
    return which, best
