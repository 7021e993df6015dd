"""Scores of a segmentation: streamed confusion, cluster-to-class matching, IoU.

Everything starts from one table of counts, rows = predicted clusters, columns = true
classes, added up over the whole set (never a mean of per-image scores). Clusters have
no names, so a matching from clusters to classes comes first; predictions that are
classes already (a linear probe) are scored with the identity.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from uss_utils import ranks

MATCHINGS = ("hungarian", "hungarian-iou", "majority", "iou", "identity")


@dataclass(frozen=True, eq=False)
class Matching:
    """Which cluster stands for which class.

    Attributes:
        row: matched clusters, ascending, int64, shape (M,).
        col: class of each of them, int64, shape (M,).
        cluster_to_class: class of every cluster, -1 = unmatched, int64, shape (K+E,).
    """

    row: Tensor
    col: Tensor
    cluster_to_class: Tensor

    @classmethod
    def from_table(cls, cluster_to_class: Tensor) -> "Matching":
        """Matching from the class of every cluster, -1 where it has none."""
        table = torch.as_tensor(cluster_to_class, dtype=torch.int64)
        row = (table >= 0).nonzero()[:, 0]
        return cls(row, table[row], table)


@dataclass(frozen=True, eq=False)
class Scores:
    """Scores in percent.

    Attributes:
        acc: share of the counted pixels whose class is right.
        miou: mean IoU over the rows of ``histogram``, those without any pixel left
            out. Where clusters stay unmatched their pixels form one more row, which
            counts as a class with IoU 0 (the field's habit).
        miou_classes: mean IoU over the K classes alone.
        iou: per class, float64, shape (K,); where a class neither occurs nor is
            predicted NaN, or what :meth:`Confusion.scores` was told.
        histogram: confusion after matching, rows in class order, int64, shape (K, K);
            (K+1, K+1) where clusters stay unmatched: their sum is the last row, the
            last column is zero.
    """

    acc: float
    miou: float
    miou_classes: float
    iou: Tensor
    histogram: Tensor


class Confusion:
    """Counts of (predicted cluster, true class) pairs, added up over batches.

    Args:
        n_classes: number of true classes K.
        extra: clusters beyond the classes, E (over-clustering); negative where there
            are fewer clusters than classes.

    Raises:
        ValueError: no class, or no cluster.
    """

    def __init__(self, n_classes: int, extra: int = 0):
        if n_classes < 1 or n_classes + extra < 1:
            raise ValueError(
                f"n_classes={n_classes} with extra={extra} leaves no class or no "
                "cluster; give at least one of each"
            )
        self.n_classes = n_classes
        self.n_clusters = n_classes + extra
        self._counts = torch.zeros(self.n_clusters, n_classes, dtype=torch.int64)

    @classmethod
    def of(
        cls, pred: Tensor, label: Tensor, n_classes: int, extra: int = 0
    ) -> "Confusion":
        """Counts of one batch; see :meth:`update` for the arguments."""
        confusion = cls(n_classes, extra)
        confusion.update(pred, label)
        return confusion

    @classmethod
    def from_matrix(cls, matrix: Tensor) -> "Confusion":
        """A confusion that continues from given counts, shape (K+E, K)."""
        matrix = torch.as_tensor(matrix)
        if matrix.dim() != 2 or matrix.is_floating_point() or (matrix < 0).any():
            raise ValueError(
                "a confusion matrix holds counts (integers >= 0), clusters x classes; "
                f"got {matrix.dtype} of shape {tuple(matrix.shape)}"
            )
        n_clusters, n_classes = matrix.shape
        confusion = cls(n_classes, n_clusters - n_classes)
        confusion._counts += matrix.cpu()
        return confusion

    @property
    def matrix(self) -> Tensor:
        """Counts so far, int64, shape (K+E, K): clusters by classes."""
        return self._counts.clone()

    def update(self, pred: Tensor, label: Tensor) -> None:
        """Add one batch.

        Args:
            pred: cluster (or class) per pixel, integers 0..K+E-1, any shape.
            label: true class, integers, same shape; pixels outside 0..K-1 (ignore = -1)
                are not counted. No cluster is left out, the extra ones neither.

        Raises:
            ValueError: shapes differ, values are not integers, or a counted pixel has a
                prediction that is not a cluster.
        """
        pred, label = torch.as_tensor(pred), torch.as_tensor(label)
        self._check(pred, label)
        pred, label = pred.flatten().long(), label.flatten().long()
        columns = self.n_classes + 1
        # Ignored pixels go to a column of their own that is cut off after counting:
        # cheaper than picking the valid pixels out of both maps.
        ignored = (label < 0) | (label >= self.n_classes)
        label = torch.where(ignored, self.n_classes, label)
        if pred.numel() and (pred.min() < 0 or pred.max() >= self.n_clusters):
            pred = self._keep_counted(pred, ignored)
        counts = torch.bincount(
            pred * columns + label, minlength=self.n_clusters * columns
        )
        self._counts += counts.view(self.n_clusters, columns)[:, :-1].cpu()

    def _check(self, pred: Tensor, label: Tensor) -> None:
        if pred.shape != label.shape:
            raise ValueError(
                f"pred has shape {tuple(pred.shape)}, label {tuple(label.shape)}; "
                "resize the prediction to the label's size first"
            )
        for name, tensor in (("pred", pred), ("label", label)):
            if tensor.is_floating_point() or tensor.is_complex():
                raise ValueError(
                    f"{name} is {tensor.dtype}, expected integer ids; "
                    "take the argmax of logits first"
                )

    def _keep_counted(self, pred: Tensor, ignored: Tensor) -> Tensor:
        """Neutralise strange ids on ignored pixels; refuse them anywhere else."""
        strange = (pred < 0) | (pred >= self.n_clusters)
        wrong = pred[strange & ~ignored]
        if wrong.numel():
            raise ValueError(
                f"pred holds ids from {int(wrong.min())} to {int(wrong.max())} outside "
                f"0..{self.n_clusters - 1}; count {self.n_clusters} clusters means "
                "Confusion(n_classes, extra=clusters - n_classes)"
            )
        return torch.where(strange, 0, pred)

    def __add__(self, other: "Confusion") -> "Confusion":
        """Counts of both, as if one had seen all batches."""
        if self._counts.shape != other._counts.shape:
            raise ValueError(
                f"cannot add confusions of shapes {tuple(self._counts.shape)} and "
                f"{tuple(other._counts.shape)}; both need the same classes and clusters"
            )
        return Confusion.from_matrix(self._counts + other._counts)

    def all_reduce(self) -> None:
        """Sum over all processes where torch.distributed runs; otherwise nothing."""
        self._counts = ranks.total(self._counts)

    def iou_matrix(self) -> Tensor:
        """IoU of every cluster with every class, float64 (K+E, K), 0..1; 0/0 is 0."""
        counts = self._counts.double()
        union = counts.sum(1, keepdim=True) + counts.sum(0) - counts
        return counts / union.clamp(min=1)

    def match(self, method: str = "hungarian") -> Matching:
        """Name the clusters.

        Args:
            method: one of :data:`MATCHINGS`. "hungarian" gives every class at most one
                cluster so that the number of right pixels is largest, "hungarian-iou"
                so that the sum of IoUs is (MaskContrast); "majority" gives every
                cluster the class it covers most, "iou" the class whose IoU with it is
                largest (several clusters may share a class; a cluster without any
                pixel stays unmatched; the lower class wins a tie); "identity": cluster
                k is class k.

        Raises:
            ValueError: unknown method.
        """
        if method not in MATCHINGS:
            known = ", ".join(MATCHINGS)
            raise ValueError(f"unknown matching {method!r}; known: {known}")
        if method == "identity":
            table = torch.arange(self.n_clusters)
            return Matching.from_table(table.where(table < self.n_classes, -1))
        gain = self.iou_matrix() if method.endswith("iou") else self._counts
        if method.startswith("hungarian"):
            pairs = linear_sum_assignment(gain.numpy(), maximize=True)
            row, col = (torch.from_numpy(np.asarray(part)).long() for part in pairs)
            table = torch.full((self.n_clusters,), -1)
            table[row] = col
            return Matching(row, col, table)
        # numpy promises the first of equal maxima, torch does not.
        table = torch.from_numpy(gain.numpy().argmax(1))
        return Matching.from_table(table.where(self._counts.sum(1) > 0, -1))

    def scores(
        self, matching: Matching | str | None = None, absent: float = math.nan
    ) -> Scores:
        """Accuracy and IoU of everything counted so far.

        Args:
            matching: a :class:`Matching` fitted elsewhere (on the training split), or
                the name of a method for :meth:`match` on this very table: "identity"
                for predictions that are classes already. None = "hungarian".
            absent: IoU of a class that neither occurs nor is predicted, in percent:
                NaN leaves it out of the means, 0 counts it as failed (MaskContrast).

        Raises:
            ValueError: no pixel was counted, or the matching belongs to other clusters.
        """
        total = int(self._counts.sum())
        if total == 0:
            raise ValueError(
                "no labelled pixel was counted: all pixels are ignored, or update() "
                f"was never called; labels hold classes 0..{self.n_classes - 1}"
            )
        if matching is None or isinstance(matching, str):
            matching = self.match(matching or "hungarian")
        histogram = self._matched(matching)
        iou = 100 * _iou(histogram)
        iou[: self.n_classes].nan_to_num_(nan=absent)
        return Scores(
            acc=100 * float(histogram.trace()) / total,
            miou=float(iou.nanmean()),
            miou_classes=float(iou[: self.n_classes].nanmean()),
            iou=iou[: self.n_classes],
            histogram=histogram,
        )

    def _matched(self, matching: Matching) -> Tensor:
        """Rows summed into their classes; unmatched clusters into one row more."""
        table = matching.cluster_to_class.cpu()
        if len(table) != self.n_clusters or int(table.max()) >= self.n_classes:
            raise ValueError(
                f"the matching names {len(table)} clusters with classes up to "
                f"{int(table.max())}, but this confusion counts {self.n_clusters} "
                f"clusters and {self.n_classes} classes"
            )
        unmatched = table < 0
        size = self.n_classes + int(unmatched.any())
        histogram = torch.zeros(size, size, dtype=torch.int64)
        rows = torch.where(unmatched, self.n_classes, table)
        histogram[:, : self.n_classes].index_add_(0, rows, self._counts)
        return histogram


def miou_per_image(pred: Tensor, label: Tensor, n_classes: int) -> Tensor:
    """Score every image by itself, to find the worst ones; not a score of a set.

    Args:
        pred: class per pixel, -1 = none, integers (N, H, W).
        label: true class, -1 = ignore, integers (N, H, W).
        n_classes: number of classes K.

    Returns:
        mIoU in percent, over the classes that occur or are predicted in the image; NaN
        where no pixel has a label, float64 (N,).
    """
    found = []
    for guess, truth in zip(pred, label, strict=True):
        # A pixel without class is wrong for every class: one row more.
        guess = torch.where(guess < 0, n_classes, guess)
        counts = Confusion.of(guess, truth, n_classes, 1).matrix
        square = torch.cat([counts, counts.new_zeros(n_classes + 1, 1)], dim=1)
        found.append(100 * _iou(square)[:n_classes].nanmean())
    return torch.stack(found)


def _iou(histogram: Tensor) -> Tensor:
    """Intersection over union per class, float64; NaN (0/0) where there is nothing."""
    counts = histogram.double()
    hit = counts.diagonal()
    return hit / (counts.sum(0) + counts.sum(1) - hit)


def mutual_information(histogram: Tensor) -> float:
    """How much a segmentation tells of another, 0..1; names of segments are ignored.

    Mutual information over the arithmetic mean of both entropies (NMI).

    Args:
        histogram: counts of (predicted, true), e.g. that of :class:`Scores`, (P, C).
    """
    joint = histogram.double() / histogram.sum()
    rows, columns = joint.sum(1), joint.sum(0)
    apart = torch.special.entr(rows).sum() + torch.special.entr(columns).sum()
    if apart == 0:  # one segment each: they agree
        return 1.0
    shared = apart - torch.special.entr(joint).sum()
    return float((2 * shared / apart).clamp(0, 1))


def rand_index(histogram: Tensor) -> float:
    """Adjusted Rand index: agreement on pairs of pixels, 0 by chance, 1 at best.

    Hubert and Arabie, "Comparing partitions", 1985, eq. 5.

    Args:
        histogram: see :func:`mutual_information`.
    """
    counts = histogram.double()
    n = counts.sum()
    together, rows, columns = (
        (part * (part - 1)).sum() for part in (counts, counts.sum(1), counts.sum(0))
    )
    chance = rows * columns / (n * (n - 1)).clamp(min=1)
    best = (rows + columns) / 2
    return 1.0 if best == chance else float((together - chance) / (best - chance))
