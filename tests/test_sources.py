"""Features by index are the same numbers wherever they are kept."""

import pytest
import torch

from tests.models import Stripes
from uss_utils import backbones, sources
from uss_utils.features import extract
from uss_utils.sources import FeatureSource, choose


@pytest.fixture(scope="module")
def vit():
    return backbones.load("vit_tiny_random")


@pytest.fixture
def data(tmp_path, monkeypatch):
    monkeypatch.setenv("USS_DATA", str(tmp_path))
    return Stripes(n=5, labels=True, size=(32, 48), ignore=True)


def test_every_place_gives_the_same_features_and_labels(vit, data):
    wanted = extract(vit, data)
    indices = torch.tensor([4, 0, 2])
    for place, tolerance in (("memory", 0), ("images", 1e-5), ("disk", 5e-3)):
        source = FeatureSource.open(vit, data, cache=place)
        assert source.where == place and source.shape == (5, 192, 4, 6)
        batch = source.batch(indices)
        feat = source.feat(batch["input"])
        torch.testing.assert_close(feat, wanted[indices], atol=tolerance, rtol=0)
        assert torch.equal(batch["label"], data.batch(indices)[1])
        assert torch.equal(source.labels(indices), batch["label"])
        assert torch.equal(source.inputs(indices), batch["input"])
        rows, maps = zip(*source.batches(2), strict=True)
        assert [len(r) for r in rows] == [2, 2, 1]
        torch.testing.assert_close(torch.cat(maps), wanted, atol=tolerance, rtol=0)
        assert torch.equal(source.images([1]), data.batch([1])[0])


def test_the_size_is_announced_and_decides_the_place(vit, data, monkeypatch, capsys):
    assert FeatureSource.open(vit, data).where == "memory"
    assert "features: 5 x 192 x 4 x 6, 0 MB, in memory" in capsys.readouterr().out
    monkeypatch.setattr(sources, "IN_MEMORY", 10_000)
    assert choose((5, 192, 4, 6)) == "disk"
    monkeypatch.setattr(sources, "DISK_SHARE", 0.0)
    assert FeatureSource.open(vit, data).where == "images"


def test_what_cannot_be_a_source(vit, data):
    with pytest.raises(ValueError, match="holds no image"):
        FeatureSource.open(vit, data.subset([]))
    odd = Stripes(n=2, labels=True, size=(30, 48))
    with pytest.raises(ValueError, match="does not divide into patches of 8"):
        FeatureSource.open(vit, odd)
