"""Two augmented views of an image, and which patches of one lie where in the other.

Everything is batched and drawn from a generator; boxes and mirrorings are kept, so that
points of the scene can be followed from view to view.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from uss_utils.datasets.transforms import normalise_rgb

GREY = (0.299, 0.587, 0.114)  # ITU-R BT.601 luma: the axis that hue turns around
SCALE = (0.2, 1.0)  # shares of the area that random resized crops have


@dataclass
class View:
    """One augmented crop of each image of a batch.

    Attributes:
        image: ImageNet-normalised, shape (B, 3, v, v).
        box: where it was cut, (B, 4) as left, top, width, height in source pixels.
        flip: whether it is mirrored left-right and top-bottom, bool, shape (B, 2).
    """

    image: Tensor
    box: Tensor
    flip: Tensor


def _uniform(shape: tuple[int, ...], low: float, high: float, generator) -> Tensor:
    return torch.rand(shape, generator=generator) * (high - low) + low


def draw_boxes(
    n: int,
    size: tuple[int, int],
    window: int,
    scale: tuple[float, float],
    generator: torch.Generator,
) -> tuple[Tensor, Tensor]:
    """Two square boxes per image that lie in one common random window.

    Args:
        n: number of images.
        size: height and width of the images, in pixels.
        window: side of the common window; cut down to the image where it is larger.
        scale: range of a box's share of the window's area.
        generator: source of the draws.

    Returns:
        Two tensors (n, 4): left, top, width, height, in pixels.
    """
    height, width = size
    window = min(window, height, width)
    corner = torch.rand(n, 2, generator=generator)
    corner = corner * torch.tensor([width - window, height - window])
    boxes = []
    for _ in range(2):
        side = window * _uniform((n, 1), *scale, generator).sqrt()
        inner = torch.rand(n, 2, generator=generator) * (window - side)
        boxes.append(torch.cat([corner + inner, side, side], dim=1))
    return boxes[0], boxes[1]


def draw_resized_crops(
    sizes: Tensor,
    generator: torch.Generator,
    *,
    scale: tuple[float, float] = SCALE,
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
) -> Tensor:
    """A box of random area, shape and place per image, as random resized crops use.

    Ten candidates are drawn per image and the first that fits is taken; where none
    does, the largest central box whose shape is in range.

    Args:
        sizes: height and width of every image in pixels, (B, 2).
        generator: source of the draws.
        scale: range of a box's share of the image's area.
        ratio: range of width / height, uniform in its logarithm.

    Returns:
        int64, shape (B, 4): top, left, height, width in pixels.
    """
    n, tries = len(sizes), 10
    height, width = (side[:, None] for side in sizes.double().T)
    area = height * width * _uniform((n, tries), *scale, generator)
    shape = _uniform((n, tries), *map(math.log, ratio), generator).exp()
    w, h = ((area * x).sqrt().round() for x in (shape, 1 / shape))
    fits = (w > 0) & (w <= width) & (h > 0) & (h <= height)
    # The largest box comes last, so that argmax falls back on it.
    w = torch.cat([w, torch.minimum(width, (height * ratio[1]).round())], 1)
    h = torch.cat([h, torch.minimum(height, (width / ratio[0]).round())], 1)
    fits = torch.cat([fits, torch.ones(n, 1, dtype=torch.bool)], 1)
    chosen = fits.int().argmax(1, keepdim=True)
    h, w = h.gather(1, chosen), w.gather(1, chosen)
    room = torch.cat([height - h, width - w], 1)
    corner = (torch.rand(n, 2, generator=generator) * (room + 1)).floor()
    corner = torch.where(chosen == tries, (room / 2).floor(), corner.minimum(room))
    return torch.cat([corner, h, w], 1).long()


def crop(images: Tensor, box: Tensor, flip: Tensor, size: int) -> Tensor:
    """Cut boxes out of images and resize them bilinearly.

    Args:
        images: float, shape (B, 3, H, W).
        box: (B, 4) as left, top, width, height in pixels.
        flip: bool, shape (B, 2): mirror left-right, top-bottom.
        size: side of the result in pixels.

    Returns:
        Shape (B, 3, size, size).
    """
    height, width = images.shape[-2:]
    centre = (torch.arange(size) + 0.5) / size
    across, down = _mirrored(centre, flip)
    x = (box[:, :1] + box[:, 2:3] * across) / width * 2 - 1
    y = (box[:, 1:2] + box[:, 3:4] * down) / height * 2 - 1
    grid = torch.stack(
        [x[:, None, :].expand(-1, size, -1), y[:, :, None].expand(-1, -1, size)], -1
    )
    return F.grid_sample(
        images, grid.to(images), padding_mode="border", align_corners=False
    )


def _mirrored(centre: Tensor, flip: Tensor) -> Tensor:
    """Places (v,) along each axis of mirrored views, shape (2, B, v)."""
    flip = flip.T[..., None]
    return torch.where(flip, 1 - centre, centre.expand(2, flip.shape[1], -1))


def hue_turn(angle: Tensor) -> Tensor:
    """Matrices (n, 3, 3) that turn colours about the axis of greys.

    Args:
        angle: radians, shape (n, 1, 1).
    """
    # k is the cross-product matrix of (1, 1, 1) / sqrt 3.
    k = torch.tensor([[0.0, -1, 1], [1, 0, -1], [-1, 1, 0]]) / math.sqrt(3)
    return torch.eye(3) + angle.sin() * k + (1 - angle.cos()) * (k @ k)


def colour_matrices(n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Random photometric change per image, as one affine map of RGB in [0, 1].

    Hue turns by up to 90 degrees (p = 0.8), saturation scales by 0.4-1.4, 15 % of the
    images turn grey, each channel gains up to 15 %, contrast scales by 0.6-1.4 and
    brightness moves by up to 0.15.

    Returns:
        Matrices (n, 3, 3) and offsets (n, 3): ``rgb -> matrix @ rgb + offset``.
    """
    grey = torch.tensor(GREY)
    to_grey = grey.expand(3, 3)
    angle = _uniform((n, 1, 1), -math.pi / 2, math.pi / 2, generator)
    angle = angle * (torch.rand(n, 1, 1, generator=generator) < 0.8)
    saturation = _uniform((n, 1, 1), 0.4, 1.4, generator)
    saturation = saturation * (torch.rand(n, 1, 1, generator=generator) >= 0.15)
    chroma = hue_turn(angle) @ (torch.eye(3) - to_grey)
    gain = _uniform((n, 3, 1), 0.85, 1.15, generator)
    contrast = _uniform((n, 1, 1), 0.6, 1.4, generator)
    matrix = contrast * gain * (to_grey + saturation * chroma)
    brightness = _uniform((n, 1), -0.15, 0.15, generator)
    offset = 0.5 * (1 - contrast[:, 0]) + brightness
    return matrix, offset.expand(n, 3)


