"""STEGO: loss, pairs, a training step, whole trainings and the presets."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from tests.models import Stripes
from uss_utils import datasets, learning
from uss_utils.correspondence import pair_correlations
from uss_utils.environment import generator
from uss_utils.evaluation import evaluate
from uss_utils.methods import stego
from uss_utils.methods.stego import Config, CorrespondenceLoss
from uss_utils.neighbours import global_descriptors
from uss_utils.segmenter import Segmenter
from uss_utils.sources import FeatureSource

TERMS = ("intra", "inter", "neg")


def smoke(**changes) -> Config:
    """The smoke preset on an untrained backbone, smaller still."""
    small = {"backbone": "vit_tiny_random", "dim": 8, "samples": 3, "neighbours": 3}
    return Config.preset("smoke", **small | changes)


def stripes(n=8, labelled=True):
    return Stripes(n=n, labels=labelled, size=(64, 96), ignore=False)


def maps(n=4, channels=6, dim=5, seed=0) -> list[Tensor]:
    """Features, those of neighbours, codes, those of neighbours."""
    draw = generator(seed)
    shapes = [(n, c, 6, 7) for c in (channels, channels, dim, dim)]
    return [torch.randn(shape, generator=draw) for shape in shapes]


def loss_of(**options) -> CorrespondenceLoss:
    return CorrespondenceLoss((0.67, 0.25, 0.63), (0.1, 0.0, 0.2), **options)


# --------------------------------------------------------------------------- loss


def test_loss_is_the_weighted_mean_of_its_parts():
    total, parts = loss_of(samples=4, negatives=3)(*maps(), generator=generator(0))
    weighted = zip((0.67, 0.25, 0.63), TERMS, strict=True)
    torch.testing.assert_close(total, sum(w * parts[name] for w, name in weighted))
    for name, rows in zip(TERMS, (4, 4, 12), strict=True):
        for kind in ("map", "code"):
            assert parts[f"{kind}_{name}"].shape == (rows, 4, 4, 4, 4)
        torch.testing.assert_close(parts[f"map_{name}"].mean(), parts[name])


def test_loss_repeats_with_the_generator_and_with_what_it_drew():
    loss = loss_of(samples=4, negatives=3)
    first = loss(*maps(), generator=generator(1))[0]
    assert torch.equal(first, loss(*maps(), generator=generator(1))[0])
    assert not torch.equal(first, loss(*maps(), generator=generator(2))[0])
    coords, perms = loss.draw(4, generator(1))
    assert torch.equal(first, loss(*maps(), coords=coords, perms=perms)[0])


def test_terms_compare_the_image_with_itself_its_neighbour_and_the_drawn_ones():
    feat, feat_pos, code, code_pos = maps()
    coords, perms = loss_of(samples=4).draw(4, generator(0))
    found = pair_correlations(code, code_pos, coords, perms)
    for r, partners in enumerate(perms.tolist()):
        for i, j in enumerate(partners):
            here = stego.sample_at(code[i : i + 1], coords[0][i : i + 1])
            there = stego.sample_at(code[j : j + 1], coords[1][i : i + 1])
            expected = stego.correlation(here, there)[0]
            torch.testing.assert_close(found["neg"][r][i], expected)
    own = found["intra"][0].flatten(3).flatten(1, 2)
    torch.testing.assert_close(own.diagonal(dim1=1, dim2=2), torch.ones(4, 16))


def test_gradient_reaches_both_codes_and_no_features():
    tensors = [x.requires_grad_() for x in maps()]
    loss_of()(*tensors, generator=generator(0))[0].backward()
    assert [x.grad is None for x in tensors] == [True, True, False, False]


def test_share_of_pairs_without_gradient_is_that_of_negative_correlations():
    """With the clamp, on the loss of one kind of pair alone."""
    *_, code, code_pos = maps(dim=3)
    coords, _ = loss_of(samples=5).draw(4, generator(0))
    codes = [
        stego.sample_at(x, c) for x, c in zip((code, code_pos), coords, strict=True)
    ]
    s = stego.correlation(*codes).requires_grad_()
    f = stego.correlation(*codes[::-1]).flip(0)
    stego.pair_loss(f, s, 0.3).sum().backward()
    assert (s.grad == 0).float().mean() == (s < 0).float().mean()


def test_descent_binds_what_is_alike_and_parts_what_is_not():
    """Codes of two kinds of places, from features that tell them apart."""
    kind = torch.rand(6, 1, 8, 8, generator=generator(0)) < 0.5
    feat = torch.cat([kind, ~kind], 1).float()
    code = torch.randn(6, 4, 8, 8, generator=generator(1)).requires_grad_()
    loss = CorrespondenceLoss((1, 1, 1), (0.5, 0.5, 0.5), samples=8)
    optimiser = torch.optim.Adam([code], lr=0.1)
    draw = generator(2)
    for _ in range(150):
        optimiser.zero_grad()
        loss(feat, feat.roll(1, 0), code, code.roll(1, 0), generator=draw)[0].backward()
        optimiser.step()
    rows = torch.nn.functional.normalize(code.detach(), dim=1).movedim(1, -1)
    a, b = rows[kind[:, 0]].mean(0), rows[~kind[:, 0]].mean(0)
    assert a.norm() > 0.9 and b.norm() > 0.9 and a @ b < 0.1


def test_the_loss_does_not_lose_precision_under_autocast():
    expected = loss_of()(*maps(), generator=generator(0))[0]
    with torch.autocast("cpu", torch.bfloat16):
        found = loss_of()(*maps(), generator=generator(0))[0]
    assert torch.equal(found, expected)


def test_one_image_has_no_random_pairs():
    with pytest.raises(ValueError, match="at least two images in a batch, got 1"):
        loss_of()(*maps(n=1), generator=generator(0))


def test_settings_of_the_loss_that_make_no_sense():
    with pytest.raises(ValueError, match=r"three weights .* \(intra, inter, neg\)"):
        CorrespondenceLoss((1, 1), (0, 0, 0))
    with pytest.raises(ValueError, match="at least one sample and one negative"):
        loss_of(negatives=0)


# ---------------------------------------------------------------- pairs and one step


@pytest.fixture(scope="module")
def material():
    return stego.prepare(smoke(), stripes())


def test_neighbours_are_the_most_similar_images(material):
    feat = material.source.inputs(range(8))
    cosine = global_descriptors(feat) @ global_descriptors(feat).T
    assert material.neighbours.shape == (8, 4)
    assert material.neighbours[:, 0].tolist() == list(range(8))
    worst = cosine.gather(1, material.neighbours).amin(1)
    assert ((cosine > worst[:, None] - 1e-6).sum(1) >= 4).all()


def test_partners_are_neighbours_of_every_rank_and_follow_from_the_generator(material):
    pairs = stego.Pairs(material.source, material.neighbours)
    indices = torch.arange(8).repeat(30)
    batch = pairs.draw(indices, generator(0))
    again = pairs.draw(indices, generator(0))
    assert torch.equal(batch["positive"], again["positive"])
    assert torch.equal(batch["input"], material.source.inputs(indices))
    assert torch.equal(batch["label"], material.source.labels(indices))
    maps = material.source.inputs(range(8)).flatten(1)
    partner = torch.cdist(batch["positive"].flatten(1), maps).argmin(1)
    for i in range(8):
        # Equal stripes repeat every third image: compare features, not numbers.
        wanted = {tuple(maps[j, :5].tolist()) for j in material.neighbours[i, 1:]}
        assert {tuple(maps[j, :5].tolist()) for j in partner[i::8]} == wanted


def test_a_step_trains_head_and_probes_and_its_loss_is_the_sum(material):
    cfg = smoke()
    trainer = stego.build(cfg, material).train()
    pairs = stego.Pairs(material.source, material.neighbours)
    batch = pairs.draw(torch.arange(4), generator(0))
    found = trainer.step(batch, generator(1))
    parts = ("correspondence", "cluster", "linear")
    torch.testing.assert_close(found["loss"], sum(found[k] for k in parts))
    terms = zip(cfg.loss_weights, TERMS, strict=True)
    expected = sum(w * found[name] for w, name in terms)
    torch.testing.assert_close(found["correspondence"], expected)
    assert all(-1 <= found[f"code_{name}"] <= 1 for name in TERMS)
    found["loss"].backward()
    assert all(p.grad is not None for p in trainer.parameters())
    head_alone = [p.grad.clone() for p in trainer.head.parameters()]
    trainer.zero_grad()
    found = trainer.step({k: v for k, v in batch.items() if k != "label"}, generator(1))
    assert "linear" not in found
    (found["loss"] - found["cluster"]).backward()
    for alone, p in zip(head_alone, trainer.head.parameters(), strict=True):
        torch.testing.assert_close(p.grad, alone)  # probes do not reach the head


def test_dropout_is_drawn_apart_for_both_branches_and_the_guide(material, monkeypatch):
    trainer, masks = stego.build(smoke(), material).train(), []

    def watched(feat, p=0.1, *, keep=None, generator=None):
        masks.append(torch.rand(feat.shape[:2], generator=generator) >= p)
        return feat

    monkeypatch.setattr("uss_utils.heads.channel_dropout", watched)
    monkeypatch.setattr("uss_utils.methods._stego_step.channel_dropout", watched)
    pairs = stego.Pairs(material.source, material.neighbours)
    trainer.step(pairs.draw(torch.arange(4), generator(0)), generator(1))
    assert len(masks) == 6  # three for the images, three for their neighbours
    assert len({tuple(m.flatten().tolist()) for m in masks}) == 6


def test_dropping_features_shrinks_correlations_between_images_alone():
    cfg = smoke(standardise="none", pointwise=False, dropout=0.5, samples=7)
    material = stego.prepare(cfg, stripes())
    dropped = stego.feature_correlations(cfg, material)
    clean = stego.feature_correlations(cfg.override(dropout_features=False), material)
    ratio = {name: float(dropped[name].mean() / clean[name].mean()) for name in TERMS}
    assert ratio["intra"] == pytest.approx(1, abs=0.05)
    assert ratio["inter"] == pytest.approx(0.5, abs=0.1)
    assert ratio["neg"] == pytest.approx(0.5, abs=0.1)


def test_measured_shifts_attract_the_share_that_was_asked_for(material):
    cfg = smoke(shares=(0.4, 0.25, 0.1), samples=5)
    shifts = stego.build(cfg, material).loss.shifts
    found = stego.feature_correlations(cfg, material)
    for name, share in zip(TERMS, cfg.shares, strict=True):
        attracted = (found[name] > getattr(shifts, name)).float().mean()
        assert float(attracted) == pytest.approx(share, abs=0.01)
    # Other draws of training's own kind: much the same share.
    other = stego.feature_correlations(cfg, material, generator(9))
    assert (other["neg"] > shifts.neg).float().mean() == pytest.approx(0.1, abs=0.05)
    given = stego.build(replace(cfg, shares=None, shifts=(0.3, 0.2, 0.1)), material)
    assert given.loss.shifts == (0.3, 0.2, 0.1)


def test_code_correlations_are_taken_at_the_points_of_the_features(material):
    """A model whose code is the guiding feature itself shows the same correlations."""
    cfg = smoke(pointwise=False, dropout_features=False)
    segmenter = stego.train(cfg, material).segmenter
    found = stego.code_correlations(cfg, material, segmenter)
    assert {name: len(values) for name, values in found.items()} == {
        **{"intra": 8, "inter": 8},
        "neg": 8 * cfg.negatives,
    }
    segmenter.head = material.standardise
    found = stego.code_correlations(cfg, material, segmenter)
    for name, values in stego.feature_correlations(cfg, material).items():
        torch.testing.assert_close(found[name], values)


def test_the_start_depends_on_the_seed_alone(material):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = stego.build(smoke(), material)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(6)
    again, other = (stego.build(smoke(seed=s), material) for s in (0, 1))
    assert torch.equal(first.head.linear.weight, again.head.linear.weight)
    assert not torch.equal(first.head.linear.weight, other.head.linear.weight)


# ----------------------------------------------------------------------- training


def tensors(done) -> dict[str, Tensor]:
    return {
        f"{part}.{name}": value
        for part, module in done.segmenter.parts().items()
        for name, value in module.state_dict().items()
    }


@pytest.mark.parametrize(
    "changes", [{}, {"standardise": "none", "probes": "alongside"}]
)
def test_killed_and_resumed_is_uninterrupted(tmp_path, changes):
    cfg = smoke(steps=7, batch_size=3, **changes)
    material = stego.prepare(cfg, stripes())
    whole = stego.train(cfg, material)
    path = tmp_path / "run.safetensors"

    def stop(step, segmenter):
        raise KeyboardInterrupt

    options = {"checkpoint": path, "checkpoint_every": 2}
    with pytest.raises(KeyboardInterrupt):
        stego.train(cfg, material, **options, watch=stop, watch_at=[5])
    resumed = stego.train(cfg, material, **options)
    expected, found = tensors(whole), tensors(resumed)
    assert expected.keys() == found.keys()
    for name in expected:
        assert torch.equal(expected[name], found[name]), name
    assert whole.history.rows == resumed.history.rows
    assert len(resumed.history) == 7
    with pytest.raises(
        ValueError, match="other settings: config.lr was 0.0005, is 0.1"
    ):
        stego.train(replace(cfg, lr=0.1), material, **options)


def test_history_tells_the_course_of_a_training(material):
    done = stego.train(smoke(steps=3), material)
    wanted = {"loss", "correspondence", "linear", "cluster", *TERMS}
    wanted |= {f"code_{name}" for name in TERMS}
    assert wanted <= done.history.rows[-1].keys()
    assert [row["step"] for row in done.history.rows] == [0, 1, 2]
    assert done.segmenter.meta["shifts"] == list(
        stego.build(smoke(), material).loss.shifts
    )


def test_training_lowers_the_loss():
    cfg = smoke(steps=40, batch_size=8, samples=7, lr=2e-3)
    loss = stego.train(cfg).history.series("correspondence")
    assert loss[-10:].mean() < loss[:10].mean() - 0.01


def test_labels_touch_neither_head_nor_clusters(material):
    blind = stego.prepare(smoke(), stripes(labelled=False))
    with_labels, without = (
        tensors(stego.train(smoke(clusters=3), m)) for m in (material, blind)
    )
    assert not any(name.startswith("linear") for name in without)
    for name, value in without.items():
        assert torch.equal(value, with_labels[name]), name


def test_features_from_disk_and_from_images(tmp_path, monkeypatch, material):
    monkeypatch.setenv("USS_DATA", str(tmp_path))
    kept = tensors(stego.train(smoke(), material))
    for cache, tolerance in (("images", 1e-4), ("disk", 2e-2)):  # the disk holds fp16
        cfg = smoke(cache=cache)
        other = stego.prepare(cfg, stripes())
        assert torch.equal(other.neighbours, material.neighbours)
        done = tensors(stego.train(cfg, other))
        for name in kept:
            if name.startswith("head"):
                torch.testing.assert_close(
                    done[name], kept[name], atol=tolerance, rtol=1e-2
                )


def test_watched_seeds_differ(material):
    seen = []
    watched = {"watch": lambda n, model: seen.append((n, model)), "watch_at": [0, 2, 4]}
    first = stego.train(smoke(), material, **watched)
    assert [n for n, _ in seen] == [0, 2, 4]
    start = stego.build(smoke(), material).head.state_dict()
    learned = [model.head.then.state_dict() for _, model in seen]
    for name in start:
        assert torch.equal(learned[0][name], start[name])
        assert not torch.equal(learned[1][name], learned[2][name])
    second = tensors(stego.train(smoke(seed=1), material))
    assert any(not torch.equal(second[k], v) for k, v in tensors(first).items())


def test_a_trained_model_is_scored_and_survives_its_file(material, tmp_path):
    segmenter = stego.train(smoke(), material).segmenter
    assert segmenter.meta["map"]["split"] == "train"
    again = Segmenter.load(segmenter.save(tmp_path / "stego"))
    records = [evaluate(each, stripes(4)) for each in (segmenter, again)]
    for record in records:
        record.pop("run")
    assert records[0] == records[1]
    assert records[0]["method"] == "stego" and records[0]["preset"] == "smoke"


def test_several_seeds_share_the_material(material):
    options = {"val_set": stripes(4)}
    done, records = learning.repeat(stego.train, smoke(), (0, 1), material, **options)
    assert [r["seed"] for r in records] == [0, 1]
    assert len(done) == 2 and all("headline" in r for r in records)


# ----------------------------------------------------------------------- bad input


def test_fewer_images_than_neighbours():
    with pytest.raises(ValueError, match="3 training images have no 3 neighbours each"):
        stego.prepare(smoke(), stripes(3))
    assert stego.prepare(smoke(neighbours=2), stripes(3)).neighbours.shape == (3, 3)


def test_batches_of_one_image(material):
    with pytest.raises(ValueError, match="at least two images in a batch, got 1"):
        stego.train(smoke(batch_size=1), material)


def test_a_last_batch_of_one_image_is_left_out():
    cfg = smoke(steps=4, batch_size=3, neighbours=2)
    material = stego.prepare(cfg, stripes(7))
    assert len(stego.train(cfg, material).history) == 4


@pytest.mark.parametrize("cache", ["memory", "images"])
def test_features_that_are_no_numbers(monkeypatch, cache, tmp_path):
    monkeypatch.setenv("USS_DATA", str(tmp_path))
    batches = FeatureSource.batches

    def poisoned(self, *args, **options):
        for rows, feat in batches(self, *args, **options):
            feat = feat.clone()
            feat[0, 3, 1, 2] = torch.nan
            yield rows, feat

    monkeypatch.setattr(FeatureSource, "batches", poisoned)
    with pytest.raises(ValueError, match="1 of 8 .*NaN or infinite values"):
        stego.prepare(smoke(cache=cache, standardise="none"), stripes())


def test_a_loss_that_is_no_number_stops_the_training(material, monkeypatch):
    cfg = replace(smoke(), shares=None)
    wrong = cfg.loss((0.1, float("nan"), 0.1))
    monkeypatch.setattr(stego.Config, "loss", lambda self, shifts=None: wrong)
    with pytest.raises(
        FloatingPointError, match="step 0: the loss is not finite .*inter"
    ):
        stego.train(cfg, material)


def test_an_image_side_that_is_no_multiple_of_the_patch():
    odd = Stripes(n=8, size=(64, 100), ignore=False)
    with pytest.raises(ValueError, match="width 100 -> 96 or 104"):
        stego.prepare(smoke(), odd)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"samples": 0}, r"samples=0 has to lie in \[1"),
        ({"negatives": 0}, "negatives=0 has to be at least 1"),
        ({"neighbours": 0}, "neighbours=0 has to be at least 1"),
        ({"dim": 0}, r"dim=0 has to lie in \[1"),
        ({"shares": (0.2, 1.2, 0.1)}, r"shares=\(0.2, 1.2, 0.1\) have to lie"),
        ({"dropout": 1.0}, r"dropout=1.0 has to lie in \[0, 1\)"),
        ({"shifts": (0.1, 0.2)}, "shifts=.* does not fit"),
    ],
)
def test_settings_that_make_no_sense(changes, message):
    with pytest.raises(ValueError, match=message):
        smoke(**changes)


# ------------------------------------------------------------------------ presets


def test_every_preset_knows_its_name_and_its_data():
    for name, cfg in stego.PRESETS.items():
        assert cfg.name == name and cfg.dataset in datasets.names()
    with pytest.raises(ValueError, match="did you mean 'cocostuff27-vitb8'"):
        Config.preset("cocostuff-vitb8")


@pytest.mark.parametrize(
    ("name", "backbone", "dim", "weights", "shifts"),
    [
        ("cocostuff27-vits8", "s", 70, (0.67, 0.25, 0.63), (0.08, 0.02, 0.66)),
        ("potsdam3-vits8", "s", 70, (0.67, 0.25, 0.63), (0.08, 0.02, 0.46)),
        ("cocostuff27-vits8-10-3", "s", 70, (0.67, 0.25, 0.63), (0.08, 0.02, 0.16)),
        ("cocostuff27-vits8-default", "s", 70, (0.67, 0.25, 0.63), (0.18, 0.12, 0.46)),
        ("cocostuff27-vits8-older", "s", 70, (0.29, 0.8, 0.72), (0.34, 0.04, 0.86)),
        ("cityscapes27-vits8-older", "s", 70, (0.46, 0.18, 0.72), (0.25, 0.2, 0.25)),
        ("cocostuff27-vitb8", "b", 90, (0.1, 1, 0.1538476), (0.12, 0.2, 1)),
        (
            *("cityscapes27-vitb8", "b", 100),
            *((1, 0.5774535, 0.9058763), (0.4582847, 0.1754347, 0.3136124)),
        ),
    ],
)
def test_published_settings(name, backbone, dim, weights, shifts):
    cfg = Config.preset(name)
    assert (cfg.backbone, cfg.dim) == (f"dino_vit{backbone}8", dim)
    assert cfg.loss_weights == pytest.approx(weights, abs=1e-6)
    assert cfg.shifts == pytest.approx(shifts, abs=1e-6)
    assert cfg.shares is None and cfg.standardise == "none"
    assert (cfg.size, cfg.eval_size, cfg.resample) == (224, 320, "nearest")
    assert (cfg.steps, cfg.batch_size, cfg.neighbours) == (5000, 16, 7)
    assert (cfg.samples, cfg.negatives, cfg.dropout_features) == (11, 5, True)
    assert (cfg.lr, cfg.linear_lr, cfg.cluster_lr) == (5e-4, 5e-3, 5e-3)
    assert cfg.crops == (None if cfg.dataset == "potsdam3" else "five")
    assert cfg.probes == "alongside"
