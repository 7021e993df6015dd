"""MaskContrast as a method: settings, training on masks, resuming, its saved model."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.datasets.benchmark_files import make_voc
from tests.models import Boxes, boxes, weights
from uss_utils import learning, runs
from uss_utils.evaluation import evaluate_together
from uss_utils.methods import maskcontrast
from uss_utils.methods.maskcontrast import Config
from uss_utils.records import read_records
from uss_utils.segmenter import Segmenter


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("USS_DATA", str(tmp_path / "data"))


def smoke(**changes) -> Config:
    """The smoke preset with masks of an untrained backbone, smaller still."""
    small = {"mask_backbone": "vit_tiny_random", "mask_map": "none", "refine": False}
    small |= {"stages": 1, "mid": 8, "dim": 4, "view_size": 32, "objects": 1}
    return Config.preset("smoke", **small | changes)


# -------------------------------------------------------------------------- settings


def test_presets_hold_the_published_numbers():
    both = maskcontrast.PRESETS
    supervised, unsupervised = both["voc-resnet50"], both["voc-resnet50-unsupervised"]
    for cfg in (supervised, unsupervised):
        assert (cfg.lr, cfg.momentum, cfg.weight_decay) == (4e-3, 0.9, 1e-4)
        assert (cfg.temperature, cfg.key_momentum, cfg.dim) == (0.5, 0.999, 32)
        assert (cfg.view_size, cfg.scale, cfg.train_split) == (
            224,
            (0.2, 1),
            "trainaug",
        )
        assert (cfg.network, cfg.decoder, cfg.upsample) == ("resnet50", "deeplab", True)
        assert (cfg.size, cfg.resample) == ((512, 512), "cubic")
    assert (supervised.batch_size, supervised.queue, supervised.steps) == (
        64,
        128,
        6600,
    )
    assert (supervised.start, supervised.frozen_stages) == ("imagenet", 2)
    found = unsupervised.batch_size, unsupervised.queue, unsupervised.steps
    assert found == (128, 256, 3280) and unsupervised.frozen_stages == 0
    assert both["voc-resnet50-ncut"].masks == "ncut"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dim": 0}, r"dim=0 has to lie in \[1"),
        ({"temperature": 0.0}, "temperature=0.0 has to be above 0"),
        ({"scale": (0.5, 0.2)}, r"scale=\(0.5, 0.2\) has to rise"),
        ({"backbone": "dino_vits8"}, 'a ResNet sees "pixels"'),
        ({"network": "resnet34"}, "network='resnet34' does not fit"),
        ({"probes": "alongside"}, "probes='alongside' does not fit"),
        ({"masks": "basnet"}, "masks='basnet' does not fit"),
        ({"objects": 300}, "objects=300 has to lie in 1..254"),
        ({"stages": 2, "frozen_stages": 3}, "frozen_stages=3 has to lie in 0..2"),
        ({"key_momentum": 1.5}, "key_momentum=1.5 has to lie in 0..1"),
        ({"masks": "supervised"}, "masks='supervised' .* set whole=True"),
        (
            {"masks": "supervised", "whole": True, "weights": "a.pth"},
            "the ResNet's are start=FILE",
        ),
    ],
)
def test_settings_that_make_no_sense(changes, message):
    with pytest.raises(ValueError, match=message):
        Config(**changes)


def test_released_masks_of_another_data_set():
    with pytest.raises(ValueError, match="released for voc alone"):
        maskcontrast.prepare(smoke(masks="supervised", whole=True), boxes())


def test_a_start_that_is_not_there_is_told_before_masks_are_made(tmp_path):
    with pytest.raises(FileNotFoundError, match="no weights to start .*start=FILE"):
        maskcontrast.prepare(smoke(start="moco_v2_800ep.pth.tar"), boxes())
    assert not list(tmp_path.rglob("*.png"))


def test_the_same_start_in_another_folder_is_no_change():
    name = "moco_v2_800ep.pth.tar"
    cfg = Config.preset("voc-resnet50-ncut", start=f"/somewhere/{name}")
    assert "start" not in cfg.overrides()
    other = Config.preset("voc-resnet50-ncut", start="/somewhere/mine.pth")
    assert other.overrides()["start"] == "mine.pth"


# ------------------------------------------------------------------------- training


def test_training_moves_the_network_and_not_the_frozen_stage():
    cfg = smoke(stages=2, frozen_stages=1)
    material = maskcontrast.prepare(cfg, boxes())
    before = maskcontrast.build(cfg, material).query
    after = maskcontrast.train(cfg, material).segmenter.head.embedder
    old, new = (dict(model.named_parameters()) for model in (before, after))
    moved = {name for name in old if not torch.equal(old[name], new[name])}
    assert "embedding.weight" in moved and "saliency.weight" in moved
    assert "backbone.layer2.0.conv1.weight" in moved
    assert not [n for n in moved if n.startswith(("backbone.conv1", "backbone.layer1"))]


def test_same_seed_same_model_another_seed_another():
    material = maskcontrast.prepare(smoke(), boxes())
    first, again, other = (
        maskcontrast.train(smoke(seed=seed), material) for seed in (0, 0, 1)
    )
    assert torch.equal(weights(first.segmenter), weights(again.segmenter))
    assert first.history == again.history
    assert not torch.equal(weights(first.segmenter), weights(other.segmenter))
    assert set(first.history.names()) >= {"contrastive", "saliency", "accuracy"}


def test_resumed_training_is_an_uninterrupted_one(tmp_path):
    cfg = smoke(steps=6, queue=5)
    material = maskcontrast.prepare(cfg, boxes())
    whole = maskcontrast.train(cfg, material)

    class Killed(Exception):
        pass

    def kill(step, model):
        raise Killed

    place = tmp_path / "run.safetensors"
    options = {"checkpoint": place, "checkpoint_every": 2}
    with pytest.raises(Killed):
        maskcontrast.train(cfg, material, watch=kill, watch_at=[5], **options)
    resumed = maskcontrast.train(cfg, material, **options)
    assert torch.equal(weights(resumed.segmenter), weights(whole.segmenter))
    assert resumed.history == whole.history


def test_labels_reach_neither_network_nor_clusters():
    cfg = smoke(clusters=3)
    labelled, bare = (
        maskcontrast.train(cfg, maskcontrast.prepare(cfg, boxes(labelled=known)))[0]
        for known in (True, False)
    )
    assert torch.equal(weights(labelled), weights(bare))
    assert torch.equal(labelled.cluster_probe.clusters, bare.cluster_probe.clusters)
    assert bare.linear_probe is None and labelled.linear_probe is not None


def test_a_decoder_on_a_frozen_backbone():
    cfg = smoke(network="none", backbone="vit_tiny_random", standardise="centre")
    material = maskcontrast.prepare(cfg, boxes())
    done = maskcontrast.train(cfg, material)
    image = boxes()[0]["image"][None]
    assert done.segmenter.code(image).shape == (1, 4, 8, 8)
    embedding, saliency = done.segmenter.head.maps(material.backbone.features(image))
    assert embedding.shape == (1, 4, 8, 8) and saliency.shape == (1, 8, 8)


def test_models_at_moments_and_the_untrained_one():
    cfg, seen = smoke(), {}
    material = maskcontrast.prepare(cfg, boxes())
    done = maskcontrast.train(cfg, material, watch=seen.__setitem__, watch_at=[0, 2])
    assert list(seen) == [0, 2]
    start = maskcontrast.baseline(cfg, material).segmenter
    assert torch.equal(weights(start), weights(seen[0]))
    norms = [m for m in start.head.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert all(norm.num_batches_tracked > 0 for norm in norms)
    again = maskcontrast.baseline(smoke(), material).segmenter
    for one, other in zip(start.head.buffers(), again.head.buffers(), strict=True):
        assert torch.equal(one, other)
    records = evaluate_together([start, done.segmenter], boxes())
    assert [r["name"] for r in records] == ["maskcontrast, untrained", "maskcontrast"]


def test_model_on_disk(tmp_path):
    cfg = smoke(stages=2)
    model = maskcontrast.train(cfg, maskcontrast.prepare(cfg, boxes())).segmenter
    loaded = Segmenter.load(model.save(tmp_path / "model"))
    image = boxes().read(1)[0]
    assert np.array_equal(loaded.segment(image), model.segment(image))
    assert loaded.backbone.name == "pixels" and loaded.head.stages == 2


def test_several_seeds_share_masks_and_views():
    cfg = smoke()
    material = maskcontrast.prepare(cfg, boxes())
    trained, records = learning.repeat(
        maskcontrast.train, cfg, [0, 1], material, val_set=boxes()
    )
    assert len(trained) == len(records) == 2
    assert material.objects == sum(material.masks.has(i) for i in range(8))


def test_views_from_whole_images_of_any_size(tmp_path):
    class Sizes(Boxes):
        def read(self, index):
            image, label = super().read(index)
            return image[: 64 - 8 * (index % 2)], label[: 64 - 8 * (index % 2)]

    cfg = replace(smoke(), whole=True)
    images = Sizes(n=6, size=(64, 64), ignore=False)
    masks = maskcontrast.open_masks(cfg, images)
    pairs = maskcontrast.TwoViewDataset(images, masks, 32, scale=cfg.scale)
    batch = pairs.draw(torch.arange(3), torch.Generator().manual_seed(0))
    assert batch["view_q"].shape == (3, 3, 32, 32)


# ------------------------------------------------------------------- the whole of VOC


@pytest.mark.parametrize("masks", ["supervised", "ncut"])
def test_voc_from_the_command_line(tmp_path, masks, capsys):
    root = make_voc(tmp_path / "voc", "release", saliency=("supervised",))
    small = {"network": "resnet18", "start": "random", "frozen_stages": 0}
    small |= {"stages": 1, "decoder": "conv", "mid": 8, "dim": 4, "view_size": 16}
    small |= {"size": (32, 32), "steps": 2, "batch_size": 2, "queue": 4}
    small |= {"mask_backbone": "vit_tiny_random", "masks": masks, "root": root}
    cfg = Config.preset("voc-resnet50", **small | {"mask_side": 32})
    (record,) = runs.train(maskcontrast, cfg, [0], tmp_path / "out", device="cpu")
    assert record["dataset"] == "voc" and record["split"] == "val"
    # Two photographs hold fewer objects than there are classes: said, not fatal.
    assert "objects not scored: " in capsys.readouterr().out
    assert list((tmp_path / "out" / "records").glob("*.json"))


def test_objects_are_scored_again_with_the_model(tmp_path, monkeypatch):
    section = {"kmeans": {"miou": 1.0}}
    monkeypatch.setattr(maskcontrast, "score_objects", lambda *_, **__: section)
    small = {"steps": 1, "mask_backbone": "vit_tiny_random", "refine": False}
    cfg = Config.preset("smoke", **small)
    (record,) = runs.train(maskcontrast, cfg, [0], tmp_path, device="cpu")
    model = Segmenter.load(tmp_path / "models" / "maskcontrast-seed0.safetensors")
    again = runs.rescore(
        maskcontrast, model, tmp_path / "records", protocol=cfg.protocol()
    )
    assert record["segments"] == again["segments"] == section
    (stored,) = read_records(tmp_path / "records")
    assert stored["segments"] == section


def test_objects_are_scored_where_there_is_a_background(tmp_path):
    cfg = smoke()
    model = maskcontrast.train(cfg, maskcontrast.prepare(cfg, boxes())).segmenter
    assert maskcontrast.score_objects(cfg, model) is None  # the scenes have none
