"""Specks dropped, ids cleaned one by one, edges followed."""

import numpy as np
import pytest
import torch

from uss_utils import crf
from uss_utils.datasets.transforms import normalise
from uss_utils.mask_cleaning import clean_ids, clean_mask, refine_with_crf

needs_crf = pytest.mark.skipif(not crf.available(), reason="pydensecrf2 is missing")


def drawn(*boxes, size=(40, 50)):
    mask = np.zeros(size, bool)
    for top, left, bottom, right in boxes:
        mask[top:bottom, left:right] ^= True
    return mask


LARGE, SPECK = (5, 5, 15, 15), (30, 30, 33, 33)  # 100 and 9 of 2000 pixels


def test_specks_go():
    found = clean_mask(drawn(LARGE, SPECK))
    assert found.dtype == bool and np.array_equal(found, drawn(LARGE))


def test_values_above_one_half_count():
    soft = drawn(LARGE) * 0.51 + drawn(SPECK) * 0.9 + drawn((0, 40, 20, 50)) * 0.5
    for values in (soft, torch.from_numpy(soft)):
        assert np.array_equal(clean_mask(values), drawn(LARGE))


def test_diagonal_pixels_are_one_piece():
    mask = np.eye(40, dtype=bool)  # 40 of 1600 pixels
    assert np.array_equal(clean_mask(mask, 0.02), mask)


def test_holes_stay_holes():
    mask = drawn((5, 5, 25, 25), (10, 10, 12, 12))
    assert np.array_equal(clean_mask(mask), mask)


def test_a_ring_counts_with_its_hole_and_takes_along_what_lies_inside():
    ring, dot = [(10, 10, 16, 16), (11, 11, 15, 15)], (12, 12, 14, 14)
    others = drawn((20, 20, 30, 30))
    mask = drawn(*ring, dot) | others  # 20 + 4 pixels, 36 with the hole
    assert np.array_equal(clean_mask(mask, 37 / 2000), others)
    # The ring is large enough, the dot in it is not.
    assert np.array_equal(clean_mask(mask, 36 / 2000), drawn(*ring) | others)


def test_too_little_is_nothing():
    assert clean_mask(drawn(SPECK)) is None
    assert clean_mask(drawn(), 0.0) is None
    assert clean_mask(drawn((0, 0, 4, 5))).sum() == 20  # exactly one hundredth
    # Filled it may stay, but without its hole it is too small for the image.
    assert clean_mask(drawn((0, 0, 5, 5), (1, 1, 4, 4))) is None


def test_whole_images_stay():
    assert clean_mask(np.ones((4, 6))).all()


def test_ids_are_cleaned_one_by_one_and_numbered_anew():
    ids = drawn(LARGE).astype(np.uint8) * 7 + drawn((20, 20, 30, 30)) * np.uint8(2)
    ids += drawn(SPECK).astype(np.uint8) * 5 + drawn((20, 30, 23, 33)) * np.uint8(7)
    found = clean_ids(ids)
    assert found.dtype == np.uint8
    assert np.array_equal(found, 2 * drawn(LARGE) + drawn((20, 20, 30, 30)))
    assert np.array_equal(clean_ids(torch.from_numpy(ids)), found)
    assert clean_ids(drawn(SPECK) * 3) is None
    assert clean_ids(drawn().astype(np.uint8)) is None


def test_wrong_input():
    with pytest.raises(ValueError, match=r"finite and of shape \(H, W\), got \(2,\)"):
        clean_mask(np.ones(2))
    with pytest.raises(ValueError, match="finite"):
        clean_mask(np.full((2, 2), np.nan))
    with pytest.raises(ValueError, match=r"integers 0..255 .* float64"):
        clean_ids(np.ones((2, 2)))
    with pytest.raises(ValueError, match=r"integers 0..255"):
        clean_ids(np.full((2, 2), -1))
    with pytest.raises(ValueError, match=r"integers 0..255"):
        clean_ids(np.full((2, 2), 256))


@needs_crf
def test_masks_follow_the_edges_of_the_image():
    inside = drawn((8, 8, 32, 32), size=(40, 40))
    pixels = torch.from_numpy(np.where(inside[..., None], 220, 30).astype(np.uint8))
    pixels = pixels.expand(-1, -1, 3).contiguous()
    soft = torch.full((5, 5), 0.1)
    soft[1:4, 1:4] = 0.9  # pixels 8 to 32
    soft[1, 1] = 0.6
    found = refine_with_crf(pixels, soft)
    assert found.shape == (40, 40) and 0 <= found.min() <= found.max() <= 1
    assert np.array_equal(found.numpy() > 0.5, inside)
    batch = refine_with_crf(torch.stack([pixels] * 2), torch.stack([soft] * 2))
    assert torch.equal(batch[1], found)
    again = refine_with_crf(normalise(pixels), soft)
    assert np.array_equal(again.numpy() > 0.5, inside)


@needs_crf
def test_soft_maps_out_of_range():
    with pytest.raises(ValueError, match=r"values in \[0, 1\], got \(1, 2, 2\)"):
        refine_with_crf(torch.zeros(8, 8, 3, dtype=torch.uint8), torch.full((2, 2), 2))
