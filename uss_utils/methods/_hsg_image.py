"""HSG's segments of a test image: an image on a canvas, k-means of its pixels.

Ke, Hwang, Guo, Wang, Yu, "Unsupervised Hierarchical Semantic Segmentation with
Multiview Cosegmentation and Clustering Transformers", CVPR 2022. Nothing that has the
size of the canvas is held but the rows that k-means groups.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from uss_utils.methods._hsg_kmeans import (
    EPS,
    coordinates,
    grid_labels,
    spherical_kmeans,
)
from uss_utils.methods._hsg_segments import dense_numbers
from uss_utils.upsampling import upsample_rows

BLOCK = 1 << 22  # numbers that are looked at together


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
            Images are scaled bilinearly without antialiasing; of labels the pixel at
            floor(i in / out) is taken, as where views are cut.
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
    if label is not None:
        # In integers: torch's own nearest neighbour rounds, one off in some sizes.
        rows, columns = (
            torch.arange(b) * a // b for a, b in zip(own, inner, strict=True)
        )
        label = label[rows[:, None], columns]
    return Canvas(laid, label, inner)


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
    step = max(1, BLOCK // len(embedding))
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