def photometric(images: Tensor, generator: torch.Generator) -> Tensor:
    """Colour change, blur (p = 0.3) and sensor noise, per image.

    Args:
        images: RGB in [0, 1], shape (B, 3, H, W).
        generator: source of the draws.

    Returns:
        RGB in [0, 1], same shape.
    """
    n = len(images)
    matrix, offset = (t.to(images) for t in colour_matrices(n, generator))
    out = torch.einsum("bij,bjhw->bihw", matrix, images) + offset[..., None, None]
    kernel = torch.tensor([1.0, 2.0, 1.0]).to(images) / 4
    kernel = (kernel[:, None] * kernel).expand(3, 1, 3, 3)
    blurred = F.conv2d(F.pad(out, (1, 1, 1, 1), mode="replicate"), kernel, groups=3)
    blur = torch.rand(n, 1, 1, 1, generator=generator) < 0.3
    out = torch.where(blur.to(images.device), blurred, out)
    noise = torch.randn(out.shape, generator=generator).to(images)
    level = _uniform((n, 1, 1, 1), 0.0, 0.03, generator).to(images)
    return (out + level * noise).clamp(0, 1)


def two_views(
    images: Tensor,
    *,
    window: int,
    view: int,
    scale: tuple[float, float],
    generator: torch.Generator,
    upright: Tensor | None = None,
) -> tuple[View, View]:
    """Two views per image: own crop, own mirroring, own colours.

    What both views have in common is what is learned. Where a patch lies left or right
    is not, as mirroring hides it; an image without an up (one taken from above) is
    mirrored top-bottom as well, or height would be all that its features tell.

    Args:
        images: uint8 RGB, shape (B, H, W, 3).
        window: side of the common window in pixels.
        view: side of a view in pixels.
        scale: range of the share of the window's area that a view covers.
        generator: source of the draws.
        upright: which images have an up, bool, shape (B,); None: all.
    """
    source = images.permute(0, 3, 1, 2).float() / 255
    boxes = draw_boxes(len(images), images.shape[1:3], window, scale, generator)
    views = []
    for box in boxes:
        flip = torch.rand(len(images), 2, generator=generator) < 0.5
        if upright is None:
            flip[:, 1] = False
        else:
            flip[:, 1] &= ~upright
        pixels = photometric(crop(source, box, flip, view), generator)
        views.append(View(normalise_rgb(pixels), box, flip))
    return views[0], views[1]


def matched_points(first: View, second: View, grid: int) -> tuple[Tensor, Tensor]:
    """Where the patch centres of the first view lie in the second.

    Args:
        first: view whose (grid x grid) patches are looked up.
        second: view they are looked up in.
        grid: patches per side.

    Returns:
        Points in the second view as (x, y) in [-1, 1], shape (B, grid, grid, 2), and
        whether they fall inside it, bool, shape (B, grid, grid).
    """
    centre = (torch.arange(grid) + 0.5) / grid
    across, down = _mirrored(centre, first.flip)
    x = first.box[:, :1] + first.box[:, 2:3] * across
    y = first.box[:, 1:2] + first.box[:, 3:4] * down
    u = (x - second.box[:, :1]) / second.box[:, 2:3] * 2 - 1
    u = torch.where(second.flip[:, :1], -u, u)
    v = (y - second.box[:, 1:2]) / second.box[:, 3:4] * 2 - 1
    v = torch.where(second.flip[:, 1:], -v, v)
    points = torch.stack(
        [u[:, None, :].expand(-1, grid, -1), v[:, :, None].expand(-1, -1, grid)], -1
    )
    return points, (points.abs() <= 1).all(-1)
