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

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar

import torch

from uss_utils import learning
from uss_utils.correspondence import (
    CorrespondenceLoss,
    Terms,
    centre,
    correlation,
    pair_loss,
    random_coords,
    random_partners,
    shift_for_share,
)
from uss_utils.datasets import SegmentationDataset
from uss_utils.features import correspondence_heatmap, sample_at
from uss_utils.fitting import run
from uss_utils.heads import SegmentationHead
from uss_utils.learning import Trained, Watch
from uss_utils.methods._stego_step import (
    Material,
    Pairs,
    StegoTrainer,
    code_correlations,
    feature_correlations,
)
from uss_utils.neighbour_index import neighbour_index
from uss_utils.neighbours import global_descriptors, nearest
from uss_utils.presets import (
    Channels,
    Count,
    LessThanAll,
    NotNegative,
    Range,
    Share,
    presets,
)
from uss_utils.recipe import LearnedRecipe
from uss_utils.run_state import own_random_state
from uss_utils.similarity import label_cooccurrence

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
    "code_correlations",
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

    chapter: ClassVar[int] = 4
    dim: Channels = 70
    loss_weights: tuple[float, float, float] = (0.67, 0.25, 0.63)
    shifts: tuple[float, float, float] = (0.08, 0.02, 0.66)
    shares: tuple[Share, Share, Share] | None = None
    samples: Annotated[int, Range(1, 1000)] = 11
    negatives: Count = 5
    pointwise: bool = True
    zero_clamp: bool = True
    stabilize: bool = False
    neighbours: Count = 7
    dropout: LessThanAll = 0.1
    dropout_features: bool = True
    lr: NotNegative = 5e-4

    def loss(self, shifts: Sequence[float] | None = None) -> CorrespondenceLoss:
        """The loss of these settings, or with other shifts."""
        return CorrespondenceLoss(
            self.loss_weights,
            self.shifts if shifts is None else shifts,
            self.samples,
            self.negatives,
            self.pointwise,
            self.zero_clamp,
            self.stabilize,
        )

    def dropped_features(self) -> float:
        """Share of channels of the guiding features that is dropped."""
        return self.dropout if self.dropout_features else 0.0


def _published(dataset: str, backbone: str, **settings: Any) -> Config:
    """What the released settings have in common."""
    crops = None if dataset == "potsdam3" else "five"
    common = {"size": 224, "eval_size": 320, "resample": "nearest", "steps": 5000}
    return Config(dataset=dataset, backbone=backbone, crops=crops, **common, **settings)


# What suits small sets and the tiny ViT: shares instead of shifts, features without
# their common mean, fewer points on the smaller map, fewer steps, probes fitted after.
_SMALL: dict[str, Any] = {
    "shares": (0.2, 0.2, 0.1),
    "standardise": "centre",
    "samples": 7,
    "steps": 200,
    "probes": "after",
}

# The blocks of the released configuration file and its defaults are named after their
# dates there; "default" is the block that is active in it, made for another data set.
# Left out: the MoCo block, whose ResNet is no backbone of ours. The "older" blocks name
# no backbone; they get the file's default, ViT-S/8.
PRESETS = presets(
    smoke=Config(**_SMALL | {"steps": 4}, n_train=16, n_val=8, batch_size=4),
    scenes=Config(**_SMALL, n_train=200, n_val=150),
    scenes_aerial=Config(
        **_SMALL | {"shares": (0.1, 0.1, 0.05)},
        dataset="scenes-aerial",
        n_train=200,
        n_val=150,
    ),
    camvid_tiny=Config(
        **_SMALL | {"samples": 11}, dataset="camvid", size=(240, 320), batch_size=8
    ),
    camvid_vits16=Config(
        **_SMALL | {"samples": 11, "standardise": "none", "steps": 1000},
        dataset="camvid",
        size=(320, 416),
        backbone="dino_vits16",
    ),
    cocostuff27_vits8=_published("cocostuff27", "dino_vits8"),
    cocostuff27_vitb8=_published(
        "cocostuff27",
        "dino_vitb8",
        dim=90,
        loss_weights=(0.1, 1.0, 0.1538476246415498),
        shifts=(0.12, 0.2, 1.0),
    ),
    cityscapes27_vitb8=_published(
        "cityscapes27",
        "dino_vitb8",
        dim=100,
        loss_weights=(1.0, 0.577453483136995, 0.9058762625226623),
        shifts=(0.45828472207, 0.1754346515479633, 0.31361241889448443),
    ),
    potsdam3_vits8=_published("potsdam3", "dino_vits8", shifts=(0.08, 0.02, 0.46)),
    cocostuff27_vits8_10_3=_published(
        "cocostuff27", "dino_vits8", shifts=(0.08, 0.02, 0.16)
    ),
    cocostuff27_vits8_default=_published(
        "cocostuff27", "dino_vits8", shifts=(0.18, 0.12, 0.46)
    ),
    cocostuff27_vits8_older=_published(
        "cocostuff27",
        "dino_vits8",
        loss_weights=(0.29, 0.80, 0.72),
        shifts=(0.34, 0.04, 0.86),
    ),
    cityscapes27_vits8_older=_published(
        "cityscapes27",
        "dino_vits8",
        loss_weights=(0.46, 0.18, 0.72),
        shifts=(0.25, 0.20, 0.25),
    ),
)


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
    source, n = base.source, len(base.source)
    if cfg.neighbours >= n:
        raise ValueError(
            f"{n} training images have no {cfg.neighbours} neighbours each; use "
            f"neighbours= 1 to {n - 1}, or more images"
        )
    if source.where == "memory":
        descriptors = [global_descriptors(feat) for _, feat in source.batches()]
        found, _ = nearest(torch.cat(descriptors), cfg.neighbours + 1)
    else:
        found = neighbour_index(
            *(source.backbone, source.dataset, cfg.neighbours + 1),
            features=source.batches(),
            progress=progress,
        )
    return Material.of(base, neighbours=found)


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
        cfg.loss(shifts),
        material.guide,
        cfg.dropped_features(),
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

    history = run(
        cfg,
        material,
        trainer,
        lambda model, batch, step: model.step(batch, step.generator),
        Pairs(material.source, material.neighbours),
        current,
        optimisers=trainer.optimisers(cfg.lr, cfg.linear_lr, cfg.cluster_lr),
        # A last batch of one image would have no random partner.
        drop_last=len(material.source) % cfg.batch_size == 1,
        checkpoint=checkpoint,
        checkpoint_every=checkpoint_every,
        progress=progress,
        watch=watch,
        watch_at=watch_at,
    )
    done = learning.finish(
        "stego", cfg, material, trainer.head, trainer.readout, history
    )
    done.segmenter.meta["shifts"] = list(trainer.loss.shifts)
    return done
