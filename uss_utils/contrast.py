"""Contrastive loss over all patches of a batch, one image's rows at a time.

Every patch is compared with every other one, so the similarity matrix of a batch of 64
images has 2.5 billion entries. The loss and its gradient are sums over rows, and the
gradient has a closed form: both are accumulated image by image, and no matrix larger
than (patches of one image) x (patches of the batch) ever exists.
"""

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from uss_utils.rows import as_float


class Rows(NamedTuple):
    """What the patches of one image, the anchors, are compared with.

    Attributes:
        rows: their place among the N patches of the batch.
        weights: weight of every pair (n, N), zero for negatives; sums to 1 over the
            block, or is zero where the image has no valid anchor.
        denominator: patches that enter an anchor's normalisation, bool (n, N).
    """

    rows: slice
    weights: Tensor
    denominator: Tensor


class _Contrast(torch.autograd.Function):
    """Mean over the views z and the blocks of -sum_ij w_ij (s_ij - log sum_k e^s_ik).

    With s = z z^T / tau and q the softmax over the denominator, the derivative with
    respect to s_ij is -(w_ij - w_i q_ij), where w_i = sum_j w_ij.
    """

    @staticmethod
    def forward(ctx, z: Tensor, blocks: Iterable[Rows], tau: float) -> Tensor:
        wanted = ctx.needs_input_grad[0]
        total, count = z.new_zeros(()), 0
        grad = torch.zeros_like(z) if wanted else None
        for rows, weights, denominator in blocks:
            count += 1
            share = weights.sum(1)
            for view, own in enumerate(z):
                scores = own[rows] @ own.T / tau
                loss, slope = _rows(scores, weights, share, denominator, wanted)
                total += loss
                if wanted:
                    grad[view][rows] += slope @ own / tau
                    grad[view] += slope.T @ own[rows] / tau
        scale = 1 / (count * len(z))
        if wanted:
            ctx.save_for_backward(grad.mul_(scale))
        return total * scale

    @staticmethod
    @once_differentiable
    def backward(ctx, upstream: Tensor) -> tuple[Tensor, None, None]:
        (grad,) = ctx.saved_tensors
        return grad * upstream, None, None


def _rows(
    scores: Tensor, weights: Tensor, share: Tensor, denominator: Tensor, wanted: bool
) -> tuple[Tensor, Tensor | None]:
    """Loss of one block and its derivative by the scores; ``scores`` is overwritten."""
    positive = (weights * scores).sum()
    scores.masked_fill_(~denominator, -torch.inf)
    log_sum = scores.logsumexp(1)
    # A row with an empty denominator has no logarithm; having no positive either, it
    # is no anchor and plays no part.
    log_sum = log_sum.masked_fill(log_sum == -torch.inf, 0.0)
    loss = (share * log_sum).sum() - positive
    if not wanted:
        return loss, None
    q = scores.sub_(log_sum[:, None]).exp_()
    return loss, q.mul_(share[:, None]).sub_(weights)


def contrast(z: Tensor, blocks: Iterable[Rows], tau: float) -> Tensor:
    """The mean, over views and images, of an image's weighted contrastive loss.

    Args:
        z: unit rows of all patches, one matrix per view of the same patches, shape
            (V, N, D).
        blocks: the anchors of each image; the masks of a block are made when it is
            asked for and serve all views.
        tau: temperature.

    Returns:
        Scalar: mean over V and blocks of
        ``-sum_ij w_ij (s_ij - log sum_{k in D_i} exp s_ik)``, ``s = z z^T / tau``.
        Its gradient reaches both sides of every pair.
    """
    with torch.autocast(z.device.type, enabled=False):
        return _Contrast.apply(as_float(z), blocks, tau)


def by_image(n_rows: int, per_image: int) -> list[slice]:
    """Rows of each image, where rows are ordered image by image.

    Raises:
        ValueError: the rows do not divide into images.
    """
    if per_image < 1 or n_rows % per_image:
        raise ValueError(
            f"{n_rows} patches do not divide into images of {per_image} patches"
        )
    return [slice(i, i + per_image) for i in range(0, n_rows, per_image)]


def pair_weights(weights: Tensor, valid: Tensor, reweight: bool = True) -> Tensor:
    """Scale the weights of a block's pairs so that they sum to 1.

    Args:
        weights: of every pair, shape (n, N).
        valid: rows that are anchors, bool (n,).
        reweight: rows count by the sum of their weights; otherwise all alike.

    Returns:
        Same shape; zero in rows that are no anchors, all zero without any.
    """
    weights = weights * valid[:, None]
    sums = weights.sum(1, keepdim=True)
    if not reweight:
        weights = weights / sums.clamp_min(1e-12)
        sums = valid[:, None].to(weights)
    return weights / sums.sum().clamp_min(1e-12)
