"""Drawing tools: interpolation, textures, windows, random numbers."""

import math

import numpy as np
import pytest

from uss_utils.datasets._paint import (
    Dice,
    Light,
    Painter,
    develop,
    direction,
    field,
    fraction,
    mix,
    profile,
    textures,
)

NEUTRAL = Light(
    tint=(1.0, 1.0, 1.0),
    slope=(0.0, 0.0),
    haze=0.0,
    haze_colour=(1.0, 1.0, 1.0),
    blur=0.0,
    noise=0.0,
    gamma=1.0,
)


@pytest.fixture
def dice():
    return Dice(np.random.default_rng(0))


def test_dice_stay_in_their_ranges_and_reach_both_ends(dice):
    numbers = [dice.n(2, 4) for _ in range(1000)]
    assert set(numbers) == {2, 3, 4}
    values = [dice.u(-2, 3) for _ in range(1000)]
    assert -2 <= min(values) < -1.9 and 2.9 < max(values) < 3
    assert {dice.sign() for _ in range(50)} == {-1, 1}
    assert {dice.pick("abc") for _ in range(100)} == {"a", "b", "c"}
    assert not any(dice.chance(0) for _ in range(100))
    assert all(dice.chance(1) for _ in range(100))


def test_dice_repeat_with_the_generator():
    first, second = (Dice(np.random.default_rng(7)) for _ in range(2))
    assert [first.u() for _ in range(600)] == [second.u() for _ in range(600)]
    assert len({first.u() for _ in range(600)}) == 600


def test_dice_colour_honours_its_ranges(dice):
    for _ in range(50):
        grey = dice.colour(saturation=(0.0, 0.0), value=(0.3, 0.4))
        assert grey[0] == grey[1] == grey[2] and 0.3 <= grey[0] <= 0.4
        red = dice.colour((0.98, 1.02), (0.9, 1.0), (0.5, 1.0))
        assert red[0] > 2 * max(red[1:])


def test_mix_and_direction():
    assert mix((0, 0, 0), (1.0, 0.5, 0), 0.5) == (0.5, 0.25, 0)
    cos, sin = direction(math.pi / 6)
    assert cos == pytest.approx(math.sqrt(3) / 2, abs=1e-8) and sin == 0.5


def test_fraction_of_negative_numbers():
    x = np.array([-1.25, -1, 0, 0.75, 3.5], np.float32)
    np.testing.assert_array_equal(fraction(x), [0.75, 0, 0, 0.75, 0.5])


def test_profile_is_linear_between_knots_and_constant_outside():
    x = np.array([-1, 0, 0.5, 1, 2, 3, 9], np.float32)
    found = profile(x, (0.0, 1.0, 3.0), (1.0, 3.0, 2.0))
    np.testing.assert_allclose(found, [1, 1, 2, 3, 2.5, 2, 2], rtol=1e-6)
    assert found.dtype == np.float32


def test_field_passes_through_its_grid(dice):
    grid = dice.grid(4, 6)
    y, x = (np.linspace(0, 1, n, dtype=np.float32) for n in (4, 6))
    np.testing.assert_allclose(field(grid, y, x), grid, atol=1e-6)


def test_field_stays_between_its_knots(dice):
    fine = np.linspace(-0.1, 1.1, 57, dtype=np.float32)
    grid = dice.grid(5, 5)
    values = field(grid, fine, fine)
    assert values.dtype == np.float32
    assert grid.min() - 1e-6 <= values.min() and values.max() <= grid.max() + 1e-6
    flat = field(np.full((1, 5), 0.25, np.float32), fine, fine)
    np.testing.assert_allclose(flat, 0.25)


@pytest.mark.parametrize("side", [96, 192])
def test_textures_are_periodic_and_balanced(side):
    for name, texture in textures(side).items():
        assert texture.shape == (2 * side, 2 * side), name
        np.testing.assert_array_equal(texture[:side], texture[side:])
        np.testing.assert_array_equal(texture[:, :side], texture[:, side:])
        assert abs(texture.mean()) < 0.06 and 0.15 < texture.std() < 0.6, name
        # The seam between two periods is no edge.
        steps = np.abs(np.diff(texture, axis=0)).mean(axis=1)
        assert steps[side - 1] < 2 * np.median(steps), name
        with pytest.raises(ValueError, match="read-only"):
            texture[0, 0] = 0


