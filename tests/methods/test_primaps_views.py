"""The student view of PriMaPs-EM."""

import pytest
import torch
from torchvision.transforms import functional as tv

from uss_utils.datasets.transforms import denormalise, normalise_rgb
from uss_utils.environment import generator
from uss_utils.methods._primaps_views import draw_changes, student_view
from uss_utils.photometric import Change


def images(n=4, side=32):
    return normalise_rgb(torch.rand(n, 3, side, side, generator=generator(0)))


def test_every_image_is_blurred_and_one_in_five_changes_colours():
    changes = draw_changes(4000, generator(0))
    sigmas = torch.tensor([change.sigma for change in changes])
    assert 0.1 <= sigmas.min() < 0.2 and 1.9 < sigmas.max() <= 2
    jittered = torch.tensor([bool(change.jitter) for change in changes])
    grey = torch.tensor([change.grey for change in changes])
    assert jittered.float().mean() == pytest.approx(0.15, abs=0.02)
    assert grey.float().mean() == pytest.approx(0.05, abs=0.01)
    assert not (jittered & grey).any()


def test_views_are_drawn_per_image_and_from_the_generator():
    same = images(1).expand(6, -1, -1, -1)
    before = torch.get_rng_state()
    views = [student_view(same, generator(s)) for s in (0, 0, 1)]
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(views[0], views[1]) and not torch.equal(views[0], views[2])
    assert (views[0][0] - views[0][1:]).abs().amax((1, 2, 3)).min() > 1e-3


def test_colours_change_before_normalising_and_after_the_blur():
    steps = ((0, 1.1), (3, 0.08))
    changes = [Change(steps, sigma=1.2), Change(grey=True, sigma=0.4)]
    changes += [Change(sigma=2.0), Change()]
    normal = images()
    found = denormalise(student_view(normal, changes=changes))
    rgb = denormalise(normal)
    blurred = [
        tv.gaussian_blur(rgb[i], [21, 21], [s, s])
        for i, s in enumerate((1.2, 0.4, 2.0))
    ]
    expected = [
        tv.adjust_hue(tv.adjust_brightness(blurred[0], 1.1), 0.08),
        tv.rgb_to_grayscale(blurred[1], 3),
        blurred[2],
        rgb[3],
    ]
    torch.testing.assert_close(found, torch.stack(expected), atol=1e-5, rtol=0)
    assert torch.equal(normal, images())
