"""PriMaPs-EM's settings: the paper's, and those of small runs."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from uss_utils.presets import Count, NotNegative, Positive, Range, presets
from uss_utils.protocol import EvalProtocol
from uss_utils.recipe import LearnedRecipe


@dataclass(frozen=True)
class Config(LearnedRecipe):
    """Settings of PriMaPs-EM; the defaults are the paper's.

    Attributes:
        base: file of a trained model whose code is grouped instead of the features.
            Its cluster centres are then the start, without PCA and k-means.
        split: fixed map of the features that are split into masks; None: the same as
            ``standardise``, which is of the features that are grouped.
        threshold: least cosine with the seed, inside a mask.
        coverage: share of the patches after which no more masks are sought.
        refine: sharpen the masks with the dense CRF.
        start_steps: steps of cosine k-means before the EM, on plain views.
        pca_images: random images whose principal directions start the k-means.
        lr: Adam's rate for the prototypes.
        gamma: power of the class weights (1 - share of the class).
        every: steps between two moves of the slow prototypes.
        momentum: largest decay of the slow prototypes.
        ramp: begin with a running mean of the snapshots, as released; otherwise the
            decay is constant.
        augment: the M-step sees an augmented view.
    """

    chapter: ClassVar[int] = 7
    files: ClassVar[tuple[str, ...]] = ("weights", "base")
    batch_size: int = 32
    base: str | Path | None = None
    split: Literal["centre", "whiten", "none"] | None = None
    threshold: Annotated[float, Range(0.1, 1)] = 0.4
    coverage: Annotated[float, Range(0, 1, above=True)] = 0.95
    refine: bool = True
    start_steps: Count = 184
    pca_images: Count = 93 * 32
    lr: Positive = 5e-3
    gamma: NotNegative = 2.0
    every: Count = 10
    momentum: Annotated[float, Range(0, 1, above=True)] = 0.98
    ramp: bool = True
    augment: bool = True

    def protocol(self) -> EvalProtocol:
        """How models of these settings are scored: logits as they are (alpha 1)."""
        return EvalProtocol(crf=self.crf, flip=self.flip, alpha=1.0)


def _published(dataset: str, backbone: str, epoch: int) -> Config:
    """A cell of the paper's table: 2 epochs of k-means, 50 of EM."""
    side = 322 if backbone.startswith("dinov2") else 320
    return Config(
        dataset=dataset,
        backbone=backbone,
        size=side,
        eval_size=side,
        resample="bilinear",
        eval_resample="tensor",
        start_steps=2 * epoch,
        steps=50 * epoch,
    )


# Whole batches of 32 in one epoch of the training images.
_EPOCHS = {"cityscapes27": 92, "cocostuff27": 1550, "potsdam3": 142}
_BACKBONES = ("dino_vits8", "dino_vitb8", "dinov2_vits14", "dinov2_vitb14")
# Suited to the tiny ViT: its patches are alike in a few directions, so masks are sought
# in whitened features, where a higher threshold keeps them pure.
_SMALL = {
    "standardise": "centre",
    "split": "whiten",
    "threshold": 0.7,
    "probes": "after",
    "batch_size": 16,
}

PRESETS = presets(
    smoke=Config(
        **_SMALL | {"batch_size": 4},
        n_train=16,
        n_val=8,
        start_steps=4,
        steps=12,
    ),
    scenes=Config(**_SMALL, n_train=200, n_val=150, start_steps=150, steps=100),
    scenes_aerial=Config(
        **_SMALL,
        dataset="scenes-aerial",
        n_train=200,
        n_val=150,
        start_steps=150,
        steps=100,
    ),
    camvid_tiny=Config(
        **_SMALL | {"batch_size": 4},
        dataset="camvid",
        size=(240, 320),
        start_steps=180,
        steps=150,
    ),
    camvid_vits16=Config(
        dataset="camvid",
        size=(320, 416),
        backbone="dino_vits16",
        batch_size=16,
        start_steps=2 * 22,
        steps=50 * 22,
    ),
    **{
        f"{dataset}_{backbone.removeprefix('dino_')}": _published(
            dataset, backbone, epoch
        )
        for dataset, epoch in _EPOCHS.items()
        for backbone in _BACKBONES
    },
)
