"""PriMaPs-EM: from images to masks to prototypes, alone and on top of other models."""

from dataclasses import replace

import pytest
import torch

from tests.models import Stripes
from uss_utils import crf, learning, runs
from uss_utils.environment import generator
from uss_utils.evaluation import evaluate_together
from uss_utils.methods import hp, kmeans, ppap, primaps, stego
from uss_utils.methods._primaps_data import Views
from uss_utils.methods.primaps import Config
from uss_utils.segmenter import Segmenter

RUN = {"start_steps": 3, "steps": 12, "batch_size": 2, "every": 2}


@pytest.fixture(autouse=True, scope="module")
def own_cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("USS_DATA", str(tmp_path_factory.mktemp("data")))
        yield


def smoke(**changes) -> Config:
    """The smoke preset on an untrained backbone, smaller still."""
    return Config.preset("smoke", **{"backbone": "vit_tiny_random"} | RUN | changes)


def stripes(n=6, labelled=True, **changes):
    return Stripes(**{"n": n, "labels": labelled, "size": (64, 48)} | changes)


@pytest.fixture(scope="module")
def material():
    return primaps.prepare(smoke(), stripes(8))


def tensors(segmenter):
    return {
        f"{part}.{name}": value
        for part, module in segmenter.parts().items()
        for name, value in module.state_dict().items()
    }


# ----------------------------------------------------------------------------- data


def test_views_turn_all_maps_of_an_image_together(material):
    views = Views(material, students=True)
    batch = views.draw(torch.arange(8), generator(0))
    images, label = material.dataset.batch(range(8))
    masks = material.masks.batch(range(8))
    turned = (batch["image"] != images).flatten(1).any(1)
    label_turned = (batch["label"] != label).flatten(1).any(1)
    assert 0 < label_turned.sum() < 8
    for i in range(8):
        back = (lambda x, i=i: x.flip(-1)) if label_turned[i] else (lambda x: x)
        assert torch.equal(back(batch["image"][i]), images[i])
        assert torch.equal(back(batch["label"][i]), label[i])
        assert torch.equal(back(batch["masks"][i]), masks[i])
    assert not turned[~label_turned].any()
    feat = material.source.backbone.features(batch["image"])
    torch.testing.assert_close(batch["input"], feat, atol=1e-4, rtol=1e-4)


def test_masks_serve_every_seed_and_every_model_on_top(material):
    shipped = {"backbone": "vit_tiny_scenes"}  # a random one differs from seed to seed
    first, again = (
        primaps.prepare(smoke(seed=seed, **shipped), stripes(3)) for seed in (0, 5)
    )
    assert again.masks.folder == first.masks.folder
    stamps = {p: p.stat().st_mtime_ns for p in material.masks.folder.rglob("*.png")}
    base = kmeans.train(
        kmeans.Config.preset("smoke", backbone="vit_tiny_random"), stripes(8)
    )
    on_top = primaps.prepare(smoke(), stripes(8), base=base)
    assert on_top.masks.folder == material.masks.folder
    assert all(p.stat().st_mtime_ns == stamp for p, stamp in stamps.items())


def test_other_settings_of_the_masks_are_other_masks(material):
    folders = {
        primaps.prepare(smoke(**changes), stripes(8)).masks.folder
        for changes in ({}, {"threshold": 0.8}, {"split": "none"}, {"coverage": 0.5})
    }
    assert len(folders) == 4 and material.masks.folder in folders
    plain = primaps.prepare(smoke(refine=False), stripes(8)).masks.folder
    assert (plain not in folders) == crf.available()


# ------------------------------------------------------------------------- training


@pytest.mark.parametrize("step", [5, 9])
def test_killed_and_resumed_is_uninterrupted(material, tmp_path, step):
    cfg = smoke()
    whole = primaps.train(cfg, material)
    path = tmp_path / "run.safetensors"

    def stop(index, segmenter):
        raise KeyboardInterrupt

    options = {"checkpoint": path, "checkpoint_every": 2}
    with pytest.raises(KeyboardInterrupt):
        primaps.train(cfg, material, **options, watch=stop, watch_at=[step])
    resumed = primaps.train(cfg, material, **options)
    for a, b in (
        (whole.segmenter, resumed.segmenter),
        (whole.others["running"], resumed.others["running"]),
    ):
        expected, found = tensors(a), tensors(b)
        assert expected.keys() == found.keys()
        for name in expected:
            assert torch.equal(expected[name], found[name]), name
    with pytest.raises(ValueError, match="other settings: config.threshold was 0.7"):
        primaps.train(replace(cfg, threshold=0.5), material, checkpoint=path)


