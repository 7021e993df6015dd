"""Figures of scaling up: what they say is drawn, bad input is refused."""

import numpy as np
import pytest

from tests.test_comparison_shown import texts
from uss_utils import scaling_shown as shown

STEP = {"reading": 0.5, "network": 3.0, "head": 0.5}


def test_bars_carry_their_parts_and_their_whole():
    figure = shown.time_bars({"images": STEP, "cache": STEP | {"network": 0.0}})
    for words in ("images", "cache", "network", "3 s", "4 s", "1 s"):
        assert words in texts(figure)
    widths = sum(patch.get_width() for patch in figure.axes[0].patches)
    assert widths == pytest.approx(5.0)
    with pytest.raises(ValueError, match="at least one row"):
        shown.time_bars({})


def test_formats_have_a_box_per_bit():
    figure = shown.number_formats()
    assert len(figure.axes[0].patches) == 32 + 16 + 16
    assert "16 bits: 8 for the reach, 7 for the fineness" in texts(figure)


def test_parts_lose_pairs_and_processes_do_not():
    figure = shown.compared_pairs(8)
    tables = [ax.collections[0].get_array().ravel() for ax in figure.axes]
    assert [(np.asarray(table) < 0).mean() for table in tables] == [0.0, 0.5, 0.0]
    assert "2 parts: 50% of the pairs" in texts(figure)
    assert "3 parts: 33%" in texts(shown.compared_pairs(9, 3))
    for n, shares in ((2, 3), (9, 5), (3, 0)):
        with pytest.raises(ValueError, match="cannot be shown"):
            shown.compared_pairs(n, shares)


def test_processes_read_their_half_and_gather_all():
    pictures = [np.full((8, 8, 3), 10 * i, np.uint8) for i in range(4)]
    figure = shown.shared_batch(pictures, pictures)
    alpha = [image.get_alpha() for image in figure.axes[0].images]
    assert alpha == [1, 1, 0.15, 0.15, 1, 1, 1, 1, 0.15, 0.15, 1, 1, 1, 1, 1, 1]
    assert "frozen network:\nits 2 images" in texts(figure)
    for images, features in ((3, 3), (4, 2), (8, 8)):
        with pytest.raises(ValueError, match="2, 4 or 6 images"):
            shown.shared_batch(pictures[:1] * images, pictures[:1] * features)


def test_curves_and_their_distance():
    loss = np.linspace(2.0, 1.0, 6)
    same = shown.overlaid({"one": loss, "two": loss.copy()})
    assert "the difference is 0 everywhere" in texts(same) and len(same.axes) == 1
    figure = shown.overlaid({"one": loss, "two": loss + 1e-6}, marks={"killed": 3})
    assert "0 everywhere" not in texts(figure) and "killed" in texts(figure)
    (far,) = [line for line in figure.axes[1].lines if line.get_label() == "two"]
    np.testing.assert_allclose(far.get_ydata(), 1e-6, rtol=1e-6)
    with pytest.raises(ValueError, match=r"equal length, got \[6, 5\]"):
        shown.overlaid({"one": loss, "two": loss[1:]})


def test_speed_follows_amdahl():
    figure = shown.speedups({"half": 0.5, "none": 0.0}, most=4)
    _, half, none = [line.get_ydata() for line in figure.axes[0].lines]
    np.testing.assert_allclose(half, [1, 1 / 0.75, 1.5, 1.6])
    np.testing.assert_allclose(none, 1)
    with pytest.raises(ValueError, match="between 0 and 1"):
        shown.speedups({"all": 1.5})
