"""PPAP's sets, loss and network against the recorded pairs."""

import pytest
import torch
import torch.nn.functional as F
from timm.models.vision_transformer import VisionTransformer

from tests.golden.golden import golden_files, load
from uss_utils.heads import channel_dropout
from uss_utils.last_block import LastBlockTokens
from uss_utils.methods import ppap
from uss_utils.probes import (
    ClusterProbe,
    LinearProbe,
    cluster_log_probs_upsampled,
    cluster_prediction_upsampled,
    linear_log_probs_upsampled,
    linear_prediction_upsampled,
    linear_probe_loss,
    upsample,
)
from uss_utils.vit import Backbone

pytestmark = pytest.mark.golden
CASES = golden_files("ppap", "ppap_case*.npz")


def assert_close(actual, expected, tolerance: float) -> None:
    """|difference| <= tolerance: these pairs' tolerances are absolute."""
    actual, expected = (torch.as_tensor(t).double() for t in (actual, expected))
    assert actual.shape == expected.shape, (actual.shape, expected.shape)
    worst = float((actual - expected).abs().max())
    assert worst <= tolerance, f"differs by {worst:.3g}, allowed {tolerance:.3g}"


def largest(expected) -> float:
    """What a relative tolerance is multiplied by."""
    return float(torch.as_tensor(expected).abs().max())


def case(path):
    """A file, its unit rows, and its anchors as row numbers."""
    pair = load(path)
    x = ppap.reference_rows(pair["in_feat"])
    n_chunks = len(pair["in_anchor_idx"])
    first = torch.arange(n_chunks)[:, None] * int(pair["param_chunk"])
    return pair, x, pair["in_anchor_idx"].long() + first


def moves(pair) -> dict:
    names = {"phi0": "phi0", "psi0": "psi0", "steps": "prop_iter"}
    names |= {f"sigma_{kind}": f"sigma_{kind}" for kind in ("pos", "amb")}
    found = {own: pair[f"param_{name}"] for own, name in names.items()}
    return found | {"steps": int(found["steps"])}


@pytest.mark.parametrize("path", CASES)
def test_propagation(path):
    pair, x, anchors = case(path)
    found = ppap.propagate(x, anchors, **moves(pair), history=True)
    assert_close(found.sim, pair["out_sim_final"], 5e-6)
    assert_close(found.phi, pair["out_phi"], 5e-6)
    assert_close(found.psi, pair["out_psi"], 5e-6)
    assert torch.equal(found.history[0].pos, pair["out_initial_pos"])
    steps = found.history[1:]
    assert len(steps) == moves(pair)["steps"]
    for t, moment in enumerate(steps):
        assert_close(moment.proxy, pair["out_proxy_t"][:, t], 5e-6)
        assert_close(1 - moment.move, pair["out_move_cos_t"][:, t], 5e-6)
        assert_close(moment.phi, pair["out_phi_t"][:, t], 5e-6)
        assert_close(moment.psi, pair["out_psi_t"][:, t], 5e-6)
        assert torch.equal(moment.pos, pair["out_pos_t"][:, t])


@pytest.mark.parametrize("path", CASES)
def test_sets(path):
    pair, x, anchors = case(path)
    found = ppap.propagate(x, anchors, **moves(pair))
    sets = ppap.partition(found.sim, found.phi, found.psi, anchors)
    assert torch.equal(sets.pos, pair["out_pos"])
    assert torch.equal(sets.low, pair["out_below_psi"])
    assert torch.equal(sets.denominator, pair["out_denominator"])
    assert torch.equal(sets.ambiguous, pair["out_ambiguous"])


@pytest.mark.parametrize("path", CASES)
def test_loss_of_given_sets(path):
    pair, _, anchors = case(path)
    names = ("pos", "below_psi", "ambiguous", "denominator")
    sets = ppap.Sets(*(pair[f"out_{name}"] for name in names))
    z = pair["in_z"].clone().requires_grad_()
    taus = pair["param_tau"], pair["param_tau_base"]
    loss, info = ppap.contrastive_loss(z, anchors, sets, *taus)
    loss.backward()
    assert_close(loss.detach(), pair["out_loss"], 1e-5 * largest(pair["out_loss"]))
    per_chunk = pair["out_chunk_loss"]
    assert_close(info.per_chunk, per_chunk, 1e-5 * largest(per_chunk))
    expected = pair["out_mean_log_prob"]
    assert torch.equal(info.per_anchor.isnan(), expected.isnan())
    assert_close(info.per_anchor.nan_to_num(), expected.nan_to_num(), 2e-5)
    assert_close(z.grad, pair["out_grad_z"], 2e-5 * largest(pair["out_grad_z"]))
    assert_close(info.n_pos, pair["out_num_pos"], 1e-4)
    assert_close(info.n_low, pair["out_num_below"], 1e-4)


@pytest.mark.parametrize("path", CASES)
def test_whole_loss_chunk_by_chunk(path):
    pair, _, anchors = case(path)
    taus = {"tau": pair["param_tau"], "tau_base": pair["param_tau_base"]}
    loss_fn = ppap.PPAPLoss(**moves(pair), **taus, ref_dropout=0.0)
    z = pair["in_z"].clone().requires_grad_()
    loss, figures = loss_fn(z, pair["in_feat"], anchors)
    loss.backward()
    assert_close(loss.detach(), pair["out_loss"], 1e-5 * largest(pair["out_loss"]))
    assert_close(z.grad, pair["out_grad_z"], 2e-5 * largest(pair["out_grad_z"]))
    assert_close(figures["n_pos"], pair["out_num_pos"], 1e-4)
    assert_close(figures["n_low"], pair["out_num_below"], 1e-4)


