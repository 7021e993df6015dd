import math

import numpy as np
import pytest
import torch

from uss_utils import figures, objects_shown

IMAGE = np.full((8, 12, 3), 200, dtype=np.uint8)


def test_objects_are_tinted_and_the_rest_dark():
    shown = objects_shown.on_image(IMAGE, torch.tensor([[0, 1, 2], [0, 1, 0]]))
    assert shown.shape == (8, 12, 3)
    assert (shown[:, :4] == 60).all() and (shown[4:, 8:] == 60).all()
    colours = {tuple(c) for c in shown.reshape(-1, 3)}
    assert len(colours) == 3


def test_objects_in_sequence_have_different_hues():
    # Colours of a palette of pairs: the pale partner is no good neighbour.
    hues = []
    for number in (1, 2):
        ids = torch.full((2, 3), number)
        shown = objects_shown.on_image(IMAGE, ids).astype(float)[0, 0]
        hues.append(shown - shown.mean())
    cosine = hues[0] @ hues[1] / np.linalg.norm(hues[0]) / np.linalg.norm(hues[1])
    assert cosine < 0.5


def test_one_object_keeps_its_colours():
    shown = objects_shown.on_image(IMAGE, torch.tensor([[False, True, False]]))
    assert (shown[:, 4:8] == 200).all() and (shown[:, 8:] == 60).all()


def test_a_cut_is_told_from_left_to_right():
    # Two patches of one kind beside four of another; the middle one is of the latter.
    features = torch.eye(2)[[0, 0, 1, 1, 1, 1]]
    more = {"as stored": torch.zeros(8, 12, dtype=torch.int64)}
    figure = objects_shown.cut_strip(IMAGE, features, (2, 3), 0.5, **more)
    assert len(figure.axes) == 8  # two rows, the last one not full
    titles = [ax.get_title() for ax in figure.axes[:6]]
    expected = ["a patch", "its edges", "eigenvector", "one side"]
    assert titles == [*expected, "its largest piece", "as stored"]
    square = figure.axes[0].patches[0]
    assert square.get_xy() == (3.5, 3.5)
    assert (square.get_width(), square.get_height()) == (4, 4)
    edges = np.asarray(figure.axes[1].images[0].get_array())
    assert (edges > 0.5).tolist() == [[False, False, True], [True, True, True]]
    inside = (np.asarray(figure.axes[4].images[0].get_array()) != 60).any(2)
    assert inside[:4, :8].all() and inside.sum() == 32


class TestAreaGate:
    mask = torch.zeros(8, 12, dtype=torch.bool)
    mask[:4, :6] = True
    boxes = torch.tensor(
        [[[0, 0, 8, 12], [0, 0, 8, 6]], [[0, 0, 4, 6], [0, 0, 8, 12]]]
        + [[[4, 0, 4, 6], [0, 0, 8, 12]]]
    )

    def test_both_crops_have_to_pass(self):
        figure = objects_shown.area_gate(IMAGE, self.mask, self.boxes)
        accepted, rejected, dots = figure.axes
        assert accepted.get_title() == "1 pairs accepted; 1 shown"
        assert rejected.get_title() == "2 pairs rejected; 2 shown"
        assert [len(ax.patches) for ax in (accepted, rejected)] == [2, 4]
        found = np.asarray(dots.collections[0].get_offsets())
        assert np.allclose(found, [[25, 50], [100, 25], [0, 25]])

    def test_limits_are_excluded(self):
        figure = objects_shown.area_gate(IMAGE, self.mask, self.boxes, (0.25, 2.0))
        assert figure.axes[0].get_title() == "0 pairs accepted; 0 shown"


class TestCandidates:
    own = torch.tensor([0, 0, 1, 2])
    prototypes = torch.eye(3)
    logits = torch.log(
        torch.tensor(
            [
                [0.7, 0.1, 0.1, 0.1],
                [0.1, 0.7, 0.1, 0.1],
                [0.1, 0.8, 0.05, 0.05],
                [0.2, 0.2, 0.2, 0.4],
            ]
        )
    )

    def heat(self, prototypes=prototypes, groups=(1, 0, 1)):
        names = ("sky", "road")
        figure = objects_shown.candidates(
            self.logits, self.own, prototypes, groups, names
        )
        return figure.axes[0]

    def test_pixels_of_an_object_are_averaged_and_objects_sorted(self):
        ax = self.heat()
        expected = [
            [0.8, 0.1, 0.05, 0.05],
            [0.4, 0.4, 0.1, 0.1],
            [0.2, 0.2, 0.2, 0.4],
        ]
        assert np.allclose(ax.images[0].get_array(), expected)
        own = [patch.get_xy() for patch in ax.patches]
        assert own == [(-0.5, -0.5), (0.5, 0.5), (1.5, 1.5)]
        assert ax.get_title().startswith("50% of the pixels find their object; 56%")
        assert [t.get_text() for t in ax.get_yticklabels()] == ["sky", "road"]
        words = [t.get_text() for t in ax.get_xticklabels()]
        assert words == ["sky", "road", "queue"]

    def test_objects_without_prototype_are_no_candidates(self):
        prototypes = self.prototypes.clone()
        prototypes[1] = 0
        shares = self.heat(prototypes).images[0].get_array()
        assert shares.shape == (2, 3)
        assert np.allclose(shares.sum(1), 1)
        assert np.allclose(shares[1], [0.25, 0.25, 0.5])

    def test_what_was_given_stays(self):
        before, prototypes = self.logits.clone(), self.prototypes.clone()
        prototypes[1] = 0
        self.heat(prototypes)
        assert torch.equal(self.logits, before)


class TestLandmarks:
    def test_numbers_of_the_paper(self):
        found = objects_shown.loss_landmarks(32, 128, 0.5)
        rounded = {name: round(level, 2) for name, level in found.items()}
        assert rounded == {"start": 3.9, "stall": 5.08, "floor": 3.11}

    def test_without_a_queue_start_and_stall_are_one(self):
        found = objects_shown.loss_landmarks(8, 0, 0.2)
        assert found["start"] == found["stall"] == pytest.approx(math.log(8))

    def test_every_panel_gets_its_levels(self):
        rows = [{"step": i, "a": 2.0 - i / 10, "b": 0.5, "c": 1.0} for i in range(12)]
        levels = {"a": {"start": 2.0, "floor": 0.5}, "b": {}, "c": {"guessing": 0.1}}
        figure = objects_shown.landmark_curves(rows, levels)
        words = [[text.get_text() for text in ax.texts] for ax in figure.axes]
        assert words == [["start", "floor"], [], ["guessing"]]
        drawn = [line.get_ydata()[0] for line in figure.axes[0].lines[-2:]]
        assert drawn == [2.0, 0.5]
        assert figures.picture(figure)[0] == "png"
