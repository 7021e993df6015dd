"""COCO-Stuff: layout, lists, the rule of the list, and what is said about bad files."""

import hashlib

import numpy as np
import pytest
from PIL import Image

from tests.datasets.benchmark_files import make_coco, write
from uss_utils import datasets
from uss_utils.datasets import cocostuff
from uss_utils.datasets.cocostuff import CocoStuff, curate, find_root, is_curated

NAMES = ["000000000025", "000000000139"]


def test_items_are_the_listed_ones_with_27_classes(tmp_path):
    make_coco(tmp_path, names=(139, 25, 7))
    path = tmp_path / "curated/val2017/Coco164kFull_Stuff_Coarse_7.txt"
    path.write_text("\n".join(NAMES[::-1]))
    data = datasets.load("cocostuff27", "val", tmp_path)
    assert [data.item_name(i) for i in range(len(data))] == NAMES[::-1]
    image, label = data.read(0)
    assert image.shape == (40, 48, 3) and image.dtype == np.uint8
    # Fine ids 0, 105, 255 and 12 are person, sky, unlabelled and stop sign.
    assert label[[0, 0, -1, -1], [0, -1, 0, -1]].tolist() == [9, 23, -1, 8]
    assert data.classes[9] == "person" and data.n_classes == 27
    assert data.palette.shape == (27, 3)


def test_size_cuts_the_centre_with_the_chosen_resampling(tmp_path):
    make_coco(tmp_path)
    for resample in ("nearest", "bilinear"):
        options = {"size": 32, "resample": resample}
        data = datasets.load("cocostuff27", "val", tmp_path, **options)
        image, label = data.batch([0, 1])
        assert image.shape == (2, 3, 32, 32) and label.shape == (2, 32, 32)
        assert f"{resample} images" in data.transform.describe()


@pytest.mark.parametrize("place", ["", "cocostuff", "cocostuff27", "COCO-Stuff"])
def test_root_may_be_a_folder_above(tmp_path, place, monkeypatch):
    make_coco(tmp_path / place)
    assert len(CocoStuff("val", tmp_path)) == 2
    monkeypatch.setenv("USS_DATA", str(tmp_path))
    if place:
        assert find_root() == tmp_path / place


def test_crops_of_several_sets_beside_each_other_do_not_mislead(tmp_path):
    make_coco(tmp_path / "cocostuff")
    (tmp_path / "cropped/cocostuff27_five_crop_0.5").mkdir(parents=True)
    (tmp_path / "images").mkdir()
    assert find_root(tmp_path) == tmp_path / "cocostuff"


def test_for_training_the_longer_list_goes_first(tmp_path):
    make_coco(tmp_path, "train")
    longer = tmp_path / "curated/train2017/Coco164kFull_Stuff_Coarse.txt"
    longer.write_text(NAMES[1] + "\n")
    assert len(CocoStuff("train", tmp_path)) == 1
    text = str(datasets.check("cocostuff27", tmp_path))
    assert "[OK]   train list Coco164kFull_Stuff_Coarse.txt: 1 of 1" in text
    assert "five crops of train, images: 0 of 5 " in text


def test_the_cameras_tag_is_not_applied(tmp_path):
    make_coco(tmp_path)
    exif = Image.Exif()
    exif[0x0112] = 6
    path = tmp_path / "images/val2017" / f"{NAMES[0]}.jpg"
    Image.open(path).save(path, exif=exif)
    assert CocoStuff("val", tmp_path).read(0)[0].shape == (40, 48, 3)


# ----------------------------------------------------------------- rule of the list


@pytest.mark.parametrize(
    ("height", "width", "stuff", "kept"),
    [
        (360, 360, 0.75, True),
        (360, 400, 0.7499, False),
        (359, 400, 1.0, False),
        (400, 359, 1.0, False),
    ],
)
def test_rule(tmp_path, height, width, stuff, kept):
    label = np.zeros(height * width, np.uint8)
    n = int(stuff * label.size)
    label[:n] = np.resize([91, 105, 181], n)  # stuff: textile, sky, solid
    label[n:] = np.resize([0, 90, 255], label.size - n)
    path = write(tmp_path / "a.png", label.reshape(height, width))
    assert is_curated(path) is kept


def all_of(root, monkeypatch, split="val"):
    """A complete set of four images: two meet the rule."""
    make_coco(root, split, names=(4, 2), lists=False)
    big = {"height": 360, "width": 360, "ids": (105, 105, 91, 0)}
    make_coco(root, split, names=(3, 1), lists=False, **big)
    monkeypatch.setitem(cocostuff.IMAGES, split, 4)


