"""HP: masks, the closed-form gradient, mixing, schedules, training and its presets."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.models import Stripes
from uss_utils import learning
from uss_utils.contrast import _Contrast, by_image, contrast, pair_weights
from uss_utils.datasets.transforms import denormalise, normalise_rgb
from uss_utils.environment import generator
from uss_utils.local_attention import (
    WithNeighbourWeights,
    own_class_shares,
    split_weights,
    window_sizes,
)
from uss_utils.methods import hp
from uss_utils.methods.hp import Config
from uss_utils.positives import HiddenPositives, _weigh
from uss_utils.schedules import EMA

TAU, RHO, LAM, SIDE = 0.6, 0.2, 0.4, 4
N_PATCHES = SIDE * SIDE


def smoke(**changes) -> Config:
    """The smoke preset on an untrained backbone, smaller still."""
    small = {"backbone": "vit_tiny_random", "dim": 8, "pool": 20}
    return Config.preset("smoke", **small | changes)


def stripes(n=6, labelled=True):
    return Stripes(n=n, labels=labelled, size=(64, 96), ignore=False)


def unit(*shape, seed=0, dtype=torch.float32) -> Tensor:
    rows = torch.randn(*shape, generator=generator(seed), dtype=dtype)
    return F.normalize(rows, dim=-1)


def given(images=3, dtype=torch.float32):
    """Projections and masks of a batch: z, A, A', D."""
    rows = images * N_PATCHES
    f, t = unit(rows, 6, seed=1), unit(rows, 5, seed=2)
    agnostic, specific = (
        hp.hidden_positives(x, hp.pool_threshold(x, unit(30, x.shape[1], seed=3)))
        for x in (f, t)
    )
    uniform = torch.rand(N_PATCHES, rows, generator=generator(4)).repeat(images, 1)
    denominator = hp.denominator_mask(agnostic, uniform, RHO)
    return unit(rows, 5, seed=5, dtype=dtype), agnostic, specific, denominator


# -------------------------------------------------------------- thresholds and masks


def test_more_alike_than_either_threshold_is_more_than_the_smaller():
    x = unit(40, 6)
    limit = hp.pool_threshold(x, unit(20, 6, seed=1))
    cosine = x @ x.T
    either = (cosine > limit[:, None]) | (cosine > limit[None])
    either.fill_diagonal_(False)
    found = hp.hidden_positives(x, limit)
    assert torch.equal(found, either) and torch.equal(found, found.T)
    assert 0 < found.sum() < found.numel()
    rows = slice(12, 20)
    assert torch.equal(hp.hidden_positives(x, limit, rows), found[rows])


def test_threshold_does_not_depend_on_how_many_rows_are_compared_at_a_time():
    x, pool = unit(33, 6), unit(9, 6, seed=1)
    expected = (x @ pool.T).amax(1)
    torch.testing.assert_close(hp.pool_threshold(x, pool, rows=10), expected)


def test_an_exchangeable_pair_beats_the_pool_once_in_m_plus_one():
    m, trials = 63, 40_000
    draw = generator(0)
    x = F.normalize(torch.randn(trials, 1, 16, generator=draw), dim=2)
    others = F.normalize(torch.randn(trials, m + 1, 16, generator=draw), dim=2)
    cosine = (x * others).sum(2)
    share = (cosine[:, 0] > cosine[:, 1:].amax(1)).double().mean()
    assert abs(float(share) - 1 / (m + 1)) < 0.0025  # four standard deviations


def test_denominator_holds_positives_and_a_share_of_the_rest_but_never_the_anchor():
    positive = torch.zeros(4, 2000, dtype=torch.bool)
    positive[:, 100:200] = True
    uniform = torch.rand(4, 2000, generator=generator(0))
    found = hp.denominator_mask(positive, uniform, 0.1, first_row=102)
    own = torch.arange(4)
    assert not found[own, own + 102].any()
    assert found[:, 100:200].sum() == 4 * 99
    assert 0.08 < found[:, 200:].float().mean() < 0.12
    assert hp.denominator_mask(positive, uniform, 1.0).sum() == 4 * 1999