def test_killed_in_the_start_and_resumed(material, tmp_path, monkeypatch):
    cfg = smoke(start_steps=6)
    expected, _ = primaps.start(cfg, material)
    path = tmp_path / "start.safetensors"
    real, calls = type(material).x, []

    def fails_at_the_fifth(self, inputs):
        calls.append(len(calls))
        if len(calls) == 5:
            raise KeyboardInterrupt
        return real(self, inputs)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(type(material), "x", fails_at_the_fifth)
        primaps.start(cfg, material, checkpoint=path)
    assert path.is_file()
    found, _ = primaps.start(cfg, material, checkpoint=path)
    for name, value in expected.state_dict().items():
        assert torch.equal(value, found.state_dict()[name]), name


def test_history_and_moments(material):
    seen = []
    done = primaps.train(
        smoke(),
        material,
        watch=lambda step, model: seen.append((step, model.n_clusters)),
        watch_at=[0, 6, 12],
    )
    assert seen == [(0, 3), (6, 3), (12, 3)]
    assert {"loss", "focal", "linear"} <= done.history.rows[-1].keys()


def test_slow_prototypes_begin_as_the_running_and_follow(material):
    cfg = smoke(steps=1)
    first = primaps.train(cfg, material)
    readout, _ = primaps.start(cfg, material)
    unit = torch.nn.functional.normalize(readout.cluster.clusters.detach(), dim=1)
    slow = first.segmenter.cluster_probe.clusters
    torch.testing.assert_close(slow, unit)
    assert not torch.equal(first.others["running"].cluster_probe.clusters, slow)
    # The first two moves copy, so after 2 moves and no step behind them both agree.
    copied = primaps.train(smoke(steps=5), material)
    torch.testing.assert_close(
        copied.segmenter.cluster_probe.clusters,
        copied.others["running"].cluster_probe.clusters,
    )


def test_labels_touch_no_prototype(material):
    other = primaps.prepare(smoke(clusters=3), stripes(8, labelled=False))
    a, b = (
        primaps.train(smoke(clusters=3), m).segmenter.cluster_probe.clusters
        for m in (material, other)
    )
    assert torch.equal(a, b)


def test_places_of_the_features_agree(material):
    cfg = smoke()
    kept = primaps.train(cfg, material)
    images = primaps.prepare(cfg.override(cache="images"), stripes(8))
    assert images.mirrored is None
    fresh = primaps.train(cfg.override(cache="images"), images)
    for a, b in zip(kept.history.rows, fresh.history.rows, strict=True):
        assert a["focal"] == pytest.approx(b["focal"], rel=5e-3)


def test_without_augmentation_no_picture_is_read(material, monkeypatch):
    def refuse(indices):
        raise AssertionError("pictures were read")

    cfg = smoke(augment=False)
    readout, _ = primaps.start(cfg, material)
    monkeypatch.setattr(material.dataset, "batch", refuse)
    batch = Views(material, students=False).draw(torch.arange(4), generator(0))
    assert set(batch) == {"masks", "label", "input"}


def test_baseline_is_the_start_alone(material):
    done = primaps.baseline(smoke(steps=7), material)
    readout, _ = primaps.start(smoke(), material, steps=7)
    found = done.segmenter.cluster_probe
    assert found.metric == "cosine"
    assert torch.equal(found.clusters, readout.cluster.clusters)


@pytest.mark.parametrize("labelled", [True, False])
def test_more_clusters_than_masks(labelled):
    cfg = smoke(clusters=12, threshold=0.1)
    material = primaps.prepare(cfg, stripes(4, labelled))
    assert int(material.masks.counts().max()) < 12
    done = primaps.train(cfg, material)
    assert done.segmenter.n_clusters == 12
    assert (done.segmenter.cluster_to_class is None) != labelled


def test_batch_of_one():
    cfg = smoke(batch_size=1, steps=3)
    done = primaps.train(cfg, primaps.prepare(cfg, stripes(3)))
    assert torch.isfinite(done.segmenter.cluster_probe.clusters).all()


# --------------------------------------------------------------- on top of a model


@pytest.fixture(scope="module")
def bases():
    """One trained model per method, on the stripes."""
    small = {"backbone": "vit_tiny_random", "steps": 3, "batch_size": 2}
    settings = {
        stego: {"neighbours": 2, "dim": 6},
        hp: {"dim": 8, "pool": 20},
        ppap: {"chunk": 48, "per_chunk": 8},
    }
    found = {}
    for method, extra in settings.items():
        cfg = method.Config.preset("smoke", **small | extra)
        known = method.prepare(cfg, stripes(6))
        found[method.__name__.rpartition(".")[2]] = method.train(cfg, known).segmenter
    return found


