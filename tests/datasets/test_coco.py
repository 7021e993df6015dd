"""MSCOCO: images without labels, both layouts, lists, what is said about bad files."""

import pytest
import torch
from PIL import Image

from tests.datasets.benchmark_files import make_coco, noise, write
from uss_utils import datasets
from uss_utils.datasets import coco, cocostuff
from uss_utils.datasets.coco import Coco, find_root

NAMES = ["000000000009", "000000000025", "000000000030"]


def make(root, split="train2017", below="images"):
    for i, name in enumerate(NAMES):
        write(root / below / split / f"{name}.jpg", noise(20 + i, 30, 3, i))
    return root


@pytest.mark.parametrize("below", ["images", ""])
def test_all_images_without_labels(tmp_path, below):
    data = datasets.load("coco", "train", make(tmp_path, below=below))
    assert [data.item_name(i) for i in range(len(data))] == NAMES
    image, label = data.read(1)
    assert image.shape == (21, 30, 3) and label is None
    assert not data.has_labels and data.n_classes == 1
    squeezed = datasets.load("coco", "train", tmp_path, size=(16, 24), limit=2)
    images, labels = squeezed.batch([0, 1])
    assert images.shape == (2, 3, 16, 24) and (labels == -1).all()


def test_images_of_cocostuff_are_used(tmp_path, monkeypatch):
    make_coco(tmp_path / "cocostuff", "train")
    monkeypatch.setenv("USS_DATA", str(tmp_path))
    assert find_root() == tmp_path / "cocostuff"
    assert len(datasets.load("coco")) == 2
    make(tmp_path / "coco", below="")
    (tmp_path / "cocostuff" / "images").rename(tmp_path / "other")
    assert find_root() == tmp_path / "coco" and find_root(tmp_path) == find_root()
    assert len(datasets.load("coco")) == 3


@pytest.mark.parametrize(
    "line",
    [
        "{}",
        "train2017/{}.jpg",
        "/images/train2017/{0}.jpg /labels/{0}.png /seginst/rf_0.25_48/{0}.png",
    ],
)
def test_a_list_names_the_images(tmp_path, line):
    make(tmp_path)
    path = tmp_path / "train.txt"
    path.write_text("".join(line.format(name) + "\n" for name in NAMES[:0:-1]))
    data = datasets.load("coco", "train", tmp_path, list_file=path)
    assert [data.item_name(i) for i in range(len(data))] == NAMES[:0:-1]
    assert len(Coco("train", tmp_path, list_file=str(path))) == 2


def test_grey_images_and_the_cameras_tag(tmp_path):
    make(tmp_path)
    path = tmp_path / "images/train2017" / f"{NAMES[0]}.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.open(path).convert("L").save(path, exif=exif)
    image = Coco("train", tmp_path).read_image(0)
    assert image.shape == (20, 30, 3) and (image[..., 0] == image[..., 2]).all()


def test_reading_one_by_one_and_batches_agree(tmp_path):
    data = datasets.load("coco", "train", make(tmp_path), size=16)
    assert torch.equal(data.batch([2])[0][0], data[2]["image"])
    assert (data.read_label(2) == -1).all() and data.read_label(2).shape == (22, 30)


# ------------------------------------------------------------------------ bad input


def test_what_is_absent(tmp_path):
    match = r"no MSCOCO at .*nowhere.*data download coco` .*no login.*DATA_ROOT"
    with pytest.raises(FileNotFoundError, match=match):
        Coco("train", tmp_path / "nowhere")
    make(tmp_path)
    with pytest.raises(FileNotFoundError, match="no images of val in .*images/val2017"):
        Coco("val", tmp_path)
    with pytest.raises(FileNotFoundError, match="no list of images at .*none.txt; lea"):
        Coco("train", tmp_path, list_file=tmp_path / "none.txt")
    path = tmp_path / "train.txt"
    path.write_text(f"{NAMES[0]}\n000000000031\n")
    match = "1 of 2 images of train are missing, first .*000000000031.jpg. Complete"
    with pytest.raises(FileNotFoundError, match=match):
        Coco("train", tmp_path, list_file=path)
    for text, match in (
        ("", "is empty"),
        (f"{NAMES[0]}\n" * 2, "names an image twice"),
    ):
        path.write_text(text)
        with pytest.raises(ValueError, match=match):
            Coco("train", tmp_path, list_file=path)
    with pytest.raises(ValueError, match="'coco' has no option 'crops'"):
        datasets.load("coco", "train", tmp_path, crops="five")
    with pytest.raises(ValueError, match="'coco' has no split 'test'; known: train, v"):
        datasets.load("coco", "test", tmp_path)


def test_check(tmp_path, monkeypatch):
    report = datasets.check("coco", make(tmp_path))
    text = str(report)
    assert not report.complete
    assert "[MISS] train images: 3 of 118287" in text
    assert "val images: 0 of 5000 (optional: python -m uss_utils data down" in text
    assert "data download coco --split train` (19 GB, no login)" in text
    monkeypatch.setitem(cocostuff.IMAGES, "train", 3)
    assert datasets.check("coco", tmp_path).complete
    (coco.image_folder(tmp_path, "train") / f"{NAMES[2]}.jpg").write_bytes(b"no image")
    assert f"[FAIL] cannot read picture {tmp_path}" in str(
        datasets.check("coco", tmp_path)
    )
