import numpy as np
import pytest
import torch

from uss_utils import crf, figures, masks_shown
from uss_utils.environment import generator
from uss_utils.pca import PCA

IMAGE = np.full((8, 12, 3), 200, dtype=np.uint8)


def shown(ax):
    """What the axes' picture holds, and where it is hidden."""
    return np.ma.asarray(ax.images[0].get_array())


class Model:
    """Stands for a Segmenter: its clusters are all that is looked at."""

    def __init__(self, clusters):
        self.cluster_probe = self
        self.clusters = torch.nn.Parameter(clusters)


class TestEnlarge:
    def test_patches_become_blocks(self):
        found = masks_shown.enlarge(torch.arange(6).view(2, 3), (4, 6))
        assert found.shape == (4, 6)
        assert found[0].tolist() == [0, 0, 1, 1, 2, 2] and found[3, 5] == 5

    def test_sizes_need_not_divide(self):
        found = masks_shown.enlarge([[0, 1]], (3, 5))
        assert found.tolist() == [[0, 0, 0, 1, 1]] * 3


def test_colours_of_masks_hold_no_grey():
    colours = masks_shown.mask_colours(40).astype(int)
    assert len(colours) == 40 and (np.ptp(colours, axis=1) > 16).all()


class TestFilmStrip:
    feat = torch.tensor([[[3.0, 0.0, 0.0], [0.0, 0.0, 5.0]]]).repeat(2, 1, 1)
    feat[1] = torch.tensor([[0.0, 2.0, 2.0], [2.0, 2.0, 0.0]])
    directions = (torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0]))
    masks = (feat[0] > 0, feat[1] > 0)

    def film(self, seeds):
        return masks_shown.film_strip(
            IMAGE, self.feat, self.masks, seeds, self.directions
        )

    def test_rows_are_the_steps_of_a_round(self):
        figure = self.film((0, torch.tensor([1])))
        axes = np.array(figure.axes).reshape(len(masks_shown.ROWS), 2)
        assert [ax.get_ylabel() for ax in axes[:, 0]] == list(masks_shown.ROWS)
        assert [ax.get_title() for ax in axes[0]] == ["round 1", "round 2"]
        assert [ax.get_title() for ax in axes[3]] == ["67% left", "0% left"]
        along, like, mask, left = axes[:, 0]
        assert shown(along).tolist() == [[1, 0, 0], [0, 0, 1]]
        assert shown(like).tolist() == [[1, 0, 0], [0, 0, 1]]
        assert like.lines[0].get_xydata().tolist() == [[0, 0]]
        inside = (shown(mask) != 200).any(2)
        assert np.array_equal(inside, masks_shown.enlarge(self.masks[0], (8, 12)))
        assert np.array_equal((shown(left) != 200).any(2), inside)

    def test_what_left_is_hidden_in_later_rounds(self):
        axes = np.array(self.film((0, 1)).axes).reshape(4, 2)
        assert np.array_equal(shown(axes[0, 1]).mask, self.masks[0])
        assert (shown(axes[3, 1]) == 128).all()

    def test_rounds_that_did_not_happen_are_left_out(self):
        assert len(self.film((0, -1)).axes) == len(masks_shown.ROWS)
        with pytest.raises(ValueError, match="at least one round"):
            self.film((-1, -1))


class TestSharpened:
    ids = torch.tensor([[0, 0, -1], [1, 1, 1]])

    def test_without_the_crf_the_masks_stay(self, monkeypatch):
        monkeypatch.setattr(crf, "available", lambda: False)
        figure = masks_shown.sharpened(IMAGE, self.ids, 2, 5, crf.DEFAULT)
        assert [ax.get_title() for ax in figure.axes] == ["image", "median"]

    def test_a_gain_makes_the_masks_heard(self):
        if not crf.available():
            pytest.skip("pydensecrf is missing")
        # One patch of a mask inside another one, on a picture of one colour.
        ids = torch.zeros(8, 8, dtype=torch.long)
        ids[2, 2] = 1
        image = np.full((32, 32, 3), 90, dtype=np.uint8)
        figure = masks_shown.sharpened(image, ids, 2, 30, crf.DEFAULT)
        titles = [ax.get_title() for ax in figure.axes]
        assert titles == ["image", "median", "published", "yours"]
        colours = [
            len(np.unique(shown(ax).reshape(-1, 3), axis=0)) for ax in figure.axes
        ]
        assert colours == [1, 2, 1, 2]


class TestVotes:
    inside = torch.zeros(8, 12, dtype=torch.bool)
    inside[:2] = True

    def test_the_winner_is_named(self):
        votes = torch.tensor([4, 18, 2])
        figure = masks_shown.mask_votes(IMAGE, self.inside, votes)
        picture, bars = figure.axes
        assert [bar.get_height() for bar in bars.patches] == [4, 18, 2]
        assert bars.get_title() == "group 1 wins with 75%"
        assert np.array_equal((shown(picture) != 200).any(2), self.inside)

    def test_nobody_voted(self):
        with pytest.raises(ValueError, match="the mask is empty"):
            masks_shown.mask_votes(IMAGE, self.inside, torch.zeros(3))


class TestLines:
    def test_a_line_per_panel_and_marks_in_all(self):
        panels = {"a": ([0, 1, 2], torch.ones(3)), "b": (range(2), [3, 4])}
        names = {"xlabel": "t", "ylabel": "weight"}
        figure = masks_shown.line_panels(panels, **names, marks={"here": 0.5})
        assert [ax.get_ylabel() for ax in figure.axes] == ["weight", ""]
        assert [ax.get_title() for ax in figure.axes] == ["a", "b"]
        for ax, (_, y) in zip(figure.axes, panels.values(), strict=True):
            line, mark = ax.lines
            assert line.get_ydata().tolist() == list(y)
            assert mark.get_xdata() == [0.5, 0.5]
            assert ax.texts[0].get_text() == "here"

    def test_no_panel(self):
        with pytest.raises(ValueError, match="at least one panel"):
            masks_shown.line_panels({})


class TestGroups:
    def test_prototypes_keep_their_direction_not_their_length(self):
        patches = torch.randn(50, 4, generator=generator(0))
        rows = torch.eye(4)[:3]
        models = {"short": Model(rows), "long": Model(9 * rows)}
        short, long = masks_shown.prototypes_in_plane(patches, models).axes
        expected = PCA.fit(patches, 2).transform(patches.norm(dim=1).mean() * rows)
        for ax in (short, long):
            assert np.allclose(ax.collections[1].get_offsets(), expected, atol=1e-5)

    def test_bars_stand_group_by_group_in_their_colours(self):
        values = {"start": torch.tensor([0.2, 0.9]), "end": [0.4, 0.8]}
        (ax,) = masks_shown.group_bars(values, ylabel="a").axes
        height = [bar.get_height() for bar in ax.patches]
        assert height == pytest.approx([0.2, 0.9, 0.4, 0.8])
        first, second = (bar.get_facecolor()[:3] for bar in ax.patches[:2])
        colours = masks_shown.group_colours(2) / 255
        assert np.allclose([first, second], colours)
        assert ax.patches[0].get_x() < ax.patches[2].get_x() < ax.patches[1].get_x()
        assert ax.get_title().endswith("start, end")

    def test_no_moment(self):
        with pytest.raises(ValueError, match="at least one moment"):
            masks_shown.group_bars({})


def test_figures_become_pictures():
    figure = masks_shown.group_bars({"start": [0.1, 0.2]})
    assert figures.picture(figure)[0] == "png"
