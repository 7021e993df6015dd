"""MaskContrast's two networks and queue, and the losses of one training step.

Where several processes share a batch, prototypes are all that they exchange, and their
batch norms see all views: the result is that of one process. The released code keeps
each process's own statistics, compares its pixels with the prototypes of its own images
and the queue, and weighs and averages over them alone. So that statistics tell nothing
about a process's own images, it shuffles the key views over the processes (He et al.,
MoCo, 2020, section 3.3); with statistics of the whole batch that would change nothing
but rounding.
"""

import copy

import torch
from torch import Tensor, nn

from uss_utils import joined_norm, ranks
from uss_utils.methods._maskcontrast_loss import (
    contrast_and_accuracy,
    object_prototypes,
    shrink_masks,
)
from uss_utils.methods._maskcontrast_queue import PrototypeQueue
from uss_utils.pixel_embedder import PixelEmbedder
from uss_utils.rows import as_float
from uss_utils.saliency_head import balanced_bce


class MaskContrast(nn.Module):
    """Query network, its slow copy, and the queue of prototypes (section 3.2).

    Args:
        embedder: the query network; the key network begins as a copy of it.
        queue_size: prototypes K kept from earlier batches.
        temperature: T of the contrastive loss.
        key_momentum: m, share of the key network's weights that a step keeps.
        generator: CPU generator of the queue's random start.

    Raises:
        ValueError: a temperature that is not positive, a momentum outside [0, 1], or a
            negative queue size.
    """

    def __init__(
        self,
        embedder: PixelEmbedder,
        queue_size: int = 128,
        temperature: float = 0.5,
        key_momentum: float = 0.999,
        generator: torch.Generator | None = None,
    ):
        super().__init__()
        if not temperature > 0:
            raise ValueError(f"the temperature has to be above 0, got {temperature}")
        if not 0 <= key_momentum <= 1:
            raise ValueError(f"the key momentum lies in [0, 1], got {key_momentum}")
        self.temperature, self.key_momentum = temperature, key_momentum
        self.query = embedder
        self.key = copy.deepcopy(embedder).requires_grad_(False)
        self.queue = PrototypeQueue(embedder.dim, queue_size, generator)

    @torch.no_grad()
    def update_key(self) -> None:
        """Move the key network's weights: key <- m key + (1 - m) query.

        Parameters alone: its batch norms' statistics come from what it sees itself.
        """
        weights, slow = list(self.query.parameters()), list(self.key.parameters())
        torch._foreach_lerp_(slow, weights, 1 - self.key_momentum)

    def freeze_backbone_stages(self, n: int) -> None:
        """Keep the first stages of both backbones as they are.

        Args:
            n: residual stages; the recipe that starts from ImageNet labels takes 2.

        Raises:
            ValueError: see
                :meth:`~uss_utils.pixel_embedder.PixelEmbedder.freeze_backbone_stages`.
        """
        self.query.freeze_backbone_stages(n)
        self.key.freeze_backbone_stages(n)
        self.key.requires_grad_(False)

    def synchronise_batch_norm(self) -> None:
        """Let batch norms and dropout see the batches of all processes."""
        joined_norm.join(self.query, self.key)

    def forward(
        self,
        view_q: Tensor,
        view_k: Tensor,
        mask_q: Tensor,
        mask_k: Tensor,
        move_key: bool = True,
    ) -> dict[str, Tensor]:
        """Losses of a batch. In training mode the key network and the queue move on.

        Where a batch is computed in parts, the key network has to move once, with the
        first. Pixels are then compared with the prototypes of their own part and with
        the queue, to which the parts before have been added; weights, shares and batch
        norms are those of a part, too.

        Args:
            view_q: what the query network takes, shape (B, 3, H, W).
            view_k: other views of the same images, same shape.
            mask_q: bool or ids 0..n, shape (B, H, W); the ids of both views agree.
            mask_k: of the key views.
            move_key: let the key network move.

        Returns:
            Scalars: "loss" = contrastive + saliency, these two, and "accuracy", the
            share of object pixels that are more like their own object's prototype than
            any other candidate. Objects missing from the key view take no part in the
            contrastive loss. The mean over processes is that of the whole batch.

        Raises:
            ValueError: masks that do not fit the views.
        """
        _check_views(view_q, mask_q)
        _check_views(view_k, mask_k)
        embedding, logits = self.query(view_q)
        mask_q = shrink_masks(mask_q, embedding.shape[2:])
        saliency = _saliency(logits, mask_q > 0)
        if self.training and move_key:
            self.update_key()
        prototypes = self._prototypes(view_k, mask_k, _most_objects(mask_q, mask_k))
        present = prototypes.ne(0).any(1)  # rows of an object that has a pixel
        contrastive, accuracy = contrast_and_accuracy(
            embedding,
            mask_q,
            prototypes,
            self.queue.negatives,
            self.temperature,
            valid=present,
        )
        if self.training:
            self.queue.push(prototypes[present])
        return {
            "loss": contrastive + saliency,
            "contrastive": contrastive,
            "saliency": saliency,
            "accuracy": accuracy,
        }

    @torch.no_grad()
    def _prototypes(self, views: Tensor, masks: Tensor, n: int) -> Tensor:
        """Prototypes of the objects of all processes, n per image, (B n, D).

        Embeddings of every pixel would be a hundred times as much to exchange.
        """
        embedding = self.key.embed(views)
        masks = shrink_masks(masks, embedding.shape[2:])
        return ranks.gather_rows(object_prototypes(embedding, masks, n))


def _check_views(view: Tensor, mask: Tensor) -> None:
    if len(view) != len(mask) or mask.dim() != 3:
        raise ValueError(
            f"masks must have shape ({len(view)}, H, W) beside views "
            f"{tuple(view.shape)}, got {tuple(mask.shape)}"
        )


def _most_objects(*masks: Tensor) -> int:
    """The largest id, over all processes; at least 1."""
    highest = torch.stack([mask.max().long() for mask in masks]).max()
    return max(1, int(ranks.gather(highest[None]).max()))


def _saliency(logits: Tensor, inside: Tensor) -> Tensor:
    """The balanced cross-entropy whose shares and mean are those of all processes."""
    own = inside.numel()
    everywhere = sum(ranks.counts(own))
    background = 1 - ranks.total(inside.sum()).to(as_float(logits)) / everywhere
    scale = ranks.world_size() * own / everywhere
    return balanced_bce(logits, inside, background) * scale
