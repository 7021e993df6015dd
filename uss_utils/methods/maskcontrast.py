"""MaskContrast: object masks teach a network to tell objects apart.

Van Gansbeke, Vandenhende, Georgoulis, Van Gool, Unsupervised Semantic Segmentation by
Contrasting Object Mask Proposals, ICCV 2021. Every pixel of an object has to recognise,
among those of other objects, the mean embedding of its own object in another view; a
second output learns to find objects, so that no mask is needed later.

No label and no strong frozen network has a part in the training: masks may come from
:mod:`uss_utils.saliency`, the network may start from random weights.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD

from uss_utils import crf, learning
from uss_utils.datasets import SegmentationDataset, voc
from uss_utils.datasets.objects import BACKGROUND
from uss_utils.environment import generator
from uss_utils.fitting import run, untrained
from uss_utils.learning import Trained, Watch
from uss_utils.mask_files import MaskFiles, open_masks
from uss_utils.methods._maskcontrast_batches import TwoViewBatches
from uss_utils.methods._maskcontrast_config import PRESETS, Config
from uss_utils.methods._maskcontrast_data import TwoViewDataset
from uss_utils.methods._maskcontrast_loss import (
    inverse_log_weights,
    mask_contrastive_loss,
    object_prototypes,
    pixel_object_logits,
)
from uss_utils.methods._maskcontrast_network import MaskContrast
from uss_utils.methods._maskcontrast_queue import PrototypeQueue
from uss_utils.pixel_embedder import EmbedderHead, PixelEmbedder
from uss_utils.resnets import check_start, dilated_resnet
from uss_utils.run_state import own_random_state
from uss_utils.saliency import balanced_bce
from uss_utils.schedules import poly_schedule
from uss_utils.segment_evaluation import VOC7, SegmentProtocol, evaluate_segments
from uss_utils.segment_maps import label_maps, segment_prototypes
from uss_utils.segmenter import Segmenter
from uss_utils.segments import SegmentMemory, cluster_segments
from uss_utils.training import Step

__all__ = [
    "PRESETS",
    "Config",
    "MaskContrast",
    "Material",
    "PixelEmbedder",
    "PrototypeQueue",
    "SegmentMemory",
    "TwoViewDataset",
    "balanced_bce",
    "build",
    "cluster_segments",
    "inverse_log_weights",
    "label_maps",
    "mask_contrastive_loss",
    "object_prototypes",
    "pixel_object_logits",
    "prepare",
    "score_objects",
    "segment_prototypes",
    "train",
]

PREFETCH = 2  # threads that cut views while the network trains


@dataclass
class Material(learning.Material):
    """What MaskContrast trains on; several seeds can share it.

    Attributes:
        pairs: two views of an image and of its mask, by index.
        masks: of the training images.
    """

    pairs: TwoViewBatches | TwoViewDataset = None
    masks: MaskFiles = None

    @property
    def objects(self) -> int:
        """Images that have a mask, and are trained on."""
        return len(self.pairs)


def prepare(
    cfg: Config,
    dataset: SegmentationDataset | None = None,
    *,
    device: str | torch.device = "cpu",
    progress: bool = False,
) -> Material:
    """Open the images, and make or open the masks of their objects.

    Masks depend on images, mask backbone and their own settings alone: one set on disk
    serves every seed.

    Args:
        cfg: the settings.
        dataset: training images; None opens those of the settings.
        device: where to train; "auto" picks.
        progress: show bars.

    Raises:
        ValueError: settings and data do not fit together, or no image has a mask.
        FileNotFoundError: the data set, or its released masks, are not there.
    """
    if cfg.network != "none":
        check_start(cfg.start)
    base = learning.prepare(cfg, dataset, device=device, progress=progress)
    images = cfg.open_whole() if cfg.whole and dataset is None else base.dataset
    masks = open_masks(cfg, images, device=base.device, progress=progress)
    # Images of one size are cut a batch at a time, which is several times as fast.
    cut = TwoViewDataset if cfg.whole else TwoViewBatches
    pairs = cut(images, masks, cfg.view_size, scale=cfg.scale)
    if progress and len(pairs) < len(images):
        print(f"masks: {len(pairs)} of {len(images)} images have one; they are used")
    return Material.of(base, pairs=pairs, masks=masks)


def build(cfg: Config, material: Material) -> MaskContrast:
    """Both networks and the queue before the first step.

    Args:
        cfg: the settings.
        material: from :func:`prepare`.

    Raises:
        ValueError: the ResNet's start is no file of such a network.
        FileNotFoundError: there is no such file.
        ConnectionError: ImageNet weights are not here and cannot be fetched.
    """
    # torch's layers draw their start from the global generator alone.
    with own_random_state(cfg.seed, torch.device("cpu")):
        network, channels = nn.Identity(), material.dim
        if cfg.network != "none":
            weights = None if cfg.start == "random" else cfg.start
            network = dilated_resnet(cfg.network, weights, cfg.stages)
            channels = network.dim
        embedder = PixelEmbedder(
            network, channels, cfg.dim, cfg.mid, cfg.decoder, cfg.upsample
        )
    model = MaskContrast(
        embedder, cfg.queue, cfg.temperature, cfg.key_momentum, generator(cfg.seed)
    )
    model.freeze_backbone_stages(cfg.frozen_stages)
    return model.to(material.device).train()


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
    """Train both networks; then fit clusters and a linear probe to the embedding.

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
        figures of :meth:`MaskContrast.forward` over the steps. No label has touched the
        network and the clusters.

    Raises:
        ValueError: settings that do not fit the data or the checkpoint.
        FloatingPointError: the loss is no number.
    """
    if material is None:
        material = prepare(cfg, device=device, progress=bool(progress))
    model = build(cfg, material)
    readout = material.readout(cfg, cfg.dim)

    def loss(model: MaskContrast, batch: dict[str, Tensor], step: Step) -> dict:
        # Only now: before the first step nobody knew of the other processes.
        model.synchronise_batch_norm()
        return model(*seen(cfg, material, batch), move_key=step.part == 0)

    def current():
        head = EmbedderHead(model.query)
        return learning.assemble("maskcontrast", cfg, material, head, readout)

    history = run(
        cfg,
        material,
        model,
        loss,
        material.pairs,
        current,
        optimisers=optimiser(cfg, model),
        schedule=poly_schedule(every=max(1, material.objects // cfg.batch_size)),
        checkpoint=checkpoint,
        checkpoint_every=checkpoint_every,
        progress=progress,
        watch=watch,
        watch_at=watch_at,
        prefetch=PREFETCH,
    )
    head = EmbedderHead(model.query)
    return learning.finish("maskcontrast", cfg, material, head, readout, history)


def optimiser(cfg: Config, model: MaskContrast) -> SGD:
    """SGD over all weights of the query network that are not frozen."""
    weights = [p for p in model.query.parameters() if p.requires_grad]
    return SGD(weights, cfg.lr, cfg.momentum, weight_decay=cfg.weight_decay)


def score_objects(
    cfg: Config, segmenter: Segmenter, *, progress: bool = False
) -> dict[str, Any] | None:
    """The paper's own evaluations: k-means of the objects found, and retrieval.

    Args:
        cfg: the settings; both splits are theirs, the memory is made of "train".
        segmenter: a trained model.
        progress: show bars.

    Returns:
        The section "segments" of a record, see :mod:`uss_utils.segment_evaluation`;
        None where the data set knows no background.
    """
    val_set = cfg.open("val")
    if not val_set.has_labels or val_set.classes[0] != BACKGROUND:
        return None
    return evaluate_segments(
        lambda images: segmenter.head.maps(segmenter.backbone.features(images)),
        val_set,
        cfg.override(train_split="train").open("train"),
        SegmentProtocol(crf=cfg.crf and crf.available()),
        subsets={"all": None, "7": VOC7} if val_set.name == voc.NAME else None,
        device=segmenter.device,
        progress=progress,
    )


@torch.no_grad()
def seen(cfg: Config, material: Material, batch: dict[str, Tensor]) -> list[Tensor]:
    """What the networks take of a batch: both views, then both masks.

    Where only a decoder is trained, the views are the backbone's features.
    """
    views = [batch["view_q"], batch["view_k"]]
    if cfg.network == "none":
        views = [material.standardise(material.backbone.features(x)) for x in views]
    return [*views, batch["mask_q"], batch["mask_k"]]


def baseline(cfg: Config, material: Material) -> Trained:
    """The same network before its first step; see :func:`uss_utils.fitting.untrained`.

    Args:
        cfg: the settings.
        material: from :func:`prepare`.
    """
    model = build(cfg, material)
    model.synchronise_batch_norm()
    return untrained(
        *("maskcontrast", cfg, material, material.pairs, EmbedderHead(model.query)),
        lambda batch: model.query.features(seen(cfg, material, batch)[0]),
    )
