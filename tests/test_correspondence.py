"""Correlations, their centring and shifts, random pairs, the loss built of them."""

import pytest
import torch

from uss_utils.correspondence import (
    centre,
    correlation,
    pair_loss,
    random_coords,
    random_partners,
    shift_for_share,
)
from uss_utils.environment import generator


def maps(*shapes, seed=0):
    draw = generator(seed)
    return [torch.randn(shape, generator=draw) for shape in shapes]


def some_correlation(seed=0):
    return correlation(*maps((3, 8, 4, 5), (3, 8, 2, 6), seed=seed))


# -------------------------------------------------------------------- correlation


def test_correlation_is_the_cosine_of_every_pair():
    a, b = maps((2, 7, 3, 4), (2, 7, 5, 2))
    corr = correlation(a, b)
    assert corr.shape == (2, 3, 4, 5, 2)
    one = torch.cosine_similarity(a[1, :, 2, 3], b[1, :, 4, 0], dim=0)
    torch.testing.assert_close(corr[1, 2, 3, 4, 0], one)
    torch.testing.assert_close(correlation(3 * a, b / 5), corr)
    torch.testing.assert_close(correlation(b, a).permute(0, 3, 4, 1, 2), corr)


def test_a_zero_vector_correlates_with_nothing():
    a, b = maps((1, 4, 2, 2), (1, 4, 2, 2))
    a[0, :, 0, 0] = 0
    corr = correlation(a, b)
    assert corr.isfinite().all()
    assert (corr[0, 0, 0] == 0).all()


@pytest.mark.parametrize("shape", [(2, 5, 3, 3), (1, 4, 3, 3), (2, 4, 3)])
def test_maps_that_do_not_match(shape):
    with pytest.raises(ValueError, match=r"same B and C, got \(2, 4, 3, 3\) and"):
        correlation(torch.ones(2, 4, 3, 3), torch.ones(shape))


# ------------------------------------------------------------------------ centring


def test_centring_keeps_the_overall_mean_and_levels_all_places():
    corr = some_correlation()
    found = centre(corr)
    torch.testing.assert_close(found.mean(), corr.mean())
    per_place = found.mean((3, 4))
    torch.testing.assert_close(per_place, corr.mean().expand_as(per_place))
    torch.testing.assert_close(centre(found), found)


def test_centring_undoes_an_offset_of_a_place():
    corr = some_correlation()
    offset = torch.randn(3, 4, 5, 1, 1, generator=generator(1))
    offset -= offset.mean()  # the overall mean stays
    torch.testing.assert_close(centre(corr + offset), centre(corr))


# ----------------------------------------------------------------------- pair loss


def test_above_the_shift_codes_attract_below_they_repel():
    feat_corr = torch.tensor([0.5, 0.1])[None, :, None, None, None]
    code_corr = torch.full_like(feat_corr, 0.3).requires_grad_()
    loss = pair_loss(feat_corr, code_corr, shift=0.2)
    torch.testing.assert_close(loss.detach().flatten(), torch.tensor([-0.09, 0.03]))
    loss.sum().backward()
    torch.testing.assert_close(code_corr.grad.flatten(), torch.tensor([-0.3, 0.1]))


@pytest.mark.parametrize("stabilize", [False, True])
def test_no_gradient_where_the_code_is_clamped(stabilize):
    feat_corr = centre(some_correlation())
    code_corr = some_correlation(seed=1).mul(2).clamp(-1, 1).requires_grad_()
    pair_loss(feat_corr, code_corr, 0.1, stabilize=stabilize).sum().backward()
    code = code_corr.detach()
    still = code < 0
    if stabilize:
        still |= code > 0.8
    assert 0.1 < still.float().mean() < 0.9
    assert torch.equal(code_corr.grad == 0, still)
    code_corr.grad = None
    pair_loss(feat_corr, code_corr, 0.1, clamp=False).sum().backward()
    assert (code_corr.grad != 0).all()


def test_features_are_a_constant_of_the_pair_loss():
    feat_corr = some_correlation().requires_grad_()
    code_corr = some_correlation(seed=1).requires_grad_()
    pair_loss(feat_corr, code_corr, 0.1).sum().backward()
    assert feat_corr.grad is None


# -------------------------------------------------------------------------- shifts


@pytest.mark.parametrize("share", [0.0, 0.08, 0.5, 0.93, 1.0])
def test_the_shift_gives_the_share_that_was_asked_for(share):
    corr = centre(some_correlation())
    attracted = (corr > shift_for_share(corr, share)).float().mean()
    assert float(attracted) == pytest.approx(share, abs=1 / corr.numel() + 1e-6)


def test_shifts_of_impossible_shares_and_values():
    with pytest.raises(ValueError, match=r"a share lies in \[0, 1\], got 1.2"):
        shift_for_share(torch.ones(3), 1.2)
    with pytest.raises(ValueError, match="finite correlations; got NaN or infinite"):
        shift_for_share(torch.tensor([0.1, torch.nan]), 0.5)
    with pytest.raises(ValueError, match="finite correlations; got none at all"):
        shift_for_share(torch.empty(0), 0.5)


# ------------------------------------------------------------------- random choices


@pytest.mark.parametrize("n", [2, 3, 16])
def test_a_partner_is_never_the_image_itself(n):
    draw = generator(0)
    rows = torch.stack([random_partners(n, draw) for _ in range(200)])
    assert not (rows == torch.arange(n)).any()
    assert rows.min() == 0 and rows.max() == n - 1
    # Every other image is met.
    assert all(len(rows[:, i].unique()) == n - 1 for i in range(n))


def test_a_fixed_point_takes_the_next_image():
    """Against the rule applied entry by entry to the same permutation."""
    for seed in range(20):
        drawn = torch.randperm(5, generator=generator(seed)).tolist()
        expected = [(p + (p == i)) % 5 for i, p in enumerate(drawn)]
        assert random_partners(5, generator(seed)).tolist() == expected


def test_one_image_has_no_partner():
    with pytest.raises(ValueError, match="at least two images in a batch, got 1"):
        random_partners(1, generator(0))


def test_points_fill_the_image():
    coords = random_coords(50, 11, generator(0))
    assert coords.shape == (50, 11, 11, 2)
    assert coords.min() >= -1 and coords.max() < 1
    torch.testing.assert_close(coords.mean(), torch.tensor(0.0), atol=0.02, rtol=0)
