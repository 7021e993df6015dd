"""Segments of a labelled set at hand: how good they are, whom they resemble."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import seaborn
import torch
import torch.nn.functional as F
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor

from uss_utils.datasets.base import SegmentationDataset
from uss_utils.figures import ACCENT, WIDTH, new_axes, new_figure
from uss_utils.metrics import Confusion
from uss_utils.objects_shown import RIGHT, bare, on_image
from uss_utils.segment_maps import class_counts, region_prototypes
from uss_utils.segmenter import Segmenter
from uss_utils.segments import SegmentMemory, cluster_segments


def mask_quality(
    ids: Tensor, labels: Tensor, n_classes: int, things: Sequence[int]
) -> dict[str, float]:
    """What masks hold, in percent, by the labels of their images.

    Args:
        ids: bool, or 0 background and 1..n objects, (N, h, w) patches or (N, H, W).
        labels: classes, integers (N, H, W), ignore = -1.
        n_classes: K.
        things: classes that are objects.

    Returns:
        "covers": share of the pixels that lie in masks; "pure": of these, the share
        that has its mask's commonest class; "IoU": of all masks of the images with all
        pixels of ``things``.
    """
    size = tuple(labels.shape[1:])
    large = F.interpolate(ids[:, None].float(), size, mode="nearest-exact")[:, 0]
    n_objects = max(1, int(large.max()))
    counts = class_counts(large.long(), labels, n_classes, n_objects).double()
    inside = counts[:, 1:]
    union = inside.sum() + counts[:, 0, list(things)].sum()
    found = {
        "covers": inside.sum() / counts.sum(),
        "pure": inside.amax(2).sum() / inside.sum(),
        "IoU": inside[..., list(things)].sum() / union,
    }
    return {name: 100 * float(share) for name, share in found.items()}


class Gallery:
    """The segments of a labelled set, at hand for looking.

    Row ``i n + id - 1`` of all that follows belongs to object ``id`` of image i.

    Args:
        dataset: images of one size.
        masks: gives ids 0..n of images by their places, (N, H, W).
        n: most objects of an image.

    Attributes:
        images: normalised, shape (N, 3, H, W).
        labels: int64, shape (N, H, W).
        ids: int64, shape (N, H, W).
        n: rows per image.
        counts: pixels per class of every segment, int64 (N n, K).
        classes: the commonest class of every segment, int64 (N n,).
        real: segments that have labelled pixels, bool (N n,).
    """

    def __init__(
        self,
        dataset: SegmentationDataset,
        masks: Callable[[range], Tensor],
        n: int,
    ):
        every = range(len(dataset))
        self.images, self.labels = dataset.batch(every)
        self.ids, self.n, self.names = masks(every), n, dataset.classes
        found = class_counts(self.ids, self.labels, dataset.n_classes, n)
        self.counts = found[:, 1:].flatten(0, 1)
        self.classes, self.real = self.counts.argmax(1), self.counts.any(1)

    def code(self, model: Segmenter) -> Tensor:
        """Embeddings of all images, (N, D, h, w)."""
        return torch.cat([model.code(part) for part in self.images.split(32)])

    def prototypes(self, model: Segmenter) -> Tensor:
        """One unit row per segment, zero where an image has no such object."""
        return region_prototypes(self.code(model), self.ids, n_objects=self.n)

    def covered(self) -> dict[str, float]:
        """Percent of the pixels of each class that lie in a segment, by its name.

        Classes without a pixel are left out.
        """
        inside = self.counts.sum(0)
        there = [int((self.labels == k).sum()) for k in range(len(inside))]
        pairs = zip(self.names, inside.tolist(), there, strict=True)
        return {name: 100 * found / total for name, found, total in pairs if total}

    def mask(self, row: int) -> tuple[int, Tensor]:
        """Image of a segment, and its pixels, bool (H, W)."""
        image, number = divmod(row, self.n)
        return image, self.ids[image] == number + 1

    def draw(self, ax: Axes, row: int, colour: str) -> None:
        """Show one segment on its image, framed."""
        image, mask = self.mask(row)
        ax.imshow(on_image(self.images[image], mask))
        ax.set_title(self.names[self.classes[row]], fontsize=9)
        bare(ax)
        ax.spines[:].set(visible=True, color=colour, lw=3)


def retrieved(
    rows: Mapping[str, tuple[int, Sequence[int]]], asked: Gallery, memory: Gallery
) -> Figure:
    """Segments and those found for them; green frames: of the same class.

    Args:
        rows: name of a line -> row of the query, and rows of what was found.
        asked: where the queries are.
        memory: where the others are.

    Raises:
        ValueError: no line, or lines of different length.
    """
    lengths = {len(found) for _, found in rows.values()}
    if len(lengths) != 1:
        raise ValueError(f"lines of one length are needed, got lengths {lengths}")
    columns = 1 + lengths.pop()
    figure = new_figure(WIDTH, (WIDTH / columns + 0.15) * len(rows))
    axes = new_axes(figure, len(rows), columns)
    for line, (name, (query, found)) in zip(axes, rows.items(), strict=True):
        asked.draw(line[0], query, "0.2")
        line[0].set_ylabel(name)
        for ax, row in zip(line[1:], found, strict=True):
            same = memory.classes[row] == asked.classes[query]
            memory.draw(ax, row, RIGHT if same else ACCENT)
    return figure


def nearest_by(
    models: Mapping[str, Segmenter],
    rows: Sequence[int],
    asked: Gallery,
    memory: Gallery,
    k: int = 5,
) -> Figure:
    """:func:`retrieved` for the same segments by several models.

    Args:
        models: name -> model that embeds both sides.
        rows: of the segments that are looked for.
        asked: where these are.
        memory: where their k nearest are looked for.
        k: how many are shown.
    """
    lines = {}
    for name, model in models.items():
        queries = asked.prototypes(model)[list(rows)]
        known = SegmentMemory.from_counts(
            memory.prototypes(model), memory.counts, ignore=()
        )
        found = known.rows[known.nearest(queries, k)]
        for number, line in enumerate(found.tolist(), 1):
            lines[f"{number} {name}"] = rows[number - 1], line
    # The lines of one segment below each other, models in their order.
    order = sorted(lines, key=lambda name: int(name.split()[0]))
    return retrieved({name: lines[name] for name in order}, asked, memory)


def clustered(
    prototypes: Tensor,
    counts: Tensor,
    classes: Sequence[str],
    whiten: bool = True,
    components: int | None = None,
    seed: int = 0,
) -> Figure:
    """Segments in K clusters: IoU with the classes, before and after matching.

    Args:
        prototypes: of the segments, shape (N, D).
        counts: pixels per class of every segment, int64 (N, K).
        classes: names of the K classes.
        whiten: see :func:`uss_utils.segments.cluster_segments`.
        components: likewise; at most N - 1 are kept.
        seed: of k-means.
    """
    k = len(classes)
    kept = None if components is None else min(components, len(prototypes) - 1)
    found = cluster_segments(prototypes, k, whiten, kept, seed=seed)
    table = torch.zeros(k, k, dtype=torch.int64)
    confusion = Confusion.from_matrix(table.index_add_(0, found.assignment, counts))
    matching = confusion.match("hungarian-iou")
    names = matching.cluster_to_class.numpy()
    iou = 100 * confusion.iou_matrix().numpy()
    figure = new_figure(WIDTH, 1.4 + 0.3 * k)
    left, right = new_axes(figure, 1, 2)[0]
    order = np.argsort(names)  # as many clusters as classes: every one has a name
    _iou_table(left, iou, np.arange(k), classes)
    _iou_table(right, iou, order, classes)
    for place, cluster in enumerate(order):
        at = names[cluster], place
        right.add_patch(Rectangle(at, 1, 1, fill=False, color=ACCENT, lw=2))
    left.set_title("IoU (%), clusters as they came")
    right.set_title(f"matched, mIoU {confusion.scores(matching).miou:.1f}")
    return figure


def _iou_table(ax: Axes, iou: Any, rows: Any, classes: Sequence[str]) -> None:
    seaborn.heatmap(
        iou[rows],
        ax=ax,
        cmap="cividis",
        vmin=0,
        vmax=iou.max(),
        cbar=False,
        annot=len(classes) <= 12,
        fmt=".0f",
        annot_kws={"fontsize": 8},
        xticklabels=list(classes),
        yticklabels=[f"cluster {k}" for k in rows],
    )
    ax.tick_params(axis="x", rotation=45)
    ax.tick_params(axis="y", rotation=0)
    ax.grid(False)
    for text in ax.get_xticklabels():
        text.set(ha="right", rotation_mode="anchor")
