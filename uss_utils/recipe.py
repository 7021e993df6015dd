"""Settings that methods share, and what follows from them: data, backbone, model.

A method's ``Config`` extends one of the two classes here by what its paper adds.
"""

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import torch
from torch import nn

from uss_utils import backbones, datasets
from uss_utils.datasets import SegmentationDataset
from uss_utils.frozen import Frozen
from uss_utils.presets import Count, NotNegative, Pixels, PresetConfig, Range
from uss_utils.probes import ClusterProbe, LinearProbe
from uss_utils.protocol import EvalProtocol
from uss_utils.segmenter import Segmenter


@dataclass(frozen=True)
class Recipe(PresetConfig):
    """What every method needs to say: data, backbone, number of clusters, scoring.

    Attributes:
        dataset: see :func:`uss_utils.datasets.names`.
        size: of the training images, as in :func:`uss_utils.datasets.load`.
        eval_size: of the evaluated images; None: as ``size``.
        resample: how stored images are resized: "nearest", as STEGO and its successors
            do, or "bilinear" (antialiased), or "tensor" or "cubic", see
            :class:`~uss_utils.datasets.transforms.Transform`; None: what the reader
            prefers.
        eval_resample: how evaluated images are resized; None: as ``resample``.
        crops: "five" trains on five crops per image (``data prepare`` makes them).
        train_split: split of the data set that is trained on.
        n_train: training images; None: all.
        n_val: evaluated images; None: all.
        backbone: see :func:`uss_utils.backbones.load`.
        position: how its position table is resampled, "released" or "timm".
        standardise: fixed map applied to the features first.
        whiten_dim: principal components that "whiten" keeps.
        clusters: number of clusters; None: as many as classes.
        flip: average the code with that of the mirror image when evaluating.
        crf: score with the dense CRF too.
        limit_crf: on at most this many images; it is slow.
        chapter: number of the notebook that teaches the method; tables list methods in
            this order.
    """

    chapter: ClassVar[int] = 99
    dataset: str = "scenes"
    size: Pixels | tuple[Pixels, Pixels] | None = None
    eval_size: Pixels | tuple[Pixels, Pixels] | None = None
    resample: Literal["nearest", "bilinear", "tensor", "cubic"] | None = None
    eval_resample: Literal["nearest", "bilinear", "tensor", "cubic"] | None = None
    crops: Literal["five"] | None = None
    train_split: str = "train"
    n_train: Count | None = None
    n_val: Count | None = None
    backbone: str = "vit_tiny_scenes"
    position: Literal["released", "timm"] = "released"
    standardise: Literal["centre", "whiten", "none"] = "none"
    whiten_dim: Count = 32
    clusters: Annotated[int, Range(1, 10_000)] | None = None
    flip: bool = True
    crf: bool = False
    limit_crf: Count | None = 30

    def protocol(self) -> EvalProtocol:
        """How models of these settings are scored."""
        return EvalProtocol(crf=self.crf, flip=self.flip)

    def open(self, split: str) -> SegmentationDataset:
        """One split of the data set, "train" or "val", with its geometry.

        Raises:
            ValueError: the settings do not suit the data set.
            FileNotFoundError: the set is not there; the message says how to get it.
        """
        training = split == "train"
        size = self.size if training or self.eval_size is None else self.eval_size
        limit = self.n_train if training else self.n_val
        resample = self.resample if training else self.eval_resample or self.resample
        options = {"resample": resample, "crops": training and self.crops}
        options = {name: value for name, value in options.items() if value}
        name = self.train_split if training else split
        return datasets.load(
            self.dataset, name, self.root, size=size, limit=limit, **options
        )

    def load_backbone(self, device: str | torch.device = "cpu") -> Frozen:
        """The frozen backbone.

        Raises:
            ValueError: unknown name or foreign weights.
            OSError: its weights cannot be had.
        """
        return self.load_frozen(self.backbone, device)

    def load_frozen(self, name: str, device: str | torch.device = "cpu") -> Frozen:
        """A frozen network by name, with the settings' weights, if there are any.

        Raises:
            ValueError: unknown name or foreign weights.
            OSError: its weights cannot be had.
        """
        # Weights of one's own are not the shipped ones: the record must not say so.
        own = self.weights is not None and name == backbones.SHIPPED
        return backbones.load(
            "vit_tiny" if own else name,
            self.weights,
            position=self.position,
            device=str(device),
            seed=self.seed,
        )

    def n_clusters(self, train_set: SegmentationDataset) -> int:
        """Number of clusters.

        Raises:
            ValueError: known neither from the settings nor from the classes.
        """
        found = self.clusters or train_set.n_classes
        if not found:
            raise ValueError(
                "the data set names no classes, so the number of clusters must be "
                "given: clusters=..."
            )
        return found

    def segmenter(
        self,
        method: str,
        backbone: Frozen,
        head: nn.Module,
        cluster_probe: ClusterProbe,
        linear_probe: LinearProbe | None,
        train_set: SegmentationDataset,
    ) -> Segmenter:
        """Put a model together and note where it comes from.

        Args:
            method: the method's module.
            backbone: see :meth:`load_backbone`.
            head: features to code.
            cluster_probe: of the code.
            linear_probe: of the code, or None.
            train_set: gives class names, palette and geometry.
        """
        return Segmenter(
            backbone,
            head,
            cluster_probe,
            linear_probe,
            classes=train_set.classes,
            palette=train_set.palette,
            transform=train_set.transform,
            protocol=self.protocol(),
            method=method,
            preset=self.name,
            meta=self.story(),
        )

    def story(self) -> dict[str, Any]:
        """What a record tells about the training."""
        return {
            "overrides": self.overrides(),
            "seed": self.seed,
            "steps": self.steps,
            "backbone_seed": self.seed,
            "order": [self.chapter],
        }


@dataclass(frozen=True)
class LearnedRecipe(Recipe):
    """What every method that trains a head needs to say.

    Attributes:
        steps: optimiser steps.
        batch_size: images per step.
        cache: where features are kept, see
            :meth:`uss_utils.sources.FeatureSource.open`.
        linear_lr: Adam's rate for the linear probe trained alongside.
        cluster_lr: Adam's rate for the cluster probe trained alongside.
        probes: "alongside" scores with the probes trained in the same steps, as the
            papers do; "after" refits both to the finished code (k-means, and a
            converged linear probe), as the zeroth method does.
        precision: "no" (float32), "bf16" or "fp16".
        accumulate: parts that a batch is computed in, one after the other, where the
            whole does not fit into memory. Losses that compare the images of a batch
            compare those of a part then.
    """

    steps: Count = 300
    batch_size: Count = 16
    cache: Literal["auto", "memory", "disk", "images"] = "auto"
    linear_lr: NotNegative = 5e-3
    cluster_lr: NotNegative = 5e-3
    probes: Literal["alongside", "after"] = "alongside"
    precision: Literal["no", "bf16", "fp16"] = "no"
    accumulate: Count = 1

    def of_training(self) -> dict[str, Any]:
        """What a checkpoint has to agree with: all that is no matter of the machine."""
        values = self.portable()
        machine = ("root", "cache", "accumulate")
        return {k: v for k, v in values.items() if k not in machine}
