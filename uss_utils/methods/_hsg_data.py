"""HSG's training data: two views of an image, region ids carried along.

Ke, Hwang, Guo, Wang, Yu, "Unsupervised Hierarchical Semantic Segmentation with
Multiview Cosegmentation and Clustering Transformers", CVPR 2022. Both views are
mirrored, scaled, padded, cropped and recoloured independently. Pixels are not matched:
what the views have in common is told by the region ids alone, and they may have nothing
in common.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from uss_utils import photometric, ranks
from uss_utils.datasets import SegmentationDataset
from uss_utils.datasets.transforms import IMAGENET_MEAN, normalise_rgb
from uss_utils.environment import generator as generator_of
from uss_utils.photometric import Change, recolour, recolour_fast

SIZE = 448  # pixels
SCALE = (0.5, 1.5)  # of the image's own size
PADDED = 255  # region id where there is no image
STRENGTHS = (0.4, 0.4, 0.4, 0.1)  # of brightness, contrast, saturation, hue
JITTER, GREY, MIRROR = 0.8, 0.2, 0.5  # probabilities

Batch = dict[str, Tensor]


class Geometry(NamedTuple):
    """What happens to the shape of n views, before their colours.

    Recorded draws are passed in like this: ``Geometry(torch.tensor([True]),
    torch.tensor([0.8], dtype=torch.float64), torch.tensor([[12, 0]]))``. In float32 a
    ratio such as 1.3 lies below itself, and 50 pixels would become 64 instead of 65.

    Attributes:
        flip: mirrored left-right, bool (n,).
        ratio: scale of the image's own size, float64 (n,).
        corner: top and left of the crop in the scaled and padded image, int64 (n, 2).
    """

    flip: Tensor
    ratio: Tensor
    corner: Tensor


def scaled_sizes(ratio: Tensor, height: int, width: int) -> Tensor:
    """Sizes after scaling, rounded down, at least one pixel, int64 (n, 2)."""
    own = torch.tensor([height, width], dtype=torch.float64)
    return (ratio.double()[:, None] * own).floor().long().clamp(min=1)


def draw_geometry(
    n: int,
    height: int,
    width: int,
    size: int,
    generator: torch.Generator,
    scale: tuple[float, float] = SCALE,
) -> Geometry:
    """Independent geometry for n views of images of one size.

    Args:
        n: number of views.
        height: of the images, in pixels.
        width: likewise.
        size: side of a view.
        generator: CPU generator.
        scale: range of the scale, uniform.

    Returns:
        As published, the last offset of a crop is never drawn.
    """
    flip = torch.rand(n, generator=generator) < MIRROR
    low, high = scale
    ratio = torch.rand(n, generator=generator).double() * (high - low) + low
    room = (scaled_sizes(ratio, height, width) - size).clamp(min=0)
    corner = torch.rand(n, 2, generator=generator).double() * room
    return Geometry(flip, ratio, corner.floor().long())


def draw_changes(n: int, generator: torch.Generator) -> list[Change]:
    """Jitter (p = 0.8) and grey (p = 0.2) of n views, independently."""
    options = (STRENGTHS, JITTER, GREY, generator)
    return [photometric.draw_change(*options) for _ in range(n)]


def cut_views(
    images: Tensor,
    regions: Tensor,
    geometry: Geometry,
    size: int,
    fill: Sequence[float] = IMAGENET_MEAN,
) -> tuple[Tensor, Tensor, Tensor]:
    """Mirror, scale, pad on the right and below, and crop, in one step.

    Images are scaled bilinearly without antialiasing, with half-pixel centres and the
    ratio of the rounded sizes; regions by nearest neighbour, the pixel at floor(i in /
    out).

    Args:
        images: of one size, floats of any unit, shape (n, 3, H, W).
        regions: ids, integers (n, H, W).
        geometry: drawn, or recorded.
        size: side s of a view.
        fill: colour of the padding, in the unit of the images.

    Returns:
        Images (n, 3, s, s), regions int64 (n, s, s), :data:`PADDED` where there is no
        image, and where there is one, bool (n, s, s).
    """
    height, width = images.shape[-2:]
    new = scaled_sizes(geometry.ratio, height, width)[..., None]
    place = geometry.corner[..., None] + torch.arange(size)  # (n, 2, s)
    inside = place < new
    own = torch.tensor([[height], [width]])
    nearest = (place * own // new).minimum(own - 1)
    # Where a pixel's centre lies in the image, from -1 to 1 (its borders).
    centre = ((place + 0.5) * 2 / new.double() - 1).to(images.dtype)
    flip = geometry.flip[:, None]
    rows, columns = nearest.unbind(1)
    columns = torch.where(flip, width - 1 - columns, columns)
    y, x = centre.unbind(1)
    x = torch.where(flip, -x, x)
    shape = (-1, size, size)
    grid = torch.stack([x[:, None, :].expand(shape), y[:, :, None].expand(shape)], -1)
    cut = F.grid_sample(images, grid, padding_mode="border", align_corners=False)
    valid = inside[:, 0, :, None] & inside[:, 1, None, :]
    colour = torch.tensor(fill, dtype=images.dtype)[:, None, None]
    number = torch.arange(len(images))[:, None, None]
    ids = regions[number, rows[:, :, None], columns[:, None, :]].long()
    return (
        torch.where(valid[:, None], cut, colour),
        torch.where(valid, ids, PADDED),
        valid,
    )


def two_views(
    image: np.ndarray | Tensor,
    regions: np.ndarray | Tensor,
    size: int,
    generator: torch.Generator,
    scale: tuple[float, float] = SCALE,
) -> tuple[Tensor, Tensor, Tensor]:
    """Two independent views of an image and of its region map.

    Geometry alone, with recorded draws: :func:`cut_views`. Then colours are rounded to
    8 bits, jittered and normalised; the padding's too, so it ends as another colour.

    Args:
        image: uint8 RGB, shape (H, W, 3).
        regions: ids of its regions, integers (H, W).
        size: side s of a view in pixels.
        generator: CPU generator; the views are a pure function of it.
        scale: range of the scale.

    Returns:
        Normalised views (2, 3, s, s), region ids int64 (2, s, s), and where a view
        shows the image, bool (2, s, s).

    Raises:
        ValueError: the two sizes differ.
    """
    # Pillow hands out arrays that cannot be written to: copy those.
    pixels, ids = (
        torch.from_numpy(np.require(part, requirements="CW"))
        for part in (image, regions)
    )
    _check_sizes("the image", pixels.shape, ids.shape)
    rgb = pixels.permute(2, 0, 1)[None].float().div_(255)
    drawn = draw_geometry(2, *ids.shape, size, generator, scale)
    both = (rgb.expand(2, -1, -1, -1), ids.expand(2, -1, -1))
    views, cut, valid = cut_views(*both, drawn, size)
    views = recolour(_eight_bits(views), draw_changes(2, generator))
    return normalise_rgb(views), cut, valid


def _eight_bits(rgb: Tensor) -> Tensor:
    return (rgb * 255).round_().div_(255)


def _check_sizes(what: str, image: Sequence[int], regions: Sequence[int]) -> None:
    if len(regions) != 2 or tuple(image[:2]) != tuple(regions):
        raise ValueError(
            f"sizes differ: {what} has shape {tuple(image)}, its region map "
            f"{tuple(regions)}; expected (H, W, 3) and (H, W). Make the regions anew, "
            "with the geometry of the images"
        )


class RegionedImages:
    """Images and their region maps, read one by one.

    Args:
        images: a data set, seen through its own transform, or uint8 arrays (H, W, 3).
        regions: integer arrays (H, W), or what has ``read(i)``, which gives one, as
            :class:`~uss_utils.region_files.RegionFiles` has.

    Raises:
        ValueError: no images, or the numbers of both differ.
    """

    def __init__(self, images: Any, regions: Any):
        if not len(images) or len(images) != len(regions):
            raise ValueError(
                f"{len(regions)} region maps for {len(images)} images; give one per "
                "image, and at least one"
            )
        self.images, self.regions = images, regions

    def __len__(self) -> int:
        return len(self.images)

    def read(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Pixels, uint8 (H, W, 3), and region ids, integers (H, W), of one image.

        Raises:
            ValueError: the two sizes differ.
        """
        stored = hasattr(self.regions, "read")
        ids = self.regions.read(index) if stored else self.regions[index]
        ids = np.asarray(ids)
        what = f"image {index}"
        if isinstance(self.images, SegmentationDataset):
            what = f"image {self.images.item_name(index)}"
            pixels = self.images.read_image(index)
            image = self.images.transform.apply_image(pixels)
        else:
            image = np.asarray(self.images[index])
        _check_sizes(what, image.shape, ids.shape)
        return image, ids


