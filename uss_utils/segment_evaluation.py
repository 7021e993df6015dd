"""Segments scored: k-means and semantic segment retrieval, by one table per data set.

MaskContrast's evaluations without training (Van Gansbeke et al., ICCV 2021, sections
4.2 and 4.4): a model finds the objects of an image and gives each one embedding.

* *K-means* groups the prototypes of the scored split. Background and clusters are then
  named all together by the labels of that split.
* *Retrieval* gives a segment the class of the nearest one in a memory of labelled
  segments, normally those of the training split. No cluster has to be named.

Both are transductive or use labels, as :mod:`uss_utils.evaluation`'s map "eval" does,
and say so in the record: ``record["segments"] = evaluate_segments(...)``.

====================== ========================================================
key                    meaning
====================== ========================================================
dataset, split         the scored set; ``images``, ``segments``, ``empty`` (images
                       without a segment); ``classes``
protocol               all switches, and ``line``
kmeans                 S, the mean over seeds, with ``nmi`` and ``ari`` (0..1, after
                       matching), ``miou_sd`` (None for one seed), ``clusters``, and
                       ``seeds``: S of each
overclustering         the same by number of clusters; absent unless asked for
retrieval              S by name of a class subset, with ``subset`` (class ids that
                       the mean is over), ``memory`` (its segments), ``memory_set``;
                       absent without a memory
crf                    ``kmeans``, ``overclustering`` and ``retrieval`` of the
                       sharpened masks; absent unless asked for
linear                 S of :func:`uss_utils.linear_classifier
                       .score_linear_classifier`, where the caller adds it
====================== ========================================================

S as in :mod:`uss_utils.evaluation`, but a class that neither occurs nor is predicted
counts 0. K-means is scored at the size of the stored labels, retrieval at that of the
network's images, as MaskContrast does; with the CRF both at the former.
"""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from uss_utils.boards import markdown_table
from uss_utils.datasets.base import SegmentationDataset
from uss_utils.metrics import Confusion, Matching, mutual_information, rand_index
from uss_utils.records import jsonable
from uss_utils.scoring import scores
from uss_utils.segment_tables import (
    Masks,
    Model,
    SegmentProtocol,
    SegmentTable,
    segment_table,
)
from uss_utils.segments import SegmentMemory, cluster_segments

__all__ = [
    "VOC7",
    "SegmentProtocol",
    "SegmentTable",
    "class_table",
    "evaluate_segments",
    "score_segments",
    "segment_table",
]

# MaskContrast's retrieval among seven: aeroplane, bottle, bus, car, cat, cow, person.
VOC7 = (1, 5, 6, 7, 8, 10, 15)


def evaluate_segments(
    model: Model,
    eval_set: SegmentationDataset,
    memory_set: SegmentationDataset | None = None,
    protocol: SegmentProtocol | None = None,
    *,
    subsets: Mapping[str, Sequence[int] | None] | None = None,
    masks: Masks | None = None,
    memory_masks: Masks | None = None,
    batch_size: int = 16,
    device: str | torch.device = "cpu",
    progress: bool = False,
) -> dict[str, Any]:
    """Score a model's segments by k-means and, with a memory, by retrieval.

    Args:
        model: see :func:`~uss_utils.segment_tables.segment_table`.
        eval_set: labelled images; class 0 is "background".
        memory_set: labelled images that the memory is made of; None: no retrieval.
        protocol: None: :class:`~uss_utils.segment_tables.SegmentProtocol`'s defaults.
        subsets: see :func:`score_segments`.
        masks: segments of ``eval_set`` where they are given.
        memory_masks: segments of ``memory_set`` where they are given.
        batch_size: images per pass.
        device: where the model computes.
        progress: show bars.

    Returns:
        The section "segments" of a record, described at the top of this module.

    Raises:
        ValueError: sets or maps that do not fit, fewer segments than clusters, or no
            memory segment with a class.
        ImportError: a CRF is asked for, but pydensecrf is missing.
    """
    protocol = protocol or SegmentProtocol()
    options = {"batch_size": batch_size, "device": device, "progress": progress}
    query = segment_table(model, eval_set, protocol, masks=masks, **options)
    memory = None
    if memory_set is not None:
        memory = segment_table(
            model, memory_set, protocol, masks=memory_masks, **options
        )
    return score_segments(query, memory, protocol, subsets)


