"""Patches of 14 pixels, as DINOv2 has them: no power of two anywhere on the way."""

import numpy as np
import pytest
import torch
from timm.models.vision_transformer import VisionTransformer

from tests.models import CLASSES, PALETTE, Stripes
from uss_utils import evaluation
from uss_utils.datasets.transforms import Transform, normalise
from uss_utils.environment import generator
from uss_utils.feature_cache import FeatureCache
from uss_utils.heads import Standardise
from uss_utils.probes import ClusterProbe, LinearProbe, upsample
from uss_utils.protocol import EvalProtocol
from uss_utils.segmenter import Segmenter
from uss_utils.sources import FeatureSource
from uss_utils.vit import Backbone

SIDE, GRID = 322, 23


def dinov2_like(position: str = "released") -> Backbone:
    """A small random DINOv2: layer scale, position table for 518 x 518 pixels."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        vit = VisionTransformer(
            img_size=518,
            patch_size=14,
            embed_dim=24,
            depth=2,
            num_heads=2,
            init_values=1e-1,
            num_classes=0,
            dynamic_img_size=True,
        )
        torch.nn.init.normal_(vit.pos_embed)
    return Backbone(vit, "small14", position=position, untrained=True)


@pytest.fixture(scope="module")
def backbone():
    return dinov2_like()


@pytest.fixture(scope="module")
def data():
    geometry = Transform("center", SIDE, "tensor")
    return Stripes(n=3, size=(100, 150)).with_transform(geometry)


def model_on(backbone) -> Segmenter:
    draw = generator(0)
    return Segmenter(
        backbone,
        Standardise(torch.zeros(backbone.dim)),
        ClusterProbe(backbone.dim, 3, "dot", generator=draw),
        LinearProbe(backbone.dim, 3, generator=draw),
        classes=CLASSES,
        palette=PALETTE,
        cluster_to_class=[1, 2, 0],
        protocol=EvalProtocol(fit_map_on="eval", alpha=1.0),
    )


def test_features_have_a_vector_per_patch(backbone, data):
    images, labels = data.batch([0, 1])
    assert images.shape == (2, 3, SIDE, SIDE) and labels.shape == (2, SIDE, SIDE)
    assert backbone.features(images).shape == (2, 24, GRID, GRID)
    other = dinov2_like("timm").features(images)
    assert (backbone.features(images) - other).abs().max() > 1e-4
    with pytest.raises(ValueError, match="height 320 -> 308 or 322"):
        backbone.features(images[..., :320, :])


@pytest.mark.parametrize("place", ["memory", "disk", "images"])
def test_sources_give_the_same_features(backbone, data, place, tmp_path, monkeypatch):
    monkeypatch.setenv("USS_DATA", str(tmp_path))
    source = FeatureSource.open(backbone, data, cache=place)
    assert source.shape == (3, 24, GRID, GRID)
    found = source.feat(source.inputs([2, 0]))
    expected = backbone.features(data.batch([2, 0])[0])
    torch.testing.assert_close(found, expected, atol=3e-3, rtol=1e-3)
    assert source.labels([1]).shape == (1, SIDE, SIDE)


def test_another_position_is_another_cache(backbone, data, tmp_path, monkeypatch):
    monkeypatch.setenv("USS_DATA", str(tmp_path))
    built = [FeatureCache.build(dinov2_like(p), data) for p in ("released", "timm")]
    assert built[0].folder != built[1].folder


@pytest.mark.parametrize("size", [(322, 322), (97, 61), (13, 200), (333, 515)])
def test_any_picture_is_segmented_at_its_own_size(backbone, size):
    model, pixels = model_on(backbone), np.zeros((*size, 3), np.uint8)
    pixels[: size[0] // 2] = (200, 120, 30)
    found = model.segment(pixels)
    assert found.shape == size and set(found.unique().tolist()) <= {0, 1, 2}
    if size == (322, 322):
        code = model.code(normalise(pixels)[None], flip=True)
        expected = upsample(model.cluster_probe.scores(code), size).argmax(1)[0]
        assert torch.equal(found, model.cluster_to_class[expected])


def test_evaluation_counts_every_labelled_pixel(backbone, data):
    record = evaluation.evaluate(model_on(backbone), data)
    labels = data.labels(range(3))
    assert np.sum(record["confusion"]["cluster"]) == int((labels >= 0).sum())
    assert "without antialiasing" in record["protocol"]["line"]
