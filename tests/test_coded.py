"""A trained head on its backbone, as a backbone."""

import torch

from tests.models import Stripes
from uss_utils import backbones
from uss_utils.coded import Coded
from uss_utils.environment import generator
from uss_utils.heads import SegmentationHead, Standardise
from uss_utils.sources import FeatureSource


def head_of(backbone, seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return SegmentationHead(backbone.dim, 5, dropout=0.5)


def test_features_are_the_code_without_dropout():
    backbone = backbones.load("vit_tiny_random")
    head = head_of(backbone).train()
    coded = Coded(backbone, head).train()
    images = torch.randn(2, 3, 32, 48, generator=generator(0))
    expected = head.eval()(backbone.features(images))
    assert torch.equal(coded.features(images), expected)
    assert coded.dim == 5 and not any(p.requires_grad for p in coded.parameters())


def test_later_training_of_the_head_changes_nothing():
    backbone = backbones.load("vit_tiny_random")
    head = head_of(backbone)
    coded = Coded(backbone, head)
    before = coded.fingerprint
    head.linear.weight.data.add_(1)
    assert coded.fingerprint == before
    assert Coded(backbone, head).fingerprint != before


def test_fingerprint_tells_heads_apart():
    backbone = backbones.load("colour")
    prints = {
        Coded(backbone, Standardise(torch.full((3,), value))).fingerprint
        for value in (0.0, 1.0)
    }
    assert len(prints | {backbone.fingerprint}) == 3


def test_is_a_source_like_any_backbone():
    backbone = backbones.load("vit_tiny_random")
    coded = Coded(backbone, head_of(backbone))
    source = FeatureSource.open(coded, Stripes(n=3, size=(32, 48)), cache="memory")
    assert source.shape == (3, 5, 4, 6) and source.backbone.inner is backbone
