"""HSG at test time: k-means segments of an image, named by labelled training segments.

Ke, Hwang, Guo, Wang, Yu, "Unsupervised Hierarchical Semantic Segmentation with
Multiview Cosegmentation and Clustering Transformers", CVPR 2022. An image is cut into
at most as many segments as the grid has cells; each takes the class that most of the 20
most similar segments of the training images have. **Those need labels**: such scores
do not compare with those of clusters that are matched to classes (Hungarian).
"""

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from uss_utils.methods._hsg_kmeans import coordinates, grid_labels, spherical_kmeans
from uss_utils.methods._hsg_segments import dense_numbers
from uss_utils.scored_batches import resized
from uss_utils.segments import SegmentMemory, nearest_rows
from uss_utils.upsampling import upsample_rows

IGNORE = 255  # what has no class in the stored labels of VOC and Cityscapes
EPS = 1e-12

# Normalised images (B, 3, H, W) to embeddings (B, C, h, w), not normalised.
Model = Callable[[Tensor], Tensor]


class Canvas(NamedTuple):
    """An image in the top left corner of a canvas.

    Attributes:
        image: normalised, zero beside the image, shape (3, H, W).
        label: of the image's part alone, integers (h, w); None without one.
        size: (h, w) of that part.
    """

    image: Tensor
    label: Tensor | None
    size: tuple[int, int]


def canvas(
    image: Tensor,
    label: Tensor | None,
    longer_side: int,
    size: tuple[int, int],
) -> Canvas:
    """Scale an image to a longer side and lay it on a canvas of a fixed size.

    Args:
        image: normalised, shape (3, H', W').
        label: integers (H', W'), or None.
        longer_side: L; the ratio is min(L / H', L / W'), both sides are rounded down.
            Images are scaled bilinearly without antialiasing, labels by nearest
            neighbour.
        size: (H, W) of the canvas.

    Raises:
        ValueError: the scaled image does not fit, or the label has another size.
    """
    own = tuple(image.shape[-2:])
    if label is not None and tuple(label.shape) != own:
        raise ValueError(
            f"label of shape {tuple(label.shape)} for an image of {own[0]}x{own[1]}"
        )
    ratio = min(longer_side / own[0], longer_side / own[1])
    inner = tuple(max(1, int(ratio * n)) for n in own)
    if inner[0] > size[0] or inner[1] > size[1]:
        raise ValueError(
            f"an image of {own[0]}x{own[1]} pixels (height x width) scaled to a longer "
            f"side of {longer_side} is {inner[0]}x{inner[1]}, which does not fit on a "
            f"canvas of {size[0]}x{size[1]}; choose a larger canvas"
        )
    scaled = F.interpolate(image[None], inner, mode="bilinear", align_corners=False)
    laid = image.new_zeros(3, *size)
    laid[:, : inner[0], : inner[1]] = scaled[0]
    return Canvas(
        laid, None if label is None else resized(label[None], inner)[0], inner
    )


class ImageSegments(NamedTuple):
    """The segments of one image.

    Attributes:
        map: segment of every pixel, 0..S-1, int64 (h, w).
        prototypes: unit embeddings, float32 (S, C).
    """

    map: Tensor
    prototypes: Tensor


@torch.no_grad()
def image_segments(
    embedding: Tensor,
    size: tuple[int, int],
    valid: tuple[int, int] | None = None,
    grid: tuple[int, int] = (6, 6),
    iterations: int = 15,
) -> ImageSegments:
    """Segments of an image by spherical k-means of its pixels' embeddings and places.

    Coordinates and the grid of the start are those of the whole canvas; only the pixels
    of the image take part. The enlarged embeddings are made some rows at a time and
    kept once, together with the coordinates.

    Args:
        embedding: of the canvas, at any resolution, not normalised, shape (C, h', w').
        size: (H, W) of the canvas, to which it is enlarged bilinearly.
        valid: (h, w) of the image in its top left corner; None: all of it.
        grid: cells (ky, kx) of the start.
        iterations: of k-means.

    Returns:
        Segments in the order of their cells; prototypes are directions of sums of
        embeddings, without coordinates.
    """
    height, width = valid or size
    joint = joint_features(embedding, size, (height, width))
    start = grid_labels(*size, grid).to(joint.device)
    own = start[:height, :width].flatten()
    found = spherical_kmeans(joint, own, int(start.max()) + 1, iterations)
    segment = dense_numbers(found)
    sums = joint.new_zeros(int(segment.max()) + 1, len(embedding))
    step = max(1, (1 << 22) // len(embedding))
    for rows, part in zip(joint.split(step), segment.split(step), strict=True):
        e = F.normalize(rows[:, : len(embedding)], dim=1, eps=EPS)
        sums.index_add_(0, part, e)
    return ImageSegments(segment.view(height, width), F.normalize(sums, dim=1, eps=EPS))


def joint_features(
    embedding: Tensor, size: tuple[int, int], valid: tuple[int, int]
) -> Tensor:
    """What k-means groups: unit rows of [unit embedding, y, x], row by row.

    The same as :func:`~uss_utils.methods._hsg_segments.pixel_features` of the enlarged
    map, which is never held.

    Args:
        embedding: shape (C, h', w').
        size: (H, W) of the canvas.
        valid: (h, w) of its part that is wanted.

    Returns:
        float32 (h w, C + 2).
    """
    height, width = valid
    place = coordinates(*size)[:height, :width].reshape(-1, 2).to(embedding.device)
    n = len(embedding)
    joint = torch.empty(len(place), n + 2, device=embedding.device)
    joint[:, n:] = place
    start = 0
    for rows in upsample_rows(embedding[None].float(), size, valid):
        e = rows[0].flatten(1).T
        part = joint[start : start + len(e)]
        part[:, :n] = e / torch.linalg.vector_norm(e, dim=1)[:, None].clamp_min(EPS)
        part /= torch.linalg.vector_norm(part, dim=1)[:, None].clamp_min(EPS)
        start += len(e)
    return joint


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
    best = largest_column(counts.view(n, last + 1))
    return torch.where(best == last, ignore, best)


def largest_column(counts: Tensor) -> Tensor:
    """Column of the largest count of every row, the first of equals, int64 (S,)."""
    # numpy promises the first of equal maxima, torch does not.
    return torch.from_numpy(counts.cpu().numpy().argmax(1)).to(counts.device)


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


@torch.no_grad()
def segments_on_canvas(
    model: Model,
    canvases: Sequence[Canvas],
    grid: tuple[int, int],
    iterations: int,
    device: str | torch.device = "cpu",
) -> list[ImageSegments]:
    """Segments of several images, whose canvases the network sees as one batch.

    Args:
        model: gives embeddings; in eval mode.
        canvases: of one size.
        grid: see :func:`image_segments`.
        iterations: likewise.
        device: where the model computes.
    """
    images = torch.stack([each.image for each in canvases])
    maps, size = model(images.to(device)), tuple(images.shape[-2:])
    return [
        image_segments(embedding, size, each.size, grid, iterations)
        for embedding, each in zip(maps, canvases, strict=True)
    ]
