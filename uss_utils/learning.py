"""From settings to a trained model: the part of training that all methods share.

:func:`prepare` opens what a method trains on, the method adds its loss and calls
:func:`uss_utils.fitting.run`, :func:`finish` makes one :class:`Segmenter` of the
result, and :func:`repeat` scores several seeds under one protocol.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields, replace
from types import MappingProxyType
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from uss_utils import ranks
from uss_utils.datasets import SegmentationDataset
from uss_utils.environment import generator, pick_device
from uss_utils.evaluation import evaluate_together, fit_map
from uss_utils.frozen import Frozen
from uss_utils.heads import Chain, Standardise, fit_standardise
from uss_utils.readout import Readout, fit_clusters, fit_linear
from uss_utils.recipe import LearnedRecipe
from uss_utils.segmenter import Segmenter
from uss_utils.sources import FeatureSource
from uss_utils.training import History

TOKENS = 12_000  # random patches that k-means and the standardising map are fitted to

Watch = Callable[[int, Segmenter], None]
M = TypeVar("M", bound="Material")


@dataclass
class Material:
    """What a method trains on; several seeds can share it.

    Attributes:
        dataset: training images.
        source: their features.
        standardise: fixed map from features to what the head sees.
        device: where to train.
        behind: the fixed map stands behind the head instead.
    """

    dataset: SegmentationDataset
    source: FeatureSource
    standardise: Standardise
    device: torch.device
    behind: bool = False

    @classmethod
    def of(cls: type[M], base: "Material", **more: Any) -> M:
        """A method's own material: the shared one, and what it adds.

        Args:
            base: from :func:`prepare`.
            more: the added fields.
        """
        shared = {field.name: getattr(base, field.name) for field in fields(base)}
        return cls(**shared, **more)

    @property
    def backbone(self) -> Frozen:
        """The frozen backbone."""
        return self.source.backbone

    @property
    def dim(self) -> int:
        """Channels that the head sees."""
        return self.standardise.dim

    def readout(self, cfg: LearnedRecipe, dim: int) -> Readout:
        """Fresh probes for codes of ``dim`` channels, drawn from the seed."""
        return Readout(
            dim,
            cfg.n_clusters(self.dataset),
            self.dataset.n_classes if self.dataset.has_labels else 0,
            generator(cfg.seed),
        )


class Trained(NamedTuple):
    """A trained model and the figures of its training.

    Attributes:
        segmenter: the model.
        history: of its training.
        others: models that came with it, by a word that tells them apart.
    """

    segmenter: Segmenter
    history: History
    others: Mapping[str, Segmenter] = MappingProxyType({})


def prepare(
    cfg: LearnedRecipe,
    dataset: SegmentationDataset | None = None,
    *,
    device: str | torch.device = "cpu",
    wrap: Callable[[Frozen], Frozen] | None = None,
    seen: Callable[[Frozen], Callable[[Tensor], Tensor]] | None = None,
    progress: bool = False,
) -> Material:
    """Open data, backbone and features, and fit the fixed map in front of the head.

    Args:
        cfg: the settings.
        dataset: training images; None opens those of the settings.
        device: where to train; "auto" picks.
        wrap: makes of the backbone one that gives what the method needs beside the
            features; its first channels are the features. The backbone itself is its
            ``inner``.
        seen: for heads in front of the fixed map: makes of the backbone the head that
            the map is fitted behind. None: the map is fitted to the features.
        progress: show bars.

    Raises:
        ValueError: settings and data do not fit together.
        FileNotFoundError: the data set is not there.
    """
    place = pick_device(str(device))
    dataset = cfg.open("train") if dataset is None else dataset
    backbone = cfg.load_backbone(place)
    source = FeatureSource.open(
        wrap(backbone) if wrap else backbone,
        dataset,
        cache=cfg.cache,
        progress=progress,
    )
    width = backbone.dim
    look = seen(source.backbone) if seen else lambda feat: feat[:, :width]
    fixed = fixed_map(cfg, source, place, look)
    return Material(dataset, source, fixed, place, seen is not None)


def fixed_map(
    cfg: LearnedRecipe,
    source: FeatureSource,
    device: torch.device,
    look: Callable[[Tensor], Tensor] = lambda feat: feat,
) -> Standardise:
    """The fixed map in front of a head, fitted to random patches.

    Args:
        cfg: the settings.
        source: features of the training images.
        device: where the map is wanted.
        look: what of the source's maps the map sees.
    """
    maps = (look(feat.to(device)) for _, feat in source.batches())
    if cfg.standardise == "none":  # nothing to fit: one batch tells the width
        width = next(maps).shape[1]
        return Standardise(torch.zeros(width)).to(device)
    rows = random_patches(maps, len(source), TOKENS, generator(cfg.seed))
    fixed = fit_standardise(rows, cfg.standardise, cfg.whiten_dim).to(device)
    ranks.alike(fixed)
    return fixed


def plain(backbone: Frozen) -> Frozen:
    """The backbone inside a wrapper, or the backbone itself."""
    return getattr(backbone, "inner", backbone)


def random_patches(
    maps: Iterable[Tensor], n_maps: int, n: int, draw: torch.Generator
) -> Tensor:
    """Random patches, equally many of every image, in one pass.

    Args:
        maps: batches of features or codes, shape (B, C, h, w).
        n_maps: images in all of them.
        n: patches wanted in all.
        draw: generator.

    Returns:
        Rows, shape (about n, C).
    """
    per_image = -(-n // n_maps)
    rows = []
    for batch in maps:
        flat = batch.flatten(2).transpose(1, 2)
        take = min(per_image, flat.shape[1])
        place = torch.rand(flat.shape[:2], generator=draw).argsort(1)[:, :take]
        place = place[..., None].expand(-1, -1, flat.shape[2]).to(flat.device)
        rows.append(flat.gather(1, place).flatten(0, 1))
    return torch.cat(rows)


def assemble(
    method: str,
    cfg: LearnedRecipe,
    material: Material,
    head: nn.Module,
    readout: Readout,
) -> Segmenter:
    """The model as it stands, in the middle of a training or at its end.

    Args:
        method: the method's module.
        cfg: the settings.
        material: from :func:`prepare`.
        head: from standardised features to code.
        readout: the probes.
    """
    if cfg.standardise != "none":
        parts = (material.standardise, head)
        head = Chain(*(parts[::-1] if material.behind else parts))
    return cfg.segmenter(
        method,
        plain(material.backbone),
        head,
        readout.cluster,
        readout.linear,
        material.dataset,
    )


def finish(
    method: str,
    cfg: LearnedRecipe,
    material: Material,
    head: nn.Module,
    readout: Readout,
    history: History,
) -> Trained:
    """The finished model: probes refitted if asked for, clusters named by train labels.

    No label reaches the head or the clusters: labels fit the linear probe, which
    measures, and name the clusters.

    Args:
        method: the method's module.
        cfg: the settings.
        material: from :func:`prepare`.
        head: the trained head.
        readout: the probes trained alongside.
        history: of the training.
    """
    segmenter = assemble(method, cfg, material, head, readout).to(material.device)
    if cfg.probes == "after":
        refit(segmenter, material, cfg.seed)
    ranks.alike(*segmenter.parts().values())
    if material.dataset.has_labels:
        feat = None
        if material.source.where == "memory":
            feat = material.source.inputs(range(len(material.source)))
            feat = feat[:, : segmenter.backbone.dim]
        fit_map(segmenter, material.dataset, feat=feat)
    return Trained(segmenter, history)


def refit(segmenter: Segmenter, material: Material, seed: int) -> None:
    """Fit clusters and linear probe to the finished code, in place.

    Args:
        segmenter: model on the training device.
        material: from :func:`prepare`.
        seed: of every draw.
    """
    draw = generator(seed)
    source, width = material.source, segmenter.backbone.dim

    def codes():
        for rows, feat in source.batches():
            yield rows, segmenter.code_of(feat[:, :width].to(segmenter.device))

    patches = random_patches((code for _, code in codes()), len(source), TOKENS, draw)
    segmenter.cluster_probe = fit_clusters(
        patches, segmenter.n_clusters, generator=draw
    )
    if material.dataset.has_labels:
        parts = ((code, source.labels(rows)) for rows, code in codes())
        segmenter.linear_probe = fit_linear(
            parts, len(segmenter.classes), generator=draw
        )
    for part in segmenter.parts().values():
        part.eval().requires_grad_(False)


def repeat(
    train: Callable[..., Trained],
    cfg: LearnedRecipe,
    seeds: Iterable[int],
    material: Material,
    *,
    val_set: SegmentationDataset | None = None,
    progress: bool = False,
) -> tuple[list[Trained], list[dict[str, Any]]]:
    """Train with several seeds and score all models in one pass over the images.

    Args:
        train: a method's ``train``.
        cfg: the settings; each seed replaces theirs.
        seeds: one training each.
        material: from the method's ``prepare``; all seeds share it.
        val_set: images to score; None opens those of the settings.
        progress: show bars.

    Returns:
        The trained models and one record each, in the order of the seeds.
    """
    trained = [
        train(replace(cfg, seed=seed), material, progress=progress) for seed in seeds
    ]
    records = evaluate_together(
        [done.segmenter for done in trained],
        cfg.open("val") if val_set is None else val_set,
        limit_crf=cfg.limit_crf,
        progress=progress,
    )
    return trained, records
