"""From raw pixels to network input: resizing, cropping, normalising, and back.

One rule for labels almost everywhere: nearest neighbour as Pillow does it. Images may
be resized the same way (what the STEGO family of papers does) or by antialiased
bilinear interpolation (what one would choose today). PriMaPs-EM and MaskContrast
evaluate with pairs of rules of their own: see :class:`Transform`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from numbers import Integral

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
KINDS = ("none", "center", "resize")
RESAMPLES = ("nearest", "bilinear", "tensor", "cubic")
# Those that take label pixels by the floor rule, and what they do to images.
_FLOOR_RULE = {
    "tensor": "bilinear images without antialiasing",
    "cubic": "cubic images without antialiasing",
}


def _channel(values: tuple[float, ...], like: Tensor) -> Tensor:
    return torch.tensor(values, dtype=like.dtype, device=like.device).view(3, 1, 1)


def normalise(image: Tensor | np.ndarray) -> Tensor:
    """Bytes to ImageNet-normalised floats, channels first.

    Args:
        image: uint8 RGB, shape (H, W, 3) or (B, H, W, 3).

    Returns:
        float32, shape (3, H, W) or (B, 3, H, W).

    Raises:
        ValueError: not uint8, or the last axis does not hold three channels.
    """
    if isinstance(image, np.ndarray):
        # Pillow hands out read-only arrays, flips give negative strides: copy those.
        if not image.flags.writeable or min(image.strides, default=0) < 0:
            image = image.copy()
        image = torch.from_numpy(image)
    if image.dtype != torch.uint8 or image.ndim not in (3, 4) or image.shape[-1] != 3:
        raise ValueError(
            "normalise expects uint8 RGB of shape (H, W, 3) or (B, H, W, 3), got "
            f"{image.dtype} of shape {tuple(image.shape)}"
        )
    return normalise_rgb(image.movedim(-1, -3).contiguous().float().div_(255))


def normalise_rgb(rgb: Tensor) -> Tensor:
    """Colours in [0, 1] to normalised ones: the inverse of :func:`denormalise`.

    Args:
        rgb: float, shape (..., 3, H, W).

    Returns:
        Same shape.
    """
    return (rgb - _channel(IMAGENET_MEAN, rgb)) / _channel(IMAGENET_STD, rgb)


def denormalise(image: Tensor) -> Tensor:
    """Undo :func:`normalise` up to the byte scale.

    Args:
        image: normalised, shape (..., 3, H, W).

    Returns:
        RGB in [0, 1] (up to rounding), same shape.
    """
    return image * _channel(IMAGENET_STD, image) + _channel(IMAGENET_MEAN, image)


def to_uint8(image: Tensor) -> Tensor:
    """Normalised image to RGB bytes, truncating as the papers' CRF code does.

    Truncation makes some bytes one smaller than the original ones; the CRF scores of
    the papers were made with it.

    Args:
        image: normalised, shape (3, H, W) or (B, 3, H, W).

    Returns:
        uint8, shape (H, W, 3) or (B, H, W, 3).
    """
    scaled = denormalise(image.float()).mul_(255).clamp_(0, 255)
    return scaled.to(torch.uint8).movedim(-3, -1).contiguous()


@lru_cache(maxsize=256)
def nearest_indices(source: int, target: int) -> np.ndarray:
    """Source position of every output position of Pillow's nearest resize, one axis.

    Pillow accumulates the source position step by step, so exact ties depend on
    rounding error; asking Pillow itself is the only exact way.

    Args:
        source: pixels before.
        target: pixels after.

    Returns:
        int64, shape (target,), values 0..source-1, read-only.
    """
    row = Image.fromarray(np.arange(source, dtype=np.int32)[None])
    resized = row.resize((target, 1), Image.Resampling.NEAREST)
    indices = np.asarray(resized)[0].astype(np.int64)
    indices.setflags(write=False)
    return indices


@lru_cache(maxsize=256)
def floor_indices(source: int, target: int) -> np.ndarray:
    """Source position of every output position by torch's nearest rule, one axis.

    floor(i source / target), with torch's own rounding error; compare
    :func:`nearest_indices`.

    Args:
        source: pixels before.
        target: pixels after.

    Returns:
        int64, shape (target,), values 0..source-1, read-only.
    """
    row = torch.arange(source, dtype=torch.float32)[None, None]
    indices = F.interpolate(row, size=target, mode="nearest")[0, 0].long().numpy()
    indices.setflags(write=False)
    return indices


def resize_cubic(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Cubic resizing (a = -0.75) between neighbours, without antialiasing.

    Args:
        image: uint8, shape (H, W, C).
        size: (height, width) of the result.

    Returns:
        uint8, shape (height, width, C), rounded and clamped.
    """
    channels = torch.tensor(image).movedim(-1, 0)[None].float()
    new = F.interpolate(channels, size, mode="bicubic")[0].round_().clamp_(0, 255)
    return new.to(torch.uint8).movedim(0, -1).numpy()


