import numpy as np
import pytest
import torch

from uss_utils import plots
from uss_utils.environment import generator
from uss_utils.similarity import precision_recall

VALUES = torch.tensor([[0.0, 1.0], [2.0, 3.0]])


class TestSplitHistogram:
    def test_shares_and_colours_of_both_sides(self):
        figure = plots.split_histogram(
            {"a": VALUES, "b": VALUES - 1}, 1.5, sides=("apart", "together")
        )
        titles = [ax.get_title() for ax in figure.axes]
        assert titles == [
            "a\n50% apart, 50% together",
            "b\n75% apart, 25% together",
        ]
        for ax in figure.axes:
            assert ax.lines[0].get_xdata()[0] == 1.5
            left = {b.get_facecolor() for b in ax.patches if b.get_x() < 1.4}
            right = {b.get_facecolor() for b in ax.patches if b.get_x() > 1.5}
            assert len(left) == len(right) == 1 and left != right

    def test_every_panel_may_have_its_own_limit(self):
        figure = plots.split_histogram({"a": VALUES, "b": VALUES}, {"a": -1, "b": 9})
        assert [ax.get_title().split("\n")[1] for ax in figure.axes] == [
            "0% below, 100% above",
            "100% below, 0% above",
        ]
        assert figure.axes[1].get_xlim()[1] == 9  # the limit stays in sight

    def test_shares_count_what_the_axis_leaves_out(self):
        values = torch.cat([torch.zeros(9999), torch.tensor([1e6])])
        figure = plots.split_histogram({"a": values, "b": VALUES}, 10)
        assert figure.axes[0].get_xlim()[1] < 100
        shown = sum(bar.get_height() for bar in figure.axes[0].patches)
        assert shown == 10_000  # at the edge, not lost

    @pytest.mark.parametrize("bad", [{}, {"a": []}, {"a": [1.0, np.nan]}])
    def test_bad_input(self, bad):
        with pytest.raises(ValueError, match="at least one|none, or not all finite"):
            plots.split_histogram(bad, 0.5)


class TestHistograms:
    def test_equal_areas_and_one_legend(self):
        panels = {"x": {"first": VALUES, "last": VALUES.repeat(5, 1)}}
        panels["y"] = {"first": VALUES + 1, "last": torch.ones(3)}
        figure = plots.histograms(panels, title="it moves")
        assert [ax.get_title() for ax in figure.axes] == ["x", "y"]
        for ax in figure.axes:
            areas = [patch.get_data().values.sum() for patch in ax.patches]
            assert areas == pytest.approx([1, 1])
        names = [text.get_text() for text in figure.legends[0].get_texts()]
        assert names == ["first", "last"]

    def test_constant_values(self):
        figure = plots.histograms({"x": {"all": torch.full((4,), 0.3)}})
        assert figure.axes[0].patches[0].get_data().values.max() == 1

    @pytest.mark.parametrize("bad", [{}, {"a": {"x": [1]}, "b": {"y": [1]}}])
    def test_bad_input(self, bad):
        with pytest.raises(ValueError, match="the same histograms"):
            plots.histograms(bad)


class TestRetrievalCurves:
    def test_few_points_are_drawn_of_many_and_the_ends_are_kept(self):
        draw = generator(0)
        relevant = torch.rand(5000, generator=draw) < 0.2
        score = relevant + torch.randn(5000, generator=draw)
        curve = precision_recall(score, relevant)
        figure = plots.retrieval_curves({"noisy": curve}, chance=0.2)
        line, level = figure.axes[0].lines
        assert 100 < len(line.get_xdata()) <= 500
        assert line.get_xdata()[-1] == 1
        complete = curve[0][curve[1] == 1].max()  # where recall first is 1
        assert line.get_ydata()[-1] == pytest.approx(float(complete))
        assert list(level.get_ydata()) == [0.2, 0.2]
        names = [text.get_text() for text in figure.legends[0].get_texts()]
        assert names == ["noisy", "blind guess"]

    def test_bad_input(self):
        with pytest.raises(ValueError, match="at least one curve"):
            plots.retrieval_curves({})
