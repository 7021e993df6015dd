"""The table of data sets and the function that opens them."""

import numpy as np
import pytest

from tests.datasets.test_camvid import make
from tests.datasets.test_folder import add
from uss_utils import datasets
from uss_utils.datasets import DATASETS, Transform


@pytest.mark.parametrize("name", DATASETS)
def test_every_row_is_complete(name):
    info = DATASETS[name]
    assert info.palette.shape == (len(info.classes), 3)
    assert info.description
    assert info.licence
    assert str(datasets.check(name, "nowhere")).startswith(name)


def test_unknown_names_list_the_known_ones():
    match = "unknown data set 'nope'; known: scenes, scenes-aerial, camvid, cocostuff27"
    with pytest.raises(ValueError, match=match):
        datasets.load("nope")
    with pytest.raises(ValueError, match=match):
        datasets.check("nope")
    with pytest.raises(ValueError, match="'scenes' has no split 'test'; known: train,"):
        datasets.load("scenes", "test")
    with pytest.raises(ValueError, match="'camvid' has no option 'seed'; known: res"):
        datasets.load("camvid", seed=1)
    with pytest.raises(ValueError, match="no option 'n'; known: resample, classes"):
        datasets.load("folder", n=1)


@pytest.mark.parametrize("name", ["scenes", "scenes-aerial"])
def test_scenes(name):
    data = datasets.load(name, "val", limit=3, size=64, seed=4)
    info = DATASETS[name]
    assert len(data) == 3
    assert data.classes == info.classes
    assert np.array_equal(data.palette, info.palette)
    image, label = data.batch(range(3))
    assert image.shape == (3, 3, 64, 64)
    assert 0 <= label.min() <= label.max() < len(info.classes)
    cropped = datasets.load(name, limit=1, size=64, transform=Transform.sane(32))
    assert cropped[0]["label"].shape == (32, 32)
    assert datasets.check(name).complete


def test_other_seed_other_scenes():
    prints = {datasets.load("scenes", limit=1, seed=s).fingerprint() for s in (0, 1)}
    assert len(prints) == 2


def test_limit_spreads_over_a_stored_set(tmp_path):
    make(tmp_path, n=9)
    data = datasets.load("camvid", "train", tmp_path, limit=3)
    assert [data.item_name(i) for i in range(3)] == ["train_0", "train_4", "train_8"]
    assert len(datasets.load("camvid", "train", tmp_path, limit=99)) == 9
    with pytest.raises(ValueError, match="limit 0 leaves no images"):
        datasets.load("camvid", "train", tmp_path, limit=0)


def test_size_is_shorthand_for_a_transform(tmp_path):
    make(tmp_path)

    def load(**kwargs):
        return datasets.load("camvid", "train", tmp_path, **kwargs)

    assert load(size=8).transform == Transform.sane(8)
    assert load(size=(8, 16)).transform == Transform("resize", (8, 16))
    assert load().transform == Transform()
    with pytest.raises(ValueError, match="size 8 and a transform were both given"):
        load(size=8, transform=Transform.sane(8))


def test_resample_chooses_how_a_stored_set_is_resized(tmp_path):
    make(tmp_path)

    def load(**kwargs):
        return datasets.load("camvid", "train", tmp_path, **kwargs)

    nearest = load(size=8, resample="nearest")
    assert nearest.transform == Transform.authors(8)
    assert "nearest images" in nearest.transform.describe()
    assert "bilinear images" in load(size=8).transform.describe()
    assert load(size=8, resample=None).transform == load(size=8).transform
    squeezed = load(size=(8, 16), resample="nearest").transform
    assert squeezed == Transform("resize", (8, 16), "nearest")
    assert nearest.fingerprint() != load(size=8).fingerprint()
    with pytest.raises(ValueError, match="resample 'nearest' says how .*give a size"):
        load(resample="nearest")
    with pytest.raises(ValueError, match="resample 'nearest' and a transform were bot"):
        load(resample="nearest", transform=Transform.sane(8))
    with pytest.raises(
        ValueError, match="unknown resampling 'lanczos'; known: nearest"
    ):
        load(size=8, resample="lanczos")
    assert len(datasets.load("scenes", limit=1, resample=None)) == 1
    with pytest.raises(ValueError, match="'scenes' has no option 'resample'; known: s"):
        datasets.load("scenes", resample="nearest")
    with pytest.raises(ValueError, match="'camvid' has no option 'crops'"):
        load(crops="five")


def test_folder_options(tmp_path):
    add(tmp_path / "imgs", "a.png")
    add(tmp_path / "labels", "a.png", ids=0)
    data = datasets.load("folder", root=tmp_path, classes=["x", "y"], ignore=7)
    assert data.classes == ("x", "y")
    assert len(data) == 1
