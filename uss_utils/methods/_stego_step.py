"""STEGO's pairs of images, one training step on them, and what they correlate to."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.optim import Adam

from uss_utils import environment, learning
from uss_utils.correspondence import (
    CorrespondenceLoss,
    Terms,
    centre,
    pair_correlations,
)
from uss_utils.heads import SegmentationHead, channel_dropout
from uss_utils.readout import Readout
from uss_utils.segmenter import Segmenter
from uss_utils.sources import FeatureSource

MEASURED = 64  # images whose correlations are looked at


@dataclass(kw_only=True)
class Material(learning.Material):
    """What STEGO trains on.

    Attributes:
        neighbours: the most similar images of every image, itself first, int64
            (N, neighbours + 1).
    """

    neighbours: Tensor

    def guide(self, inputs: Tensor) -> Tensor:
        """What head and loss see of an "input": standardised features, float32."""
        feat = self.source.feat(inputs)
        with torch.autocast(feat.device.type, enabled=False):
            return self.standardise(feat)


class Settings(Protocol):
    """What is read here of :class:`uss_utils.methods.stego.Config`."""

    seed: int
    pointwise: bool

    def loss(self) -> CorrespondenceLoss: ...  # noqa: D102
    def dropped_features(self) -> float: ...  # noqa: D102


class Pairs:
    """Images, each with one of its nearest neighbours, as ``training.fit`` reads them.

    Args:
        source: features and labels by index.
        neighbours: the most similar images of every image, itself first, int64 (N,
            k + 1); column 0 is never drawn.
    """

    def __init__(self, source: FeatureSource, neighbours: Tensor):
        self.source, self.neighbours = source, neighbours

    def __len__(self) -> int:
        return len(self.source)

    def draw(self, indices: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        """The batch of some images, each with a neighbour of a random rank.

        Returns:
            "input" and "label" of :meth:`FeatureSource.batch`, and "positive", the
            input of the neighbours.
        """
        ranks = self.neighbours.shape[1]
        rank = torch.randint(1, ranks, (len(indices),), generator=generator)
        partners = self.neighbours[indices, rank]
        return self.source.batch(indices) | {"positive": self.source.inputs(partners)}


class StegoTrainer(nn.Module):
    """Head and probes, and the losses of one training step (STEGO, figure 2).

    Args:
        head: from features to code.
        readout: cluster probe and linear probe.
        loss: of the correspondences.
        guide: from the "input" of a batch to features, see :meth:`Material.guide`.
        dropout: share of channels of the guiding features that is dropped.
    """

    def __init__(
        self,
        head: SegmentationHead,
        readout: Readout,
        loss: CorrespondenceLoss,
        guide: Callable[[Tensor], Tensor],
        dropout: float = 0.1,
    ):
        super().__init__()
        self.head, self.readout, self.loss = head, readout, loss
        self.guide, self.dropout = guide, dropout

    def step(
        self, batch: dict[str, Tensor], generator: torch.Generator | None = None
    ) -> dict[str, Tensor]:
        """Losses of one batch of :class:`Pairs`.

        Args:
            batch: "input", "positive" and "label".
            generator: CPU generator of dropout, points and partners.

        Returns:
            Scalars: "loss" is the sum of "correspondence", "cluster" and "linear"; the
            mean pair loss of each of the three terms by its name; and the mean
            correlation of the codes, "code_intra", "code_inter", "code_neg".
        """
        guides, codes = [], []
        for name in ("input", "positive"):
            feat = self.guide(batch[name])
            codes.append(self.head(feat, generator))
            guides.append(channel_dropout(feat, self.dropout, generator=generator))
        total, parts = self.loss(*guides, *codes, generator=generator)
        probes = self.readout.losses(codes[0], batch.get("label"))
        # The probes read a detached code: their losses do not reach the head.
        figures = {name: parts[name] for name in Terms._fields}
        figures |= {f"code_{k}": parts[f"code_{k}"].mean() for k in Terms._fields}
        loss = total + sum(probes.values())
        return {"loss": loss, "correspondence": total.detach()} | figures | probes

    def optimisers(
        self, lr: float = 5e-4, linear_lr: float = 5e-3, cluster_lr: float = 5e-3
    ) -> dict[str, Adam]:
        """One Adam each for head, cluster probe and linear probe, by name."""
        head = {"head": Adam(self.head.parameters(), lr=lr)}
        return head | self.readout.optimisers(linear_lr, cluster_lr)


def feature_correlations(
    cfg: Settings, material: Material, generator: torch.Generator | None = None
) -> dict[str, Tensor]:
    """Centred correlations of the guiding features, as training meets them.

    Their histograms say which shifts make sense. No label is looked at.

    Args:
        cfg: the method's ``Config``.
        material: from ``prepare``.
        generator: draws images, neighbours, points and dropout; None: from the seed.

    Returns:
        By term ("intra", "inter", "neg"), from at most 64 images, each of shape
        (B, S, S, S, S), with ``negatives`` times as many for "neg".
    """
    draw = environment.generator(cfg.seed) if generator is None else generator

    def guide(inputs: Tensor) -> Tensor:
        feat = material.guide(inputs)
        return channel_dropout(feat, cfg.dropped_features(), generator=draw)

    found = _correlations(cfg, material, guide, draw)
    return {
        name: torch.cat([centre(f) if cfg.pointwise else f for f in parts])
        for name, parts in found.items()
    }


def code_correlations(
    cfg: Settings,
    material: Material,
    segmenter: Segmenter,
    generator: torch.Generator | None = None,
) -> dict[str, Tensor]:
    """Correlations of a model's codes, at the points of :func:`feature_correlations`.

    Their histograms tell whether training parts what it should.

    Args:
        cfg: the method's ``Config``.
        material: from ``prepare``.
        segmenter: the model, also in the middle of its training.
        generator: draws images, neighbours and points; None: from the seed.

    Returns:
        As :func:`feature_correlations`, not centred.
    """
    draw = environment.generator(cfg.seed) if generator is None else generator
    found = _correlations(
        cfg, material, lambda x: segmenter.code_of(material.source.feat(x)), draw
    )
    return {name: torch.cat(parts) for name, parts in found.items()}


@torch.no_grad()
def _correlations(
    cfg: Settings,
    material: Material,
    view: Callable[[Tensor], Tensor],
    draw: torch.Generator,
) -> dict[str, list[Tensor]]:
    pairs = Pairs(material.source, material.neighbours)
    indices = torch.randperm(len(pairs), generator=draw)[:MEASURED]
    batch = pairs.draw(indices, draw)
    coords, perms = cfg.loss().draw(len(indices), draw)
    maps = (view(batch[name].to(material.device)) for name in ("input", "positive"))
    return pair_correlations(*maps, coords, perms)
