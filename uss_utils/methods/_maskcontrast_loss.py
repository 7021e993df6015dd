"""MaskContrast's loss: every pixel of an object has to find its object's prototype.

Van Gansbeke et al., Unsupervised Semantic Segmentation by Contrasting Object Mask
Proposals, ICCV 2021, section 3.2. Masks are maps of ids, 0 for the background and
1..n for the objects of an image; a binary mask is the case n = 1. Row ``b n + id - 1``
of the prototypes belongs to object ``id`` of image b.

Where several processes share a batch, each has the pixels of its own images; prototypes
are those of all, and every mean is taken over the pixels of all.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from uss_utils import ranks
from uss_utils.rows import as_float

EPS = 1e-12  # vectors shorter than this are not scaled to unit length


def object_prototypes(
    embeddings: Tensor, masks: Tensor, n_objects: int | None = None
) -> Tensor:
    """The direction of each object: its pixels' unit embeddings, summed, normalised.

    Args:
        embeddings: not normalised, shape (B, D, H, W).
        masks: bool, or ids 0..n, shape (B, H, W).
        n_objects: rows n per image; None: the largest id, at least 1.

    Returns:
        Unit rows, image by image and id by id, shape (B n, D); zero for an object that
        has no pixel.

    Raises:
        ValueError: shapes that do not fit, or an id above ``n_objects``.
    """
    masks, n = _checked(embeddings, masks, n_objects)
    with torch.autocast(embeddings.device.type, enabled=False):
        flat = as_float(embeddings).flatten(2)
        norm = torch.linalg.vector_norm(flat, dim=1, keepdim=True).clamp_min(EPS)
        ids = torch.arange(1, n + 1, device=masks.device)[:, None]
        # Dividing the members instead of the embeddings spares a second B x D x H W.
        members = (masks.flatten(1)[:, None] == ids) / norm
        sums = torch.einsum("bdp,bnp->bnd", flat, members)
        return F.normalize(sums.flatten(0, 1), dim=1, eps=EPS)


class Anchors(NamedTuple):
    """The object pixels of a batch, in the order image, row, column.

    Attributes:
        image: int64 (P,).
        pixel: place in the flattened image, int64 (P,).
        label: row of the prototype, int64 (P,).
    """

    image: Tensor
    pixel: Tensor
    label: Tensor

    def of(self, embeddings: Tensor, part: slice = slice(None)) -> Tensor:
        """Embeddings (B, D, H, W) of some anchors as rows, shape (p, D)."""
        return embeddings.flatten(2)[self.image[part], :, self.pixel[part]]


def object_pixels(masks: Tensor, n_objects: int) -> Anchors:
    """The anchors of masks of ids 0..n_objects, shape (B, H, W)."""
    flat = masks.flatten()
    place = flat.nonzero()[:, 0]
    area = masks[0].numel()
    image = place // area
    return Anchors(image, place % area, image * n_objects + flat[place].long() - 1)


def pixel_object_logits(
    query: Tensor,
    masks: Tensor,
    prototypes: Tensor,
    queue: Tensor,
    temperature: float = 0.5,
) -> tuple[Tensor, Tensor]:
    """Similarity of every object pixel with all prototypes and the queue, to look at.

    :func:`mask_contrastive_loss` never holds this matrix as a whole.

    Args:
        query: embeddings, not normalised, shape (B, D, H, W).
        masks: of the query views, bool or ids 0..n, shape (B, H, W).
        prototypes: of the key views, shape (B n, D).
        queue: prototypes of earlier batches as columns, shape (D, K).
        temperature: T.

    Returns:
        Cosines over T, shape (P, B n + K), and the column of each pixel's own
        prototype, int64 (P,). The pixels are ordered by image, row, column.

    Raises:
        ValueError: shapes that do not fit, or a temperature that is not positive.
    """
    masks, n = _check_step(query, masks, prototypes, queue, temperature, len(query))
    anchors = object_pixels(masks, n)
    z = F.normalize(anchors.of(as_float(query)), dim=1, eps=EPS)
    candidates = torch.cat([prototypes, queue.T]).to(z)
    return z @ candidates.T / temperature, anchors.label


def inverse_log_weights(labels: Tensor, num_columns: int, c: float = 1.02) -> Tensor:
    """Weight of every column, 1 / ln(c + share of the anchors that belong to it).

    Large objects are damped, not levelled: with c = 1.02 an object that holds all
    anchors weighs 1.42, one that holds none 50.5.

    Args:
        labels: column of each anchor, int64 (P,).
        num_columns: columns in all.
        c: above 1, so that all weights are positive and finite.

    Returns:
        float32, shape (num_columns,).

    Raises:
        ValueError: c does not exceed 1.
    """
    if not c > 1:
        raise ValueError(f"c={c} has to be above 1")
    counts = torch.bincount(labels, minlength=num_columns)
    return _damped(counts, len(labels), c)


def _damped(counts: Tensor, total: int, c: float = 1.02) -> Tensor:
    return 1 / torch.log(c + counts.float() / max(1, total))


class _PixelToObject(torch.autograd.Function):
    """Weighted cross-entropy of the anchors, and how many find their object.

    With z = E / |E| and p the softmax over the candidates u, the derivative of an
    anchor's share by z is g = w / (T sum w) (sum_j p_j u_j - u_y); by E it is
    (g - (g z) z) / |E|. Both are made with the loss, a few anchors at a time, so that
    what is kept has P x D entries, not P x (B + K).
    """

    @staticmethod
    def forward(
        ctx,
        query: Tensor,
        anchors: Anchors,
        weights: Tensor,
        candidates: Tensor,
        temperature: float,
        chunk: int,
    ) -> tuple[Tensor, Tensor]:
        total, hits = query.new_zeros(()), query.new_zeros(())
        grads = []
        for start in range(0, len(weights), chunk):
            part = slice(start, start + chunk)
            loss, found, grad = _few_anchors(
                anchors.of(query, part),
                candidates,
                anchors.label[part],
                weights[part],
                temperature,
                ctx.needs_input_grad[0],
            )
            total += loss
            hits += found
            grads.append(grad)
        if ctx.needs_input_grad[0]:
            ctx.save_for_backward(anchors.image, anchors.pixel, torch.cat(grads))
            ctx.shape = query.shape
        ctx.mark_non_differentiable(hits)
        return total, hits

    @staticmethod
    @once_differentiable
    def backward(ctx, upstream: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        image, pixel, rows = ctx.saved_tensors
        grad = rows.new_zeros(ctx.shape)
        grad.flatten(2)[image, :, pixel] = rows * upstream
        return grad, None, None, None, None, None


def _few_anchors(
    rows: Tensor,
    candidates: Tensor,
    label: Tensor,
    weights: Tensor,
    temperature: float,
    wanted: bool,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Loss of some anchors, how many find their object, the derivative by ``rows``."""
    norm = torch.linalg.vector_norm(rows, dim=1, keepdim=True).clamp_min(EPS)
    z = rows / norm
    scores = z @ candidates.T
    scores /= temperature
    own = scores.gather(1, label[:, None])
    # Only being more alike than every other counts: where all are equal, none is found.
    best = scores.scatter_(1, label[:, None], -torch.inf).amax(1, keepdim=True)
    largest = torch.maximum(best, own)
    p = scores.scatter_(1, label[:, None], own).sub_(largest).exp_()
    sums = p.sum(1, keepdim=True)
    loss = torch.dot(weights, (sums.log() + largest - own)[:, 0])
    found = (own > best).sum()
    if not wanted:
        return loss, found, None
    g = (p @ candidates).div_(sums).sub_(candidates[label])
    g -= (g * z).sum(1, keepdim=True) * z
    return loss, found, g.mul_(weights[:, None] / (temperature * norm))