# ------------------------------------------------------------------------- network


def network(pair) -> tuple[LastBlockTokens, ppap.PPAPNet]:
    """The recorded tiny ViT with its moved copy of the last block."""
    weights = {
        name.removeprefix("in_w_backbone."): value
        for name, value in pair.items()
        if name.startswith("in_w_backbone.")
    }
    depth = 1 + max(int(n.split(".")[1]) for n in weights if n.startswith("blocks."))
    vit = VisionTransformer(
        img_size=int(pair["param_pos_grid"] * pair["param_patch"]),
        patch_size=int(pair["param_patch"]),
        embed_dim=weights["cls_token"].shape[-1],
        depth=depth,
        num_heads=int(pair["param_heads"]),
        num_classes=0,
        dynamic_img_size=True,
    )
    vit.load_state_dict(weights)
    backbone = LastBlockTokens(Backbone(vit, "recorded"))
    net = ppap.PPAPNet(backbone)
    for prefix, part in (("block", net.head.block), ("proj", net.projection)):
        start = f"in_w_{prefix}."
        part.load_state_dict(
            {k.removeprefix(start): v for k, v in pair.items() if k.startswith(start)}
        )
    return backbone, net


@pytest.mark.parametrize("path", golden_files("ppap", "ppap_featurizer*.npz"))
def test_network(path):
    pair = load(path)
    backbone, net = network(pair)
    code, z, ref = net(pair["in_image"])
    kept = net.forward_tokens(backbone.features(pair["in_image"]))
    assert all(map(torch.equal, kept, (code, z, ref)))
    assert_close(code.detach(), pair["out_code"], 1e-5)
    assert_close(z.detach(), pair["out_z"], 1e-5)
    assert_close(ref, pair["out_ref"], 1e-5)
    dropped = channel_dropout(ref, pair["param_drop"], keep=pair["in_keep"])
    assert_close(dropped, pair["out_ref_dropped"], 1e-5)
    rows = ppap.reference_rows(ref, pair["in_keep"], pair["param_drop"])
    expected = pair["out_ref_dropped"].flatten(2).transpose(1, 2).flatten(0, 1)
    assert_close(rows, F.normalize(expected, dim=1), 1e-5)
    scalar = (z * pair["in_cot_z"]).sum() + 0.1 * (code * pair["in_cot_code"]).sum()
    scalar.backward()
    found = {f"block.{n}": p.grad for n, p in net.head.block.named_parameters()}
    found |= {f"proj.{n}": p.grad for n, p in net.projection.named_parameters()}
    recorded = {n: v for n, v in pair.items() if n.startswith("out_grad_")}
    assert recorded
    for name, expected in recorded.items():
        (own,) = (g for n, g in found.items() if same_name(n, name))
        assert_close(own, expected, 1e-4 * largest(expected))
    frozen = [*net.frozen.parameters(), *net.head.norm.parameters()]
    assert all(p.grad is None for p in [*frozen, *backbone.parameters()])


def same_name(ours: str, recorded: str) -> bool:
    """Whether a recorded gradient belongs to a parameter of ours."""
    return recorded.removeprefix("out_grad_").removeprefix("w_") == ours


# -------------------------------------------------------------------------- probes


@pytest.mark.parametrize("path", golden_files("ppap", "ppap_probes*.npz"))
def test_probes(path):
    pair = load(path)
    code, label = pair["in_code"], pair["in_label"].long()
    n_classes, dim = pair["in_linear_weight"].shape
    linear = LinearProbe(dim, n_classes)
    weight = pair["in_linear_weight"][:, :, None, None]
    linear.load_state_dict({"weight": weight, "bias": pair["in_linear_bias"]})
    cluster = ClusterProbe.from_centroids(pair["in_centroids"])
    loss = linear_probe_loss(linear(code), label, n_classes)
    cluster_loss, _ = cluster(code)
    (loss + cluster_loss).backward()
    assert_close(loss.detach(), pair["out_linear_loss"], 1e-5)
    assert_close(cluster_loss.detach(), pair["out_cluster_loss"], 1e-5)
    grads = {
        "linear_weight": linear.weight.grad[:, :, 0, 0],
        "linear_bias": linear.bias.grad,
        "centroids": cluster.clusters.grad,
    }
    for name, found in grads.items():
        assert_close(found, pair[f"out_grad_{name}"], 1e-5)
    size = tuple(label.shape[-2:])
    with torch.no_grad():
        found = linear_prediction_upsampled(linear, code, size)
        assert torch.equal(found, pair["out_linear_pred"].long())
        found = cluster_prediction_upsampled(cluster, code, size)
        assert torch.equal(found, pair["out_cluster_pred"].long())
        alpha = pair["param_alpha"]
        found = linear_log_probs_upsampled(linear, code, size)
        assert_close(found, pair["out_linear_logprob"], 1e-5)
        found = cluster_log_probs_upsampled(cluster, code, size, alpha)
        assert_close(found, pair["out_cluster_logprob"], 1e-5)
        upsampled, _ = cluster(upsample(code, size))
        assert_close(upsampled, pair["out_cluster_loss_eval"], 1e-5)
