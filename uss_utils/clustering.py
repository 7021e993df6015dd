"""K-means of feature vectors: spherical, Euclidean, mini-batch (and PCA).

All functions take rows, shape (N, D): a feature map (B, C, h, w) becomes rows by
``feat.movedim(1, -1).flatten(0, -2)``. Work is done in slices of matrix products, on
the device of the rows, and is repeatable for a given generator.
"""

import math
import warnings
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from uss_utils.pca import PCA
from uss_utils.rows import as_float, check_finite, check_metric, slices

__all__ = ["PCA", "KMeans", "assign", "kmeans"]

SEED_SAMPLE = 256  # rows per cluster among which k-means++ looks for the start
SAME = 1e-10  # squared distance, relative to the squared length, of "the same point"


@dataclass(frozen=True, eq=False)
class KMeans:
    """A clustering.

    Attributes:
        centroids: shape (K, D); of unit length for "cosine".
        assignment: cluster of every row, int64, shape (N,), values 0..K-1.
        inertia: sum of squared distances of the rows to their centroids; for "cosine"
            those between unit vectors, 2 - 2 cos.
        n_iter: updates of the centroids.
        history: inertia before each update and at the end.
    """

    centroids: Tensor
    assignment: Tensor
    inertia: float
    n_iter: int
    history: tuple[float, ...]


def kmeans(
    x: Tensor,
    k: int,
    *,
    generator: torch.Generator,
    metric: str = "cosine",
    restarts: int = 3,
    iterations: int = 50,
    batch_size: int | None = None,
    tol: float = 1e-4,
    init: Tensor | None = None,
) -> KMeans:
    """Group rows around k centroids (Lloyd's algorithm, k-means++ start).

    A cluster that loses all its rows is moved to the row farthest from its own
    centroid. Where the rows have fewer than k distinct values, the surplus centroids
    stay without rows and a warning says so.

    Args:
        x: floats, shape (N, D).
        k: number of clusters.
        generator: draws starts and mini-batches.
        metric: "cosine" (spherical k-means: rows and centroids have unit length) or
            "euclidean".
        restarts: independent starts; the one with the lowest inertia is returned.
        iterations: most updates of one start; with ``batch_size`` the number of
            mini-batches.
        batch_size: None uses all rows for every update. A number uses that many
            random rows, a centroid being the mean of all rows it ever received
            (Sculley, "Web-scale k-means clustering", WWW 2010, alg. 1), and assigns
            all rows once at the end: for sets too large for Lloyd's algorithm.
        tol: stop when the inertia falls by less than this share of itself.
        init: first centroids, shape (k, D), instead of k-means++ and restarts.

    Returns:
        The best clustering found.

    Raises:
        ValueError: fewer rows than clusters, NaN or infinite rows, unknown metric, or
            a size that is not positive.
    """
    x = _checked(x, k, metric, restarts, iterations, batch_size, init)
    spherical = metric == "cosine"
    rows, origin = _normal_form(x, spherical)
    best: KMeans | None = None
    for _ in range(restarts if init is None else 1):
        start = _plus_plus(rows, k, generator) if init is None else init.to(x) - origin
        start = F.normalize(start, dim=1) if spherical else start
        if batch_size is None:
            found = _lloyd(rows, start, iterations, tol, spherical)
        else:
            draws = (iterations, batch_size, generator)
            start = _minibatch(rows, start, spherical, *draws)
            found = _lloyd(rows, start, 0, tol, spherical)
            found = replace(found, n_iter=found.n_iter + iterations)
        if best is None or found.inertia < best.inertia:
            best = found
    _warn_if_empty(best, k)
    return replace(best, centroids=best.centroids + origin)


