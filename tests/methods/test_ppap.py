"""PPAP: sets, propagation, the closed-form gradient, training and its presets."""

import math
import weakref
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.models import Stripes
from uss_utils import learning
from uss_utils.environment import generator
from uss_utils.heads import Chain, Standardise
from uss_utils.last_block import BlockHead
from uss_utils.methods import _ppap_loss, ppap
from uss_utils.methods.ppap import Config
from uss_utils.segmenter import Segmenter

MOVES = {"phi0": 0.5, "psi0": 0.1, "sigma_pos": 3.0, "sigma_amb": 2.0}


def smoke(**changes) -> Config:
    """The smoke preset on an untrained backbone, smaller still."""
    small = {"backbone": "vit_tiny_random", "chunk": 48, "per_chunk": 10}
    return Config.preset("smoke", **small | changes)


def stripes(n=6, labelled=True):
    return Stripes(n=n, labels=labelled, size=(64, 48), ignore=False)


def arcs(images=3, side=6, dim=8, seed=0, spread=0.5) -> Tensor:
    """Reference features of a few directions with noise, (B, C, h, w)."""
    draw = generator(seed)
    centres = torch.randn(4, dim, generator=draw)
    own = torch.randint(4, (images, side * side), generator=draw)
    noise = torch.randn(images, side * side, dim, generator=draw)
    rows = centres[own] + spread * noise
    return rows.movedim(2, 1).reshape(images, dim, side, side)


def moved(steps=3, n_images=3, **changes):
    x = ppap.reference_rows(arcs(n_images))
    anchors = ppap.sample_anchors(len(x), 36, 12, generator(1))
    found = ppap.propagate(x, anchors, **MOVES | changes, steps=steps, history=True)
    return x, anchors, found


def unit(rows, dim, seed=0, dtype=torch.float32):
    drawn = torch.randn(rows, dim, generator=generator(seed), dtype=dtype)
    return F.normalize(drawn, dim=1)


# -------------------------------------------------------------------------- anchors


def test_anchors_lie_in_their_chunks_and_none_twice():
    found = ppap.sample_anchors(1000, 300, 40, generator(0))
    assert found.shape == (3, 40)
    for s, rows in enumerate(found):
        assert len(rows.unique()) == 40
        assert 300 * s <= rows.min() and rows.max() < 300 * (s + 1)
    assert torch.equal(found, ppap.sample_anchors(1000, 300, 40, generator(0)))


def test_fewer_rows_than_a_chunk_make_one_chunk():
    assert sorted(ppap.sample_anchors(5, 784, 49)[0].tolist()) == [0, 1, 2, 3, 4]
    assert ppap.sample_anchors(60, 784, 49).shape == (1, 49)


@pytest.mark.parametrize("n, chunk, each", [(0, 10, 2), (50, 10, 11), (50, 10, 0)])
def test_anchors_that_cannot_be_drawn(n, chunk, each):
    with pytest.raises(ValueError, match="at least one row is needed"):
        ppap.sample_anchors(n, chunk, each)


# --------------------------------------------------------------- reference, dropout


def test_channel_dropout_shrinks_cosines_between_images_alone():
    ref = torch.ones(2, 5000, 1, 2)
    x = ppap.reference_rows(ref, drop=0.1, generator=generator(0))
    cosine = x @ x.T
    assert cosine[0, 1] == pytest.approx(1, abs=1e-4)
    assert cosine[0, 2] == pytest.approx(0.9, abs=0.02)
    assert torch.equal(
        ppap.reference_rows(ref), F.normalize(torch.ones(4, 5000), dim=1)
    )


# ----------------------------------------------------------------------- propagation


def test_facts_of_the_specification():
    _, _, found = moved()
    for before, after in zip(found.history, found.history[1:], strict=False):
        assert after.pos.any(2).all()  # (i): never empty
        slack = (1 - before.phi).where(before.phi >= 0, torch.tensor(math.inf))
        assert (after.move >= -1e-6).all() and (after.move <= slack + 1e-6).all()
        assert (after.phi <= before.phi + 1e-6).all()
        assert (after.psi >= before.psi - 1e-6).all()
    band = (found.phi - found.psi) - (0.4 - found.moved * (1 / 3 + 1 / 2))
    assert band.abs().max() < 1e-5  # (iii)
    torch.testing.assert_close(found.moved, sum(m.move for m in found.history))


