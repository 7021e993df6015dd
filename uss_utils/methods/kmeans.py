"""The zeroth method: k-means on frozen features, nothing learned but the centroids.

What every other method has to beat. :func:`ladder` sets it beside two controls that
know nothing of the content (the row index and the colour of a pixel) and beside an
untrained backbone: only what stands above them is owed to the features.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from uss_utils.datasets import SegmentationDataset
from uss_utils.environment import generator
from uss_utils.evaluation import evaluate_together, fit_map
from uss_utils.features import extract
from uss_utils.frozen import Frozen
from uss_utils.heads import Standardise, fit_standardise
from uss_utils.presets import Count, NotNegative, Whole, presets, unknown
from uss_utils.probes import ClusterProbe
from uss_utils.readout import fit_clusters, fit_linear
from uss_utils.recipe import Recipe
from uss_utils.records import leaderboard as table
from uss_utils.sampling import labels, sample_tokens
from uss_utils.segmenter import Segmenter

__all__ = ["PRESETS", "Config", "build", "data", "fit", "ladder", "table", "train"]


@dataclass(frozen=True)
class Config(Recipe):
    """Settings of k-means on features, and of the probe that is trained beside it."""

    chapter: ClassVar[int] = 3
    standardise: Literal["centre", "whiten", "none"] = "centre"
    metric: Literal["cosine", "euclidean"] = "cosine"
    tokens: Count = 12_000  # random patches that k-means sees
    restarts: Count = 10
    iterations: Count = 50
    steps: Whole = 500  # of the linear probe; 0: no probe. K-means itself has none
    probe_lr: NotNegative = 1e-2
    probe_pixels: Count = 256  # random pixels per image the probe is trained on
    probe_batch: Count = 2048  # of these per step
    batch_size: Count = 32  # images per forward pass


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
    return cfg.open("train"), cfg.open("val")


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
    return _assemble(cfg, train_set, cfg.load_backbone(device), device)


def _assemble(
    cfg: Config, train_set: SegmentationDataset, backbone: Frozen, device: str
) -> Segmenter:
    head = Standardise(torch.zeros(backbone.dim))
    n_clusters = cfg.n_clusters(train_set)
    probe = ClusterProbe(backbone.dim, n_clusters, cfg.metric, generator(cfg.seed))
    return cfg.segmenter("kmeans", backbone, head, probe, None, train_set).to(device)


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
    segmenter.head = fit_standardise(rows, cfg.standardise, cfg.whiten_dim)
    segmenter.cluster_probe = fit_clusters(
        segmenter.code_of(rows[:, :, None, None])[:, :, 0, 0],
        segmenter.n_clusters,
        metric=cfg.metric,
        restarts=cfg.restarts,
        iterations=cfg.iterations,
        generator=draw,
    )
    if label is not None and cfg.steps > 0:
        feats = (part.to(device) for part in feat.split(cfg.batch_size))
        segmenter.linear_probe = fit_linear(
            zip(
                map(segmenter.code_of, feats), label.split(cfg.batch_size), strict=True
            ),
            len(segmenter.classes),
            pixels=cfg.probe_pixels,
            steps=cfg.steps,
            lr=cfg.probe_lr,
            batch=cfg.probe_batch,
            generator=draw,
        )
    for part in segmenter.parts().values():
        part.eval().requires_grad_(False)


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
        train_set = cfg.open("train")
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
    rows: Iterable[str] | None = None,
    feat: Mapping[str, Tensor] | None = None,
    device: str = "cpu",
    progress: bool = False,
) -> list[dict[str, Any]]:
    """Records of the rungs of :data:`ROWS`, for every seed.

    Each backbone sees the images once for all its rungs and seeds. The seed moves
    k-means and the probe, and for "random init" the untrained weights too.

    Args:
        cfg: data, pretrained backbone and protocol; each rung replaces what it must.
        seeds: one record per rung and seed.
        rows: names of the rungs wanted; None: all.
        feat: features of "train" and "val" by the settings' own backbone, (N, C, h, w)
            each, where they are known already.
        device: where to compute; "auto" picks.
        progress: show bars.

    Returns:
        Records, rung by rung; :func:`table` prints them.

    Raises:
        ValueError: an unknown rung, or features of another number of images.
    """
    wanted = list(ROWS) if rows is None else list(rows)
    for name in wanted:
        if name not in ROWS:
            raise ValueError(unknown("rung", name, ROWS))
    train_set, val_set = data(cfg)
    for split, images in (("train", train_set), ("val", val_set)):
        if feat is not None and len(feat[split]) != len(images):
            raise ValueError(
                f"feat holds {len(feat[split])} images of {split!r}, but the settings "
                f"ask for {len(images)}"
            )
    label = labels(train_set) if train_set.has_labels else None
    groups: dict[tuple, list[tuple[str, Config]]] = {}
    for name in wanted:
        for seed in seeds:
            rung = replace(cfg, seed=seed, **ROWS[name])
            init = seed if rung.backbone == "vit_tiny_random" else None
            key = (rung.backbone, rung.weights, init)
            groups.setdefault(key, []).append((name, rung))
    records = []
    for key, rungs in groups.items():
        known = feat if key == (cfg.backbone, cfg.weights, None) else None
        records += _group(
            rungs, cfg.overrides(), train_set, val_set, label, known, device, progress
        )
    return sorted(records, key=lambda r: (wanted.index(r["name"]), r["seed"]))


def _group(
    rungs: list[tuple[str, Config]],
    overrides: dict[str, Any],
    train_set: SegmentationDataset,
    val_set: SegmentationDataset,
    label: Tensor | None,
    known: Mapping[str, Tensor] | None,
    device: str,
    progress: bool,
) -> list[dict[str, Any]]:
    """Rungs that share one backbone."""
    first = rungs[0][1]
    backbone = first.load_backbone(device)
    if known is None:
        options = {"batch_size": first.batch_size, "progress": progress}
        known = {"train": extract(backbone, train_set, **options)}
    feat = known["train"]
    segmenters = []
    for name, cfg in rungs:
        segmenter = _assemble(cfg, train_set, backbone, device)
        fit(segmenter, cfg, feat, label)
        # What the rung itself changes is told by its name.
        segmenter.meta |= {"name": name, "overrides": overrides}
        segmenter.meta["order"].append(list(ROWS).index(name))
        segmenters.append(segmenter)
    return evaluate_together(
        segmenters,
        val_set,
        train_set,
        fit_feat=feat,
        eval_feat=known.get("val"),
        limit_crf=first.limit_crf,
        progress=progress,
    )