def assign(x: Tensor, centroids: Tensor, metric: str = "cosine") -> Tensor:
    """Nearest centroid of every row.

    Args:
        x: shape (N, D).
        centroids: shape (K, D); their length is irrelevant for "cosine".
        metric: "cosine" or "euclidean".

    Returns:
        int64, shape (N,), values 0..K-1.

    Raises:
        ValueError: unknown metric or sizes that do not fit.
    """
    check_metric(metric)
    if x.dim() != 2 or centroids.dim() != 2 or x.shape[1] != centroids.shape[1]:
        raise ValueError(
            f"rows {tuple(x.shape)} and centroids {tuple(centroids.shape)} do not fit; "
            "expected (N, D) and (K, D)"
        )
    centroids = centroids.to(x.device, as_float(x).dtype)
    if metric == "cosine":
        centroids, origin = F.normalize(centroids, dim=1), 0
    else:
        origin = centroids.mean(0)  # see kmeans: precision
    parts = [
        _nearest(as_float(part) - origin, centroids - origin, metric == "cosine")[1]
        for part in slices(x)
    ]
    return torch.cat(parts)


def _checked(x, k, metric, restarts, iterations, batch_size, init) -> Tensor:
    check_metric(metric)
    if x.dim() != 2:
        raise ValueError(
            f"kmeans expects rows of shape (N, D), got {tuple(x.shape)}; turn a "
            "feature map into rows with feat.movedim(1, -1).flatten(0, -2)"
        )
    sizes = {"k": k, "restarts": restarts, "batch_size": batch_size}
    for name, value in sizes.items():
        if value is not None and value < 1:
            raise ValueError(f"{name} is {value}, expected at least 1")
    if iterations < 0:
        raise ValueError(f"iterations is {iterations}, expected at least 0")
    if len(x) < k:
        raise ValueError(
            f"{k} clusters were asked for, but there are only {len(x)} rows; "
            "give more images or a smaller k"
        )
    if init is not None and tuple(init.shape) != (k, x.shape[1]):
        raise ValueError(
            f"init has shape {tuple(init.shape)}, expected ({k}, {x.shape[1]})"
        )
    x = as_float(x)
    check_finite(x)
    return x


def _normal_form(x: Tensor, spherical: bool) -> tuple[Tensor, Tensor]:
    """Rows and the origin they are counted from, so that both metrics are one code.

    Distances come from |x|^2 - 2 x c + |c|^2, which is precise near the origin only.
    """
    if spherical:
        return F.normalize(x, dim=1), torch.zeros_like(x[0])
    origin = x.mean(0)
    return x - origin, origin


def _nearest(rows: Tensor, centroids: Tensor, spherical: bool) -> tuple[Tensor, Tensor]:
    """Best x c - |c|^2 / 2 and its cluster; spherical: centroids have unit length."""
    scores = rows @ centroids.T
    if not spherical:
        scores -= centroids.square().sum(1) / 2
    best = scores.max(1)
    return best.values, best.indices


def _plus_plus(rows: Tensor, k: int, generator: torch.Generator) -> Tensor:
    """Greedy k-means++ among a random part of the rows.

    Each next centroid is the best of a few rows drawn with probability proportional to
    the squared distance to the centroids so far (Arthur & Vassilvitskii, 2007, sec. 4).
    """
    chosen = torch.randperm(len(rows), generator=generator)[: SEED_SAMPLE * k]
    sample = rows[chosen.to(rows.device)]
    tries = 2 + int(math.log(k))
    first = torch.randint(len(sample), (1,), generator=generator).to(rows.device)
    centroids = sample[first]
    distance = _squared_distance(centroids, sample)[0]
    for _ in range(k - 1):
        weights = distance.cpu()
        if not weights.any():  # every row is a centroid already
            weights = torch.ones_like(weights)
        picked = torch.multinomial(weights, tries, True, generator=generator)
        candidates = sample[picked.to(rows.device)]
        distances = _squared_distance(candidates, sample).minimum(distance)
        best = distances.sum(1).argmin()
        distance = distances[best]
        centroids = torch.cat([centroids, candidates[best, None]])
    return centroids


def _squared_distance(a: Tensor, b: Tensor) -> Tensor:
    """Exactly zero for equal rows, shape (len(a), len(b))."""
    exact = "donot_use_mm_for_euclid_dist"
    return torch.cdist(a, b, compute_mode=exact).square()