@pytest.mark.parametrize(
    "preset, closes",
    [
        ("cocostuff27-vits8", 0.525),
        ("cocostuff27-vits16", 0.686),
        ("cityscapes27-vitb8", 0.48),
        ("cityscapes27-vits8", 0.60),
        ("potsdam3-vitb8", 0.75),
    ],
)
def test_way_at_which_the_zone_closes(preset, closes):
    cfg = Config.preset(preset)
    slope = 1 / cfg.sigma_pos + 1 / cfg.sigma_amb
    assert (cfg.phi0 - cfg.psi0) / slope == pytest.approx(closes, abs=6e-4)


def test_proxies_move_to_the_dense_side():
    angles = torch.cat([torch.linspace(0, 10, 30), torch.linspace(10, 60, 10)])
    x = torch.stack([angles.deg2rad().cos(), angles.deg2rad().sin()], 1)
    anchors = torch.tensor([[35]])
    found = ppap.propagate(x, anchors, 0.8, 0.5, 3.0, 3.0, 2, history=True)
    angles = [torch.atan2(*m.proxy[0, 0].flip(0)) for m in found.history]
    degrees = torch.stack(angles).rad2deg()
    assert (degrees.diff() < -3).all()


def test_no_step_is_a_fixed_cap():
    x, anchors, found = moved(steps=0)
    assert torch.equal(found.proxy, x[anchors])
    assert (found.phi == 0.5).all() and (found.psi == 0.1).all()
    torch.testing.assert_close(found.sim, x[anchors] @ x.T)


def test_history_changes_nothing():
    x, anchors, found = moved()
    plain = ppap.propagate(x, anchors, **MOVES, steps=3)
    assert plain.history is None and len(found.history) == 4
    assert torch.equal(plain.sim, found.sim) and torch.equal(plain.phi, found.phi)


def test_sets_are_the_same_under_autocast():
    x, anchors, found = moved()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        again = ppap.propagate(x, anchors, **MOVES, steps=3)
        assert ppap.reference_rows(arcs()).dtype == torch.float32
    assert again.sim.dtype == torch.float32 and torch.equal(again.sim, found.sim)


# ------------------------------------------------------------------------------ sets


def test_every_row_is_in_exactly_one_group():
    _, anchors, found = moved()
    sets = ppap.partition(found.sim, found.phi, found.psi, anchors)
    low = sets.denominator & ~sets.pos
    own = torch.zeros_like(low).scatter_(2, anchors[..., None], True)
    together = sets.pos.int() + low.int() + sets.ambiguous.int() + own.int()
    assert (together == 1).all()
    assert sets.pos.any() and low.any() and sets.ambiguous.any()


def test_where_psi_lies_above_phi_a_row_beyond_both_is_a_positive():
    sim = torch.tensor([[[1.0, 0.5, 0.35, 0.1]]])
    phi, psi = torch.tensor([[0.3]]), torch.tensor([[0.4]])
    sets = ppap.partition(sim, phi, psi, torch.tensor([[0]]))
    assert sets.pos[0, 0].tolist() == [False, True, True, False]
    assert sets.low[0, 0].tolist() == [False, False, True, True]
    assert sets.denominator[0, 0].tolist() == [False, True, True, True]
    assert not sets.ambiguous.any()


# ------------------------------------------------------------------------------ loss


def slow_loss(z, anchors, sets, tau):
    """Section 3.4, word by word."""
    chunks = []
    for s, rows in enumerate(anchors):
        terms = []
        for a, i in enumerate(rows):
            u = z[i] @ z.T / tau
            pos, denominator = sets.pos[s, a], sets.denominator[s, a]
            if pos.any():
                terms.append((u[pos] - u[denominator].logsumexp(0)).mean())
        chunks.append(-(tau / 0.07) * torch.stack(terms).mean())
    return torch.stack(chunks).mean()


def test_closed_form_gradient_is_that_of_the_formula():
    _, anchors, found = moved()
    sets = ppap.partition(found.sim, found.phi, found.psi, anchors)
    z = unit(108, 5, dtype=torch.float64).requires_grad_()
    expected = torch.autograd.grad(slow_loss(z, anchors, sets, 0.2), z)[0]
    loss, info = ppap.contrastive_loss(z, anchors, sets, 0.2)
    torch.testing.assert_close(loss, slow_loss(z, anchors, sets, 0.2))
    (grad,) = torch.autograd.grad(3 * loss, z)
    torch.testing.assert_close(grad, 3 * expected, atol=1e-10, rtol=1e-8)
    torch.testing.assert_close(info.per_chunk.mean(), loss.detach())


