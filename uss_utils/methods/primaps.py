"""PriMaPs-EM: masks from principal directions, and prototypes that agree on them.

Hahn, Araslanov, Schaub-Meyer and Roth, Boosting Unsupervised Semantic Segmentation with
Principal Mask Proposals, TMLR 2024. Each image is split once into masks, each around
the patch that the first principal direction of what is left points to. One prototype
per class is then fitted by a stochastic EM: a slow copy of the prototypes votes for the
class of every mask (E-step), the prototypes learn these classes on an augmented view
(M-step). Nothing else is trained, and the features may be the code of any other model.

Where the released code differs from the paper we follow the code, but for the sign of
the principal direction (it is fixed here), images of a single mask, colour changes of
normalised values, dropout left on in another model's head, and the choice of the best
step by labels of the evaluated split: the last step is reported.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from uss_utils import learning, ranks
from uss_utils.coded import Coded
from uss_utils.datasets import SegmentationDataset
from uss_utils.environment import generator
from uss_utils.evaluation import fit_map
from uss_utils.fitting import run
from uss_utils.learning import Trained, Watch, plain
from uss_utils.methods._primaps_cache import MaskCache
from uss_utils.methods._primaps_config import PRESETS, Config
from uss_utils.methods._primaps_data import (
    MaskedMaterial,
    Views,
    material_of,
    student_x,
)
from uss_utils.methods._primaps_direction import principal_direction
from uss_utils.methods._primaps_em import (
    EMStep,
    PrototypeHead,
    assign_masks,
    cosine_kmeans_loss,
    ema_update,
    momentum_ramp,
    pca_centers,
    prototype_focal_loss,
)
from uss_utils.methods._primaps_masks import (
    MaskProposals,
    clean_masks,
    grow_mask,
    propose_masks,
    refine_masks,
)
from uss_utils.methods._primaps_views import student_view
from uss_utils.probes import ClusterProbe
from uss_utils.readout import Readout, fit_linear
from uss_utils.schedules import EMA
from uss_utils.segmenter import Segmenter
from uss_utils.training import History, Step

__all__ = [
    "PRESETS",
    "Config",
    "EMStep",
    "MaskCache",
    "MaskProposals",
    "MaskedMaterial",
    "PrototypeHead",
    "assign_masks",
    "baseline",
    "build",
    "clean_masks",
    "cosine_kmeans_loss",
    "ema_update",
    "grow_mask",
    "pca_centers",
    "prepare",
    "principal_direction",
    "propose_masks",
    "prototype_focal_loss",
    "refine_masks",
    "start",
    "student_view",
    "train",
]


# What the models are called, in the order in which tables list them.
NAMES = ("primaps' k-means", "primaps", "primaps, running")


def prepare(
    cfg: Config,
    dataset: SegmentationDataset | None = None,
    *,
    base: Segmenter | None = None,
    device: str | torch.device = "cpu",
    progress: bool = False,
) -> MaskedMaterial:
    """Open data and features, and make or open the masks of all training images.

    Masks depend on images, backbone and their own settings alone: one set on disk
    serves every seed and every model on top.

    Args:
        cfg: the settings.
        dataset: training images; None opens those of the settings.
        base: a trained model whose code is grouped; None takes the settings' file.
        device: where to train; "auto" picks.
        progress: show bars.

    Raises:
        ValueError: settings and data do not fit together.
        FileNotFoundError: the data set, or the base's file, is not there.
    """
    if base is None and cfg.base is not None:
        base = Segmenter.load(cfg.base, weights=cfg.weights)
    material = learning.prepare(cfg, dataset, device=device, progress=progress)
    # Fitted to patches of its own draw, so that the masks are the same for all seeds.
    fixed = learning.fixed_map(
        replace(cfg, seed=0, standardise=cfg.split or cfg.standardise),
        material.source,
        material.device,
    )
    masks = MaskCache.build(
        Coded(material.backbone, fixed),
        material.dataset,
        threshold=cfg.threshold,
        coverage=cfg.coverage,
        refine=cfg.refine,
        features=(
            (rows, fixed(feat.to(material.device)))
            for rows, feat in material.source.batches()
        ),
        progress=progress,
    )
    if base is not None:
        base.to(material.device)
    return material_of(material, masks, fixed, base, cfg.cache)


def start(
    cfg: Config,
    material: MaskedMaterial,
    *,
    steps: int | None = None,
    checkpoint: str | Path | None = None,
    progress: str | bool | None = False,
) -> tuple[Readout, History]:
    """Centres before the EM: those of the base, or PCA and then cosine k-means.

    Args:
        cfg: the settings.
        material: from :func:`prepare`.
        steps: of k-means; None: those of the settings. The paper's baseline is this
            stage alone, for as many steps as the EM.
        checkpoint: file from which a killed run goes on.
        progress: see :func:`uss_utils.training.fit`.

    Returns:
        Cluster probe (its centres keep their length: it sets the step of Adam later)
        and linear probe, and the figures of the training.
    """
    readout = material.readout(cfg, material.dim).to(material.device)
    if material.base is not None:
        centres = material.base.cluster_probe.clusters
        readout.cluster = ClusterProbe.from_centroids(centres).to(material.device)
        return readout, History()
    batches = material.some_batches(cfg.pca_images, cfg.seed)
    centres = pca_centers(batches, len(readout.cluster.clusters))
    readout.cluster.clusters.data.copy_(centres)

    def losses(model: Readout, batch: dict[str, Tensor], step: Step) -> dict:
        terms = model.losses(material.x(batch["input"]), batch.get("label"))
        return {"loss": sum(terms.values())} | terms

    history = run(
        cfg,
        material,
        readout,
        losses,
        material.source,
        steps=cfg.start_steps if steps is None else steps,
        optimisers=readout.optimisers(cfg.linear_lr, cfg.cluster_lr),
        checkpoint=checkpoint,
        progress=progress,
        config=_agreed(cfg, material),
    )
    return readout, history


def _agreed(cfg: Config, material: MaskedMaterial) -> dict[str, Any]:
    """What a checkpoint has to agree with; the base counts by its content."""
    kept = {k: v for k, v in cfg.of_training().items() if k != "base"}
    return kept | {"grouped": material.source.backbone.fingerprint}


def build(
    cfg: Config, material: MaskedMaterial, readout: Readout
) -> tuple[EMStep, EMA]:
    """Running and slow prototypes at their common start, and how the slow ones follow.

    Args:
        cfg: the settings.
        material: from :func:`prepare`.
        readout: from :func:`start`.
    """
    running = PrototypeHead(readout.cluster.clusters.detach())
    model = EMStep(running, readout.linear, gamma=cfg.gamma).to(material.device)
    ramp = momentum_ramp(cfg.every, cfg.momentum, cfg.ramp)
    follow = EMA(
        model.running, ramp, target=model.slow, start=cfg.every, every=cfg.every
    )
    return model, follow


def train(
    cfg: Config,
    material: MaskedMaterial | None = None,
    *,
    device: str | torch.device = "cpu",
    progress: str | bool | None = False,
    checkpoint: str | Path | None = None,
    checkpoint_every: int | None = None,
    watch: Watch | None = None,
    watch_at: Sequence[int] = (),
) -> Trained:
    """Start, then EM.

    Args:
        cfg: the settings.
        material: from :func:`prepare`; None prepares it.
        device: where to train, if there is no material yet; "auto" picks.
        progress: see :func:`uss_utils.training.fit`.
        checkpoint: file from which a killed training goes on, to the same bit; the
            start keeps one beside it.
        checkpoint_every: steps between two checkpoints; None: a tenth of the run.
        watch: called with a number of steps and the model as it stands then, whose
            clusters have no names yet.
        watch_at: the numbers of steps, 0 to ``steps``.

    Returns:
        The model of the slow prototypes, under ``others["running"]`` that of the
        running ones, clusters named by the training labels if there are any, and the
        figures of the EM. No label has touched the prototypes.

    Raises:
        ValueError: settings that do not fit the data or the checkpoint.
        FloatingPointError: the loss is no number.
    """
    if material is None:
        material = prepare(cfg, device=device, progress=bool(progress))
    first = checkpoint and _beside(Path(checkpoint))
    readout, _ = start(cfg, material, checkpoint=first, progress=progress)
    model, follow = build(cfg, material, readout)

    def losses(model: EMStep, batch: dict[str, Tensor], step: Step) -> dict:
        teacher = student = material.x(batch["input"])
        if cfg.augment:
            n = len(step.indices)
            student = student_x(material, batch["image"], n, step.generator)
        return model.losses(teacher, student, batch["masks"], batch["label"])

    def current() -> Segmenter:
        return _segmenter(cfg, material, model.slow, model.linear, NAMES[1])

    history = run(
        cfg,
        material,
        model,
        losses,
        Views(material, students=cfg.augment),
        current,
        optimisers=model.optimisers(cfg.lr, cfg.linear_lr),
        ema=follow,
        checkpoint=checkpoint,
        checkpoint_every=checkpoint_every,
        progress=progress,
        watch=watch,
        watch_at=watch_at,
        config=_agreed(cfg, material),
    )
    linear = _linear(cfg, material, model.linear)
    parts = {NAMES[1]: model.slow, NAMES[2]: model.running}
    slow, running = (
        _named(material, _segmenter(cfg, material, head, linear, name))
        for name, head in parts.items()
    )
    return Trained(slow, history, {"running": running})


def baseline(
    cfg: Config,
    material: MaskedMaterial,
    *,
    progress: str | bool | None = False,
) -> Trained:
    """The paper's baseline: PCA and cosine k-means for as many steps as the EM.

    Args:
        cfg: the settings.
        material: from :func:`prepare`, without a base.
        progress: see :func:`uss_utils.training.fit`.
    """
    readout, history = start(cfg, material, steps=cfg.steps, progress=progress)
    linear = _linear(cfg, material, readout.linear)
    found = _segmenter(cfg, material, readout.cluster, linear, NAMES[0])
    return Trained(_named(material, found), history)


def _beside(checkpoint: Path) -> Path:
    return checkpoint.with_name(f"{checkpoint.stem}-start{checkpoint.suffix}")


def _segmenter(
    cfg: Config,
    material: MaskedMaterial,
    groups: PrototypeHead | ClusterProbe,
    linear: nn.Module | None,
    name: str,
) -> Segmenter:
    """A model of the prototypes, on top of the base if there is one."""
    if isinstance(groups, PrototypeHead):
        groups = ClusterProbe.from_centroids(groups.effective(), "dot")
    head, on = material.standardise, ""
    if material.base is not None:
        head, on = material.base.head, f" on {material.base.method}"
    model = cfg.segmenter(
        "primaps",
        plain(material.backbone),
        head,
        groups,
        linear,
        material.dataset,
    )
    model.meta["name"] = f"{name}{on}"
    model.meta["order"] += [1 if on else 0, NAMES.index(name)]
    return model.to(material.device)


def _linear(
    cfg: Config, material: MaskedMaterial, alongside: nn.Module | None
) -> nn.Module | None:
    """The linear probe trained alongside, or one fitted to the finished code."""
    if cfg.probes == "alongside" or alongside is None:
        return alongside
    labels = material.source.labels
    parts = ((x, labels(rows)) for rows, x in material.batches())
    return fit_linear(parts, material.dataset.n_classes, generator=generator(cfg.seed))


def _named(material: MaskedMaterial, segmenter: Segmenter) -> Segmenter:
    """The model with its clusters named by the training labels, where there are any."""
    ranks.alike(*segmenter.parts().values())
    if material.dataset.has_labels:
        kept = material.base is None and material.source.where == "memory"
        feat = material.source.inputs(range(len(material.source))) if kept else None
        fit_map(segmenter, material.dataset, feat=feat)
    return segmenter
