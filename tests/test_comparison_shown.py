"""Figures of the comparison: every method and number shown, bad input refused."""

import numpy as np
import pytest
from matplotlib.figure import Figure

from tests.test_comparison import FULL, record
from uss_utils import comparison
from uss_utils import comparison_shown as shown

ROWS = comparison.rows(FULL)
CLASSES, PALETTE = ("sky", "road"), np.array([[0, 0, 255], [90, 90, 90]], np.uint8)


def texts(figure: Figure) -> str:
    figure.canvas.draw()
    found = [t.get_text() for t in figure.findobj(lambda a: hasattr(a, "get_text"))]
    return "\n".join(found)


@pytest.mark.parametrize("draw", [shown.seed_points, shown.both_maps])
def test_every_method_and_seed_is_drawn(draw):
    figure = draw(ROWS)
    assert "k-means" in texts(figure) and "HSG †" in texts(figure)
    offsets = [
        c.get_offsets() for c in figure.axes[0].collections if c.get_offsets
    ].copy()
    drawn = {float(x) for each in offsets for x, _ in np.asarray(each)}
    assert {30.0, 32.0, 20.0} <= drawn
    with pytest.raises(ValueError, match="no method has records"):
        draw([])


def test_both_maps_are_joined_seed_by_seed():
    figure = shown.both_maps(ROWS)
    drawn = [c.get_offsets() for c in figure.axes[0].collections]
    assert {31.0, 33.0, 21.0} <= {float(x) for each in drawn for x, _ in each}
    assert "† a whole network trained" in texts(figure)
    assert "accuracy of the clusters" in texts(shown.both_maps(ROWS, measure="acc"))


def test_the_map_of_wins_holds_a_number_per_pair():
    pair = [record("stego", 33.0), record("kmeans", 30.0)]
    figure = shown.win_map(*comparison.wins([*pair, *FULL[2:]]))
    assert "100" in texts(figure) and "HSG †" in texts(figure)


def test_classes_absolute_and_against_another_method():
    iou = {"a": [50.0, np.nan], "b": [30.4, 10.0]}
    assert "30" in texts(shown.class_map(iou, CLASSES))
    against = texts(shown.class_map(iou, CLASSES, against="a"))
    assert "-20" in against and "points above a" in against
    with pytest.raises(ValueError, match="no method 'c'; there are: a, b"):
        shown.class_map(iou, CLASSES, against="c")
    with pytest.raises(ValueError, match="expected 3 values per method"):
        shown.class_map(iou, [*CLASSES, "car"])
    with pytest.raises(ValueError, match="expected 2 values"):
        shown.class_map({}, CLASSES)


def test_costs_that_nobody_noted_are_named():
    assert "not noted: k-means" in texts(shown.cost_against_quality(ROWS))
    figure = shown.cost_against_quality(ROWS, "parameters")
    assert "not noted: HSG †" in texts(figure) and "k-means" in texts(figure)
    with pytest.raises(ValueError, match="unknown cost 'euro'; known: seconds, param"):
        shown.cost_against_quality(ROWS, "euro")


def test_close_points_do_not_hide_each_others_names():
    sizes = {"backbone": 0, "head": 0, "cluster_probe": 100}
    pair = [record(n, 30.0, parameters=sizes) for n in ("stego", "hp")]
    figure = shown.cost_against_quality(comparison.rows(pair), "parameters")
    figure.canvas.draw()
    a, b = (t.get_window_extent() for t in figure.axes[0].texts)
    assert not a.overlaps(b)


def pictures():
    n = 3
    images = np.zeros((n, 8, 8, 3), np.uint8)
    truth = np.zeros((n, 8, 8), np.int64)
    guesses = {"a": truth.copy(), "b": 1 - truth}
    marks = {
        "a": np.array([50.0, np.nan, 10.0])[:n],
        "b": np.array([1.0, 2.0, 3.0])[:n],
    }
    return images, truth, guesses, marks


def test_one_picture_for_all_methods():
    images, truth, guesses, _ = pictures()
    said = {name: each[0] for name, each in guesses.items()}
    legend = {"palette": PALETTE, "classes": CLASSES}
    figure = shown.same_picture(images[0], truth[0], said, **legend)
    assert all(word in texts(figure) for word in ("picture", "truth", "a", "b", "sky"))
    marks = {"a": 41.4, "b": 7.0}
    figure = shown.same_picture(images[0], truth[0], said, marks=marks, **legend)
    assert "a  41" in texts(figure) and "b  7" in texts(figure)


def test_the_worst_picture_is_chosen_by_score():
    legend = {"palette": PALETTE, "classes": CLASSES}
    images, truth, guesses, marks = pictures()
    truth[2] = 1  # the worst of a: number 2; of b: number 0
    figure = shown.worst_pictures(images, truth, guesses, marks, **legend)
    assert "a\n10" in texts(figure) and "b\n1" in texts(figure)
    second = [ax.images[0].get_array() for ax in figure.axes[2:4]]
    assert (second[0][0, 0] == PALETTE[1]).all()
    assert (second[1][0, 0] == PALETTE[0]).all()
