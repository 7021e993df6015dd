"""HP's network: two heads, a projection, the pools, and the losses of one step."""

import copy
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Adam, AdamW, Optimizer

from uss_utils.contrast import contrast
from uss_utils.heads import SegmentationHead, channel_dropout
from uss_utils.local_attention import mix_local
from uss_utils.positives import HiddenPositives, pick_patches
from uss_utils.readout import Readout
from uss_utils.schedules import EMA


class Settings(Protocol):
    """What a step reads of :class:`uss_utils.methods.hp.Config`."""

    tau: float
    alpha: float
    rho: float
    reweight: bool
    lr: float
    weight_decay: float
    projection_lr: float
    linear_lr: float
    cluster_lr: float


def consistency_loss(z: Tensor, z_aug: Tensor) -> Tensor:
    """Mean distance of the projections of an image and of its photometric twin.

    ``|z_i - z'_i + 1e-6|``, the small number added to every component.
    """
    return F.pairwise_distance(z, z_aug, eps=1e-6).mean()


def lambda_schedule(step: int, total: int, warmup: int) -> float:
    """Weight of the task-specific positives: 0 in the warm-up, then rising towards 1.

    Args:
        step: from 0.
        total: steps of the training.
        warmup: last step at which it is 0.
    """
    return max(0.0, (step - warmup) / (total - warmup)) if total > warmup else 0.0


class HPModel(nn.Module):
    """Student head, teacher head, projection and the reference pools.

    Args:
        in_dim: channels C the heads see.
        dim: code channels D.
        pool: patches M of each pool.
        momentum: of the teacher.
        dropout: share of channels dropped in front of the heads.
        dropout_outputs: share of channels dropped from features, teacher code and
            mixed code.

    Attributes:
        pool_agnostic: unit features, (M, C); stays as it was built.
        recent: features of random patches of the last M training images, (M, C); what
            the task-specific pool is renewed from, with the head alone.
        pool_specific: unit teacher codes, (M, D).
        turn: row of ``recent`` that is replaced next.
    """

    def __init__(
        self,
        in_dim: int,
        dim: int,
        pool: int,
        momentum: float,
        dropout: float = 0.1,
        dropout_outputs: float = 0.1,
    ):
        super().__init__()
        self.student = SegmentationHead(in_dim, dim, dropout=dropout)
        self.teacher = copy.deepcopy(self.student)
        self.projection = nn.Linear(dim, dim)
        self.dropout_outputs = dropout_outputs
        self.register_buffer("pool_agnostic", torch.zeros(pool, in_dim))
        self.register_buffer("recent", torch.zeros(pool, in_dim))
        self.register_buffer("pool_specific", torch.zeros(pool, dim))
        self.register_buffer("turn", torch.zeros((), dtype=torch.int64))
        self.average = EMA(self.student, momentum, target=self.teacher)

    def drop(self, maps: Tensor, generator: torch.Generator | None) -> Tensor:
        """Channel dropout of an output, in training mode."""
        if not self.training:
            return maps
        return channel_dropout(maps, self.dropout_outputs, generator=generator)

    def project(self, code: Tensor) -> Tensor:
        """Unit projections of all patches, image by image: (B, D, h, w) -> (N, D)."""
        return F.normalize(self.projection(_rows(code)).float(), dim=1)

    @torch.no_grad()
    def remember(self, feat: Tensor, generator: torch.Generator) -> None:
        """Put a random patch of every image into ``recent``, in place of the oldest."""
        new = pick_patches([feat], len(feat), generator=generator)
        m = len(self.recent)
        place = (self.turn + torch.arange(len(new), device=feat.device)) % m
        self.recent[place] = new
        self.turn.add_(len(new)).remainder_(m)

    @torch.no_grad()
    def renew(self, generator: torch.Generator) -> None:
        """Make the task-specific pool anew with the teacher as it is now."""
        code = self.teacher(self.recent[:, :, None, None], generator)
        code = self.drop(code.float(), generator)[:, :, 0, 0]
        self.pool_specific.copy_(F.normalize(code, dim=1))


def _rows(maps: Tensor) -> Tensor:
    """Patches of all images, image by image: (B, C, h, w) -> (B h w, C)."""
    return maps.flatten(2).transpose(1, 2).flatten(0, 1)


class HPTrainer(nn.Module):
    """Model and probes, and the losses of one training step (section 3).

    Args:
        model: heads, projection, pools.
        readout: cluster probe and linear probe.
        cfg: the settings.
    """

    def __init__(self, model: HPModel, readout: Readout, cfg: Settings):
        super().__init__()
        self.model, self.readout, self.cfg = model, readout, cfg

    def step(
        self,
        feat: Tensor,
        weights: Tensor,
        label: Tensor | None,
        lam: float,
        *,
        feat_aug: Tensor | None = None,
        uniform: Tensor | None = None,
        generator: torch.Generator | None = None,
        move: bool = True,
    ) -> dict[str, Tensor | float]:
        """Losses of a batch; the teacher moves after it has been used.

        Args:
            feat: features the heads see, shape (B, C, h, w).
            weights: of each patch's 3 x 3 neighbours, shape (B, h w, 9).
            label: int64 (B, H, W) for the linear probe, or None.
            lam: weight of the task-specific positives.
            feat_aug: features of the photometric twins; None: no consistency term.
            uniform: draw of the kept negatives, shape (h w, B h w); None draws it.
            generator: CPU generator of dropout and negatives.
            move: let the teacher follow; of a batch in parts, with the last one.

        Returns:
            Scalars: "loss" = contrast + alpha consistency + linear + cluster, these
            four, "lam", and the mean numbers of positives "n_pos_ag", "n_pos_sp".
        """
        model, cfg = self.model, self.cfg
        code = model.student(feat, generator)
        with torch.no_grad():
            guide = F.normalize(_rows(model.drop(feat, generator)), dim=1)
            slow = model.drop(model.teacher(feat, generator).float(), generator)
            slow = F.normalize(_rows(slow), dim=1)
            if move:
                model.average.update(0, 1)
        mixed = model.drop(mix_local(code, weights), generator)
        z, z_mix = model.project(code), model.project(mixed)
        if uniform is None:
            n = feat.shape[2] * feat.shape[3]
            uniform = torch.rand(n, len(z), generator=generator)
        pairs = HiddenPositives(
            guide,
            slow,
            (model.pool_agnostic, model.pool_specific),
            uniform.to(z.device),
            rho=cfg.rho,
            lam=lam,
            tau=cfg.tau,
            reweight=cfg.reweight,
        )
        losses = {"contrast": contrast(torch.stack([z, z_mix]), pairs, cfg.tau)}
        losses["consistency"] = z.new_zeros(())
        if feat_aug is not None:
            z_aug = model.project(model.student(feat_aug, generator))
            losses["consistency"] = consistency_loss(z, z_aug)
        losses |= self.readout.losses(code, label)
        total = sum(losses.values()) + (cfg.alpha - 1) * losses["consistency"]
        agnostic, specific = pairs.counts
        figures = {"lam": lam, "n_pos_ag": agnostic, "n_pos_sp": specific}
        return {"loss": total} | losses | figures

    def optimisers(self) -> dict[str, Optimizer]:
        """AdamW for the head, Adam for projection and probes."""
        cfg = self.cfg
        head = AdamW(
            self.model.student.parameters(), lr=cfg.lr, weight_decay=cfg.weight_decay
        )
        projection = Adam(self.model.projection.parameters(), lr=cfg.projection_lr)
        probes = self.readout.optimisers(cfg.linear_lr, cfg.cluster_lr)
        return {"head": head, "projection": projection} | probes
