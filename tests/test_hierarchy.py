"""Nested regions: nesting by construction, the tree, files, what is refused."""

import json

import numpy as np
import pytest
import torch

from uss_utils.environment import generator
from uss_utils.hierarchy import Hierarchy, mean_coloured, nested_groups
from uss_utils.regions import Tree, tree_levels


def random_groups(seed, nodes=30, fine=8, coarse=4, sharp=3.0):
    """Soft groups as the two levels of a network give them."""
    draw = generator(seed)
    p1 = (sharp * torch.randn(fine, nodes, generator=draw)).softmax(0)
    between = (sharp * torch.randn(coarse, fine, generator=draw)).softmax(0)
    segments = torch.randint(nodes, (20, 24), generator=draw)
    segments.view(-1)[:nodes] = torch.arange(nodes)
    return segments, p1, between @ p1


def nests(fine, coarse):
    pairs = torch.stack([fine.flatten(), coarse.flatten()], 1).unique(dim=0)
    return len(pairs) == len(fine.unique())


@pytest.mark.parametrize("sharp", [0.1, 1.0, 5.0])
@pytest.mark.parametrize("seed", range(10))
def test_groups_nest_whatever_the_probabilities(seed, sharp):
    segments, p1, p2 = random_groups(seed, sharp=sharp)
    found = Hierarchy.grouped(segments, p1, p2)
    assert len(found) == 3
    for fine, coarse in zip(found.levels, found.levels[1:], strict=False):
        assert nests(fine, coarse)
    for k, parents in enumerate(found.parents):
        assert torch.equal(parents[found.levels[k]], found.levels[k + 1])
    assert found.counts[0] == 30 and found.counts[2] <= 4


def test_the_labels_of_the_nodes_by_themselves_do_not_always_nest():
    """What :func:`nested_groups` is for."""
    torn = 0
    for seed in range(10):
        _, p1, p2 = random_groups(seed, sharp=1.0)
        torn += not nests(p1.argmax(0), p2.argmax(0))
        assert nests(*nested_groups(p1, p2))
    assert torn > 0


def test_a_fine_group_goes_where_its_pixels_are_most_likely():
    p1 = torch.tensor([[0.9, 0.8, 0.1], [0.1, 0.2, 0.9]])
    p2 = torch.tensor([[0.9, 0.2, 0.3], [0.1, 0.8, 0.7]])
    fine, coarse = nested_groups(p1, p2)
    assert fine.tolist() == [0, 0, 1] and coarse.tolist() == [0, 0, 1]
    heavy = nested_groups(p1, p2, torch.tensor([1, 9, 1]))[1]
    assert heavy.tolist() == [1, 1, 1]
    same = nested_groups(torch.ones(3, 4), torch.ones(2, 4))
    assert same[0].tolist() == same[1].tolist() == [0, 0, 0, 0]  # the smallest


def test_where_all_nodes_agree_labels_are_those_of_the_paper():
    p1 = torch.eye(4).repeat_interleave(5, 1) * 0.9 + 0.025
    p2 = torch.eye(2).repeat_interleave(2, 1).repeat_interleave(5, 1)
    fine, coarse = nested_groups(p1, p2)
    assert torch.equal(fine, p1.argmax(0)) and torch.equal(coarse, p2.argmax(0))