def score_segments(
    query: SegmentTable,
    memory: SegmentTable | None = None,
    protocol: SegmentProtocol | None = None,
    subsets: Mapping[str, Sequence[int] | None] | None = None,
) -> dict[str, Any]:
    """:func:`evaluate_segments` of tables that are made already.

    Args:
        query: segments to score.
        memory: segments whose labels are known; None: no retrieval.
        protocol: the one the tables were made with.
        subsets: class ids by name: retrieval among these classes alone, as if all
            others but the background were ignored, in the memory too; the mean is over
            these ids. None as ids: all classes; None: ``{"all": None}``. On VOC
            ``{"all": None, "7": VOC7}``.

    Raises:
        ValueError: see :func:`evaluate_segments`; or a subset names no known class.
    """
    protocol = protocol or SegmentProtocol()
    dataset = query.dataset
    if memory is not None and memory.dataset.classes != dataset.classes:
        raise ValueError(
            f"the memory has the classes {', '.join(memory.dataset.classes)}, the "
            f"scored set {', '.join(dataset.classes)}; both need the same"
        )
    numbers = [protocol.clusters or dataset.n_classes - 1, *protocol.over]
    groups = {k: _groups(query, k, protocol) for k in numbers}
    chosen = {
        name: _subset(name, ids, dataset)
        for name, ids in ({"all": None} if subsets is None else subsets).items()
    }
    found = {
        "dataset": dataset.name,
        "split": dataset.split,
        "images": query.images,
        "segments": len(query),
        "empty": query.empty,
        "classes": dataset.classes,
        "protocol": protocol.to_json(),
        **_all(query, memory, groups, chosen, protocol, ("own", "work")),
    }
    if "crf" in query.counts:
        found["crf"] = _all(query, memory, groups, chosen, protocol, ("crf", "crf"))
    return jsonable(found)


def class_table(section: Mapping[str, Any]) -> str:
    """Markdown: IoU of every class in percent, one column per evaluation.

    Args:
        section: what :func:`evaluate_segments` returned.
    """
    columns = {"k-means": section["kmeans"]}
    for k, each in section.get("overclustering", {}).items():
        columns[f"{k} clusters"] = each
    for name, each in section.get("retrieval", {}).items():
        columns[f"retrieval, {name}"] = each
    rows = [
        [name, *(f"{each['iou'][i]:.1f}" for each in columns.values())]
        for i, name in enumerate(section["classes"])
    ]
    for each, column in zip(columns.values(), range(1, len(columns) + 1), strict=True):
        for i, row in enumerate(rows):
            if i not in each.get("subset", range(len(rows))):
                row[column] = "–"
    rows.append(["**mean**", *(f"{each['miou']:.1f}" for each in columns.values())])
    return "\n".join(markdown_table(["class", *columns], rows))


# -------------------------------------------------------------------------- k-means


def _groups(query: SegmentTable, k: int, protocol: SegmentProtocol) -> list[Tensor]:
    """Cluster of every segment, for every seed."""
    return [
        cluster_segments(
            query.prototypes,
            k,
            protocol.whiten,
            protocol.components,
            protocol.restarts,
            seed,
        ).assignment
        for seed in range(protocol.seeds)
    ]


def _all(
    query: SegmentTable,
    memory: SegmentTable | None,
    groups: dict[int, list[Tensor]],
    chosen: dict[str, list[int]],
    protocol: SegmentProtocol,
    places: tuple[str, str],
) -> dict[str, Any]:
    """All scores of masks counted at given places."""
    first, *more = groups
    found: dict[str, Any] = {
        "kmeans": _kmeans(query, first, groups[first], protocol, places[0])
    }
    if more:
        found["overclustering"] = {
            k: _kmeans(query, k, groups[k], protocol, places[0]) for k in more
        }
    if memory is not None:
        found["retrieval"] = {
            name: _retrieval(query, memory, ids, places[1])
            for name, ids in chosen.items()
        }
    return found


