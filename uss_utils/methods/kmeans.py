"""The zeroth method: k-means on frozen features, nothing learned but the centroids.

What every other method has to beat. :func:`ladder` sets it beside two controls that
know nothing of the content (the row index and the colour of a pixel) and beside an
untrained backbone: only what stands above them is owed to the features.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from uss_utils import backbones, datasets
from uss_utils.clustering import kmeans
from uss_utils.datasets import SegmentationDataset
from uss_utils.environment import generator
from uss_utils.evaluation import evaluate_together, fit_map
from uss_utils.features import extract
from uss_utils.frozen import Frozen
from uss_utils.heads import Standardise
from uss_utils.pca import PCA
from uss_utils.presets import PresetConfig, presets
from uss_utils.probes import ClusterProbe, LinearProbe, fit_linear_probe
from uss_utils.protocol import EvalProtocol
from uss_utils.records import leaderboard as table
from uss_utils.sampling import TILE, labels, sample_pixels, sample_tokens, tiles
from uss_utils.segmenter import Segmenter

__all__ = ["PRESETS", "Config", "build", "data", "fit", "ladder", "table", "train"]


@dataclass(frozen=True)
class Config(PresetConfig):
    """Settings of k-means on features, and of the probe that is trained beside it."""

    dataset: str = "scenes"
    size: int | tuple[int, int] | None = None  # as in datasets.load
    n_train: int | None = None  # images; None: all
    n_val: int | None = None
    backbone: str = "vit_tiny_scenes"
    standardise: Literal["centre", "whiten", "none"] = "centre"
    whiten_dim: int = 32  # channels kept by "whiten"
    clusters: int | None = None  # None: as many as classes
    metric: Literal["cosine", "euclidean"] = "cosine"
    tokens: int = 12_000  # random patches that k-means sees
    restarts: int = 10
    iterations: int = 50
    steps: int = 500  # of the linear probe; 0: no probe. K-means itself has none
    probe_lr: float = 1e-2
    probe_pixels: int = 256  # random pixels per image the probe is trained on
    probe_batch: int = 2048  # of these per step
    batch_size: int = 32  # images per forward pass
    crf: bool = False  # score with the dense CRF too
    limit_crf: int | None = 30  # on at most this many images; it is slow

    def protocol(self) -> EvalProtocol:
        """How models of these settings are scored."""
        return EvalProtocol(crf=self.crf)


PRESETS = presets(
    smoke=Config(
        n_train=16, n_val=8, tokens=2000, restarts=1, steps=30, probe_batch=512
    ),
    scenes=Config(n_train=200, n_val=150),
    scenes_aerial=Config(dataset="scenes-aerial", n_train=200, n_val=150),
    camvid_tiny=Config(dataset="camvid", size=(240, 320)),
    camvid_vits16=Config(dataset="camvid", size=(320, 416), backbone="dino_vits16"),
)

# Rungs of the ladder, from knowing nothing upwards. The linear probe of the row index
# and of the whitened features is left out: it says nothing about clustering.
_CONTROL = {"standardise": "none", "metric": "euclidean", "weights": None}
ROWS: dict[str, dict[str, Any]] = {
    "row index": _CONTROL | {"backbone": "row", "steps": 0},
    "colour": _CONTROL | {"backbone": "colour"},
    "random init": {"backbone": "vit_tiny_random", "weights": None},
    "pretrained": {},
    "pretrained, whitened": {"standardise": "whiten", "steps": 0},
}


def data(cfg: Config) -> tuple[SegmentationDataset, SegmentationDataset]:
    """The training and the evaluated split of the settings."""
    return _open(cfg, "train", cfg.n_train), _open(cfg, "val", cfg.n_val)


def _open(cfg: Config, split: str, limit: int | None) -> SegmentationDataset:
    return datasets.load(cfg.dataset, split, cfg.root, size=cfg.size, limit=limit)


def build(
    cfg: Config, train_set: SegmentationDataset, device: str = "cpu"
) -> Segmenter:
    """The model before any fitting: features as they are, random centroids.

    Args:
        cfg: the settings.
        train_set: gives class names, palette and geometry.
        device: where to compute; "auto" picks.

    Raises:
        ValueError: the number of clusters is known neither from settings nor classes.
    """
    return _assemble(cfg, train_set, _backbone(cfg, device), device)


def _backbone(cfg: Config, device: str) -> Frozen:
    # Weights of one's own are not the shipped ones: the record must not say so.
    own = cfg.weights is not None and cfg.backbone == backbones.SHIPPED
    name = "vit_tiny" if own else cfg.backbone
    return backbones.load(name, cfg.weights, device=device, seed=cfg.seed)


def _assemble(
    cfg: Config, train_set: SegmentationDataset, backbone: Frozen, device: str
) -> Segmenter:
    n_clusters = cfg.clusters or train_set.n_classes
    if not n_clusters:
        raise ValueError(
            "the data set names no classes, so the number of clusters must be given: "
            "clusters=..."
        )
    meta = {
        "overrides": cfg.overrides(),
        "seed": cfg.seed,
        "steps": cfg.steps,
        "backbone_seed": cfg.seed,
    }
    segmenter = Segmenter(
        backbone,
        Standardise(torch.zeros(backbone.dim)),
        ClusterProbe(backbone.dim, n_clusters, cfg.metric, generator(cfg.seed)),
        classes=train_set.classes,
        palette=train_set.palette,
        transform=train_set.transform,
        protocol=cfg.protocol(),
        method="kmeans",
        preset=cfg.name,
        meta=meta,
    )
    return segmenter.to(device)


def fit(segmenter: Segmenter, cfg: Config, feat: Tensor, label: Tensor | None) -> None:
    """Fit head, centroids and, where there are labels, the linear probe, in place.

    Args:
        segmenter: from :func:`build`.
        cfg: the settings.
        feat: features of the training images, shape (N, C, h, w), on the CPU.
        label: their labels, integers (N, H, W); None: no linear probe.

    Raises:
        ValueError: fewer patches than clusters, features that are not finite, or labels
            that are ignored nearly everywhere.
    """
    device = segmenter.device
    draw = generator(cfg.seed)
    rows = sample_tokens(feat, cfg.tokens, draw).to(device)
    head = standardise(rows, cfg)
    rows = head(rows[:, :, None, None])[:, :, 0, 0]
    found = kmeans(
        rows,
        segmenter.n_clusters,
        metric=cfg.metric,
        restarts=cfg.restarts,
        iterations=cfg.iterations,
        generator=draw,
    )
    segmenter.head = head
    segmenter.cluster_probe = ClusterProbe.from_centroids(
        found.centroids, cfg.metric
    ).to(device)
    if label is not None and cfg.steps > 0:
        segmenter.linear_probe = _linear_probe(segmenter, cfg, feat, label, draw)
    for part in segmenter.parts().values():
        part.eval().requires_grad_(False)


def standardise(rows: Tensor, cfg: Config) -> Standardise:
    """The fixed map in front of k-means, fitted to training patches.

    Cosines only tell directions apart once the common mean is gone; whitening also
    gives the weaker principal components an equal say.

    Args:
        rows: shape (n, C).
        cfg: ``standardise`` and ``whiten_dim``.
    """
    if cfg.standardise == "none":
        return Standardise(torch.zeros(rows.shape[1])).to(rows.device)
    if cfg.standardise == "centre":
        return Standardise(rows.double().mean(0).float()).to(rows.device)
    pca = PCA.fit(rows, min(cfg.whiten_dim, rows.shape[1]), whiten=True)
    projection = (pca.components / pca.scale[:, None]).T
    return Standardise(pca.mean, projection).to(rows.device)


def _linear_probe(
    segmenter: Segmenter,
    cfg: Config,
    feat: Tensor,
    label: Tensor,
    draw: torch.Generator,
) -> LinearProbe:
    parts = [
        sample_pixels(
            segmenter.code_of(f.to(segmenter.device)), y, cfg.probe_pixels, draw
        )
        for f, y in zip(
            feat.split(cfg.batch_size), label.split(cfg.batch_size), strict=True
        )
    ]
    rows, classes = (torch.cat(part) for part in zip(*parts, strict=True))
    if not len(rows):
        raise ValueError(
            f"none of {cfg.probe_pixels} random pixels of each training image has a "
            "label: all of them, or nearly all, are ignored. Check the label ids, or "
            "leave the linear probe out with steps=0"
        )
    mean, directions = _conditioned(rows)
    probe = fit_linear_probe(
        *tiles((rows - mean) @ directions, classes, draw),
        len(segmenter.classes),
        steps=cfg.steps,
        lr=cfg.probe_lr,
        batch_size=max(1, cfg.probe_batch // TILE**2),
        generator=draw,
    )
    weight = probe.weight[:, :, 0, 0] @ directions.T
    probe.bias -= weight @ mean
    probe.weight.copy_(weight[:, :, None, None])
    return probe


def _conditioned(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Mean (D,) and directions (D, D) that give rows equal spread in all directions.

    Descent takes far fewer steps on such rows. The map is linear, so the probe fitted
    behind it is folded back into a linear probe on the code as it is.
    """
    mean = rows.mean(0)
    centred = rows - mean
    values, vectors = torch.linalg.eigh((centred.T @ centred / len(rows)).double())
    floor = 1e-4 * values[-1].clamp_min(1e-12)  # weaker directions are noise
    return mean, (vectors / (values.clamp_min(0) + floor).sqrt()).float()