def test_features_that_are_no_numbers_are_refused():
    x = unit(10, 6)
    x[3, 2] = torch.nan
    with pytest.raises(ValueError, match="features or codes hold NaN"):
        hp.pool_threshold(x, unit(5, 6, seed=1))


def test_a_pool_needs_as_many_maps():
    maps = [torch.randn(3, 6, 2, 2, generator=generator(0)) for _ in range(2)]
    pool = hp.build_pool(maps, 5, generator=generator(1))
    assert pool.shape == (5, 6)
    torch.testing.assert_close(pool.norm(dim=1), torch.ones(5))
    again = hp.build_pool(maps, 5, generator=generator(1))
    assert torch.equal(pool, again)
    with pytest.raises(ValueError, match="a pool of 7 patches .* got 6"):
        hp.build_pool(maps, 7, generator=generator(1))


# ------------------------------------------------------------------ contrastive loss


def by_hand(z, agnostic, specific, denominator, reweight=True):
    """The first form of L_m, anchor by anchor, with autograd."""
    total = z.new_zeros(())
    scores = z @ z.T / TAU
    images = by_image(len(z), N_PATCHES)
    for rows in images:
        means, sums = [], []
        for i in range(rows.start, rows.stop):
            if not agnostic[i].any():
                continue
            weights = agnostic[i].to(z) + LAM * specific[i].to(z)
            log_probs = scores[i] - scores[i][denominator[i]].logsumexp(0)
            means.append((weights * log_probs).sum() / weights.sum())
            sums.append(weights.sum())
        if means:
            means, sums = torch.stack(means), torch.stack(sums)
            share = sums / sums.mean() if reweight else torch.ones_like(sums)
            total = total - TAU / 0.07 * (share * means).mean()
    return total / len(images)


@pytest.mark.parametrize("reweight", [True, False])
def test_loss_and_gradient_are_those_of_the_definition(reweight):
    z, *masks = given()
    mine, theirs = z.clone().requires_grad_(), z.double().requires_grad_()
    options = {"reweight": reweight}
    loss = hp.hidden_positive_loss(mine, *masks, LAM, TAU, N_PATCHES, **options)
    expected = by_hand(theirs, *masks, **options)
    loss.backward()
    expected.backward()
    torch.testing.assert_close(loss.double(), expected, atol=0, rtol=1e-5)
    torch.testing.assert_close(mine.grad.double(), theirs.grad, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("reweight", [True, False])
def test_closed_form_gradient_in_double_precision(reweight):
    z, agnostic, specific, denominator = given(2, torch.float64)
    agnostic[3] = agnostic[5] = specific[5] = False  # no anchor; no positive at all
    denominator[5] = False
    blocks = []
    for rows in by_image(len(z), N_PATCHES):
        masks = agnostic[rows], specific[rows], denominator[rows]
        block = _weigh(rows, *masks, LAM, TAU / 0.07, reweight)
        blocks.append(block._replace(weights=block.weights.double()))
    views = torch.stack([z, unit(*z.shape, seed=9, dtype=torch.float64)])
    views.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: _Contrast.apply(x, blocks, TAU), views)


@pytest.mark.parametrize("where", [slice(0, N_PATCHES), slice(None)])
def test_images_without_an_anchor_contribute_nothing(where):
    z, agnostic, specific, denominator = given()
    agnostic[where], denominator[where] = False, False
    z.requires_grad_()
    loss = hp.hidden_positive_loss(
        *(z, agnostic, specific, denominator, LAM, TAU, N_PATCHES)
    )
    loss.backward()
    assert torch.isfinite(loss) and torch.isfinite(z.grad).all()
    expected = by_hand(z.detach(), agnostic, specific, denominator)
    torch.testing.assert_close(loss.detach(), expected)


def test_rows_with_task_specific_positives_alone_are_no_anchors():
    z, agnostic, specific, denominator = given()
    agnostic[7] = False
    more = specific.clone()
    more[7] = True
    found = [
        hp.hidden_positive_loss(z, agnostic, s, denominator, LAM, TAU, N_PATCHES)
        for s in (specific, more)
    ]
    assert torch.equal(*found)


