"""PriMaPs: an image split into masks by the principal directions of its features.

Round by round: the first principal direction of the patches that are still free points
to a seed, the patch most along it; all free patches similar to the seed are its mask,
and leave. All images of a batch are worked on in lock-step.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from uss_utils import crf
from uss_utils.methods._primaps_direction import Moments, along, oriented
from uss_utils.rows import as_float

MOST = 254  # masks of an image: ids are bytes, 0 and 255 are taken
NONE = 255  # id of a pixel that is in no mask
GAIN = 10.0  # on the cleaned masks, before they are clipped to [0, 1]


class MaskProposals(NamedTuple):
    """Masks of B images, K = the largest number of masks in the batch (section 3).

    Attributes:
        masks: cosine with the seed inside the mask, 0 elsewhere, shape (B, K, h, w).
        seeds: row-major place of each seed, int64 (B, K), -1 behind an image's last.
        directions: unit principal direction of each round, shape (B, K, C), 0 behind an
            image's last.
        count: masks of each image, int64 (B,).
        free: patches in no mask, bool (B, h, w).
    """

    masks: Tensor
    seeds: Tensor
    directions: Tensor
    count: Tensor
    free: Tensor

    def free_before(self, k: int) -> Tensor:
        """Patches that are free when round ``k`` (from 0) begins, bool (B, h, w)."""
        return (self.masks[:, :k] == 0).all(1)


# ------------------------------------------------------------------------ one round


def grow_mask(
    features: Tensor, free: Tensor, direction: Tensor, threshold: float
) -> tuple[Tensor, Tensor]:
    """Seed and mask of one round, for a direction with a sign (3.3, 3.4).

    Args:
        features: of any length, shape (B, C, N).
        free: bool (B, N).
        direction: shape (B, C).
        threshold: least cosine with the seed.

    Returns:
        Seeds, int64 (B,): the free patch furthest along the direction, the first one of
        those that tie; and the masks (B, N): the cosine with the seed, 0 outside.
    """
    return _grow(F.normalize(as_float(features), dim=1), free, direction, threshold)


def _grow(
    unit: Tensor, free: Tensor, direction: Tensor, threshold: float
) -> tuple[Tensor, Tensor]:
    share = along(direction, unit).masked_fill(~free, -torch.inf)
    # Comparing with the maximum makes the first of several the winner on any device.
    first = (share == share.amax(1, keepdim=True)).to(torch.uint8)
    seed = first.argmax(1, keepdim=True)
    own = unit.gather(2, seed[:, None].expand(-1, unit.shape[1], -1))[..., 0]
    cosine = along(own, unit).scatter(1, seed, 1.0)  # rounding must not lose it
    return seed[:, 0], cosine * (free & (cosine >= threshold))


# ---------------------------------------------------------------------- all rounds


@torch.no_grad()
def propose_masks(
    features: Tensor,
    threshold: float = 0.4,
    coverage: float = 0.95,
    max_masks: int = MOST,
) -> MaskProposals:
    """Masks of a batch of images (section 3).

    Args:
        features: as the backbone gives them, shape (B, C, h, w).
        threshold: least cosine of a patch with the seed of its mask, in [0.1, 1].
        coverage: share of the patches at which the rounds end, in (0, 1].
        max_masks: most masks of an image, 1..254.

    Raises:
        ValueError: a setting out of range, or features that are not finite.
    """
    _check(features, threshold, coverage, max_masks)
    b, c, h, w = features.shape
    with torch.autocast(features.device.type, enabled=False):
        rounds = _rounds(as_float(features).flatten(2), threshold, coverage, max_masks)
    empty = features.new_zeros(b, len(rounds), dtype=torch.int64)
    masks = rounds[0].masks.new_zeros(b, len(rounds), h * w)
    directions = masks.new_zeros(b, len(rounds), c)
    seeds, worked = empty - 1, empty.bool()
    for k, found in enumerate(rounds):
        masks[found.rows, k] = found.masks
        seeds[found.rows, k] = found.seeds
        directions[found.rows, k] = found.directions
        worked[found.rows, k] = True
    masks = masks.unflatten(2, (h, w))
    return MaskProposals(masks, seeds, directions, worked.sum(1), (masks == 0).all(1))


class _Round(NamedTuple):
    """What one round found, for the images that were still worked on."""

    rows: Tensor
    masks: Tensor
    seeds: Tensor
    directions: Tensor


def _rounds(
    features: Tensor, threshold: float, coverage: float, max_masks: int
) -> list[_Round]:
    """All rounds; images that are covered are left out of the next ones."""
    b, _, n = features.shape
    rows = torch.arange(b, device=features.device)
    free = torch.ones(b, n, dtype=torch.bool, device=features.device)
    unit = F.normalize(features, dim=1)
    moments = Moments(features, free)
    rounds = []
    while len(rows) and len(rounds) < max_masks:
        direction = oriented(moments.direction(), unit, free)
        seed, mask = _grow(unit, free, direction, threshold)
        rounds.append(_Round(rows, mask, seed, direction))
        gone = mask > 0
        free = free & ~gone
        going_on = (~free).sum(1) / n < coverage
        if not bool(going_on.all()):
            rows, unit = rows[going_on], unit[going_on]
            free, gone = free[going_on], gone[going_on]
            moments.select(going_on)
        if len(rows):
            moments.remove(gone, free)
    return rounds


def _check(features: Tensor, threshold: float, coverage: float, max_masks: int) -> None:
    if features.dim() != 4 or not features.numel():
        raise ValueError(
            "features must have shape (B, C, h, w), none of them 0, got "
            f"{tuple(features.shape)}"
        )
    if not 0.1 <= threshold <= 1 or not 0 < coverage <= 1:
        raise ValueError(
            f"threshold={threshold} has to lie in [0.1, 1] and coverage={coverage} in "
            "(0, 1]"
        )
    if not 1 <= max_masks <= MOST:
        raise ValueError(f"max_masks={max_masks} has to lie in 1..{MOST}")
    if not bool(torch.isfinite(features).all()):
        raise ValueError(
            "features hold NaN or infinite values; look at these images and at the "
            "backbone's weights"
        )


# ------------------------------------------------------------------------- clean-up


def median_3x3(maps: Tensor) -> Tensor:
    """Median of every 3 x 3 neighbourhood, the border mirrored (3.6).

    Args:
        maps: shape (B, K, h, w), at least 2 x 2.
    """
    h, w = maps.shape[-2:]
    padded = F.pad(maps, (1, 1, 1, 1), mode="reflect")
    near = [padded[..., y : y + h, x : x + w] for y in range(3) for x in range(3)]
    return torch.stack(near).median(0).values


def clean_masks(proposals: MaskProposals) -> Tensor:
    """Smooth the masks and lay them into one map of ids (3.6).

    As a mask is at least 0.1 inside, what the median leaves of it is 1 after the gain,
    and disjoint masks stay disjoint.

    Args:
        proposals: from :func:`propose_masks`.

    Returns:
        uint8 (B, h, w): 1..K in the order of extraction, some may have vanished; 0 = in
        no mask.
    """
    masks = proposals.masks
    if min(masks.shape[-2:]) > 1:  # else there is no neighbourhood to speak of
        masks = median_3x3(masks)
    solid = (masks * GAIN).clamp(0, 1)
    ids = torch.arange(1, masks.shape[1] + 1, device=masks.device)
    return (solid.ceil() * ids[:, None, None]).sum(1).to(torch.uint8)


def id_log_probs(ids: Tensor, count: int) -> Tensor:
    """The unary that a map of ids gives the CRF: log-softmax of its one-hot (3.7).

    It is very flat: a pixel's own label has probability e / (e + K).

    Args:
        ids: 0..K, shape (h, w).
        count: K.

    Returns:
        Shape (K + 1, h, w), no mask first.
    """
    return F.one_hot(ids.long(), count + 1).movedim(-1, 0).float().log_softmax(0)


def refine_masks(
    ids: Tensor,
    images: Tensor,
    counts: Tensor,
    ignore: int = NONE,
    params: crf.CRFParams = crf.DEFAULT,
    pool: crf.CRFPool | None = None,
) -> Tensor:
    """Bring maps of ids to the images' size along their edges, by the dense CRF (3.8).

    Workers are sent the ids alone and make the unary themselves. Without pydensecrf the
    ids are only enlarged.

    Args:
        ids: from :func:`clean_masks`, shape (B, h, w).
        images: RGB bytes, shape (B, H, W, 3).
        counts: masks of each image, also those that vanished, shape (B,).
        ignore: id of pixels in no mask.
        params: of the CRF.
        pool: running worker processes; None works in this process.

    Returns:
        uint8 (B, H, W): 1..K, or ``ignore``.
    """
    ids = ids.to(torch.uint8).cpu()
    if not crf.available():
        return enlarge_ids(ids, tuple(images.shape[1:3]), ignore)
    found = crf.sharpen_ids(images, ids, counts.tolist(), params, pool)
    return torch.where(found == 0, ignore, found).to(torch.uint8)


def enlarge_ids(ids: Tensor, size: tuple[int, int], ignore: int = NONE) -> Tensor:
    """Maps of ids at another size, by the nearest patch: what is left without a CRF.

    Args:
        ids: uint8 (B, h, w), 0 = in no mask.
        size: (H, W).
        ignore: id of pixels in no mask.

    Returns:
        uint8 (B, H, W).
    """
    large = F.interpolate(ids[:, None].float(), size, mode="nearest-exact")[:, 0]
    return torch.where(large == 0, ignore, large).to(torch.uint8)
