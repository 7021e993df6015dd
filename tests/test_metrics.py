"""Confusion counts, matchings and scores."""

import itertools
import math
import subprocess
import sys

import pytest
import torch

from uss_utils.environment import generator
from uss_utils.metrics import (
    Confusion,
    Matching,
    miou_per_image,
    mutual_information,
    rand_index,
)


def draw(n_clusters, n_classes, shape=(3, 16, 16), seed=0, ignored=True):
    g = generator(seed)
    pred = torch.randint(0, n_clusters, shape, generator=g)
    label = torch.randint(-1 if ignored else 0, n_classes, shape, generator=g)
    return pred, label


def counted(pred, label, n_clusters, n_classes):
    """The slow definition: one pass per pair."""
    matrix = torch.zeros(n_clusters, n_classes, dtype=torch.int64)
    for p, c in itertools.product(range(n_clusters), range(n_classes)):
        matrix[p, c] = ((pred == p) & (label == c)).sum()
    return matrix


@pytest.mark.parametrize("extra", [-2, 0, 3])
def test_matrix_counts_pairs(extra):
    pred, label = draw(5 + extra, 5)
    confusion = Confusion(5, extra)
    for p, c in zip(pred, label, strict=True):
        confusion.update(p, c)
    assert torch.equal(confusion.matrix, counted(pred, label, 5 + extra, 5))
    assert torch.equal(Confusion.from_matrix(confusion.matrix).matrix, confusion.matrix)
    assert torch.equal(Confusion.of(pred, label, 5, extra).matrix, confusion.matrix)


def test_returned_matrix_is_a_copy():
    confusion = Confusion(2)
    confusion.matrix.add_(1)
    assert confusion.matrix.sum() == 0


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.int64])
def test_labels_outside_the_classes_are_not_counted(dtype):
    ignored = 255 if dtype == torch.uint8 else -1
    label = torch.tensor([0, 1, 2, ignored, 3, 100], dtype=dtype)
    confusion = Confusion(3)
    confusion.update(torch.tensor([0, 1, 2, 0, 0, 0], dtype=dtype), label)
    assert torch.equal(confusion.matrix, torch.eye(3, dtype=torch.int64))


def test_strange_predictions_are_refused_unless_ignored():
    confusion = Confusion(3)
    confusion.update(torch.tensor([-1, 9, 1]), torch.tensor([-1, 3, 1]))
    assert confusion.matrix.sum() == 1
    with pytest.raises(ValueError, match=r"ids from 3 to 3 outside 0\.\.2"):
        confusion.update(torch.tensor([3, 0]), torch.tensor([1, 0]))
    with pytest.raises(ValueError, match="outside"):
        confusion.update(torch.tensor([-1, 0]), torch.tensor([1, 0]))


def test_extra_clusters_are_counted():
    """A range test against K instead of K+E would drop half of these pixels."""
    label = torch.tensor([0, 0, 1, 1])
    pred = torch.tensor([0, 2, 1, 3])
    confusion = Confusion(2, extra=2)
    confusion.update(pred, label)
    assert confusion.matrix.sum() == 4
    scores = confusion.scores("hungarian")
    # Two clusters stay without a class, so half of the pixels are wrong, not absent.
    assert scores.acc == pytest.approx(50)
    assert confusion.scores("majority").acc == pytest.approx(100)


def test_cluster_table_marks_the_unmatched_at_their_own_place():
    # Cluster 1 is the one left over; classes 0 and 1 belong to clusters 2 and 0.
    confusion = Confusion.from_matrix(torch.tensor([[0, 9], [1, 1], [8, 0]]))
    assert confusion.match().cluster_to_class.tolist() == [1, -1, 0]