def test_weights_of_a_block_sum_to_one_or_are_zero():
    valid = torch.tensor([True, False, True, True])
    for reweight in (True, False):
        weights = torch.rand(4, 9, generator=generator(0))
        found, scale = pair_weights(weights, valid, reweight)
        torch.testing.assert_close((found * scale).sum(), torch.tensor(1.0))
        assert not found[1].any()
        if not reweight:
            sums = (found * scale).sum(1)
            torch.testing.assert_close(sums, valid / 3)
        nobody, scale = pair_weights(weights, torch.zeros(4).bool(), reweight)
        assert not nobody.any() and scale == 0


def test_a_temperature_that_leaves_float32_is_refused():
    with pytest.raises(ValueError, match="tau=0.01 has to be at least 0.03"):
        contrast(torch.eye(4)[None], [], 0.01)


def test_masks_image_by_image_are_the_masks_of_the_whole_batch():
    z, agnostic, specific, denominator = given()
    rows = len(z)
    uniform = torch.rand(N_PATCHES, rows, generator=generator(4))
    pairs = HiddenPositives(
        *(unit(rows, 6, seed=1), unit(rows, 5, seed=2)),
        (unit(30, 6, seed=3), unit(30, 5, seed=3)),
        uniform,
        **{"rho": RHO, "lam": LAM, "tau": TAU},
    )
    expected = hp.hidden_positive_loss(
        *(z, agnostic, specific, denominator, LAM, TAU, N_PATCHES)
    )
    torch.testing.assert_close(contrast(z[None], pairs, TAU), expected)


def test_half_precision_is_summed_in_full():
    z, *masks = given()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = hp.hidden_positive_loss(z, *masks, LAM, TAU, N_PATCHES)
    full = hp.hidden_positive_loss(z, *masks, LAM, TAU, N_PATCHES)
    assert half.dtype == torch.float32 and torch.equal(half, full)


def test_patches_that_do_not_fill_the_images():
    z, *masks = given()
    with pytest.raises(ValueError, match="48 patches do not divide into images of 15"):
        hp.hidden_positive_loss(z, *masks, LAM, TAU, 15)


# -------------------------------------------------------------------- local positives


def attention(b=2, grid=(5, 6), prefix=1, seed=0):
    n = grid[0] * grid[1] + prefix
    return torch.randn(b, 3, n, n, generator=generator(seed))


def slow_weights(logits: Tensor, h: int, w: int, sigma: float) -> Tensor:
    """Steps 1-4 of section 3.3 on full matrices, (B, n, n)."""
    n = h * w
    rows = logits[:, :, -n:, -n:].mean(1)
    low, high = (rows.quantile(q, -1, keepdim=True) for q in (0.1, 0.9))
    weights = rows.clamp(low, high).softmax(-1) * sigma
    weights[weights < sigma / n * (1 - 1e-6)] = 0
    y, x = torch.arange(n) // w, torch.arange(n) % w
    near = ((y[:, None] - y).abs() <= 1) & ((x[:, None] - x).abs() <= 1)
    return weights * near


def test_mixing_is_the_product_with_the_full_matrix():
    h, w = 5, 6
    logits = attention(grid=(h, w), prefix=5)
    full = slow_weights(logits, h, w, 28.0)
    code = torch.randn(2, 7, h, w, generator=generator(1))
    expected = torch.einsum("bij,bdj->bdi", full, code.flatten(2)).reshape(code.shape)
    found = hp.mix_local(code, hp.neighbour_weights(logits, (h, w)))
    torch.testing.assert_close(found, expected / window_sizes(h, w))
    assert window_sizes(h, w).unique().tolist() == [4, 6, 9]


@pytest.mark.parametrize(("y", "x"), [(0, 0), (0, 3), (2, 3), (4, 5)])
def test_gradient_of_one_mixed_patch_is_weight_over_window(y, x):
    h, w = 5, 6
    full = slow_weights(attention(grid=(h, w)), h, w, 28.0)
    code = torch.randn(2, 3, h, w, generator=generator(1)).requires_grad_()
    weights = hp.neighbour_weights(attention(grid=(h, w)), (h, w))
    weights.requires_grad_()
    hp.mix_local(code, weights)[1, 2, y, x].backward()
    expected = full[1, y * w + x].reshape(h, w) / window_sizes(h, w)[y, x]
    torch.testing.assert_close(code.grad[1, 2], expected)
    assert code.grad.count_nonzero() <= 9
    assert weights.grad is None


