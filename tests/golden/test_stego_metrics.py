"""Confusion, Hungarian matching and scores against the recorded pairs."""

import pytest
import torch

from tests.golden.golden import golden_files, load
from uss_utils.metrics import Confusion

pytestmark = pytest.mark.golden


@pytest.mark.parametrize("path", golden_files("stego", "metrics*.npz"))
def test_metrics(path):
    pair = load(path)
    n_classes, extra = pair["param_n_classes"], pair["param_extra"]
    if "in_confusion" in pair:
        confusion = Confusion.from_matrix(pair["in_confusion"])
    else:
        confusion = Confusion(n_classes, extra)
        for pred, label in zip(pair["in_preds"], pair["in_labels"], strict=True):
            confusion.update(pred, label)
    assert confusion.matrix.shape == (n_classes + extra, n_classes)
    assert torch.equal(confusion.matrix, pair["out_confusion"].long())

    matching = confusion.match("hungarian")
    assert torch.equal(matching.row, pair["out_row"].long())
    assert torch.equal(matching.col, pair["out_col"].long())
    if "out_cluster_to_class" in pair:
        table = pair["out_cluster_to_class"].long()
        assert torch.equal(matching.cluster_to_class[: len(table)], table)

    scores = confusion.scores(matching)
    assert torch.equal(scores.histogram, pair["out_histogram"].long())
    assert scores.miou == pytest.approx(pair["out_miou"], abs=1e-3)
    assert scores.acc == pytest.approx(pair["out_acc"], abs=1e-3)
    if "out_miou_unmatched" in pair:
        unmatched = confusion.scores("identity")
        assert unmatched.miou == pytest.approx(pair["out_miou_unmatched"], abs=1e-3)
        assert unmatched.acc == pytest.approx(pair["out_acc_unmatched"], abs=1e-3)
