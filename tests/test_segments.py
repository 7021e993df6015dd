"""Clusters of segments, and retrieval from a memory."""

import pytest
import torch
import torch.nn.functional as F

from uss_utils import segments
from uss_utils.environment import generator
from uss_utils.segments import (
    SegmentMemory,
    class_maps,
    cluster_segments,
    majority,
    nearest_rows,
)


def unit(*shape, seed=0):
    return F.normalize(torch.randn(*shape, generator=generator(seed)), dim=-1)


def groups(n=60, k=3, dim=6, spread=0.05):
    """Unit rows around k directions, and the group of each."""
    names = torch.arange(n) % k
    rows = torch.eye(dim)[names] + spread * unit(n, dim)
    return F.normalize(rows, dim=1), names


def same_grouping(a, b):
    pairs = torch.stack([a, b], 1).unique(dim=0)
    return len(pairs) == len(a.unique()) == len(b.unique())


# ------------------------------------------------------------------------ clusters


@pytest.mark.parametrize("whiten", [True, False])
@pytest.mark.parametrize("components", [2, None])
def test_groups_are_found(whiten, components):
    rows, names = groups(spread=0.02)
    found = cluster_segments(rows, 3, whiten, components)
    if components or not whiten:  # see below for noise that is whitened
        assert same_grouping(found.assignment, names)
    assert torch.equal(found.assign(rows), found.assignment)
    assert (found.pca is None) == (not whiten and components is None)


def test_whitening_gives_all_directions_unit_variance():
    rows, _ = groups()
    found = cluster_segments(rows, 3)
    whitened = found.pca.transform(rows)
    torch.testing.assert_close(whitened.T.cov(), torch.eye(6), atol=1e-4, rtol=0)


def test_whitened_noise_hides_what_few_components_show():
    """Directions without structure weigh as much as those with it."""
    rows, names = groups(90, 3, 32, spread=0.2)
    few, many = (cluster_segments(rows, 3, num_components=n) for n in (2, 32))
    assert same_grouping(few.assignment, names)
    assert not same_grouping(many.assignment, names)


def test_segments_without_prototype_are_left_out():
    rows, names = groups()
    holes = torch.cat([torch.zeros(2, 6), rows, torch.zeros(1, 6)])
    found = cluster_segments(holes, 3, num_components=2)
    assert found.assignment[[0, 1, -1]].tolist() == [-1, -1, -1]
    assert same_grouping(found.assignment[2:-1], names)
    assert torch.equal(found.assign(holes), found.assignment)
    assert found.assign(torch.zeros(2, 6)).tolist() == [-1, -1]


def test_the_seed_decides_and_more_clusters_than_groups_are_fine():
    rows, _ = groups()
    first, again = (cluster_segments(rows, 8, seed=3) for _ in range(2))
    assert torch.equal(first.assignment, again.assignment)
    assert len(first.centroids) == 8


def test_clusters_that_cannot_be_are_explained():
    rows, _ = groups(10)
    rows[3:] = 0
    with pytest.raises(ValueError, match="4 clusters.*only 3 of 10 segments have"):
        cluster_segments(rows, 4)
    same = unit(6).expand(10, 6)
    with pytest.raises(ValueError, match="all 10 prototypes are the same vector"):
        cluster_segments(same, 2)
    with pytest.raises(ValueError, match="the same vector"):
        cluster_segments(same, 2, whiten=False, num_components=1)
    with pytest.raises(ValueError, match="span 2; choose 1..2"):
        cluster_segments(rows, 2, num_components=5)
    with pytest.warns(UserWarning, match="only 1 of 2 clusters hold rows"):
        cluster_segments(same, 2, whiten=False)


# ----------------------------------------------------------------------- retrieval


def memory_of(label_rows, ids=None, **options):
    """Memory of images of one row of pixels each; all pixels are one object."""
    label = torch.tensor(label_rows)[:, None]
    masks = torch.ones_like(label) > 0 if ids is None else ids
    n = len(label) * int(masks.max())
    return SegmentMemory.build(unit(n, 5), masks, label, **options)


def test_a_segment_is_named_by_most_of_its_pixels():
    memory = memory_of([[1, 1, 2], [0, 0, 3], [-1, -1, 2], [4, 4, 4]])
    assert memory.labels.tolist() == [1, 3, 2, 4]
    assert torch.equal(memory.prototypes, unit(4, 5))


def test_the_larger_of_equally_frequent_classes_wins():
    assert memory_of([[1, 2, 0, 2, 1], [5, 3, 5, 3, 4]]).labels.tolist() == [2, 5]


def test_only_what_lies_under_the_mask_counts():
    ids = torch.tensor([[[0, 0, 1, 2]], [[2, 2, 2, 0]]])
    memory = memory_of([[3, 3, 1, 2], [4, 4, 1, 3]], ids)
    # Object 1 of the second image has no pixels.
    assert memory.labels.tolist() == [1, 2, 4] and memory.rows.tolist() == [0, 1, 3]


