"""HSG: pixels grouped at several levels, tied together across two views.

Ke, Hwang, Guo, Wang, Yu, Unsupervised Hierarchical Semantic Segmentation with Multiview
Cosegmentation and Clustering Transformers, CVPR 2022. Low-level regions of an image
attract their pixels in both views; segments found by k-means become the nodes of a
graph, which two clustering transformers group into fine and coarse groups, and these
attract their pixels as well.

The paper's scores come from retrieval among *labelled* training segments:
:func:`score_objects`. The course's own protocol scores the same embeddings beside it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from uss_utils import learning
from uss_utils.clustering_transformer import ClusteringTransformer
from uss_utils.covering import foreground_covering
from uss_utils.datasets import SegmentationDataset
from uss_utils.fitting import run, untrained
from uss_utils.grouping import compose_levels, position_map
from uss_utils.hierarchy_network import HSGHead, HSGNet
from uss_utils.learning import Trained, Watch
from uss_utils.methods._hsg_config import PRESETS, Config
from uss_utils.methods._hsg_contrast import centroid_contrast, segment_contrast
from uss_utils.methods._hsg_data import (
    Geometry,
    RegionViewBatches,
    RegionViews,
    cut_views,
    two_views,
)
from uss_utils.methods._hsg_evaluation import (
    embedding_of,
    evaluate_retrieval,
    head_of,
)
from uss_utils.methods._hsg_graph import balance_loss, knn_graph, modularity_loss
from uss_utils.methods._hsg_inference import (
    ImageHierarchy,
    build_memory,
    canvas,
    image_hierarchy,
    image_segments,
    predict,
    retrieve,
)
from uss_utils.methods._hsg_loss import HSGLoss
from uss_utils.methods._hsg_optimiser import InnerRateSGD, param_groups, schedule
from uss_utils.methods._hsg_segments import (
    grid_labels,
    pixel_features,
    segment_nodes,
    segment_views,
    spherical_kmeans,
)
from uss_utils.region_files import RegionFiles, open_regions
from uss_utils.regions import contour_strength, cut_tree, ultrametric_tree
from uss_utils.resnets import check_start, dilated_resnet
from uss_utils.run_state import own_random_state
from uss_utils.segmenter import Segmenter
from uss_utils.training import Step

__all__ = [
    "PRESETS",
    "ClusteringTransformer",
    "Config",
    "Geometry",
    "HSGLoss",
    "HSGNet",
    "Material",
    "balance_loss",
    "build",
    "build_memory",
    "canvas",
    "centroid_contrast",
    "compose_levels",
    "contour_strength",
    "cut_tree",
    "cut_views",
    "foreground_covering",
    "grid_labels",
    "hierarchy_of",
    "image_segments",
    "knn_graph",
    "modularity_loss",
    "pixel_features",
    "position_map",
    "predict",
    "prepare",
    "retrieve",
    "score_objects",
    "segment_contrast",
    "segment_nodes",
    "segment_views",
    "spherical_kmeans",
    "train",
    "two_views",
    "ultrametric_tree",
]

PREFETCH = 2  # threads that cut views while the network trains


@dataclass
class Material(learning.Material):
    """What HSG trains on; several seeds can share it.

    Attributes:
        pairs: two views of an image and of its regions, by index.
        regions: of the images that views are cut from.
    """

    pairs: RegionViewBatches | RegionViews = None
    regions: RegionFiles = None


def prepare(
    cfg: Config,
    dataset: SegmentationDataset | None = None,
    *,
    device: str | torch.device = "cpu",
    progress: bool = False,
) -> Material:
    """Open the images, and make or open the maps of their regions.

    Regions depend on the images and on their own settings alone: one set on disk serves
    every seed.

    Args:
        cfg: the settings.
        dataset: training images; None opens those of the settings.
        device: where to train; "auto" picks.
        progress: show bars.

    Raises:
        ValueError: settings and data do not fit together.
        FileNotFoundError: the data set, its released regions or the file to start from
            are not there.
    """
    _check_files(cfg)
    base = learning.prepare(cfg, dataset, device=device, progress=progress)
    if cfg.first_stage:
        build(cfg, base)  # whether it is of this network, before hours of regions
    stored = dataset is None and (cfg.whole or cfg.images)
    images = cfg.open_images() if stored else base.dataset
    regions = open_regions(cfg, images, progress=progress)
    # Images of one size are cut a batch at a time, which is several times as fast.
    cut = RegionViews if stored else RegionViewBatches
    pairs = cut(images, regions, cfg.view_size, cfg.scale)
    return Material.of(base, pairs=pairs, regions=regions)


def _check_files(cfg: Config) -> None:
    """Look for files to start from before hours are spent on regions."""
    if cfg.network != "none":
        check_start(cfg.start)
    if cfg.first_stage and not Path(cfg.first_stage).expanduser().is_file():
        raise FileNotFoundError(
            f"no model of the first stage at {cfg.first_stage}; train it (a preset "
            "whose name ends in stage1) and name its file with --set "
            "first_stage=FILE, or start without one: --set first_stage="
        )


def build(cfg: Config, material: learning.Material) -> HSGNet:
    """The network before the first step.

    Args:
        cfg: the settings.
        material: from :func:`prepare`.

    Raises:
        ValueError: a file to start from is of another network.
        FileNotFoundError: there is no such file.
        ConnectionError: ImageNet weights are not here and cannot be fetched.
    """
    # torch's layers draw their start from the global generator alone.
    with own_random_state(cfg.seed, torch.device("cpu")):
        network, channels = None, material.dim
        if cfg.network != "none":
            weights = None if cfg.start == "random" else cfg.start
            network, channels = dilated_resnet(cfg.network, weights, cfg.stages), None
        net = HSGNet(
            cfg.dim,
            network,
            cfg.stride,
            cfg.grouping(),
            in_channels=channels,
            mid_channels=cfg.mid,
        )
    if cfg.first_stage:
        net.start_from(_first_stage(cfg))
    return net.to(material.device).train()


def _first_stage(cfg: Config) -> HSGNet:
    """The network of a model that the first stage saved."""
    head = Segmenter.load(Path(cfg.first_stage).expanduser()).head
    if not isinstance(head, HSGHead):
        raise ValueError(f"{cfg.first_stage} is no model of HSG")
    return head.net


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
    """Train the network; then fit clusters and a linear probe to the embedding.

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
        terms of :class:`~uss_utils.methods._hsg_loss.HSGLoss` over the steps. No label
        has touched the network and the clusters.

    Raises:
        ValueError: settings that do not fit the data or the checkpoint.
        FloatingPointError: the loss is no number.
    """
    if material is None:
        material = prepare(cfg, device=device, progress=bool(progress))
    net, objective = build(cfg, material), cfg.loss()
    readout = material.readout(cfg, cfg.dim)

    def loss(net: HSGNet, batch: dict[str, Tensor], step: Step) -> dict[str, Tensor]:
        # Only now: before the first step nobody knew of the other processes.
        net.synchronise_batch_norm()
        emb = net(seen(cfg, material, batch["views"]))
        terms = objective(emb, *regions_of_batch(batch), net.grouping)
        return {"loss": terms.pop("total"), **terms}

    def current() -> Segmenter:
        return learning.assemble("hsg", cfg, material, HSGHead(net), readout)

    history = run(
        cfg,
        material,
        net,
        loss,
        material.pairs,
        current,
        optimisers=optimiser(cfg, net),
        schedule=schedule(cfg.decay, cfg.warmup),
        checkpoint=checkpoint,
        checkpoint_every=checkpoint_every,
        progress=progress,
        watch=watch,
        watch_at=watch_at,
        prefetch=PREFETCH,
    )
    return learning.finish("hsg", cfg, material, HSGHead(net), readout, history)


def optimiser(cfg: Config, net: HSGNet) -> InnerRateSGD:
    """SGD with the rates that weights, biases and the grouping have."""
    groups = param_groups(net, cfg.lr, cfg.weight_decay, cfg.factor)
    return InnerRateSGD(groups, cfg.lr, cfg.momentum)


def regions_of_batch(batch: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Regions and valid pixels of the views, and the image that each is of."""
    regions, valid = batch["regions"], batch["valid"]
    return regions, valid, torch.arange(len(valid), device=valid.device) // 2


