"""PPAP: positives gathered by a proxy that walks to where patches are dense.

Seong et al., Progressive Proxy Anchor Propagation for Unsupervised Semantic
Segmentation, ECCV 2024. A patch and the few that are surely like it are found by the
frozen features. The anchor is replaced by a proxy, the mean direction of these
positives; the further it moved, the more patches count as positives and as negatives,
again and again. What lies between both, the ambiguous zone, is left out of a
contrastive loss that trains a copy of the last block.

Where the released code differs from the paper we follow the code, but for its
half-precision boundaries and sums, and for choosing the best step by labels of the
evaluated split: the last step is reported. Validation is a single pass without flip
averaging, as released.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import torch
from torch import Tensor

from uss_utils import learning
from uss_utils.datasets import SegmentationDataset
from uss_utils.fitting import run
from uss_utils.frozen import Frozen
from uss_utils.last_block import BlockHead, LastBlockTokens
from uss_utils.learning import Material, Trained, Watch
from uss_utils.methods._ppap_loss import (
    TAU_BASE,
    ContrastInfo,
    PPAPLoss,
    contrastive_loss,
)
from uss_utils.methods._ppap_network import PPAPNet, PPAPTrainer
from uss_utils.methods._ppap_sets import (
    Moment,
    Propagation,
    Sets,
    partition,
    propagate,
    reference_rows,
    sample_anchors,
)
from uss_utils.presets import (
    Count,
    LessThanAll,
    NotNegative,
    Positive,
    Range,
    Whole,
    presets,
)
from uss_utils.recipe import LearnedRecipe
from uss_utils.run_state import own_random_state
from uss_utils.training import Step

__all__ = [
    "PRESETS",
    "Config",
    "ContrastInfo",
    "Moment",
    "PPAPLoss",
    "PPAPNet",
    "PPAPTrainer",
    "Propagation",
    "Sets",
    "build",
    "contrastive_loss",
    "partition",
    "prepare",
    "propagate",
    "reference_rows",
    "sample_anchors",
    "train",
]


@dataclass(frozen=True)
class Config(LearnedRecipe):
    """Settings of PPAP; the defaults are those for COCO-Stuff and ViT-S/8.

    Names are those of the released settings, or theirs stand in brackets.

    Attributes:
        phi0: cosine with the anchor beyond which a patch is a positive at the start
            (initialcrit_pos).
        psi0: cosine below which it is a negative at the start (initialcrit_amb).
        sigma_pos: a move of d, in 1 - cos, lowers phi by d / sigma_pos.
        sigma_amb: a move of d raises psi by d / sigma_amb.
        prop_iter: steps of propagation T.
        chunk: consecutive patches out of which anchors are drawn together.
        per_chunk: anchors drawn out of each (784 / trainpatchsplit).
        tau: temperature.
        tau_base: the loss is multiplied by tau / tau_base, which weighs its gradient
            against ``clip``.
        zone: leave the ambiguous patches out; otherwise they are negatives.
        ref_dropout: share of the reference features' channels dropped per image; the
            boundaries were tuned with it.
        optimiser: of the network, "adamw" or "adam".
        lr: its rate.
        weight_decay: of AdamW, on all trained tensors.
        clip: largest norm of the network's gradient.
    """

    chapter: ClassVar[int] = 6
    batch_size: int = 64
    linear_lr: NotNegative = 1e-3
    flip: bool = False
    phi0: float = 0.55
    psi0: float = 0.2
    sigma_pos: Positive = 3.0
    sigma_amb: Positive = 3.0
    prop_iter: Whole = 2
    chunk: Count = 784
    per_chunk: Count = 49
    tau: Annotated[float, Range(0.03)] = 0.8
    tau_base: Positive = TAU_BASE
    zone: bool = True
    ref_dropout: LessThanAll = 0.1
    optimiser: Literal["adamw", "adam"] = "adamw"
    lr: NotNegative = 1e-3
    weight_decay: NotNegative = 0.1
    clip: Positive = 10.0

    def __post_init__(self) -> None:
        """Check types, choices and ranges.

        Raises:
            ValueError: a field does not fit.
        """
        super().__post_init__()
        if not -1 <= self.psi0 <= self.phi0 <= 1:
            raise ValueError(
                f"psi0={self.psi0} and phi0={self.phi0} are cosines, and psi0 does not "
                "lie above phi0"
            )
        if self.per_chunk > self.chunk:
            raise ValueError(
                f"per_chunk={self.per_chunk} is at most chunk={self.chunk}"
            )


def _published(dataset: str, backbone: str, steps: int, **settings: Any) -> Config:
    """What the released settings have in common."""
    crops = None if dataset == "potsdam3" else "five"
    common = {"size": 224, "eval_size": 320, "resample": "nearest", "crops": crops}
    fixed = common | {"dataset": dataset, "backbone": backbone, "steps": steps}
    return Config(**fixed | settings)


_CITYSCAPES = {
    "phi0": 0.6,
    "prop_iter": 3,
    "optimiser": "adam",
    "cluster_lr": 1e-3,
}
# Suited to the tiny ViT, 16 x 16 patches per image, and minutes on a CPU. Boundaries
# that were not tuned with channel dropout do better without it.
_SMALL = {
    "standardise": "centre",
    "probes": "after",
    "batch_size": 16,
    "chunk": 256,
    "per_chunk": 32,
    "ref_dropout": 0.0,
}

PRESETS = presets(
    smoke=Config(**_SMALL | {"batch_size": 4}, n_train=16, n_val=8, steps=4),
    scenes=Config(**_SMALL, n_train=200, n_val=150, steps=80),
    scenes_aerial=Config(
        **_SMALL, dataset="scenes-aerial", n_train=200, n_val=150, steps=80
    ),
    camvid_tiny=Config(
        **_SMALL | {"batch_size": 4, "chunk": 1200, "per_chunk": 100},
        dataset="camvid",
        size=(240, 320),
        steps=100,
    ),
    camvid_vits16=Config(
        dataset="camvid",
        size=(320, 416),
        backbone="dino_vits16",
        batch_size=16,
        psi0=0.15,
        sigma_amb=4.0,
        chunk=520,
        per_chunk=130,
        weight_decay=0.01,
        cluster_lr=1e-3,
        steps=1000,
    ),
    cocostuff27_vits8=_published("cocostuff27", "dino_vits8", 3877 * 5),
    cocostuff27_vits16=_published(
        "cocostuff27",
        "dino_vits16",
        3877 * 5,
        psi0=0.15,
        sigma_amb=4.0,
        per_chunk=196,
        weight_decay=0.01,
        cluster_lr=1e-3,
    ),
    cityscapes27_vitb8=_published(
        "cityscapes27",
        "dino_vitb8",
        232 * 30,
        **_CITYSCAPES,
        sigma_amb=2.0,
        tau=0.1,
    ),
    cityscapes27_vits8=_published(
        "cityscapes27", "dino_vits8", 232 * 30, **_CITYSCAPES
    ),
    potsdam3_vitb8=_published(
        "potsdam3",
        "dino_vitb8",
        71 * 40,
        psi0=0.15,
        sigma_pos=5.0,
        prop_iter=1,
        tau=0.07,
        optimiser="adam",
        lr=5e-4,
        cluster_lr=1e-3,
    ),
)


def prepare(
    cfg: Config,
    dataset: SegmentationDataset | None = None,
    *,
    device: str | torch.device = "cpu",
    progress: bool = False,
) -> Material:
    """Open data and tokens; see :func:`uss_utils.learning.prepare`.

    What is kept of every image are the tokens that enter the last block.
    """
    return learning.prepare(
        cfg,
        dataset,
        device=device,
        wrap=LastBlockTokens,
        seen=_reference,
        progress=progress,
    )


def _reference(backbone: Frozen) -> Callable[[Tensor], Tensor]:
    """From tokens to reference features, which the fixed map is fitted to."""
    return BlockHead.from_backbone(backbone).requires_grad_(False)


def build(cfg: Config, material: Material) -> PPAPTrainer:
    """Network, loss and probes before the first step.

    Args:
        cfg: the settings.
        material: from :func:`prepare`.
    """
    # torch's layers draw their start from the global generator alone.
    with own_random_state(cfg.seed, torch.device("cpu")):
        model = PPAPNet(material.backbone, material.standardise)
    loss = PPAPLoss(
        cfg.phi0,
        cfg.psi0,
        cfg.sigma_pos,
        cfg.sigma_amb,
        cfg.prop_iter,
        cfg.tau,
        cfg.chunk,
        cfg.per_chunk,
        cfg.ref_dropout,
        cfg.zone,
        cfg.tau_base,
    )
    readout = material.readout(cfg, material.dim)
    return PPAPTrainer(model, loss, readout, cfg).to(material.device)


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
    """Train the copied block, the projection and the probes.

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
        figures of :meth:`PPAPTrainer.step` over the steps. No label has touched the
        block and the clusters.

    Raises:
        ValueError: settings that do not fit the data or the checkpoint.
        FloatingPointError: the loss is no number.
    """
    if material is None:
        material = prepare(cfg, device=device, progress=bool(progress))
    trainer = build(cfg, material)

    def current():
        return learning.assemble(
            "ppap", cfg, material, trainer.model.head, trainer.readout
        )

    def losses(model: PPAPTrainer, batch: dict[str, Tensor], step: Step) -> dict:
        tokens = material.source.feat(batch["input"])
        return model.step(tokens, batch.get("label"), step.generator)

    history = run(
        cfg,
        material,
        trainer,
        losses,
        material.source,
        current,
        optimisers=trainer.optimisers(),
        clip_norm={"net": cfg.clip},
        scaler={"init_scale": 2048.0, "growth_interval": 1000},
        checkpoint=checkpoint,
        checkpoint_every=checkpoint_every,
        progress=progress,
        watch=watch,
        watch_at=watch_at,
    )
    return learning.finish(
        "ppap", cfg, material, trainer.model.head, trainer.readout, history
    )