def test_attention_and_weights_of_another_grid():
    with pytest.raises(ValueError, match="does not hold the 42 patches of a 6 x 7"):
        hp.neighbour_weights(attention(), (6, 7))
    weights = hp.neighbour_weights(attention(), (5, 6))
    with pytest.raises(ValueError, match=r"need weights of shape \(2, 36, 9\)"):
        hp.mix_local(torch.zeros(2, 3, 6, 6), weights)


def test_shares_of_the_own_class_among_neighbours_and_their_weights():
    classes = torch.tensor([[[0, 0, -1], [0, 1, 1]]])
    # Labelled neighbours of the five labelled patches: 3, 4, 3, 4, 2; of their own
    # class: 2, 2, 2, 1, 1.
    equal = torch.ones(1, 6, 9)
    plain, weighted = own_class_shares(equal, classes)
    assert plain == weighted == pytest.approx(8 / 16)
    right = equal.clone()
    right[0, :, 4] = 100.0  # the patch itself does not count
    right[0, 4, 5] = 5.0  # what the middle patch below gives the one on its right
    right[0, 4, 6] = 50.0  # outside the picture
    plain, weighted = own_class_shares(right, classes)
    assert (plain, weighted) == pytest.approx((8 / 16, 12 / 20))


def test_one_forward_gives_features_and_weights():
    backbone = smoke().load_backbone()
    images = torch.randn(2, 3, 64, 48, generator=generator(0))
    out = backbone(images, attention=True)
    feat, weights = split_weights(WithNeighbourWeights(backbone).features(images))
    torch.testing.assert_close(feat, out.feat)
    torch.testing.assert_close(weights, hp.neighbour_weights(out.attention, (8, 6)))
    with pytest.raises(ValueError, match="has no attention"):
        hp.prepare(smoke(backbone="colour"), stripes())


# ------------------------------------------------------- schedule, consistency, twins


def test_lambda_waits_and_never_quite_reaches_one():
    found = [hp.lambda_schedule(t, 100, 20) for t in range(100)]
    assert not any(found[:21])
    assert found[60] == pytest.approx(0.5)
    assert found == sorted(found) and 0.98 < found[-1] < 1
    assert hp.lambda_schedule(3, 4, 50) == 0
    coco = hp.lambda_schedule(5815, 3877 * 3, 1000)
    assert coco == pytest.approx(0.453, abs=5e-4)


def test_consistency_has_a_gradient_where_both_agree():
    z = unit(4, 6).requires_grad_()
    loss = hp.consistency_loss(z, z.detach().clone())
    loss.backward()
    assert loss.item() == pytest.approx(6**0.5 * 1e-6, rel=1e-3)
    assert torch.isfinite(z.grad).all()


def test_photometric_twin_keeps_the_geometry_and_repeats():
    grey = torch.zeros(3, 3, 16, 16)
    grey[..., 4:12] = 0.9
    images = normalise_rgb(grey)
    twins = [hp.photometric_twin(images, generator(s)) for s in (0, 0, 1)]
    assert torch.equal(twins[0], twins[1]) and not torch.equal(twins[0], twins[2])
    assert twins[0].shape == images.shape
    bright = denormalise(twins[0]).mean(1)
    assert (bright[..., 6:10].mean(-1) > bright[..., :2].mean(-1) + 0.3).all()


def test_jitter_of_normalised_values_cuts_a_third_of_them_off():
    noise = torch.rand(8, 3, 32, 32, generator=generator(0))
    images = normalise_rgb(noise)
    released = hp.photometric_twin(images, generator(1), on_normalised=True)
    intended = denormalise(hp.photometric_twin(images, generator(1)))
    assert released.min() >= 0 and released.max() <= 1
    assert intended.std() > 0.1
    at_end = [(x <= 1e-6).float().mean() for x in (released, intended)]
    assert at_end[0] > 3 * at_end[1] + 0.02


# ------------------------------------------------------------------- model and step


