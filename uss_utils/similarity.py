"""How well features keep classes apart, measured without clusters or training.

Labels measure here; nothing is fitted. Every patch has the class of its central pixel.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from uss_utils.correspondence import correlation
from uss_utils.features import sample_at

METRICS = ("cosine", "euclidean")


def patch_classes(label: Tensor, grid: tuple[int, int]) -> Tensor:
    """Class of the central pixel of every patch.

    Args:
        label: classes, shape (N, H, W), ignore = -1.
        grid: number of patches (h, w).

    Returns:
        Classes, int64, shape (N, h, w).
    """
    y, x = (
        ((torch.arange(n) + 0.5) * length / n).long()
        for n, length in zip(grid, label.shape[1:], strict=True)
    )
    return label[:, y[:, None], x].long()


def centred(feat: Tensor) -> Tensor:
    """Features minus their mean over all patches, as cosines are compared with.

    Args:
        feat: shape (N, C, h, w).
    """
    return feat - feat.mean((0, 2, 3), keepdim=True)


def class_cosines(feat: Tensor, label: Tensor, n_classes: int) -> Tensor:
    """Mean cosine of a patch of one class and a patch of another (or the same).

    Args:
        feat: shape (N, C, h, w); centre it first (:func:`centred`).
        label: classes, shape (N, H, W), ignore = -1.
        n_classes: K.

    Returns:
        Symmetric, shape (K, K); NaN where a class does not occur. A patch also meets
        itself, which matters for very rare classes alone.
    """
    classes = patch_classes(label, feat.shape[-2:]).flatten()
    unit = F.normalize(feat, dim=1).movedim(1, -1).flatten(0, 2)
    known = classes >= 0
    sums = unit.new_zeros(n_classes, unit.shape[1])
    sums.index_add_(0, classes[known], unit[known])
    # The mean of all products of two groups is the product of their means.
    count = torch.bincount(classes[known], minlength=n_classes)
    means = sums / count[:, None]
    return means @ means.T


def same_class_test(
    feat: Tensor,
    label: Tensor,
    *,
    metric: str = "cosine",
    draws: int = 20_000,
    generator: torch.Generator,
) -> float:
    """How often the patch of the same class is the more similar one, in percent.

    Draw a patch, a second one of its class and a third one of another class, anywhere
    in the images; all classes equally often. Is the first more similar to the second
    than to the third? Features that know nothing reach 50; ties count half. Now and
    then a patch meets itself, which matters for very rare classes alone.

    Args:
        feat: shape (N, C, h, w); centre it first (:func:`centred`) for cosines.
        label: classes, shape (N, H, W), ignore = -1.
        metric: "cosine", or "euclidean" (the nearer patch is the more similar one).
        draws: how many; 20 000 leave an uncertainty of 0.3.
        generator: source of the draws.

    Raises:
        ValueError: unknown metric, or fewer than two classes occur.
    """
    if metric not in METRICS:
        raise ValueError(f"unknown metric {metric!r}; known: {', '.join(METRICS)}")
    classes = patch_classes(label, feat.shape[-2:]).flatten()
    rows = feat.movedim(1, -1).flatten(0, 2)
    first, second, third = _triplets(classes, draws, generator)
    if metric == "cosine":
        rows = F.normalize(rows, dim=1)
        same, other = ((rows[first] * rows[i]).sum(1) for i in (second, third))
    else:
        same, other = (-(rows[first] - rows[i]).norm(dim=1) for i in (second, third))
    return 100 * float(((same > other).float() + (same == other).float() / 2).mean())


def shared_cosines(first: Tensor, second: Tensor, shift: int) -> dict[str, float]:
    """Mean cosine of two patches that have one thing in common.

    Args:
        first: features of windows of N images, shape (N, C, h, w).
        second: features of windows of the same images that begin ``shift`` patches
            further down and further right, same shape.
        shift: in patches, 1 to min(h, w) - 1.

    Returns:
        "content": the same scene point, at another place of the window. "place": the
        same place of the window, in another image. "neither": another image and
        another place, as far apart as for "content".

    Raises:
        ValueError: fewer than two images, unequal shapes, or no overlap.
    """
    n, _, h, w = first.shape
    if first.shape != second.shape or n < 2 or not 1 <= shift < min(h, w):
        raise ValueError(
            "expected the features of two overlapping windows of at least two images, "
            f"got {tuple(first.shape)} and {tuple(second.shape)}, shifted by {shift}"
        )
    a, b = F.normalize(centred(torch.cat([first, second])), dim=1).chunk(2)
    inner, moved = a[..., shift:, shift:], b[..., :-shift, :-shift]
    pairs = {
        "content": (inner, moved),
        "place": (a, a.roll(1, 0)),
        "neither": (inner, moved.roll(1, 0)),
    }
    return {name: float((x * y).sum(1).mean()) for name, (x, y) in pairs.items()}


def label_cooccurrence(
    feat: Tensor, label: Tensor, coords1: Tensor, coords2: Tensor, n_classes: int
) -> tuple[Tensor, Tensor]:
    """Do places with similar features have the same class (STEGO, figure 3)?

    Args:
        feat: shape (B, C, h, w).
        label: classes, int64 (B, H, W), ignore = -1.
        coords1: points (x, y) as in :func:`~uss_utils.features.sample_at`, shape
            (B, P, Q, 2).
        coords2: points of the same images they are compared with, same shape.
        n_classes: K.

    Returns:
        Correlation of the features, not centred, and how much the labels agree, in
        [0, 1]: each point has a soft label, interpolated between its four pixels, and
        two of them agree by their inner product. "Ignored" counts as one more class.
        Both of shape (B, Q, P, Q, P): the points' axes are exchanged as in sampling.
    """
    soft1, soft2 = [], []
    for image, first, second in zip(label, coords1, coords2, strict=True):
        # One image at a time: one-hot labels of a batch are large.
        one_hot = F.one_hot(image + 1, n_classes + 1).permute(2, 0, 1)[None].to(feat)
        soft1.append(sample_at(one_hot, first[None]))
        soft2.append(sample_at(one_hot, second[None]))
    agreement = torch.einsum("bkhw,bkij->bhwij", torch.cat(soft1), torch.cat(soft2))
    return correlation(sample_at(feat, coords1), sample_at(feat, coords2)), agreement


def precision_recall(scores: Tensor, relevant: Tensor) -> tuple[Tensor, Tensor]:
    """Precision and recall of "the score is at least t", for every t that occurs.

    Args:
        scores: any shape.
        relevant: bool, same shape; for labels that agree: ``agreement > 0.5``.

    Returns:
        Precision and recall in [0, 1], from the highest t to the lowest.

    Raises:
        ValueError: nothing is relevant.
    """
    ordered, order = scores.flatten().sort(descending=True)
    hits = relevant.flatten()[order].double().cumsum(0)
    if not len(hits) or hits[-1] == 0:
        raise ValueError("nothing is relevant, so there is no recall to measure")
    # Equal scores cannot be told apart: only the last of them is a place to cut.
    last = torch.cat([ordered[1:] != ordered[:-1], ordered.new_ones(1).bool()])
    rank = torch.arange(1, len(hits) + 1, device=hits.device)
    return (hits / rank)[last], (hits / hits[-1])[last]


def average_precision(scores: Tensor, relevant: Tensor) -> float:
    """Area under the steps of :func:`precision_recall`, in [0, 1]."""
    precision, recall = precision_recall(scores, relevant)
    return float((precision * recall.diff(prepend=recall.new_zeros(1))).sum())


def _triplets(
    classes: Tensor, draws: int, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """Two patches of one class and one of another, classes equally often."""
    count = torch.bincount(classes[classes >= 0])
    present = count.nonzero()[:, 0]
    if len(present) < 2:
        raise ValueError(
            f"the test needs patches of at least two classes, found {len(present)}"
        )
    order = classes.argsort(stable=True)  # ignored ones come first
    start = (classes < 0).sum() + count.cumsum(0) - count

    def patch_of(kind: Tensor) -> Tensor:
        place = torch.rand(draws, generator=generator) * count[kind]
        return order[start[kind] + place.long()]

    own = torch.randint(len(present), (draws,), generator=generator)
    shift = torch.randint(1, len(present), (draws,), generator=generator)
    other = present[(own + shift) % len(present)]
    own = present[own]
    return patch_of(own), patch_of(own), patch_of(other)
