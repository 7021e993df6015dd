"""From soft maps on the patch grid to masks at pixel resolution that can be trusted."""

from collections.abc import Sequence

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from uss_utils import crf
from uss_utils.upsampling import upsample

LEVEL = 0.5  # of a soft map, above which there is an object
EIGHT = np.ones((3, 3), bool)  # neighbours, diagonal ones too
FAINT = 1e-5  # probabilities below it are the same to the CRF


def clean_mask(
    saliency: Tensor | np.ndarray, min_area: float = 0.01
) -> np.ndarray | None:
    """Drop small pieces of a mask, and masks of which too little is left.

    An 8-connected piece goes, with all that lies in its holes, if it covers less than
    ``min_area`` even with its holes filled. Holes of what stays remain holes.

    Args:
        saliency: bool, or in [0, 1] (above 0.5 = object), shape (H, W).
        min_area: share of the image.

    Returns:
        bool (H, W), or None: less than ``min_area`` is left, so that the image had
        better be left out.

    Raises:
        ValueError: another shape, or values that are not finite.
    """
    values = np.asarray(saliency)
    if values.ndim != 2 or not values.size or not np.isfinite(values).all():
        raise ValueError(
            f"a saliency map must be finite and of shape (H, W), got {values.shape}"
        )
    mask = _without_specks(values > LEVEL, min_area * values.size)
    return mask if mask.sum() >= min_area * mask.size and mask.any() else None


def clean_ids(ids: Tensor | np.ndarray, min_area: float = 0.01) -> np.ndarray | None:
    """:func:`clean_mask` of every object of a map.

    Args:
        ids: integers (H, W), 0 background, 1..n objects.
        min_area: share of the image that each object has to cover.

    Returns:
        uint8 (H, W): the objects that are left, numbered 1..m in the same order; or
        None where there is none.

    Raises:
        ValueError: another shape, or ids that are no integers in 0..255.
    """
    ids = np.asarray(ids)
    if ids.ndim != 2 or ids.dtype.kind not in "iub" or not 0 <= ids.min() <= 255:
        raise ValueError(
            "a map of objects must hold integers 0..255 and have shape (H, W), got "
            f"{ids.dtype} of shape {ids.shape}"
        )
    cleaned, count = np.zeros(ids.shape, np.uint8), 0
    for number in np.unique(ids[ids > 0]):
        mask = clean_mask(ids == number, min_area)
        if mask is not None:
            count += 1
            cleaned[mask] = count
    return cleaned if count else None


def _without_specks(mask: np.ndarray, least: float) -> np.ndarray:
    """A mask without the pieces that cover fewer pixels, with holes, than ``least``."""
    pieces, count = ndimage.label(mask, EIGHT)
    area = np.bincount(pieces.ravel(), minlength=count + 1)
    boxes = ndimage.find_objects(pieces)
    small = np.zeros(count + 1, bool)
    for number in np.flatnonzero(area[1:] < least) + 1:
        # Holes do not reach beyond the box around a piece.
        filled = ndimage.binary_fill_holes(pieces[boxes[number - 1]] == number)
        small[number] = filled.sum() < least
    return mask & ~small[pieces]


def refine_with_crf(
    images: Tensor,
    soft: Tensor,
    params: crf.CRFParams = crf.DEFAULT,
    pool: crf.CRFPool | None = None,
) -> Tensor:
    """Bring soft maps to the images' size and along their edges, by the dense CRF.

    The unary of object and background is the soft map, upsampled bilinearly, and what
    is left to one.

    Args:
        images: ImageNet-normalised (3, H, W) or RGB bytes (H, W, 3), or B of them.
        soft: in [0, 1], shape (h, w) or (B, h, w).
        params: of the CRF.
        pool: running worker processes; None works in this process.

    Returns:
        Probability of the object, on the CPU, float32, shape (H, W) or (B, H, W).

    Raises:
        ImportError: pydensecrf is missing (ask ``crf.available()`` first).
        ValueError: shapes that do not fit, or values outside [0, 1].
    """
    if images.dim() == 3:
        return refine_with_crf(images[None], soft[None], params, pool)[0]
    bytes_ = images.dtype == torch.uint8
    size: Sequence[int] = images.shape[1:3] if bytes_ else images.shape[2:]
    if soft.dim() != 3 or not bool(((soft >= 0) & (soft <= 1)).all()):
        raise ValueError(
            "soft maps must have shape (B, h, w) and values in [0, 1], got "
            f"{tuple(soft.shape)}"
        )
    inside = upsample(soft[:, None].cpu(), tuple(size))
    logits = torch.cat([1 - inside, inside], 1).clamp_min(FAINT).log()
    workers = {"workers": 1} if pool is None else {"pool": pool}
    return crf.dense_crf_batch(images, logits, params=params, **workers)[:, 1]
