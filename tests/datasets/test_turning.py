"""Turning and zooming images with their labels."""

import numpy as np
import pytest

from uss_utils.datasets.turning import random_turn, turn, turning_matrix
from uss_utils.environment import generator

RNG = np.random.default_rng(0)
IMAGE = RNG.integers(0, 256, (20, 30, 3), dtype=np.uint8)
LABEL = RNG.integers(0, 21, (20, 30))


def test_nothing_changes_without_turn_and_zoom():
    image, label = turn(IMAGE, LABEL, 0.0, 1.0)
    assert np.array_equal(image, IMAGE) and np.array_equal(label, LABEL)
    assert label.dtype == LABEL.dtype and image.dtype == np.uint8


def test_matrix_keeps_the_centre_and_scales_areas():
    matrix = turning_matrix((20, 30), 17.0, 0.8)
    assert matrix @ [15, 10, 1] == pytest.approx([15, 10])
    assert np.linalg.det(matrix[:, :2]) == pytest.approx(0.64)


def test_positive_angles_turn_counter_clockwise():
    label = np.zeros((41, 41), np.int64)
    label[20, 30] = 7  # right of the centre
    _, turned = turn(np.zeros((41, 41, 3), np.uint8), label, 90.0, 1.0)
    rows, columns = np.nonzero(turned == 7)
    assert rows.tolist() == [11] and columns.tolist() == [20]  # above it


def test_what_comes_in_from_outside():
    white = np.full((20, 30, 3), 255, np.uint8)
    ones = np.ones((20, 30), np.int64)
    image, label = turn(white, ones, 4.0, 0.75)
    assert set(np.unique(label)) == {-1, 1}
    assert image[0, 0].tolist() == [0, 0, 0] and label[0, 0] == -1
    assert image[10, 15].tolist() == [255] * 3 and label[10, 15] == 1
    _, label = turn(white, ones, 4.0, 0.75, fill_label=0)
    assert set(np.unique(label)) == {0, 1}
    assert (turn(white, ones, 0.0, 1.25)[1] == 1).all()


def test_labels_are_optional_and_have_to_fit():
    image, label = turn(IMAGE, None, 3.0, 0.9)
    assert label is None and image.shape == IMAGE.shape
    with pytest.raises(ValueError, match="label of 30x20 pixels for an image of 20x30"):
        turn(IMAGE, LABEL.T, 3.0, 0.9)
    with pytest.raises(ValueError, match="scale 0.0 must be above 0; 1 keeps"):
        turn(IMAGE, LABEL, 3.0, 0.0)


def test_random_turns_follow_the_generator():
    first, again, other = (
        random_turn(IMAGE, LABEL, generator(seed)) for seed in (1, 1, 2)
    )
    for a, b, c in zip(first, again, other, strict=True):
        assert np.array_equal(a, b) and not np.array_equal(a, c)


def test_ranges_and_mirroring():
    still = {"degrees": (0, 0), "scale": (1, 1)}
    source = generator(0)
    drawn = [random_turn(IMAGE, LABEL, source, **still) for _ in range(200)]
    mirrored = [np.array_equal(label, LABEL[:, ::-1]) for _, label in drawn]
    same = [np.array_equal(image, IMAGE) for image, _ in drawn]
    assert all(a != b for a, b in zip(mirrored, same, strict=True))
    assert 0.4 < np.mean(mirrored) < 0.6
    always = random_turn(IMAGE, LABEL, source, mirror=1.0, **still)
    assert np.array_equal(always[0], IMAGE[:, ::-1])
    assert (random_turn(IMAGE, None, source)[1]) is None
