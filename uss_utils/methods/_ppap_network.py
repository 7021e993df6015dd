"""PPAP's network: the last block twice, frozen and trained, and a projection."""

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Adam, AdamW, Optimizer

from uss_utils.frozen import Frozen
from uss_utils.heads import Standardise
from uss_utils.last_block import BlockHead, LastBlockTokens
from uss_utils.methods._ppap_loss import PPAPLoss
from uss_utils.readout import Readout


class Settings(Protocol):
    """What a step reads of :class:`uss_utils.methods.ppap.Config`."""

    optimiser: str
    lr: float
    weight_decay: float
    linear_lr: float
    cluster_lr: float


class PPAPNet(nn.Module):
    """Reference features, segmentation features and projection (section 3.1).

    Args:
        backbone: a plain vision transformer or its :class:`LastBlockTokens`; it is no
            part of the network, which only takes its last block.
        standardise: fixed map behind both branches; None: nothing.

    Attributes:
        frozen: the last block and the norm as they are: reference features.
        head: a trained copy of the block, the same norm: the code.
        projection: linear, C to C, on the code; the loss sees its unit rows.
    """

    def __init__(self, backbone: Frozen, standardise: Standardise | None = None):
        super().__init__()
        if not isinstance(backbone, LastBlockTokens):
            backbone = LastBlockTokens(backbone)
        # In a tuple it is no submodule: checkpoints need not hold what never changes.
        self._below = (backbone,)
        self.head = BlockHead.from_backbone(backbone)
        self.frozen = BlockHead.from_backbone(backbone).requires_grad_(False)
        self.standardise = standardise or Standardise(torch.zeros(self.head.dim))
        self.projection = nn.Linear(self.standardise.dim, self.standardise.dim)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Both branches of normalised images (B, 3, H, W).

        Returns:
            Code (B, C, h, w); unit projections (B h w, C), rows image by image; and
            reference features (B, C, h, w), which carry no gradient.
        """
        (below,) = self._below
        return self.forward_tokens(below.to(images.device).features(images))

    def forward_tokens(self, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The same of what enters the last block, which can be kept.

        Args:
            tokens: map of :class:`LastBlockTokens`, shape (B, C, h + 1, w).
        """
        with torch.no_grad():
            ref = self._fixed(self.frozen(tokens))
        code = self._fixed(self.head(tokens))
        rows = code.flatten(2).transpose(1, 2).flatten(0, 1)
        return code, F.normalize(self.projection(rows).float(), dim=1), ref

    def _fixed(self, feat: Tensor) -> Tensor:
        with torch.autocast(feat.device.type, enabled=False):
            return self.standardise(feat)

    def trainable_parameters(self) -> list[nn.Parameter]:
        """Those of the copied block and of the projection."""
        return [*self.head.block.parameters(), *self.projection.parameters()]


class PPAPTrainer(nn.Module):
    """Network and probes, and the losses of one training step (section 3.4).

    Args:
        model: the network.
        loss: the contrastive loss.
        readout: cluster probe and linear probe.
        cfg: the settings.
    """

    def __init__(self, model: PPAPNet, loss: PPAPLoss, readout: Readout, cfg: Settings):
        super().__init__()
        self.model, self.loss, self.readout, self.cfg = model, loss, readout, cfg

    def step(
        self,
        tokens: Tensor,
        label: Tensor | None,
        generator: torch.Generator | None = None,
        *,
        anchors: Tensor | None = None,
        keep: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Losses of a batch.

        Args:
            tokens: see :meth:`PPAPNet.forward_tokens`.
            label: int64 (B, H, W) for the linear probe, or None.
            generator: CPU generator of anchors and channel dropout.
            anchors: see :meth:`PPAPLoss.forward`, as is ``keep``.
            keep: recorded mask.

        Returns:
            Scalars: "loss" = contrast + linear + cluster, these three, "unscaled" (the
            contrastive loss without the factor tau / tau_base), and the figures of
            :meth:`PPAPLoss.forward`.
        """
        code, z, ref = self.model.forward_tokens(tokens)
        contrast, figures = self.loss(z, ref, anchors, keep, generator)
        losses = {"contrast": contrast} | self.readout.losses(code, label)
        factor = self.loss.tau / self.loss.tau_base
        figures["unscaled"] = contrast.detach() / factor
        return {"loss": sum(losses.values())} | losses | figures

    def optimisers(self) -> dict[str, Optimizer]:
        """AdamW or Adam for the network, Adam for the probes."""
        cfg, weights = self.cfg, self.model.trainable_parameters()
        net = Adam(weights, lr=cfg.lr)
        if cfg.optimiser == "adamw":
            net = AdamW(weights, lr=cfg.lr, weight_decay=cfg.weight_decay)
        return {"net": net} | self.readout.optimisers(cfg.linear_lr, cfg.cluster_lr)
