"""Object segments of images: masks, one embedding each, maps painted from them.

Segments are given as bool masks, one object per image, or as maps of ids, 0 for the
background and 1..n for the objects. Row ``b n + id - 1`` of prototypes, assignments and
classes belongs to object ``id`` of image b; rows of objects without pixels are zero.
"""

from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from scipy import ndimage
from torch import Tensor

from uss_utils.metrics import Confusion
from uss_utils.rows import as_float, check_finite
from uss_utils.upsampling import in_parts, upsample_adjoint

Weighting = Literal["logit", "mask"]

EPS = 1e-12  # vectors shorter than this are not scaled to unit length


def segment_prototypes(
    embeddings: Tensor,
    saliency_logits: Tensor,
    threshold: float = 0.5,
    weighting: Weighting = "logit",
) -> tuple[Tensor, Tensor]:
    """Prototype and mask of the salient object of every image.

    Args:
        embeddings: not normalised, shape (N, D, h, w). A grid coarser than that of the
            logits counts as upsampled bilinearly, without being so.
        saliency_logits: shape (N, H, W).
        threshold: pixels with a larger *logit* (not probability) are the object;
            MaskContrast's 0.5 is a probability of 0.62.
        weighting: pixels of the object weigh as much as their logit, as in
            MaskContrast's evaluation, or all the same ("mask").

    Returns:
        Unit vectors, (N, D), zero where an image has no salient pixel; and the masks,
        bool (N, H, W).

    Raises:
        ValueError: shapes that do not fit, values that are not finite, an unknown
            weighting, or logits as weights where some are negative.
    """
    if weighting not in ("logit", "mask"):
        raise ValueError(f"unknown weighting {weighting!r}; known: logit, mask")
    if weighting == "logit" and threshold < 0:
        raise ValueError(
            f"threshold {threshold} lets negative logits in, which are no weights; "
            "choose weighting='mask'"
        )
    check_finite(saliency_logits.flatten(1))  # NaN would be background
    masks = saliency_logits > threshold
    weights = saliency_logits if weighting == "logit" else None
    return region_prototypes(embeddings, masks, weights), masks


def region_prototypes(
    embeddings: Tensor,
    masks: Tensor,
    weights: Tensor | None = None,
    n_objects: int | None = None,
) -> Tensor:
    """Direction of the (weighted) mean embedding of every segment.

    Args:
        embeddings: see :func:`segment_prototypes`.
        masks: bool, or ids 0..n, shape (N, H, W).
        weights: of the pixels, shape (N, H, W); None: 1.
        n_objects: rows n per image; None: the largest id, at least 1.

    Returns:
        Unit vectors, shape (N n, D); zero for a segment without pixels.

    Raises:
        ValueError: shapes that do not fit, or values that are not finite.
    """
    if embeddings.dim() != 4 or masks.dim() != 3 or len(masks) != len(embeddings):
        raise ValueError(
            f"embeddings {tuple(embeddings.shape)} and masks {tuple(masks.shape)} do "
            "not fit; expected (N, D, h, w) and (N, H, W)"
        )
    n = _objects(masks, n_objects)
    grid = tuple(embeddings.shape[-2:])
    numbers = torch.arange(1, n + 1, device=masks.device)[:, None, None]
    sums = []
    for part in in_parts(embeddings[:, :1].expand(-1, n, -1, -1), masks.shape[-2:]):
        members = (masks[part, None] == numbers).to(embeddings.dtype)
        if weights is not None:
            members = members * weights[part, None]
        small = upsample_adjoint(members, grid)
        sums.append(torch.einsum("bdhw,bnhw->bnd", as_float(embeddings[part]), small))
    rows = torch.cat(sums).flatten(0, 1)
    check_finite(rows)
    return F.normalize(rows, dim=1, eps=EPS)


def _objects(masks: Tensor, n_objects: int | None) -> int:
    """Rows per image: given, or the largest id."""
    largest = int(masks.max()) if masks.numel() else 0
    if n_objects is not None and largest > n_objects:
        raise ValueError(
            f"the masks hold id {largest}, but n_objects={n_objects}; ids are 1..n"
        )
    return max(1, largest) if n_objects is None else n_objects


def split_components(masks: Tensor, min_share: float = 0.01) -> Tensor:
    """Number the connected pieces (8 neighbours) of each mask: objects of a scene.

    Args:
        masks: bool, shape (N, H, W).
        min_share: pieces with a smaller share of the image become background.

    Returns:
        Ids 0..n, row by row, int64, shape (N, H, W), on the CPU.
    """
    found = []
    for mask in masks.cpu().numpy():
        pieces, n = ndimage.label(mask, np.ones((3, 3)))
        large = np.bincount(pieces.ravel(), minlength=n + 1) >= min_share * mask.size
        large[0] = False
        found.append((np.cumsum(large) * large)[pieces])
    return torch.from_numpy(np.stack(found)).long()


def label_maps(masks: Tensor, assignments: Tensor) -> Tensor:
    """Maps of 1 + cluster on every segment, and 0 elsewhere.

    Args:
        masks: bool, or ids 0..n, shape (N, H, W).
        assignments: cluster of every segment, int64 (N n,); -1 gives 0.

    Returns:
        int64, shape (N, H, W).

    Raises:
        ValueError: numbers that do not fit.
    """
    return class_maps(masks, assignments + 1)


def class_maps(masks: Tensor, classes: Tensor) -> Tensor:
    """Maps of the class of every segment, and 0 (the background) elsewhere.

    Args:
        masks: bool, or ids 0..n, shape (N, H, W).
        classes: class of every segment, int64 (N n,); -1 gives 0.

    Returns:
        int64, shape (N, H, W).

    Raises:
        ValueError: numbers that do not fit.
    """
    rows_per_image(classes, masks)
    table = F.pad(classes.clamp(min=0).reshape(len(masks), -1), (1, 0))
    return table.gather(1, masks.flatten(1).long()).view(masks.shape)


def rows_per_image(rows: Tensor, masks: Tensor) -> int:
    """Rows n of each image.

    Args:
        rows: one per segment, shape (N n, ...).
        masks: bool, or ids 0..n, shape (N, H, W).

    Raises:
        ValueError: numbers that do not fit.
    """
    n, rest = divmod(len(rows), max(1, len(masks)))
    if rest or not n or n < int(masks.max()):
        raise ValueError(
            f"{len(rows)} segments do not fit {len(masks)} masks with ids up to "
            f"{int(masks.max()) if masks.numel() else 0}: every image needs the same "
            "number of rows, one per id"
        )
    return n


def class_counts(
    masks: Tensor, labels: Tensor, n_classes: int, n_objects: int = 1
) -> Tensor:
    """Pixels of every class in every segment and, first, in the background.

    Args:
        masks: bool, or ids 0..n, shape (N, H, W).
        labels: classes, integers (N, H, W); others than 0..K-1 are not counted.
        n_classes: K.
        n_objects: n.

    Returns:
        int64, shape (N, 1 + n, K).

    Raises:
        ValueError: shapes that differ, or an id above n.
    """
    n = 1 + _objects(masks, n_objects)
    image = torch.arange(len(masks), device=masks.device)[:, None, None]
    place = image * n + masks.long()
    counted = Confusion.of(place, labels, n_classes, len(masks) * n - n_classes)
    return counted.matrix.view(len(masks), n, n_classes)
