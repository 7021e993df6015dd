"""HSG's own evaluation: segments of one split, named by the labelled ones of another.

The network sees every image once; of its segments prototypes and counts of classes are
kept. ``record["segments"] = evaluate_retrieval(...)``:

====================== ========================================================
key                    meaning
====================== ========================================================
dataset, split         the scored set; ``images``, ``segments``; ``classes``
protocol               all switches, and ``line``
note                   that labels of the memory were used, and what follows
retrieval              by name of a class subset ("all"): acc, miou and iou in
                       percent, a class that neither occurs nor is predicted
                       counts 0; ``memory`` (its segments), ``memory_set``
====================== ========================================================

The training labels name the segments. **These scores do not compare with those of
clusters that are matched to classes**, such as :mod:`uss_utils.evaluation`'s.
"""

from collections.abc import Callable
from contextlib import closing
from dataclasses import asdict
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from uss_utils.batches import in_order
from uss_utils.datasets.base import SegmentationDataset
from uss_utils.heads import Chain
from uss_utils.hierarchy_network import HSGHead
from uss_utils.methods._hsg_inference import (
    USES_LABELS,
    Canvas,
    Model,
    SegmentRetrieval,
    canvas,
    known_segments,
    segment_labels,
    segments_on_canvas,
)
from uss_utils.metrics import Confusion
from uss_utils.records import jsonable
from uss_utils.scored_batches import eval_mode, resized
from uss_utils.scoring import scores
from uss_utils.segment_maps import class_counts
from uss_utils.segmenter import Segmenter

NONE = -1  # what has no class


class RetrievalTable(NamedTuple):
    """The segments of a data set.

    Attributes:
        dataset: what was read.
        prototypes: unit rows, float32 (N, C), on the CPU.
        labels: class that most pixels of a segment have on the canvas, int64 (N,); -1
            where most have none.
        counts: pixels per class at the labels' own size, int64 (N, K).
    """

    dataset: SegmentationDataset
    prototypes: Tensor
    labels: Tensor
    counts: Tensor


class _Item(NamedTuple):
    """An image to be cut into segments, and the label it is scored with."""

    canvas: Canvas
    own: Tensor


def head_of(segmenter: Segmenter) -> tuple[Callable[[Tensor], Tensor], nn.Module]:
    """From images to what a model's last head takes, and that head."""
    head = segmenter.head
    chained = isinstance(head, Chain)
    first, last = (head.first, head.then) if chained else (nn.Identity(), head)
    return lambda images: first(segmenter.backbone.features(images)), last


def embedding_of(segmenter: Segmenter) -> Model:
    """A model's embeddings as the protocol enlarges them: not yet of length 1."""
    before, head = head_of(segmenter)
    after = head.embedding if isinstance(head, HSGHead) else head
    return lambda images: after(before(images))


def retrieval_table(
    model: Model,
    dataset: SegmentationDataset,
    protocol: SegmentRetrieval | None = None,
    *,
    batch_size: int = 8,
    device: str | torch.device = "cpu",
    progress: bool = False,
) -> RetrievalTable:
    """Find and describe the segments of a labelled set, in one pass.

    Args:
        model: normalised images (B, 3, H, W) to embeddings (B, C, h, w); a module, or a
            method of one, is put into eval mode meanwhile.
        dataset: labelled images of any sizes, seen through the set's transform. Where
            that squeezes them they are scored at the size of the stored labels.
        protocol: None: that on VOC.
        batch_size: images per pass.
        device: where the model computes.
        progress: show a bar.

    Raises:
        ValueError: no images or labels, or an image that does not fit on the canvas.
    """
    protocol = protocol or SegmentRetrieval()
    place = f"{dataset.name} {dataset.split}"
    if not len(dataset) or not dataset.has_labels:
        missing = "labels" if len(dataset) else "images"
        raise ValueError(f"{place} has no {missing}, so there is nothing to score")
    parts: list[tuple[Tensor, Tensor, Tensor]] = []
    bar = tqdm(total=len(dataset), desc=place, unit="img", disable=not progress)
    reading = in_order(
        lambda rows: [_item(dataset, i, protocol) for i in rows],
        len(dataset),
        batch_size,
    )
    with bar, closing(reading) as batches, eval_mode(model):
        for _, items in batches:
            laid = [item.canvas for item in items]
            found = segments_on_canvas(model, laid, protocol, device)
            for item, (ids, prototypes) in zip(items, found, strict=True):
                ids = ids.cpu()
                labels = segment_labels(item.canvas.label, ids, NONE)
                counts = _counts(ids, item.own, dataset.n_classes, len(prototypes))
                parts.append((prototypes.cpu(), labels, counts))
            bar.update(len(items))
    return RetrievalTable(dataset, *map(torch.cat, zip(*parts, strict=True)))


