"""HSG's retrieval, memory, prediction and mIoU against the recorded pairs."""

import pytest
import torch

from tests.golden.golden import assert_close, golden_files, load
from uss_utils.methods._hsg_inference import (
    image_segments,
    paint,
    retrieve,
    retrieved_labels,
    segment_labels,
)
from uss_utils.metrics import Confusion

pytestmark = pytest.mark.golden


@pytest.mark.parametrize("path", golden_files("hsg", "14_retrieval*.npz"))
def test_retrieval(path):
    pair = load(path)
    given = [pair[f"in_{name}"] for name in ("queries", "memory", "memory_labels")]
    nearest = retrieved_labels(*given, pair["param_k"])
    assert torch.equal(nearest, pair["out_topk_labels"])
    assert torch.equal(retrieve(*given, pair["param_k"]), pair["out_labels"])
    right = (nearest == pair["in_query_labels"][:, None]).float().mean()
    assert float(right) == pytest.approx(pair["out_topk_accuracy"], abs=1e-6)


@pytest.mark.parametrize("path", golden_files("hsg", "15_majority_label*.npz"))
def test_majority_label(path):
    pair = load(path)
    labels, segments = pair["in_pixel_labels"], pair["in_pixel_segment"]
    found = segment_labels(labels, segments, pair["param_ignore"])
    assert torch.equal(found, pair["out_segment_label"])
    agree = (labels == found[segments]).nonzero()[:, 0]
    assert torch.equal(agree, pair["out_pixels_in_majority"])


@pytest.mark.parametrize("path", golden_files("hsg", "16_predict_image*.npz"))
def test_predict_image(path):
    pair = load(path)
    embedding = pair["in_embeddings"][0]
    found = image_segments(
        embedding,
        tuple(embedding.shape[1:]),
        tuple(pair["param_valid_size"].tolist()),
        tuple(pair["param_grid"].tolist()),
        pair["param_iterations"],
    )
    assert torch.equal(found.map, pair["out_segments"])
    assert_close(found.prototypes, pair["out_segment_prototypes"], 1e-5)
    memory = pair["in_memory"], pair["in_memory_labels"]
    classes = retrieve(found.prototypes, *memory, pair["param_k"])
    assert torch.equal(paint(found, classes), pair["out_prediction"])


@pytest.mark.parametrize("path", golden_files("hsg", "18_miou*.npz"))
def test_miou(path):
    pair = load(path)
    confusion = Confusion(pair["param_num_classes"])
    for pred, label in zip(pair["in_predictions"], pair["in_labels"], strict=True):
        label = label.long()
        confusion.update(pred, label.where(label != pair["param_ignore"], -1))
    scores = confusion.scores("identity", absent=0)
    assert_close(scores.iou, pair["out_iou"], 1e-4)
    assert scores.miou_classes == pytest.approx(pair["out_miou"], abs=1e-4)
    assert scores.acc / 100 == pytest.approx(pair["out_pixel_accuracy"], abs=1e-4)