def contrast_and_accuracy(
    query: Tensor,
    query_masks: Tensor,
    prototypes: Tensor,
    queue: Tensor,
    temperature: float = 0.5,
    chunk: int = 4096,
    valid: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """:func:`mask_contrastive_loss` and the share of pixels that find their object.

    A pixel finds its object if no other candidate is as much like it as its own
    prototype; the share is a scalar in [0, 1], 0 where there is no object.
    """
    images = ranks.counts(len(query))
    masks, n = _check_step(
        query, query_masks, prototypes, queue, temperature, sum(images)
    )
    anchors = object_pixels(masks, n)
    anchors = anchors._replace(label=anchors.label + n * sum(images[: ranks.rank()]))
    if valid is not None:
        place = valid.cumsum(0) - 1
        keep = valid[anchors.label]
        anchors = Anchors(*(x[keep] for x in anchors))
        anchors = anchors._replace(label=place[anchors.label])
        prototypes = prototypes[valid]
    with torch.autocast(query.device.type, enabled=False):
        query = as_float(query)
        candidates = torch.cat([prototypes, queue.T]).to(query)
        pixels = sum(ranks.counts(len(anchors.label)))
        sizes = torch.bincount(anchors.label, minlength=len(candidates))
        weights = _damped(ranks.total(sizes), pixels).to(query)[anchors.label]
        # A sum over the share of each process, averaged over processes, is the mean.
        weights /= ranks.total(weights.sum()) / len(images)
        if not len(weights):
            return query.sum() * 0, query.new_zeros(())
        loss, hits = _PixelToObject.apply(
            query, anchors, weights, candidates, temperature, chunk
        )
        return loss, hits / (pixels / len(images))


def mask_contrastive_loss(
    query: Tensor,
    query_masks: Tensor,
    prototypes: Tensor,
    queue: Tensor,
    temperature: float = 0.5,
    chunk: int = 4096,
    valid: Tensor | None = None,
) -> Tensor:
    """Weighted cross-entropy between object pixels and prototypes (section 3.2).

    The mean over all object pixels of -log softmax at their own prototype, weighted by
    :func:`inverse_log_weights`. Its gradient reaches ``query`` alone, and cannot be
    differentiated again.

    Args:
        query: embeddings, not normalised, shape (B, D, H, W).
        query_masks: bool or ids 0..n, shape (B, H, W).
        prototypes: of the key views of all processes, shape (B n, D).
        queue: prototypes of earlier batches as columns, shape (D, K).
        temperature: T.
        chunk: pixels at a time; no result depends on it but for rounding.
        valid: prototypes that exist, bool (B n,): the others are no candidates, and
            their pixels are left out. None: all.

    Returns:
        Scalar; 0 where no pixel is left, still depending on ``query``. The mean over
        processes is the loss.

    Raises:
        ValueError: shapes that do not fit, an id without a row of prototypes, or a
            temperature that is not positive.
    """
    return contrast_and_accuracy(
        query, query_masks, prototypes, queue, temperature, chunk, valid
    )[0]


def shrink_masks(masks: Tensor, size: tuple[int, int]) -> Tensor:
    """Masks on a coarser grid: the id with the largest share of each cell.

    Where two hold the same share the smaller id wins, so that a binary mask keeps the
    cells that are covered by more than half.

    Args:
        masks: bool or ids 0..n, shape (B, H, W).
        size: (h, w).

    Returns:
        int64, shape (B, h, w).
    """
    if tuple(masks.shape[1:]) == tuple(size):
        return masks.long()
    shares = F.one_hot(masks.long()).movedim(3, 1).float()
    return F.adaptive_avg_pool2d(shares, size).argmax(1)


def _check_step(
    query: Tensor,
    masks: Tensor,
    prototypes: Tensor,
    queue: Tensor,
    temperature: float,
    images: int,
) -> tuple[Tensor, int]:
    """Masks and rows per image, of prototypes of so many images."""
    if not temperature > 0:
        raise ValueError(f"the temperature has to be above 0, got {temperature}")
    n, rest = divmod(len(prototypes), images)
    dim = query.shape[1]
    if rest or not n or prototypes.shape[1:] != (dim,) or queue.shape[:1] != (dim,):
        raise ValueError(
            f"for embeddings {tuple(query.shape)} the prototypes must have shape "
            f"({images} n, {dim}) and the queue ({dim}, K), got "
            f"{tuple(prototypes.shape)} and {tuple(queue.shape)}"
        )
    return _checked(query, masks, n)


def _checked(embeddings: Tensor, masks: Tensor, n: int | None) -> tuple[Tensor, int]:
    """The masks as integers, and how many objects an image may have."""
    shape = (len(embeddings), *embeddings.shape[2:])
    if (
        embeddings.dim() != 4
        or tuple(masks.shape) != shape
        or masks.is_floating_point()
    ):
        raise ValueError(
            "masks must be bool or integer (B, H, W) beside embeddings (B, D, H, W), "
            f"got {masks.dtype} {tuple(masks.shape)} and {tuple(embeddings.shape)}"
        )
    masks = masks.to(torch.uint8) if masks.dtype == torch.bool else masks
    lowest, highest = torch.stack(masks.aminmax()).tolist() if masks.numel() else (0, 0)
    if lowest < 0:
        raise ValueError(f"masks hold ids from 0 (background), got {lowest}")
    if n is not None and highest > n:
        raise ValueError(
            f"the masks name object {highest}, but only {n} per image are expected"
        )
    return masks, n or max(1, highest)
