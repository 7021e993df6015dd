import pytest
import torch
import torch.nn.functional as F

from uss_utils.environment import generator
from uss_utils.views import (
    View,
    colour_matrices,
    crop,
    draw_boxes,
    matched_points,
    photometric,
    two_views,
)


def coordinate_image(n: int, height: int, width: int) -> torch.Tensor:
    """Channels 0 and 1 hold each pixel's own x and y, so a crop tells where it was."""
    y, x = torch.meshgrid(
        torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij"
    )
    image = torch.stack([x, y, torch.zeros_like(x)])
    return image.expand(n, -1, -1, -1).float()


def test_boxes_lie_in_the_image_and_in_one_common_window():
    first, second = draw_boxes(500, (100, 140), 64, (0.4, 1.0), generator(0))
    both = torch.stack([first, second])
    assert (both[..., :2] >= 0).all()
    assert (both[..., 0] + both[..., 2] <= 140 + 1e-3).all()
    assert (both[..., 1] + both[..., 3] <= 100 + 1e-3).all()
    share = first[:, 2] * first[:, 3] / 64**2
    assert share.min() >= 0.4 - 1e-4 and share.max() <= 1 + 1e-4
    right = torch.maximum(first[:, 0] + first[:, 2], second[:, 0] + second[:, 2])
    assert (right - torch.minimum(first[:, 0], second[:, 0]) <= 64 + 1e-3).all()


def test_window_larger_than_the_image_is_cut_down_to_it():
    first, _ = draw_boxes(50, (32, 48), 128, (1.0, 1.0), generator(0))
    assert torch.allclose(first[:, 2:], torch.tensor(32.0))


def test_crop_of_the_whole_image_is_the_image_and_flip_mirrors_it():
    image = torch.rand(3, 3, 16, 16)
    box = torch.tensor([[0.0, 0, 16, 16]] * 3)
    out = crop(
        image, box, torch.tensor([[False, False], [True, False], [False, True]]), 16
    )
    assert torch.allclose(out[0], image[0], atol=1e-5)
    assert torch.allclose(out[1], image[1].flip(-1), atol=1e-5)
    assert torch.allclose(out[2], image[2].flip(-2), atol=1e-5)


@pytest.mark.parametrize("size", [(64, 64), (60, 90)])
def test_matched_points_show_the_same_scene_point(size):
    n, side, grid = 32, 48, 6
    image = coordinate_image(n, *size)
    draws = generator(3)
    boxes = draw_boxes(n, size, 56, (0.5, 1.0), draws)
    flips = torch.rand(2, n, 2, generator=draws) < 0.5
    views = [
        View(crop(image, b, f, side), b, f) for b, f in zip(boxes, flips, strict=True)
    ]
    points, valid = matched_points(views[0], views[1], grid)
    assert points.shape == (n, grid, grid, 2) and valid.any() and not valid.all()
    # x and y are linear, so the mean over a patch is the value at its centre.
    here = F.avg_pool2d(views[0].image, side // grid)[:, :2]
    there = F.grid_sample(views[1].image, points, align_corners=False)[:, :2]
    inside = valid & (points.abs() < 1 - 2 / side).all(-1)
    difference = (here - there).abs().amax(1)[inside]
    assert difference.max() < 0.05, "pixels of the source image"


def test_colour_matrices_keep_grey_grey_up_to_channel_gain():
    matrix, offset = colour_matrices(200, generator(0))
    grey = matrix @ torch.full((3,), 0.5) + offset
    spread = (grey - offset).amax(1) / (grey - offset).amin(1)
    assert spread.max() <= 1.15 / 0.85 + 1e-4


def test_photometric_stays_in_range_and_changes_colours():
    image = torch.rand(8, 3, 12, 12)
    out = photometric(image, generator(0))
    assert out.shape == image.shape and out.min() >= 0 and out.max() <= 1
    assert (out - image).abs().mean() > 0.05


def test_two_views_are_drawn_from_the_generator_alone():
    images = torch.randint(0, 256, (4, 40, 50, 3), dtype=torch.uint8)
    options = {"window": 36, "view": 24, "scale": (0.4, 1.0)}
    torch.manual_seed(0)
    a = two_views(images, generator=generator(5), **options)
    torch.manual_seed(1)
    b = two_views(images, generator=generator(5), **options)
    c = two_views(images, generator=generator(6), **options)
    assert torch.equal(a[0].image, b[0].image) and torch.equal(a[1].box, b[1].box)
    assert not torch.equal(a[0].image, c[0].image)
    assert a[0].image.shape == (4, 3, 24, 24)


def test_only_images_without_an_up_are_mirrored_top_bottom():
    images = torch.randint(0, 256, (40, 32, 32, 3), dtype=torch.uint8)
    options = {"window": 32, "view": 16, "scale": (0.4, 1.0)}
    upright = torch.arange(40) < 20
    a, b = two_views(images, generator=generator(0), upright=upright, **options)
    for view in (a, b):
        assert not view.flip[:20, 1].any()
        assert 0 < view.flip[20:, 1].sum() < 20
    plain, _ = two_views(images, generator=generator(0), **options)
    assert not plain.flip[:, 1].any() and plain.flip[:, 0].any()