def _centre_offset(length: int, crop: int) -> int:
    # Python's round: halves go to the even neighbour, as in torchvision.
    return round((length - crop) / 2)


def resize_to_patch(size: tuple[int, int], patch: int) -> tuple[int, int]:
    """Nearest size whose sides are multiples of the patch, at least one patch each.

    Args:
        size: (H, W) in pixels.
        patch: side of a patch in pixels.
    """
    if patch < 1 or min(size) < 1:
        raise ValueError(f"size {tuple(size)} and patch {patch} must be at least 1")
    return tuple(max(1, (n + patch // 2) // patch) * patch for n in size)


@dataclass(frozen=True)
class Transform:
    """Geometry of one data set: what happens between the file and the network.

    Attributes:
        kind: "none" keeps the pixels as they are; "center" scales the image until it
            just covers ``size`` and cuts the centre; "resize" squeezes it to ``size``.
        size: output (H, W), or one number for a square; None only for "none".
        resample: how images are resized, "bilinear" (antialiased), "nearest",
            "tensor": bilinear between neighbours without antialiasing, never rounded
            back to bytes, or "cubic": cubic (a = -0.75) between neighbours without
            antialiasing, rounded and clamped to bytes, as MaskContrast evaluates.
            Labels are always resized by nearest neighbour: Pillow's, or with "tensor"
            and "cubic" torch's, which takes the pixel at floor(i in / out).
    """

    kind: str = "none"
    size: int | tuple[int, int] | None = None
    resample: str = "bilinear"

    def __post_init__(self):
        if self.kind not in KINDS:
            raise ValueError(
                f"unknown transform {self.kind!r}; known: {', '.join(KINDS)}"
            )
        if self.resample not in RESAMPLES:
            raise ValueError(
                f"unknown resampling {self.resample!r}; known: {', '.join(RESAMPLES)}"
            )
        if self.kind == "none":
            if self.size is not None:
                raise ValueError(
                    f"transform 'none' keeps every size, but size {self.size} was "
                    "given; use kind 'center' or 'resize'"
                )
            return
        sides = (self.size,) * 2 if isinstance(self.size, Integral) else self.size
        if sides is None or len(sides) != 2 or any(int(n) < 1 for n in sides):
            raise ValueError(
                f"transform {self.kind!r} needs a size of at least 1 pixel, as one "
                f"number or (H, W); got {self.size!r}"
            )
        object.__setattr__(self, "size", tuple(int(n) for n in sides))

    @classmethod
    def authors(cls, res: int) -> "Transform":
        """Centre crop with nearest-neighbour images: the STEGO family's own choice."""
        return cls("center", res, "nearest")

    @classmethod
    def sane(cls, res: int | tuple[int, int]) -> "Transform":
        """Centre crop with antialiased bilinear images."""
        return cls("center", res, "bilinear")

    def describe(self) -> str:
        """One readable line; equal for equal geometry."""
        if self.kind == "none":
            return "as stored"
        height, width = self.size
        verb = "centre crop" if self.kind == "center" else "resize"
        rules = f"{self.resample} images, nearest labels"
        if self.resample in _FLOOR_RULE:
            rules = f"{_FLOOR_RULE[self.resample]}, floor-rule nearest labels"
        return f"{verb} {height}x{width}, {rules}"

    def plan(self, height: int, width: int) -> tuple[int, int, int, int, int, int]:
        """Resized size and crop window for an image of the given size.

        Returns:
            resized height, resized width, top, left, output height, output width.
        """
        if self.kind == "none":
            return height, width, 0, 0, height, width
        out_h, out_w = self.size
        if self.kind == "resize":
            return out_h, out_w, 0, 0, out_h, out_w
        # The side that needs the larger scale is met exactly; the other is floored.
        if out_h * width >= out_w * height:
            new_h, new_w = out_h, out_h * width // height
        else:
            new_h, new_w = out_w * height // width, out_w
        top, left = _centre_offset(new_h, out_h), _centre_offset(new_w, out_w)
        return new_h, new_w, top, left, out_h, out_w

    def apply_image(self, image: np.ndarray) -> np.ndarray:
        """Resize and crop an image: uint8 (H, W, 3) to uint8 (H', W', 3).

        Raises:
            ValueError: "tensor" resizing, whose result are no bytes.
        """
        new_h, new_w, top, left, out_h, out_w = self.plan(*image.shape[:2])
        if image.shape[:2] == (new_h, new_w):
            return image[top : top + out_h, left : left + out_w]
        if self.resample == "nearest":
            return self._gather(image, nearest_indices)
        if self.resample == "tensor":
            raise ValueError(
                "resampling 'tensor' gives no bytes; call the transform itself, or use "
                "'bilinear'"
            )
        if self.resample == "cubic":
            resized = resize_cubic(image, (new_h, new_w))
        else:
            picture = Image.fromarray(image)
            resized = picture.resize((new_w, new_h), Image.Resampling.BILINEAR)
        return np.asarray(resized)[top : top + out_h, left : left + out_w]

    def _normalised(self, image: np.ndarray) -> Tensor:
        """Resize, crop and normalise an image: uint8 (H, W, 3) to (3, H', W')."""
        new_h, new_w, top, left, out_h, out_w = self.plan(*image.shape[:2])
        if self.resample != "tensor" or image.shape[:2] == (new_h, new_w):
            return normalise(self.apply_image(image))
        # Normalising is linear: it may as well come first.
        new = F.interpolate(normalise(image)[None], (new_h, new_w), mode="bilinear")
        return new[0, :, top : top + out_h, left : left + out_w].contiguous()

    def apply_label(self, label: np.ndarray) -> np.ndarray:
        """Resize and crop a label map or mask, (H, W) of any integer or bool type."""
        floor = self.resample in _FLOOR_RULE
        return self._gather(label, floor_indices if floor else nearest_indices)

    def _gather(
        self, array: np.ndarray, rule: Callable[[int, int], np.ndarray]
    ) -> np.ndarray:
        # Cropping the index vectors first: only pixels that stay are ever touched.
        height, width = array.shape[:2]
        new_h, new_w, top, left, out_h, out_w = self.plan(height, width)
        rows = rule(height, new_h)[top : top + out_h]
        columns = rule(width, new_w)[left : left + out_w]
        return array[rows[:, None], columns]

    def __call__(
        self, image: np.ndarray, label: np.ndarray | None = None
    ) -> tuple[Tensor, Tensor]:
        """Apply the geometry and normalise.

        Args:
            image: uint8 RGB, shape (H, W, 3).
            label: int64, shape (H, W), ignore = -1; None if there is none.

        Returns:
            Image, float32 (3, H', W'), and label, int64 (H', W'), all -1 without one.

        Raises:
            ValueError: image and label differ in size.
        """
        if label is not None and label.shape != image.shape[:2]:
            raise ValueError(
                f"label of {label.shape[0]}x{label.shape[1]} pixels for an image of "
                f"{image.shape[0]}x{image.shape[1]}; both must have the same size"
            )
        out = self._normalised(image)
        if label is None:
            return out, torch.full(out.shape[-2:], -1, dtype=torch.int64)
        return out, torch.from_numpy(self.apply_label(label).astype(np.int64))


def five_crops(array: Tensor | np.ndarray, ratio: float = 0.5) -> Tensor | np.ndarray:
    """Four corner crops and the centre one (STEGO section B of the appendix).

    Args:
        array: tensor or array of shape (..., H, W); move the channels of an (H, W, 3)
            image to the front first.
        ratio: side of a crop divided by the side of the image, in (0, 1].

    Returns:
        Same kind, shape (5, ..., int(H ratio), int(W ratio)), in the order top-left,
        top-right, bottom-left, bottom-right, centre.

    Raises:
        ValueError: the ratio is out of range or leaves an empty crop.
    """
    height, width = array.shape[-2:]
    fits = 0 < ratio <= 1  # not so for NaN
    h, w = (int(height * ratio), int(width * ratio)) if fits else (0, 0)
    if min(h, w) < 1:
        raise ValueError(
            f"five_crops with ratio {ratio} of a {height}x{width} image gives crops "
            f"of {h}x{w}; the ratio must be in (0, 1] and leave at least one pixel"
        )
    tops = (0, 0, height - h, height - h, _centre_offset(height, h))
    lefts = (0, width - w, 0, width - w, _centre_offset(width, w))
    stack = torch.stack if isinstance(array, Tensor) else np.stack
    return stack(
        [
            array[..., top : top + h, left : left + w]
            for top, left in zip(tops, lefts, strict=True)
        ]
    )
