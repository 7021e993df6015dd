"""Random parts of a data set's features and labels: patches, pixels."""

import torch
import torch.nn.functional as F
from torch import Tensor

from uss_utils.batches import in_order
from uss_utils.datasets.base import SegmentationDataset

TILE = 8


def sample_tokens(feat: Tensor, n: int, draw: torch.Generator) -> Tensor:
    """Random patches of all images.

    Args:
        feat: shape (N, C, h, w).
        n: how many at most.
        draw: generator.

    Returns:
        Rows, shape (min(n, N h w), C).
    """
    images, _, h, w = feat.shape
    chosen = torch.randperm(images * h * w, generator=draw)[:n]
    place = chosen % (h * w)
    return feat[chosen // (h * w), :, place // w, place % w]


def sample_pixels(
    code: Tensor, label: Tensor, per_image: int, draw: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Upsampled codes at random pixels, and the classes there.

    A linear probe trained on all pixels of the upsampled code sees much the same vector
    at every pixel of a patch; a random part of the pixels gives the same probe for a
    fraction of the work.

    Args:
        code: shape (N, D, h, w).
        label: integers (N, H, W), ignore = -1.
        per_image: pixels drawn per image; ignored ones among them are dropped.
        draw: generator.

    Returns:
        Codes (n, D) and classes, int64 (n,).
    """
    n, height, width = label.shape
    y = torch.randint(height, (n, per_image), generator=draw)
    x = torch.randint(width, (n, per_image), generator=draw)
    classes = label[torch.arange(n)[:, None], y, x].long()
    # Pixel centres in the coordinates of bilinear upsampling with half-pixel centres.
    place = torch.stack([(2 * x + 1) / width - 1, (2 * y + 1) / height - 1], -1)
    found = F.grid_sample(
        code,
        place[:, None].to(code),
        mode="bilinear",
        padding_mode="border",
        align_corners=False,
    )
    rows = found[:, :, 0].transpose(1, 2)
    valid = classes >= 0
    return rows[valid.to(rows.device)], classes[valid]


def labels(dataset: SegmentationDataset, batch_size: int = 32) -> Tensor:
    """All labels of a set, int16 (N, H, W): a quarter of the memory of int64."""
    parts = in_order(dataset.labels, len(dataset), batch_size)
    return torch.cat([label.to(torch.int16) for _, label in parts])


def tiles(
    rows: Tensor, classes: Tensor, draw: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Shuffled rows as small square maps: convolutions are twice as fast on those.

    Args:
        rows: shape (n, D).
        classes: int64 (n,).
        draw: generator of the order.

    Returns:
        Codes (t, D, 8, 8) and labels (t, 8, 8); the last map is filled up with ignored
        pixels.
    """
    order = torch.randperm(len(rows), generator=draw)
    missing = -len(rows) % TILE**2
    rows = F.pad(rows[order.to(rows.device)], (0, 0, 0, missing))
    classes = F.pad(classes[order], (0, missing), value=-1)
    codes = rows.view(-1, TILE, TILE, rows.shape[1]).permute(0, 3, 1, 2)
    return codes.contiguous(), classes.view(-1, TILE, TILE)
