"""HP: a contrastive loss on patches whose positives are found, not labelled.

Seong et al., Leveraging Hidden Positives for Unsupervised Semantic Segmentation, CVPR
2023. A patch's positives are all patches of the batch that are more like it than its
best match in a pool of random patches: judged once by the frozen features
(task-agnostic) and, with growing weight, by a slow copy of the head (task-specific).
The same loss on codes mixed with their neighbours hands its gradient on to them (local
hidden positives).

Where the released code differs from the paper we follow the code, but for its
half-precision sums, its undefined cases, and the order of colour jitter and
normalisation (``jitter_normalised`` brings that back). Validation is a single pass
without flip averaging, as released.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor

from uss_utils import learning
from uss_utils.datasets import SegmentationDataset
from uss_utils.fitting import run
from uss_utils.learning import Material, Trained, Watch
from uss_utils.local_attention import (
    SIGMA,
    WithNeighbourWeights,
    mix_local,
    neighbour_weights,
)
from uss_utils.methods._hp_data import Views, fill_pools, guide, twin_features
from uss_utils.methods._hp_network import (
    HPModel,
    HPTrainer,
    consistency_loss,
    lambda_schedule,
)
from uss_utils.photometric import photometric_twin
from uss_utils.positives import (
    build_pool,
    denominator_mask,
    hidden_positive_loss,
    hidden_positives,
    pool_threshold,
)
from uss_utils.presets import (
    Channels,
    Count,
    LessThanAll,
    NotNegative,
    Positive,
    Range,
    Share,
    Whole,
    presets,
)
from uss_utils.recipe import LearnedRecipe
from uss_utils.run_state import own_random_state
from uss_utils.training import Step

__all__ = [
    "PRESETS",
    "Config",
    "HPModel",
    "HPTrainer",
    "build",
    "build_pool",
    "consistency_loss",
    "denominator_mask",
    "guide",
    "hidden_positive_loss",
    "hidden_positives",
    "lambda_schedule",
    "mix_local",
    "neighbour_weights",
    "photometric_twin",
    "pool_threshold",
    "prepare",
    "train",
]


@dataclass(frozen=True)
class Config(LearnedRecipe):
    """Settings of HP; the defaults are those for COCO-Stuff.

    Attributes:
        dim: code channels D.
        tau: temperature of the contrastive loss.
        alpha: weight of the consistency with the photometric twin; 0: no twin.
        rho: share of the other patches that are kept as negatives.
        pool: patches M of each reference pool.
        renew: steps after which the task-specific pool is renewed, within an epoch.
        momentum: of the teacher.
        warmup: steps before the task-specific positives begin to count.
        sigma: factor of the local attention weights.
        reweight: patches with more positives count more.
        dropout: share of channels dropped in front of the heads.
        dropout_outputs: drop channels of features, teacher code and mixed code, too,
            as the released code does: cosines with the pools and between images then
            shrink to 1 - dropout, those within an image do not.
        jitter_normalised: see
            :func:`~uss_utils.photometric.photometric_twin`'s ``on_normalised``.
        lr: AdamW's rate for the head.
        weight_decay: for the head.
        projection_lr: Adam's rate for the projection.
        clip: largest norm of the head's gradient.
    """

    chapter: ClassVar[int] = 5
    batch_size: int = 64
    linear_lr: NotNegative = 1e-3
    flip: bool = False
    dim: Channels = 512
    tau: Annotated[float, Range(0.03)] = 0.8
    alpha: NotNegative = 0.05
    rho: Share = 0.02
    pool: Count = 2048
    renew: Count = 100
    momentum: Share = 0.99
    warmup: Whole = 1000
    sigma: Positive = SIGMA
    reweight: bool = True
    dropout: LessThanAll = 0.1
    dropout_outputs: bool = True
    jitter_normalised: bool = False
    lr: NotNegative = 5e-4
    weight_decay: NotNegative = 0.1
    projection_lr: NotNegative = 5e-4
    clip: Positive = 10.0


def _published(dataset: str, backbone: str, **settings: Any) -> Config:
    """What the released settings have in common."""
    crops = None if dataset == "potsdam3" else "five"
    common = {"size": 224, "eval_size": 320, "resample": "nearest", "crops": crops}
    return Config(dataset=dataset, backbone=backbone, **common, **settings)


_CITYSCAPES = {
    "tau": 0.6,
    "renew": 20,
    "momentum": 0.999,
    "warmup": 50,
    "steps": 232 * 30,
}
# Suited to the tiny ViT and to minutes on a CPU: its features differ from each other
# less, so a small pool already sets the limit high; a short run needs a quicker teacher
# and all negatives, and a consistency term that weighs more.
_SMALL = {
    "standardise": "centre",
    "probes": "after",
    "dim": 64,
    "rho": 1.0,
    "alpha": 5.0,
    "pool": 32,
    "renew": 10,
    "momentum": 0.95,
    "warmup": 20,
}

PRESETS = presets(
    smoke=Config(
        **_SMALL | {"warmup": 1, "renew": 2},
        n_train=16,
        n_val=8,
        batch_size=4,
        steps=4,
    ),
    scenes=Config(**_SMALL, n_train=200, n_val=150, batch_size=16, steps=80),
    scenes_aerial=Config(
        **_SMALL,
        dataset="scenes-aerial",
        n_train=200,
        n_val=150,
        batch_size=16,
        steps=80,
    ),
    camvid_tiny=Config(
        **_SMALL, dataset="camvid", size=(240, 320), batch_size=4, steps=100
    ),
    camvid_vits16=Config(
        dataset="camvid",
        size=(320, 416),
        backbone="dino_vits16",
        batch_size=16,
        pool=1024,
        renew=20,
        warmup=100,
        steps=1000,
    ),
    cocostuff27_vits8=_published("cocostuff27", "dino_vits8", steps=3877 * 3),
    cityscapes27_vits8=_published("cityscapes27", "dino_vits8", **_CITYSCAPES),
    cityscapes27_vitb8=_published("cityscapes27", "dino_vitb8", **_CITYSCAPES),
    potsdam3_vitb8=_published(
        "potsdam3",
        "dino_vitb8",
        dim=256,
        tau=0.4,
        alpha=0.0,
        rho=1.0,
        pool=1024,
        renew=20,
        momentum=0.999,
        warmup=100,
        steps=71 * 10,
    ),
)


def prepare(
    cfg: Config,
    dataset: SegmentationDataset | None = None,
    *,
    device: str | torch.device = "cpu",
    progress: bool = False,
) -> Material:
    """Open data and features; see :func:`uss_utils.learning.prepare`.

    The features carry each patch's neighbour weights as nine more channels.
    """
    wrap = partial(WithNeighbourWeights, sigma=cfg.sigma)
    return learning.prepare(cfg, dataset, device=device, wrap=wrap, progress=progress)


def build(cfg: Config, material: Material) -> HPTrainer:
    """Heads, probes and both reference pools before the first step.

    Args:
        cfg: the settings.
        material: from :func:`prepare`.
    """
    # torch's layers draw their start from the global generator alone.
    with own_random_state(cfg.seed, torch.device("cpu")):
        model = HPModel(
            material.dim,
            cfg.dim,
            cfg.pool,
            cfg.momentum,
            cfg.dropout,
            cfg.dropout if cfg.dropout_outputs else 0.0,
        )
    trainer = HPTrainer(model, material.readout(cfg, cfg.dim), cfg)
    trainer.to(material.device).train()
    fill_pools(cfg, material, model)
    return trainer


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
    """Train head, projection and probes.

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
        figures of :meth:`HPTrainer.step` over the steps. No label has touched the head
        and the clusters.

    Raises:
        ValueError: settings that do not fit the data or the checkpoint.
        FloatingPointError: the loss is no number.
    """
    if material is None:
        material = prepare(cfg, device=device, progress=bool(progress))
    trainer = build(cfg, material)
    per_epoch = max(1, len(material.source) // cfg.batch_size)

    def current():
        parts = (trainer.model.student, trainer.readout)
        return learning.assemble("hp", cfg, material, *parts)

    def losses(model: HPTrainer, batch: dict[str, Tensor], step: Step) -> dict:
        draw = step.generator
        # Counted within an epoch, as released, unless that is too short for it.
        place = step.index % per_epoch if per_epoch > cfg.renew else step.index
        if place and place % cfg.renew == 0 and step.part == 0:
            model.model.renew(draw)
        feat, weights = guide(material, batch["input"])
        twin = None
        if cfg.alpha:
            n = len(step.indices)
            twin = twin_features(cfg, material, batch["image"], n, draw)
        lam = lambda_schedule(step.index, step.total, cfg.warmup)
        found = model.step(
            *(feat, weights, batch.get("label"), lam),
            feat_aug=twin,
            generator=draw,
            move=step.part == step.parts - 1,
        )
        model.model.remember(feat, draw)
        return found

    history = run(
        cfg,
        material,
        trainer,
        losses,
        Views(material.source, twins=cfg.alpha > 0),
        current,
        optimisers=trainer.optimisers(),
        clip_norm={"head": cfg.clip},
        checkpoint=checkpoint,
        checkpoint_every=checkpoint_every,
        progress=progress,
        watch=watch,
        watch_at=watch_at,
    )
    parts = (trainer.model.student, trainer.readout)
    return learning.finish("hp", cfg, material, *parts, history)
