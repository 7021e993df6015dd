"""MaskContrast's two networks and queue, and the losses of one training step.

Where several processes train together, prototypes are all that they exchange: each
embeds key views of all of them, drawn at random, so that the statistics of its batch
norms tell nothing about its own images (He et al., MoCo, 2020, section 3.3).
"""

import copy

import torch
from torch import Tensor, nn
from torch import distributed as dist

from uss_utils import ranks
from uss_utils.methods._maskcontrast_loss import (
    contrast_and_accuracy,
    object_prototypes,
    shrink_masks,
)
from uss_utils.methods._maskcontrast_queue import PrototypeQueue
from uss_utils.pixel_embedder import PixelEmbedder
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
        """Let batch norms see the batches of all processes; changes nothing on a CPU.

        The released code keeps each process's own statistics. Where only one process
        trains, or the weights are not on a GPU, which torch's layer demands, nothing
        happens.
        """
        ranks.synchronise_batch_norm(self.query, self.key)

    def forward(
        self,
        view_q: Tensor,
        view_k: Tensor,
        mask_q: Tensor,
        mask_k: Tensor,
        generator: torch.Generator | None = None,
    ) -> dict[str, Tensor]:
        """Losses of a batch. In training mode the key network and the queue move on.

        Args:
            view_q: what the query network takes, shape (B, 3, H, W).
            view_k: other views of the same images, same shape.
            mask_q: bool or ids 0..n, shape (B, H, W); the ids of both views agree.
            mask_k: of the key views.
            generator: CPU generator of the shuffling over processes; unused by one.

        Returns:
            Scalars: "loss" = contrastive + saliency, these two, and "accuracy", the
            share of object pixels that are more like their own object's prototype than
            any other candidate. Objects missing from the key view take no part in the
            contrastive loss.

        Raises:
            ValueError: masks that do not fit the views.
        """
        _check_views(view_q, mask_q)
        _check_views(view_k, mask_k)
        embedding, logits = self.query(view_q)
        mask_q = shrink_masks(mask_q, embedding.shape[2:])
        saliency = balanced_bce(logits, mask_q > 0)
        if self.training:
            self.update_key()
        n = _most_objects(mask_q, mask_k)
        own, everyone = self._prototypes(view_k, mask_k, n, generator)
        contrastive, accuracy = contrast_and_accuracy(
            embedding,
            mask_q,
            own,
            self.queue.negatives,
            self.temperature,
            valid=_present(own),
        )
        if self.training:
            self.queue.push(everyone[_present(everyone)])
        return {
            "loss": contrastive + saliency,
            "contrastive": contrastive,
            "saliency": saliency,
            "accuracy": accuracy,
        }

    @torch.no_grad()
    def _prototypes(
        self, views: Tensor, masks: Tensor, n: int, generator: torch.Generator | None
    ) -> tuple[Tensor, Tensor]:
        """Prototypes of this process's objects (B n, D), and of all processes'.

        What travels between processes are views, masks and prototypes: embeddings of
        every pixel would be a hundred times as much.
        """
        if ranks.world_size() == 1:
            own = self._embed_objects(views, masks, n)
            return own, own
        size, rank = len(views), ranks.rank()
        order = _shared_order(size * ranks.world_size(), generator, views.device)
        mine = order[rank * size :][:size]
        views, masks = ranks.gather(views)[mine], ranks.gather(masks.long())[mine]
        found = ranks.gather(self._embed_objects(views, masks, n)).unflatten(0, (-1, n))
        everyone = torch.empty_like(found)
        everyone[order] = found
        own = everyone[rank * size :][:size]
        return own.flatten(0, 1), everyone.flatten(0, 1)

    def _embed_objects(self, views: Tensor, masks: Tensor, n: int) -> Tensor:
        embedding = self.key.embed(views)
        masks = shrink_masks(masks, embedding.shape[2:])
        return object_prototypes(embedding, masks, n)


def _present(prototypes: Tensor) -> Tensor:
    """Which rows belong to an object that has a pixel."""
    return prototypes.ne(0).any(1)


def _check_views(view: Tensor, mask: Tensor) -> None:
    if len(view) != len(mask) or mask.dim() != 3:
        raise ValueError(
            f"masks must have shape ({len(view)}, H, W) beside views "
            f"{tuple(view.shape)}, got {tuple(mask.shape)}"
        )


# --------------------------------------------------------------- several processes


def _most_objects(*masks: Tensor) -> int:
    """The largest id, over all processes; at least 1."""
    highest = torch.stack([mask.max().long() for mask in masks]).max().clamp_min(1)
    if ranks.world_size() > 1:
        dist.all_reduce(highest, dist.ReduceOp.MAX)
    return int(highest)


def _shared_order(
    n: int, generator: torch.Generator | None, device: torch.device
) -> Tensor:
    """One permutation for all processes: the first one's."""
    order = torch.randperm(n, generator=generator).to(device)
    dist.broadcast(order, 0)
    return order
