"""STEGO: codes that keep the correspondences of frozen features, only clearer.

Hamilton et al., Unsupervised Semantic Segmentation by Distilling Feature
Correspondences, ICLR 2022. A head learns codes of places whose correlation is high
where the features' correlation lies above a limit, and low where it lies below.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from uss_utils.correspondence import (
    average_precision,
    centre,
    correlation,
    label_cooccurrence,
    pair_loss,
    precision_recall,
    random_coords,
    random_partners,
    shift_for_share,
)
from uss_utils.features import correspondence_heatmap, sample_at

__all__ = [
    "CorrespondenceLoss",
    "Terms",
    "average_precision",
    "centre",
    "correlation",
    "correspondence_heatmap",
    "label_cooccurrence",
    "pair_loss",
    "precision_recall",
    "random_coords",
    "random_partners",
    "sample_at",
    "shift_for_share",
]


class Terms(NamedTuple):
    """One number for each kind of pair: an image with itself, a neighbour, any other.

    Attributes:
        intra: two places of the same image.
        inter: a place of the image, one of a nearest neighbour.
        neg: a place of the image, one of a random image of the batch.
    """

    intra: float
    inter: float
    neg: float


class CorrespondenceLoss(nn.Module):
    """STEGO's loss: the weighted mean of the pair loss over three kinds of pairs.

    Args:
        weights: of the three terms, in the order of :class:`Terms`.
        shifts: limits b between attraction and repulsion, likewise.
        samples: S; S x S random points of each image are compared.
        negatives: random partners per image.
        pointwise: centre the correlations of the features (:func:`centre`).
        zero_clamp: see ``clamp`` of :func:`pair_loss`.
        stabilize: see :func:`pair_loss`.

    Raises:
        ValueError: not three weights and shifts, or nothing to sample.
    """

    def __init__(
        self,
        weights: tuple[float, float, float],
        shifts: tuple[float, float, float],
        samples: int = 11,
        negatives: int = 5,
        pointwise: bool = True,
        zero_clamp: bool = True,
        stabilize: bool = False,
    ):
        super().__init__()
        if len(weights) != 3 or len(shifts) != 3:
            raise ValueError(
                "three weights and three shifts are needed (intra, inter, neg), got "
                f"{len(weights)} and {len(shifts)}"
            )
        if samples < 1 or negatives < 1:
            raise ValueError(
                "at least one sample and one negative are needed, got "
                f"samples={samples}, negatives={negatives}"
            )
        self.weights, self.shifts = Terms(*weights), Terms(*shifts)
        self.samples, self.negatives = samples, negatives
        self.pointwise, self.zero_clamp = pointwise, zero_clamp
        self.stabilize = stabilize

    def forward(
        self,
        feat: Tensor,
        feat_pos: Tensor,
        code: Tensor,
        code_pos: Tensor,
        coords: tuple[Tensor, Tensor] | None = None,
        perms: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of a batch of pairs.

        Args:
            feat: features of the images, shape (B, C, h, w).
            feat_pos: features of their neighbours, same shape.
            code: codes of the images, shape (B, D, h, w).
            code_pos: codes of the neighbours, same shape.
            coords: points of the images, and points used in neighbours and random
                images, each (B, P, Q, 2) as in :func:`sample_at`; None draws S x S.
            perms: row r holds the partner of every image in draw r, int64 (R, B); None
                draws ``negatives`` rows of :func:`random_partners`.
            generator: CPU generator of the draws.

        Returns:
            The loss, and its parts by term ("intra", "inter", "neg"), detached:
            ``parts["intra"]`` is the mean pair loss, ``parts["map_intra"]`` the pair
            loss of every pair and ``parts["code_intra"]`` the correlation of their
            codes, both (B, Q, P, Q, P); those of "neg" are (R B, ...), draw by draw.

        Raises:
            ValueError: a batch of one image (from :func:`random_partners`).
        """
        n, device = len(feat), feat.device
        if coords is None:
            coords = tuple(random_coords(n, self.samples, generator) for _ in range(2))
        if perms is None:
            draws = [random_partners(n, generator) for _ in range(self.negatives)]
            perms = torch.stack(draws)
        here, there = (c.to(device) for c in coords)
        # Cosines in half precision would round away what the shifts tell apart.
        with torch.autocast(device.type, enabled=False):
            feat, feat_pos, code, code_pos = (
                x.float() for x in (feat.detach(), feat_pos.detach(), code, code_pos)
            )
            own = sample_at(feat, here), sample_at(code, here)
            near = sample_at(feat_pos, there), sample_at(code_pos, there)
            pairs = {"intra": [self._pairs(own, own, self.shifts.intra)]}
            pairs["inter"] = [self._pairs(own, near, self.shifts.inter)]
            pairs["neg"] = [
                self._pairs(
                    own,
                    tuple(sample_at(x.index_select(0, p), there) for x in (feat, code)),
                    self.shifts.neg,
                )
                for p in perms.to(device)
            ]
            return self._total(pairs)

    def _pairs(
        self, first: tuple[Tensor, Tensor], second: tuple[Tensor, Tensor], shift: float
    ) -> tuple[Tensor, Tensor]:
        """Pair loss and code correlation for sampled features and codes."""
        feat_corr = correlation(first[0], second[0])
        if self.pointwise:
            feat_corr = centre(feat_corr)
        code_corr = correlation(first[1], second[1])
        loss = pair_loss(feat_corr, code_corr, shift, self.zero_clamp, self.stabilize)
        return loss, code_corr

    def _total(
        self, pairs: dict[str, list[tuple[Tensor, Tensor]]]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        total, parts = 0.0, {}
        for name, weight in self.weights._asdict().items():
            losses, codes = (torch.cat(part) for part in zip(*pairs[name], strict=True))
            mean = losses.mean()
            total = total + weight * mean
            parts[name] = mean.detach()
            parts[f"map_{name}"] = losses.detach()
            parts[f"code_{name}"] = codes.detach()
        return total, parts
