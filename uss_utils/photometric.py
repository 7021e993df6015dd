"""The same picture in other colours, or less sharp: geometry stays.

What HP asks the code not to depend on (section 6), and the pieces other methods make
their own views of: jitter, grey, blur.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms import functional as tv

from uss_utils import views
from uss_utils.datasets.transforms import denormalise, normalise_rgb

STRENGTHS = (0.3, 0.3, 0.3, 0.1)  # of brightness, contrast, saturation, hue
GREY = 0.2  # probability
BLUR = 0.5  # probability
KERNEL = 5  # pixels
SIGMA = (0.1, 2.0)  # pixels
ADJUST = (
    *(tv.adjust_brightness, tv.adjust_contrast),
    *(tv.adjust_saturation, tv.adjust_hue),
)
NO_JITTER = (1.0, 1.0, 1.0, 0.0)  # factors that change nothing
NEGLIGIBLE = 1e-9  # weight of a pixel that cannot change a colour in float32


@dataclass(frozen=True)
class Change:
    """What happens to one image.

    Attributes:
        jitter: (which of :data:`ADJUST`, its factor), in the order of application.
        grey: lose all colour.
        sigma: of the Gaussian blur, in pixels; None: no blur.
    """

    jitter: tuple[tuple[int, float], ...] = ()
    grey: bool = False
    sigma: float | None = None


def uniform(low: float, high: float, generator: torch.Generator) -> float:
    """One number between the two."""
    return float(torch.rand((), generator=generator)) * (high - low) + low


def draw_jitter(
    strengths: tuple[float, float, float, float], generator: torch.Generator
) -> tuple[tuple[int, float], ...]:
    """Factors of a colour jitter, in random order.

    Args:
        strengths: of brightness, contrast and saturation s, whose factors lie in
            [1 - s, 1 + s], and of hue, whose shift lies in [-s, s].
        generator: CPU generator.

    Returns:
        As :attr:`Change.jitter`.
    """
    centres = (1, 1, 1, 0)
    order = torch.randperm(len(ADJUST), generator=generator).tolist()
    return tuple(
        (k, uniform(centres[k] - strengths[k], centres[k] + strengths[k], generator))
        for k in order
    )


def draw_change(
    strengths: tuple[float, float, float, float],
    jitter: float,
    grey: float,
    generator: torch.Generator,
) -> Change:
    """A colour jitter and a loss of colour, each with its probability.

    Args:
        strengths: see :func:`draw_jitter`.
        jitter: probability of the jitter.
        grey: probability of grey.
        generator: CPU generator.
    """
    factors = draw_jitter(strengths, generator)
    jittered, grey = (uniform(0, 1, generator) < p for p in (jitter, grey))
    return Change(factors if jittered else (), grey)


def recolour(images: Tensor, changes: Sequence[Change]) -> Tensor:
    """Jitter and grey.

    Args:
        images: colours in [0, 1], shape (B, 3, H, W).
        changes: one per image.

    Returns:
        Same shape.
    """
    return torch.stack(list(map(_recoloured, images, changes)))


def _recoloured(image: Tensor, change: Change) -> Tensor:
    for k, factor in change.jitter:
        image = ADJUST[k](image, factor)
    return tv.rgb_to_grayscale(image, num_output_channels=3) if change.grey else image


def recolour_fast(images: Tensor, changes: Sequence[Change]) -> Tensor:
    """:func:`recolour` of a batch by one affine map of RGB per image, far faster.

    Hue turns colours about the axis of greys, and values are clamped to [0, 1] only
    once, at the end.

    Args:
        images: colours in [0, 1], shape (B, 3, H, W).
        changes: one per image.

    Returns:
        Same shape.
    """
    matrices, offsets = colour_maps(changes, images.mean((-2, -1)))
    flat = torch.baddbmm(offsets[..., None], matrices, images.flatten(2))
    return flat.clamp_(0, 1).unflatten(2, images.shape[2:])


def colour_maps(changes: Sequence[Change], means: Tensor) -> tuple[Tensor, Tensor]:
    """Colour changes as affine maps of RGB, hue as a turn about the axis of greys.

    Args:
        changes: one per image, as :func:`uss_utils.photometric.recolour` takes them.
        means: mean colour of every image, (B, 3); contrast keeps the mean's grey.

    Returns:
        Matrices (B, 3, 3) and offsets (B, 3): ``rgb -> matrix @ rgb + offset``.
    """
    n = len(changes)
    orders = torch.arange(4).repeat(n, 1)
    factors = torch.tensor([NO_JITTER]).repeat(n, 1)
    for row, change in enumerate(changes):
        if change.jitter:
            orders[row] = torch.tensor([k for k, _ in change.jitter])
            factors[row, orders[row]] = torch.tensor([f for _, f in change.jitter])
    brightness, contrast, saturation, hue = factors.T[..., None, None]
    one, to_grey = torch.eye(3), torch.tensor(views.GREY).expand(3, 3)
    # All four for every image; only contrast has an offset, which depends on the mean.
    steps = torch.stack(
        [
            brightness * one,
            contrast * one,
            saturation * one + (1 - saturation) * to_grey,
            views.hue_turn(2 * math.pi * hue),
        ],
        1,
    )
    matrices, offsets = one.repeat(n, 1, 1), torch.zeros(n, 3, 1)
    for k in orders.T:
        step = steps[torch.arange(n), k]
        grey = to_grey @ (matrices @ means[..., None] + offsets)
        shift = torch.where((k == 1)[:, None, None], (1 - contrast) * grey, 0.0)
        matrices, offsets = step @ matrices, step @ offsets + shift
    grey = torch.tensor([change.grey for change in changes])[:, None, None]
    matrices = torch.where(grey, to_grey @ matrices, matrices)
    return matrices, torch.where(grey, to_grey @ offsets, offsets)[..., 0]


def blur(images: Tensor, changes: Sequence[Change], kernel: int) -> Tensor:
    """Gaussian blur, separable, the border mirrored; 25 times as fast as torchvision's.

    Args:
        images: shape (B, C, H, W).
        changes: one per image.
        kernel: odd width in pixels.

    Returns:
        Same shape.

    Raises:
        ValueError: an image is too small for the kernel.
    """
    radius = kernel // 2
    if min(images.shape[-2:]) <= radius:
        raise ValueError(
            f"a blur of {kernel} pixels needs images of more than {radius} x {radius} "
            f"pixels, got {tuple(images.shape[-2:])}"
        )
    offsets = torch.arange(radius + 1.0)
    sigmas = torch.tensor([change.sigma or 1e-3 for change in changes])
    weights = torch.exp(-((offsets / sigmas[:, None]) ** 2) / 2)
    weights /= weights.sum(1, keepdim=True) * 2 - weights[:, :1]
    # An image alone stays in a CPU's cache; a GPU wants few large steps.
    at_once = 1 if images.device.type == "cpu" else max(1, len(images))
    parts = zip(images.split(at_once), weights.split(at_once), strict=True)
    return torch.cat([_blurred(*part) for part in parts])


def _blurred(images: Tensor, weights: Tensor) -> Tensor:
    """Blur by a sum of shifted images; weights of the offsets 0..radius, (B, r + 1)."""
    radius = int((weights.amax(0) > NEGLIGIBLE).sum()) - 1
    weights = weights.to(images)[:, :, None, None, None]
    for axis, padding in ((-1, (radius, radius, 0, 0)), (-2, (0, 0, radius, radius))):
        padded = F.pad(images, padding, mode="reflect")
        size = images.shape[axis]
        images = images * weights[:, 0]
        for k in range(1, radius + 1):
            for start in (radius - k, radius + k):
                images.addcmul_(padded.narrow(axis, start, size), weights[:, k])
    return images


def photometric_twin(
    images: Tensor,
    generator: torch.Generator | None = None,
    *,
    changes: Sequence[Change] | None = None,
    on_normalised: bool = False,
) -> Tensor:
    """Colour jitter (.3, .3, .3, .1), grey (p = .2) and 5 x 5 blur (p = .5).

    Args:
        images: ImageNet-normalised, shape (B, 3, H, W).
        generator: CPU generator; every image draws its own changes.
        changes: from :func:`draw_twins`; None draws them.
        on_normalised: apply them to the normalised values, as the released code does.
            torchvision then clamps these to [0, 1], which cuts a third of them off;
            the intended order is to change colours in [0, 1] and then normalise.

    Returns:
        Normalised images, same shape.
    """
    if changes is None:
        changes = draw_twins(len(images), generator)
    if on_normalised:
        return blur(recolour(images, changes), changes, KERNEL)
    rgb = denormalise(images).clamp(0, 1)
    return normalise_rgb(blur(recolour(rgb, changes), changes, KERNEL))


def draw_twins(n: int, generator: torch.Generator) -> list[Change]:
    """What makes photometric twins of n images.

    Args:
        n: number of images.
        generator: CPU generator.
    """
    return [_draw_twin(generator) for _ in range(n)]


def _draw_twin(generator: torch.Generator) -> Change:
    jitter = draw_jitter(STRENGTHS, generator)
    grey = uniform(0, 1, generator) < GREY
    sigma = uniform(*SIGMA, generator)
    return Change(jitter, grey, sigma if uniform(0, 1, generator) < BLUR else None)
