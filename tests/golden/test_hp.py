"""HP's functions and a whole training step against the recorded pairs."""

from types import SimpleNamespace

import pytest
import torch

from tests.golden.golden import assert_close, golden_files, load
from uss_utils.contrast import contrast
from uss_utils.heads import SegmentationHead
from uss_utils.local_attention import window_sizes
from uss_utils.methods import hp
from uss_utils.positives import HiddenPositives
from uss_utils.probes import ClusterProbe, LinearProbe, linear_probe_loss
from uss_utils.readout import Readout
from uss_utils.schedules import EMA

pytestmark = pytest.mark.golden
HEAD = {"lin": "linear", "nl0": "nonlinear.0", "nl2": "nonlinear.2"}


def set_head(head: SegmentationHead, pair: dict, prefix: str) -> SegmentationHead:
    state = {}
    for short, long in HEAD.items():
        state[f"{long}.weight"] = pair[f"{prefix}{short}_w"]
        state[f"{long}.bias"] = pair[f"{prefix}{short}_b"]
    head.load_state_dict(state)
    return head


def head_of(pair: dict, prefix: str) -> SegmentationHead:
    dim, in_dim = pair["in_lin_w"].shape[:2]
    return set_head(SegmentationHead(in_dim, dim, dropout=0.0), pair, prefix)


def assert_head(head: SegmentationHead, pair: dict, prefix: str, tolerance: float):
    for short, long in HEAD.items():
        layer = head.get_submodule(long)
        assert_close(layer.weight.detach(), pair[f"{prefix}{short}_w"], tolerance)
        assert_close(layer.bias.detach(), pair[f"{prefix}{short}_b"], tolerance)


# ---------------------------------------------------------------- contrastive loss


