import math

import numpy as np
import pytest
import torch

from uss_utils import regions, regions_shown
from uss_utils.regions_shown import LINE, PADDING

IDS = np.array([[0, 0, 1, 1], [0, 0, 1, 1], [2, 2, 2, 2], [2, 2, 2, 2]])
IMAGE = np.zeros((4, 4, 3), np.uint8)
IMAGE[:2, :2], IMAGE[:2, 2:], IMAGE[2:] = 40, 120, 200


def shown(ax):
    return np.asarray(ax.images[0].get_array())


def test_colours_differ():
    colours = regions_shown.many_colours(48)
    assert colours.shape == (48, 3) and colours.dtype == np.uint8
    assert len({tuple(c) for c in colours}) == 48


def test_outlines_leave_the_rest_alone():
    found = regions_shown.outlined(IMAGE, IDS)
    line = regions.borders(IDS)
    assert (found[line] == LINE).all() and (found[~line] == IMAGE[~line]).all()


def test_an_image_at_another_size():
    assert regions_shown.photo_at(IMAGE, 8).shape == (8, 8, 3)
    assert regions_shown.photo_at(IMAGE[:2], 8).shape == (4, 8, 3)


class TestCut:
    strength = np.zeros((4, 4), np.float32)
    tree = regions.Tree(IDS, np.array([[0, 1, 0.2], [2, 3, 0.6]]))

    def draw(self, threshold, cap):
        rows = IMAGE, self.strength, self.tree
        return regions_shown.tree_cut(*rows, threshold, 0.1, cap)

    def test_regions_of_the_chosen_threshold(self):
        figure = self.draw(0.3, 48)
        titles = [ax.get_title() for ax in figure.axes]
        assert titles[1] == "cut at 0.30"
        assert titles[2] == "2 regions, mean colours"
        top = shown(figure.axes[2])[:2]
        assert (top == 80).all()

    def test_the_cross_is_where_there_are_few_enough(self):
        chart = self.draw(0.3, 2).axes[3]
        chosen, final = (line.get_xydata()[0] for line in chart.lines[-2:])
        assert chosen.tolist() == [0.3, 2]
        assert final == pytest.approx([0.2, 2])


class TestViews:
    regions = torch.tensor([IDS.tolist(), (IDS + 1).tolist()])
    views = torch.zeros(2, 3, 4, 4)

    def test_only_shared_regions_have_a_colour(self):
        valid = torch.ones(2, 4, 4, dtype=torch.bool)
        figure = regions_shown.shared_regions(self.views, self.regions, valid)
        titles = [ax.get_title() for ax in figure.axes]
        assert titles[1] == titles[3] == "2 of 3 regions shared"
        first, second = shown(figure.axes[1]), shown(figure.axes[3])
        assert (first[0, 0] == 128).all()  # region 0 has no partner
        assert np.array_equal(first[0, 3], second[0, 0])  # region 1
        assert (second[3, 3] == 128).all()  # region 3

    def test_padding_is_white_and_counts_for_nothing(self):
        valid = torch.ones(2, 4, 4, dtype=torch.bool)
        valid[:, 2:] = False
        figure = regions_shown.shared_regions(self.views, self.regions, valid)
        assert figure.axes[1].get_title() == "1 of 2 regions shared"
        for ax in figure.axes:
            assert (shown(ax)[2:] == PADDING).all()


class TestRounds:
    angle = torch.tensor([0.0, 0.1, 1.6, 1.5])
    rows = torch.stack([angle.cos(), angle.sin()], 1)
    start, right = torch.tensor([0, 1, 0, 1]), torch.tensor([0, 0, 1, 1])

    def test_tightness_by_hand(self):
        found = regions_shown.tightness(self.rows, self.right, 2)
        assert found == pytest.approx(4 * math.cos(0.05), abs=1e-5)
        assert regions_shown.tightness(self.rows, self.start, 2) < found

    def test_an_empty_cluster_counts_as_zero(self):
        one = torch.zeros(4, dtype=torch.int64)
        assert regions_shown.tightness(self.rows, one, 1) == pytest.approx(
            regions_shown.tightness(self.rows, one, 3)
        )

    @pytest.mark.parametrize("chosen", [0, 1])
    def test_the_chosen_round_is_drawn(self, chosen):
        past = self.right[None]
        figure = regions_shown.kmeans_rounds(
            IMAGE, self.rows, self.start, past, (2, 2), chosen
        )
        _, clusters, chart = figure.axes
        assert clusters.get_title() == f"2 clusters, round {chosen}"
        colours = shown(clusters)
        same = np.array_equal(colours[0, 0], colours[0, 1])
        assert same == bool(chosen)
        curve, dot = chart.lines
        assert np.diff(curve.get_ydata()) > 0
        assert dot.get_xydata()[0].tolist() == curve.get_xydata()[chosen].tolist()
