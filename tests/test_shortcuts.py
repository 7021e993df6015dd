import pytest
import torch

from uss_utils import shortcuts
from uss_utils.datasets.transforms import normalise


def test_clues_of_a_picture():
    pixels = torch.zeros(2, 12, 20, 3, dtype=torch.uint8)
    pixels[1] = torch.tensor([255, 31, 32])
    found = shortcuts.clues(normalise(pixels))
    assert all(clue.shape == (2, 12, 20) for clue in found.values())
    assert found["nothing"].max() == 0
    assert found["row"][1, :, 3].tolist() == list(range(12))
    # Two rows of three squares: the last ones are cut off by the border.
    assert found["square"].unique().tolist() == list(range(6))
    assert found["square"][0, 7, 7] == 0 and found["square"][0, 8, 16] == 5
    assert found["colour"][0].unique().tolist() == [0]
    assert found["colour"][1].unique().tolist() == [7 * 64 + 0 * 8 + 1]


def test_best_guess_answers_the_commonest_class_of_each_value():
    clue = torch.tensor([[0, 0, 0, 1, 1, 1]])
    label = torch.tensor([[1, 1, 0, 2, 2, -1]])
    table = shortcuts.count(clue, label, n_classes=3)
    assert table.matrix.tolist() == [[1, 2, 0], [0, 0, 2]]
    # Value 2 was never seen: no answer, so its pixel is wrong. Ignored ones drop out.
    new_clue = torch.tensor([[0, 1, 1, 2, 0]])
    new_label = torch.tensor([[1, 2, 0, 0, -1]])
    found = shortcuts.best_guess(clue, label, new_clue, new_label, n_classes=3)
    assert found.acc == 50
    assert found.iou.tolist() == pytest.approx([0, 100, 50])


def test_more_values_than_classes_and_fewer():
    label = torch.randint(3, (2, 9, 4), generator=torch.Generator().manual_seed(0))
    row = shortcuts.row_of(label)
    assert shortcuts.count(row, label, 3).matrix.shape == (9, 3)
    nothing = torch.zeros_like(label)
    found = shortcuts.best_guess(nothing, label, nothing, label, 3)
    commonest = label.flatten().bincount().max()
    assert found.acc == pytest.approx(100 * int(commonest) / label.numel())
