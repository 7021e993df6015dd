"""Object masks from features: cuts, several objects, cheap baselines."""

import numpy as np
import pytest
import torch

from uss_utils import backbones
from uss_utils.environment import generator
from uss_utils.saliency import (
    attention_saliency,
    class_attention,
    degree_seed,
    ncut_eigenvector,
    ncut_mask,
    ncut_objects,
    ncut_saliency,
)

GRID = (10, 12)


def painted(*boxes, grid=GRID, noise=0.3, seed=0):
    """Features of a background and of objects in boxes, and the map of the objects."""
    ids = torch.zeros(grid, dtype=torch.int64)
    for number, (top, left, bottom, right) in enumerate(boxes, 1):
        ids[top:bottom, left:right] = number
    centres = torch.eye(len(boxes) + 1, 16)
    rng = generator(seed)
    features = centres[ids.flatten()]
    drawn = torch.randn(features.shape, generator=rng)
    return features + noise / 4 * drawn, ids


BOX = (3, 4, 7, 8)


# -------------------------------------------------------------------------- one object


def test_the_planted_object_is_found():
    features, ids = painted(BOX)
    cut = ncut_saliency(features, GRID)
    assert torch.equal(cut.mask, ids > 0) and torch.equal(cut.partition, ids > 0)
    assert torch.equal(cut.soft > 0.5, cut.partition)
    assert cut.soft.shape == GRID and 0 <= cut.soft.min() <= cut.soft.max() <= 1
    assert cut.eigenvector.shape == (120,) and float(cut.eigenvalue) < 0.2


def test_a_batch_is_its_images_one_by_one():
    scenes = [painted(BOX, seed=1), painted((0, 0, 4, 3)), painted((6, 2, 9, 11))]
    batch = ncut_saliency(torch.stack([features for features, _ in scenes]), GRID)
    for i, (features, ids) in enumerate(scenes):
        alone = ncut_saliency(features, GRID)
        assert torch.equal(batch.mask[i], ids > 0)
        assert torch.equal(batch.mask[i], alone.mask)
        assert torch.allclose(batch.soft[i], alone.soft, atol=1e-3)


def test_length_of_features_does_not_matter():
    features, ids = painted(BOX)
    scale = torch.rand(120, 1, generator=generator(2)) + 0.1
    assert torch.equal(ncut_saliency(features * scale, GRID).mask, ids > 0)


@pytest.mark.parametrize(
    "box", [(0, 0, 10, 8), (2, 0, 10, 12)], ids=["corners", "border"]
)
def test_a_side_like_a_background_is_turned(box):
    """What covers most of the border is the surroundings, whatever its sign."""
    features, ids = painted(box)
    expected = ids == 0
    assert torch.equal(ncut_saliency(features, GRID).mask, expected)
    cut = ncut_saliency(features, GRID)
    raw = ncut_saliency(features, GRID, guard=False)
    assert torch.equal(cut.eigenvector.abs(), raw.eigenvector.abs())


def test_the_guard_can_be_left_out():
    # An object that fills all but a frame: the frame has the larger entries.
    features, ids = painted((1, 1, 9, 11))
    raw = ncut_saliency(features, GRID, guard=False, component="all")
    assert torch.equal(raw.mask, ids == 0)
    assert torch.equal(ncut_saliency(features, GRID).mask, ids > 0)


def test_constant_features_have_no_object():
    cut = ncut_saliency(torch.ones(2, 120, 3), GRID)
    assert not cut.mask.any() and not cut.partition.any()
    assert torch.equal(cut.soft, torch.full((2, *GRID), 0.5))


def test_pieces_of_the_objects_side():
    features, _ = painted()
    ids = torch.zeros(GRID, dtype=torch.int64)
    ids[1:3, 1:3], ids[5:9, 5:9] = 1, 1  # two pieces of one kind, exactly alike
    features = torch.eye(2)[ids.flatten()]
    masks = {
        kind: ncut_saliency(features, GRID, component=kind).mask
        for kind in ("largest", "seed", "all")
    }
    assert torch.equal(masks["all"], ids > 0)
    assert masks["largest"].sum() == 16 and masks["largest"][5, 5]
    assert masks["seed"].sum() == 4 and masks["seed"][1, 1]


def test_a_larger_piece_without_a_largest_entry_is_left():
    y = torch.zeros(4, 6)
    y[0, 0], y[2:, :] = 1.0, 0.9
    assert torch.equal(ncut_mask(y.flatten(), (4, 6)), y == 1)


def test_diagonal_neighbours_are_other_pieces():
    y = torch.tensor([[1.0, 0, 0], [0, 1, 1], [0, 0, 0]])
    mask = ncut_mask(y.flatten(), (3, 3))
    assert mask.tolist() == [[False] * 3, [False, True, True], [False] * 3]


def test_a_whole_image_in_one_piece():
    features = torch.eye(2)[(torch.arange(120) == 37).long()]
    assert ncut_saliency(features, GRID).mask.flatten().nonzero().tolist() == [[37]]
    assert ncut_mask(torch.ones(120), GRID).sum() == 0  # nothing lies above the mean


@pytest.mark.parametrize("grid", [(1, 12), (12, 1), (2, 6)])
def test_narrow_grids(grid):
    features = torch.eye(2)[(torch.arange(12) == 5).long()]
    mask = ncut_saliency(features, grid).mask
    assert mask.shape == grid and mask.flatten().nonzero().tolist() == [[5]]


