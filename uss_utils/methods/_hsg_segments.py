"""HSG's segments: pixels of one view grouped by k-means, cut along its regions.

Ke, Hwang, Guo, Wang, Yu, Unsupervised Hierarchical Semantic Segmentation with Multiview
Cosegmentation and Clustering Transformers, CVPR 2022, section 3.1. Segments of the
views of an image are the nodes that its clustering transformers group.
"""

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from uss_utils import ranks
from uss_utils.datasets.transforms import floor_indices
from uss_utils.methods._hsg_kmeans import (
    EPS,
    coordinates,
    grid_labels,
    pixel_features,
    spherical_kmeans,
)
from uss_utils.rows import as_float

__all__ = [
    "EPS",
    "Nodes",
    "Segments",
    "coordinates",
    "dense_numbers",
    "grid_labels",
    "image_index",
    "nodes_of",
    "pixel_features",
    "segment_means",
    "segment_nodes",
    "segment_prototypes",
    "segment_views",
    "spherical_kmeans",
]

# -------------------------------------------------------------------------- segments


def dense_numbers(*columns: Tensor) -> Tensor:
    """Numbers 0.. of the tuples that integer columns form, in lexicographic order.

    Args:
        columns: int64, all of one shape, any values.

    Returns:
        int64, of that shape; every number up to the largest occurs.
    """
    key = torch.zeros_like(columns[0])
    for column in columns:
        values, rank = torch.unique(column, return_inverse=True)
        # Ranks stay far from 2^63, whatever the ids are.
        key = torch.unique(key * len(values) + rank, return_inverse=True)[1]
    return key


def image_index(ids: Tensor) -> Tensor:
    """Numbers 0.. of images, in order of first appearance.

    Args:
        ids: any id of the image of each view, int64 (N,).

    Returns:
        int64 (N,).
    """
    _, rank = torch.unique(ids, return_inverse=True)
    place = torch.arange(len(ids), device=ids.device)
    first = torch.full_like(ids, len(ids)).scatter_reduce_(0, rank, place, "amin")
    return torch.unique(first[rank], return_inverse=True)[1]


def segment_prototypes(rows: Tensor, labels: Tensor, n: int) -> Tensor:
    """Direction of the sum of each label's rows, differentiable.

    Args:
        rows: shape (P, C).
        labels: 0..n-1, int64 (P,).
        n: labels in all.

    Returns:
        Unit rows, shape (n, C); zero for a label that no row has.
    """
    sums = rows.new_zeros(n, rows.shape[1]).index_add(0, labels, rows)
    return F.normalize(sums, dim=1, eps=EPS)


def segment_means(rows: Tensor, labels: Tensor, n: int) -> Tensor:
    """Mean of each label's rows, differentiable; as :func:`segment_prototypes`."""
    sums = rows.new_zeros(n, rows.shape[1]).index_add(0, labels, rows)
    return sums / torch.bincount(labels, minlength=n).clamp_min(1)[:, None]


