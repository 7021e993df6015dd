"""Images, labels and features as RGB arrays to look at."""

from typing import Any

import matplotlib
import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from uss_utils.datasets.transforms import denormalise

IGNORE_GREY = (128, 128, 128)


def to_numpy(value: Any) -> np.ndarray:
    """A tensor on any device, a list or a PIL image as array."""
    return (
        value.detach().cpu().numpy() if isinstance(value, Tensor) else np.asarray(value)
    )


def default_palette(n: int) -> np.ndarray:
    """Colours of clusters without a class: uint8, shape (n, 3), repeating after 20."""
    colours = matplotlib.colormaps["tab20"](np.arange(n) % 20)[:, :3]
    return np.rint(colours * 255).astype(np.uint8)


def colourise(label: Any, palette: Any) -> np.ndarray:
    """Colours of classes.

    Args:
        label: integer classes, shape (..., H, W); -1 (ignore) becomes grey.
        palette: uint8, shape (K, 3).

    Returns:
        uint8 RGB, shape (..., H, W, 3).

    Raises:
        ValueError: a class has no colour, or the labels are no integers.
    """
    label, palette = to_numpy(label), to_numpy(palette)
    if label.dtype.kind not in "iub":
        raise ValueError(f"labels must be integers, got {label.dtype}")
    label = label.astype(np.int64)
    if label.size and (label.max() >= len(palette) or label.min() < -1):
        raise ValueError(
            f"labels run from {label.min()} to {label.max()}, but the palette has "
            f"{len(palette)} colours (labels 0 to {len(palette) - 1}, and -1 = ignore)"
        )
    # Index -1 is the last row: grey stands there.
    return np.concatenate([palette, [IGNORE_GREY]]).astype(np.uint8)[label]


def to_rgb(image: Any) -> np.ndarray:
    """Any image of this package as RGB bytes.

    Args:
        image: normalised float (3, H, W); uint8 (H, W, 3) or (3, H, W); float in
            [0, 1] (H, W, 3); a PIL image.

    Returns:
        uint8, shape (H, W, 3).

    Raises:
        ValueError: another shape.
    """
    array = to_numpy(image)
    if array.ndim != 3 or 3 not in (array.shape[0], array.shape[-1]):
        raise ValueError(
            f"expected an image (3, H, W) or (H, W, 3), got shape {array.shape}"
        )
    channels_first = array.shape[-1] != 3
    if channels_first and array.dtype.kind == "f":
        array = denormalise(torch.from_numpy(array).float()).numpy()
    if channels_first:
        array = np.moveaxis(array, 0, -1)
    if array.dtype.kind == "f":
        array = np.rint(np.clip(array, 0, 1) * 255)
    return array.astype(np.uint8)


def overlay(image: Any, label: Any, palette: Any, alpha: float = 0.5) -> np.ndarray:
    """Classes laid over an image; ignored pixels show the image alone.

    Args:
        image: as in :func:`to_rgb`, (H, W) pixels.
        label: int, shape (H, W).
        palette: uint8, shape (K, 3).
        alpha: weight of the colours, 0 to 1.

    Returns:
        uint8 RGB, shape (H, W, 3).

    Raises:
        ValueError: image and label differ in size, or a class has no colour.
    """
    rgb, label = to_rgb(image), to_numpy(label)
    if rgb.shape[:2] != label.shape:
        raise ValueError(f"image is {rgb.shape[:2]} pixels, label {label.shape}")
    weight = np.where(label == -1, 0.0, alpha)[..., None]
    mixed = (1 - weight) * rgb + weight * colourise(label, palette)
    return np.rint(mixed).astype(np.uint8)


def pca_rgb(feat: Tensor, like: np.ndarray | None = None) -> np.ndarray:
    """The three main directions of features as red, green and blue.

    All maps of a batch share one basis, so equal colours mean similar features across
    images.

    Args:
        feat: shape (C, h, w) or (B, C, h, w).
        like: the result for other features of the same patches. Which direction gets
            which colour, and which end of it, is arbitrary: with ``like`` it is what
            resembles those colours most.

    Returns:
        Float RGB in [0, 1], shape (h, w, 3) or (B, h, w, 3).

    Raises:
        ValueError: another number of axes, or ``like`` is of other patches.
    """
    if feat.ndim not in (3, 4):
        raise ValueError(f"expected (C, h, w) or (B, C, h, w), got {tuple(feat.shape)}")
    maps = feat.detach().cpu().double().movedim(-3, -1)
    x = maps.reshape(-1, maps.shape[-1])
    x = x - x.mean(dim=0)
    # Not PCA.fit: a picture of fewer than three directions is still a picture.
    # Eigenvalues ascend: the last three directions are the main ones.
    basis = torch.linalg.eigh(x.T @ x).eigenvectors.T.flip(0)[:3]
    # The sign of a direction is arbitrary; fix it, so that colours are reproducible.
    largest = basis.gather(1, basis.abs().argmax(dim=1, keepdim=True))
    score = (x @ (basis * largest.sign()).T).numpy()
    # Percentiles: a few outlying patches would wash out all others.
    low, high = np.percentile(score, (2, 98), axis=0)
    varies = high - low > 1e-9
    scaled = (score - low) / np.where(varies, high - low, 1)
    rgb = np.where(varies, scaled, 0.5).clip(0, 1)
    rgb = np.pad(rgb, ((0, 0), (0, 3 - rgb.shape[1])), constant_values=0.5)
    rgb = rgb.reshape(*maps.shape[:-1], 3)
    return rgb if like is None else _recoloured(rgb, like)


def _recoloured(rgb: np.ndarray, like: np.ndarray) -> np.ndarray:
    """The channels in the order, and as bright or as dark, as they resemble others."""
    if rgb.shape != like.shape:
        raise ValueError(
            f"colours of shape {like.shape} belong to other patches than {rgb.shape}"
        )
    ours, theirs = (x.reshape(-1, 3) - x.reshape(-1, 3).mean(0) for x in (rgb, like))
    scale = np.linalg.norm(ours, axis=0)[:, None] * np.linalg.norm(theirs, axis=0)
    alike = ours.T @ theirs / np.maximum(scale, 1e-12)
    own, place = linear_sum_assignment(np.abs(alike), maximize=True)
    found, chosen = np.empty_like(rgb), rgb[..., own]
    found[..., place] = np.where(alike[own, place] < 0, 1 - chosen, chosen)
    return found