@pytest.mark.parametrize("seed", range(5))
def test_hungarian_is_the_best_of_all_assignments(seed):
    pred, label = draw(5, 3, seed=seed)
    confusion = Confusion(3, extra=2)
    confusion.update(pred, label)
    matrix = confusion.matrix
    best = max(
        sum(int(matrix[p, c]) for c, p in enumerate(rows))
        for rows in itertools.permutations(range(5), 3)
    )
    matching = confusion.match()
    assert int(matrix[matching.row, matching.col].sum()) == best
    assert sorted(matching.col.tolist()) == [0, 1, 2]
    assert torch.equal(matching.row, matching.row.sort().values)


def test_fewer_clusters_than_classes():
    confusion = Confusion(4, extra=-2)
    label = torch.arange(4).repeat(10)
    confusion.update(label % 2, label)
    scores = confusion.scores()
    assert scores.histogram.shape == (4, 4)
    assert scores.acc == pytest.approx(50)
    assert (scores.iou == 0).sum() == 2 and not scores.iou.isnan().any()
    assert scores.miou == pytest.approx(scores.miou_classes) == pytest.approx(25)


def test_majority_maps_many_to_one_and_leaves_empty_clusters():
    confusion = Confusion.from_matrix(
        torch.tensor([[5, 1], [4, 0], [0, 0], [1, 3], [2, 2]])
    )
    matching = confusion.match("majority")
    assert matching.cluster_to_class.tolist() == [0, 0, -1, 1, 0]
    assert matching.row.tolist() == [0, 1, 3, 4]
    assert matching.col.tolist() == [0, 0, 1, 0]
    scores = confusion.scores(matching)
    # The cluster without pixels adds an empty row, which no mean may notice.
    assert scores.histogram.tolist() == [[11, 3, 0], [1, 3, 0], [0, 0, 0]]
    assert scores.miou == scores.miou_classes


def test_iou_matrix_by_its_definition():
    pred, label = draw(6, 4)
    label[label == 2] = -1  # an absent class, and below an absent cluster
    pred[pred == 5] = 1
    found = Confusion.of(pred, label, 4, 2).iou_matrix()
    seen = label >= 0
    for p, c in itertools.product(range(6), range(4)):
        both = ((pred == p) & (label == c)).sum()
        either = (((pred == p) & seen) | (label == c)).sum()
        assert found[p, c].item() == pytest.approx((both / either.clamp(min=1)).item())


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("extra", [-1, 0, 2])
def test_matching_by_iou_is_the_best_of_all_assignments(seed, extra):
    pred, label = draw(3 + extra, 3, seed=seed)
    confusion = Confusion.of(pred, label, 3, extra)
    iou = confusion.iou_matrix()
    if extra < 0:
        iou = iou.T
    best = max(
        sum(float(iou[p, c]) for c, p in enumerate(rows))
        for rows in itertools.permutations(range(len(iou)), iou.shape[1])
    )
    matching = confusion.match("hungarian-iou")
    found = confusion.iou_matrix()[matching.row, matching.col].sum()
    assert float(found) == pytest.approx(best)


def test_matchings_by_pixels_and_by_iou_differ():
    # 132 right pixels against 130, but IoUs of 0.649 against 0.652 in all.
    confusion = Confusion.from_matrix(torch.tensor([[50, 92], [40, 80]]))
    assert confusion.match("hungarian").cluster_to_class.tolist() == [1, 0]
    assert confusion.match("hungarian-iou").cluster_to_class.tolist() == [0, 1]
    # Cluster 0 has more pixels of class 1, but a tiny part of that class.
    confusion = Confusion.from_matrix(torch.tensor([[50, 60], [0, 900]]))
    assert confusion.match("majority").cluster_to_class.tolist() == [1, 1]
    assert confusion.match("iou").cluster_to_class.tolist() == [0, 1]


def test_several_clusters_take_the_class_of_the_highest_iou():
    confusion = Confusion.from_matrix(
        torch.tensor([[5, 1], [4, 0], [0, 0], [1, 3], [0, 2]])
    )
    matching = confusion.match("iou")
    assert matching.cluster_to_class.tolist() == [0, 0, -1, 1, 1]
    expected = confusion.iou_matrix().argmax(1)
    assert torch.equal(matching.col, expected[[0, 1, 3, 4]])