@dataclass(frozen=True, eq=False)
class Segments:
    """The segments of a batch of views, and the pixels that they are made of.

    Pixels are the valid ones, views in order, row by row; segments are numbered by
    view, cluster, region.

    Attributes:
        pixels: unit embeddings, differentiable, shape (P, C).
        pixel_segment: segment of each pixel, 0..S-1, int64 (P,).
        pixel_view: view of each pixel, int64 (P,).
        pixel_region: region of each pixel, int64 (P,).
        pixel_place: place of each pixel in its flattened map, int64 (P,).
        segment_view: view of each segment, int64 (S,).
        segment_region: region of each segment, int64 (S,).
        prototypes: unit rows, differentiable, shape (S, C).
        shape: (N, H, W) of the maps.
    """

    pixels: Tensor
    pixel_segment: Tensor
    pixel_view: Tensor
    pixel_region: Tensor
    pixel_place: Tensor
    segment_view: Tensor
    segment_region: Tensor
    prototypes: Tensor
    shape: tuple[int, int, int]

    def maps(self, values: Tensor | None = None, fill: int = -1) -> Tensor:
        """Maps of a value per segment (S,), or of the segments' numbers.

        Returns:
            Shape (N, H, W), ``fill`` where no pixel is valid.
        """
        if values is None:
            values = torch.arange(len(self.prototypes), device=self.pixels.device)
        n, height, width = self.shape
        maps = values.new_full((n, height * width), fill)
        maps[self.pixel_view, self.pixel_place] = values[self.pixel_segment]
        return maps.view(self.shape)

    def gathered(self) -> "Segments":
        """Segments of all processes, numbered through; pixels stay this one's."""
        if ranks.world_size() == 1:
            return self
        rank = ranks.rank()
        views = ranks.counts(self.shape[0])
        first_view = sum(views[:rank])
        first = sum(ranks.counts(len(self.prototypes))[:rank])
        return replace(
            self,
            pixel_segment=self.pixel_segment + first,
            pixel_view=self.pixel_view + first_view,
            segment_view=ranks.gather_rows(self.segment_view + first_view),
            segment_region=ranks.gather_rows(self.segment_region),
            prototypes=ranks.gather_rows(self.prototypes),
            shape=(sum(views), *self.shape[1:]),
        )

    def positions(self, positions: Tensor) -> Tensor:
        """Mean of a map (C, h, w) over every segment's pixels, shape (S, C)."""
        if list(positions.shape[1:]) != list(self.shape[1:]):
            raise ValueError(
                f"the position map has shape {tuple(positions.shape)}, expected (C, "
                f"{self.shape[1]}, {self.shape[2]}), the size of the embedding map"
            )
        rows = positions.flatten(1).T.index_select(0, self.pixel_place)
        return segment_means(as_float(rows), self.pixel_segment, len(self.prototypes))


def segment_views(
    emb: Tensor,
    regions: Tensor,
    valid: Tensor,
    grid: tuple[int, int] = (4, 4),
    iterations: int = 15,
) -> Segments:
    """Cut every view into the pieces that its clusters and its regions have in common.

    Args:
        emb: embeddings, not normalised, shape (N, C, h, w).
        regions: ids of regions, integers, shape (N, H, W); of another size than the
            embeddings they are brought to theirs by nearest neighbour.
        valid: pixels that are no padding, bool, shape (N, H, W).
        grid: cells from which k-means starts; (1, 1) leaves the regions as they are.
        iterations: of :func:`spherical_kmeans`.

    Raises:
        ValueError: shapes that do not fit, a grid without cells, or fewer than 0
            iterations.
    """
    _check_maps(emb, regions, valid)
    n, _, *size = emb.shape
    regions, valid = (_shrunk(maps, size) for maps in (regions.long(), valid))
    e, joint = pixel_features(emb)
    start = dense_numbers(grid_labels(*size, grid)).flatten().to(emb.device)
    k = int(start.max()) + 1
    if k == 1:  # nothing to find
        clusters = start.expand(n, -1)
    else:
        inside = valid.flatten(1)
        rows = joint.flatten(1, 2)
        clusters = spherical_kmeans(rows, start, k, iterations, valid=inside)
    view, place = valid.flatten(1).nonzero(as_tuple=True)
    region = regions.flatten(1)[view, place]
    segment = dense_numbers(view, clusters[view, place], region)
    count = int(segment.max()) + 1 if len(segment) else 0
    # Its gradient adds rows; that of a bool index would sort them first.
    pixels = e.flatten(0, 2).index_select(0, view * (size[0] * size[1]) + place)
    return Segments(
        pixels,
        segment,
        view,
        region,
        place,
        view.new_zeros(count).scatter_(0, segment, view),
        region.new_zeros(count).scatter_(0, segment, region),
        segment_prototypes(pixels, segment, count),
        (n, *size),
    )


def _shrunk(maps: Tensor, size: list[int]) -> Tensor:
    """Maps (N, H, W) at another size, nearest neighbour."""
    if list(maps.shape[1:]) == size:
        return maps
    rows, columns = (
        torch.from_numpy(floor_indices(a, b).copy()).to(maps.device)
        for a, b in zip(maps.shape[1:], size, strict=True)
    )
    return maps[:, rows[:, None], columns]


def _check_maps(emb: Tensor, regions: Tensor, valid: Tensor) -> None:
    if emb.dim() != 4 or regions.dim() != 3 or len(regions) != len(emb):
        raise ValueError(
            f"embeddings {tuple(emb.shape)} and regions {tuple(regions.shape)} do not "
            "fit; expected (N, C, h, w) and (N, H, W)"
        )
    if valid.shape != regions.shape or valid.dtype != torch.bool:
        raise ValueError(
            f"valid has to be bool {tuple(regions.shape)} like the regions, got "
            f"{valid.dtype} {tuple(valid.shape)}"
        )
    if regions.is_floating_point() or regions.dtype == torch.bool:
        raise ValueError(f"regions have to be integer ids, got {regions.dtype}")


