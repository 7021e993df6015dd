"""How well regions cover the objects of an image: normalised foreground covering.

Ke et al., "Unsupervised Hierarchical Semantic Segmentation with Multiview
Cosegmentation and Clustering Transformers", CVPR 2022, evaluation of hierarchies. Every
true region is compared with the predicted region most like it, of whatever level; each
counts the same, however small it is::

    NFC = 1 / n  sum_i  max_S  |R_i and S| / |R_i or S|
"""

import math
import statistics
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor

Maps = Iterable[Tensor | np.ndarray]


def region_covering(
    label: Tensor | np.ndarray,
    levels: Maps,
    background: int | Sequence[int] = 0,
    ignore: int = -1,
) -> Tensor:
    """Largest IoU of every true region with the regions of every level.

    Args:
        label: true regions (classes, or numbers of objects), integers (H, W).
        levels: predicted regions, integers (H, W) each, such as a
            :class:`~uss_utils.hierarchy.Hierarchy`.
        background: ids of what is no object.
        ignore: id of what has no label. Neither is covered, but what a predicted region
            has there counts as its area.

    Returns:
        float64 (L, n), 0..1, true regions in the order of their ids.

    Raises:
        ValueError: no level, or sizes that differ.
    """
    label = torch.as_tensor(np.asarray(label))
    left_out = [background] if isinstance(background, int) else list(background)
    ids, true = torch.unique(label, return_inverse=True)
    kept = ~torch.isin(ids, torch.tensor([*left_out, ignore]))
    best = [_best_iou(true, len(ids), _map(level, label)) for level in levels]
    if not best:
        raise ValueError("covering needs at least one level of regions")
    return torch.stack(best)[:, kept]


def _map(level: Tensor | np.ndarray, label: Tensor) -> Tensor:
    level = torch.as_tensor(np.asarray(level))
    if level.shape != label.shape:
        raise ValueError(
            f"a level has shape {tuple(level.shape)}, the true regions "
            f"{tuple(label.shape)}; bring the regions to the size of the label"
        )
    return level


def _best_iou(true: Tensor, n: int, level: Tensor) -> Tensor:
    """Largest IoU of every true region, numbered 0..n-1, with regions of a level."""
    _, found = torch.unique(level, return_inverse=True)
    count = int(found.max()) + 1
    both = torch.bincount((true * count + found).flatten(), minlength=n * count)
    both = both.view(n, count).double()
    union = both.sum(1, keepdim=True) + both.sum(0) - both
    return (both / union).amax(1)


def foreground_covering(
    label: Tensor | np.ndarray,
    levels: Maps,
    background: int | Sequence[int] = 0,
    ignore: int = -1,
) -> float:
    """Normalised foreground covering of one image; more levels never lower it.

    Args:
        label: see :func:`region_covering`; so are the others.
        levels: predicted regions of all levels.
        background: ids of what is no object.
        ignore: id of what has no label.

    Returns:
        0..1, or NaN where there is no object.

    Raises:
        ValueError: no level, or sizes that differ.
    """
    best = region_covering(label, levels, background, ignore).amax(0)
    return float(best.mean()) if len(best) else math.nan


def covering_by_budget(
    label: Tensor | np.ndarray,
    levels: Maps,
    budgets: Sequence[int],
    background: int | Sequence[int] = 0,
    ignore: int = -1,
) -> list[float]:
    """:func:`foreground_covering` by how many regions may be used.

    Levels are taken from coarse to fine as long as they have no more regions together
    than a budget allows.

    Args:
        label: see :func:`region_covering`; so are the others.
        levels: fine to coarse.
        budgets: largest numbers of regions.
        background: ids of what is no object.
        ignore: id of what has no label.

    Returns:
        One number per budget, 0 where not even one level fits; NaN where there is no
        object.

    Raises:
        ValueError: no level, or sizes that differ.
    """
    levels = [np.asarray(level) for level in levels][::-1]
    best = region_covering(label, levels, background, ignore)
    if not best.shape[1]:
        return [math.nan] * len(budgets)
    reached = best.cummax(0).values.mean(1).tolist()
    total = np.cumsum([len(np.unique(level)) for level in levels])
    fitting = np.searchsorted(total, budgets, side="right")
    return [reached[n - 1] if n else 0.0 for n in fitting.tolist()]


def mean_covering(values: Iterable[float]) -> float:
    """Mean over images, those without an object (NaN) left out; NaN if all are."""
    known = [value for value in values if not math.isnan(value)]
    return statistics.fmean(known) if known else math.nan