def test_half_precision_features():
    features, ids = painted(BOX)
    cut = ncut_saliency(features.half(), GRID)
    assert cut.eigenvector.dtype == torch.float32
    assert torch.equal(cut.mask, ids > 0)


# --------------------------------------------------------------------- several objects

BOXES = (1, 1, 4, 5), (5, 7, 9, 11), (7, 1, 9, 4)


def test_all_planted_objects_are_found():
    features, ids = painted(*BOXES)
    found = ncut_objects(features, GRID, 3, 0.5)
    assert found.dtype == torch.uint8 and found.shape == GRID
    for number in (1, 2, 3):
        assert len(found[ids == number].unique()) == 1
    assert torch.equal(found > 0, ids > 0)


def test_the_first_object_is_that_of_one_cut():
    features = torch.stack([painted(*BOXES, seed=s)[0] for s in range(3)])
    found = ncut_objects(features, GRID, 3)
    assert torch.equal(found == 1, ncut_saliency(features, GRID).mask)
    assert torch.equal(found * (found < 2), ncut_objects(features, GRID, 1))


def test_images_end_with_their_own_last_object():
    scenes = [painted(BOX, noise=0.0), painted(*BOXES, noise=0.0), painted(noise=0.0)]
    found = ncut_objects(torch.stack([f for f, _ in scenes]), GRID, 6, 0.5)
    # What surrounds them cannot be cut any more.
    assert found.flatten(1).amax(1).tolist() == [1, 3, 0]
    for ids, (features, _) in zip(found, scenes, strict=True):
        assert torch.equal(ids, ncut_objects(features, GRID, 6, 0.5))


def test_small_and_unclear_objects_end_the_search():
    features, ids = painted((1, 1, 3, 3), noise=0.0)
    share = 4 / 120
    assert (ncut_objects(features, GRID, 3, min_share=share) > 0).sum() == 4
    assert not ncut_objects(features, GRID, 3, min_share=share + 1e-3).any()
    value = float(ncut_saliency(features, GRID).eigenvalue)
    assert not ncut_objects(features, GRID, 3, max_eigenvalue=value / 2).any()
    assert ncut_objects(features, GRID, 3, max_eigenvalue=value * 2).any()


# --------------------------------------------------------------------------- baselines


def test_fewest_patches_with_the_mass():
    attention = torch.tensor([[0.1, 0.5, 0.2, 0.2], [0.3, 0.1, 0.3, 0.3]])
    # On average 0.2, 0.3, 0.25, 0.25.
    assert attention_saliency(attention, 0.3).tolist() == [False, True, False, False]
    assert attention_saliency(attention, 0.5).tolist() == [False, True, True, False]
    assert attention_saliency(attention, 1.0).all()
    batch = attention_saliency(torch.stack([attention, 3 * attention]))
    assert batch.shape == (2, 4) and torch.equal(batch[0], batch[1])


def test_attention_of_a_backbone():
    backbone = backbones.load("vit_tiny_random")
    out = backbone(torch.zeros(2, 3, 32, 48), attention=True)
    attention = class_attention(out.attention, backbone.prefix)
    assert attention.shape == (2, backbone.heads, 24)
    whole = out.attention.softmax(-1)[:, :, 0, backbone.prefix :]
    assert torch.allclose(attention, whole)
    kept = attention_saliency(attention, 0.6)
    mean = attention.mean(1)
    mass = (mean * kept).sum(1) / mean.sum(1)
    least = torch.where(kept, mean, torch.inf).amin(1) / mean.sum(1)
    assert (mass >= 0.6 - 1e-6).all() and (mass - least < 0.6).all()


def degree_by_hand(features, k):
    products = features @ features.T
    degree = (products >= 0).sum(1)
    order = np.argsort(degree.numpy(), kind="stable")
    seed = order[0]
    low = [q for q in order[:k] if products[q, seed] >= 0]
    return torch.stack([sum(products[q, s] for s in low) >= 0 for q in range(120)])


@pytest.mark.parametrize("k", [1, 10, 1000])
def test_degree_seed_by_hand(k):
    features = torch.randn(2, 120, 6, generator=generator(0))
    found = degree_seed(features, GRID, k)
    for own, mask in zip(features, found, strict=True):
        assert torch.equal(mask.flatten(), degree_by_hand(own, k))
        assert torch.equal(mask, degree_seed(own, GRID, k))


# ------------------------------------------------------------------------- wrong input


def test_wrong_input():
    features = torch.ones(120, 3)
    with pytest.raises(ValueError, match="grid of 3 x 4 does not hold 120 patches"):
        ncut_saliency(features, (3, 4))
    with pytest.raises(ValueError, match="grid of 10 x 12 does not hold 3 patches"):
        degree_seed(features.T, GRID)
    with pytest.raises(ValueError, match="unknown component 'best'; known: largest"):
        ncut_mask(features[:, 0], GRID, "best")
    with pytest.raises(ValueError, match=r"n=0 objects per image have to be 1\.\.254"):
        ncut_objects(features, GRID, 0)
    with pytest.raises(ValueError, match="k=0 patches"):
        degree_seed(features, GRID, 0)
    with pytest.raises(ValueError, match=r"mass lie in \(0, 1\], got \(2, 4\) and 0"):
        attention_saliency(torch.ones(2, 4), 0.0)
    with pytest.raises(ValueError, match="no attention of it"):
        class_attention(torch.ones(1, 2, 4, 4), 0)


def test_eigenvectors_are_offered_here_too():
    y, _ = ncut_eigenvector(torch.eye(4).clamp(min=0.1))
    assert torch.equal(y, torch.zeros(4))