def test_absent_classes_can_count_as_zero():
    confusion = Confusion.from_matrix(torch.tensor([[3, 0, 0], [0, 3, 0], [0, 0, 0]]))
    left_out, counted = (
        confusion.scores("identity", absent) for absent in (math.nan, 0)
    )
    assert left_out.iou[2].isnan() and left_out.miou == 100
    assert counted.iou.tolist() == [100, 100, 0]
    assert counted.miou == counted.miou_classes == pytest.approx(200 / 3)


def test_agreement_by_hand():
    assert mutual_information(torch.eye(3) * 5) == pytest.approx(1)
    assert rand_index(torch.eye(3) * 5) == pytest.approx(1)
    independent = torch.tensor([[20, 40], [10, 20]])
    assert mutual_information(independent) == pytest.approx(0, abs=1e-12)
    # Two segments against two classes of three pixels, one pixel on the wrong side.
    counts = torch.tensor([[3, 1], [0, 2]])
    pairs, rows, columns, all_pairs = 3 + 0 + 0 + 1, 6 + 1, 3 + 3, 15
    chance = rows * columns / all_pairs
    expected = (pairs - chance) / ((rows + columns) / 2 - chance)
    assert rand_index(counts) == pytest.approx(expected)
    for alone in (torch.tensor([[7]]), torch.tensor([[7, 0], [0, 0]])):
        assert mutual_information(alone) == rand_index(alone) == 1


def test_agreement_ignores_names():
    pred, label = draw(4, 4)
    counts = Confusion.of(pred, label.clamp(min=0), 4).matrix
    for measure in (mutual_information, rand_index):
        assert measure(counts) == pytest.approx(measure(counts[[2, 0, 3, 1]].T))


@pytest.mark.parametrize("seed", range(5))
def test_majority_is_never_less_accurate_than_hungarian(seed):
    pred, label = draw(7, 4, seed=seed)
    confusion = Confusion(4, extra=3)
    confusion.update(pred, label)
    assert confusion.scores("majority").acc >= confusion.scores("hungarian").acc


@pytest.mark.parametrize("seed", range(5))
def test_scores_do_not_depend_on_cluster_names(seed):
    pred, label = draw(6, 6, seed=seed)
    pred = torch.where(torch.rand(pred.shape, generator=generator(seed)) < 0.6,
                       label.clamp(min=0), pred)  # fmt: skip
    names = torch.randperm(6, generator=generator(seed))
    first, second = Confusion(6), Confusion(6)
    first.update(pred, label)
    second.update(names[pred], label)
    assert first.scores().miou == pytest.approx(second.scores().miou)
    assert second.match().cluster_to_class[names].tolist() == (
        first.match().cluster_to_class.tolist()
    )


def test_a_matching_fitted_elsewhere_is_applied():
    train, val = Confusion(2), Confusion(2)
    train.update(torch.tensor([0, 1]), torch.tensor([1, 0]))
    val.update(torch.tensor([0, 0, 1]), torch.tensor([0, 0, 1]))
    assert val.scores(train.match()).acc == 0
    assert val.scores().acc == pytest.approx(100)
    assert val.scores(Matching.from_table(torch.tensor([0, -1]))).acc == pytest.approx(
        100 * 2 / 3
    )


def test_scores_by_hand():
    confusion = Confusion(3)
    confusion.update(torch.tensor([0, 0, 1, 1]), torch.tensor([0, 1, 1, 1]))
    scores = confusion.scores("identity")
    assert scores.acc == pytest.approx(75)
    assert scores.iou[:2].tolist() == pytest.approx([50, 200 / 3])
    assert scores.iou[2].isnan()  # neither there nor predicted: left out of the mean
    assert scores.miou == pytest.approx((50 + 200 / 3) / 2)


