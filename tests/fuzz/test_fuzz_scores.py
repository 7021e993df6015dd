"""Counts and scores of any prediction on any label."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from uss_utils.metrics import (
    MATCHINGS,
    Confusion,
    miou_per_image,
    mutual_information,
    rand_index,
)

pytestmark = pytest.mark.fuzz

SHAPES = hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=6)
NUMBERS = [np.uint8, np.int8, np.int16, np.int32, np.int64]


@st.composite
def maps(draw):
    """Classes, extra clusters, predictions and labels, some of them nonsense."""
    n, extra = draw(st.integers(1, 6)), draw(st.integers(-3, 4))
    shape = draw(SHAPES)
    strange = st.sampled_from([-1, 120, 7])
    arrays = []
    for top in (max(1, n + extra), n):
        kind = draw(st.sampled_from(NUMBERS))
        elements = st.integers(0, top - 1)
        if draw(st.booleans()):
            elements |= strange if kind != np.uint8 else st.sampled_from([120, 255])
        arrays.append(draw(hnp.arrays(kind, shape, elements=elements)))
    return n, extra, *arrays


@given(case=maps())
def test_counts_and_scores(case):
    n, extra, pred, label = case
    if n + extra < 1:
        with pytest.raises(ValueError, match="leaves no class or no cluster"):
            Confusion(n, extra)
        return
    confusion, clusters = Confusion(n, extra), n + extra
    counted = (label >= 0) & (label < n)
    wrong = counted & ((pred < 0) | (pred >= clusters))
    tensors = torch.from_numpy(pred), torch.from_numpy(label)
    if wrong.any():
        with pytest.raises(ValueError, match="pred holds ids from"):
            confusion.update(*tensors)
        assert not confusion.matrix.any()  # nothing is half counted
        return
    confusion.update(*tensors)
    expected = np.zeros((clusters, n), np.int64)
    np.add.at(expected, (pred[counted].astype(int), label[counted].astype(int)), 1)
    assert np.array_equal(confusion.matrix.numpy(), expected)
    both = confusion + confusion
    assert np.array_equal(both.matrix.numpy(), 2 * expected)
    if not counted.any():
        with pytest.raises(ValueError, match="no labelled pixel was counted"):
            confusion.scores()
        return
    for method in MATCHINGS:
        check_scores(confusion, both, method, int(counted.sum()))


def check_scores(confusion, both, method, total):
    n, matching = confusion.n_classes, confusion.match(method)
    table = matching.cluster_to_class
    assert len(table) == confusion.n_clusters
    assert -1 <= int(table.min()) and int(table.max()) < n
    if method.startswith("hungarian"):
        named = table[table >= 0].tolist()
        assert len(named) == len(set(named)) == min(n, confusion.n_clusters)
    scores = confusion.scores(matching)
    for value in (scores.acc, scores.miou, scores.miou_classes):
        assert 0 <= value <= 100 + 1e-9
    assert int(scores.histogram.sum()) == total
    assert np.allclose(scores.iou, both.scores(matching).iou, equal_nan=True)
    known = scores.iou[~scores.iou.isnan()]
    assert bool(((known >= 0) & (known <= 100 + 1e-9)).all())
    zeros = confusion.scores(matching, absent=0.0)
    assert not zeros.iou.isnan().any() and zeros.miou <= scores.miou + 1e-9
    assert 0 <= mutual_information(scores.histogram) <= 1
    assert -1 <= rand_index(scores.histogram) <= 1 + 1e-9


@given(
    label=hnp.arrays(np.int64, (2, 3, 4), elements=st.integers(-1, 3)),
    names=st.permutations(range(4)),
)
def test_perfect_segmentations(label, names):
    """Other names for the classes cost nothing; a class less costs something."""
    pred = np.where(label < 0, 0, np.array(names)[label.clip(0)])
    confusion = Confusion.of(torch.from_numpy(pred), torch.from_numpy(label), 4)
    if (label >= 0).any():
        scores = confusion.scores("hungarian")
        assert scores.acc == pytest.approx(100) == scores.miou
        assert mutual_information(confusion.matrix) == pytest.approx(1)
        assert rand_index(confusion.matrix) == pytest.approx(1)
    each = miou_per_image(torch.from_numpy(label), torch.from_numpy(label), 4)
    labelled = (label >= 0).any((1, 2))
    assert np.array_equal(each.isnan().numpy(), ~labelled)
    assert bool((each[torch.from_numpy(labelled)] == 100).all())


@given(
    a=hnp.arrays(st.sampled_from([*NUMBERS, np.float32, np.bool_]), SHAPES),
    b=hnp.arrays(st.sampled_from(NUMBERS), SHAPES),
)
def test_maps_that_do_not_fit(a, b):
    """Other shapes and types: one error, or counts of what is valid."""
    confusion = Confusion(3)
    pred, label = torch.from_numpy(a.copy()), torch.from_numpy(b.copy())
    counted = (b >= 0) & (b < 3)
    try:
        confusion.update(pred, label)
    except ValueError as error:
        assert "\n" not in str(error)
        same = a.shape == b.shape
        strange = same and (counted & ((a < 0) | (a > 2))).any()
        assert not same or a.dtype.kind == "f" or strange
        return
    assert int(confusion.matrix.sum()) == counted.sum()
