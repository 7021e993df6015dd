"""One protocol, one evaluation, one record for every method.

A record is a JSON-able dict. Everything outside ``run`` is a pure function of the
trained model, the data and the protocol; ``run`` holds what differs between two runs.

==================== ==========================================================
key                  meaning
==================== ==========================================================
method, name         method's module; what the model is called in tables
order                place in tables: chapter of the method, rung of its ladder; or None
preset, overrides    preset and the settings that differ from it
seed, steps          of the training
dataset, split       evaluated set; ``images`` is how many
fit_dataset,         where the cluster-to-class map of "train" came from, with
fit_split,           ``fit_images``; absent when there is no such map
fit_images
backbone             name; ``backbone_fingerprint`` of its weights; ``untrained``
classes              class names; ``clusters`` is the number of clusters
parameters           numbers in backbone, head, cluster_probe and linear_probe; absent
                     in older records
protocol             all switches, ``line`` (printed under tables) and ``short``
cluster              ``{"train": S, "eval": S}``: the map fitted on the training
                     split, and on the evaluated split itself (the field's habit)
linear               S of the linear probe, which was trained with labels
crf                  ``{"images": n, "cluster": {"train": S, "eval": S},
                     "linear": S, "without": {"cluster": ..., "linear": ...}}``:
                     the same with the CRF, and without it on the same n images
headline             ``cluster_acc, cluster_miou, linear_acc, linear_miou``: without
                     CRF, the map fitted as the protocol says
confusion            ``{"cluster": (clusters, classes), "linear": (classes, classes)}``:
                     pixels per prediction (row) and true class (column)
segments             scores of whole objects, see :mod:`uss_utils.segment_evaluation`;
                     absent unless the caller adds them
usage                share of the pixels per cluster; ``usage_entropy`` in [0, 1];
                     both need no labels
run                  seconds, peak_memory_mb, versions, machine, device, notes; and
                     training_seconds where the training noted them
==================== ==========================================================

S is ``{"acc", "miou", "miou_classes", "iou", "map"}`` in percent: ``iou`` per class
(None where a class neither occurs nor is predicted), ``miou_classes`` over the classes
alone (differs from ``miou`` where clusters stay unmatched), ``map`` the class of every
cluster (absent for the linear probe). A set without labels gives a record without
``cluster``, ``linear``, ``crf``, ``headline`` and ``confusion``. ``crf`` is absent
unless asked for and available.
"""

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from uss_utils import crf
from uss_utils.counting import count
from uss_utils.datasets.base import SegmentationDataset
from uss_utils.metrics import Matching
from uss_utils.protocol import EvalProtocol
from uss_utils.records import leaderboard, read_records, summarise, write_record
from uss_utils.scoring import Map, describe, run_facts, scored, scores, training_facts

if TYPE_CHECKING:
    from uss_utils.segmenter import Segmenter

__all__ = [
    "EvalProtocol",
    "evaluate",
    "evaluate_together",
    "fit_map",
    "leaderboard",
    "read_records",
    "summarise",
    "write_record",
]


def evaluate(
    segmenter: "Segmenter",
    eval_set: SegmentationDataset,
    fit_set: SegmentationDataset | None = None,
    protocol: EvalProtocol | None = None,
    *,
    seed: int | None = None,
    steps: int | None = None,
    batch_size: int = 16,
    limit_crf: int | None = None,
    progress: bool = False,
) -> dict[str, Any]:
    """Score one trained model.

    Args:
        segmenter: the model.
        eval_set: images to score; labels optional.
        fit_set: training split, on which the map of "train" is fitted. None uses the
            map stored in the segmenter, if there is one.
        protocol: None takes the segmenter's own.
        seed: of the training, for the record; None takes the segmenter's.
        steps: of the training, for the record; None takes the segmenter's.
        batch_size: images per pass; all must have one size.
        limit_crf: score the CRF on at most this many images, evenly spaced; the record
            says how many, and holds the scores without CRF on the same images.
        progress: show bars.

    Returns:
        The record described at the top of this module.

    Raises:
        ValueError: no images; other classes than the model's; no way to fit the map on
            "train"; only ignored pixels; codes that are not finite.
    """
    (record,) = evaluate_together(
        [segmenter],
        eval_set,
        fit_set,
        protocol,
        batch_size=batch_size,
        limit_crf=limit_crf,
        progress=progress,
    )
    given = {"seed": seed, "steps": steps}
    return record | {name: value for name, value in given.items() if value is not None}