def test_chunk_by_chunk_is_all_at_once():
    ref, z = arcs(), unit(108, 5).requires_grad_()
    x, anchors, found = moved()
    sets = ppap.partition(found.sim, found.phi, found.psi, anchors)
    whole, info = ppap.contrastive_loss(z, anchors, sets, 0.8)
    loss, figures = ppap.PPAPLoss(**MOVES, steps=3, tau=0.8, ref_dropout=0.0)(
        z, ref, anchors
    )
    torch.testing.assert_close(loss, whole)
    torch.testing.assert_close(figures["n_pos"], info.n_pos)
    torch.testing.assert_close(figures["n_low"], info.n_low)
    torch.testing.assert_close(figures["n_amb"], sets.ambiguous.sum(2).float().mean())
    torch.testing.assert_close(figures["moved"], found.moved.mean())


def test_loss_is_the_same_under_autocast():
    _, anchors, found = moved()
    sets = ppap.partition(found.sim, found.phi, found.psi, anchors)
    z = unit(108, 5)
    loss, info = ppap.contrastive_loss(z, anchors, sets, 0.8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        again, parts = ppap.contrastive_loss(z, anchors, sets, 0.8)
    assert torch.equal(again, loss) and torch.equal(parts.per_chunk, info.per_chunk)


def test_sets_of_one_chunk_at_a_time_are_kept(monkeypatch):
    made, alive = [], []

    def watched(*args):
        sets = ppap.partition(*args)
        made.append(weakref.ref(sets.denominator))
        alive.append(sum(ref() is not None for ref in made))
        return sets

    monkeypatch.setattr(_ppap_loss, "partition", watched)
    loss_of = ppap.PPAPLoss(**MOVES, steps=1, tau=0.8, chunk=18, per_chunk=4)
    loss_of(unit(108, 5), arcs(), generator=generator(0))
    assert len(made) == 6 and max(alive) <= 2


def test_dropout_is_for_training_alone():
    loss_of = ppap.PPAPLoss(**MOVES, steps=1, tau=0.8, ref_dropout=0.4)
    plain = ppap.PPAPLoss(**MOVES, steps=1, tau=0.8, ref_dropout=0.0)
    anchors = ppap.sample_anchors(108, 36, 12, generator(1))

    def value(loss):
        return loss(unit(108, 5), arcs(), anchors, generator=generator(2))[0]

    assert value(loss_of) != value(plain)
    assert value(loss_of.eval()) == value(plain)


def test_base_temperature_scales_the_loss():
    anchors = ppap.sample_anchors(108, 36, 12, generator(1))
    options = {"steps": 1, "tau": 0.8, "ref_dropout": 0.0}
    usual, plain = (
        ppap.PPAPLoss(**MOVES, **options, **base)(unit(108, 5), arcs(), anchors)[0]
        for base in ({}, {"tau_base": 0.8})
    )
    torch.testing.assert_close(usual, plain * 0.8 / 0.07)


def test_lonely_anchors_and_lonely_chunks_count_nothing():
    x = torch.eye(8)
    anchors = torch.tensor([[0, 1], [4, 5]])
    ref = x.T.reshape(1, 8, 2, 4).clone()
    ref[0, :, 0, 2] = ref[0, :, 0, 0]  # patch 2 is patch 0 again
    z = unit(8, 3).requires_grad_()
    loss_of = ppap.PPAPLoss(**MOVES, steps=1, tau=0.5, ref_dropout=0.0)
    loss, figures = loss_of(z, ref, anchors)
    alone, _ = loss_of(z, ref, anchors[:1, :1])
    torch.testing.assert_close(loss, alone / 2)  # the second chunk adds 0
    assert figures["lonely"] == 0.75
    nothing, _ = loss_of(z, ref, anchors[1:])
    (grad,) = torch.autograd.grad(nothing, z)
    assert nothing == 0 and not grad.any()


def test_without_the_zone_ambiguous_patches_are_negatives():
    ref, z = arcs(), unit(108, 5)
    anchors = ppap.sample_anchors(108, 36, 12, generator(1))
    options = {"steps": 1, "tau": 0.5, "ref_dropout": 0.0}
    (zone, _), (full, _) = (
        ppap.PPAPLoss(**MOVES, **options, zone=zone)(z, ref, anchors)
        for zone in (True, False)
    )
    x = ppap.reference_rows(ref)
    found = ppap.propagate(x, anchors, **MOVES, steps=1)
    sets = ppap.partition(found.sim, found.phi, found.psi, anchors)
    wide = sets._replace(denominator=sets.denominator | sets.ambiguous)
    torch.testing.assert_close(full, ppap.contrastive_loss(z, anchors, wide, 0.5)[0])
    assert full > zone


# ---------------------------------------------------------------------- network, step


@pytest.fixture(scope="module")
def material():
    return ppap.prepare(smoke(), stripes(8))


def test_network_starts_as_the_backbone(material):
    net = ppap.build(smoke(), material).model
    images, _ = material.dataset.batch([0, 1])
    code, z, ref = net(images)
    torch.testing.assert_close(code.detach(), ref)
    feat = material.backbone.vit_backbone.features(images)
    torch.testing.assert_close(ref, material.standardise(feat), atol=1e-4, rtol=1e-4)
    kept = net.forward_tokens(material.backbone.features(images))
    assert all(map(torch.equal, kept, (code, z, ref)))
    assert z.shape == (2 * 48, 192)
    torch.testing.assert_close(z.norm(dim=1), torch.ones(96))
    again = ppap.PPAPNet(material.backbone.vit_backbone)  # unwrapped: just the same
    assert torch.equal(
        again(images)[2], again.frozen(material.backbone.features(images))
    )
    assert not any("below" in name for name in net.state_dict())


def test_fixed_map_is_fitted_to_the_reference_features(material):
    images, _ = material.dataset.batch(range(8))
    feat = material.backbone.vit_backbone.features(images)
    mean = material.standardise(feat).mean((0, 2, 3))
    assert mean.norm() < 0.05 * feat.mean((0, 2, 3)).norm()


def test_step_trains_what_it_should_and_nothing_else(material):
    trainer = ppap.build(smoke(), material)
    batch = material.source.batch(torch.arange(4))
    found = trainer.step(batch["input"], batch["label"], generator(0))
    parts = ("contrast", "linear", "cluster")
    torch.testing.assert_close(found["loss"], sum(found[k] for k in parts))
    torch.testing.assert_close(found["unscaled"], found["contrast"] * 0.07 / 0.8)
    found["loss"].backward()
    still = ("model.frozen", "model.head.norm")
    for name, p in trainer.named_parameters():
        assert (p.grad is None) == name.startswith(still), name
    trained = {id(p) for p in trainer.model.trainable_parameters()}
    (group,) = trainer.optimisers()["net"].param_groups
    assert {id(p) for p in group["params"]} == trained
    assert isinstance(trainer.optimisers()["net"], torch.optim.AdamW)
    adam = ppap.build(smoke(optimiser="adam"), material).optimisers()["net"]
    assert type(adam) is torch.optim.Adam


# ----------------------------------------------------------------------- training

RUN = {"steps": 5, "batch_size": 2}


def tensors(done):
    return {
        f"{part}.{name}": value
        for part, module in done.segmenter.parts().items()
        for name, value in module.state_dict().items()
    }


def test_killed_and_resumed_is_uninterrupted(material, tmp_path):
    cfg = smoke(**RUN)
    whole = ppap.train(cfg, material)
    path = tmp_path / "run.safetensors"

    def stop(step, segmenter):
        raise KeyboardInterrupt

    options = {"checkpoint": path, "checkpoint_every": 1}
    with pytest.raises(KeyboardInterrupt):
        ppap.train(cfg, material, **options, watch=stop, watch_at=[3])
    resumed = ppap.train(cfg, material, **options)
    expected, found = tensors(whole), tensors(resumed)
    assert expected.keys() == found.keys()
    for name in expected:
        assert torch.equal(expected[name], found[name]), name
    assert [r["loss"] for r in whole.history.rows] == [
        r["loss"] for r in resumed.history.rows
    ]
    with pytest.raises(ValueError, match="made with other settings: config.phi0"):
        ppap.train(replace(cfg, phi0=0.6), material, checkpoint=path)


def test_history_tells_the_course_of_a_training(material):
    rows = ppap.train(smoke(**RUN), material).history.rows
    wanted = {"loss", "contrast", "unscaled", "n_pos", "n_low", "n_neg", "n_amb"}
    assert wanted | {"moved", "lonely", "linear", "cluster"} <= rows[-1].keys()
    assert rows[-1]["contrast"] < rows[0]["contrast"]


def test_labels_touch_neither_head_nor_clusters(material):
    other = ppap.prepare(smoke(), stripes(8, labelled=False))
    with_labels, without = (
        tensors(ppap.train(smoke(**RUN, clusters=3), m)) for m in (material, other)
    )
    for name, value in without.items():
        if not name.startswith("linear"):
            assert torch.equal(value, with_labels[name]), name


def test_places_of_the_tokens_agree(material):
    cfg = smoke(**RUN)
    kept = ppap.train(cfg, material)
    images = ppap.prepare(cfg.override(cache="images"), stripes(8))
    fresh = ppap.train(cfg.override(cache="images"), images)
    for a, b in zip(kept.history.rows, fresh.history.rows, strict=True):
        assert a["contrast"] == pytest.approx(b["contrast"], rel=1e-3)


def test_half_precision_trains_alike(material):
    full, half = (
        ppap.train(smoke(**RUN, precision=precision), material).history.rows
        for precision in ("no", "bf16")
    )
    for a, b in zip(full, half, strict=True):
        assert a["contrast"] == pytest.approx(b["contrast"], rel=0.02)
        assert a["n_pos"] == pytest.approx(b["n_pos"], rel=0.05)


def test_seeds_differ_and_are_watched(material):
    seen = []
    watched = {"watch": lambda step, _: seen.append(step), "watch_at": [0, 2, 5]}
    first = ppap.train(smoke(**RUN), material, **watched)
    second = ppap.train(smoke(**RUN, seed=1), material)
    assert seen == [0, 2, 5]
    a, b = tensors(first), tensors(second)
    assert any(not torch.equal(a[name], b[name]) for name in a)


def test_model_on_disk_and_its_score(material, tmp_path):
    done, records = learning.repeat(
        ppap.train, smoke(**RUN), [0, 1], material, val_set=stripes(4)
    )
    assert [r["method"] for r in records] == ["ppap", "ppap"]
    model = done[0].segmenter
    assert not model.protocol.flip and isinstance(model.head, Chain)
    assert isinstance(model.head.first, BlockHead)
    assert isinstance(model.head.then, Standardise)
    loaded = Segmenter.load(model.save(tmp_path / "ppap"))
    images, _ = stripes(2).batch([0, 1])
    assert torch.equal(loaded.code(images), model.code(images))


def test_a_backbone_without_blocks_is_refused():
    with pytest.raises(ValueError, match="cannot be trained on its own"):
        ppap.prepare(smoke(backbone="colour"), stripes())


# ------------------------------------------------------------------------- settings


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"phi0": 0.1, "psi0": 0.2}, "psi0=0.2 and phi0=0.1 are cosines"),
        ({"sigma_pos": 0.0}, "sigma_pos=0.0 has to be above 0"),
        ({"per_chunk": 900}, "per_chunk=900 is at most chunk=784"),
        ({"tau_base": 0.0}, "tau_base=0.0 has to be above 0"),
        ({"ref_dropout": 1.0}, r"ref_dropout=1.0 has to lie in \[0, 1\)"),
        ({"prop_iter": -1}, "prop_iter=-1 has to be at least 0"),
        ({"optimiser": "sgd"}, "expected 'adamw' or 'adam'"),
    ],
)
def test_settings_that_make_no_sense(wrong, message):
    with pytest.raises(ValueError, match=message):
        Config(**wrong)