def _item(
    dataset: SegmentationDataset, index: int, protocol: SegmentRetrieval
) -> _Item:
    item = dataset[index]
    label = own = item["label"]
    if dataset.transform.kind == "resize":
        own = torch.as_tensor(dataset.read_label(index)).long()
    laid = canvas(item["image"], label, protocol.longer_side, protocol.canvas)
    return _Item(laid, own)


def _counts(ids: Tensor, label: Tensor, n_classes: int, n: int) -> Tensor:
    """Pixels per class of every segment, enlarged to the label's size, (S, K)."""
    own = resized(ids[None], tuple(label.shape))
    # Place 0 is the background, of which there is none.
    return class_counts(own + 1, label[None], n_classes, n)[0, 1:]


def evaluate_retrieval(
    model: Model,
    eval_set: SegmentationDataset,
    memory_set: SegmentationDataset,
    protocol: SegmentRetrieval | None = None,
    *,
    batch_size: int = 8,
    device: str | torch.device = "cpu",
    progress: bool = False,
) -> dict[str, Any]:
    """Score a model's segments by retrieval from labelled ones.

    Args:
        model: see :func:`retrieval_table`.
        eval_set: labelled images.
        memory_set: labelled images of the same classes, whose labels are *used*:
            normally the training split.
        protocol: None: that on VOC.
        batch_size: images per pass.
        device: where the model computes.
        progress: show bars.

    Returns:
        The section "segments" of a record, described at the top of this module.

    Raises:
        ValueError: sets that do not fit, see :func:`retrieval_table`, or no memory
            segment with a class.
    """
    options = {"batch_size": batch_size, "device": device, "progress": progress}
    memory = retrieval_table(model, memory_set, protocol, **options)
    query = retrieval_table(model, eval_set, protocol, **options)
    return score_retrieval(query, memory, protocol)


def score_retrieval(
    query: RetrievalTable,
    memory: RetrievalTable,
    protocol: SegmentRetrieval | None = None,
) -> dict[str, Any]:
    """:func:`evaluate_retrieval` of tables that are made already.

    Raises:
        ValueError: see there.
    """
    protocol = protocol or SegmentRetrieval()
    dataset, n_classes = query.dataset, query.dataset.n_classes
    if memory.dataset.classes != dataset.classes:
        raise ValueError(
            f"the memory has the classes {', '.join(memory.dataset.classes)}, the "
            f"scored set {', '.join(dataset.classes)}; both need the same"
        )
    known = known_segments(memory.prototypes, memory.labels, NONE)
    classes = known.vote(query.prototypes, protocol.k)
    # A segment without embedding has no class: it is wrong, whatever it shows.
    rows = classes.where(classes >= 0, n_classes)
    matrix = query.counts.new_zeros(n_classes + 1, n_classes)
    matrix.index_add_(0, rows, query.counts)
    found = scores(Confusion.from_matrix(matrix), "identity", dataset, absent=0)
    return jsonable(
        {
            "dataset": dataset.name,
            "split": dataset.split,
            "images": len(dataset),
            "segments": len(query.prototypes),
            "classes": dataset.classes,
            "protocol": asdict(protocol) | {"line": protocol.describe()},
            "note": USES_LABELS,
            "retrieval": {
                "all": found
                | {
                    "miou": found["miou_classes"],
                    "memory": len(known.labels),
                    "memory_set": f"{memory.dataset.name} {memory.dataset.split}",
                }
            },
        }
    )
