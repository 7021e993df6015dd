"""Normalised foreground covering: the worked example, properties, what is refused."""

import math

import numpy as np
import pytest
import torch

from uss_utils.covering import (
    covering_by_budget,
    foreground_covering,
    mean_covering,
    region_covering,
)
from uss_utils.hierarchy import Hierarchy


def example():
    """Two objects on a grid of 4 x 6, and four predicted regions."""
    label = torch.zeros(4, 6, dtype=torch.int64)
    label[:2, :3], label[2:, 3:] = 1, 2
    regions = torch.zeros(4, 6, dtype=torch.int64)
    regions[:2, :4], regions[2, 3:], regions[3] = 1, 2, 3
    return label, regions


def by_hand(label, levels, left_out=(0, -1)):
    """The formula, one pair of regions after the other."""
    found = []
    for i in np.setdiff1d(label, left_out):
        true = label == i
        pairs = [(true, level == s) for level in levels for s in np.unique(level)]
        found.append(max((r & s).sum() / (r | s).sum() for r, s in pairs))
    return np.mean(found)


def test_the_worked_example():
    label, regions = example()
    assert region_covering(label, [regions])[0].tolist() == [0.75, 0.5]
    assert foreground_covering(label, [regions]) == 0.625
    assert foreground_covering(label, [regions, label == 2]) == 0.875
    assert foreground_covering(label.numpy(), [label.numpy()]) == 1


@pytest.mark.parametrize("seed", range(5))
def test_it_is_the_formula(seed):
    rng = np.random.default_rng(seed)
    label = rng.integers(-1, 5, (9, 11))
    levels = [rng.integers(0, 2 + 3 * k, (9, 11)) * 7 - 2 for k in range(3)]
    assert foreground_covering(label, levels) == pytest.approx(by_hand(label, levels))
    other = foreground_covering(label, levels, background=(2, 4), ignore=1)
    assert other == pytest.approx(by_hand(label, levels, (1, 2, 4)))


@pytest.mark.parametrize("seed", range(5))
def test_more_levels_never_lower_it(seed):
    rng = np.random.default_rng(seed)
    label = rng.integers(0, 4, (8, 8))
    levels = [rng.integers(0, 6, (8, 8)) for _ in range(6)]
    found = [foreground_covering(label, levels[:n]) for n in range(1, 7)]
    assert found == sorted(found)
    assert all(0 < value <= 1 for value in found)


def test_every_object_counts_the_same():
    label = np.zeros((10, 10), int)
    label[0, 0], label[3:] = 1, 2
    assert foreground_covering(label, [label == 1]) == pytest.approx(
        (1 + 0.7 / 0.99) / 2
    )


def test_budgets():
    label, regions = example()
    levels = Hierarchy.of([regions, regions.clamp(max=1), regions * 0])
    assert levels.counts == (4, 2, 1)
    found = covering_by_budget(label, levels, [0, 1, 2, 3, 6, 7, 100])
    whole = foreground_covering(label, levels.levels[2:])
    two = foreground_covering(label, levels.levels[1:])
    assert found == pytest.approx([0, whole, whole, two, two, 0.625, 0.625])
    assert found == sorted(found)


def test_images_without_objects_are_left_out_of_the_mean():
    label, regions = example()
    empty = foreground_covering(label * 0, [regions])
    assert math.isnan(empty)
    assert math.isnan(covering_by_budget(label * 0 - 1, [regions], [5])[0])
    assert mean_covering([empty, 0.5, 1.0]) == 0.75
    assert math.isnan(mean_covering([empty])) and math.isnan(mean_covering([]))


def test_what_cannot_be_covered_is_refused():
    label, regions = example()
    with pytest.raises(ValueError, match="at least one level"):
        foreground_covering(label, [])
    with pytest.raises(
        ValueError, match=r"level has shape \(4, 5\), the true .*\(4, 6"
    ):
        foreground_covering(label, [regions[:, :5]])