@pytest.mark.parametrize("name", ["stego", "hp", "ppap"])
def test_on_top_of_another_model(bases, name, tmp_path):
    base = bases[name]
    cfg = smoke()
    material = primaps.prepare(cfg, stripes(6), base=base)
    images, _ = material.dataset.batch([0, 1])
    code = base.code(images)
    torch.testing.assert_close(
        material.x(material.source.inputs([0, 1])), code, atol=1e-4, rtol=1e-4
    )
    readout, history = primaps.start(cfg, material)
    assert torch.equal(readout.cluster.clusters, base.cluster_probe.clusters)
    assert not history.rows
    done = primaps.train(cfg, material)
    model = done.segmenter
    torch.testing.assert_close(model.code(images), code)
    assert model.meta["name"] == f"primaps on {name}"
    records = evaluate_together(
        [base, model, done.others["running"]], stripes(4), protocol=model.protocol
    )
    assert [r["method"] for r in records] == [name, "primaps", "primaps"]
    loaded = Segmenter.load(model.save(tmp_path / "model"))
    assert torch.equal(loaded.code(images), model.code(images))


def test_base_from_a_file(bases, tmp_path):
    path = bases["stego"].save(tmp_path / "stego")
    cfg = smoke(base=path)
    material = primaps.prepare(cfg, stripes(6))
    assert material.base.method == "stego"
    assert primaps.train(cfg, material).segmenter.meta["overrides"]["base"] == path.name
    with pytest.raises(FileNotFoundError, match=r"no-such-model"):
        primaps.prepare(smoke(base="no-such-model.safetensors"), stripes(6))


def test_checkpoint_of_another_base_is_refused(bases, material, tmp_path):
    cfg, path = smoke(), tmp_path / "run.safetensors"
    primaps.train(cfg, material, checkpoint=path)
    other = primaps.prepare(cfg, stripes(8), base=bases["stego"])
    with pytest.raises(ValueError, match="made with other settings: .*grouped"):
        primaps.train(cfg, other, checkpoint=path)


# ------------------------------------------------------------------------- settings


def test_repeat_and_protocol(material):
    done, records = learning.repeat(
        primaps.train, smoke(), [0, 1], material, val_set=stripes(4)
    )
    assert [r["seed"] for r in records] == [0, 1]
    assert records[0]["protocol"]["alpha"] == 1 and records[0]["protocol"]["flip"]
    assert all("running" in trained.others for trained in done)


def test_runs_keep_both_models(tmp_path):
    cfg = Config.preset("smoke", **RUN | {"n_train": 4, "n_val": 2})
    records = runs.train(primaps, cfg, [0], tmp_path, device="cpu")
    names = {path.stem for path in (tmp_path / "models").glob("*.safetensors")}
    assert names == {"primaps-seed0", "primaps-seed0-running"}
    assert [r["name"] for r in records] == ["primaps", "primaps, running"]
    assert len(list((tmp_path / "records").glob("*.json"))) == 2


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"threshold": 0.0}, "threshold=0.0 has to lie in"),
        ({"momentum": 1.5}, "momentum=1.5 has to lie in"),
        ({"every": 0}, "every=0 has to be at least 1"),
        ({"split": "pca"}, "expected 'centre' or 'whiten' or 'none' or None"),
    ],
)
def test_settings_that_make_no_sense(wrong, message):
    with pytest.raises(ValueError, match=message):
        Config(**wrong)


@pytest.mark.parametrize(
    "backbone", ["vits8", "vitb8", "dinov2-vits14", "dinov2-vitb14"]
)
@pytest.mark.parametrize(
    "dataset, epoch", [("cityscapes27", 92), ("cocostuff27", 1550), ("potsdam3", 142)]
)
def test_published_settings(dataset, epoch, backbone):
    cfg = Config.preset(f"{dataset}-{backbone}")
    assert cfg.size == cfg.eval_size == (322 if "v2" in backbone else 320)
    assert (cfg.start_steps, cfg.steps) == (2 * epoch, 50 * epoch)
    assert (cfg.resample, cfg.eval_resample) == ("bilinear", "tensor")
    fields = "batch_size threshold coverage gamma every momentum lr linear_lr".split()
    values = [getattr(cfg, name) for name in fields]
    assert values == [32, 0.4, 0.95, 2.0, 10, 0.98, 5e-3, 5e-3]
    assert cfg.standardise == "none" and cfg.refine and cfg.augment and cfg.ramp
    assert cfg.flip and cfg.protocol().alpha == 1 and cfg.position == "released"
