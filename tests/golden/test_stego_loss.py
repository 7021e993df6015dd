"""The correspondence loss and a whole training step against the recorded pairs."""

from itertools import product

import pytest

from tests.golden.golden import assert_close, golden_files, load
from uss_utils.correspondence import (
    CorrespondenceLoss,
    centre,
    correlation,
    pair_loss,
)
from uss_utils.probes import ClusterProbe, LinearProbe, linear_probe_loss
from uss_utils.similarity import average_precision, label_cooccurrence

pytestmark = pytest.mark.golden
TERMS = ("intra", "inter", "neg")


def recorded_loss(pair) -> CorrespondenceLoss:
    """Loss of a file's settings; switches it does not name are the default's."""
    switches = ("pointwise", "zero_clamp", "stabilize")
    return CorrespondenceLoss(
        [pair[f"param_w_{term}"] for term in TERMS],
        [pair[f"param_b_{term}"] for term in TERMS],
        **{s: bool(pair[f"param_{s}"]) for s in switches if f"param_{s}" in pair},
    )


def run(pair):
    """Total and parts on the recorded tensors, and the codes that take gradients."""
    codes = [pair[f"in_{name}"].requires_grad_() for name in ("code", "code_pos")]
    total, parts = recorded_loss(pair)(
        pair["in_feats"],
        pair["in_feats_pos"],
        *codes,
        coords=(pair["in_coords1"], pair["in_coords2"]),
        perms=pair["in_neg_perms"],
    )
    return total, parts, codes


@pytest.mark.parametrize("path", golden_files("stego", "corr_loss*.npz"))
def test_correspondence_loss(path):
    pair = load(path)
    total, parts, codes = run(pair)
    total.backward()
    assert_close(total.detach(), pair["out_total"], 1e-5)
    for term in TERMS:
        assert_close(parts[term], pair[f"out_loss_{term}"], 1e-5)
        assert_close(parts[f"code_{term}"], pair[f"out_cd_{term}"], 1e-5)
    assert_close(parts["map_neg"], pair["out_loss_neg_map"], 1e-5)
    assert_close(codes[0].grad, pair["out_grad_code"], 1e-6)
    assert_close(codes[1].grad, pair["out_grad_code_pos"], 1e-6)


@pytest.mark.parametrize("path", golden_files("stego", "pair_loss*.npz"))
def test_pair_loss_switches(path):
    pair = load(path)
    for pointwise, clamp, stabilize in product((0, 1), repeat=3):
        suffix = f"p{pointwise}_z{clamp}_s{stabilize}"
        codes = [pair[f"in_c{i}"].clone().requires_grad_() for i in (1, 2)]
        feat_corr = correlation(pair["in_f1"], pair["in_f2"])
        if pointwise:
            feat_corr = centre(feat_corr)
        code_corr = correlation(*codes)
        loss = pair_loss(
            feat_corr, code_corr, pair["param_shift"], bool(clamp), bool(stabilize)
        )
        loss.mean().backward()
        assert_close(code_corr.detach(), pair["out_code_corr"], 1e-5)
        assert_close(loss.detach(), pair[f"out_loss_{suffix}"], 1e-5)
        assert_close(codes[0].grad, pair[f"out_grad_c1_{suffix}"], 1e-5)
        assert_close(codes[1].grad, pair[f"out_grad_c2_{suffix}"], 1e-5)


@pytest.mark.parametrize("path", golden_files("stego", "cooccurrence*.npz"))
def test_label_cooccurrence(path):
    pair = load(path)
    feat_corr, agreement = label_cooccurrence(
        pair["in_feats"],
        pair["in_label"],
        pair["in_coords1"],
        pair["in_coords2"],
        pair["param_n_classes"],
    )
    assert_close(feat_corr, pair["out_feat_corr"], 1e-5)
    assert_close(agreement, pair["out_label_corr"], 1e-5)
    # As released: soft labels truncated to integers, so that agreements which round to
    # 0.9999999 count as disagreements. We compare with 0.5 instead.
    released = pair["out_label_corr"].int() > 0
    found = average_precision(feat_corr, released)
    assert found == pytest.approx(pair["out_average_precision"], abs=1e-4)


@pytest.mark.parametrize("path", golden_files("stego", "train_step*.npz"))
def test_training_step(path):
    pair = load(path)
    total, parts, codes = run(pair)
    n_classes, dim = pair["in_linear_w"].shape[:2]
    linear = LinearProbe(dim, n_classes)
    linear.load_state_dict({"weight": pair["in_linear_w"], "bias": pair["in_linear_b"]})
    cluster = ClusterProbe.from_centroids(pair["in_centroids"])
    seen = codes[0].detach()
    linear_loss = linear_probe_loss(linear(seen), pair["in_label"], n_classes)
    cluster_loss, _ = cluster(seen)
    total = total + linear_loss + cluster_loss
    total.backward()
    for term in TERMS:
        assert_close(parts[term], pair[f"out_{term}"], 1e-5)
    for name, ours in {
        "total": total.detach(),
        "linear": linear_loss.detach(),
        "cluster": cluster_loss.detach(),
        "grad_code": codes[0].grad,
        "grad_code_pos": codes[1].grad,
        "grad_linear_w": linear.weight.grad,
        "grad_linear_b": linear.bias.grad,
        "grad_centroids": cluster.clusters.grad,
    }.items():
        assert_close(ours, pair[f"out_{name}"], 1e-5)
