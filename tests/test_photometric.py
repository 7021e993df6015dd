"""Colour changes and blur, against torchvision's own."""

import pytest
import torch
from torchvision.transforms import functional as tv

from uss_utils import photometric
from uss_utils.environment import generator
from uss_utils.photometric import (
    Change,
    blur,
    colour_maps,
    draw_change,
    draw_jitter,
    recolour,
    recolour_fast,
)


def pictures(n=3, height=24, width=31):
    return torch.rand(n, 3, height, width, generator=generator(0))


@pytest.mark.parametrize("kernel", [5, 21])
@pytest.mark.parametrize("grouped", [False, True])  # as on a CPU, as on a GPU
def test_blur_is_torchvisions(kernel, grouped):
    images, sigmas = pictures(), (0.1, 0.9, 2.0)
    changes = [Change(sigma=sigma) for sigma in sigmas]
    expected = torch.stack(
        [
            tv.gaussian_blur(image, [kernel, kernel], [sigma, sigma])
            for image, sigma in zip(images, sigmas, strict=True)
        ]
    )
    if grouped:
        offsets = torch.arange(kernel // 2 + 1.0)
        weights = torch.exp(-((offsets / torch.tensor(sigmas)[:, None]) ** 2) / 2)
        weights /= weights.sum(1, keepdim=True) * 2 - weights[:, :1]
        found = photometric._blurred(images, weights)
    else:
        found = blur(images, changes, kernel)
    torch.testing.assert_close(found, expected, atol=3e-6, rtol=0)


def test_an_image_without_blur_stays_as_it_is():
    images = pictures(2)
    found = blur(images, [Change(), Change(sigma=1.5)], 5)
    assert torch.equal(found[0], images[0])
    assert (found[1] - images[1]).abs().max() > 0.1
    assert torch.equal(images, pictures(2))  # nothing is changed in place


def test_blur_needs_room_for_its_border():
    with pytest.raises(ValueError, match="more than 10 x 10 pixels, got \\(10, 31\\)"):
        blur(pictures(1, 10), [Change(sigma=1.0)], 21)


def test_changes_are_applied_in_their_order():
    image = pictures(1)
    jitter = ((0, 1.8), (1, 0.4))
    found, other = (
        recolour(image, [Change(steps)])[0] for steps in (jitter, jitter[::-1])
    )
    expected = tv.adjust_contrast(tv.adjust_brightness(image[0], 1.8), 0.4)
    torch.testing.assert_close(found, expected)
    assert (found - other).abs().max() > 0.05  # clamped at another moment
    grey = recolour(image, [Change(grey=True)])[0]
    assert torch.equal(grey[0], grey[1])
    assert torch.equal(recolour(image, [Change()]), image)


def test_factors_lie_around_their_centres():
    draws = [draw_jitter((0.3, 0.2, 0.1, 0.05), g) for g in [generator(0)] * 400]
    assert len({tuple(k for k, _ in jitter) for jitter in draws}) == 24  # all orders
    for k, (centre, reach) in enumerate(((1, 0.3), (1, 0.2), (1, 0.1), (0, 0.05))):
        factors = torch.tensor([dict(jitter)[k] for jitter in draws])
        assert (factors - centre).abs().max() <= reach + 1e-6
        assert factors.min() < centre - 0.9 * reach
        assert factors.max() > centre + 0.9 * reach


def test_colour_maps_are_the_jitter_where_nothing_is_clamped():
    images = torch.rand(6, 3, 8, 8, generator=generator(0)) * 0.2 + 0.4
    orders = [(0, 1, 2), (2, 1, 0), (1, 0, 2), (1, 2, 0), (0, 2, 1), ()]
    factors = {0: 1.2, 1: 0.7, 2: 1.4}
    changes = [
        Change(
            tuple((k, {**factors, 3: 0.0}[k]) for k in (*order, 3)) if order else (),
            grey=bool(i % 2),
        )
        for i, order in enumerate(orders)
    ]
    matrices, offsets = colour_maps(changes, images.mean((2, 3)))
    fast = matrices @ images.flatten(2) + offsets[..., None]
    expected = recolour(images, changes).flatten(2)
    torch.testing.assert_close(fast, expected, atol=2e-3, rtol=0)


def test_colour_maps_turn_hue_as_the_jitter_does():
    red = torch.tensor([[0.8, 0.2, 0.2]])
    for shift, expected in ((1 / 3, [0.2, 0.8, 0.2]), (-1 / 3, [0.2, 0.2, 0.8])):
        change = Change(((0, 1.0), (1, 1.0), (2, 1.0), (3, shift)))
        matrix, offset = colour_maps([change], red)
        turned = matrix[0] @ red[0] + offset[0]
        assert turned.tolist() == pytest.approx(expected, abs=1e-5)
    grey = torch.full((1, 3), 0.4)
    assert (matrix[0] @ grey[0]).tolist() == pytest.approx([0.4] * 3, abs=1e-5)


def test_fast_colours_are_the_slow_ones_where_nothing_is_clamped():
    images = torch.rand(5, 3, 8, 8, generator=generator(0)) * 0.2 + 0.4
    changes = [
        Change(((0, 1.1), (2, 0.8), (1, 0.9), (3, 0.0)), grey=k == 2) for k in range(5)
    ]
    found = recolour_fast(images, changes)
    torch.testing.assert_close(found, recolour(images, changes), atol=2e-3, rtol=0)
    bright = recolour_fast(
        images, [Change(((0, 3.0), (1, 1.0), (2, 1.0), (3, 0.0)))] * 5
    )
    assert bright.max() == 1


def test_changes_come_with_their_odds():
    source = generator(0)
    changes = [draw_change((0.4, 0.4, 0.4, 0.1), 0.3, 0.9, source) for _ in range(1000)]
    assert 0.25 < sum(bool(change.jitter) for change in changes) / 1000 < 0.35
    assert 0.87 < sum(change.grey for change in changes) / 1000 < 0.93
    assert not any(draw_change((0, 0, 0, 0), 0, 0, source).jitter for _ in range(9))
