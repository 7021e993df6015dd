"""Which images of a set look alike: one descriptor per image, ranked by cosine."""

import torch
import torch.nn.functional as F
from torch import Tensor

from uss_utils.rows import check_finite


def global_descriptors(feat: Tensor) -> Tensor:
    """One unit vector per image: the direction of its mean feature.

    Args:
        feat: shape (N, C, h, w).

    Returns:
        Unit vectors, shape (N, C).
    """
    return F.normalize(feat.flatten(2).mean(2), dim=1)


def nearest(descriptors: Tensor, k: int, chunk: int = 1000) -> tuple[Tensor, Tensor]:
    """The k most similar images of every image, itself first.

    Works through ``chunk`` rows at a time, so memory grows with chunk * N.

    Args:
        descriptors: unit vectors, shape (N, C).
        k: list length, 1..N; STEGO draws its partners from ranks 1..7, so k = 8.
        chunk: rows compared at a time.

    Returns:
        indices, int64 (N, k), column 0 = the image itself; and their cosines (N, k).

    Raises:
        ValueError: ``k`` outside 1..N, wrong shape, or NaN.
    """
    if descriptors.ndim != 2:
        raise ValueError(
            f"descriptors must have shape (N, C), got {tuple(descriptors.shape)}"
        )
    n = len(descriptors)
    if not 1 <= k <= n:
        raise ValueError(f"cannot list {k} nearest of {n} images; use k in 1..{n}")
    check_finite(descriptors)
    indices = torch.empty(n, k, dtype=torch.int64, device=descriptors.device)
    cosines = torch.empty(n, k, dtype=descriptors.dtype, device=descriptors.device)
    for start in range(0, n, chunk):
        rows = torch.arange(start, min(start + chunk, n), device=descriptors.device)
        similar = descriptors[rows] @ descriptors.T
        own = similar[rows - start, rows].clone()
        # Copies of a photograph tie with it: rank 0 must still be the image itself.
        similar[rows - start, rows] = torch.inf
        cosines[rows], indices[rows] = similar.topk(k, dim=1)
        cosines[rows, 0] = own
    return indices, cosines
