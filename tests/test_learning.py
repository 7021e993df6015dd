"""What all trainings share, shown on a method that only learns its probes."""

from dataclasses import dataclass
from typing import get_args, get_type_hints

import pytest
import torch
from PIL import Image

from tests.models import Stripes
from uss_utils.datasets.transforms import RESAMPLES
from uss_utils.environment import generator
from uss_utils.frozen import Frozen
from uss_utils.heads import Chain, SegmentationHead
from uss_utils.learning import (
    Material,
    finish,
    plain,
    prepare,
    random_patches,
    repeat,
)
from uss_utils.presets import PresetConfig, presets
from uss_utils.recipe import LearnedRecipe
from uss_utils.training import History


@dataclass(frozen=True)
class Config(LearnedRecipe):
    backbone: str = "vit_tiny_random"
    n_train: int | None = 6
    n_val: int | None = 4


PRESETS = presets(smoke=Config(size=64), white=Config(size=64, standardise="whiten"))


def train(cfg, material, *, progress=False):
    torch.manual_seed(cfg.seed)
    head = SegmentationHead(material.dim, 5)
    return finish("none", cfg, material, head, material.readout(cfg, 5), History())


@pytest.fixture(scope="module")
def material():
    return prepare(Config.preset("smoke"))


def test_recipe_opens_both_splits_with_their_sizes():
    cfg = Config.preset("smoke", eval_size=96)
    assert cfg.open("train")[0]["image"].shape == (3, 64, 64)
    assert cfg.open("val")[0]["image"].shape == (3, 96, 96)
    assert (len(cfg.open("train")), len(cfg.open("val"))) == (6, 4)
    assert not Config(flip=False).protocol().flip
    assert isinstance(cfg, PresetConfig)


def test_recipe_resizes_evaluated_images_by_their_own_rule(tmp_path):
    for split in ("train", "val"):
        place = tmp_path / "imgs" / split
        place.mkdir(parents=True)
        Image.new("RGB", (40, 30)).save(place / "a.png")
    # No labels: a folder of pictures is enough to see the geometry.
    options = {"dataset": "folder", "root": str(tmp_path), "size": 16}

    def rules(**changes):
        cfg = Config(**options, **changes)
        return [cfg.open(split).transform.resample for split in ("train", "val")]

    assert rules() == ["bilinear", "bilinear"]
    assert rules(resample="nearest") == ["nearest", "nearest"]
    assert rules(eval_resample="tensor") == ["bilinear", "tensor"]
    assert rules(resample="nearest", eval_resample="bilinear") == [
        "nearest",
        "bilinear",
    ]
    with pytest.raises(ValueError, match="eval_resample"):
        Config(eval_resample="lanczos")
    for field in ("resample", "eval_resample"):
        kinds = get_args(get_type_hints(Config)[field])[0]
        assert get_args(kinds) == RESAMPLES


def test_recipe_chooses_how_the_position_table_is_resampled():
    assert Config().load_backbone().position == "released"
    assert Config(position="timm").load_backbone().position == "timm"
    with pytest.raises(ValueError, match="position"):
        Config(position="bicubic")


def test_number_of_clusters_comes_from_settings_or_classes():
    unnamed = Stripes(n=2, labels=False, size=(64, 64))
    unnamed.classes, unnamed.palette = (), unnamed.palette[:0]
    assert Config(clusters=9).n_clusters(unnamed) == 9
    with pytest.raises(ValueError, match="clusters="):
        Config().n_clusters(unnamed)


def test_prepare_standardises_for_the_head():
    found = prepare(Config.preset("white", whiten_dim=8))
    assert found.dim == 8 and found.source.shape == (6, 192, 8, 8)
    rows = torch.cat([found.standardise(feat) for _, feat in found.source.batches()])
    rows = rows.permute(0, 2, 3, 1).reshape(-1, 8)
    torch.testing.assert_close(rows.T.cov(), torch.eye(8), atol=0.1, rtol=0)


def test_random_patches_are_patches_and_as_many_of_each_image():
    maps = torch.arange(4.0)[:, None, None, None].expand(4, 2, 3, 3)
    rows = random_patches(maps.split(3), 4, 8, generator(0))
    assert rows.shape == (8, 2)
    assert torch.equal(rows[:, 0].long().bincount(), torch.full((4,), 2))


def test_finished_model_is_named_by_train_labels(material):
    done = train(Config.preset("smoke"), material)
    assert done.segmenter.method == "none" and done.segmenter.preset == "smoke"
    assert done.segmenter.cluster_to_class is not None
    assert done.segmenter.meta["map"]["split"] == "train"
    assert isinstance(done.segmenter.head, SegmentationHead)


def test_whitening_becomes_part_of_the_head():
    cfg = Config.preset("white", whiten_dim=8)
    done = train(cfg, prepare(cfg))
    assert isinstance(done.segmenter.head, Chain)
    images, _ = cfg.open("val").batch([0])
    assert done.segmenter.code(images).shape == (1, 5, 8, 8)


def test_probes_fitted_after_replace_those_alongside(material):
    cfg = Config.preset("smoke")
    beside = train(cfg, material).segmenter
    after = train(cfg.override(probes="after"), material).segmenter
    assert torch.equal(beside.head.linear.weight, after.head.linear.weight)
    code = torch.cat([after.code_of(feat) for _, feat in material.source.batches()])
    with torch.no_grad():
        loss = [m.cluster_probe(code)[0] for m in (after, beside)]
    assert loss[0] < loss[1]  # k-means fits, random centroids do not
    assert not torch.equal(beside.linear_probe.weight, after.linear_probe.weight)


def test_no_labels_no_names_no_linear_probe():
    data = Stripes(n=3, labels=False, size=(64, 64))
    cfg = Config(size=64, probes="after")
    segmenter = train(cfg, prepare(cfg, data)).segmenter
    assert segmenter.linear_probe is None and segmenter.cluster_to_class is None


def test_repeat_gives_one_record_per_seed(material):
    cfg = Config.preset("smoke")
    trained, records = repeat(train, cfg, (3, 4), material)
    assert [r["seed"] for r in records] == [3, 4]
    assert [r["method"] for r in records] == ["none", "none"]
    assert records[0]["images"] == 4 and "headline" in records[0]
    again = repeat(train, cfg, (3,), material)[1][0]
    assert again["headline"] == records[0]["headline"]
    assert trained[0].segmenter.backbone is trained[1].segmenter.backbone


class Wrapped(Frozen):
    """A backbone with a channel more."""

    def __init__(self, inner):
        super().__init__()
        self.inner, self.name = inner, inner.name
        self.dim, self.patch = inner.dim + 1, inner.patch

    def features(self, images):
        feat = self.inner.features(images)
        return torch.cat([feat, feat.mean(1, keepdim=True)], 1)


def test_a_wrapped_backbone_brings_channels_that_the_model_does_not_keep():
    cfg = Config.preset("white", whiten_dim=4, probes="after")
    found = prepare(cfg, wrap=Wrapped)
    assert isinstance(found, Material) and found.source.shape[1] == 193
    assert found.standardise.in_dim == 192
    segmenter = train(cfg, found).segmenter
    assert segmenter.backbone is plain(found.backbone)
    assert segmenter.code(found.source.images([0])).shape == (1, 5, 8, 8)
