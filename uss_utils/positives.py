"""Hidden positives: patches that are more alike than a reference pool would suggest.

The positives of HP (Seong et al., CVPR 2023, section 3.1-3.2) and the loss on them. A
patch's similarity to its best match in a pool of random patches says what is unusually
similar for this patch; everything in the batch beyond that is a positive.
"""

from collections.abc import Iterable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from uss_utils.contrast import Rows, by_image, contrast, pair_weights

BASE_TAU = 0.07  # the loss is scaled by tau / BASE_TAU, a habit of supervised contrast


# ------------------------------------------------------------------- reference pools


def pick_patches(
    maps: Iterable[Tensor],
    size: int,
    picks: Iterable[Tensor] | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """One patch of every map, until there are enough.

    Args:
        maps: batches of features or codes, shape (B, C, h, w).
        size: patches wanted, M.
        picks: place of the patch in each map (row-major), int64 (B,) per batch; None
            draws them.
        generator: CPU generator of the draw.

    Returns:
        Rows, shape (M, C).

    Raises:
        ValueError: the maps ran out.
    """
    rows, picks = [], None if picks is None else iter(picks)
    found = 0
    for batch in maps:
        patches = batch.flatten(2)
        if picks is None:
            place = torch.randint(
                patches.shape[2], (len(batch),), generator=generator
            ).to(batch.device)
        else:
            place = next(picks)
        rows.append(patches[torch.arange(len(batch)), :, place])
        found += len(batch)
        if found >= size:
            return torch.cat(rows)[:size]
    raise ValueError(f"a pool of {size} patches needs as many maps, got {found}")


def build_pool(
    maps: Iterable[Tensor],
    size: int,
    picks: Iterable[Tensor] | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """A reference pool: unit vectors of random patches (section 3.1).

    Args:
        maps: see :func:`pick_patches`, as are the other arguments.
        size: M.
        picks: places.
        generator: of the draw.

    Returns:
        Unit rows, shape (M, C).
    """
    return F.normalize(pick_patches(maps, size, picks, generator), dim=1)


def pool_threshold(x: Tensor, pool: Tensor, rows: int = 4096) -> Tensor:
    """Cosine of every patch with its best match in the pool (eq. 1).

    Args:
        x: unit rows, shape (N, C).
        pool: unit rows, shape (M, C).
        rows: patches compared at a time.

    Returns:
        Thresholds R, shape (N,).

    Raises:
        ValueError: features that are not finite.
    """
    best = torch.cat([(part @ pool.T).amax(1) for part in x.split(rows)])
    if not bool(torch.isfinite(best).all()):
        raise ValueError(
            "features or codes hold NaN or infinite values; look at the images and the "
            "backbone's weights, or lower the learning rate"
        )
    return best


# ------------------------------------------------------------------ hidden positives


def hidden_positives(x: Tensor, threshold: Tensor, rows: slice = slice(None)) -> Tensor:
    """Which patches are positives of which anchors (eq. 2).

    More alike than the threshold of either: ``(s > R_i) or (s > R_j)``, which is
    ``s > min(R_i, R_j)``.

    Args:
        x: unit rows of all patches, shape (N, C).
        threshold: R, shape (N,).
        rows: the anchors; all by default.

    Returns:
        bool (n, N); no anchor is its own positive.
    """
    limit = torch.minimum(threshold[rows, None], threshold[None])
    return _without_self(x[rows] @ x.T > limit, rows)


def _without_self(mask: Tensor, rows: slice) -> Tensor:
    first = rows.start or 0
    own = torch.arange(len(mask), device=mask.device)
    mask[own, own + first] = False
    return mask


def denominator_mask(
    positive: Tensor, uniform: Tensor, rho: float, first_row: int = 0
) -> Tensor:
    """Patches in an anchor's denominator: its positives and a random share of the rest.

    Args:
        positive: of the anchors, bool (n, N).
        uniform: in [0, 1), shape (n, N), the same for the anchors of every image.
        rho: share of the patches that is kept.
        first_row: place of the first anchor among the N patches.

    Returns:
        bool (n, N), without the anchor itself.
    """
    rows = slice(first_row, first_row + len(positive))
    return _without_self(positive | (uniform < rho), rows)


def _weigh(
    rows: slice,
    agnostic: Tensor,
    specific: Tensor,
    denominator: Tensor,
    lam: float,
    scale: float,
    reweight: bool,
) -> Rows:
    """Weights W = A + lambda A' of one image's anchors (eq. 5)."""
    weights = agnostic.to(torch.float32)
    if lam:
        weights.add_(specific, alpha=lam)
    # Rows with task-specific positives alone are no anchors.
    weights, one = pair_weights(weights, agnostic.any(1), reweight)
    return Rows(rows, weights, denominator, one * scale)


def hidden_positive_loss(
    z: Tensor,
    pos_agnostic: Tensor,
    pos_specific: Tensor,
    denom: Tensor,
    lam: float,
    tau: float,
    patches_per_image: int,
    reweight: bool = True,
    base_tau: float = BASE_TAU,
) -> Tensor:
    """Contrastive loss for given masks: the mean of eq. 4 over the images.

    ``L_m = -(tau / base_tau) sum_ij W_ij l_ij / sum_ij W_ij`` over the valid anchors i
    of image m, with ``W = A + lambda A'`` and
    ``l_ij = s_ij - log sum_{k in D_i} exp s_ik``, ``s = z z^T / tau``.

    Args:
        z: unit projections, ordered image by image, shape (N, D).
        pos_agnostic: A, bool (N, N).
        pos_specific: A', bool (N, N).
        denom: D, bool (N, N).
        lam: lambda in [0, 1].
        tau: temperature.
        patches_per_image: n.
        reweight: False averages the anchors' own means instead.
        base_tau: see the formula.

    Returns:
        Scalar. An image without a valid anchor contributes 0.
    """
    blocks = [
        _weigh(
            *(rows, pos_agnostic[rows], pos_specific[rows], denom[rows]),
            *(lam, tau / base_tau, reweight),
        )
        for rows in by_image(len(z), patches_per_image)
    ]
    return contrast(z[None], blocks, tau)


class HiddenPositives:
    """The masks of a batch, made image by image as :func:`contrast` asks for them.

    Args:
        f: unit features of all patches, shape (N, C).
        t: unit teacher codes, shape (N, D).
        pools: task-agnostic (M, C) and task-specific (M, D).
        uniform: draw of the kept negatives, shape (n, N).
        rho: share kept.
        lam: weight of the task-specific positives.
        tau: temperature.
        reweight: see :func:`hidden_positive_loss`.

    Attributes:
        counts: mean number of task-agnostic and task-specific positives per patch,
            complete after one pass.
    """

    def __init__(
        self,
        f: Tensor,
        t: Tensor,
        pools: tuple[Tensor, Tensor],
        uniform: Tensor,
        *,
        rho: float,
        lam: float,
        tau: float,
        reweight: bool = True,
    ):
        self.rows = by_image(len(f), len(uniform))
        self.x = f, t
        self.thresholds = tuple(
            pool_threshold(x, pool) for x, pool in zip(self.x, pools, strict=True)
        )
        self.kept = uniform < rho
        self.lam, self.tau = lam, tau
        self.reweight = reweight
        self.counts = torch.zeros(2, device=f.device)

    def __iter__(self) -> Iterator[Rows]:
        for rows in self.rows:
            agnostic, specific = (
                hidden_positives(x, limit, rows)
                for x, limit in zip(self.x, self.thresholds, strict=True)
            )
            self.counts += torch.stack([agnostic.sum(), specific.sum()]) / len(
                self.x[0]
            )
            denominator = _without_self(agnostic | self.kept, rows)
            yield _weigh(
                *(rows, agnostic, specific, denominator),
                *(self.lam, self.tau / BASE_TAU, self.reweight),
            )