def train(
    cfg: Config,
    train_set: SegmentationDataset | None = None,
    *,
    device: str = "cpu",
    progress: bool = False,
) -> Segmenter:
    """Fit the method; where the training set has labels, name the clusters by them.

    Args:
        cfg: the settings.
        train_set: None opens the one of the settings.
        device: where to compute; "auto" picks.
        progress: show bars.

    Returns:
        The model. No label has touched head and centroids.
    """
    if train_set is None:
        train_set = _open(cfg, "train", cfg.n_train)
    segmenter = build(cfg, train_set, device)
    feat = extract(
        segmenter.backbone, train_set, batch_size=cfg.batch_size, progress=progress
    )
    label = labels(train_set) if train_set.has_labels else None
    fit(segmenter, cfg, feat, label)
    if label is not None:
        fit_map(segmenter, train_set, feat=feat, progress=progress)
    return segmenter


def ladder(
    cfg: Config,
    seeds: Iterable[int] = (0, 1, 2),
    *,
    device: str = "cpu",
    progress: bool = False,
) -> list[dict[str, Any]]:
    """Records of every rung of :data:`ROWS`, for every seed.

    Each backbone sees the images once for all its rungs and seeds. The seed moves
    k-means and the probe, and for "random init" the untrained weights too.

    Args:
        cfg: data, pretrained backbone and protocol; each rung replaces what it must.
        seeds: one record per rung and seed.
        device: where to compute; "auto" picks.
        progress: show bars.

    Returns:
        Records, rung by rung; :func:`table` prints them.
    """
    train_set, val_set = data(cfg)
    label = labels(train_set) if train_set.has_labels else None
    groups: dict[tuple, list[tuple[str, Config]]] = {}
    for name, changes in ROWS.items():
        for seed in seeds:
            rung = replace(cfg, seed=seed, **changes)
            init = seed if rung.backbone == "vit_tiny_random" else None
            key = (rung.backbone, rung.weights, init)
            groups.setdefault(key, []).append((name, rung))
    records = []
    for rungs in groups.values():
        records += _group(
            rungs, cfg.overrides(), train_set, val_set, label, device, progress
        )
    order = list(ROWS)
    return sorted(records, key=lambda r: (order.index(r["name"]), r["seed"]))


def _group(
    rungs: list[tuple[str, Config]],
    overrides: dict[str, Any],
    train_set: SegmentationDataset,
    val_set: SegmentationDataset,
    label: Tensor | None,
    device: str,
    progress: bool,
) -> list[dict[str, Any]]:
    """Rungs that share one backbone."""
    first = rungs[0][1]
    backbone = _backbone(first, device)
    feat = extract(backbone, train_set, batch_size=first.batch_size, progress=progress)
    segmenters = []
    for name, cfg in rungs:
        segmenter = _assemble(cfg, train_set, backbone, device)
        fit(segmenter, cfg, feat, label)
        # What the rung itself changes is told by its name.
        segmenter.meta |= {"name": name, "overrides": overrides}
        segmenters.append(segmenter)
    return evaluate_together(
        segmenters,
        val_set,
        train_set,
        fit_feat=feat,
        limit_crf=first.limit_crf,
        progress=progress,
    )
