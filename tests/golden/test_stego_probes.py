"""Probes and evaluation-time predictions against the recorded pairs."""

import pytest
import torch

from tests.golden.golden import assert_close, golden_files, load
from uss_utils.metrics import Confusion
from uss_utils.probes import (
    ClusterProbe,
    LinearProbe,
    cluster_log_probs_upsampled,
    cluster_prediction_upsampled,
    linear_log_probs_upsampled,
    linear_prediction_upsampled,
    upsample,
)

pytestmark = pytest.mark.golden


@pytest.mark.parametrize("path", golden_files("stego", "cluster_probe*.npz"))
def test_cluster_probe(path):
    pair = load(path)
    alphas = {"hard": None}
    alphas |= {f"a{i}": float(a) for i, a in enumerate(pair["param_alphas"])}
    for suffix, alpha in alphas.items():
        x = pair["in_x"].clone().requires_grad_()
        probe = ClusterProbe.from_centroids(pair["in_centroids"])
        loss, probs = probe(x, alpha)
        loss.backward()
        assert_close(loss.detach(), pair[f"out_loss_{suffix}"], 1e-5)
        assert_close(probs.detach(), pair[f"out_probs_{suffix}"], 1e-5)
        assert_close(x.grad, pair[f"out_grad_x_{suffix}"], 1e-5)
        grad = probe.clusters.grad
        assert_close(grad, pair[f"out_grad_centroids_{suffix}"], 1e-5)
        if alpha is not None:
            log_probs = probe.log_probs(x, alpha).detach()
            tolerance = 1e-5 if alpha <= 8 else 1e-4
            assert_close(log_probs, pair[f"out_logprobs_{suffix}"], tolerance)


def _probes(pair):
    linear = LinearProbe(*pair["in_linear_w"].shape[1::-1])
    state = {"weight": pair["in_linear_w"], "bias": pair["in_linear_b"]}
    linear.load_state_dict(state)
    cluster = ClusterProbe.from_centroids(pair["in_centroids"])
    return linear.requires_grad_(False), cluster.requires_grad_(False)


@pytest.mark.parametrize("path", golden_files("stego", "eval_probs*.npz"))
def test_validation_predictions_and_scores(path):
    pair = load(path)
    linear, cluster = _probes(pair)
    code, label = pair["in_code"], pair["in_label"]
    size, n_classes = label.shape[-2:], len(pair["in_linear_b"])
    predictions = {
        "linear": linear_prediction_upsampled(linear, code, size),
        "cluster": cluster_prediction_upsampled(cluster, code, size),
    }
    for kind, pred in predictions.items():
        assert torch.equal(pred, pair[f"out_val_{kind}_pred"])
        confusion = Confusion(n_classes, len(pair["in_centroids"]) - n_classes)
        confusion.update(pred, label)
        scores = confusion.scores("identity" if kind == "linear" else "hungarian")
        assert scores.miou == pytest.approx(pair[f"out_val_{kind}_miou"], abs=1e-3)
        assert scores.acc == pytest.approx(pair[f"out_val_{kind}_acc"], abs=1e-3)


@pytest.mark.parametrize("path", golden_files("stego", "eval_probs*.npz"))
def test_flip_averaged_log_probabilities(path):
    pair = load(path)
    linear, cluster = _probes(pair)
    code = (pair["in_code"] + pair["in_code_flipped_input"].flip(-1)) / 2
    size = pair["in_label"].shape[-2:]
    ours = linear_log_probs_upsampled(linear, code, size)
    assert_close(ours, pair["out_linear_logprobs"], 1e-5)
    assert_close(linear(upsample(code, size)).log_softmax(1), ours, 1e-5)
    ours = cluster_log_probs_upsampled(cluster, code, size, alpha=2.0)
    assert_close(ours, pair["out_cluster_logprobs"], 1e-5)
    assert_close(cluster.log_probs(upsample(code, size), 2.0), ours, 1e-5)