def _minibatch(
    rows: Tensor,
    centroids: Tensor,
    spherical: bool,
    batches: int,
    batch_size: int,
    generator: torch.Generator,
) -> Tensor:
    """Centroids after a number of mini-batches."""
    sums = torch.zeros_like(centroids)
    counts = torch.zeros_like(centroids[:, :1])
    for _ in range(batches):
        drawn = torch.randint(len(rows), (batch_size,), generator=generator)
        batch = rows[drawn.to(rows.device)]
        _, assignment = _nearest(batch, centroids, spherical)
        _add(sums, counts, batch, assignment)
        centroids = _means(sums, counts, centroids, spherical)
    return centroids


def _add(sums: Tensor, counts: Tensor, rows: Tensor, assignment: Tensor) -> None:
    """Add rows to the sums of their clusters.

    A product with the one-hot assignment, not a scatter: as fast, and its order of
    summation is fixed on a GPU too.
    """
    onehot = rows.new_zeros(len(rows), len(sums))
    onehot.scatter_(1, assignment[:, None], 1)
    sums += onehot.T @ rows
    counts += onehot.sum(0)[:, None]


def _means(sums: Tensor, counts: Tensor, old: Tensor, spherical: bool) -> Tensor:
    means = F.normalize(sums, dim=1) if spherical else sums / counts.clamp(min=1)
    return torch.where(counts > 0, means, old)


def _lloyd(
    rows: Tensor, centroids: Tensor, iterations: int, tol: float, spherical: bool
) -> KMeans:
    """Lloyd's algorithm; the assignment returned belongs to the centroids returned."""
    history: list[float] = []
    updates = 0
    # Filling empty clusters may need a few updates more.
    limit = iterations + len(centroids)
    while True:
        assignment, distance, sums, counts = _pass(rows, centroids, spherical)
        history.append(float(distance.sum(dtype=_sum_type(distance))))
        far, empty = _farthest(rows, centroids, assignment, distance, counts)
        settled = len(history) > 1 and history[-2] - history[-1] <= tol * history[-2]
        done = not len(empty) and (settled or updates >= iterations)
        if done or updates >= limit:
            break
        if len(empty):
            _move(rows, far, empty, assignment, sums, counts)
        centroids = _means(sums, counts, centroids, spherical)
        updates += 1
    return KMeans(centroids, assignment, history[-1], updates, tuple(history))


def _sum_type(x: Tensor) -> torch.dtype:
    return x.dtype if x.device.type == "mps" else torch.float64


def _pass(rows: Tensor, centroids: Tensor, spherical: bool):
    """Assignment, squared distance, and per cluster the sum and number of its rows."""
    sums, counts = torch.zeros_like(centroids), torch.zeros_like(centroids[:, :1])
    assignments, distances = [], []
    for part in slices(rows):
        score, assignment = _nearest(part, centroids, spherical)
        _add(sums, counts, part, assignment)
        assignments.append(assignment)
        length = 2 if spherical else part.square().sum(1)
        distances.append((length - 2 * score).clamp_min(0))
    return torch.cat(assignments), torch.cat(distances), sums, counts


def _farthest(rows, centroids, assignment, distance, counts) -> tuple[Tensor, Tensor]:
    """Rows for the empty clusters, and those clusters; nothing where none can help.

    One after the other, each far from all centroids and from the rows chosen before:
    the farthest rows of all often lie in one place.
    """
    empty = (counts[:, 0] == 0).nonzero()[:, 0]
    chosen: list[Tensor] = []
    for _ in range(len(empty)):
        far = distance.argmax()
        gap = (rows[far] - centroids[assignment[far]]).square().sum()
        if gap <= SAME * rows[far].square().sum():
            break
        chosen.append(far)
        distance = distance.minimum(_squared_distance(rows[far, None], rows)[0])
    empty = empty[: len(chosen)]
    return torch.stack(chosen) if chosen else empty, empty


def _move(rows, far, empty, assignment, sums, counts) -> None:
    """Take rows out of their clusters and give one to each empty cluster."""
    donors = assignment[far]
    sums.index_add_(0, donors, -rows[far])
    counts.index_add_(0, donors, -torch.ones_like(counts[donors]))
    sums[empty], counts[empty] = rows[far], 1


def _warn_if_empty(found: KMeans, k: int) -> None:
    used = len(found.assignment.unique())
    if used < k:
        warnings.warn(
            f"only {used} of {k} clusters hold rows: the rows have fewer distinct "
            "values than there are clusters",
            stacklevel=3,
        )
