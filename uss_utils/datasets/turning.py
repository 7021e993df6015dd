"""Turning and zooming an image together with its label: what linear probes train on.

MaskContrast trains its linear classifier on images that are mirrored (half of them),
turned by up to 5 degrees and zoomed by 0.75 to 1.25 about their centre (Van Gansbeke
et al., ICCV 2021, linear evaluation, as its released code does it).
"""

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from uss_utils.datasets.labels import IGNORE

DEGREES = (-5.0, 5.0)
SCALE = (0.75, 1.25)


def turning_matrix(size: tuple[int, int], degrees: float, scale: float) -> np.ndarray:
    """Affine map that turns and zooms about the centre (W / 2, H / 2).

    Args:
        size: (H, W) in pixels.
        degrees: counter-clockwise as seen on the screen.
        scale: above 1 enlarges.

    Returns:
        float64, shape (2, 3): pixel (x, y, 1) of the input to (x, y) of the output,
        pixel centres at whole numbers.

    Raises:
        ValueError: the scale is not positive.
    """
    if not scale > 0:
        raise ValueError(f"scale {scale} must be above 0; 1 keeps the size")
    a = scale * math.cos(math.radians(degrees))
    b = scale * math.sin(math.radians(degrees))
    x, y = size[1] / 2, size[0] / 2
    return np.array([[a, b, (1 - a) * x - b * y], [-b, a, b * x + (1 - a) * y]])


def turn(
    image: np.ndarray,
    label: np.ndarray | None,
    degrees: float,
    scale: float,
    *,
    fill_label: int = IGNORE,
) -> tuple[np.ndarray, np.ndarray | None]:
    """Turn and zoom an image (cubic, a = -0.75) and its label (nearest).

    Args:
        image: uint8, shape (H, W, C); black comes in from outside.
        label: integers, shape (H, W), or None.
        degrees: see :func:`turning_matrix`.
        scale: see :func:`turning_matrix`.
        fill_label: label of what comes in from outside. Ignored by default; the
            released code gives 0, so that a classifier learns black corners as
            background.

    Returns:
        Both, of the same shapes and types.

    Raises:
        ValueError: image and label differ in size.
    """
    size = image.shape[:2]
    if label is not None and label.shape != size:
        raise ValueError(
            f"label of {label.shape[0]}x{label.shape[1]} pixels for an image of "
            f"{size[0]}x{size[1]}; both must have the same size"
        )
    x, y = _sources(size, degrees, scale)
    # Normalised so that -1 and 1 are the outer edges of the border pixels.
    grid = torch.stack([(2 * x + 1) / size[1] - 1, (2 * y + 1) / size[0] - 1], -1)
    channels = torch.tensor(image).movedim(-1, 0)[None].float()
    turned = F.grid_sample(
        channels, grid[None].float(), mode="bicubic", align_corners=False
    )
    turned = turned[0].round_().clamp_(0, 255).to(torch.uint8).movedim(0, -1).numpy()
    if label is None:
        return turned, None
    return turned, _gathered(label, x.numpy(), y.numpy(), fill_label)


def _sources(
    size: tuple[int, int], degrees: float, scale: float
) -> tuple[Tensor, Tensor]:
    """Where in the input every pixel of the output comes from: x and y, (H, W)."""
    matrix = turning_matrix(size, degrees, scale)
    inverse = np.linalg.inv(matrix[:, :2])
    offset = -inverse @ matrix[:, 2]
    y, x = torch.meshgrid(
        *(torch.arange(n, dtype=torch.float64) for n in size), indexing="ij"
    )
    return tuple(
        float(row[0]) * x + float(row[1]) * y + float(shift)
        for row, shift in zip(inverse, offset, strict=True)
    )


def _gathered(label: np.ndarray, x: np.ndarray, y: np.ndarray, fill: int) -> np.ndarray:
    """Label at the pixels nearest to the given places; ``fill`` outside."""
    rows, columns = (np.floor(place + 0.5).astype(np.int64) for place in (y, x))
    height, width = label.shape
    inside = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
    found = label[rows.clip(0, height - 1), columns.clip(0, width - 1)]
    return np.where(inside, found, np.asarray(fill, dtype=label.dtype))


def random_turn(
    image: np.ndarray,
    label: np.ndarray | None,
    generator: torch.Generator,
    *,
    degrees: tuple[float, float] = DEGREES,
    scale: tuple[float, float] = SCALE,
    mirror: float = 0.5,
    fill_label: int = IGNORE,
) -> tuple[np.ndarray, np.ndarray | None]:
    """Mirror left-right, then turn and zoom, by drawn amounts.

    Args:
        image: uint8, shape (H, W, C).
        label: integers, shape (H, W), or None.
        generator: CPU generator; the same state gives the same view.
        degrees: range of the turn.
        scale: range of the zoom.
        mirror: probability of mirroring.
        fill_label: see :func:`turn`.

    Returns:
        Both, of the same shapes and types.
    """
    chance, where, zoom = torch.rand(3, generator=generator).tolist()
    if chance < mirror:
        image = image[:, ::-1].copy()
        label = label if label is None else label[:, ::-1]
    angle = degrees[0] + where * (degrees[1] - degrees[0])
    factor = scale[0] + zoom * (scale[1] - scale[0])
    return turn(image, label, angle, factor, fill_label=fill_label)
