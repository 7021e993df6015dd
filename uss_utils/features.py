"""Dense features: extraction, the cache on disk, and two ways of reading a map."""

import torch
import torch.nn.functional as F
from torch import Tensor

from uss_utils.extraction import extract, feature_batches
from uss_utils.feature_cache import FeatureCache

__all__ = [
    "FeatureCache",
    "correspondence_heatmap",
    "extract",
    "feature_batches",
    "patch_heatmap",
    "sample_at",
]


def sample_at(map: Tensor, coords: Tensor) -> Tensor:
    """Read a map at given points: bilinear, border values outside.

    STEGO's sampling, which exchanges the two axes of the point grid on the way.

    Args:
        map: shape (B, C, H, W).
        coords: points (x, y), shape (B, P, Q, 2); -1 and 1 are the centres of the
            outermost cells.

    Returns:
        Values, shape (B, C, Q, P): ``[b, :, q, p]`` belongs to ``coords[b, p, q]``.
    """
    return F.grid_sample(
        map,
        coords.transpose(1, 2),
        mode="bilinear",
        padding_mode="border",
        align_corners=True,
    )


def correspondence_heatmap(
    feat: Tensor,
    query: Tensor,
    feat_other: Tensor | None = None,
    size: tuple[int, int] | None = None,
) -> Tensor:
    """How similar each place of an image is to a few chosen points (STEGO, figure 2).

    Cosine of the query's feature with every patch, minus its mean over the patches,
    clamped at 0, upsampled with aligned corners.

    Args:
        feat: features of the image that holds the points, shape (1, C, h, w).
        query: points (x, y) in [-1, 1] as in :func:`sample_at`, shape (1, P, 2).
        feat_other: features of the image to search, shape (1, C, h2, w2); None: the
            same image.
        size: height and width of the result; None: the grid of the searched image.

    Returns:
        Heat maps >= 0, shape (P, H, W).

    Raises:
        ValueError: more than one image, or two maps of different width.
    """
    other = feat if feat_other is None else feat_other
    if len(feat) != 1 or len(other) != 1 or feat.shape[1] != other.shape[1]:
        raise ValueError(
            "a heat map needs two maps of shape (1, C, h, w) with the same C, got "
            f"{tuple(feat.shape)} and {tuple(other.shape)}"
        )
    points = F.normalize(sample_at(feat, query[:, :, None])[0, :, 0], dim=0)
    heat = torch.einsum("cp,chw->phw", points, F.normalize(other, dim=1)[0])
    heat = (heat - heat.mean((1, 2), keepdim=True)).clamp(min=0)
    if size is None:
        return heat
    return F.interpolate(heat[None], size, mode="bilinear", align_corners=True)[0]


def patch_heatmap(
    feat: Tensor, place: tuple[int, int], feat_other: Tensor | None = None
) -> Tensor:
    """:func:`correspondence_heatmap` of one patch, on the grid of the searched image.

    Args:
        feat: features of the image that holds the patch, shape (C, h, w).
        place: its row and column.
        feat_other: features of the image to search, shape (C, h2, w2); None: the same
            image.

    Returns:
        Shape (h2, w2), values >= 0.

    Raises:
        ValueError: the place lies outside the image, or see above.
    """
    (row, column), (h, w) = place, feat.shape[-2:]
    if not (0 <= row < h and 0 <= column < w):
        raise ValueError(f"patch {place} lies outside the grid of {(h, w)} patches")
    # A side of one patch has no extent: any coordinate is its centre.
    x, y = 2 * column / max(w - 1, 1) - 1, 2 * row / max(h - 1, 1) - 1
    other = None if feat_other is None else feat_other[None]
    return correspondence_heatmap(feat[None], feat.new_tensor([[[x, y]]]), other)[0]
