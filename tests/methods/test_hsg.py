"""HSG as a method: settings, training on regions, resuming, its saved model."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tests.models import boxes, weights
from uss_utils import learning
from uss_utils.evaluation import evaluate_together
from uss_utils.methods import hsg, kmeans
from uss_utils.methods._hsg_evaluation import embedding_of
from uss_utils.methods.hsg import Config
from uss_utils.segmenter import Segmenter


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("USS_DATA", str(tmp_path / "data"))


def smoke(**changes) -> Config:
    """The smoke preset, smaller still."""
    small = {"stages": 1, "mid": 8, "dim": 8, "view_size": 32, "region_side": 64}
    small |= {"test_side": 64, "test_canvas": (64, 64), "test_grid": (2, 2)}
    small |= {"fine": 4, "coarse": 2, "lr": 0.02}
    return Config.preset("smoke", **small | changes)


# -------------------------------------------------------------------------- settings


def test_presets_hold_the_published_numbers():
    first = hsg.PRESETS["voc-resnet50-stage1"]
    second = hsg.PRESETS["voc-resnet50"]
    streets = hsg.PRESETS["cityscapes-resnet50"]
    for cfg in (first, second, streets):
        assert (cfg.momentum, cfg.weight_decay, cfg.warmup) == (0.9, 1e-4, 100)
        assert (cfg.kappa, cfg.dim, cfg.decay, cfg.scale) == (
            16,
            128,
            "step",
            (0.5, 1.5),
        )
        assert (cfg.network, cfg.stages, cfg.stride) == ("resnet50", 4, 16)
        assert cfg.start == "random" and cfg.whole
    sizes = [
        (c.view_size, c.batch_size, c.steps, c.lr) for c in (first, second, streets)
    ]
    assert sizes == [
        (224, 128, 350_000, 0.1),
        (448, 48, 20_000, 0.008),
        (448, 32, 38_000, 0.1),
    ]
    assert [c.factor for c in (second, streets)] == [10, 1]
    assert [(c.grid, c.iterations, c.hierarchy) for c in (first, second)] == [
        ((1, 1), 1, False),
        ((4, 4), 15, True),
    ]
    assert [(c.fine, c.coarse, c.knn, c.per_view) for c in (second, streets)] == [
        (8, 4, 2, True),
        (8, 4, 4, False),
    ]
    loss = second.loss()
    assert (loss.region, loss.fine, loss.coarse) == (1, 0.1, 0.1)
    assert (loss.modularity, loss.centroid) == (1, 1)
    loss = streets.loss()
    assert (loss.modularity, loss.centroid, loss.fine) == (0.2, 0.2, 0.1)
    assert second.retrieval().canvas == (512, 512)
    assert streets.retrieval().grid == (12, 24)
    assert second.retrieval().iterations == first.retrieval().iterations == 15
    assert (first.region_threshold, first.region_max) == (0.25, 48)
    assert (second.images, second.dataset, second.train_split) == (
        "coco",
        "voc",
        "trainaug",
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dim": 7}, "dim=7 has to be even"),
        ({"kappa": 0.0}, r"kappa=0.0 has to lie in \(0, 32\]"),
        ({"scale": (1.5, 0.5)}, r"scale=\(1.5, 0.5\) has to rise"),
        ({"grid": (0, 4)}, r"grid=\(0, 4\) have to lie in \[1, 256\]"),
        ({"batch_size": 1}, "at least two images per step"),
        ({"backbone": "dino_vits8"}, 'a ResNet sees "pixels"'),
        ({"network": "resnet34"}, "network='resnet34' does not fit"),
        ({"decay": "cosine"}, "decay='cosine' does not fit"),
        ({"stages": 5}, r"stages=5 has to lie in \[1, 4\]"),
        ({"stride": 32}, "stride=32 has to be 8 or 16"),
        ({"dim": 30}, "dim=30 has to be a multiple of 4"),
        ({"kappa": 33.0}, r"kappa=33.0 has to lie in \(0, 32\]"),
        ({"mid": 0}, r"mid=0 has to lie in \[1"),
        ({"view_size": 801}, "has 51 places on a side, the position table 50"),
        ({"view_size": 401, "stages": 2}, "has 51 places"),
        ({"test_side": 0}, r"test_side=0 has to lie in \[1"),
        ({"test_side": 513}, "test_side=513 do not fit"),
    ],
)
def test_settings_that_make_no_sense(changes, message):
    with pytest.raises(ValueError, match=message):
        Config(**changes)


@pytest.mark.parametrize(
    "changes",
    [
        {"dim": 30, "hierarchy": False},
        {"view_size": 800},
        {"view_size": 960, "hierarchy": False},
        {"stride": 32, "network": "none", "backbone": "dino_vits8"},
    ],
)
def test_settings_at_the_edge_of_sense(changes):
    assert Config(**changes).retrieval()


@pytest.mark.parametrize("field", ["start", "first_stage"])
def test_absent_files_are_told_before_regions_are_made(tmp_path, field):
    with pytest.raises(FileNotFoundError, match=f"--set {field}=FILE"):
        hsg.prepare(smoke(**{field: "none.safetensors"}), boxes())
    assert not list(tmp_path.rglob("*.png"))


def test_the_same_file_in_another_folder_is_no_change():
    stage = hsg.PRESETS["voc-resnet50"].first_stage
    cfg = Config.preset("voc-resnet50", first_stage=f"/somewhere/{stage}")
    assert cfg.overrides() == {}
    other = Config.preset("voc-resnet50", region_folder="/somewhere/seginst")
    assert other.overrides() == {"region_folder": "seginst"}


# ------------------------------------------------------------------------- training


def test_training_moves_embedding_and_grouping():
    material = hsg.prepare(smoke(), boxes())
    before = hsg.build(smoke(), material)
    done = hsg.train(smoke(), material)
    old = dict(before.named_parameters())
    new = dict(done.segmenter.head.net.named_parameters())
    still = {name for name in old if torch.equal(old[name], new[name])}
    moved = set(old) - still
    assert {"head.0.weight", "grouping.positions.rows"} <= moved
    assert any(name.startswith("grouping.fine") for name in moved)
    # There is no third level, to which the second would hand features.
    assert all("feature" in name for name in still if name.endswith("weight"))
    assert set(done.history.names()) >= {"region", "modularity_fine", "top5"}


def test_views_of_an_image_are_neighbours():
    valid = torch.ones(6, 4, 4, dtype=torch.bool)
    found = hsg.regions_of_batch({"regions": valid.long(), "valid": valid})
    assert found[2].tolist() == [0, 0, 1, 1, 2, 2]


def test_networks_of_two_seeds_differ_before_training():
    material = hsg.prepare(smoke(), boxes())
    one, other = (hsg.build(smoke(seed=seed), material) for seed in (0, 1))
    assert not torch.equal(one.head[0].weight, other.head[0].weight)


def test_same_seed_same_model_another_seed_another():
    material = hsg.prepare(smoke(), boxes())
    first, again, other = (hsg.train(smoke(seed=s), material) for s in (0, 0, 1))
    assert torch.equal(weights(first.segmenter), weights(again.segmenter))
    assert first.history == again.history
    assert not torch.equal(weights(first.segmenter), weights(other.segmenter))


def test_resumed_training_is_an_uninterrupted_one(tmp_path):
    cfg = smoke(steps=6)
    material = hsg.prepare(cfg, boxes())
    whole = hsg.train(cfg, material)

    class Killed(Exception):
        pass

    def kill(step, model):
        raise Killed

    options = {"checkpoint": tmp_path / "run.safetensors", "checkpoint_every": 2}
    with pytest.raises(Killed):
        hsg.train(cfg, material, watch=kill, watch_at=[5], **options)
    resumed = hsg.train(cfg, material, **options)
    assert torch.equal(weights(resumed.segmenter), weights(whole.segmenter))
    assert resumed.history == whole.history


def test_labels_reach_neither_network_nor_clusters():
    cfg = smoke(clusters=3)
    labelled, bare = (
        hsg.train(cfg, hsg.prepare(cfg, boxes(labelled=known))).segmenter
        for known in (True, False)
    )
    assert torch.equal(weights(labelled), weights(bare))
    assert torch.equal(labelled.cluster_probe.clusters, bare.cluster_probe.clusters)
    assert bare.linear_probe is None and labelled.linear_probe is not None


def test_second_stage_begins_where_the_first_ended(tmp_path):
    first = smoke(hierarchy=False, grid=(1, 1), iterations=1, batch_size=1)
    done = hsg.train(first, hsg.prepare(first, boxes()))
    assert "fine" not in done.history.names()
    file = done.segmenter.save(tmp_path / "stage1")
    cfg = smoke(first_stage=str(file))
    net = hsg.build(cfg, hsg.prepare(cfg, boxes()))
    ended = done.segmenter.head.net.state_dict()
    begun = net.state_dict()
    assert all(torch.equal(begun[name].cpu(), ended[name]) for name in ended)
    assert net.grouping is not None
    foreign = cfg.override(dim=12, region_side=60)
    made = len(list(tmp_path.rglob("*.png")))
    with pytest.raises(ValueError, match="the head to start from is of another net"):
        hsg.prepare(foreign, boxes())
    assert made and len(list(tmp_path.rglob("*.png"))) == made
    with pytest.raises(ValueError, match="trained without clustering transformers"):
        hsg.hierarchy_of(first, done.segmenter, boxes()[0]["image"])


def test_an_embedding_of_frozen_features():
    cfg = smoke(network="none", backbone="vit_tiny_random", standardise="centre")
    done = hsg.train(cfg, hsg.prepare(cfg, boxes()))
    image = boxes()[0]["image"]
    assert done.segmenter.code(image[None]).shape == (1, 8, 8, 8)
    found = hsg.hierarchy_of(cfg, done.segmenter, image)
    assert found.hierarchy.size == (64, 64)


def test_models_at_moments_and_the_untrained_one():
    seen = {}
    material = hsg.prepare(smoke(), boxes())
    done = hsg.train(smoke(), material, watch=seen.__setitem__, watch_at=[0, 2])
    assert list(seen) == [0, 2]
    start = hsg.baseline(smoke(), material).segmenter
    assert torch.equal(weights(start), weights(seen[0]))
    again = hsg.baseline(smoke(), material).segmenter
    for one, other in zip(start.head.buffers(), again.head.buffers(), strict=True):
        assert torch.equal(one, other)
    records = evaluate_together([start, done.segmenter], boxes())
    assert [r["name"] for r in records] == ["hsg, untrained", "hsg"]


def test_model_on_disk_and_its_hierarchy(tmp_path):
    model = hsg.train(smoke(), hsg.prepare(smoke(), boxes())).segmenter
    loaded = Segmenter.load(model.save(tmp_path / "model"))
    image = boxes().read(1)[0]
    assert np.array_equal(loaded.segment(image), model.segment(image))
    normalised = boxes()[1]["image"]
    one, other = (
        hsg.hierarchy_of(smoke(), each, normalised).hierarchy
        for each in (model, loaded)
    )
    assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
    assert len(one) == 3 and one.counts[0] >= one.counts[1] >= one.counts[2] >= 1


def test_only_its_own_models_have_a_hierarchy():
    cfg = kmeans.Config.preset("smoke", backbone="vit_tiny_random")
    other = kmeans.train(cfg, boxes())
    with pytest.raises(ValueError, match="kmeans has no hierarchy; use one of hsg"):
        hsg.hierarchy_of(smoke(), other, boxes()[0]["image"])


def test_several_seeds_share_regions_and_views():
    material = hsg.prepare(smoke(), boxes())
    trained, records = learning.repeat(
        hsg.train, smoke(), [0, 1], material, val_set=boxes()
    )
    assert len(trained) == len(records) == 2


def test_score_by_retrieval(tmp_path):
    cfg = smoke(n_train=8, n_val=4, batch_size=4)
    model = hsg.train(cfg).segmenter
    found = hsg.score_objects(cfg, model)
    assert 0 <= found["retrieval"]["all"]["miou"] <= 100
    assert "labels" in found["note"]


@pytest.mark.parametrize(("whole", "side"), [(True, 128), (False, 64)])
def test_images_cut_as_stored_are_scored_as_stored(monkeypatch, whole, side):
    cfg = smoke(whole=whole, size=64, n_train=4, n_val=4)
    model = hsg.train(cfg).segmenter
    given = []
    monkeypatch.setattr(
        hsg, "evaluate_retrieval", lambda *args, **_: given.extend(args)
    )
    hsg.score_objects(cfg, model)
    assert [data[0]["image"].shape[-1] for data in given[1:3]] == [side, side]
    assert [data.split for data in given[1:3]] == ["val", "train"]


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"network": "none", "backbone": "vit_tiny_random", "standardise": "centre"},
    ],
)
def test_retrieval_enlarges_embeddings_before_their_length_is_one(changes):
    cfg = smoke(n_train=8, **changes)
    model = hsg.train(cfg, hsg.prepare(cfg, boxes())).segmenter
    images = torch.stack([boxes()[i]["image"] for i in (0, 1)])
    raw = embedding_of(model)(images)
    assert (raw.norm(dim=1) - 1).abs().max() > 0.01
    assert torch.allclose(F.normalize(raw, dim=1), model.code(images), atol=1e-6)


def test_retrieval_takes_any_model():
    cfg = kmeans.Config.preset("smoke", backbone="vit_tiny_random")
    other, images = kmeans.train(cfg, boxes()), boxes()[0]["image"][None]
    assert torch.equal(embedding_of(other)(images), other.code(images))