def test_patch_is_clipped_to_the_window():
    painter = Painter(side=100, top=20, left=30, size=50)
    whole = painter.patch()
    assert whole.label.shape == (50, 50)
    assert whole.y[0, 0] == np.float32(0.205) and whole.x[0, -1] == np.float32(0.795)
    corner = painter.patch(0.75, 0.65, 2.0, 3.0)
    assert corner.label.shape == (5, 5)
    corner.fill(np.True_, (1.0, 0.5, 0.0), None, label=3, thing=9)
    assert (painter.label[-5:, -5:] == 3).all() and (painter.label == 3).sum() == 25
    assert (painter.instances == 9).sum() == 25
    np.testing.assert_array_equal(painter.image[:, -1, -1], [1.0, 0.5, 0.0])
    assert painter.patch(0.0, 0.0, 0.3, 1.0) is None
    assert painter.patch(0.0, 0.7, 1.0, 0.9) is None


def test_fill_without_label_keeps_class_and_object():
    patch = Painter(8, 0, 0, 8).patch()
    patch.fill(patch.x < 0.5, (1.0, 1.0, 1.0), 0.5, label=2, thing=4)
    patch.fill(np.True_, (0.0, 0.0, 0.0))
    assert not patch.image.any()
    assert (patch.label[:, :4] == 2).all() and not patch.label[:, 4:].any()
    assert (patch.instances[:, :4] == 4).all()
    patch.fill(patch.y < 0.5, (1.0, 1.0, 1.0), None, label=1)
    assert not patch.instances[:4].any()


def test_texture_of_a_window_is_the_window_of_the_texture():
    whole = Painter(96, 0, 0, 96).patch().texture("leaf", (0.9, 0.4))
    part = Painter(96, 20, 11, 64).patch().texture("leaf", (0.9, 0.4))
    np.testing.assert_array_equal(part, whole[20:84, 11:75])


def test_develop_with_neutral_light_keeps_the_colours():
    painter = Painter(96, 0, 0, 64)
    painter.patch().fill(np.True_, (0.0, 0.5, 1.0))
    image = develop(painter, NEUTRAL, np.random.default_rng(0))
    assert image.shape == (64, 64, 3) and image.dtype == np.uint8
    assert image.flags.c_contiguous
    np.testing.assert_array_equal(image.reshape(-1, 3).min(0), [0, 127, 255])
    np.testing.assert_array_equal(image.reshape(-1, 3).max(0), [0, 127, 255])


def test_develop_noise_has_the_strength_asked_for():
    painter = Painter(192, 0, 0, 192)
    painter.patch().fill(np.True_, (0.5, 0.5, 0.5))
    light = NEUTRAL._replace(noise=0.04)
    image = develop(painter, light, np.random.default_rng(0)) / 255
    assert image.std() == pytest.approx(0.04, rel=0.03)
    assert image.mean() == pytest.approx(0.5, abs=0.004)


def test_develop_blur_softens_edges_and_keeps_the_mean():
    painter = Painter(96, 0, 0, 96)
    painter.patch().fill(painter.x[None] < 0.5, (0.8, 0.8, 0.8))
    sharp = develop(painter, NEUTRAL, np.random.default_rng(0)).astype(int)
    soft = NEUTRAL._replace(blur=0.2)
    soft = develop(painter, soft, np.random.default_rng(0)).astype(int)
    assert (
        np.abs(np.diff(sharp, axis=1)).max() > 1.5 * np.abs(np.diff(soft, axis=1)).max()
    )
    assert soft.mean() == pytest.approx(sharp.mean(), abs=0.5)


def test_develop_light_slope_gain_haze_and_gamma():
    painter = Painter(96, 0, 0, 96)
    painter.patch().fill(np.True_, (0.4, 0.4, 0.4))

    def mean(**changes):
        light = NEUTRAL._replace(**changes)
        return develop(painter, light, np.random.default_rng(0)).astype(float)

    plain = mean()
    slope = mean(slope=(0.3, 0.0))
    assert slope[-1].mean() > plain.mean() * 1.1 > plain.mean() * 0.95 > slope[0].mean()
    assert mean(tint=(1.2, 1.0, 0.8))[..., 0].mean() > 1.15 * plain.mean()
    assert mean(haze=0.2).mean() > plain.mean() + 20
    assert mean(gamma=0.8).mean() > plain.mean() > mean(gamma=1.25).mean()
