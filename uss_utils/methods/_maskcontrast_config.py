"""MaskContrast's settings: the released recipes, and those of small runs."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import torch

from uss_utils import backbones, datasets
from uss_utils.datasets import SegmentationDataset
from uss_utils.frozen import Frozen
from uss_utils.mask_files import RELEASED
from uss_utils.presets import (
    Channels,
    LessThanAll,
    NotNegative,
    Pixels,
    Positive,
    Range,
    Whole,
    presets,
)
from uss_utils.recipe import LearnedRecipe


@dataclass(frozen=True)
class Config(LearnedRecipe):
    """Settings of MaskContrast.

    The defaults of loss, network and optimiser are the paper's; its two recipes are the
    presets "voc-resnet50" and "voc-resnet50-unsupervised".

    Attributes:
        network: the ResNet that is trained, with "pixels" as the backbone; "none": only
            a decoder is trained, on the features of another backbone.
        stages: residual stages of the ResNet, 1 to 4.
        start: the ResNet's weights before training: "random", "imagenet", or a file,
            such as MoCo v2's.
        frozen_stages: of the ResNet, which keep their start.
        decoder: see :class:`~uss_utils.pixel_embedder.PixelEmbedder`.
        mid: channels of the decoder.
        dim: channels D of the embedding.
        upsample: contrast at the size of the views, not at the network's grid; has no
            effect on a decoder alone.
        whole: cut views from images as stored, not from those of ``size``.
        masks: "ncut", "attention" or "degree": made from ``mask_backbone``, see
            :mod:`uss_utils.mask_files`; "supervised" or "unsupervised": those that were
            released beside VOC.
        mask_backbone: frozen vision transformer.
        mask_features: of its last block, the keys or what it gives ("feat").
        mask_map: fixed map of them before they are compared.
        mask_side: longer side of the image that it sees; None: the image's own.
        tau: cosine above which two patches are joined.
        objects: most objects per image.
        distil: replace each image's mask by what a head predicts that learned from all
            of them, "linear" or "conv".
        refine: sharpen the masks with the dense CRF.
        view_size: side of a view in pixels.
        scale: range of a view's share of its image's area.
        queue: prototypes K kept from earlier batches; well below the number of objects
            in the data, or they are those of the batch's own images.
        temperature: T of the contrastive loss.
        key_momentum: share of the key network's weights that a step keeps.
        lr: SGD's rate; it decays polynomially from epoch to epoch.
        momentum: SGD's.
        weight_decay: SGD's, on all trained weights.
    """

    chapter: ClassVar[int] = 8
    files: ClassVar[tuple[str, ...]] = ("weights", "start")
    backbone: str = "pixels"
    batch_size: int = 64
    steps: int = 40 * 165
    probes: Literal["after"] = "after"
    flip: bool = False
    network: Literal["resnet18", "resnet50", "none"] = "resnet50"
    stages: int = 4
    start: str | Path = "random"
    frozen_stages: Whole = 0
    decoder: Literal["deeplab", "conv", "linear"] = "deeplab"
    mid: Channels = 256
    dim: Channels = 32
    upsample: bool = True
    whole: bool = False
    masks: Literal["ncut", "attention", "degree", "supervised", "unsupervised"] = "ncut"
    mask_backbone: str = "dino_vits16"
    mask_features: Literal["keys", "feat"] = "keys"
    mask_map: Literal["none", "centre", "whiten"] = "none"
    mask_side: Pixels | None = None
    tau: Annotated[float, Range(-1, 1)] = 0.2
    objects: int = 1
    distil: Literal["none", "linear", "conv"] = "none"
    refine: bool = True
    view_size: Pixels = 224
    scale: tuple[float, float] = (0.2, 1.0)
    queue: int = 128
    temperature: Positive = 0.5
    key_momentum: float = 0.999
    lr: Positive = 4e-3
    momentum: LessThanAll = 0.9
    weight_decay: NotNegative = 1e-4

    def __post_init__(self) -> None:
        """Check types, choices and ranges.

        Raises:
            ValueError: a field does not fit.
        """
        super().__post_init__()
        for name, low, high in (
            ("objects", 1, 254),
            ("stages", 1, 4),
            ("frozen_stages", 0, self.stages),
            ("queue", 0, math.inf),
            ("key_momentum", 0, 1),
        ):
            if not low <= getattr(self, name) <= high:
                raise ValueError(
                    f"{name}={getattr(self, name)} has to lie in {low}..{high}"
                )
        if not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise ValueError(f"scale={self.scale} has to rise within (0, 1]")
        if (self.network == "none") == (self.backbone == "pixels"):
            raise ValueError(
                f"network={self.network!r} with backbone={self.backbone!r}: a ResNet "
                'sees "pixels"; without one, choose a backbone that gives features'
            )
        if self.masks in RELEASED and not self.whole:
            raise ValueError(
                f"masks={self.masks!r} are as large as the images they were released "
                "for; set whole=True, so that views are cut from images as stored"
            )
        if self.weights is not None and self.masks in RELEASED:
            raise ValueError(
                "weights are those of the vision transformer that makes masks, and "
                f"masks={self.masks!r} are made already; the ResNet's are start=FILE"
            )

    def load_backbone(self, device: str | torch.device = "cpu") -> Frozen:
        """The frozen backbone; ``weights`` are those of a vision transformer."""
        if self.backbone == "pixels":
            return backbones.load("pixels", device=str(device))
        return super().load_backbone(device)

    def load_mask_backbone(self, device: str | torch.device = "cpu") -> Frozen:
        """The frozen vision transformer that masks are made from.

        Raises:
            ValueError: unknown name or foreign weights.
            OSError: its weights cannot be had.
        """
        return self.load_frozen(self.mask_backbone, device)

    def open_whole(self) -> SegmentationDataset:
        """The training images as stored, to cut views from."""
        return datasets.load(
            self.dataset, self.train_split, self.root, limit=self.n_train
        )


# Both released recipes train on 10 582 images; 2 x V100.
_VOC: dict[str, Any] = {
    "dataset": "voc",
    "train_split": "trainaug",
    "whole": True,
    "size": (512, 512),
    "resample": "cubic",
    "cache": "images",
}
_UNSUPERVISED: dict[str, Any] = {"batch_size": 128, "queue": 256, "steps": 40 * 82}
# What suits the generated scenes: a short ResNet from random weights, gentle crops, a
# sharper softmax, several objects per image, a quicker key network.
_SMALL: dict[str, Any] = {
    "network": "resnet18",
    "stages": 2,
    "decoder": "conv",
    "mid": 128,
    "upsample": False,
    "mask_backbone": "vit_tiny_scenes",
    "mask_map": "centre",
    "tau": 0.1,
    "distil": "linear",
    "objects": 4,
    "view_size": 96,
    "scale": (0.4, 1.0),
    "batch_size": 16,
    "queue": 32,
    "temperature": 0.2,
    "key_momentum": 0.99,
    "lr": 0.05,
    "steps": 150,
}

PRESETS = presets(
    smoke=Config(
        **_SMALL | {"steps": 4, "batch_size": 4, "view_size": 64},
        n_train=16,
        n_val=8,
    ),
    scenes=Config(**_SMALL, n_train=200, n_val=150),
    scenes_aerial=Config(**_SMALL, dataset="scenes-aerial", n_train=200, n_val=150),
    camvid_tiny=Config(
        **_SMALL | {"batch_size": 8, "view_size": 160},
        dataset="camvid",
        size=(240, 320),
    ),
    camvid_vits16=Config(
        **_SMALL
        | {"stages": 4, "start": "imagenet", "view_size": 224, "steps": 1000}
        | {"mask_backbone": "dino_vits16", "mask_map": "none", "tau": 0.2},
        dataset="camvid",
        size=(320, 416),
        mask_side=480,
    ),
    voc_resnet50=Config(**_VOC, masks="supervised", start="imagenet", frozen_stages=2),
    voc_resnet50_unsupervised=Config(
        **_VOC | _UNSUPERVISED, masks="unsupervised", start="moco_v2_800ep.pth.tar"
    ),
    voc_resnet50_ncut=Config(
        **_VOC | _UNSUPERVISED, mask_side=448, start="moco_v2_800ep.pth.tar"
    ),
)