# ----------------------------------------------------------------------------- nodes


@dataclass(frozen=True, eq=False)
class Nodes:
    """The segments of every image, those of all its views, as slots of a graph.

    Attributes:
        x: prototypes, differentiable, zero where padded, shape (B, C, M).
        padding: slots without a segment, bool (B, M).
        view: view of each node, -1 where padded, int64 (B, M).
        region: region of each node, -1 where padded, int64 (B, M).
        position: mean position embedding of a node's pixels, differentiable, zero where
            padded or none are given, shape (B, C, M).
        slot_of_segment: slot of each segment in its image, int64 (S,).
        image_of_segment: row b of each segment, int64 (S,).
    """

    x: Tensor
    padding: Tensor
    view: Tensor
    region: Tensor
    position: Tensor
    slot_of_segment: Tensor
    image_of_segment: Tensor

    def of_segments(self, values: Tensor) -> Tensor:
        """What the nodes (B, M, ...) hold, segment by segment, shape (S, ...)."""
        return values[self.image_of_segment, self.slot_of_segment]


def segment_nodes(
    segments: Segments,
    image_of_view: Tensor,
    positions: Tensor | None = None,
    slots: int | None = None,
) -> Nodes:
    """Gather the segments of each image, in their order, padded to a common number.

    Args:
        segments: of all views.
        image_of_view: image of each view, int64 (N,), any ids; row b of the nodes is
            the b-th image to appear (:func:`image_index`).
        positions: position embedding map, the same for every view, shape (C, h, w).
        slots: M; None: the largest number of segments of an image, at least 1.

    Raises:
        ValueError: shapes that do not fit, or an image with more segments than slots.
    """
    position = None if positions is None else segments.positions(positions)
    return nodes_of(segments, image_of_view, position, slots)


def nodes_of(
    segments: Segments,
    image_of_view: Tensor,
    position: Tensor | None = None,
    slots: int | None = None,
) -> Nodes:
    """:func:`segment_nodes` of given positions of the segments, shape (S, C)."""
    n = segments.shape[0]
    if tuple(image_of_view.shape) != (n,):
        raise ValueError(
            f"image_of_view has shape {tuple(image_of_view.shape)}, expected ({n},), "
            "one image per view"
        )
    index = image_index(image_of_view)
    image = index[segments.segment_view]
    size = torch.bincount(image, minlength=int(index.max()) + 1)
    order = image.argsort(stable=True)
    rank = torch.arange(len(image), device=image.device)
    slot = torch.empty_like(rank)
    slot[order] = rank - (size.cumsum(0) - size)[image[order]]
    largest = int(size.max())
    if slots is not None and largest > slots:
        raise ValueError(
            f"an image has {largest} segments but only {slots} slots; give slots=None, "
            "a coarser grid, or fewer regions"
        )
    spread = _Spread(
        image, slot, len(size), max(1, largest if slots is None else slots)
    )
    if position is None:
        position = torch.zeros_like(segments.prototypes)
    return Nodes(
        spread.rows(segments.prototypes),
        spread.values(torch.zeros_like(image, dtype=torch.bool), True),
        spread.values(segments.segment_view, -1),
        spread.values(segments.segment_region, -1),
        spread.rows(position),
        slot,
        image,
    )


@dataclass(frozen=True, eq=False)
class _Spread:
    """Puts segments into the slots of their images."""

    image: Tensor
    slot: Tensor
    images: int
    slots: int

    def values(self, values: Tensor, fill: int | bool) -> Tensor:
        """(S,) to (B, M)."""
        table = values.new_full((self.images, self.slots), fill)
        table[self.image, self.slot] = values
        return table

    def rows(self, rows: Tensor) -> Tensor:
        """(S, C) to (B, C, M), zero where padded."""
        table = rows.new_zeros(self.images * self.slots, rows.shape[1])
        place = self.image * self.slots + self.slot
        table = table.index_copy(0, place, rows)
        return table.view(self.images, self.slots, -1).transpose(1, 2)
