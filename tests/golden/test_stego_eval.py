"""Evaluation against the authors': flip average, log-probabilities, scores."""

import numpy as np
import pytest
import torch

from tests.golden.golden import assert_close, golden_files, load
from uss_utils.datasets.base import SegmentationDataset
from uss_utils.evaluation import EvalProtocol, evaluate
from uss_utils.frozen import Frozen
from uss_utils.heads import Standardise
from uss_utils.metrics import Confusion
from uss_utils.probes import ClusterProbe, LinearProbe
from uss_utils.segmenter import Segmenter

pytestmark = pytest.mark.golden
FILES = golden_files("stego", "eval_probs*.npz")


class Recorded(Frozen):
    """Answers each recorded image with the recorded code; knows mirrored images."""

    name, patch = "recorded", 1

    def __init__(self, pair: dict):
        super().__init__()
        self.pair, self.dim = pair, pair["in_code"].shape[1]

    def features(self, images):
        mirrored = bool(images[0, 1, 0, 0] > images[0, 1, 0, -1])
        codes = self.pair["in_code_flipped_input" if mirrored else "in_code"]
        return codes[images[:, 0, 0, 0].long()]


class Images(SegmentationDataset):
    """Images that say which one they are, and a ramp that tells left from right."""

    def __init__(self, pair: dict):
        n_classes = len(pair["in_linear_w"])
        names = [f"class {k}" for k in range(n_classes)]
        super().__init__("recorded", "val", names, np.zeros((n_classes, 3)))
        self.label = pair["in_label"]

    def __len__(self):
        return len(self.label)

    def batch(self, indices):
        indices = torch.as_tensor(list(indices))
        height, width = self.label.shape[-2:]
        image = torch.zeros(len(indices), 3, height, width)
        image[:, 0] = indices[:, None, None]
        image[:, 1] = torch.linspace(0, 1, width)
        return image, self.label[indices]


def model(pair: dict, data: Images) -> Segmenter:
    dim = pair["in_code"].shape[1]
    linear = LinearProbe(dim, data.n_classes)
    linear.weight.data, linear.bias.data = pair["in_linear_w"], pair["in_linear_b"]
    return Segmenter(
        Recorded(pair),
        Standardise(torch.zeros(dim)),
        ClusterProbe.from_centroids(pair["in_centroids"]),
        linear,
        classes=data.classes,
        palette=data.palette,
    )


@pytest.mark.parametrize("path", FILES)
def test_final_log_probabilities(path):
    pair = load(path)
    data = Images(pair)
    segmenter = model(pair, data)
    images, label = data.batch(range(len(data)))
    for which in ("linear", "cluster"):
        found = segmenter.log_probs(images, label.shape[-2:], alpha=2.0, which=which)
        assert_close(found, pair[f"out_{which}_logprobs"], 1e-5)


@pytest.mark.parametrize("path", FILES)
def test_validation_predictions(path):
    pair = load(path)
    data = Images(pair)
    segmenter = model(pair, data)
    images, label = data.batch(range(len(data)))
    for which in ("linear", "cluster"):
        found = segmenter.predict_of(
            segmenter.code(images), label.shape[-2:], which=which
        )
        assert torch.equal(found, pair[f"out_val_{which}_pred"].long())


@pytest.mark.parametrize("batch_size", [1, 16])
@pytest.mark.parametrize("path", FILES)
def test_validation_scores(path, batch_size):
    pair = load(path)
    data = Images(pair)
    protocol = EvalProtocol(fit_map_on="eval", flip=False)
    record = evaluate(model(pair, data), data, protocol=protocol, batch_size=batch_size)
    for which, scores in (
        ("linear", record["linear"]),
        ("cluster", record["cluster"]["eval"]),
    ):
        assert scores["miou"] == pytest.approx(pair[f"out_val_{which}_miou"], abs=1e-3)
        assert scores["acc"] == pytest.approx(pair[f"out_val_{which}_acc"], abs=1e-3)


@pytest.mark.parametrize("path", FILES)
def test_final_scores_are_those_of_the_recorded_probabilities(path):
    pair = load(path)
    data = Images(pair)
    record = evaluate(model(pair, data), data, protocol=EvalProtocol(fit_map_on="eval"))
    for which, scores, matching in (
        ("linear", record["linear"], "identity"),
        ("cluster", record["cluster"]["eval"], "hungarian"),
    ):
        confusion = Confusion(data.n_classes)
        confusion.update(pair[f"out_{which}_logprobs"].argmax(1), pair["in_label"])
        expected = confusion.scores(matching)
        assert scores["miou"] == pytest.approx(expected.miou, abs=1e-3)
        assert scores["acc"] == pytest.approx(expected.acc, abs=1e-3)
