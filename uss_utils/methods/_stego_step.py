"""STEGO's pairs of images, and what one training step makes of them."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim import Adam

from uss_utils import learning
from uss_utils.correspondence import CorrespondenceLoss, Terms
from uss_utils.heads import SegmentationHead, channel_dropout
from uss_utils.readout import Readout
from uss_utils.sources import FeatureSource


@dataclass
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
