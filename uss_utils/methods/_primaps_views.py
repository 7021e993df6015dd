"""PriMaPs-EM's student view: the teacher's, blurred and sometimes in other colours."""

from collections.abc import Sequence

import torch
from torch import Tensor

from uss_utils.datasets.transforms import denormalise, normalise_rgb
from uss_utils.photometric import Change, blur, draw_jitter, recolour, uniform

KERNEL = 21  # pixels
SIGMA = (0.1, 2.0)  # pixels
STRENGTHS = (0.1, 0.1, 0.1, 0.1)  # of brightness, contrast, saturation, hue
JITTER = 0.3  # probability, in one half of the images
GREY = 0.1  # probability, in the other half


def draw_changes(n: int, generator: torch.Generator) -> list[Change]:
    """What makes student views of n images (4.3): 15 % are jittered, 5 % are grey.

    Args:
        n: number of images.
        generator: CPU generator.
    """
    return [_draw(generator) for _ in range(n)]


def _draw(generator: torch.Generator) -> Change:
    sigma = uniform(*SIGMA, generator)
    half, chance = (uniform(0, 1, generator) for _ in range(2))
    if half < 0.5 and chance < JITTER:
        return Change(draw_jitter(STRENGTHS, generator), sigma=sigma)
    return Change(grey=half >= 0.5 and chance < GREY, sigma=sigma)


def student_view(
    images: Tensor,
    generator: torch.Generator | None = None,
    *,
    changes: Sequence[Change] | None = None,
) -> Tensor:
    """Blur, then jitter or grey, of colours in [0, 1].

    The released code jitters normalised values, which torchvision clamps to [0, 1]:
    most of their range is lost.

    Args:
        images: ImageNet-normalised, shape (B, 3, H, W).
        generator: CPU generator; every image draws its own changes.
        changes: use these instead of drawing any.

    Returns:
        Normalised images, same shape.
    """
    if changes is None:
        changes = draw_changes(len(images), generator)
    # Blur and normalising commute: few images have to be brought to [0, 1].
    views = blur(images, changes, KERNEL)
    few = [i for i, change in enumerate(changes) if change.jitter or change.grey]
    if few:
        rgb = denormalise(views[few]).clamp(0, 1)
        views[few] = normalise_rgb(recolour(rgb, [changes[i] for i in few]))
    return views
