"""Contrastive loss over all patches of a batch, some anchors at a time.

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
    """What some anchors, the patches of one image say, are compared with.

    Attributes:
        rows: their place among the N patches of the batch: a slice, or row numbers
            of which none occurs twice.
        weights: weight of every pair (n, N), zero for negatives and in rows that are
            no anchors.
        denominator: patches that enter an anchor's normalisation, bool (n, N).
        scale: factor of the block's loss, usually one over the sum of the weights.
    """

    rows: slice | Tensor
    weights: Tensor
    denominator: Tensor
    scale: Tensor | float


class _Contrast(torch.autograd.Function):
    """Mean over views and blocks of -c sum_ij w_ij (s_ij - log sum_{k in D_i} e^s_ik).

    With s = z z^T / tau and q the softmax over the denominator, the derivative with
    respect to s_ij is -c (w_ij - w_i q_ij), where w_i = sum_j w_ij and c is the scale.
    """

    @staticmethod
    def forward(ctx, z: Tensor, blocks: Iterable[Rows], tau: float) -> Tensor:
        wanted = ctx.needs_input_grad[0]
        total, count = z.new_zeros(()), 0
        grad = torch.zeros_like(z) if wanted else None
        for block in blocks:
            count += 1
            share = block.weights.sum(1)
            for view, own in enumerate(z):
                scores = own[block.rows] @ own.T / tau
                loss, slope = _rows(scores, block, share, 1 / tau, wanted)
                total += block.scale * loss
                if wanted:
                    factor = block.scale / tau
                    grad[view][block.rows] += slope @ own * factor
                    grad[view] += slope.T @ own[block.rows] * factor
        mean = 1 / (count * len(z))
        if wanted:
            ctx.save_for_backward(grad.mul_(mean))
        return total * mean

    @staticmethod
    @once_differentiable
    def backward(ctx, upstream: Tensor) -> tuple[Tensor, None, None]:
        (grad,) = ctx.saved_tensors
        return grad * upstream, None, None


def _rows(
    scores: Tensor, block: Rows, share: Tensor, largest: float, wanted: bool
) -> tuple[Tensor, Tensor | None]:
    """Loss of one block and its derivative by the scores; ``scores`` is overwritten.

    A cosine is at most 1, so no score exceeds ``largest``: subtracting that instead of
    each row's maximum saves a pass over the matrix.
    """
    positive = torch.dot(block.weights.flatten(), scores.flatten())
    q = scores.sub_(largest).exp_().mul_(block.denominator)
    # A row with an empty denominator has no logarithm; having no positive either, it
    # is no anchor and plays no part.
    sums = q.sum(1).clamp_min(1e-37)
    loss = torch.dot(share, sums.log() + largest) - positive
    if not wanted:
        return loss, None
    return loss, q.mul_((share / sums)[:, None]).sub_(block.weights)


def contrast(z: Tensor, blocks: Iterable[Rows], tau: float) -> Tensor:
    """The mean, over views and images, of an image's weighted contrastive loss.

    Args:
        z: unit rows of all patches, one matrix per view of the same patches, shape
            (V, N, D).
        blocks: the anchors of each image; the masks of a block are made when it is
            asked for and serve all views.
        tau: temperature, at least 0.03: smaller ones leave the range of float32.

    Returns:
        Scalar: mean over V and blocks of
        ``-scale sum_ij w_ij (s_ij - log sum_{k in D_i} exp s_ik)``,
        ``s = z z^T / tau``. Its gradient reaches both sides of every pair.

    Raises:
        ValueError: the temperature is too small.
    """
    if not tau >= 0.03:
        raise ValueError(f"the temperature tau={tau} has to be at least 0.03")
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


def pair_weights(
    weights: Tensor, valid: Tensor, reweight: bool = True
) -> tuple[Tensor, Tensor]:
    """Silence rows that are no anchors, and find the scale that makes the rest a mean.

    Args:
        weights: of every pair, shape (n, N); changed in place.
        valid: rows that are anchors, bool (n,).
        reweight: rows count by the sum of their weights; otherwise all alike.

    Returns:
        The weights, and one over their sum (0 where there is no anchor).
    """
    weights.mul_(valid[:, None])
    if not reweight:
        weights.div_(weights.sum(1, keepdim=True).clamp_min(1e-12))
    total = weights.sum()
    return weights, torch.where(total > 0, 1 / total.clamp_min(1e-12), 0.0)