class RegionViews:
    """Pairs of views of images of any size, read when they are asked for.

    Args:
        images: see :class:`RegionedImages`.
        regions: likewise.
        size: side of a view in pixels.
        scale: range of the scale.
        threads: that read the images of a batch; they change nothing else.

    Raises:
        ValueError: see :class:`RegionedImages`.
    """

    def __init__(
        self,
        images: Any,
        regions: Any,
        size: int = SIZE,
        scale: tuple[float, float] = SCALE,
        threads: int = 4,
    ):
        self.source = RegionedImages(images, regions)
        self.size, self.scale, self.threads = size, scale, threads

    def __len__(self) -> int:
        return len(self.source)

    def draw(self, indices: Tensor, generator: torch.Generator) -> Batch:
        """One batch of pairs, a pure function of indices and generator.

        Args:
            indices: of the whole batch, int64, shape (B,).
            generator: CPU generator, the same in all processes.

        Returns:
            Of the b images of this process's share: ``views``, normalised,
            (2 b, 3, s, s); ``regions``, int64 (2 b, s, s); and ``valid``, where a view
            shows its image, bool (2 b, s, s). Views 2 i and 2 i + 1 belong to image i.

        Raises:
            ValueError: a region map does not fit its image.
        """
        seeds = torch.randint(2**62, (len(indices),), generator=generator).tolist()
        jobs = list(zip(indices.tolist(), map(generator_of, seeds), strict=True))
        jobs = jobs[ranks.share(len(jobs))]
        with ThreadPoolExecutor(max(1, min(self.threads, len(jobs)))) as pool:
            pairs = list(pool.map(lambda job: self._pair(*job), jobs))
        views, regions, valid = (torch.cat(part) for part in zip(*pairs, strict=True))
        return {"views": views, "regions": regions, "valid": valid}

    def _pair(
        self, index: int, generator: torch.Generator
    ) -> tuple[Tensor, Tensor, Tensor]:
        image, regions = self.source.read(index)
        return two_views(image, regions, self.size, generator, self.scale)


