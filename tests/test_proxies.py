import math

import numpy as np
import pytest
import torch

from uss_utils import figures, proxies
from uss_utils.environment import generator


def unit(*degrees):
    angle = torch.deg2rad(torch.tensor(degrees, dtype=torch.float32))
    return torch.stack([angle.cos(), angle.sin()], 1)


def faces(collection):
    """Colours of a scatter's points, as bytes."""
    return np.rint(255 * collection.get_facecolors()[:, :3]).astype(int).tolist()


def names(figure):
    return [text.get_text() for text in figure.legends[0].get_texts()]


class TestBlobs:
    def test_points_lie_on_the_circle_around_their_middles(self):
        points = proxies.blobs_on_circle([(90, 400, 50), (200, 4, 30)], generator(0))
        assert points.shape == (80, 2) and points.dtype == torch.float32
        torch.testing.assert_close(points.norm(dim=1), torch.ones(80))
        narrow, wide = points[:50] @ unit(90)[0], points[50:] @ unit(200)[0]
        assert narrow.min() > math.cos(math.radians(15)) > wide.min()
        assert wide.mean() > 0.7

    def test_the_generator_alone_decides(self):
        blobs = [(0, 5, 9)]
        first, second = (proxies.blobs_on_circle(blobs, generator(1)) for _ in "ab")
        assert torch.equal(first, second)
        assert not torch.equal(first, proxies.blobs_on_circle(blobs, generator(2)))


class TestZones:
    def test_three_zones_and_strict_boundaries(self):
        found = proxies.zones([-1, 0.25, 0.3, 0.5, 0.6], 0.5, 0.25)
        assert found.tolist() == [0, 1, 1, 1, 2]

    def test_beyond_both_boundaries_is_a_positive(self):
        found = proxies.zones(torch.tensor([[0.1, 0.4]]), torch.tensor(0.3), 0.6)
        assert found.tolist() == [[0, 2]]


class TestWalk:
    way = ((unit(0)[0], 0.9, 0.2), (unit(20)[0], torch.tensor(0.8), 0.5))

    def test_points_get_the_colour_of_their_zone(self):
        figure = proxies.walk_on_circle(unit(0, 30, 180), self.way)
        start, after = figure.axes
        colours = proxies.ZONE_COLOURS.tolist()
        assert faces(start.collections[1]) == [colours[2], colours[1], colours[0]]
        assert faces(after.collections[1]) == [colours[2], colours[2], colours[0]]
        assert start.get_title() == "start\nΦ 0.90, Ψ 0.20"
        assert after.get_title() == "step 1\nΦ 0.80, Ψ 0.50"
        assert names(figure) == list(proxies.ZONES)

    def test_stars_mark_the_places_so_far(self):
        stars = [
            [line for line in ax.lines if line.get_marker() == "*"]
            for ax in proxies.walk_on_circle(unit(0, 30), self.way).axes
        ]
        assert [len(trail.get_xdata()) for trail, _ in stars] == [1, 2]
        assert stars[1][1].get_xdata() == pytest.approx([math.cos(math.radians(20))])

    def test_of_a_long_way_first_and_last_are_shown(self):
        titles = [
            ax.get_title().split("\n")[0]
            for ax in proxies.walk_on_circle(unit(0), self.way[:1] * 11).axes
        ]
        assert titles == ["start", "step 2", "step 5", "step 8", "step 10"]

    def test_points_of_space_are_refused(self):
        with pytest.raises(ValueError, match=r"points \(N, 2\)"):
            proxies.walk_on_circle(torch.ones(4, 3), self.way)


class TestHistograms:
    def test_bars_have_the_colour_of_their_zone(self):
        cosines = torch.linspace(-1, 1, 600)
        figure = proxies.zone_histograms({"a": (cosines, 0.5, 0.0)})
        (ax,) = figure.axes
        middle = [bar.get_x() + bar.get_width() / 2 for bar in ax.patches]
        found = [np.rint(255 * np.array(bar.get_facecolor()[:3])) for bar in ax.patches]
        expected = proxies.ZONE_COLOURS[proxies.zones(middle, 0.5, 0.0)]
        assert np.array_equal(found, expected)
        assert sum(bar.get_height() for bar in ax.patches) == 600
        assert [line.get_xdata()[0] for line in ax.lines] == [0.0, 0.5]

    def test_no_panel(self):
        with pytest.raises(ValueError, match="at least one panel"):
            proxies.zone_histograms({})


class TestWidths:
    def test_boundaries_of_a_part_of_the_anchors_and_the_mean_of_all(self):
        phi, psi = torch.rand(3, 2, 50), torch.rand(3, 2, 50) - 1
        (ax,) = proxies.closing_zone(phi, psi).axes
        means = [line for line in ax.lines if "mean" in str(line.get_label())]
        assert len(ax.lines) <= 2 * (proxies.MOST_LINES + 1)
        for line, values in zip(means, (phi, psi), strict=True):
            assert np.allclose(line.get_ydata(), values.mean((1, 2)))

    def test_lonely_anchors_are_set_apart(self):
        moved, lonely = torch.tensor([[0.1, 0.2, 0.4]]), torch.tensor([[0, 1, 0]]) > 0
        figure = proxies.band_against_way(moved, 0.3 - moved, 0.3, lonely=lonely)
        _, right = figure.axes
        known, alone = right.lines[:2]
        assert known.get_xdata().tolist() == pytest.approx([0.1, 0.4])
        assert alone.get_ydata().tolist() == pytest.approx([0.1])
        assert len(right.get_legend().get_texts()) == 2
        none = proxies.band_against_way(moved, 0.3 - moved, 0.3).axes[1]
        assert len(none.get_legend().get_texts()) == 1


def test_figures_become_pictures():
    figure = proxies.closing_zone(torch.rand(2, 3), torch.rand(2, 3))
    assert figures.picture(figure)[0] == "png"