def _kmeans(
    query: SegmentTable,
    k: int,
    groups: list[Tensor],
    protocol: SegmentProtocol,
    place: str,
) -> dict[str, Any]:
    runs = [_one_kmeans(query, k, group, protocol, place) for group in groups]
    found: dict[str, Any] = {
        key: round(statistics.fmean(run[key] for run in runs), 4)
        for key in ("acc", "miou", "miou_classes", "nmi", "ari")
    }
    iou = torch.tensor([run["iou"] for run in runs], dtype=torch.float64).mean(0)
    found["iou"] = [round(value, 4) for value in iou.tolist()]
    spread = [run["miou"] for run in runs]
    found["miou_sd"] = round(statistics.stdev(spread), 4) if len(runs) > 1 else None
    return found | {"clusters": k, "seeds": runs}


def _one_kmeans(
    query: SegmentTable,
    k: int,
    group: Tensor,
    protocol: SegmentProtocol,
    place: str,
) -> dict[str, Any]:
    """S of one clustering: row 0 of the confusion is the background."""
    n_classes = query.dataset.n_classes
    matrix = _added(query, 1 + group, 1 + k, place)
    confusion = Confusion.from_matrix(matrix)
    rule = protocol.matching if 1 + k <= n_classes else protocol.over_matching
    matching = confusion.match(rule)
    found = _scored(confusion, matching, query.dataset)
    histogram = confusion.scores(matching).histogram
    found["nmi"] = round(mutual_information(histogram), 6)
    found["ari"] = round(rand_index(histogram), 6)
    return found


def _added(query: SegmentTable, rows: Tensor, n_rows: int, place: str) -> Tensor:
    """Confusion where every segment counts for its row, the background for row 0."""
    counts = query.counts[place]
    matrix = counts.new_zeros(n_rows, counts.shape[1])
    matrix[0] = query.outside[place]
    return matrix.index_add_(0, rows, counts)


def _scored(
    confusion: Confusion, matching: Matching | str, dataset: SegmentationDataset
) -> dict[str, Any]:
    """S with the plain mean over all classes."""
    found = scores(confusion, matching, dataset, absent=0)
    return found | {"miou": found["miou_classes"]}


# ------------------------------------------------------------------------ retrieval


def _subset(
    name: str, ids: Sequence[int] | None, dataset: SegmentationDataset
) -> list[int]:
    n = dataset.n_classes
    ids = list(range(n)) if ids is None else sorted(set(ids))
    if not any(0 < i for i in ids) or not all(0 <= i < n for i in ids):
        raise ValueError(
            f"subset {name!r} holds the class ids {ids}; {dataset.name} has 0..{n - 1},"
            " and at least one beside the background is needed"
        )
    return ids


def _retrieval(
    query: SegmentTable, memory: SegmentTable, ids: list[int], place: str
) -> dict[str, Any]:
    """S among some classes."""
    n_classes = query.dataset.n_classes
    dropped = [i for i in range(1, n_classes) if i not in ids]
    known = SegmentMemory.from_counts(
        memory.prototypes, memory.counts["work"], (0, *dropped)
    )
    classes, _ = known.retrieve(query.prototypes)
    matrix = _added(query, classes, n_classes, place)
    matrix[:, dropped] = 0  # ignored pixels
    found = _scored(Confusion.from_matrix(matrix), "identity", query.dataset)
    mean = round(statistics.fmean(found["iou"][i] for i in ids), 4)
    return found | {
        "miou": mean,
        "miou_classes": mean,
        "subset": ids,
        "memory": len(known.labels),
        "memory_set": f"{memory.dataset.name} {memory.dataset.split}",
    }