def quarters():
    """Four regions, two halves, the whole; ids are of no importance."""
    y, x = torch.meshgrid(torch.arange(6), torch.arange(8), indexing="ij")
    fine = 10 * (y > 2) + 100 * (x > 3)
    return [fine, fine // 100 * 7 - 3, fine * 0 + 5]


def test_the_tree():
    found = Hierarchy.of(quarters())
    assert found.counts == (4, 2, 1) and found.size == (6, 8)
    assert [parents.tolist() for parents in found.parents] == [[0, 0, 1, 1], [0, 0]]
    assert found.children(1, 1) == [2, 3] and found.children(2, 0) == [0, 1]
    assert found.children(0, 2) == []
    assert found.path(5, 7) == [3, 1, 0]
    assert found.tree() == {
        "height": 6,
        "width": 8,
        "levels": [
            {"regions": 4, "pixels": [12] * 4, "parents": [0, 0, 1, 1]},
            {"regions": 2, "pixels": [24, 24], "parents": [0, 0]},
            {"regions": 1, "pixels": [48], "parents": None},
        ],
    }
    assert [level.max().item() for level in found] == [3, 1, 0]


def test_resizing_keeps_the_nesting():
    for size in ((3, 3), (17, 5), (1, 1), (6, 8)):
        found = Hierarchy.of(quarters()).resized(size)
        assert found.size == size and len(found) == 3


def test_cuts_of_a_tree_nest():
    leaves = np.arange(12).reshape(3, 4)
    heights = np.linspace(0.05, 0.9, 11)
    tops = [0, *range(12, 22)]
    merges = np.array([(tops[k], k + 1, heights[k]) for k in range(11)])
    cuts = tree_levels(Tree(leaves, merges), [0.0, 0.3, 0.6, 1.0])
    found = Hierarchy.of(cuts)
    assert found.counts[0] == 12 and found.counts[-1] == 1
    assert list(found.counts) == sorted(found.counts, reverse=True)


def test_one_region_one_level():
    found = Hierarchy.of([np.zeros((2, 3), np.uint8)])
    assert found.counts == (1,) and found.parents == ()
    alone = Hierarchy.grouped(
        torch.zeros(2, 2, dtype=torch.int64), torch.ones(8, 1), torch.ones(4, 1)
    )
    assert alone.counts == (1, 1, 1)


# ------------------------------------------------------------------------------ files


def test_saved_and_loaded(tmp_path):
    segments, p1, p2 = random_groups(0, nodes=300)
    saved = Hierarchy.grouped(segments, p1, p2)
    folder = saved.save(tmp_path / "new" / "image")
    names = sorted(path.name for path in folder.iterdir())
    assert names == ["level_0.png", "level_1.png", "level_2.png", "tree.json"]
    loaded = Hierarchy.load(folder)
    for a, b in zip(saved, loaded, strict=True):
        assert torch.equal(a, b) and b.dtype == torch.int64
    assert (
        loaded.tree() == saved.tree() == json.loads((folder / "tree.json").read_text())
    )
    assert saved.counts[0] == 300  # more than a byte holds


def test_files_that_do_not_belong_together_are_refused(tmp_path):
    found = Hierarchy.of(quarters())
    found.save(tmp_path)
    Hierarchy.of(level.flip(1).roll(1, 1) for level in found).save(tmp_path / "b")
    (tmp_path / "b" / "level_1.png").replace(tmp_path / "level_1.png")
    with pytest.raises(ValueError, match="does not nest|not those of its tree.json"):
        Hierarchy.load(tmp_path)
    (tmp_path / "level_1.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"level_1.png"):
        Hierarchy.load(tmp_path)
    for text in ("{", "[]", "3", '{"levels": 3}'):
        (tmp_path / "tree.json").write_text(text)
        with pytest.raises(ValueError, match="is no tree of regions"):
            Hierarchy.load(tmp_path)
    with pytest.raises(FileNotFoundError, match="no hierarchy in .*nowhere"):
        Hierarchy.load(tmp_path / "nowhere")


def test_saving_over_other_levels(tmp_path):
    Hierarchy.of(quarters()).save(tmp_path)
    Hierarchy.of(quarters()[:2]).save(tmp_path)
    assert Hierarchy.load(tmp_path).counts == (4, 2)


def test_too_many_regions_for_a_file(tmp_path):
    many = Hierarchy.of([np.arange(257 * 256).reshape(257, 256)])
    with pytest.raises(ValueError, match="65792 regions do not fit into 16 bits"):
        many.save(tmp_path)
    assert list(tmp_path.iterdir()) == []


# -------------------------------------------------------------------------- bad input


def test_levels_that_do_not_nest_are_refused():
    with pytest.raises(ValueError, match="level 0 does not nest in level 1: 1 of its"):
        Hierarchy.of(quarters()[::-1])
    with pytest.raises(ValueError, match="at least one map"):
        Hierarchy.of([])
    for maps in ([np.zeros((2, 3)), np.zeros((3, 2))], [np.zeros(4)]):
        with pytest.raises(ValueError, match="all of one size"):
            Hierarchy.of(maps)


def test_probabilities_that_do_not_fit_are_refused():
    for given in ((torch.ones(8, 5), torch.ones(4, 6)), (torch.ones(5), torch.ones(5))):
        with pytest.raises(ValueError, match="probabilities of shapes"):
            nested_groups(*given)
    with pytest.raises(ValueError, match="for 3 nodes"):
        nested_groups(torch.ones(8, 5), torch.ones(4, 5), torch.ones(3))
    segments = torch.tensor([[0, 5]])
    with pytest.raises(ValueError, match="for 6 nodes"):
        Hierarchy.grouped(segments, torch.ones(8, 5), torch.ones(4, 5))


def test_mean_colours_of_regions_with_any_ids():
    ids = np.repeat([[7, -1]], 3, axis=0)
    image = np.full((3, 2, 3), 40, np.uint8)
    noisy = image.copy()
    noisy[0, 0], noisy[1, 0] = 30, 50
    assert np.array_equal(mean_coloured(noisy, ids), image)


def test_mean_colours():
    image = np.zeros((2, 4, 3), np.uint8)
    image[:, :2] = (10, 20, 30)
    image[:, 2:] = (200, 100, 0)
    halves = torch.tensor([[0, 0, 1, 1]] * 2)
    fine, coarse = Hierarchy.of([halves, halves * 0]).mean_colours(image)
    assert np.array_equal(fine, image)
    assert np.unique(coarse.reshape(-1, 3), axis=0).tolist() == [[105, 60, 15]]
    with pytest.raises(ValueError, match=r"image has shape \(4, 2, 3\), the maps are"):
        Hierarchy.of([halves]).mean_colours(image.transpose(1, 0, 2))