def test_segments_without_a_class_are_no_memory():
    memory = memory_of([[0, 0, -1], [1, 0, 0], [-1, -1, -1]])
    assert memory.rows.tolist() == [1]
    assert memory_of([[2, 2, 1], [1, 0, 0]], ignore=(0, 2)).labels.tolist() == [1, 1]
    prototypes = unit(2, 5)
    prototypes[0] = 0
    label = torch.ones(2, 1, 3).long()
    built = SegmentMemory.build(prototypes, label > 0, label)
    assert built.rows.tolist() == [1]


def test_the_nearest_segment_names_the_query():
    memory = memory_of([[1], [2], [3], [4]])
    queries = memory.prototypes[[2, 0, 3]] + 0.01 * unit(3, 5, seed=1)
    classes, places = memory.retrieve(queries)
    assert places.tolist() == [2, 0, 3] and classes.tolist() == [3, 1, 4]


def test_one_query_gives_what_it_gives_among_many():
    memory = memory_of([[1], [2], [3], [4]])
    queries = unit(7, 5, seed=1)
    alone = [memory.retrieve(query[None]) for query in queries]
    classes, places = memory.retrieve(queries)
    assert torch.equal(torch.cat([each[0] for each in alone]), classes)
    assert torch.equal(torch.cat([each[1] for each in alone]), places)


def test_a_query_without_pixels_gets_no_class():
    memory = memory_of([[1], [2]])
    classes, places = memory.retrieve(torch.stack([torch.zeros(5), unit(5)]))
    assert classes[0] == places[0] == -1 and classes[1] > 0
    masks = torch.ones(2, 1, 2) > 0
    assert not class_maps(masks, classes)[0].any()


def test_the_earliest_of_equal_neighbours_is_taken():
    twice = unit(1, 5).expand(2, 5)
    label = torch.tensor([[[1]], [[2]]])
    memory = SegmentMemory.build(twice, label > 0, label)
    assert memory.retrieve(twice)[0].tolist() == [1, 1]


def test_memories_that_cannot_be_are_explained():
    with pytest.raises(ValueError, match="none of 2 segments has pixels of a class"):
        memory_of([[0, 0], [-1, 0]])
    with pytest.raises(ValueError, match="3 segments do not fit 2 masks"):
        label = torch.ones(2, 1, 3).long()
        SegmentMemory.build(unit(3, 5), label > 0, label)
    with pytest.raises(ValueError, match="3 prototypes but counts of 2"):
        SegmentMemory.from_counts(unit(3, 5), torch.ones(2, 4).long())
    memory = memory_of([[1], [2]])
    with pytest.raises(ValueError, match=r"expected \(N, 5\), one row per segment"):
        memory.retrieve(unit(5))
    with pytest.raises(ValueError, match=r"expected \(N, 5\)"):
        memory.retrieve(unit(2, 6))


@pytest.mark.parametrize("k", [1, 3, 20])
@pytest.mark.parametrize("n", [1, 19, 20, 300, 9_999])
def test_nearest_rows_are_those_of_a_full_sort(n, k, monkeypatch):
    rows, queries = unit(n, 6), unit(11, 6, seed=1)
    known = (queries @ rows.T).argsort(1, descending=True)[:, :k]
    monkeypatch.setattr(segments, "PIECE", 16)
    for block in (1, 3 * n, 1 << 20):
        monkeypatch.setattr(segments, "BLOCK", block)
        assert torch.equal(nearest_rows(queries, rows, k), known)
    none = nearest_rows(queries[:0], rows, k)
    assert none.shape == (0, min(k, n))


def test_near_rows_in_one_piece_are_all_found():
    """A piece may hold several, or all, of the nearest."""
    rows = torch.cat([unit(4000, 4) * 0.1, torch.eye(4)[:1].repeat(300, 1)])
    rows[-300:] *= torch.linspace(1, 2, 300)[:, None]
    found = nearest_rows(torch.eye(4)[:1], rows, 5)
    assert found.tolist() == [[4299, 4298, 4297, 4296, 4295]]


def test_the_majority_votes_and_the_smallest_wins_a_tie():
    labels = torch.tensor([[5, 5, 2], [7, 3, 3], [9, 4, 6], [0, 1, 1]])
    assert majority(labels).tolist() == [5, 3, 4, 1]
    assert majority(labels[:0]).tolist() == []
    memory = SegmentMemory(torch.eye(3), torch.tensor([4, 2, 2]), torch.arange(3))
    queries = torch.tensor([[1.0, 0.9, 0.8], [1.0, 0.1, 0.0], [0.0, 0.0, 0.0]])
    assert memory.vote(queries, 1).tolist() == [4, 4, -1]
    assert memory.vote(queries, 2).tolist() == [2, 2, -1]
    assert memory.vote(queries, 99).tolist() == [2, 2, -1]
    assert memory.nearest(queries, 2)[0].tolist() == [0, 1]


def test_votes_that_cannot_be_are_explained():
    memory = SegmentMemory(torch.eye(3), torch.arange(3), torch.arange(3))
    with pytest.raises(ValueError, match="cannot look for 0 nearest among 3 rows"):
        memory.vote(torch.eye(3), 0)
    with pytest.raises(ValueError, match=r"expected \(N, 3\), one row per segment"):
        memory.nearest(torch.ones(3))
    with pytest.raises(ValueError, match="20 nearest among 0 rows"):
        nearest_rows(torch.eye(3), torch.eye(3)[:0], 20)