def test_unmatched_clusters_cost_a_class_in_miou_only():
    confusion = Confusion.from_matrix(torch.tensor([[6, 0], [0, 6], [0, 4]]))
    scores = confusion.scores()
    assert scores.histogram.tolist() == [[6, 0, 0], [0, 6, 0], [0, 4, 0]]
    assert scores.miou_classes == pytest.approx((100 + 60) / 2)
    assert scores.miou == pytest.approx((100 + 60 + 0) / 3)


def test_adding_confusions_equals_seeing_all_batches():
    pred, label = draw(4, 4)
    whole, parts = Confusion(4), [Confusion(4), Confusion(4)]
    whole.update(pred, label)
    parts[0].update(pred[:1], label[:1])
    parts[1].update(pred[1:], label[1:])
    assert torch.equal((parts[0] + parts[1]).matrix, whole.matrix)
    with pytest.raises(ValueError, match="cannot add confusions"):
        Confusion(4) + Confusion(4, extra=1)


def test_all_reduce_without_processes_changes_nothing():
    confusion = Confusion.from_matrix(torch.tensor([[1, 2], [3, 4]]))
    confusion.all_reduce()
    assert confusion.matrix.tolist() == [[1, 2], [3, 4]]


def test_every_image_by_itself():
    pred, label = draw(4, 4, (5, 8, 8))
    label[3] = -1
    found = miou_per_image(pred, label, 4)
    assert found[3].isnan()
    for i in (0, 1, 2, 4):
        alone = Confusion.of(pred[i], label[i], 4).scores("identity").miou
        assert found[i].item() == pytest.approx(alone)


def test_pixels_without_class_are_wrong_in_their_image():
    label = torch.tensor([[[0, 0, 1, 1]], [[0, 0, 0, 0]]])
    pred = torch.tensor([[[0, -1, 1, 1]], [[0, 0, -1, -1]]])
    assert miou_per_image(pred, label, 3).tolist() == [75, 50]


WORKER = """
import sys, torch
from uss_utils.metrics import Confusion
rank, path = int(sys.argv[1]), sys.argv[2]
torch.distributed.init_process_group(
    "gloo", init_method="file://" + path, rank=rank, world_size=2)
confusion = Confusion.from_matrix(torch.tensor([[1, 10], [100, 1000]]) * (rank + 1))
confusion.all_reduce()
assert confusion.matrix.tolist() == [[3, 30], [300, 3000]], confusion.matrix
torch.distributed.destroy_process_group()
"""


def test_all_reduce_sums_over_processes(tmp_path):
    arguments = [sys.executable, "-c", WORKER]
    meeting = str(tmp_path / "meeting")
    workers = [
        subprocess.Popen([*arguments, str(rank), meeting], stderr=subprocess.PIPE)
        for rank in range(2)
    ]
    for worker in workers:
        _, errors = worker.communicate(timeout=120)
        assert worker.returncode == 0, errors.decode()


def test_bad_input_is_explained():
    with pytest.raises(ValueError, match="no labelled pixel was counted"):
        Confusion(3).scores()
    ignored = Confusion(3)
    ignored.update(torch.zeros(4, dtype=torch.int64), torch.full((4,), -1))
    with pytest.raises(ValueError, match="all pixels are ignored"):
        ignored.scores("identity")
    with pytest.raises(ValueError, match="resize the prediction"):
        Confusion(3).update(torch.zeros(2, 4, 4).long(), torch.zeros(2, 8, 8).long())
    with pytest.raises(ValueError, match="expected integer ids"):
        Confusion(3).update(torch.zeros(4), torch.zeros(4).long())
    with pytest.raises(ValueError, match="no class or no cluster"):
        Confusion(3, extra=-3)
    with pytest.raises(ValueError, match="unknown matching 'best'; known: hungarian"):
        Confusion(3).match("best")
    with pytest.raises(ValueError, match="names 4 clusters"):
        Confusion.from_matrix(torch.eye(3).long()).scores(
            Matching.from_table(torch.arange(4))
        )
    with pytest.raises(ValueError, match="holds counts"):
        Confusion.from_matrix(torch.eye(3))