def masks(pair: dict):
    f, t, n = pair["in_f"], pair["in_s_ema"], pair["param_spatial"] ** 2
    limits = [
        hp.pool_threshold(x, pair[f"in_pool_{kind}"])
        for x, kind in ((f, "agnostic"), (t, "specific"))
    ]
    agnostic, specific = (
        hp.hidden_positives(x, limit) for x, limit in zip((f, t), limits, strict=True)
    )
    uniform = pair["in_uniform"].repeat(len(f) // n, 1)
    denominator = hp.denominator_mask(agnostic, uniform, pair["param_rho"])
    return limits, agnostic, specific, denominator


@pytest.mark.parametrize("path", golden_files("hp", "contrast_loss*.npz"))
def test_thresholds_and_masks(path):
    pair = load(path)
    limits, agnostic, specific, denominator = masks(pair)
    assert_close(limits[0], pair["out_threshold_agnostic"], 1e-5)
    assert_close(limits[1], pair["out_threshold_specific"], 1e-5)
    assert torch.equal(agnostic, pair["out_pos_agnostic"])
    assert torch.equal(specific, pair["out_pos_specific"])
    assert torch.equal(denominator, pair["out_denominator"])


@pytest.mark.parametrize("path", golden_files("hp", "contrast_loss*.npz"))
def test_loss_for_given_masks(path):
    pair = load(path)
    _, *given = masks(pair)
    for i, lam in enumerate(pair["param_lambdas"].tolist()):
        views = [pair[f"in_{name}"].clone().requires_grad_() for name in ("z", "z_mix")]
        halves = [
            hp.hidden_positive_loss(
                *(z, *given, lam, pair["param_tau"], pair["param_spatial"] ** 2),
                reweight=bool(pair["param_reweight"]),
            )
            for z in views
        ]
        loss = sum(halves) / 2
        loss.backward()
        assert_close(loss.detach(), pair[f"out_loss_l{i}"], 1e-4)
        assert_close(views[0].grad, pair[f"out_grad_z_l{i}"], 1e-5)
        assert_close(views[1].grad, pair[f"out_grad_z_mix_l{i}"], 1e-5)


@pytest.mark.parametrize("path", golden_files("hp", "contrast_loss*.npz"))
def test_loss_image_by_image(path):
    pair = load(path)
    for i, lam in enumerate(pair["param_lambdas"].tolist()):
        views = [pair[f"in_{name}"].clone().requires_grad_() for name in ("z", "z_mix")]
        pairs = HiddenPositives(
            pair["in_f"],
            pair["in_s_ema"],
            (pair["in_pool_agnostic"], pair["in_pool_specific"]),
            pair["in_uniform"],
            rho=pair["param_rho"],
            lam=lam,
            tau=pair["param_tau"],
            reweight=bool(pair["param_reweight"]),
        )
        loss = contrast(torch.stack(views), pairs, pair["param_tau"])
        loss.backward()
        assert_close(loss.detach(), pair[f"out_loss_l{i}"], 1e-4)
        assert_close(views[0].grad, pair[f"out_grad_z_l{i}"], 1e-5)
        assert_close(views[1].grad, pair[f"out_grad_z_mix_l{i}"], 1e-5)
        expected = [
            pair[f"out_pos_{k}"].float().sum(1).mean() for k in ("agnostic", "specific")
        ]
        assert_close(pairs.counts, torch.stack(expected), 1e-5)


# -------------------------------------------------------------------- pools, local


@pytest.mark.parametrize("path", golden_files("hp", "reference_pool*.npz"))
def test_reference_pools(path):
    pair = load(path)
    for pool, maps, picks in (
        ("agnostic", "in_feats", "agnostic"),
        ("specific", "in_codes_ema", "specific"),
        ("renewed", "in_codes_ema", "renew"),
    ):
        found = hp.build_pool(
            pair[maps], pair["param_pool_size"], pair[f"in_pick_{picks}"]
        )
        assert_close(found, pair[f"out_pool_{pool}"], 1e-6)


@pytest.mark.parametrize("path", golden_files("hp", "local_mix*.npz"))
def test_local_mixing(path):
    pair = load(path)
    student, teacher = head_of(pair, "in_"), head_of(pair, "in_ema_")
    h, w = pair["in_feats"].shape[2:]
    weights = hp.neighbour_weights(
        pair["in_attn_logits"], (h, w), sigma=pair["param_sigma"]
    )
    window = pair["out_window"].bool()
    index = torch.arange(h * w)
    for i in range(h * w):
        near = index[window[i]]
        expected = pair["out_attn_weights"][:, i, near]
        inside = weights[:, i].reshape(-1, 9)[:, _cells(i, h, w)]
        assert_close(inside, expected, 1e-5)
        assert near.numel() == inside.shape[1]
    assert torch.equal(
        window_sizes(h, w).reshape(-1, 1), pair["out_window_count"].long()
    )
    code = student(pair["in_feats"])
    code.retain_grad()
    mixed = hp.mix_local(code, weights)
    assert_close(code.detach(), pair["out_code"], 1e-5)
    assert_close(mixed.detach(), pair["out_mixed"], 1e-5)
    assert_close(teacher(pair["in_feats"]).detach(), pair["out_code_ema"], 1e-5)
    (mixed * pair["in_cotangent"]).sum().backward()
    assert_close(code.grad, pair["out_grad_code"], 1e-5)
    assert_close(student.linear.weight.grad, pair["out_grad_lin_w"], 1e-5)
    EMA(student, pair["param_ema"], target=teacher).update(0, 1)
    assert_head(teacher, pair, "out_ema_", 1e-5)


def _cells(i: int, h: int, w: int) -> list[int]:
    """Which of a patch's nine cells lie in the grid."""
    y, x = divmod(i, w)
    return [
        3 * (dy + 1) + dx + 1
        for dy in (-1, 0, 1)
        for dx in (-1, 0, 1)
        if 0 <= y + dy < h and 0 <= x + dx < w
    ]


# ------------------------------------------------------------------ schedule, probes


@pytest.mark.parametrize("path", golden_files("hp", "lambda_schedule*.npz"))
def test_lambda_schedule(path):
    pair = load(path)
    for i, (per_epoch, epochs, warmup) in enumerate(pair["in_cases"].tolist()):
        found = [
            hp.lambda_schedule(step, per_epoch * epochs, warmup)
            for step in pair["in_steps"][i].tolist()
        ]
        assert_close(torch.tensor(found), pair[f"out_lambda{i}"], 1e-6)


@pytest.mark.parametrize("path", golden_files("hp", "probes*.npz"))
def test_probes(path):
    pair = load(path)
    logits = pair["in_logits"].requires_grad_()
    loss = linear_probe_loss(logits, pair["in_label"], pair["param_n_classes"])
    loss.backward()
    assert_close(loss.detach(), pair["out_linear_loss"], 1e-5)
    assert_close(logits.grad, pair["out_grad_logits"], 1e-5)
    probe = ClusterProbe.from_centroids(pair["in_centroids"])
    hard, _ = probe(pair["in_code"])
    hard.backward()
    assert_close(hard.detach(), pair["out_cluster_loss_hard"], 1e-5)
    assert_close(probe.clusters.grad, pair["out_grad_centroids"], 1e-5)
    soft, _ = probe(pair["in_code"], alpha=2.0)
    assert_close(soft.detach(), pair["out_cluster_loss_soft"], 1e-5)
    found = probe.log_probs(pair["in_code"], 2.0).detach()
    assert_close(found, pair["out_cluster_logprobs"], 1e-5)


# ----------------------------------------------------------------------- whole step


@pytest.mark.parametrize("path", golden_files("hp", "train_step*.npz"))
def test_whole_training_step(path):
    pair = load(path)
    dim, in_dim = pair["in_lin_w"].shape[:2]
    h, w = pair["in_feats"].shape[2:]
    model = hp.HPModel(
        in_dim, dim, len(pair["in_pool_agnostic"]), pair["param_ema"], 0.0, 0.0
    )
    set_head(model.student, pair, "in_")
    set_head(model.teacher, pair, "in_ema_")
    model.projection.weight.data = pair["in_proj_w"]
    model.projection.bias.data = pair["in_proj_b"]
    model.pool_agnostic.copy_(pair["in_pool_agnostic"])
    model.pool_specific.copy_(pair["in_pool_specific"])
    n_classes = len(pair["in_probe_w"])
    readout = Readout(dim, len(pair["in_centroids"]), n_classes)
    readout.cluster = ClusterProbe.from_centroids(pair["in_centroids"])
    readout.linear = LinearProbe(dim, n_classes)
    readout.linear.weight.data = pair["in_probe_w"]
    readout.linear.bias.data = pair["in_probe_b"]
    cfg = SimpleNamespace(
        tau=pair["param_tau"],
        rho=pair["param_rho"],
        alpha=pair["param_alpha"],
        reweight=True,
    )
    weights = hp.neighbour_weights(
        pair["in_attn_logits"], (h, w), sigma=pair["param_sigma"]
    )
    found = hp.HPTrainer(model, readout, cfg).step(
        *(pair["in_feats"], weights, pair["in_label"], pair["param_lambda"]),
        feat_aug=pair["in_feats_aug"],
        uniform=pair["in_uniform"],
    )
    found["loss"].backward()
    for name in ("contrast", "consistency", "linear", "cluster"):
        assert_close(found[name].detach(), pair[f"out_{name}"], 1e-4)
    assert_close(found["loss"].detach(), pair["out_total"], 1e-4)
    assert_head(model.teacher, pair, "out_ema_", 1e-5)
    for short, long in HEAD.items():
        layer = model.student.get_submodule(long)
        assert_close(layer.weight.grad, pair[f"out_grad_{short}_w"], 1e-5)
        assert_close(layer.bias.grad, pair[f"out_grad_{short}_b"], 1e-5)
    assert_close(model.projection.weight.grad, pair["out_grad_proj_w"], 1e-5)
    assert_close(model.projection.bias.grad, pair["out_grad_proj_b"], 1e-5)
    assert_close(readout.linear.weight.grad, pair["out_grad_probe_w"], 1e-5)
    assert_close(readout.linear.bias.grad, pair["out_grad_probe_b"], 1e-5)
    assert_close(readout.cluster.clusters.grad, pair["out_grad_centroids"], 1e-5)