class RegionViewBatches:
    """Pairs of views of images of one size, all in memory, cut a batch at a time.

    The geometry is that of :class:`RegionViews` to the last digit; colours are changed
    by :func:`~uss_utils.photometric.recolour_fast`.

    Args:
        images: see :class:`RegionedImages`.
        regions: likewise.
        size: side of a view in pixels.
        scale: range of the scale.

    Raises:
        ValueError: see :class:`RegionedImages`, or sizes differ from image to image.
    """

    def __init__(
        self,
        images: Any,
        regions: Any,
        size: int = 96,
        scale: tuple[float, float] = SCALE,
    ):
        source = RegionedImages(images, regions)
        pairs = [source.read(i) for i in range(len(source))]
        sizes = sorted({ids.shape for _, ids in pairs})
        if len(sizes) > 1:
            raise ValueError(
                f"batches in memory need images of one size, got {sizes[:3]}; give the "
                "data set a transform, or use RegionViews"
            )
        self.images = torch.from_numpy(np.stack([image for image, _ in pairs]))
        ids = torch.from_numpy(np.stack([ids.astype(np.int64) for _, ids in pairs]))
        # Ids are read at random places: small ones stay in the cache.
        self.regions = ids.byte() if 0 <= ids.min() and ids.max() < 256 else ids
        self.size, self.scale = size, scale

    def __len__(self) -> int:
        return len(self.images)

    def draw(self, indices: Tensor, generator: torch.Generator) -> Batch:
        """As :meth:`RegionViews.draw`."""
        n, size = 2 * len(indices), self.regions.shape[1:]
        drawn = draw_geometry(n, *size, self.size, generator, self.scale)
        changes = draw_changes(n, generator)
        share = ranks.share(len(indices))
        rows = indices[share].repeat_interleave(2)
        own = slice(2 * share.start, 2 * share.stop)
        images = self.images[rows].permute(0, 3, 1, 2).float().div_(255)
        drawn = Geometry(*(part[own] for part in drawn))
        views, cut, valid = cut_views(images, self.regions[rows], drawn, self.size)
        views = recolour_fast(_eight_bits(views), changes[own])
        return {"views": normalise_rgb(views), "regions": cut, "valid": valid}
