"""Object masks without labels, from the features of a frozen vision transformer.

The normalised cut of the graph of patches parts objects from their surroundings
(TokenCut, Wang et al., CVPR 2022); cut again without the objects that were found, it
finds several (MaskCut, Wang et al., CVPR 2023). Two cheaper ways to compare with: the
class token's attention (DINO, Caron et al., ICCV 2021) and the patch that resembles the
fewest others (LOST, Simeoni et al., BMVC 2021). What turns such masks into training
material, at pixel resolution, is offered from here too.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple, get_args

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from uss_utils.mask_cleaning import clean_ids, clean_mask, refine_with_crf
from uss_utils.normalised_cut import (
    TIE,
    WEAK,
    Method,
    affinity,
    ncut_eigenvector,
)
from uss_utils.rows import as_float
from uss_utils.saliency_head import SaliencyHead, balanced_bce, distil_saliency

__all__ = [
    "Cut",
    "SaliencyHead",
    "affinity",
    "attention_saliency",
    "balanced_bce",
    "class_attention",
    "clean_ids",
    "clean_mask",
    "degree_seed",
    "distil_saliency",
    "ncut_eigenvector",
    "ncut_mask",
    "ncut_objects",
    "ncut_saliency",
    "refine_with_crf",
]
Component = Literal["largest", "seed", "all"]
CORNERS = 3  # image corners that only a background covers
BORDER = 0.5  # share of the patches along the border that only a background exceeds


class Cut(NamedTuple):
    """An image cut in two; with a first axis B for several.

    Attributes:
        eigenvector: large on the object, length 1, shape (N,).
        eigenvalue: lambda in [0, 2], shape (); near 0 where the cut is clear.
        partition: the object's side, bool (h, w).
        mask: the part of it that was kept, bool (h, w).
        soft: sigmoid of the standardised eigenvector, in [0, 1], shape (h, w): above
            0.5 on the object's side.
    """

    eigenvector: Tensor
    eigenvalue: Tensor
    partition: Tensor
    mask: Tensor
    soft: Tensor


def ncut_mask(
    eigenvector: Tensor,
    grid: Sequence[int],
    component: Component = "largest",
    free: Tensor | None = None,
) -> Tensor:
    """Object of a cut: the patches above the mean, or one piece of them.

    Args:
        eigenvector: shape (N,) or (B, N), its entry of largest magnitude positive.
        grid: (h, w), N = h w.
        component: "seed": the 4-connected piece with the largest entry (the first of
            equal ones); "largest": the largest of the pieces that hold one of the
            largest entries, as patches with the same neighbours tie exactly; "all":
            the whole side.
        free: patches in the graph, bool, shaped like ``eigenvector``; None: all.

    Returns:
        bool, shape (h, w) or (B, h, w); empty where the eigenvector is 0.

    Raises:
        ValueError: unknown component, or shapes that do not fit.
    """
    if component not in get_args(Component):
        known = ", ".join(get_args(Component))
        raise ValueError(f"unknown component {component!r}; known: {known}")
    h, w = _checked_grid(eigenvector.shape[-1], grid)
    side = _object_side(eigenvector, free)
    if component == "all":
        return side.unflatten(-1, (h, w))
    tie = TIE if component == "largest" else 0.0
    seeds = eigenvector >= (1 - tie) * eigenvector.amax(-1, keepdim=True)
    if component == "seed":
        seeds &= seeds.cumsum(-1) == 1
    pairs = zip(*(_maps(x, h, w) for x in (side, seeds)), strict=True)
    masks = np.stack([_piece(*pair) for pair in pairs])
    return (
        torch.from_numpy(masks).to(eigenvector.device).reshape(*side.shape[:-1], h, w)
    )


def _object_side(y: Tensor, free: Tensor | None) -> Tensor:
    """Patches above the mean of those in the graph, bool like ``y``."""
    if free is None:
        return y > y.mean(-1, keepdim=True)
    mean = y.sum(-1, keepdim=True) / free.sum(-1, keepdim=True).clamp_min(1)
    return (y > mean) & free


def _maps(x: Tensor, h: int, w: int) -> np.ndarray:
    return x.reshape(-1, h, w).cpu().numpy()


def _piece(side: np.ndarray, seeds: np.ndarray) -> np.ndarray:
    """The largest piece of a side that holds a seed, bool (h, w)."""
    pieces, count = ndimage.label(side)
    area = np.bincount(pieces.ravel(), minlength=count + 1)
    held = np.bincount(pieces[seeds & side], minlength=count + 1) > 0
    best = np.where(held, area, 0).argmax()
    return held[best] & (pieces == best)


def ncut_saliency(
    features: Tensor,
    grid: Sequence[int],
    tau: float = 0.2,
    *,
    eps: float = WEAK,
    component: Component = "largest",
    guard: bool = True,
    method: Method = "auto",
    free: Tensor | None = None,
) -> Cut:
    """Cut images into object and background.

    Args:
        features: of any length, shape (N, C) or (B, N, C), row by row of the grid.
        grid: (h, w), N = h w.
        tau: cosine above which patches are joined; a low one merges everything, a high
            one isolates small parts.
        eps: weight of all other edges.
        component: see :func:`ncut_mask`.
        guard: take the other side where the object's covers three corners of the image
            or more, or more than half of the patches along its border.
        method: see :func:`ncut_eigenvector`.
        free: patches in the graph, bool (N,) or (B, N); None: all.

    Raises:
        ValueError: a setting out of range, shapes that do not fit, or features that are
            not finite.
    """
    h, w = _checked_grid(features.shape[-2] if features.dim() > 1 else 0, grid)
    graph = affinity(features, tau, eps)
    y, value = ncut_eigenvector(graph, method, free=free)
    if guard:
        side = _object_side(y, free)
        behind = _is_background(side.unflatten(-1, (h, w)), free)
        y = torch.where(behind[..., None], -y, y)
    return Cut(
        y,
        value,
        _object_side(y, free).unflatten(-1, (h, w)),
        ncut_mask(y, (h, w), component, free),
        _soft(y, free).unflatten(-1, (h, w)),
    )


def _is_background(side: Tensor, free: Tensor | None) -> Tensor:
    """Whether a side (..., h, w) has the shape of a background, bool (...)."""
    h, w = side.shape[-2:]
    corners = side[..., :: max(1, h - 1), :: max(1, w - 1)].flatten(-2)
    border = torch.ones(h, w, dtype=torch.bool, device=side.device)
    border[1:-1, 1:-1] = False
    along = border if free is None else border & free.unflatten(-1, (h, w))
    covered = (side & along).flatten(-2).sum(-1)
    return (corners.sum(-1) >= CORNERS) | (covered > BORDER * along.flatten(-2).sum(-1))


def _soft(y: Tensor, free: Tensor | None) -> Tensor:
    inside = torch.ones_like(y, dtype=torch.bool) if free is None else free
    count = inside.sum(-1, keepdim=True).clamp_min(1)
    mean = y.sum(-1, keepdim=True) / count
    centred = (y - mean) * inside
    spread = (centred.square().sum(-1, keepdim=True) / count).sqrt()
    soft = (centred / spread.clamp_min(torch.finfo(y.dtype).tiny)).sigmoid()
    return soft * inside


def ncut_objects(
    features: Tensor,
    grid: Sequence[int],
    n: int = 3,
    tau: float = 0.2,
    *,
    min_share: float = 0.0,
    max_eigenvalue: float = 2.0,
    **options,
) -> Tensor:
    """Several objects per image: cut, take the object out of the graph, cut again.

    The patches of an object leave the graph. (MaskCut weakens all of their edges
    instead; once they are many, they then come back as an object of their own.) All
    images are worked on in lock step; one is finished with its first round that finds
    no object.

    Args:
        features: of any length, shape (N, C) or (B, N, C), row by row of the grid.
        grid: (h, w), N = h w.
        n: most objects of an image, 1..254.
        tau: see :func:`ncut_saliency`.
        min_share: least share of the image's patches that an object has.
        max_eigenvalue: where lambda is above it, no cut is clear enough.
        **options: further ones of :func:`ncut_saliency`.

    Returns:
        uint8, shape (h, w) or (B, h, w): 0 background, 1..n in the order of discovery.

    Raises:
        ValueError: see :func:`ncut_saliency`.
    """
    if not 1 <= n <= 254:
        raise ValueError(f"n={n} objects per image have to be 1..254")
    if features.dim() == 2:
        limits = {"min_share": min_share, "max_eigenvalue": max_eigenvalue}
        return ncut_objects(features[None], grid, n, tau, **limits, **options)[0]
    h, w = _checked_grid(features.shape[1] if features.dim() > 1 else 0, grid)
    ids = torch.zeros(len(features), h * w, dtype=torch.uint8, device=features.device)
    rows = torch.arange(len(features), device=features.device)
    for number in range(1, n + 1):
        free = ids[rows] == 0
        cut = ncut_saliency(features[rows], (h, w), tau, free=free, **options)
        mask = cut.mask.flatten(1)
        area = mask.sum(1)
        good = (area > 0) & (area >= min_share * h * w)
        good &= cut.eigenvalue <= max_eigenvalue
        rows, mask = rows[good], mask[good]
        if not len(rows):
            break
        ids[rows] = ids[rows].masked_fill(mask, number)
    return ids.unflatten(1, (h, w))


# ------------------------------------------------------------------------ baselines


def class_attention(logits: Tensor, prefix: int) -> Tensor:
    """Attention of the class token to every patch, head by head.

    Args:
        logits: ``attention`` of a backbone, shape (B, heads, p + N, p + N).
        prefix: p, tokens before the patches; the class token is the first.

    Returns:
        Shape (B, heads, N), positive.

    Raises:
        ValueError: there is no class token.
    """
    if not prefix:
        raise ValueError("without a class token there is no attention of it")
    return as_float(logits[:, :, 0]).softmax(-1)[..., prefix:]


def attention_saliency(attention: Tensor, mass: float = 0.6) -> Tensor:
    """The fewest patches that hold a share of the class token's attention (DINO).

    Args:
        attention: positive, shape (heads, N) or (B, heads, N); heads are averaged.
        mass: that share of the attention to patches, in (0, 1].

    Returns:
        bool, shape (N,) or (B, N).

    Raises:
        ValueError: another shape, or a share out of range.
    """
    if attention.dim() not in (2, 3) or not 0 < mass <= 1:
        raise ValueError(
            "attention must have shape (heads, N) or (B, heads, N) and mass lie in "
            f"(0, 1], got {tuple(attention.shape)} and {mass}"
        )
    mean = as_float(attention).mean(-2)
    ordered, place = mean.sort(dim=-1, descending=True, stable=True)
    before = ordered.cumsum(-1) - ordered
    kept = before < mass * ordered.sum(-1, keepdim=True)
    return torch.zeros_like(kept).scatter(-1, place, kept)


def degree_seed(features: Tensor, grid: Sequence[int], k: int = 100) -> Tensor:
    """The object grown around the patch that resembles the fewest others (LOST).

    Args:
        features: shape (N, C) or (B, N, C), row by row of the grid.
        grid: (h, w), N = h w.
        k: patches of lowest degree among which the seed's companions are sought; at
            most N count.

    Returns:
        bool, shape (h, w) or (B, h, w): what resembles both on the whole.

    Raises:
        ValueError: shapes that do not fit, or k below 1.
    """
    if features.dim() == 2:
        return degree_seed(features[None], grid, k)[0]
    h, w = _checked_grid(features.shape[1] if features.dim() == 3 else 0, grid)
    if k < 1:
        raise ValueError(f"k={k} patches have to be at least 1")
    with torch.autocast(features.device.type, enabled=False):
        features = as_float(features)
        products = features @ features.mT
    order = (products >= 0).sum(2).argsort(dim=1, stable=True)
    low = torch.zeros_like(order, dtype=torch.bool).scatter(1, order[:, :k], True)
    seed = products.gather(1, order[:, :1, None].expand(-1, -1, h * w))[:, 0]
    companions = (low & (seed >= 0)).to(products)
    alike = (companions[:, None] @ products)[:, 0]
    return (alike >= 0).unflatten(1, (h, w))


def _checked_grid(patches: int, grid: Sequence[int]) -> tuple[int, int]:
    h, w = (int(side) for side in grid)
    if patches != h * w or min(h, w) < 1:
        raise ValueError(
            f"a grid of {h} x {w} does not hold {patches} patches; features are "
            "(B, N, C) with N = h w (from a map: feat.flatten(2).mT)"
        )
    return h, w