def evaluate_together(
    segmenters: Sequence["Segmenter"],
    eval_set: SegmentationDataset,
    fit_set: SegmentationDataset | None = None,
    protocol: EvalProtocol | None = None,
    *,
    fit_feat: Tensor | None = None,
    eval_feat: Tensor | None = None,
    batch_size: int = 16,
    limit_crf: int | None = None,
    progress: bool = False,
) -> list[dict[str, Any]]:
    """Score models that share one backbone object: the images pass through it once.

    Args:
        segmenters: models with the very same ``backbone``.
        eval_set: see :func:`evaluate`, as are the arguments not named here.
        fit_set: see :func:`evaluate`.
        protocol: one for all; None takes the first model's.
        fit_feat: features of ``fit_set`` where they are known already, float
            (N, C, h, w), not mirrored.
        eval_feat: the same of ``eval_set``.
        batch_size: images per pass.
        limit_crf: most images with CRF.
        progress: show bars.

    Returns:
        One record per model, in order. ``run.seconds`` is their common time.

    Raises:
        ValueError: see :func:`evaluate`; or the models differ in their backbone.
    """
    started = time.perf_counter()
    backbone = segmenters[0].backbone
    if any(other.backbone is not backbone for other in segmenters):
        raise ValueError("models evaluated together must share one backbone object")
    protocol = protocol or segmenters[0].protocol
    _check(segmenters, eval_set, fit_set, protocol)
    maps = [_stored_map(segmenter, protocol) for segmenter in segmenters]
    if fit_set is not None and eval_set.has_labels:
        maps = _fit_maps(segmenters, fit_set, protocol, fit_feat, batch_size, progress)
    counted = count(
        segmenters,
        eval_set,
        protocol,
        feat=eval_feat,
        batch_size=batch_size,
        crf_images=_crf_images(protocol, eval_set, limit_crf),
        progress=progress,
    )
    run = run_facts(time.perf_counter() - started, segmenters, protocol)
    return [
        describe(segmenter, eval_set, protocol, found)
        | scored(protocol, tally, found, eval_set)
        | tally.all.monitors()
        | {"run": run | training_facts(segmenter)}
        for segmenter, found, tally in zip(segmenters, maps, counted, strict=True)
    ]


def fit_map(
    segmenter: "Segmenter",
    fit_set: SegmentationDataset,
    protocol: EvalProtocol | None = None,
    *,
    feat: Tensor | None = None,
    batch_size: int = 16,
    progress: bool = False,
) -> Matching:
    """Name a model's clusters by the labels of a set, and store the names in it.

    Args:
        segmenter: gets ``cluster_to_class`` and a note where it came from.
        fit_set: a labelled set, normally the training split.
        protocol: matching and flip; None takes the segmenter's own.
        feat: features of ``fit_set`` where they are known already, (N, C, h, w).
        batch_size: images per pass.
        progress: show a bar.

    Raises:
        ValueError: no labels, only ignored pixels, or other classes than the model's.
    """
    protocol = protocol or segmenter.protocol
    _check_labelled(segmenter, fit_set)
    (found,) = _fit_maps([segmenter], fit_set, protocol, feat, batch_size, progress)
    segmenter.cluster_to_class = found.matching.cluster_to_class
    segmenter.meta["map"] = found.source
    return found.matching


def _stored_map(segmenter: "Segmenter", protocol: EvalProtocol) -> Map | None:
    source = segmenter.meta.get("map")
    if segmenter.cluster_to_class is None or source is None:
        return None
    if source["matching"] != protocol.matching:
        return None
    return Map(Matching.from_table(segmenter.cluster_to_class), source)


def _fit_maps(
    segmenters: Sequence["Segmenter"],
    fit_set: SegmentationDataset,
    protocol: EvalProtocol,
    feat: Tensor | None,
    batch_size: int,
    progress: bool,
) -> list[Map]:
    counted = count(
        segmenters,
        fit_set,
        protocol,
        feat=feat,
        linear=False,
        batch_size=batch_size,
        progress=progress,
    )
    source = {
        "dataset": fit_set.name,
        "split": fit_set.split,
        "images": len(fit_set),
        "matching": protocol.matching,
    }
    confusions = [tally.all.cluster for tally in counted]
    for confusion in confusions:
        scores(confusion, "identity", fit_set)  # refuses a set without any label
    return [Map(each.match(protocol.matching), source) for each in confusions]


# ---------------------------------------------------------------------------- checks


def _check(
    segmenters: Sequence["Segmenter"],
    eval_set: SegmentationDataset,
    fit_set: SegmentationDataset | None,
    protocol: EvalProtocol,
) -> None:
    if len(eval_set) == 0:
        raise ValueError(f"{eval_set.name} {eval_set.split} holds no image to evaluate")
    if not eval_set.has_labels:
        return
    for segmenter in segmenters:
        _check_labelled(segmenter, eval_set)
        if fit_set is not None:
            _check_labelled(segmenter, fit_set)
        elif protocol.fit_map_on == "train" and not _stored_map(segmenter, protocol):
            raise ValueError(
                "fit_map_on='train' needs the training split: give fit_set (the model "
                f"holds no map fitted by {protocol.matching}), or choose "
                "fit_map_on='eval'"
            )


def _check_labelled(segmenter: "Segmenter", dataset: SegmentationDataset) -> None:
    place = f"{dataset.name} {dataset.split}"
    if not dataset.has_labels:
        raise ValueError(f"{place} has no labels, so clusters cannot be named by it")
    if tuple(dataset.classes) != segmenter.classes:
        raise ValueError(
            f"{place} has the classes {', '.join(dataset.classes)}, the model "
            f"{', '.join(segmenter.classes) or 'none'}; evaluate on a set with the "
            "model's classes"
        )


def _crf_images(
    protocol: EvalProtocol, eval_set: SegmentationDataset, limit: int | None
) -> set[int]:
    """Evenly spaced images to score with CRF; none where it cannot be had."""
    if limit is not None and limit < 1:
        raise ValueError(f"limit_crf {limit} leaves no image; give at least 1, or None")
    if not protocol.crf or not eval_set.has_labels or not crf.available():
        return set()
    n = len(eval_set)
    spaced = torch.linspace(0, n - 1, min(limit or n, n)).round()
    return set(spaced.long().tolist())
