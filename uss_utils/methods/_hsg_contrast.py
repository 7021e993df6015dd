"""HSG's losses: every pixel finds the segments of its group, centroids keep apart.

Ke, Hwang, Guo, Wang, Yu, Unsupervised Hierarchical Semantic Segmentation with Multiview
Cosegmentation and Clustering Transformers, CVPR 2022, sections 3.2 and 3.3.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from uss_utils.methods._hsg_kmeans import EPS
from uss_utils.rows import as_float, slices

BLOCK = 1 << 19  # similarities held at a time: they stay in a CPU's cache
GPU_BLOCK = 1 << 26


class _Level(NamedTuple):
    """One labelling of the segments.

    Attributes:
        group: dense labels, int64 (S,).
        count: groups.
        alone: segments that are their own positive, bool (S,).
    """

    group: Tensor
    count: int
    alone: Tensor

    @classmethod
    def of(cls, labels: Tensor, own_only: bool) -> "_Level":
        _, group, size = labels.unique(return_inverse=True, return_counts=True)
        return cls(group, len(size), (size == 1)[group] | own_only)


class _PixelToSegment(torch.autograd.Function):
    """The loss of every pixel at every level from one matrix of similarities.

    With e_t = exp(kappa (cos_t - 1)), n the sum of e over the positives and r that over
    the negatives the loss is log(1 + r / n): neither sum is a difference of sums, which
    would lose positives far behind the pixel's own segment. Its derivative by
    kappa cos_t is e_t / (n + r) for negatives and -e_t r / (n (n + r)) for positives.
    The matrix is made twice, for value and gradient, a few pixels at a time.
    """

    @staticmethod
    def forward(
        ctx,
        pixels: Tensor,
        prototypes: Tensor,
        own: Tensor,
        levels: list[_Level],
        kappa: float,
    ) -> Tensor:
        positive = pixels.new_empty(len(levels), len(pixels))
        negative = torch.empty_like(positive)
        for part in _parts(len(pixels), prototypes):
            e = _similarities(pixels[part], prototypes, kappa)
            mine = own[part], torch.arange(e.shape[1], device=e.device)
            itself = e[mine]
            e[mine] = 0
            for level, p, n in zip(levels, positive, negative, strict=True):
                sums = e.new_zeros(level.count, e.shape[1])
                sums.index_add_(0, level.group, e)
                group = level.group[mine[0]], mine[1]
                p[part] = torch.where(level.alone[mine[0]], itself, sums[group])
                sums[group] = 0
                n[part] = sums.sum(0)
        ctx.save_for_backward(pixels, prototypes, own, positive, negative)
        ctx.levels, ctx.kappa = levels, kappa
        return torch.log1p(negative / positive)

    @staticmethod
    @once_differentiable
    def backward(ctx, upstream: Tensor) -> tuple[Tensor | None, ...]:
        pixels, prototypes, own, positive, negative = ctx.saved_tensors
        wanted = ctx.needs_input_grad
        far = upstream / (positive + negative)
        near = -far * (negative / positive)
        grads = [torch.zeros_like(x) for x in (pixels, prototypes)]
        for part in _parts(len(pixels), prototypes):
            e = _similarities(pixels[part], prototypes, ctx.kappa)
            mine = own[part], torch.arange(e.shape[1], device=e.device)
            pair = far[:, part], near[:, part]
            slope = _slopes(e, mine, ctx.levels, *pair).mul_(ctx.kappa)
            if wanted[0]:
                torch.mm(slope.T, prototypes, out=grads[0][part])
            if wanted[1]:
                grads[1].addmm_(slope, pixels[part])
        grads = [g if w else None for g, w in zip(grads, wanted[:2], strict=True)]
        return *grads, None, None, None


def _parts(pixels: int, prototypes: Tensor) -> Iterator[slice]:
    block = BLOCK if prototypes.device.type == "cpu" else GPU_BLOCK
    step = max(1, block // max(1, len(prototypes)))
    return (slice(i, i + step) for i in range(0, pixels, step))


def _similarities(pixels: Tensor, prototypes: Tensor, kappa: float) -> Tensor:
    """exp(kappa (cos - 1)), shape (S, p): pixels as columns, so that rows are added."""
    return (prototypes @ pixels.T).sub_(1).mul_(kappa).exp_()


def _slopes(
    e: Tensor,
    mine: tuple[Tensor, Tensor],
    levels: list[_Level],
    far: Tensor,
    near: Tensor,
) -> Tensor:
    """Derivative of the weighted losses by kappa cos, shape (S, p)."""
    total = torch.zeros_like(e)
    itself = e.new_zeros(e.shape[1])
    for level, f, n in zip(levels, far, near, strict=True):
        group, alone = level.group, level.alone[mine[0]]
        same = group[:, None] == group[mine[0]]
        total += torch.where(same, n.masked_fill(alone, 0), f)
        itself += n * alone
    own = e[mine] * itself
    total *= e
    total[mine] = own
    return total


def segment_contrast(
    pixels: Tensor,
    own: Tensor,
    prototypes: Tensor,
    labels: Tensor | Sequence[Tensor],
    kappa: float = 16.0,
    weights: Tensor | None = None,
    reduce: bool = True,
    own_only: bool = False,
) -> Tensor:
    """Contrast of every pixel with all segments (section 3.2).

    -log of the share that the positives have of the sum of exp(kappa cos) over
    positives and negatives. Positives are the other segments with the label of the
    pixel's own one; the own one takes part only where there is no other. Segments with
    other labels are negatives.

    Args:
        pixels: unit rows, shape (P, C).
        own: segment of every pixel, 0..S-1, int64 (P,).
        prototypes: unit rows, shape (S, C). The gradient reaches both sides.
        labels: of the segments, any integers (S,); several such labellings share one
            matrix of similarities.
        kappa: concentration, above 0 and at most 32 (300 in float64): larger ones
            leave the range of the numbers.
        weights: of the pixels in the mean, not negative, shape (P,); None: all alike.
        reduce: the mean over pixels; otherwise the loss of each.
        own_only: the own segment is the only positive of its pixels, other segments of
            its label take no part.

    Returns:
        Scalar or, with ``reduce=False``, (P,); for a sequence of L labellings (L,) or
        (L, P). float32, float64 stays. 0 without pixels, still depending on both sides.

    Raises:
        ValueError: shapes that do not fit, or a concentration out of range.
    """
    several = not isinstance(labels, Tensor)
    labellings = list(labels) if several else [labels]
    with torch.autocast(pixels.device.type, enabled=False):
        pixels, prototypes = as_float(pixels), as_float(prototypes)
        _check_contrast(pixels, own, prototypes, labellings, kappa, weights)
        levels = [_Level.of(labelling, own_only) for labelling in labellings]
        losses = _PixelToSegment.apply(pixels, prototypes, own, levels, float(kappa))
        if reduce and weights is None:
            losses = losses.sum(1) / max(1, len(pixels))
        elif reduce:
            weights = weights.to(losses)
            losses = losses @ weights / weights.sum().clamp_min(EPS)
    return losses if several else losses[0]


def centroid_contrast(centroids: Tensor, kappa: float = 16.0) -> Tensor:
    """Contrast of all centroids of a batch, each of which has only itself (sec. 3.3).

    The mean of log(1 + sum_{j != i} exp(kappa (z_i z_j - 1))) over the directions z.

    Args:
        centroids: of all images, not normalised, shape (B, C, K).
        kappa: concentration.

    Returns:
        Scalar.

    Raises:
        ValueError: another shape, or a concentration that is not positive.
    """
    if centroids.dim() != 3 or not kappa > 0:
        raise ValueError(
            "centroids must have shape (B, C, K) and kappa has to be above 0, got "
            f"{tuple(centroids.shape)} and {kappa}"
        )
    with torch.autocast(centroids.device.type, enabled=False):
        rows = as_float(centroids).transpose(1, 2).flatten(0, 1)
        z = F.normalize(rows, dim=1, eps=EPS)
        same = torch.eye(len(z), dtype=torch.bool, device=z.device)
        others = (kappa * (z @ z.T - 1)).exp().masked_fill(same, 0)
        return torch.log1p(others.sum(1)).sum() / max(1, len(z))


@torch.no_grad()
def retrieval_accuracy(prototypes: Tensor, labels: Tensor, k: int = 5) -> Tensor:
    """Share of the segments nearest to each that have its label, itself included.

    Args:
        prototypes: unit rows, shape (S, C).
        labels: any integers (S,).
        k: segments looked at, capped by S.

    Returns:
        Scalar in [0, 1]; 0 without segments.
    """
    if not len(prototypes):
        return as_float(prototypes).new_zeros(())
    with torch.autocast(prototypes.device.type, enabled=False):
        rows = as_float(prototypes)
        k = min(k, len(rows))
        best = [
            (part @ rows.T).topk(k, 1, sorted=False).indices for part in slices(rows)
        ]
    found = labels[torch.cat(best)] == labels[:, None]
    return found.to(rows.dtype).mean()


def _check_contrast(
    pixels: Tensor,
    own: Tensor,
    prototypes: Tensor,
    labellings: list[Tensor],
    kappa: float,
    weights: Tensor | None,
) -> None:
    count = (len(prototypes),)
    if pixels.dim() != 2 or prototypes.shape[1:] != pixels.shape[1:]:
        raise ValueError(
            f"pixels {tuple(pixels.shape)} and prototypes {tuple(prototypes.shape)} do "
            "not fit; expected (P, C) and (S, C)"
        )
    if pixels.dtype != prototypes.dtype:
        raise ValueError(
            f"pixels are {pixels.dtype} but prototypes {prototypes.dtype}; give both "
            "in one precision"
        )
    for name, rows in (("own", own), ("weights", weights)):
        if rows is not None and tuple(rows.shape) != (len(pixels),):
            raise ValueError(
                f"{name} has shape {tuple(rows.shape)}, expected ({len(pixels)},), one "
                "per pixel"
            )
    if not labellings or any(tuple(x.shape) != count for x in labellings):
        raise ValueError(
            f"labels must have shape {count}, one per segment, or be a sequence of "
            f"such; got {[tuple(x.shape) for x in labellings]}"
        )
    largest = 300 if pixels.dtype == torch.float64 else 32
    if not 0 < kappa <= largest:
        raise ValueError(
            f"kappa={kappa} has to be above 0 and at most {largest} for {pixels.dtype}"
        )