def test_published_settings():
    fields = (
        "phi0 psi0 sigma_pos sigma_amb prop_iter per_chunk tau optimiser lr "
        "weight_decay linear_lr cluster_lr steps"
    ).split()
    table = {
        name: [getattr(Config.preset(name), field) for field in fields]
        for name in (
            "cocostuff27-vits8",
            "cocostuff27-vits16",
            "cityscapes27-vitb8",
            "cityscapes27-vits8",
            "potsdam3-vitb8",
        )
    }
    assert [row[:-1] for row in table.values()] == [
        [0.55, 0.2, 3, 3, 2, 49, 0.8, "adamw", 1e-3, 0.1, 1e-3, 5e-3],
        [0.55, 0.15, 3, 4, 2, 196, 0.8, "adamw", 1e-3, 0.01, 1e-3, 1e-3],
        [0.6, 0.2, 3, 2, 3, 49, 0.1, "adam", 1e-3, 0.1, 1e-3, 1e-3],
        [0.6, 0.2, 3, 3, 3, 49, 0.8, "adam", 1e-3, 0.1, 1e-3, 1e-3],
        [0.55, 0.15, 5, 3, 1, 49, 0.07, "adam", 5e-4, 0.1, 1e-3, 1e-3],
    ]
    assert [row[-1] for row in table.values()] == [19385, 19385, 6960, 6960, 2840]
    for name in table:
        cfg = Config.preset(name)
        assert (cfg.batch_size, cfg.size, cfg.eval_size) == (64, 224, 320)
        assert (cfg.chunk, cfg.clip, cfg.ref_dropout) == (784, 10, 0.1)
        assert cfg.standardise == "none" and not cfg.flip
