"""The photometric twin of an image: other colours, same geometry.

What HP asks the code not to depend on (section 6): colour jitter, grey, blur.
"""

import torch
from torch import Tensor
from torchvision.transforms import functional as tv

from uss_utils.datasets.transforms import denormalise, normalise_rgb

BRIGHTNESS = CONTRAST = SATURATION = 0.3
HUE = 0.1
GREY = 0.2  # probability
BLUR = 0.5  # probability
KERNEL = 5  # pixels
SIGMA = (0.1, 2.0)  # pixels


def photometric_twin(
    images: Tensor, generator: torch.Generator, *, on_normalised: bool = False
) -> Tensor:
    """Colour jitter (.3, .3, .3, .1), grey (p = .2) and 5 x 5 blur (p = .5).

    Args:
        images: ImageNet-normalised, shape (B, 3, H, W).
        generator: CPU generator; every image draws its own changes.
        on_normalised: apply them to the normalised values, as the released code does.
            torchvision then clamps these to [0, 1], which cuts a third of them off;
            the intended order is to change colours in [0, 1] and then normalise.

    Returns:
        Normalised images, same shape.
    """
    if on_normalised:
        return torch.stack([_changed(image, generator) for image in images])
    rgb = denormalise(images).clamp(0, 1)
    return normalise_rgb(torch.stack([_changed(image, generator) for image in rgb]))


def _changed(image: Tensor, generator: torch.Generator) -> Tensor:
    def uniform(low: float, high: float) -> float:
        return float(torch.rand((), generator=generator)) * (high - low) + low

    changes = (
        lambda x: tv.adjust_brightness(x, uniform(1 - BRIGHTNESS, 1 + BRIGHTNESS)),
        lambda x: tv.adjust_contrast(x, uniform(1 - CONTRAST, 1 + CONTRAST)),
        lambda x: tv.adjust_saturation(x, uniform(1 - SATURATION, 1 + SATURATION)),
        lambda x: tv.adjust_hue(x, uniform(-HUE, HUE)),
    )
    for k in torch.randperm(len(changes), generator=generator).tolist():
        image = changes[k](image)
    if uniform(0, 1) < GREY:
        image = tv.rgb_to_grayscale(image, num_output_channels=3)
    sigma = uniform(*SIGMA)
    if uniform(0, 1) < BLUR:
        image = tv.gaussian_blur(image, [KERNEL, KERNEL], [sigma, sigma])
    return image
