"""Cityscapes: official layout, both sets of classes, what is said about bad files."""

import numpy as np
import pytest

from tests.datasets.benchmark_files import make_cityscapes, write
from uss_utils import datasets
from uss_utils.datasets.cityscapes import Cityscapes, find_root

FRAME = "aachen_000000_000001"


@pytest.mark.parametrize("split", ["train", "val"])
def test_frames_of_all_cities_with_27_classes(tmp_path, split):
    data = datasets.load("cityscapes27", split, make_cityscapes(tmp_path, split))
    names = [data.item_name(i) for i in range(len(data))]
    assert names == sorted(names) and names[1] == FRAME and len(names) == 4
    image, label = data.read(1)
    assert image.shape == (32, 64, 3)
    # Label ids 0 (unlabelled), 255 (licence plate) and 8 (sidewalk).
    assert label[:3, 0].tolist() == [-1, -1, 1]
    assert data.classes[1] == "sidewalk" and data.n_classes == 27
    assert data.palette[1].tolist() == [244, 35, 232]


def test_the_19_classes_of_the_benchmark(tmp_path):
    make_cityscapes(tmp_path)
    frame = tmp_path / f"gtFine/train/aachen/{FRAME}_gtFine_labelIds.png"
    ids = np.zeros((32, 64), np.uint8)
    known = [
        *(7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)
    ]
    ids[0, : len(known)] = known
    ids[1, :12] = [0, 1, 6, 9, 10, 14, 15, 16, 18, 29, 30, 255]
    write(frame, ids)
    data = datasets.load("cityscapes19", "train", tmp_path, size=(32, 64))
    label = data[1]["label"]
    assert label[0, :19].tolist() == list(range(19))
    assert (label[0, 19:] == -1).all() and (label[1:] == -1).all()
    assert data.name == "cityscapes19" and data.n_classes == 19
    assert data.classes[-1] == "bicycle" and "caravan" not in data.classes
    assert data.palette[13].tolist() == [0, 0, 142]
    assert data.item_name(1) == FRAME
    with pytest.raises(ValueError, match="'cityscapes19' has no option 'crops'"):
        datasets.load("cityscapes19", "train", tmp_path, crops="five")


def test_size_and_resampling(tmp_path):
    make_cityscapes(tmp_path)
    options = {"size": 24, "resample": "nearest"}
    data = datasets.load("cityscapes27", "train", tmp_path, **options)
    assert data.batch([0, 3])[0].shape == (2, 3, 24, 24)
    assert "centre crop 24x24, nearest images" in data.transform.describe()
    assert (data.labels([0]) == data.batch([0])[1]).all()


@pytest.mark.parametrize("place", ["", "cityscapes", "Cityscapes"])
def test_root_may_be_a_folder_above(tmp_path, place, monkeypatch):
    make_cityscapes(tmp_path / place)
    assert len(Cityscapes("train", tmp_path)) == 4
    monkeypatch.setenv("USS_DATA", str(tmp_path))
    if place:
        assert find_root() == tmp_path / place


def test_absent_set_says_that_a_login_is_needed(tmp_path):
    match = r"no Cityscapes at .*needs a login: register at .*leftImg8bit_trainvaltest"
    with pytest.raises(FileNotFoundError, match=match):
        Cityscapes("train", tmp_path)
    make_cityscapes(tmp_path, "train")
    with pytest.raises(
        FileNotFoundError, match="no frames of val in .*leftImg8bit/val"
    ):
        Cityscapes("val", tmp_path)


def test_half_a_set(tmp_path):
    make_cityscapes(tmp_path)
    label = tmp_path / f"gtFine/train/aachen/{FRAME}_gtFine_labelIds.png"
    label.unlink()
    match = (
        rf"1 of 4 frames of train have no file in .*gtFine/train, first aachen/{FRAME}"
    )
    with pytest.raises(FileNotFoundError, match=match):
        Cityscapes("train", tmp_path)
    (tmp_path / f"leftImg8bit/train/aachen/{FRAME}_leftImg8bit.png").unlink()
    assert len(Cityscapes("train", tmp_path)) == 3
    (tmp_path / f"leftImg8bit/train/aachen/{FRAME[:-1]}0_leftImg8bit.png").unlink()
    with pytest.raises(
        FileNotFoundError, match="no file in .*leftImg8bit/train, first"
    ):
        Cityscapes("train", tmp_path)


def test_bad_files(tmp_path):
    make_cityscapes(tmp_path)
    data = Cityscapes("train", tmp_path)
    label = tmp_path / f"gtFine/train/aachen/{FRAME}_gtFine_labelIds.png"
    write(label, np.zeros((16, 64), np.uint8))
    for read in (data.read, data.read_label):
        with pytest.raises(
            ValueError, match=r"image .* is 64x32 .*labelIds.png is 64x16"
        ):
            read(1)
    ids = np.full((32, 64), 34, np.uint16)
    ids[0] = 300
    write(label, ids)
    assert (data.read(1)[1] == -1).all()
    label.write_text("no picture")
    with pytest.raises(OSError, match="cannot read label .*labelIds.png"):
        data.read_label(1)


def test_check(tmp_path):
    text = str(datasets.check("cityscapes27", make_cityscapes(tmp_path)))
    assert "[MISS] train leftImg8bit: 4 of 2975" in text
    assert "[MISS] val gtFine: 0 of 500" in text
    assert "of 14875 (optional: python -m uss_utils data prepare cityscapes27)" in text
    assert "next step: Cityscapes needs a login" in text


def test_check_of_19_classes(tmp_path):
    text = str(datasets.check("cityscapes19", make_cityscapes(tmp_path)))
    assert text.startswith("cityscapes19: ")
    assert "[MISS] train leftImg8bit: 4 of 2975" in text and "crops" not in text
    assert "next step: Cityscapes needs a login" in text


def test_check_finds_bad_files(tmp_path):
    make_cityscapes(tmp_path)
    label = tmp_path / f"gtFine/train/aachen/{FRAME}_gtFine_labelIds.png"
    write(label, np.full((8, 8), 7, np.uint8))
    text = str(datasets.check("cityscapes27", tmp_path))
    assert "[FAIL] sizes differ" in text and FRAME in text
    label.write_bytes(b"")
    assert "[FAIL] cannot read label" in str(datasets.check("cityscapes27", tmp_path))
    label.unlink()
    assert "[FAIL] 1 of 4 frames" in str(datasets.check("cityscapes27", tmp_path))
