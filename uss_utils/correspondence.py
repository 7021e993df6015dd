"""Correspondences: how similar every place of one image is to every place of another.

STEGO learns from them (section 3), and they are worth looking at by themselves: the
tensors here have shape (B, h, w, i, j), where ``[b, h, w, i, j]`` compares place (h, w)
of the first image of pair b with place (i, j) of the second.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from uss_utils.features import sample_at

EPS = 1e-10  # smallest norm a vector is divided by


def correlation(a: Tensor, b: Tensor) -> Tensor:
    """Cosine of every place of one map with every place of another (STEGO, eq. 1).

    Args:
        a: vectors of the first images, shape (B, C, h, w).
        b: vectors of the second images, shape (B, C, i, j).

    Returns:
        In [-1, 1], shape (B, h, w, i, j).

    Raises:
        ValueError: maps of different number or width.
    """
    if a.ndim != 4 or b.ndim != 4 or a.shape[:2] != b.shape[:2]:
        raise ValueError(
            "a correlation needs two maps of shape (B, C, h, w) with the same B and C, "
            f"got {tuple(a.shape)} and {tuple(b.shape)}"
        )
    first, second = (F.normalize(x, dim=1, eps=EPS).flatten(2) for x in (a, b))
    return (
        (first.transpose(1, 2) @ second)
        .unflatten(2, b.shape[2:])
        .unflatten(1, a.shape[2:])
    )


def centre(corr: Tensor) -> Tensor:
    """Take from every place what it shares with the whole second image.

    The mean over (i, j) is subtracted: a place that resembles everything attracts
    nothing in particular. The released code then adds the mean of the whole uncentred
    tensor, over all pairs, which the paper does not mention; all published shifts are
    made for that.

    Args:
        corr: shape (B, h, w, i, j).

    Returns:
        Same shape and same overall mean; for every place its mean over (i, j) is that
        overall mean.
    """
    return corr - corr.mean((3, 4), keepdim=True) + corr.mean()


def pair_loss(
    feat_corr: Tensor,
    code_corr: Tensor,
    shift: float,
    clamp: bool = True,
    stabilize: bool = False,
) -> Tensor:
    """Loss of every pair of places (STEGO, eq. 4).

    ``-code_corr * (feat_corr - shift)``: codes of places whose features correlate above
    the shift are pulled together, the others pushed apart.

    Args:
        feat_corr: of the features, usually centred; a constant, shape (B, h, w, i, j).
        code_corr: of the codes, same shape; the gradient flows through it.
        shift: the limit b between attraction and repulsion.
        clamp: codes that are at least orthogonal are not pushed further: negative
            ``code_corr`` counts as 0 and gets no gradient.
        stabilize: likewise, ``code_corr`` above 0.8 counts as 0.8.

    Returns:
        Same shape.
    """
    lowest = 0.0 if clamp else -9999.0  # a cosine never gets there
    limited = code_corr.clamp(lowest, 0.8 if stabilize else None)
    return -limited * (feat_corr.detach() - shift)


def shift_for_share(feat_corr: Tensor, share: float) -> float:
    """The shift that lets a given share of the pairs of places attract each other.

    Published shifts suit one backbone; a share carries over to other features.

    Args:
        feat_corr: centred, any shape.
        share: in [0, 1].

    Returns:
        The (1 - share)-quantile: ``(feat_corr > shift)`` holds for ``share`` of all
        entries, up to one entry (and ties).

    Raises:
        ValueError: a share outside [0, 1], no entries, or entries that are not finite.
    """
    if not 0 <= share <= 1:
        raise ValueError(f"a share lies in [0, 1], got {share}")
    values = feat_corr.detach().float().cpu().numpy()
    if not values.size or not np.isfinite(values).all():
        raise ValueError(
            "a shift can only be found among finite correlations; got "
            + ("none at all" if not values.size else "NaN or infinite ones")
        )
    return float(np.quantile(values, 1 - share))


def random_coords(n: int, samples: int, generator: torch.Generator) -> Tensor:
    """Random points (x, y) in [-1, 1), shape (n, samples, samples, 2)."""
    return 2 * torch.rand(n, samples, samples, 2, generator=generator) - 1


def random_partners(n: int, generator: torch.Generator) -> Tensor:
    """Another image of the batch for every image.

    A random permutation in which every image that met itself gets the next one
    instead; the result is then no permutation any more.

    Args:
        n: images in the batch.
        generator: CPU generator.

    Returns:
        Index of each image's partner, never its own, int64 (n,).

    Raises:
        ValueError: fewer than two images.
    """
    if n < 2:
        raise ValueError(
            f"random pairs need at least two images in a batch, got {n}; raise "
            "batch_size, or leave out an incomplete last batch"
        )
    partners = torch.randperm(n, generator=generator)
    own = partners == torch.arange(n)
    return (partners + own) % n


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
