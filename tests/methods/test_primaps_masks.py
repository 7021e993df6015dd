"""PriMaPs' masks: rounds, their end, clean-up, the CRF."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from uss_utils import crf
from uss_utils.environment import generator
from uss_utils.methods import primaps
from uss_utils.methods._primaps_masks import enlarge_ids, id_log_probs, median_3x3
from uss_utils.methods.primaps import clean_masks, propose_masks

needs_crf = pytest.mark.skipif(not crf.available(), reason="pydensecrf2 is missing")


def quarters(batch=1, side=8, dim=12, seed=0, noise=0.05) -> torch.Tensor:
    """Features of images whose four quarters point to four directions, (B, C, h, w)."""
    draw = generator(seed)
    centres = torch.linalg.qr(torch.randn(batch, dim, 4, generator=draw)).Q
    half = side // 2
    own = torch.arange(4).reshape(2, 2).repeat_interleave(half, 0)
    own = own.repeat_interleave(half, 1)
    feat = centres[:, :, own] * 5
    return feat + noise * torch.randn(feat.shape, generator=draw)


# ---------------------------------------------------------------------------- rounds


def test_each_orthogonal_region_is_one_mask():
    found = propose_masks(quarters(3))
    assert found.count.tolist() == [4, 4, 4]
    ids = (found.masks > 0).byte().argmax(1) + 1  # the median rounds the corners
    for image in ids:
        blocks = image.reshape(2, 4, 2, 4).permute(0, 2, 1, 3).flatten(2).flatten(0, 1)
        assert all(len(block.unique()) == 1 for block in blocks)
        assert sorted(block[0].item() for block in blocks) == [1, 2, 3, 4]


def test_direction_is_the_first_right_singular_vector():
    feat = torch.randn(2, 6, 40, generator=generator(0)) * torch.arange(1, 7)[:, None]
    free = torch.rand(2, 40, generator=generator(1)) < 0.7
    found = primaps.principal_direction(feat, free)
    for i in range(2):
        rows = feat[i, :, free[i]].T.double()
        expected = torch.linalg.svd(rows - rows.mean(0)).Vh[0]
        assert abs(found[i].double() @ expected) == pytest.approx(1, abs=1e-5)
        along = found[i] @ F.normalize(feat[i], dim=0)
        most = along[free[i]].abs().argmax()
        assert along[free[i]][most] > 0  # the sign rule


def test_sign_of_the_features_along_the_direction_does_not_matter():
    feat = quarters(1)
    mirrored = feat.clone()
    mirrored[:, 0] *= -1  # another basis: the same cosines
    a, b = propose_masks(feat), propose_masks(mirrored)
    assert torch.equal(a.seeds, b.seeds)
    torch.testing.assert_close(a.masks, b.masks, atol=1e-5, rtol=1e-5)


def test_short_features_beside_long_ones_keep_their_direction():
    """What has left must not drown what remains: its rounding is as large."""
    draw = generator(0)
    axes = torch.linalg.qr(torch.randn(48, 6, generator=draw)).Q
    lengths = torch.tensor([300.0, 200.0, 1.0, 1.2, 0.9, 1.1])
    own = torch.arange(6).repeat_interleave(40).reshape(12, 20)
    noise = 0.02 * torch.randn(48, 12, 20, generator=draw) * lengths[own]
    feat = ((axes * lengths)[:, own] + noise)[None]
    found = propose_masks(feat)
    assert found.count.item() == 6
    for k in range(6):
        rows = feat[0, :, found.free_before(k)[0]].T.double()
        expected = torch.linalg.svd(rows - rows.mean(0)).Vh[0]
        cosine = found.directions[0, k].double() @ expected
        assert abs(cosine) == pytest.approx(1, abs=1e-5)


def test_first_of_equal_patches_is_the_seed():
    feat = torch.ones(1, 3, 4)
    seed, mask = primaps.grow_mask(
        feat, torch.tensor([[False, True, True, True]]), torch.ones(1, 3), 0.5
    )
    assert seed.tolist() == [1] and mask[0].tolist() == pytest.approx([0, 1, 1, 1])


def test_seed_stays_in_its_mask_at_the_highest_threshold():
    feat = torch.randn(1, 7, 5, generator=generator(0))
    seed, mask = primaps.grow_mask(
        feat, torch.ones(1, 5, dtype=bool), feat[..., 3], 1.0
    )
    assert mask[0, seed[0]] == 1 and (mask > 0).sum() == 1


def test_rounds_end_at_the_coverage():
    feat = quarters(1, side=8)
    assert propose_masks(feat, coverage=0.5).count.item() == 2
    assert propose_masks(feat, coverage=0.51).count.item() == 3
    assert propose_masks(feat, max_masks=1).count.item() == 1


def test_free_patches_before_each_round():
    found = propose_masks(quarters(2))
    assert found.free_before(0).all()
    for k in range(4):
        inside = found.masks[:, k] > 0
        assert (found.free_before(k) & inside).sum() == inside.sum()
    assert torch.equal(found.free_before(4), found.free)


# --------------------------------------------------------------------------- edges


def test_one_mask_covers_everything():
    feat = torch.ones(2, 5, 6, 6)
    found = propose_masks(feat)
    assert found.count.tolist() == [1, 1] and not found.free.any()
    ids = clean_masks(found)
    assert (ids == 1).all()
    # With one label the unary is e / (e + 1), not a broken background (spec Q2).
    own = id_log_probs(ids[0], 1)[1].exp()
    torch.testing.assert_close(own, torch.full((6, 6), np.e / (np.e + 1)))


def test_zero_features_are_left_one_by_one():
    found = propose_masks(torch.zeros(1, 4, 3, 3))
    assert found.count.item() == 9 and found.seeds[0].tolist() == list(range(9))


def test_noise_is_cut_at_254_masks():
    feat = torch.randn(1, 384, 20, 20, generator=generator(0))
    found = propose_masks(feat)
    assert found.count.item() == 254 and found.free.any()
    assert clean_masks(found).max() <= 254


def test_batch_is_the_images_one_by_one():
    batch = torch.cat(
        [
            quarters(1),
            torch.ones(1, 12, 8, 8),
            torch.randn(1, 12, 8, 8),
            quarters(1, seed=4),
        ]
    )
    together = propose_masks(batch)
    assert together.count.unique().numel() > 1
    for i, image in enumerate(batch):
        alone = propose_masks(image[None])
        k = int(alone.count)
        assert together.count[i] == k
        assert torch.equal(together.seeds[i, :k], alone.seeds[0])
        assert (together.seeds[i, k:] == -1).all() and not together.masks[i, k:].any()
        torch.testing.assert_close(together.masks[i, :k], alone.masks[0])


def test_a_row_of_patches():
    found = propose_masks(quarters(1)[:, :, :1])
    assert clean_masks(found).shape == (1, 1, 8)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"threshold": 0.05}, r"threshold=0.05 has to lie in \[0.1, 1\]"),
        ({"coverage": 0.0}, r"coverage=0.0 in \(0, 1\]"),
        ({"max_masks": 255}, r"max_masks=255 has to lie in 1..254"),
    ],
)
def test_settings_out_of_range(options, message):
    with pytest.raises(ValueError, match=message):
        propose_masks(quarters(), **options)


def test_features_that_cannot_be_split():
    feat = quarters()
    feat[0, 0, 0, 0] = torch.nan
    with pytest.raises(ValueError, match="hold NaN or infinite"):
        propose_masks(feat)
    with pytest.raises(ValueError, match=r"shape \(B, C, h, w\).*got \(12, 8, 8\)"):
        propose_masks(quarters()[0])
    with pytest.raises(ValueError, match=r"none of them 0, got \(0, 12, 8, 8\)"):
        propose_masks(quarters()[:0])


# ------------------------------------------------------------------- clean-up, CRF


def test_clean_up_removes_specks_and_fills_holes():
    masks = torch.zeros(1, 2, 6, 6)
    masks[0, 0, :, :3], masks[0, 1, :, 3:] = 0.5, 0.7
    masks[0, 0, 2, 1], masks[0, 1, 2, 1] = 0, 0.9
    holed = primaps.MaskProposals(masks, *[None] * 4)
    expected = torch.tensor([1, 1, 1, 2, 2, 2]).expand(6, 6)
    assert torch.equal(clean_masks(holed)[0], expected)


def test_median_is_that_of_numpy():
    maps = torch.rand(2, 3, 5, 7, generator=generator(0))
    padded = np.pad(maps.numpy(), ((0, 0), (0, 0), (1, 1), (1, 1)), mode="reflect")
    near = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), (2, 3))
    assert np.array_equal(median_3x3(maps).numpy(), np.median(near, (-2, -1)))


@needs_crf
def test_ids_in_the_worker_give_what_the_full_unary_gives():
    draw = generator(0)
    ids = torch.randint(0, 4, (2, 5, 6), generator=draw).to(torch.uint8)
    pictures = torch.randint(0, 256, (2, 40, 48, 3), generator=draw).to(torch.uint8)
    counts = torch.tensor([3, 40])  # of the second, most ids do not occur
    found = primaps.refine_masks(ids, pictures, counts)
    for i in range(2):
        q = crf.dense_crf(pictures[i], id_log_probs(ids[i], int(counts[i])))
        expected = q.argmax(0)
        expected[expected == 0] = 255
        assert (found[i] != expected).float().mean() < 1e-3
    with crf.CRFPool(2) as pool:
        again = primaps.refine_masks(ids, pictures, counts, pool=pool)
    assert torch.equal(found, again)


def test_without_the_library_ids_are_enlarged(monkeypatch):
    monkeypatch.setattr(crf, "available", lambda: False)
    ids = torch.tensor([[[0, 1], [2, 3]]], dtype=torch.uint8)
    found = primaps.refine_masks(
        ids, torch.zeros(1, 4, 6, 3, dtype=torch.uint8), torch.tensor([3])
    )
    assert found[0, 0].tolist() == [255] * 3 + [1] * 3
    assert found[0, 3].tolist() == [2] * 3 + [3] * 3
    assert torch.equal(found, enlarge_ids(ids, (4, 6)))