def model(**changes):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return hp.HPModel(
            **{"in_dim": 6, "dim": 5, "pool": 7, "momentum": 0.9} | changes
        )


def test_teacher_starts_as_the_student_and_learns_by_averaging_alone():
    net = model()
    before = [p.clone() for p in net.teacher.parameters()]
    assert all(map(torch.equal, before, net.student.parameters()))
    assert not any(p.requires_grad for p in net.teacher.parameters())
    with torch.no_grad():
        for p in net.student.parameters():
            p.add_(1)
    net.average.update(0, 1)
    for old, new in zip(before, net.teacher.parameters(), strict=True):
        torch.testing.assert_close(new, old + 0.1)


def test_recent_patches_go_round():
    net = model()
    for k in range(3):
        net.remember(torch.full((3, 6, 2, 2), k + 1.0), generator(k))
    assert net.recent[:, 0].tolist() == [3, 3, 1, 2, 2, 2, 3]
    assert net.turn == 2


@pytest.mark.parametrize("parts", [1, 4])
def test_teacher_moves_once_per_step_however_many_parts(monkeypatch, parts):
    moved, follow = [], EMA.update

    def update(self, *args):
        moved.append(args)
        follow(self, *args)

    monkeypatch.setattr(EMA, "update", update)
    cfg = smoke(steps=2, batch_size=8, accumulate=parts)
    hp.train(cfg, hp.prepare(cfg, stripes(n=8)))
    assert len(moved) == 2


def test_renewed_pool_is_the_teacher_on_recent_patches():
    net = model().eval()
    net.recent.copy_(torch.randn(7, 6, generator=generator(0)))
    net.renew(generator(1))
    code = net.teacher(net.recent[:, :, None, None])[:, :, 0, 0]
    torch.testing.assert_close(net.pool_specific, F.normalize(code, dim=1))


def test_output_dropout_shrinks_cosines_between_images_not_within():
    net = model(in_dim=4000, dropout_outputs=0.1)
    x = torch.ones(2, 4000, 1, 2)
    a, b = F.normalize(net.drop(x, generator(0)), dim=1)[..., 0, :]
    assert (a[:, 0] @ a[:, 1]).item() == pytest.approx(1, abs=1e-4)
    assert (a[:, 0] @ b[:, 1]).item() == pytest.approx(0.9, abs=0.02)


def test_step_trains_what_it_should_and_nothing_else():
    material = hp.prepare(smoke(), stripes())
    trainer = hp.build(smoke(), material)
    batch = hp.Views(material.source, twins=False).batch(torch.arange(4))
    feat, weights = split_weights(batch["input"])
    feat.requires_grad_()
    pools = trainer.model.pool_agnostic.clone(), trainer.model.pool_specific.clone()
    found = trainer.step(feat, weights, batch["label"], 0.5, generator=generator(0))
    parts = ("contrast", "linear", "cluster")
    torch.testing.assert_close(found["loss"], sum(found[k] for k in parts))
    assert found["consistency"] == 0 and found["n_pos_ag"] > 0
    found["loss"].backward()
    for name, p in trainer.named_parameters():
        assert (p.grad is None) == name.startswith("model.teacher"), name
    assert torch.equal(pools[0], trainer.model.pool_agnostic)
    assert torch.equal(pools[1], trainer.model.pool_specific)


# ----------------------------------------------------------------------- training


@pytest.fixture(scope="module")
def material():
    return hp.prepare(smoke(), stripes(8))


RUN = {"steps": 6, "warmup": 1, "renew": 1, "batch_size": 2}


def tensors(done):
    return {
        f"{part}.{name}": value
        for part, module in done.segmenter.parts().items()
        for name, value in module.state_dict().items()
    }


@pytest.mark.parametrize("alpha", [0.0, 0.05])
def test_killed_and_resumed_is_uninterrupted(material, tmp_path, alpha):
    cfg = smoke(**RUN, alpha=alpha)
    whole = hp.train(cfg, material)
    path = tmp_path / "run.safetensors"

    def stop(step, segmenter):
        raise KeyboardInterrupt

    options = {"checkpoint": path, "checkpoint_every": 1}
    with pytest.raises(KeyboardInterrupt):
        hp.train(cfg, material, **options, watch=stop, watch_at=[4])
    resumed = hp.train(cfg, material, **options)
    expected, found = tensors(whole), tensors(resumed)
    assert expected.keys() == found.keys()
    for name in expected:
        assert torch.equal(expected[name], found[name]), name
    assert [r["loss"] for r in whole.history.rows] == [
        r["loss"] for r in resumed.history.rows
    ]