@torch.no_grad()
def seen(cfg: Config, material: Material, views: Tensor) -> Tensor:
    """What the network takes of views: themselves, or the backbone's features."""
    if cfg.network != "none":
        return views
    return material.standardise(material.backbone.features(views))


def baseline(cfg: Config, material: Material) -> Trained:
    """The same network before its first step; see :func:`uss_utils.fitting.untrained`.

    Args:
        cfg: the settings.
        material: from :func:`prepare`.
    """
    net = build(cfg, material)
    net.synchronise_batch_norm()
    return untrained(
        *("hsg", cfg, material, material.pairs, HSGHead(net)),
        lambda batch: net(seen(cfg, material, batch["views"])),
    )


def score_objects(
    cfg: Config, segmenter: Segmenter, *, progress: bool = False
) -> dict[str, Any] | None:
    """The paper's evaluation: segments named by labelled segments of training images.

    Args:
        cfg: the settings; the memory is made of the split trained on, or of the
            labelled set's if images come from another. Where views are cut from images
            as stored, such are scored.
        segmenter: a trained model.
        progress: show bars.

    Returns:
        The section "segments" of a record, see
        :mod:`uss_utils.methods._hsg_evaluation`; None without labels.
    """
    val_set = cfg.open_scored("val")
    if not val_set.has_labels:
        return None
    return evaluate_retrieval(
        embedding_of(segmenter),
        val_set,
        cfg.open_scored("train"),
        cfg.retrieval(),
        device=segmenter.device,
        progress=progress,
    )


@torch.no_grad()
def hierarchy_of(cfg: Config, segmenter: Segmenter, image: Tensor) -> ImageHierarchy:
    """Segments, fine and coarse groups of one image.

    Args:
        cfg: grid and iterations of k-means are those of training.
        segmenter: a trained model.
        image: normalised, shape (3, H, W).

    Raises:
        ValueError: the model is none of HSG's, or was trained without a hierarchy.
    """
    before, head = head_of(segmenter)
    if not isinstance(head, HSGHead):
        raise ValueError(
            f"a model of {segmenter.method} has no hierarchy; use one of hsg"
        )
    feat = before(image[None].to(segmenter.device))
    size = tuple(image.shape[-2:])
    return image_hierarchy(head.net, feat[0], size, cfg.grid, cfg.iterations)
