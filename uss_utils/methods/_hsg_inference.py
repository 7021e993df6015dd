"""HSG at test time: k-means segments of an image, named by labelled training segments.

Ke, Hwang, Guo, Wang, Yu, "Unsupervised Hierarchical Semantic Segmentation with
Multiview Cosegmentation and Clustering Transformers", CVPR 2022. An image is cut into
at most as many segments as the grid has cells; each takes the class that most of the 20
most similar segments of the training images have. **Those need labels**: such scores
do not compare with those of clusters that are matched to classes (Hungarian).
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from uss_utils.grouping import Assignment, compose_levels
from uss_utils.hierarchy import Hierarchy
from uss_utils.hierarchy_network import HSGNet
from uss_utils.methods._hsg_image import Canvas, ImageSegments, canvas, image_segments
from uss_utils.rows import first_largest
from uss_utils.scored_batches import eval_mode, resized
from uss_utils.segments import SegmentMemory, nearest_rows
from uss_utils.upsampling import upsample_adjoint

__all__ = [
    "CITYSCAPES",
    "Canvas",
    "ImageHierarchy",
    "ImageSegments",
    "SegmentRetrieval",
    "build_memory",
    "canvas",
    "image_hierarchy",
    "image_segments",
    "known_segments",
    "mean_places",
    "paint",
    "predict",
    "retrieve",
    "retrieved_labels",
    "segment_labels",
    "segments_on_canvas",
]

IGNORE = 255  # what has no class in the stored labels of VOC and Cityscapes
USES_LABELS = (
    "labels of the training images name the segments, so the scores do not compare "
    "with those of clusters matched to classes (Hungarian)"
)

# Normalised images (B, 3, H, W) to embeddings (B, C, h, w), not normalised.
Model = Callable[[Tensor], Tensor]


# -------------------------------------------------------------------------- the memory


def segment_labels(labels: Tensor, segments: Tensor, ignore: int = IGNORE) -> Tensor:
    """Label that most pixels of each segment have.

    Pixels without a class count as a class of their own.

    Args:
        labels: class of every pixel, integers of any shape.
        segments: segment of every pixel, 0..S-1 each occurring, int64, same shape.
        ignore: id of pixels without a class.

    Returns:
        int64 (S,), ``ignore`` where those are the most; of classes with equally many
        pixels the smallest, of a class and ``ignore`` the class.
    """
    labels, segments = labels.flatten().long(), segments.flatten()
    last = int(labels.max()) + 1
    column = torch.where(labels == ignore, last, labels)
    n = int(segments.max()) + 1
    counts = torch.bincount(segments * (last + 1) + column, minlength=n * (last + 1))
    best = first_largest(counts.view(n, last + 1))
    return torch.where(best == last, ignore, best)


def build_memory(
    segments: Iterable[ImageSegments],
    labels: Iterable[Tensor],
    ignore: int = IGNORE,
) -> SegmentMemory:
    """Memory of the segments of labelled images.

    Args:
        segments: of every image.
        labels: of every image, at the size of its map of segments.
        ignore: id of pixels without a class; segments that mostly have none are left
            out.

    Raises:
        ValueError: no segment is left, or a size differs.
    """
    prototypes, names = [], []
    for found, label in zip(segments, labels, strict=True):
        if label.shape != found.map.shape:
            raise ValueError(
                f"label of shape {tuple(label.shape)} for segments of shape "
                f"{tuple(found.map.shape)}"
            )
        prototypes.append(found.prototypes)
        names.append(segment_labels(label.to(found.map.device), found.map, ignore))
    return known_segments(torch.cat(prototypes), torch.cat(names), ignore)


def known_segments(prototypes: Tensor, labels: Tensor, ignore: int) -> SegmentMemory:
    """Memory of the segments that have a class.

    Raises:
        ValueError: none has.
    """
    known = (labels != ignore).to(prototypes.device) & prototypes.any(1)
    if not known.any():
        raise ValueError(
            f"none of {len(prototypes)} segments has a class; the memory would be "
            "empty. Check the labels of the training images"
        )
    rows = known.nonzero()[:, 0]
    return SegmentMemory(prototypes[rows], labels.to(rows.device)[rows], rows)


def retrieve(queries: Tensor, memory: Tensor, labels: Tensor, k: int = 20) -> Tensor:
    """Class that most of the k nearest rows of a memory have, the smallest of equals.

    Args:
        queries: unit rows, shape (S, C).
        memory: unit rows, shape (M, C).
        labels: class of each row, int64 (M,).
        k: neighbours; M where that is less.

    Returns:
        int64 (S,).
    """
    places = torch.arange(len(labels), device=memory.device)
    return SegmentMemory(memory, labels, places).vote(queries, k)


def retrieved_labels(
    queries: Tensor, memory: Tensor, labels: Tensor, k: int = 20
) -> Tensor:
    """Classes of the k nearest rows, the most similar first, int64 (S, k)."""
    return labels[nearest_rows(queries, memory, k)]


def paint(
    segments: ImageSegments, classes: Tensor, size: tuple[int, int] | None = None
) -> Tensor:
    """Map of the class of every segment, at the image's own size.

    Args:
        segments: of the image.
        classes: of each segment, integers (S,).
        size: (H', W') of the image; None: that of the segments.

    Returns:
        Shape (H', W'), enlarged by nearest neighbour.
    """
    painted = classes.to(segments.map.device)[segments.map]
    return painted if size is None else resized(painted[None], size)[0]


# ------------------------------------------------------------------------ whole images


@dataclass(frozen=True)
class SegmentRetrieval:
    """Every switch of the paper's evaluation; the defaults are those on VOC.

    Attributes:
        longer_side: of an image on its canvas, in pixels.
        canvas: (H, W), the same for all images.
        grid: cells from which k-means starts.
        iterations: of k-means. The release tests its first stage with 1.
        k: neighbours that vote.
    """

    longer_side: int = 512
    canvas: tuple[int, int] = (512, 512)
    grid: tuple[int, int] = (6, 6)
    iterations: int = 15
    k: int = 20

    def describe(self) -> str:
        """One line for under a table, which says what the scores may be compared to."""
        rows, columns = self.grid
        return (
            f"longer side {self.longer_side} on {self.canvas[0]}x{self.canvas[1]}; "
            f"k-means of embeddings and places, {rows}x{columns} cells, "
            f"{self.iterations} iterations; every segment named by the majority of its "
            f"{self.k} nearest labelled training segments; no CRF; {USES_LABELS}"
        )


CITYSCAPES = SegmentRetrieval(2048, (1024, 2048), (12, 24))


@torch.no_grad()
def segments_on_canvas(
    model: Model,
    canvases: Sequence[Canvas],
    protocol: SegmentRetrieval,
    device: str | torch.device = "cpu",
) -> list[ImageSegments]:
    """Segments of several images, whose canvases the network sees as one batch.

    Args:
        model: gives embeddings; in eval mode.
        canvases: of one size.
        protocol: grid and iterations.
        device: where the model computes.
    """
    images = torch.stack([each.image for each in canvases])
    maps, size = model(images.to(device)), tuple(images.shape[-2:])
    return [
        image_segments(embedding, size, each.size, protocol.grid, protocol.iterations)
        for embedding, each in zip(maps, canvases, strict=True)
    ]


def predict(
    model: Model,
    image: Tensor,
    memory: SegmentMemory,
    protocol: SegmentRetrieval | None = None,
    device: str | torch.device = "cpu",
) -> Tensor:
    """Classes of an image's pixels, by retrieval from labelled segments.

    Args:
        model: gives embeddings; a module, or a method of one, is put into eval mode.
        image: normalised, shape (3, H, W).
        memory: of labelled training images, see :func:`build_memory`.
        protocol: None: that on VOC.
        device: where the model computes.

    Returns:
        int64 (H, W), at the image's own size; -1 where the embedding is zero.

    Raises:
        ValueError: the image does not fit on the canvas.
    """
    protocol = protocol or SegmentRetrieval()
    laid = canvas(image, None, protocol.longer_side, protocol.canvas)
    with eval_mode(model):
        found = segments_on_canvas(model, [laid], protocol, device)[0]
    classes = memory.vote(found.prototypes, protocol.k)
    return paint(found, classes, tuple(image.shape[-2:]))


# ------------------------------------------------------------------------- hierarchies


class ImageHierarchy(NamedTuple):
    """The groups of one image.

    Attributes:
        segments: the nodes.
        groups: soft groups of the nodes, for a batch of one image.
        hierarchy: segments, fine and coarse groups as nested maps and as a tree.
    """

    segments: ImageSegments
    groups: Assignment
    hierarchy: Hierarchy


@torch.no_grad()
def image_hierarchy(
    net: HSGNet,
    image: Tensor,
    size: tuple[int, int] | None = None,
    grid: tuple[int, int] = (4, 4),
    iterations: int = 15,
) -> ImageHierarchy:
    """Segments of a single image, grouped by both clustering transformers.

    Embeddings and the position table are those of the training grid, enlarged
    bilinearly. Where an image has more cells than the table, the table is enlarged from
    its full size.

    Args:
        net: with a grouping.
        image: normalised, shape (3, H, W); or what the network takes instead.
        size: (H, W) of the maps; None: that of ``image``.
        grid: cells from which k-means starts.
        iterations: of k-means.

    Raises:
        ValueError: the network has no grouping.
    """
    if net.grouping is None:
        raise ValueError(
            "the network was trained without clustering transformers (stage 1), so it "
            "has no groups; train with a hierarchy"
        )
    size = tuple(image.shape[-2:]) if size is None else size
    with eval_mode(net):
        embedding = net(image[None])[0]
        found = image_segments(embedding, size, None, grid, iterations)
        table = net.grouping.positions
        cells = tuple(min(n, len(table.rows)) for n in embedding.shape[1:])
        nodes = found.prototypes.T[None]
        place = mean_places(table(cells), found.map)
        levels = net.grouping(nodes, torch.zeros_like(nodes[:, 0]).bool(), place[None])
    groups = compose_levels(levels.fine_logits, levels.coarse_logits)
    probs = groups.fine_probs[0], groups.coarse_probs[0]
    return ImageHierarchy(found, groups, Hierarchy.grouped(found.map, *probs))


def mean_places(positions: Tensor, segments: Tensor) -> Tensor:
    """Mean of an enlarged position map over every segment.

    Args:
        positions: shape (C, h, w).
        segments: segment of every pixel, 0..S-1, int64 (H, W).

    Returns:
        Shape (C, S).
    """
    member = F.one_hot(segments).movedim(2, 0)[None].to(positions)
    # A weighted sum over an enlarged map needs no enlarged map.
    small = upsample_adjoint(member, tuple(positions.shape[1:]))[0]
    sums = torch.einsum("chw,shw->cs", positions, small)
    return sums / member.sum((0, 2, 3)).clamp_min(1)
