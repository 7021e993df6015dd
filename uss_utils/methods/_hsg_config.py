"""HSG's settings: the released recipes, and those of small runs."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import torch

from uss_utils import backbones, datasets
from uss_utils.datasets import SegmentationDataset
from uss_utils.frozen import Frozen
from uss_utils.grouping import HEADS, SIDE, Grouping
from uss_utils.methods._hsg_inference import SegmentRetrieval
from uss_utils.methods._hsg_loss import HSGLoss
from uss_utils.presets import (
    Channels,
    Count,
    LessThanAll,
    NotNegative,
    Pixels,
    Positive,
    Range,
    Share,
    Whole,
    presets,
)
from uss_utils.recipe import LearnedRecipe

Groups = Annotated[int, Range(1, 4096)]
Cells = tuple[Annotated[int, Range(1, 256)], Annotated[int, Range(1, 256)]]


@dataclass(frozen=True)
class Config(LearnedRecipe):
    """Settings of HSG.

    The defaults are those of the second stage on COCO; the released recipes are the
    presets "voc-resnet50-stage1", "voc-resnet50" and "cityscapes-resnet50".

    Attributes:
        images: data set whose images are trained on; "": ``dataset``, which is the one
            that is clustered, named and scored.
        whole: cut views from images as stored, and score such by retrieval, instead of
            those of ``size``.
        network: the ResNet that is trained, with "pixels" as the backbone; "none": only
            the embedding's two layers, on the features of another backbone.
        stages: residual stages of the ResNet, 1 to 4.
        stride: of its grid in training, in pixels.
        start: the ResNet's weights before training: "random", "imagenet", or a file.
        first_stage: model saved by the first stage, whose embedding is taken over; "":
            none.
        mid: channels between the embedding's layers; None: as many as the first takes.
        dim: channels C of the embedding, even.
        region_side: longer side at which regions are sought; see
            :mod:`uss_utils.regions`.
        region_threshold: height of the first cut of an image's tree of regions.
        region_max: most regions of an image; the cut is raised until it holds.
        region_folder: released maps of regions; "": they are made.
        view_size: side of a view in pixels.
        scale: range of a view's scale.
        grid: cells from which k-means starts in a view.
        iterations: of k-means.
        hierarchy: train the clustering transformers too (the second stage).
        fine: fine groups K1 of an image.
        coarse: coarse groups K2.
        kappa: concentration of every contrast.
        knn: neighbours of a node in the graph.
        per_view: neighbours are sought in each view; False: among all nodes.
        weight_region: of the contrast among regions.
        weight_fine: of the contrast among fine groups.
        weight_coarse: of the contrast among coarse groups.
        weight_modularity: of modularity and balance.
        weight_balance: of balance alone; None: as the modularity.
        weight_centroid: of the contrast among centroids.
        lr: SGD's rate.
        factor: rate of the grouping over that of the embedding.
        momentum: SGD's.
        weight_decay: SGD's, on weights.
        warmup: steps of it.
        decay: "step" or "poly".
        test_side: longer side of a scored image on its canvas, in pixels.
        test_canvas: (H, W) of the canvas.
        test_grid: cells from which k-means starts there.
        test_iterations: of it. The release tests its first stage with 1, which
            ``-s test_iterations=1`` gives; 15 serves both stages better.
    """

    chapter: ClassVar[int] = 9
    files: ClassVar[tuple[str, ...]] = (
        *("weights", "start", "first_stage", "region_folder"),
    )
    backbone: str = "pixels"
    batch_size: int = 48
    steps: int = 20_000
    probes: Literal["after"] = "after"
    flip: bool = False
    images: str = ""
    whole: bool = False
    network: Literal["resnet18", "resnet50", "none"] = "resnet50"
    stages: Annotated[int, Range(1, 4)] = 4
    stride: int = 16
    start: str | Path = "random"
    first_stage: str | Path = ""
    mid: Channels | None = None
    dim: Channels = 128
    region_side: Pixels = 320
    region_threshold: Share = 0.25
    region_max: Annotated[int, Range(1, 2**16)] = 48
    region_folder: str | Path = ""
    view_size: Pixels = 448
    scale: tuple[float, float] = (0.5, 1.5)
    grid: Cells = (4, 4)
    iterations: Count = 15
    hierarchy: bool = True
    fine: Groups = 8
    coarse: Groups = 4
    # Beyond 32 numbers of 32 bits do not reach.
    kappa: Annotated[float, Range(0, 32, above=True)] = 16.0
    knn: Count = 2
    per_view: bool = True
    weight_region: NotNegative = 1.0
    weight_fine: NotNegative = 0.1
    weight_coarse: NotNegative = 0.1
    weight_modularity: NotNegative = 1.0
    weight_balance: NotNegative | None = None
    weight_centroid: NotNegative = 1.0
    lr: Positive = 8e-3
    factor: NotNegative = 10.0
    momentum: LessThanAll = 0.9
    weight_decay: NotNegative = 1e-4
    warmup: Whole = 100
    decay: Literal["step", "poly"] = "step"
    test_side: Pixels = 512
    test_canvas: tuple[Pixels, Pixels] = (512, 512)
    test_grid: Cells = (6, 6)
    test_iterations: Count = SegmentRetrieval.iterations

    def __post_init__(self) -> None:
        """Check types, choices and ranges.

        Raises:
            ValueError: a field does not fit.
        """
        super().__post_init__()
        if self.dim < 2 or self.dim % 2:
            raise ValueError(f"dim={self.dim} has to be even, for the position table")
        if self.hierarchy and self.dim % HEADS:
            raise ValueError(
                f"dim={self.dim} has to be a multiple of {HEADS}, the heads of the "
                "clustering transformers; or train with hierarchy=False"
            )
        if not 0 < self.scale[0] <= self.scale[1]:
            raise ValueError(f"scale={self.scale} has to rise above 0")
        if self.hierarchy and self.batch_size < 2:
            raise ValueError(
                "the clustering transformers need at least two images per step "
                f"(batch_size={self.batch_size}); or train with hierarchy=False"
            )
        if self.test_side > max(self.test_canvas):
            raise ValueError(
                f"images with a longer side of test_side={self.test_side} do not fit "
                f"on a test_canvas of {self.test_canvas}"
            )
        self._check_grid()
        if (self.network == "none") == (self.backbone == "pixels"):
            raise ValueError(
                f"network={self.network!r} with backbone={self.backbone!r}: a ResNet "
                'sees "pixels"; without one, choose a backbone that gives features'
            )

    def _check_grid(self) -> None:
        """The network's grid: of a size that exists, and inside the position table."""
        if self.network == "none":
            return
        if self.stride not in (8, 16):
            raise ValueError(f"stride={self.stride} has to be 8 or 16")
        cells = -(-self.view_size // min(self.stride, 2 ** (self.stages + 1)))
        if self.hierarchy and cells > SIDE:
            raise ValueError(
                f"a view of view_size={self.view_size} pixels has {cells} places on a "
                f"side, the position table {SIDE}; cut smaller views"
            )

    def load_backbone(self, device: str | torch.device = "cpu") -> Frozen:
        """The frozen backbone; ``weights`` are those of a vision transformer."""
        if self.backbone == "pixels":
            return backbones.load("pixels", device=str(device))
        return super().load_backbone(device)

    def open_images(self) -> SegmentationDataset:
        """The images that views are cut from, as stored."""
        if self.images:
            return datasets.load(self.images, "train", self.root, limit=self.n_train)
        return datasets.load(
            self.dataset, self.train_split, self.root, limit=self.n_train
        )

    def open_scored(self, split: str) -> SegmentationDataset:
        """The images scored by retrieval, which brings them to a size by itself."""
        if not self.whole:
            return self.open(split)
        stored = {"size": None, "eval_size": None}
        stored |= {"resample": None, "eval_resample": None}
        return replace(self, **stored).open(split)

    def grouping(self) -> Grouping | bool:
        """Fresh clustering transformers, or False for the first stage."""
        return Grouping(self.dim, self.fine, self.coarse) if self.hierarchy else False

    def loss(self) -> HSGLoss:
        """The objective."""
        return HSGLoss(
            region=self.weight_region,
            fine=self.weight_fine,
            coarse=self.weight_coarse,
            modularity=self.weight_modularity,
            balance=self.weight_balance,
            centroid=self.weight_centroid,
            grid=self.grid,
            iterations=self.iterations,
            kappa=self.kappa,
            knn=self.knn,
            per_view=self.per_view,
        )

    def retrieval(self) -> SegmentRetrieval:
        """How images are scored by retrieval."""
        return SegmentRetrieval(
            self.test_side, self.test_canvas, self.test_grid, self.test_iterations
        )


# VOC's track trains on MSCOCO's images; eight GPUs.
_VOC: dict[str, Any] = {
    "dataset": "voc",
    "train_split": "trainaug",
    "images": "coco",
    "whole": True,
    "size": (512, 512),
    "cache": "images",
}
_STAGE1: dict[str, Any] = {
    "hierarchy": False,
    "view_size": 224,
    "batch_size": 128,
    "steps": 350_000,
    "lr": 0.1,
    "grid": (1, 1),
    "iterations": 1,
}
_CITYSCAPES: dict[str, Any] = {
    "dataset": "cityscapes19",
    "whole": True,
    "size": (512, 1024),
    "cache": "images",
    "batch_size": 32,
    "steps": 38_000,
    "lr": 0.1,
    "factor": 1.0,
    "knn": 4,
    "per_view": False,
    "weight_modularity": 0.2,
    "weight_centroid": 0.2,
    "region_threshold": 0.05,
    "region_max": 128,
    "test_side": 2048,
    "test_canvas": (1024, 2048),
    "test_grid": (12, 24),
}
# What suits the generated scenes: a short ResNet from random weights. In 150 steps
# instead of 20 000 the soft groups would stay undecided, one label everywhere, with the
# paper's weights: modularity weighs ten times as much, and balance, which undecided
# groups satisfy, three tenths of that.
_SMALL: dict[str, Any] = {
    "network": "resnet18",
    "stages": 2,
    "stride": 8,
    "mid": 128,
    "dim": 64,
    "region_side": 192,
    "view_size": 80,
    "scale": (0.5, 1.2),
    "batch_size": 16,
    "steps": 150,
    "lr": 0.1,
    "factor": 1.0,
    "warmup": 10,
    "weight_modularity": 10.0,
    "weight_balance": 3.0,
    "test_side": 128,
    "test_canvas": (128, 128),
    "test_grid": (4, 4),
}

PRESETS = presets(
    smoke=Config(
        **_SMALL
        | {"steps": 4, "batch_size": 4, "view_size": 64, "warmup": 2, "dim": 16},
        n_train=16,
        n_val=8,
    ),
    scenes=Config(**_SMALL, n_train=200, n_val=150),
    scenes_aerial=Config(**_SMALL, dataset="scenes-aerial", n_train=200, n_val=150),
    camvid_tiny=Config(
        **_SMALL
        | {"region_side": 320, "batch_size": 8, "view_size": 160}
        | {"test_side": 320, "test_canvas": (240, 320), "test_grid": (6, 6)},
        dataset="camvid",
        size=(240, 320),
    ),
    camvid_vits16=Config(
        **_SMALL
        | {"network": "none", "stride": 16, "mid": None, "dim": 128}
        | {"region_side": 320, "view_size": 320, "steps": 1000, "warmup": 100}
        | {"test_side": 416, "test_canvas": (320, 416), "test_grid": (6, 6)},
        backbone="dino_vits16",
        standardise="centre",
        dataset="camvid",
        size=(320, 416),
    ),
    voc_resnet50_stage1=Config(**_VOC | _STAGE1),
    voc_resnet50=Config(**_VOC, first_stage="hsg-stage1.safetensors"),
    cityscapes_resnet50=Config(**_CITYSCAPES),
)