def test_missing_list_is_made_from_the_labels_once(tmp_path, monkeypatch, capsys):
    all_of(tmp_path, monkeypatch)
    data = CocoStuff("val", tmp_path)
    assert [data.item_name(i) for i in range(2)] == ["000000000001", "000000000003"]
    said = capsys.readouterr().out
    assert "is missing: making it from 4 labels of val" in said
    assert "2 images of val (published are 2175)" in said
    written = cocostuff.list_file(tmp_path, "val").read_bytes()
    assert written == b"000000000001\n000000000003\n"
    assert len(CocoStuff("val", tmp_path)) == 2
    assert capsys.readouterr().out == ""
    digest = hashlib.sha256(written).hexdigest()
    monkeypatch.setitem(cocostuff.LIST_SHA256, "val", digest)
    curate(tmp_path, "val", progress=False)
    assert "(the published list)" in capsys.readouterr().out


def test_no_list_is_made_from_half_of_the_labels(tmp_path):
    make_coco(tmp_path, lists=False)
    match = r"only be made from complete labels: .* holds 2 of 5000\. .*data download"
    with pytest.raises(FileNotFoundError, match=match):
        CocoStuff("val", tmp_path)
    assert cocostuff.list_file(tmp_path, "val") is None


# ------------------------------------------------------------------------ bad input


def test_absent_set(tmp_path):
    match = r"no COCO-Stuff at .*nowhere.*data download cocostuff27.*no login.*DATA_ROO"
    with pytest.raises(FileNotFoundError, match=match):
        CocoStuff("val", tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="holds none of the folders images/tra"):
        CocoStuff("val", tmp_path)
    with pytest.raises(ValueError, match="has no split 'test'; known: train, val"):
        datasets.load("cocostuff27", "test", tmp_path)


@pytest.mark.parametrize(("kind", "end"), [("images", "jpg"), ("annotations", "png")])
def test_half_a_set(tmp_path, kind, end):
    make_coco(tmp_path)
    (tmp_path / kind / "val2017" / f"{NAMES[1]}.{end}").unlink()
    match = (
        rf"1 of 2 {kind} of val are missing, first .*{NAMES[1]}.{end}\. Complete the"
    )
    with pytest.raises(FileNotFoundError, match=match):
        CocoStuff("val", tmp_path)


def test_label_of_another_size(tmp_path):
    make_coco(tmp_path)
    label = tmp_path / "annotations/val2017" / f"{NAMES[0]}.png"
    write(label, np.zeros((48, 40), np.uint8))
    data = CocoStuff("val", tmp_path)
    for read in (data.read, data.read_label):
        with pytest.raises(ValueError, match=rf"{NAMES[0]}.jpg is 48x40 .*is 40x48"):
            read(0)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_unknown_fine_ids_are_ignored(tmp_path, dtype):
    make_coco(tmp_path)
    ids = np.zeros((40, 48), dtype)
    ids[0], ids[1] = 182, 60_000 if dtype == np.uint16 else 254
    write(tmp_path / "annotations/val2017" / f"{NAMES[0]}.png", ids)
    label = CocoStuff("val", tmp_path).read(0)[1]
    assert (label[:2] == -1).all() and (label[2:] == 9).all()


def test_unreadable_files(tmp_path):
    make_coco(tmp_path)
    label = tmp_path / "annotations/val2017" / f"{NAMES[0]}.png"
    label.write_bytes(label.read_bytes()[:60])
    data = CocoStuff("val", tmp_path)
    for read in (data.read, data.read_label):
        with pytest.raises(OSError, match=rf"cannot read label .*{NAMES[0]}.png"):
            read(0)
    image = tmp_path / "images/val2017" / f"{NAMES[1]}.jpg"
    image.write_bytes(image.read_bytes()[:200])
    with pytest.raises(OSError, match=rf"cannot read image .*{NAMES[1]}.jpg"):
        data.read(1)


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("", "holds nothing where image ids of 12 digits"),
        ("000000000025.jpg\n", "holds '000000000025.jpg' where image ids"),
        ("25\n", "holds '25'"),
        (f"{NAMES[0]}\n{NAMES[0]}\n", "names an image twice"),
        ("\x00\x01", "12 digits"),
    ],
)
def test_bad_lists(tmp_path, text, match):
    make_coco(tmp_path)
    (tmp_path / "curated/val2017/Coco164kFull_Stuff_Coarse_7.txt").write_text(text)
    with pytest.raises(ValueError, match=match):
        CocoStuff("val", tmp_path)
    assert match.split()[0] in str(datasets.check("cocostuff27", tmp_path))


def test_check_says_what_is_missing_and_how_to_get_it(tmp_path):
    report = datasets.check("cocostuff27", make_coco(tmp_path))
    text = str(report)
    assert not report.complete
    assert "[MISS] train images: 0 of 118287" in text
    assert "[MISS] val annotations: 2 of 5000" in text
    assert "data download cocostuff27` (20 GB, no login" in text
    assert "of 248145 (optional: python -m uss_utils data prepare cocostuff27)" in text
