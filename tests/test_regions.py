"""Regions: contours, superpixels, the tree of merges and its cuts."""

import numpy as np
import pytest
from scipy import ndimage

from uss_utils import regions
from uss_utils.datasets.scenes import Scenes
from uss_utils.regions import (
    contour_strength,
    cut_tree,
    dense,
    image_tree,
    raised_threshold,
    regions_of,
    superpixels,
    tree_levels,
    ultrametric_tree,
)

RED, BLUE = (220, 40, 30), (30, 60, 200)


def noise(height, width, seed=0):
    random = np.random.default_rng(seed)
    return random.integers(0, 256, (height, width, 3), dtype=np.uint8)


def flat(height, width, colour=RED):
    image = np.empty((height, width, 3), np.uint8)
    image[:] = colour
    return image


def halves(height=60, width=90):
    image = flat(height, width)
    image[:, width // 2 :] = BLUE
    return image


def scene(index=0, size=96):
    return Scenes(n=index + 1, size=size).read_image(index)


@pytest.fixture(scope="module", params=["scene", "noise"])
def tree(request):
    image = scene() if request.param == "scene" else noise(31, 44)
    return image_tree(image, longer_side=None)


def assert_regions(ids):
    """Numbered without gaps, each connected over sides."""
    assert ids.dtype == np.int64
    assert np.array_equal(np.unique(ids), np.arange(ids.max() + 1))
    for region in range(ids.max() + 1):
        assert ndimage.label(ids == region)[1] == 1


def test_contours_lie_where_colours_change():
    lab, strength = contour_strength(halves())
    assert lab.shape == (60, 90, 3) and strength.shape == (60, 90)
    assert 0 <= strength.min() and strength.max() <= 1
    assert set(strength.argmax(1)) <= {44, 45}
    assert (strength[:, [0, 20, 70, 89]] < 0.01).all()


def test_contours_are_relative_to_the_image():
    """A faint picture has contours as strong as a vivid one."""
    base, change = flat(40, 60, (120, 120, 120)), noise(40, 60) // 64
    faint = contour_strength(base + change)[1]
    vivid = contour_strength(base + 8 * change)[1]
    assert abs(faint.mean() - vivid.mean()) < 0.02


def test_few_changes_in_a_flat_picture_are_strong():
    image = flat(200, 200)
    image[30:32, 30:32] = 255
    strength = contour_strength(image)[1]
    assert np.percentile(strength, 95) == 0 and strength.max() > 0.8


@pytest.mark.parametrize("colour", [(0, 0, 0), (255, 255, 255), (7, 130, 201)])
def test_one_colour_is_one_region(colour):
    image = flat(37, 50, colour)
    assert contour_strength(image)[1].max() == 0
    assert len(image_tree(image).merges) == 0
    assert not regions_of(image).any()


def test_superpixels_are_connected_and_hold_a_minimum_each():
    _, strength = contour_strength(scene())
    ids = superpixels(strength)
    assert_regions(ids)
    cross = ndimage.generate_binary_structure(2, 1)
    lowest = ndimage.minimum_filter(strength, footprint=cross)
    minima = strength == lowest
    assert set(ids[minima]) == set(range(ids.max() + 1))


def test_two_halves_are_two_regions():
    ids = regions_of(halves())
    expected = (np.arange(90) >= 45).astype(np.int64)
    assert np.array_equal(ids, np.broadcast_to(expected, (60, 90)))


def test_heights_never_fall_and_every_node_merges_once(tree):
    n = len(tree.merges) + 1
    assert n == tree.leaves.max() + 1
    assert (np.diff(tree.heights) >= 0).all()
    assert 0 <= tree.heights[0] and tree.heights[-1] <= 1
    children = tree.merges[:, :2].ravel()
    assert sorted(children) == list(range(2 * n - 2))
    assert (tree.merges[:, :2].max(1) < n + np.arange(n - 1)).all()


def test_cuts_are_regions_as_many_as_counted(tree):
    for threshold in (0, 0.05, 0.1, 0.2, 0.3, 0.5, 1):
        ids = tree.cut(threshold)
        assert ids.max() + 1 == tree.count(threshold)
        assert_regions(ids)


def test_coarser_cuts_nest_in_finer_ones(tree):
    levels = tree_levels(tree, np.linspace(0, 1, 21))
    for fine, coarse in zip(levels, levels[1:], strict=False):
        pairs = np.unique(np.stack([fine.ravel(), coarse.ravel()]), axis=1)
        assert pairs.shape[1] == fine.max() + 1  # every fine one lies in one coarse one
    assert levels[-1].max() == 0


def test_counts_of_many_thresholds_at_once(tree):
    thresholds = np.linspace(0, 1, 101)
    counts = tree.count(thresholds)
    assert counts.tolist() == [tree.count(t) for t in thresholds]
    assert (np.diff(counts) <= 0).all()


def test_merges_up_to_the_threshold_are_made_that_height_included(tree):
    height = tree.heights[len(tree.heights) // 2]
    below = np.nextafter(height, 0)
    assert tree.count(below) > tree.count(height)


@pytest.mark.parametrize("cap", [1, 2, 7, 48, 10_000])
def test_the_threshold_rises_by_hundredths_until_there_are_few_enough(tree, cap):
    threshold = raised_threshold(tree, 0.05, cap)
    assert tree.count(threshold) <= cap
    steps = (threshold - 0.05) / 0.01
    assert abs(steps - round(steps)) < 1e-9
    assert steps == 0 or tree.count(threshold - 0.01) > cap
    ids = cut_tree(tree, 0.05, cap)
    assert np.array_equal(ids, tree.cut(threshold))


def brute_force(strength, ids, lab):
    """The definition, all pairs anew in every step: nodes and heights."""
    members = {k: ids == k for k in range(ids.max() + 1)}
    merges, height, new = [], 0.0, len(members)
    right = ids[:, :-1], ids[:, 1:], np.maximum(strength[:, :-1], strength[:, 1:])
    down = ids[:-1], ids[1:], np.maximum(strength[:-1], strength[1:])

    def cost(a, b):
        values = []
        for one, two, between in (right, down):
            in_a, in_b = np.isin(one, leaves[a]), np.isin(two, leaves[b])
            back_a, back_b = np.isin(two, leaves[a]), np.isin(one, leaves[b])
            values.append(between[(in_a & in_b) | (back_a & back_b)])
        border = np.concatenate(values)
        if not len(border):
            return np.inf
        areas = members[a].sum(), members[b].sum()
        crumb = min(1, np.sqrt(min(areas) / (0.01 * ids.size)))
        colours = [lab[members[k]].astype(float).mean(0) for k in (a, b)]
        difference = np.abs(colours[0] - colours[1]).sum()
        return crumb * (0.5 * border.mean() + 0.5 * min(1, 3 * difference))

    leaves = {k: [k] for k in members}
    while len(members) > 1:
        costs = {(a, b): cost(a, b) for a in members for b in members if a < b}
        a, b = min(costs, key=costs.get)
        height = max(height, costs[a, b])
        merges.append((a, b, height))
        members[new] = members.pop(a) | members.pop(b)
        leaves[new] = leaves.pop(a) + leaves.pop(b)
        new += 1
    return np.array(merges)


@pytest.mark.parametrize("seed", range(3))
def test_merging_follows_the_definition(seed):
    image = np.kron(noise(4, 5, seed), np.ones((4, 4, 1), np.uint8))
    lab, strength = contour_strength(image)
    ids = np.arange(20).reshape(4, 5).repeat(4, 0).repeat(4, 1)
    ids = dense(np.where(np.isin(ids, (7, 8)), 8, ids))  # areas that differ
    tree = ultrametric_tree(strength, ids, lab)
    np.testing.assert_allclose(tree.merges, brute_force(strength, ids, lab), rtol=1e-5)


@pytest.mark.parametrize("seed", range(3))
def test_merging_of_crumbs_follows_the_definition(seed):
    lab, strength = contour_strength(noise(24, 30, seed))
    cuts = [1, 4, 13], [1, 2, 5, 17]
    rows, columns = (
        np.searchsorted(c, np.arange(n), "right")
        for c, n in zip(cuts, (24, 30), strict=True)
    )
    ids = rows[:, None] * 5 + columns
    areas = np.bincount(ids.ravel())
    assert areas.min() == 1 and (areas < 0.01 * ids.size).sum() == 5
    tree = ultrametric_tree(strength, ids, lab)
    np.testing.assert_allclose(tree.merges, brute_force(strength, ids, lab), rtol=1e-5)


def test_crumbs_merge_before_large_regions_of_the_same_contrast():
    image = halves(100, 100)
    image[48:52, 20:24] = image[48:52, 70:74] = (40, 200, 60)
    tree = image_tree(image, None)
    assert tree.count(tree.heights[-1]) == 1
    two = tree.cut(np.nextafter(tree.heights[-1], 0))
    assert two[50, 5] == two[50, 21] != two[50, 72] == two[50, 95]


@pytest.mark.parametrize(
    "shape", [(1, 1), (2, 3), (1, 40), (3, 200), (500, 2), (97, 61)]
)
def test_images_of_any_shape(shape):
    for image in (noise(*shape), flat(*shape)):
        for side in (320, 64, None):
            ids = regions_of(image, side)
            assert ids.shape == shape
            assert np.array_equal(np.unique(ids), np.arange(ids.max() + 1))
            assert ids.max() < regions.MAX_REGIONS


def test_grey_pictures():
    grey = scene().mean(-1, keepdims=True).astype(np.uint8).repeat(3, -1)
    assert 2 < regions_of(grey).max() + 1 <= 48


def test_a_smaller_copy_gives_regions_enlarged_by_nearest_neighbour():
    image = scene(size=128)
    small = regions_of(image, 64)
    assert np.array_equal(small, small[::2, ::2].repeat(2, 0).repeat(2, 1))
    assert_regions(small)


def test_regions_are_those_of_the_tree_and_the_same_every_time():
    image = scene()
    ids = regions_of(image, None, 0.1, 30)
    assert np.array_equal(ids, cut_tree(image_tree(image, None), 0.1, 30))
    assert np.array_equal(ids, regions_of(image.copy(), None, 0.1, 30))


def test_regions_follow_the_things_of_a_scene():
    """Most pixels lie in a region most of which has their class."""
    scenes = Scenes(n=4)
    hits = []
    for index in range(len(scenes)):
        image, label = scenes.read(index)
        ids = regions_of(image)
        table = np.zeros((ids.max() + 1, scenes.n_classes), np.int64)
        np.add.at(table, (ids, label), 1)
        hits.append(table.max(1).sum() / label.size)
    assert np.mean(hits) > 0.9


def test_dense_numbers_keep_their_order():
    ids = np.array([[5, 5, 2], [9, 2, 5]])
    assert dense(ids).tolist() == [[1, 1, 0], [2, 0, 1]]


def test_bad_input_gives_one_clear_error():
    for wrong in (flat(4, 4).astype(float), flat(4, 4)[..., 0], flat(0, 4)):
        with pytest.raises(ValueError, match=r"uint8 RGB, shape \(H, W, 3\), got"):
            regions_of(wrong)
        with pytest.raises(ValueError, match="uint8 RGB"):
            contour_strength(wrong)
    with pytest.raises(ValueError, match="longer_side=0 must be at least 1"):
        regions_of(flat(4, 4), 0)
    with pytest.raises(ValueError, match=r"threshold 1.5 is outside \[0, 1\]"):
        regions_of(flat(4, 4), threshold=1.5)
    with pytest.raises(ValueError, match="max_regions=0 must be at least 1"):
        regions_of(flat(4, 4), max_regions=0)
    lab, strength = contour_strength(noise(4, 4))
    with pytest.raises(ValueError, match="differ in height and width"):
        ultrametric_tree(strength[:3], np.zeros((4, 4), np.int64), lab)
    with pytest.raises(ValueError, match="without gaps"):
        ultrametric_tree(strength, np.full((4, 4), 1), lab)


def test_borders_stand_before_a_change():
    ids = np.array([[0, 0, 1, 1], [0, 0, 1, 1], [2, 2, 2, 2], [2, 2, 2, 2]])
    expected = [[0, 1, 0, 0], [1, 1, 1, 1], [0, 0, 0, 0], [0, 0, 0, 0]]
    assert regions.borders(ids).astype(int).tolist() == expected
    assert regions.borders(ids[::-1], 2).astype(int).tolist()[:2] == [[1] * 4] * 2
    assert not regions.borders(np.zeros((1, 1), int)).any()
