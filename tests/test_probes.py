"""Cluster probe, linear probe, and evaluation at pixel resolution."""

import pytest
import torch
import torch.nn.functional as F

from uss_utils import upsampling
from uss_utils.environment import generator
from uss_utils.probes import (
    ClusterProbe,
    LinearProbe,
    cluster_log_probs_upsampled,
    cluster_prediction_upsampled,
    fit_linear_probe,
    linear_log_probs_upsampled,
    linear_prediction_upsampled,
    linear_probe_loss,
    upsample,
)
from uss_utils.upsampling import upsample_adjoint, upsample_rows

SIZES = [((5, 7), (20, 28)), ((4, 6), (9, 11)), ((1, 3), (8, 5)), ((6, 6), (4, 3))]


def codes(*shape, seed=0):
    return torch.randn(*shape, generator=generator(seed))


def bilinear(x, size):
    return F.interpolate(x, size, mode="bilinear", align_corners=False)


def probe_of(metric="cosine", dim=8, n=5):
    return ClusterProbe(dim, n, metric, generator=generator(1)).requires_grad_(False)


@pytest.mark.parametrize(("source", "target"), SIZES)
def test_upsample_is_bilinear(source, target):
    x = codes(2, 3, *source).requires_grad_()
    ours = upsample(x, target)
    torch.testing.assert_close(ours, bilinear(x, target), atol=1e-5, rtol=0)
    weight = codes(*ours.shape, seed=1)
    (grad,) = torch.autograd.grad((ours * weight).sum(), x, retain_graph=True)
    (expected,) = torch.autograd.grad((bilinear(x, target) * weight).sum(), x)
    torch.testing.assert_close(grad, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("target", [(3, 5), (11, 16), (2, 4)])
def test_the_adjoint_moves_weights_from_pixels_to_patches(target):
    x, weights = codes(2, 4, 3, 5), codes(2, 4, *target, seed=1)
    small = upsample_adjoint(weights, (3, 5))
    torch.testing.assert_close((small * x).sum(), (upsample(x, target) * weights).sum())


@pytest.mark.parametrize("cached", [1, 500, 1 << 30])
@pytest.mark.parametrize("crop", [None, (11, 4)])
def test_upsampling_some_rows_at_a_time(cached, crop, monkeypatch):
    monkeypatch.setattr("uss_utils.upsampling.CACHED", cached)
    code = torch.randn(2, 6, 5, 7, generator=generator(0))
    parts = list(upsample_rows(code, (17, 23), crop))
    height, width = crop or (17, 23)
    whole = upsample(code, (17, 23))[..., :height, :width]
    torch.testing.assert_close(torch.cat(parts, 2), whole)
    assert len(parts) == {1: height, 1 << 30: 1}.get(cached, len(parts))


def test_upsample_keeps_precision_under_autocast():
    x = codes(1, 2, 5, 5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ours = upsample(x, (20, 20))
    torch.testing.assert_close(ours, bilinear(x, (20, 20)), atol=1e-5, rtol=0)
    assert upsample(x.half(), (20, 20)).dtype == torch.float32
    assert upsample(x.double(), (20, 20)).dtype == torch.float64


def test_cosine_scores_ignore_lengths():
    probe, x = probe_of(), codes(2, 8, 3, 4)
    longer = ClusterProbe.from_centroids(probe.clusters * 7)
    assert probe.scores(x).abs().max() <= 1 + 1e-6
    torch.testing.assert_close(longer.scores(3 * x), probe.scores(x))
    assert probe.scores(torch.zeros(1, 8, 2, 2)).eq(0).all()  # no 0/0


def test_euclidean_scores_rank_by_distance():
    probe, x = probe_of("euclidean"), codes(2, 8, 3, 4)
    flat = x.movedim(1, -1).reshape(-1, 8)
    nearest = torch.cdist(flat, probe.clusters).argmin(1)
    assert torch.equal(probe.scores(x).argmax(1).flatten(), nearest)
    squared = torch.cdist(flat, probe.clusters).square()
    ours = flat.square().sum(1, keepdim=True) - 2 * (
        probe.scores(x).movedim(1, -1).reshape(-1, 5)
    )
    torch.testing.assert_close(ours, squared, atol=1e-4, rtol=1e-4)


def test_dot_scores_are_inner_products():
    probe, x = probe_of("dot"), codes(2, 8, 3, 4)
    expected = torch.einsum("bdhw,kd->bkhw", x, probe.clusters)
    torch.testing.assert_close(probe.scores(x), expected)
    torch.testing.assert_close(probe.log_probs(x, 3.0), (3 * expected).log_softmax(1))
    longer = ClusterProbe.from_centroids(probe.clusters * 7, "dot")
    torch.testing.assert_close(longer.scores(x), 7 * expected)  # lengths count


def test_hard_loss_is_minus_the_mean_best_score():
    probe, x = probe_of(), codes(2, 8, 3, 4)
    loss, probs = probe(x)
    torch.testing.assert_close(loss, -probe.scores(x).amax(1).mean())
    assert probs.sum(1).eq(1).all() and probs.max() == 1


def test_soft_assignment_is_part_of_the_gradient():
    x = codes(2, 8, 3, 4)
    probe = ClusterProbe(8, 5, generator=generator(1))
    loss, probs = probe(x, alpha=2.0)
    (through,) = torch.autograd.grad(loss, probe.clusters)
    constant = -(probs.detach() * probe.scores(x)).sum(1).mean()
    (without,) = torch.autograd.grad(constant, probe.clusters)
    assert (through - without).abs().max() > 1e-3


def test_soft_assignment_approaches_the_hard_one():
    probe, x = probe_of(), codes(2, 8, 3, 4)
    torch.testing.assert_close(probe(x, alpha=1e4)[0], probe(x)[0], atol=1e-3, rtol=0)
    torch.testing.assert_close(probe.log_probs(x, 3.0).exp(), probe(x, 3.0)[1])


def test_descent_finds_planted_directions():
    centres = torch.eye(8)[:3]
    names = torch.randint(0, 3, (4, 6, 6), generator=generator(2))
    x = centres[names].movedim(-1, 1) + 0.05 * codes(4, 8, 6, 6)
    probe = ClusterProbe.from_centroids(centres + 0.5 * codes(3, 8, seed=3))
    best, start = ClusterProbe.from_centroids(centres)(x)[0], probe(x)[0]
    optimiser = torch.optim.Adam(probe.parameters(), lr=0.05)
    for _ in range(60):
        optimiser.zero_grad()
        probe(x)[0].backward()
        optimiser.step()
    assert start > best + 0.1
    assert probe(x)[0] < best + 0.01


def test_start_is_drawn_from_the_generator():
    before = torch.get_rng_state()
    probes = [ClusterProbe(8, 5, generator=generator(4)) for _ in range(2)]
    linear = [LinearProbe(8, 5, generator=generator(4)) for _ in range(2)]
    assert torch.equal(probes[0].clusters, probes[1].clusters)
    assert torch.equal(linear[0].weight, linear[1].weight)
    assert torch.equal(before, torch.get_rng_state())
    assert linear[0].weight.abs().max() <= 8**-0.5


@pytest.mark.parametrize(("source", "target"), SIZES)
@pytest.mark.parametrize("metric", ["cosine", "euclidean", "dot"])
def test_cluster_scores_equal_those_of_the_upsampled_code(metric, source, target):
    probe, code = probe_of(metric), codes(2, 8, *source)
    large = bilinear(code, target)
    for alpha in (2.0, 10.0):
        torch.testing.assert_close(
            cluster_log_probs_upsampled(probe, code, target, alpha),
            probe.log_probs(large, alpha),
            atol=2e-5,
            rtol=2e-6,  # scores that are no cosines are not bounded by 1
        )
    hard = cluster_prediction_upsampled(probe, code, target)
    assert torch.equal(hard, probe.scores(large).argmax(1))


@pytest.mark.parametrize(("source", "target"), SIZES)
def test_linear_scores_equal_those_of_the_upsampled_code(source, target):
    probe, code = (
        LinearProbe(8, 5, generator(1)).requires_grad_(False),
        codes(2, 8, *source),
    )
    logits = probe(bilinear(code, target))
    ours = linear_log_probs_upsampled(probe, code, target)
    torch.testing.assert_close(ours, logits.log_softmax(1), atol=2e-5, rtol=0)
    hard = linear_prediction_upsampled(probe, code, target)
    assert torch.equal(hard, logits.argmax(1))


def test_upsampled_scores_hold_where_neighbours_cancel():
    # Halfway between s and -s the code vanishes and every cosine is 0.
    code = codes(1, 8, 1, 1).repeat(1, 1, 1, 2) * torch.tensor([1.0, -1.0])
    ours = cluster_log_probs_upsampled(probe_of(), code, (1, 3), 2.0)
    expected = probe_of().log_probs(bilinear(code, (1, 3)), 2.0)
    torch.testing.assert_close(ours[..., [0, 2]], expected[..., [0, 2]])
    assert ours.isfinite().all()


def test_upsampling_the_cosines_would_be_wrong():
    probe, code = probe_of(), codes(1, 8, 4, 4)
    wrong = (2 * upsample(probe.scores(code), (16, 16))).log_softmax(1)
    right = cluster_log_probs_upsampled(probe, code, (16, 16), 2.0)
    assert (wrong - right).abs().max() > 0.05


def test_linear_loss_is_the_mean_over_labelled_pixels():
    logits = codes(2, 4, 3, 3)
    label = torch.randint(-1, 6, (2, 12, 12), generator=generator(7))
    large = bilinear(logits, (12, 12)).movedim(1, -1)
    valid = (label >= 0) & (label < 4)
    expected = F.cross_entropy(large[valid], label[valid])
    torch.testing.assert_close(linear_probe_loss(logits, label, 4), expected)


def test_linear_loss_over_all_pixels_counts_ignored_ones_as_zero():
    logits = codes(2, 4, 3, 3)
    label = torch.randint(-1, 6, (2, 12, 12), generator=generator(7))
    share = ((label >= 0) & (label < 4)).float().mean()
    labelled, over_all = (
        linear_probe_loss(logits, label, 4, over=over) for over in ("labelled", "all")
    )
    torch.testing.assert_close(over_all, labelled * share)
    assert linear_probe_loss(logits, torch.full_like(label, 255), 4, over="all") == 0
    with pytest.raises(ValueError, match="over='some' is unknown; known: labelled"):
        linear_probe_loss(logits, label, 4, over="some")


def test_linear_loss_does_not_depend_on_how_much_is_done_at_once(monkeypatch):
    label = torch.randint(-1, 4, (5, 12, 12), generator=generator(7))

    def loss_and_gradient():
        logits = codes(5, 4, 3, 3).requires_grad_()
        loss = linear_probe_loss(logits, label, 4)
        loss.backward()
        return loss.detach(), logits.grad

    whole = loss_and_gradient()
    monkeypatch.setattr(upsampling, "CACHED", 2 * 4 * 144)  # two images of five
    torch.testing.assert_close(loss_and_gradient(), whole)


def test_linear_loss_of_ignored_pixels_is_zero_not_nan():
    logits = codes(1, 4, 3, 3).requires_grad_()
    loss = linear_probe_loss(logits, torch.full((1, 6, 6), -1), 4)
    loss.backward()
    assert loss == 0 and logits.grad.eq(0).all()


def separable(n=12, seed=0):
    label = torch.randint(0, 3, (n, 4, 4), generator=generator(seed))
    centres = codes(3, 6, seed=9) * 2
    code = centres[label].movedim(-1, 1) + 0.2 * codes(n, 6, 4, 4, seed=seed)
    return code, label


def test_fitted_probe_reads_separable_codes():
    code, label = separable()
    label[0, 0] = -1
    probe = fit_linear_probe(
        code, label, 3, steps=150, lr=0.05, batch_size=5, generator=generator(0)
    )
    fresh_code, fresh_label = separable(seed=1)
    prediction = linear_prediction_upsampled(probe, fresh_code, (4, 4))
    assert (prediction == fresh_label).float().mean() > 0.95
    assert not any(p.requires_grad for p in probe.parameters())


def test_the_probe_is_trained_on_the_device_asked_for(monkeypatch):
    code, label = separable()
    usual = fit_linear_probe(code, label, 3, steps=3, generator=generator(3))
    named = fit_linear_probe(
        code, label, 3, steps=3, generator=generator(3), device="cpu"
    )
    assert torch.equal(usual.weight, named.weight)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="device 'cuda' was asked for, but torch sees"):
        fit_linear_probe(code, label, 3, device="cuda")


def test_fit_is_repeatable_and_leaves_codes_alone():
    code, label = separable()
    code.requires_grad_()
    before = torch.get_rng_state()
    runs = [
        fit_linear_probe(code, label, 3, steps=5, generator=generator(3))
        for _ in range(2)
    ]
    assert torch.equal(runs[0].weight, runs[1].weight)
    assert code.grad is None
    assert torch.equal(before, torch.get_rng_state())


def test_bad_input_is_explained():
    code, label = separable()
    with pytest.raises(ValueError, match="unknown metric 'city'; known: cosine, .*dot"):
        ClusterProbe(8, 5, "city")
    with pytest.raises(ValueError, match="belongs to another code"):
        probe_of().scores(codes(1, 7, 3, 3))
    with pytest.raises(ValueError, match=r"shape \(B, 8, h, w\), got \(8, 3, 3\)"):
        LinearProbe(8, 5)(codes(8, 3, 3))
    with pytest.raises(ValueError, match="do not fit"):
        linear_probe_loss(codes(2, 4, 3, 3), torch.zeros(2, 6, 6).long(), 5)
    with pytest.raises(ValueError, match="12 codes but 3 label maps"):
        fit_linear_probe(code, label[:3], 3)
    with pytest.raises(ValueError, match="all pixels are ignored"):
        fit_linear_probe(code, torch.full_like(label, -1), 3)
    code[0, 0, 0, 0] = torch.nan
    with pytest.raises(ValueError, match="NaN or infinite"):
        fit_linear_probe(code, label, 3)
