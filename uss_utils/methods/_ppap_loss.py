"""PPAP's contrastive loss: many positives, many negatives, and a zone left out."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn

from uss_utils.contrast import Rows, contrast
from uss_utils.methods._ppap_sets import (
    Propagation,
    Sets,
    partition,
    propagate,
    reference_rows,
    sample_anchors,
)

TAU_BASE = 0.07  # the temperature at which the loss is not scaled


class ContrastInfo(NamedTuple):
    """What the loss is made of.

    Attributes:
        per_anchor: mean log-probability of an anchor's positives, shape (S, A); NaN
            where there is no positive.
        per_chunk: loss of each chunk, shape (S,); 0 for a chunk without any positive.
        n_pos: mean number of positives per anchor.
        n_low: mean number of rows below psi per anchor, the anchor included.
    """

    per_anchor: Tensor
    per_chunk: Tensor
    n_pos: Tensor
    n_low: Tensor


def contrastive_loss(
    z: Tensor, anchors: Tensor, sets: Sets, tau: float, tau_base: float = TAU_BASE
) -> tuple[Tensor, ContrastInfo]:
    """Loss of given sets (section 3.4).

    ``-(tau / tau_base) mean_i 1/|P_i| sum_{p in P_i} (u_ip - log sum_{j in D_i} e^u_ij)
    `` with ``u = z z^T / tau``, over the anchors of a chunk that have positives; then
    the mean over the chunks.

    Args:
        z: unit rows, shape (N, D).
        anchors: row numbers, shape (S, A).
        sets: bool (S, A, N) each.
        tau: temperature, at least 0.03.
        tau_base: see the formula; it weighs the gradients against the clipping norm.

    Returns:
        Scalar, whose gradient reaches both sides of every pair; and its parts.

    Raises:
        ValueError: the temperature is too small.
    """
    blocks = [
        _block(rows, pos, denominator, tau / tau_base, z.dtype)
        for rows, pos, denominator in zip(
            anchors.to(z.device), sets.pos, sets.denominator, strict=True
        )
    ]
    loss = contrast(z[None], blocks, tau)
    return loss, _info(z.detach(), anchors, sets, tau, tau_base)


def _block(
    rows: Tensor,
    pos: Tensor,
    denominator: Tensor,
    factor: float,
    dtype: torch.dtype = torch.float32,
) -> Rows:
    """One chunk: every anchor with positives counts alike, so do its positives."""
    count = pos.sum(1)
    weights = pos.to(dtype).div_(count.clamp_min(1)[:, None])
    valid = (count > 0).sum().clamp_min(1).to(dtype)
    return Rows(rows, weights, denominator, factor / valid)


@torch.no_grad()
def _info(
    z: Tensor, anchors: Tensor, sets: Sets, tau: float, tau_base: float
) -> ContrastInfo:
    with torch.autocast(z.device.type, enabled=False):
        scores = z[anchors.to(z.device)] @ z.T / tau
    masked = scores.masked_fill(~sets.denominator, -torch.inf)
    count = sets.pos.sum(2)
    log_sum = masked.logsumexp(2)
    mean_score = (scores * sets.pos).sum(2) / count
    valid = count > 0
    per_anchor = torch.where(valid, mean_score - log_sum, torch.nan)
    total = torch.where(valid, per_anchor, 0.0).sum(1)
    per_chunk = -(tau / tau_base) * total / valid.sum(1).clamp_min(1)
    n_low = sets.low.sum(2).float().mean()
    return ContrastInfo(per_anchor, per_chunk, count.float().mean(), n_low)


class PPAPLoss(nn.Module):
    """Sets from reference features, loss on projections; one chunk at a time.

    Args:
        phi0: boundary of the positives at the start.
        psi0: boundary of the negatives at the start.
        sigma_pos: see :func:`propagate`.
        sigma_amb: see :func:`propagate`.
        steps: of propagation, T.
        tau: temperature.
        chunk: see :func:`sample_anchors`.
        per_chunk: see :func:`sample_anchors`.
        ref_dropout: share of the reference features' channels dropped per image, in
            training mode.
        zone: leave the ambiguous patches out; otherwise they count as negatives.
        tau_base: see :func:`contrastive_loss`.
    """

    def __init__(
        self,
        phi0: float,
        psi0: float,
        sigma_pos: float,
        sigma_amb: float,
        steps: int,
        tau: float,
        chunk: int = 784,
        per_chunk: int = 49,
        ref_dropout: float = 0.1,
        zone: bool = True,
        tau_base: float = TAU_BASE,
    ):
        super().__init__()
        self.move = {
            "phi0": phi0,
            "psi0": psi0,
            "sigma_pos": sigma_pos,
            "sigma_amb": sigma_amb,
            "steps": steps,
        }
        self.tau, self.chunk, self.per_chunk = tau, chunk, per_chunk
        self.ref_dropout, self.zone, self.tau_base = ref_dropout, zone, tau_base

    def forward(
        self,
        z: Tensor,
        ref: Tensor,
        anchors: Tensor | None = None,
        keep: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss and figures of a batch.

        Args:
            z: unit projections, shape (N, D), rows image by image.
            ref: frozen features of the same patches, shape (B, C, h, w).
            anchors: row numbers, shape (S, A); None draws them.
            keep: channels that are kept, bool (B, C); None draws them in training mode
                and keeps all otherwise.
            generator: CPU generator of both draws.

        Returns:
            Scalar; and means over the anchors: "n_pos" positives, "n_low" rows below
            psi (the anchor included, as released), "n_neg" of these no positives,
            "n_amb" ambiguous patches, "moved" the length of the way, "lonely" the share
            without positives.
        """
        drop = self.ref_dropout if self.training else 0.0
        x = reference_rows(ref, keep, drop, generator)
        if anchors is None:
            anchors = sample_anchors(len(x), self.chunk, self.per_chunk, generator)
        chunks = _Chunks(self, x, anchors.to(x.device))
        return contrast(z[None], chunks, self.tau), chunks.means()


class _Chunks:
    """The blocks of a loss, each made when it is asked for, and counts of their sets.

    Args:
        loss: holds the settings.
        x: unit reference rows, shape (N, C).
        anchors: shape (S, A).
    """

    def __init__(self, loss: PPAPLoss, x: Tensor, anchors: Tensor):
        self.loss, self.x, self.anchors = loss, x, anchors
        self.counts: list[dict[str, Tensor]] = []

    def __iter__(self) -> Iterator[Rows]:
        for rows in self.anchors:
            found = propagate(self.x, rows[None], **self.loss.move)
            sets = partition(found.sim, found.phi, found.psi, rows[None])
            self.counts.append(_counts(found, sets))
            denominator = sets.denominator[0]
            if not self.loss.zone:
                denominator |= sets.ambiguous[0]
            factor = self.loss.tau / self.loss.tau_base
            yield _block(rows, sets.pos[0], denominator, factor)

    def means(self) -> dict[str, Tensor]:
        """Means over all anchors."""
        return {
            name: torch.stack([count[name] for count in self.counts]).mean()
            for name in self.counts[0]
        }


def _counts(found: Propagation, sets: Sets) -> dict[str, Tensor]:
    n_pos = sets.pos.sum(2).float()
    return {
        "n_pos": n_pos.mean(),
        "n_low": sets.low.sum(2).float().mean(),
        "n_neg": (sets.denominator.sum(2) - n_pos).mean(),
        "n_amb": sets.ambiguous.sum(2).float().mean(),
        "moved": found.moved.mean(),
        "lonely": (n_pos == 0).float().mean(),
    }
