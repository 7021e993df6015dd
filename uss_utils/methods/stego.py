"""STEGO: codes that keep the correspondences of frozen features, only clearer.

Hamilton et al., Unsupervised Semantic Segmentation by Distilling Feature
Correspondences, ICLR 2022. A head learns codes of places whose correlation is high
where the features' correlation lies above a limit, and low where it lies below.

The loss is :mod:`uss_utils.correspondence`; here is what it is trained with. Where the
released code differs from the paper, we follow the code, because all published shifts
are made for it: the mean that centring adds back, and the channel dropout of the
guiding features (``dropout_features``). Its slips in preparing neighbours and in
counting are not repeated.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Adam

from uss_utils import environment, learning
from uss_utils.correspondence import (
    CorrespondenceLoss,
    Terms,
    centre,
    correlation,
    pair_correlations,
    pair_loss,
    random_coords,
    random_partners,
    shift_for_share,
)
from uss_utils.datasets import SegmentationDataset
from uss_utils.features import correspondence_heatmap, sample_at
from uss_utils.heads import SegmentationHead, channel_dropout
from uss_utils.learning import Trained, Watch
from uss_utils.neighbours import global_descriptors, nearest
from uss_utils.presets import presets
from uss_utils.readout import Readout
from uss_utils.recipe import LearnedRecipe
from uss_utils.run_state import own_random_state
from uss_utils.similarity import label_cooccurrence
from uss_utils.sources import FeatureSource
from uss_utils.training import fit

__all__ = [
    "PRESETS",
    "Config",
    "CorrespondenceLoss",
    "Material",
    "Pairs",
    "StegoTrainer",
    "Terms",
    "build",
    "centre",
    "correlation",
    "correspondence_heatmap",
    "feature_correlations",
    "label_cooccurrence",
    "pair_loss",
    "prepare",
    "random_coords",
    "random_partners",
    "sample_at",
    "shift_for_share",
    "train",
]

MEASURED = 64  # images on which shifts are measured


@dataclass(frozen=True)
class Config(LearnedRecipe):
    """Settings of STEGO.

    Triples are in the order of :class:`Terms`: intra, inter, neg.

    Attributes:
        dim: code channels D.
        loss_weights: of the three terms.
        shifts: limits between attraction and repulsion; they suit one backbone.
        shares: instead of shifts, the share of places that attract each other: the
            shifts that give these shares are measured on the training features. None
            takes ``shifts`` as they are.
        samples: S; S x S points per image are compared.
        negatives: random partners per image.
        pointwise: see :class:`CorrespondenceLoss`.
        zero_clamp: see :class:`CorrespondenceLoss`.
        stabilize: see :class:`CorrespondenceLoss`.
        neighbours: the partner is drawn from this many nearest images.
        dropout: share of channels that is dropped in front of the head.
        dropout_features: drop channels of the guiding features, too, as the released
            code does: cosines between different images shrink to 1 - dropout.
        lr: Adam's rate for the head.
    """

    dim: int = 70
    loss_weights: tuple[float, float, float] = (0.67, 0.25, 0.63)
    shifts: tuple[float, float, float] = (0.08, 0.02, 0.66)
    shares: tuple[float, float, float] | None = None
    samples: int = 11
    negatives: int = 5
    pointwise: bool = True
    zero_clamp: bool = True
    stabilize: bool = False
    neighbours: int = 7
    dropout: float = 0.1
    dropout_features: bool = True
    lr: float = 5e-4


def _published(dataset: str, backbone: str, **settings: Any) -> Config:
    """What the released settings have in common."""
    common = {"size": 224, "eval_size": 320, "resample": "nearest", "steps": 5000}
    crops = None if dataset == "potsdam3" else "five"
    return Config(
        dataset=dataset, backbone=backbone, crops=crops, **(common | settings)
    )


PRESETS = presets(
    smoke=Config(n_train=16, n_val=8, steps=4, batch_size=4, shares=(0.2, 0.2, 0.1)),
    scenes=Config(n_train=200, n_val=150, shares=(0.2, 0.2, 0.1)),
)


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


def prepare(
    cfg: Config,
    dataset: SegmentationDataset | None = None,
    *,
    device: str | torch.device = "cpu",
    progress: bool = False,
) -> Material:
    """Open data and features, and find the nearest images of every image.

    Args:
        cfg: the settings.
        dataset: training images; None opens those of the settings.
        device: where to train; "auto" picks.
        progress: show bars.

    Raises:
        ValueError: fewer images than neighbours, features that are not finite, or
            settings that do not fit the data.
        FileNotFoundError: the data set is not there.
    """
    base = learning.prepare(cfg, dataset, device=device, progress=progress)
    n = len(base.source)
    if not 1 <= cfg.neighbours < n:
        raise ValueError(
            f"{n} training images have no {cfg.neighbours} neighbours each; use "
            f"neighbours= 1 to {n - 1}, or more images"
        )
    descriptors = [
        global_descriptors(base.standardise(feat.to(base.device))).cpu()
        for _, feat in base.source.batches()
    ]
    found, _ = nearest(torch.cat(descriptors), cfg.neighbours + 1)
    parts = {field.name: getattr(base, field.name) for field in fields(base)}
    return Material(**parts, neighbours=found)


class Pairs:
    """Images, each with one of its nearest neighbours, as ``training.fit`` reads them.

    Args:
        source: features and labels by index.
        neighbours: as in :class:`Material`; column 0 is never drawn.
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

    def optimisers(self, cfg: Config) -> dict[str, Adam]:
        """Three Adams: head, cluster probe, linear probe."""
        head = {"head": Adam(self.head.parameters(), lr=cfg.lr)}
        return head | self.readout.optimisers(cfg.linear_lr, cfg.cluster_lr)