def test_history_tells_the_course_of_a_training(material):
    rows = hp.train(smoke(**RUN), material).history.rows
    wanted = {"loss", "contrast", "consistency", "linear", "cluster", "lam"}
    assert wanted | {"n_pos_ag", "n_pos_sp"} <= rows[-1].keys()
    assert [r["lam"] for r in rows] == pytest.approx([0, 0, 0.2, 0.4, 0.6, 0.8])


def test_labels_touch_neither_head_nor_clusters(material):
    other = hp.prepare(smoke(), stripes(8, labelled=False))
    with_labels, without = (
        tensors(hp.train(smoke(**RUN, clusters=3), m)) for m in (material, other)
    )
    for name, value in without.items():
        if not name.startswith("linear"):
            assert torch.equal(value, with_labels[name]), name


def test_places_of_the_features_agree(material):
    cfg = smoke(**RUN)
    kept = tensors(hp.train(cfg, material))
    images = hp.prepare(cfg.override(cache="images"), stripes(8))
    fresh = tensors(hp.train(cfg.override(cache="images"), images))
    for name in kept:
        torch.testing.assert_close(fresh[name], kept[name], atol=1e-4, rtol=1e-3)


def test_seeds_differ_and_are_watched(material):
    seen = []
    watched = {"watch": lambda step, _: seen.append(step), "watch_at": [0, 3, 6]}
    first = hp.train(smoke(**RUN), material, **watched)
    second = hp.train(smoke(**RUN, seed=1), material)
    assert seen == [0, 3, 6]
    a, b = tensors(first), tensors(second)
    assert any(not torch.equal(a[name], b[name]) for name in a)


def test_repeat_scores_without_flip(material):
    done, records = learning.repeat(
        hp.train, smoke(**RUN), [0, 1], material, val_set=stripes(4)
    )
    assert len(done) == len(records) == 2
    assert all(r["method"] == "hp" for r in records)
    assert not done[0].segmenter.protocol.flip


# ------------------------------------------------------------------------ presets


def test_published_settings():
    coco = Config.preset("cocostuff27-vits8")
    city = Config.preset("cityscapes27-vits8")
    potsdam = Config.preset("potsdam3-vitb8")
    fields = "dim tau alpha rho pool renew momentum warmup steps batch_size".split()
    table = [[getattr(cfg, name) for name in fields] for cfg in (coco, city, potsdam)]
    assert table == [
        [512, 0.8, 0.05, 0.02, 2048, 100, 0.99, 1000, 11631, 64],
        [512, 0.6, 0.05, 0.02, 2048, 20, 0.999, 50, 6960, 64],
        [256, 0.4, 0.0, 1.0, 1024, 20, 0.999, 100, 710, 64],
    ]
    assert [cfg.crops for cfg in (coco, city, potsdam)] == ["five", "five", None]
    for cfg in (coco, city, potsdam):
        assert (cfg.lr, cfg.weight_decay, cfg.projection_lr) == (5e-4, 0.1, 5e-4)
        assert (cfg.linear_lr, cfg.cluster_lr, cfg.clip) == (1e-3, 5e-3, 10)
        assert (cfg.size, cfg.eval_size, cfg.flip) == (224, 320, False)
    large = Config.preset("cityscapes27-vitb8")
    assert large.backbone == "dino_vitb8"
    assert replace(large, backbone="dino_vits8", name=city.name) == city


@pytest.mark.parametrize("name", hp.PRESETS)
def test_every_preset_reaches_its_task_specific_positives(name):
    """A warm-up longer than the run, or an epoch shorter than ``renew``, switches a
    part of the method off without a word."""
    cfg = Config.preset(name)
    assert cfg.warmup < cfg.steps
    if cfg.n_train:
        assert cfg.renew < cfg.n_train // cfg.batch_size
