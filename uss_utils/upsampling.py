"""From patches to pixels: bilinear upsampling as products with small matrices."""

import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from uss_utils.rows import as_float

CACHED = 1 << 21  # scores at pixel resolution that a CPU is given at once


def upsample(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Bilinear resizing with half-pixel centres (``align_corners=False``).

    Two products with small interpolation matrices: the same numbers as
    ``F.interpolate``, but several times faster on a CPU, backward above all.

    Args:
        x: any floats, shape (B, K, h, w).
        size: (H, W) in pixels.

    Returns:
        float32 (float64 stays), shape (B, K, H, W).
    """
    x = as_float(x)
    if tuple(x.shape[-2:]) == tuple(size):
        return x
    # Under autocast the products would round the weights to 8 bits.
    with torch.autocast(x.device.type, enabled=False):
        rows = _interpolation(x.shape[-2], size[0], x)
        columns = _interpolation(x.shape[-1], size[1], x)
        return rows @ (x @ columns.T)


def upsample_rows(
    x: Tensor, size: tuple[int, int], crop: tuple[int, int] | None = None
) -> Iterator[Tensor]:
    """:func:`upsample`, some rows at a time, so that the whole is never held.

    Args:
        x: shape (B, K, h, w).
        size: (H, W) in pixels.
        crop: only the (H', W') top left pixels; None: all.

    Returns:
        Consecutive rows, shape (B, K, ., W') each.
    """
    x, crop = as_float(x), crop or size
    with torch.autocast(x.device.type, enabled=False):
        rows = _interpolation(x.shape[-2], size[0], x)[: crop[0]]
        wide = x @ _interpolation(x.shape[-1], size[1], x)[: crop[1]].T
        at_once = max(1, CACHED // (x.shape[0] * x.shape[1] * crop[1]))
        for part in rows.split(at_once):
            yield part @ wide


def upsample_adjoint(x: Tensor, grid: tuple[int, int]) -> Tensor:
    """Weights of patches from weights of pixels: the transpose of :func:`upsample`.

    The sum of ``upsample(a, (H, W)) * x`` is that of ``a * upsample_adjoint(x, (h,
    w))``: a weighted sum over an upsampled map needs no upsampled map.

    Args:
        x: weights of pixels, any floats, shape (B, K, H, W).
        grid: (h, w) of the map.

    Returns:
        float32 (float64 stays), shape (B, K, h, w).
    """
    x = as_float(x)
    if tuple(x.shape[-2:]) == tuple(grid):
        return x
    with torch.autocast(x.device.type, enabled=False):
        rows = _interpolation(grid[0], x.shape[-2], x)
        columns = _interpolation(grid[1], x.shape[-1], x)
        return rows.T @ (x @ columns)


def _interpolation(source: int, target: int, like: Tensor) -> Tensor:
    """Weights of linear interpolation along one axis, shape (target, source)."""
    identity = torch.eye(source, device=like.device, dtype=like.dtype)[None]
    weights = F.interpolate(identity, size=target, mode="linear", align_corners=False)
    return weights[0].T.contiguous()


def in_parts(logits: Tensor, size: tuple[int, int]) -> list[slice]:
    """How a batch is cut so that its upsampled logits suit the device.

    What fits into a CPU's cache is done in half the time; a GPU wants it all.

    Args:
        logits: shape (B, K, h, w).
        size: (H, W) they are upsampled to.
    """
    at_once = len(logits)
    if logits.device.type == "cpu":
        at_once = max(1, CACHED // (logits.shape[1] * math.prod(size)))
    return [slice(i, i + at_once) for i in range(0, len(logits), max(1, at_once))]


def upsampled_norm(code: Tensor, size: tuple[int, int]) -> Tensor:
    """Norm of the upsampled code, shape (B, 1, H, W), from products of neighbours.

    Between four corners the code is sum_i w_i s_i, so its squared norm is
    sum_ij w_i w_j <s_i, s_j>: it needs the inner products of neighbouring patches and
    products of weights, but none of the D channels at pixel resolution.
    """
    precise = torch.float32 if code.device.type == "mps" else torch.float64
    code = code.to(precise)  # the sum cancels where neighbours point apart
    up, down = code[:, :, :-1], code[:, :, 1:]
    own = (code * code).sum(1)
    beside = (code[..., :-1] * code[..., 1:]).sum(1)
    below = (up * down).sum(1)
    across = (up[..., :-1] * down[..., 1:] + up[..., 1:] * down[..., :-1]).sum(1)
    rows, row_pairs = _squared_weights(code.shape[-2], size[0], code)
    columns, column_pairs = _squared_weights(code.shape[-1], size[1], code)
    same_row = own @ columns.T + 2 * beside @ column_pairs.T
    next_row = below @ columns.T + across @ column_pairs.T
    squared = rows @ same_row + 2 * row_pairs @ next_row
    return squared.clamp_min(0).sqrt()[:, None].float()


def _squared_weights(source: int, target: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """Per output: w_i^2 (target, source) and w_i w_{i+1} (target, source - 1)."""
    weights = _interpolation(source, target, like)
    return weights.square(), weights[:, :-1] * weights[:, 1:]