def feature_correlations(
    cfg: Config, material: Material, generator: torch.Generator | None = None
) -> dict[str, Tensor]:
    """Centred correlations of the guiding features, as training meets them.

    Their histograms say which shifts make sense. No label is looked at.

    Args:
        cfg: the settings.
        material: from :func:`prepare`.
        generator: draws images, neighbours, points and dropout; None: from the seed.

    Returns:
        By term ("intra", "inter", "neg"), from at most 64 images, each of shape
        (B, S, S, S, S), with ``negatives`` times as many for "neg".
    """
    draw = environment.generator(cfg.seed) if generator is None else generator
    pairs = Pairs(material.source, material.neighbours)
    batch = pairs.draw(torch.randperm(len(pairs), generator=draw)[:MEASURED], draw)
    dropout = cfg.dropout if cfg.dropout_features else 0.0
    guides = [
        channel_dropout(
            material.guide(batch[name].to(material.device)), dropout, generator=draw
        )
        for name in ("input", "positive")
    ]
    coords, perms = _loss(cfg, cfg.shifts).draw(len(guides[0]), draw)
    return {
        name: torch.cat([centre(f) if cfg.pointwise else f for f in found])
        for name, found in pair_correlations(*guides, coords, perms).items()
    }


def _loss(cfg: Config, shifts: Sequence[float]) -> CorrespondenceLoss:
    return CorrespondenceLoss(
        cfg.loss_weights,
        shifts,
        cfg.samples,
        cfg.negatives,
        cfg.pointwise,
        cfg.zero_clamp,
        cfg.stabilize,
    )


def build(cfg: Config, material: Material) -> StegoTrainer:
    """Head and probes before the first step, with shifts that suit the features.

    Args:
        cfg: the settings.
        material: from :func:`prepare`.

    Raises:
        ValueError: the number of clusters is unknown, or weights and shifts make no
            sense.
    """
    # torch's layers draw their start from the global generator alone.
    with own_random_state(cfg.seed, torch.device("cpu")):
        head = SegmentationHead(material.dim, cfg.dim, dropout=cfg.dropout)
    shifts = cfg.shifts
    if cfg.shares is not None:
        found = feature_correlations(cfg, material)
        shifts = [
            shift_for_share(found[name], share)
            for name, share in zip(Terms._fields, cfg.shares, strict=True)
        ]
    return StegoTrainer(
        head,
        material.readout(cfg, cfg.dim),
        _loss(cfg, shifts),
        material.guide,
        cfg.dropout if cfg.dropout_features else 0.0,
    ).to(material.device)


def train(
    cfg: Config,
    material: Material | None = None,
    *,
    device: str | torch.device = "cpu",
    progress: str | bool | None = False,
    checkpoint: str | Path | None = None,
    checkpoint_every: int | None = None,
    watch: Watch | None = None,
    watch_at: Sequence[int] = (),
) -> Trained:
    """Train head and probes.

    Args:
        cfg: the settings.
        material: from :func:`prepare`; None prepares it.
        device: where to train, if there is no material yet; "auto" picks.
        progress: see :func:`uss_utils.training.fit`.
        checkpoint: file from which a killed training goes on, to the same bit.
        checkpoint_every: steps between two checkpoints; None: a tenth of the run.
        watch: called with a number of steps and the model as it stands then, whose
            clusters have no names yet.
        watch_at: the numbers of steps, 0 to ``steps``.

    Returns:
        The model, its clusters named by the training labels if there are any, and the
        figures of :meth:`StegoTrainer.step` over the steps. No label has touched the
        head and the clusters.

    Raises:
        ValueError: settings that do not fit the data or the checkpoint, batches of one
            image.
        FloatingPointError: the loss is no number.
    """
    if material is None:
        material = prepare(cfg, device=device, progress=bool(progress))
    trainer = build(cfg, material)

    def current():
        parts = (trainer.head, trainer.readout)
        return learning.assemble("stego", cfg, material, *parts)

    if watch is not None and 0 in watch_at:
        watch(0, current())
    history = fit(
        trainer,
        lambda model, batch, step: model.step(batch, step.generator),
        Pairs(material.source, material.neighbours),
        steps=cfg.steps,
        batch_size=cfg.batch_size,
        optimisers=trainer.optimisers(cfg),
        precision=cfg.precision,
        seed=cfg.seed,
        device=material.device,
        # A last batch of one image would have no random partner.
        drop_last=len(material.source) % cfg.batch_size == 1,
        checkpoint=checkpoint,
        checkpoint_every=checkpoint_every,
        progress=progress,
        on_step=learning.watcher(watch, watch_at, current),
        config={k: v for k, v in asdict(cfg).items() if k not in ("root", "cache")},
    )
    done = learning.finish(
        "stego", cfg, material, trainer.head, trainer.readout, history
    )
    done.segmenter.meta["shifts"] = list(trainer.loss.shifts)
    return done
