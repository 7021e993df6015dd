"""Object segments grouped by k-means, or named by the segments most like them.

MaskContrast (Van Gansbeke et al., ICCV 2021, section 4) reads semantics off whole
segments: the pixels that a saliency head calls an object share one embedding, its
*prototype*. Prototypes are clustered, or take the class of the nearest prototype of a
memory (semantic segment retrieval). Masks and rows: :mod:`uss_utils.segment_maps`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from uss_utils.clustering import assign, kmeans
from uss_utils.environment import generator
from uss_utils.pca import PCA
from uss_utils.rows import first_largest, slices
from uss_utils.segment_maps import (
    class_counts,
    class_maps,
    label_maps,
    region_prototypes,
    rows_per_image,
    segment_prototypes,
    split_components,
)

__all__ = [
    "SegmentClusters",
    "SegmentMemory",
    "class_counts",
    "class_maps",
    "cluster_segments",
    "label_maps",
    "majority",
    "nearest_rows",
    "region_prototypes",
    "segment_prototypes",
    "split_components",
]

BLOCK = 1 << 25  # similarities to a memory that are held at a time
GPU_BLOCK = 1 << 28
PIECE = 256  # rows of a memory of which first the largest similarity is looked at
SAME = 1e-10  # variance of unit vectors that are the same but for rounding


@dataclass(frozen=True, eq=False)
class SegmentClusters:
    """A clustering of segments.

    Attributes:
        assignment: cluster of every segment, -1 without prototype, int64 (N,).
        centroids: shape (K, D'), in the coordinates that were clustered.
        inertia: sum of squared distances to the centroids.
        pca: map to those coordinates; None: the prototypes as they are.
    """

    assignment: Tensor
    centroids: Tensor
    inertia: float
    pca: PCA | None

    def assign(self, prototypes: Tensor) -> Tensor:
        """Clusters of other segments, -1 without prototype, int64 (N,)."""
        found = torch.full((len(prototypes),), -1, device=prototypes.device)
        valid = prototypes.any(1)
        if valid.any():
            rows = prototypes[valid]
            rows = rows if self.pca is None else self.pca.transform(rows)
            found[valid] = assign(rows, self.centroids, "euclidean")
        return found


def cluster_segments(
    prototypes: Tensor,
    num_clusters: int = 20,
    whiten: bool = True,
    num_components: int | None = None,
    restarts: int = 10,
    seed: int = 0,
) -> SegmentClusters:
    """K-means of prototypes, behind a PCA that may whiten.

    Whitening gives every direction the same spread, noise included: harmless where the
    embeddings fill their D dimensions, harmful where they do not. Fewer components
    leave the noise out.

    Args:
        prototypes: shape (N, D); zero rows are left out.
        num_clusters: K.
        whiten: divide the principal coordinates by their standard deviation, as
            MaskContrast does.
        num_components: principal components kept; None: all that the prototypes span
            (without whitening: no PCA).
        restarts: starts of k-means++; the best is kept.
        seed: of the starts.

    Raises:
        ValueError: fewer prototypes than clusters, prototypes that are all the same
            where a PCA is asked for, or more components than they span.
    """
    valid = prototypes.any(1)
    rows = prototypes[valid]
    if len(rows) < max(1, num_clusters):
        raise ValueError(
            f"{num_clusters} clusters were asked for, but only {len(rows)} of "
            f"{len(prototypes)} segments have a pixel and with it a prototype; give "
            "more images, fewer clusters, or a lower saliency threshold"
        )
    pca = None
    if whiten or num_components is not None:
        if len(rows) < 2 or rows.double().var(0).sum() < SAME:
            raise ValueError(
                f"all {len(rows)} prototypes are the same vector, so there is nothing "
                "a PCA could whiten: the embedding has collapsed, or the masks hold "
                "the same pixels; cluster with whiten=False to see it"
            )
        pca = PCA.fit_batches([rows], num_components, whiten)
    found = kmeans(
        rows if pca is None else pca.transform(rows),
        num_clusters,
        metric="euclidean",
        restarts=restarts,
        iterations=100,
        generator=generator(seed),
    )
    assignment = torch.full((len(prototypes),), -1, device=prototypes.device)
    assignment[valid] = found.assignment
    return SegmentClusters(assignment, found.centroids, found.inertia, pca)


@dataclass(frozen=True, eq=False)
class SegmentMemory:
    """Prototypes of segments whose class is known.

    Attributes:
        prototypes: shape (M, D).
        labels: class of each, int64 (M,).
        rows: which of the given segments each of them is, int64 (M,).
    """

    prototypes: Tensor
    labels: Tensor
    rows: Tensor

    @classmethod
    def build(
        cls,
        prototypes: Tensor,
        masks: Tensor,
        labels: Tensor,
        ignore: Sequence[int] = (0, -1),
    ) -> "SegmentMemory":
        """Memory of segments, each with the class that most of its pixels have.

        Of classes with equally many pixels the larger id wins. Segments without pixels,
        or with pixels of ignored classes only, are left out.

        Args:
            prototypes: shape (N n, D).
            masks: bool, or ids 0..n, shape (N, H, W).
            labels: classes, integers (N, H, W); negative ids are always ignored.
            ignore: ids that no segment is named by: the background and what has no
                class.

        Raises:
            ValueError: shapes that do not fit, or no segment is left.
        """
        n = rows_per_image(prototypes, masks)
        counts = class_counts(masks, labels, max(1, int(labels.max()) + 1), n)
        return cls.from_counts(prototypes, counts[:, 1:].flatten(0, 1), ignore)

    @classmethod
    def from_counts(
        cls, prototypes: Tensor, counts: Tensor, ignore: Sequence[int] = (0, -1)
    ) -> "SegmentMemory":
        """:meth:`build` from the pixels per class of every segment, int64 (N, K).

        Raises:
            ValueError: numbers that do not fit, or no segment is left.
        """
        if len(counts) != len(prototypes):
            raise ValueError(
                f"{len(prototypes)} prototypes but counts of {len(counts)} segments"
            )
        counts = counts.clone()
        counts[:, [i for i in ignore if 0 <= i < counts.shape[1]]] = 0
        named = (counts.sum(1) > 0).to(prototypes.device) & prototypes.any(1)
        if not named.any():
            raise ValueError(
                f"none of {len(prototypes)} segments has pixels of a class beside the "
                f"ignored ones {tuple(ignore)}; the memory would be empty. Check the "
                "labels, or lower the saliency threshold"
            )
        # numpy promises the first of equal maxima, torch does not.
        largest = counts.shape[1] - 1 - counts.flip(1).cpu().numpy().argmax(1)
        labels = torch.from_numpy(largest).to(prototypes.device)
        return cls(prototypes[named], labels[named], named.nonzero()[:, 0])

    def retrieve(self, prototypes: Tensor) -> tuple[Tensor, Tensor]:
        """Class of the memory's segment with the largest inner product.

        Args:
            prototypes: shape (N, D).

        Returns:
            Classes and places in the memory, int64 (N,); -1 for a zero prototype, and
            the earliest of equals.

        Raises:
            ValueError: prototypes of another width, or not as rows.
        """
        self._check(prototypes)
        memory = self.prototypes.to(prototypes)
        best = [
            (part @ memory.T).cpu().numpy().argmax(1) for part in slices(prototypes)
        ]
        nearest = torch.from_numpy(np.concatenate(best)).to(self.labels.device)
        valid = prototypes.any(1).to(nearest.device)
        classes = self.labels[nearest].where(valid, -1)
        return classes, nearest.where(valid, -1)

    def _check(self, prototypes: Tensor) -> None:
        width = self.prototypes.shape[1]
        if prototypes.dim() != 2 or prototypes.shape[1] != width:
            raise ValueError(
                f"prototypes have shape {tuple(prototypes.shape)}, expected "
                f"(N, {width}), one row per segment even for a single one"
            )

    def nearest(self, prototypes: Tensor, k: int = 20) -> Tensor:
        """Places in the memory of the k segments most like each of others.

        Args:
            prototypes: shape (N, D).
            k: how many; all where the memory has fewer.

        Returns:
            int64 (N, k), most alike first.

        Raises:
            ValueError: see :meth:`retrieve`, or k below 1.
        """
        self._check(prototypes)
        return nearest_rows(prototypes, self.prototypes, k)

    def vote(self, prototypes: Tensor, k: int = 20) -> Tensor:
        """Class that most of the k nearest segments have, the smallest of equals.

        Args:
            prototypes: shape (N, D).
            k: see :meth:`nearest`.

        Returns:
            int64 (N,); -1 for a zero prototype.

        Raises:
            ValueError: see :meth:`nearest`.
        """
        classes = majority(self.labels[self.nearest(prototypes, k)])
        return classes.where(prototypes.any(1).to(classes.device), -1)


def nearest_rows(queries: Tensor, rows: Tensor, k: int) -> Tensor:
    """Places of the rows with the largest inner products, a block of queries at a time.

    Args:
        queries: shape (N, D).
        rows: shape (M, D).
        k: how many; M where that is less.

    Returns:
        int64 (N, k) on the device of ``rows``, the largest first.

    Raises:
        ValueError: no rows, or k below 1.
    """
    if k < 1 or not len(rows):
        raise ValueError(f"cannot look for {k} nearest among {len(rows)} rows")
    block = BLOCK if rows.device.type == "cpu" else GPU_BLOCK
    at_once = max(1, block // len(rows))
    queries, k = queries.to(rows), min(k, len(rows))
    found = [_largest(part @ rows.T, k) for part in queries.split(at_once)]
    return torch.cat(found)


def _largest(x: Tensor, k: int) -> Tensor:
    """Places of the k largest of every row (N, M): ``topk``, but many times as fast.

    Of all pieces of a row only the k with the largest maxima can hold any of them.
    """
    whole = x.shape[1] // PIECE
    if whole <= 2 * k:
        return x.topk(k).indices
    cut = whole * PIECE
    pieces = x[:, :cut].unflatten(1, (whole, PIECE))
    best = pieces.amax(2).topk(k).indices[..., None]
    inside = pieces.gather(1, best.expand(-1, -1, PIECE)).flatten(1)
    places = (best * PIECE + torch.arange(PIECE, device=x.device)).flatten(1)
    rest = torch.arange(cut, x.shape[1], device=x.device).expand(len(x), -1)
    chosen = torch.cat([inside, x[:, cut:]], 1).topk(k).indices
    return torch.cat([places, rest], 1).gather(1, chosen)


def majority(labels: Tensor) -> Tensor:
    """Most frequent label of every row, the smallest of equals.

    Args:
        labels: ids from 0, int64 (N, k).

    Returns:
        int64 (N,).
    """
    counts = labels.new_zeros(len(labels), int(labels.max()) + 1 if len(labels) else 1)
    counts.scatter_add_(1, labels, torch.ones_like(labels))
    return first_largest(counts)
