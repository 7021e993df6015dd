"""Image folders: layouts, class names, and every way they can be broken."""

import shutil
import struct
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image

from uss_utils import datasets
from uss_utils.datasets.folder import FolderDataset
from uss_utils.datasets.transforms import Transform

RNG = np.random.default_rng(0)


def add(folder, name, size=(6, 8), ids=None):
    """Write an image, or a label if ids are given (a number or an array)."""
    folder.mkdir(parents=True, exist_ok=True)
    if ids is None:
        array = RNG.integers(0, 256, (*size, 3), dtype=np.uint8)
    else:
        array = np.broadcast_to(np.asarray(ids, np.uint8), size)
    Image.fromarray(np.array(array)).save(folder / name)
    return array


@pytest.fixture
def labelled(tmp_path):
    """Two images with labels 0..3 and some ignored pixels."""
    for i, name in enumerate(("b", "a")):
        add(tmp_path / "images", f"{name}.jpg")
        label = np.full((6, 8), i)
        label[0], label[1] = 255, 3 - i
        add(tmp_path / "labels", f"{name}.png", ids=label)
    return tmp_path


def test_flat_folder_of_photographs(tmp_path):
    for name in ("c.JPG", "a.png", "B.jpeg", "d.webp", "e.tif", "f.bmp"):
        add(tmp_path, name)
    (tmp_path / "notes.txt").write_text("not an image")
    data = FolderDataset(tmp_path)
    names = [data.item_name(i) for i in range(len(data))]
    assert names == ["B", "a", "c", "d", "e", "f"]
    assert not data.has_labels
    image, label = data.batch(range(6))
    assert image.shape == (6, 3, 6, 8)
    assert (label == -1).all()
    assert data.classes == ("class 0",)


@pytest.mark.parametrize("images", ["imgs", "images"])
def test_images_and_labels(tmp_path, images):
    add(tmp_path / images, "x.jpg")
    add(tmp_path / "labels", "x.png", ids=2)
    data = FolderDataset(tmp_path)
    assert data.has_labels
    assert data.n_classes == 3
    assert (data[0]["label"] == 2).all()


def test_splits(tmp_path):
    for split, ids in (("train", 0), ("val", 4)):
        add(tmp_path / "imgs" / split, f"{split}.png")
        add(tmp_path / "labels" / split, f"{split}.png", ids=ids)
    train, val = (FolderDataset(tmp_path, split) for split in ("train", "val"))
    assert [d.item_name(0) for d in (train, val)] == ["train", "val"]
    assert train.n_classes == val.n_classes == 5  # counted over both splits
    with pytest.raises(FileNotFoundError, match="no split 'test'.*there: train, val"):
        FolderDataset(tmp_path, "test")


def test_a_folder_without_splits_is_one_set(labelled):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(FolderDataset(labelled, "train")) == 2
        assert len(FolderDataset(labelled)) == 2
    with pytest.warns(UserWarning, match="'val' is the same images as 'train'"):
        assert len(FolderDataset(labelled, "val")) == 2


def test_ignored_pixels_and_counted_classes(labelled):
    data = FolderDataset(labelled)
    assert data.n_classes == 4
    label = data.read(0)[1]
    assert data.item_name(0) == "a"
    assert label[:3, 0].tolist() == [-1, 2, 1]
    assert label.dtype == np.int64


def test_class_names(labelled):
    names = ["sky", "ground", "tree", "car", "person"]
    data = FolderDataset(labelled, classes=names)
    assert data.classes == tuple(names)
    assert data.palette.shape == (5, 3)
    assert FolderDataset(labelled, classes=7).n_classes == 7
    (labelled / "classes.txt").write_text("sky\n\nground \ntree\ncar\n")
    assert FolderDataset(labelled).classes == ("sky", "ground", "tree", "car")


def test_another_ignore_id(labelled):
    data = FolderDataset(labelled, ignore=3, classes=3)
    with pytest.raises(ValueError, match=r"label id 255 in .*a.png.*\(8 pixels\)"):
        data.read(0)
    assert FolderDataset(labelled, ignore=3).n_classes == 256
    label = FolderDataset(labelled, ignore=2, classes=256).read(0)[1]
    assert label[:3, 0].tolist() == [255, -1, 1]


def test_classes_that_make_no_sense(labelled):
    with pytest.raises(ValueError, match="at least one class"):
        FolderDataset(labelled, classes=[])


def test_no_data_root(tmp_path):
    with pytest.raises(FileNotFoundError, match="no data set folder at .*--data-root"):
        FolderDataset(tmp_path / "absent")


def test_default_root_is_under_the_data_folder(labelled, tmp_path, monkeypatch):
    monkeypatch.setenv("USS_DATA", str(tmp_path / "mine"))
    with pytest.raises(FileNotFoundError, match=r"no data set folder at .*mine.folder"):
        datasets.load("folder")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "folder").symlink_to(labelled)
    (labelled / "classes.txt").write_text("a\nb\nc\nd\n")
    assert datasets.load("folder").classes == ("a", "b", "c", "d")


def test_empty_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no images in .*\.jpg .*not searched"):
        FolderDataset(tmp_path)
    (tmp_path / "imgs").mkdir()
    with pytest.raises(FileNotFoundError, match="no images in .*imgs"):
        FolderDataset(tmp_path)


def test_images_hidden_in_other_subfolders(tmp_path):
    add(tmp_path / "holiday", "a.jpg")
    with pytest.raises(FileNotFoundError, match="other subfolders are not searched"):
        FolderDataset(tmp_path)


def test_label_without_image(labelled):
    add(labelled / "labels", "c.png", ids=0)
    match = r"label without image: .*c\.png .*named c in .*\(1 of 3 labels\)"
    with pytest.raises(FileNotFoundError, match=match):
        FolderDataset(labelled)


def test_image_without_label(labelled):
    add(labelled / "images", "c.jpg")
    match = r"image without label: .*c\.jpg has no c\.png in .*\(1 of 3 images\)"
    with pytest.raises(FileNotFoundError, match=match):
        FolderDataset(labelled)


def test_split_without_labels(tmp_path):
    for split in ("train", "val"):
        add(tmp_path / "imgs" / split, "x.png")
    add(tmp_path / "labels" / "train", "x.png", ids=0)
    assert len(FolderDataset(tmp_path, "train")) == 1
    with pytest.raises(FileNotFoundError, match=r"imgs.val, but no labels in .*val"):
        FolderDataset(tmp_path, "val")


def test_sizes_that_differ(labelled):
    add(labelled / "labels", "a.png", size=(8, 6), ids=0)
    match = r"sizes differ: image .*a\.jpg is 8x6 pixels .* label .*a\.png is 6x8"
    data = FolderDataset(labelled)
    assert data.read(1)[0].shape == (6, 8, 3)
    with pytest.raises(ValueError, match=match):
        data.read(0)


def test_truncated_image_and_label(labelled):
    data = FolderDataset(labelled)
    for folder, kind in (("labels", "label"), ("images", "image")):
        path = next((labelled / folder).glob("a.*"))
        path.write_bytes(path.read_bytes()[:45])
        with pytest.raises(OSError, match=f"cannot read {kind} .*{path.name}"):
            data.batch([0, 1])


def test_label_id_out_of_range(labelled):
    match = (
        r"label id 3 in .*b\.png is out of range \(8 pixels\): folder has 3 cl.*0\.\.2"
    )
    with pytest.raises(ValueError, match=match):
        FolderDataset(labelled, classes=3)[1]


def test_colour_label(labelled):
    add(labelled / "labels", "a.png")
    with pytest.raises(ValueError, match="a.png is a colour picture.*class ids"):
        FolderDataset(labelled)


def test_lossy_label(labelled):
    (labelled / "labels" / "a.png").unlink()
    add(labelled / "labels", "a.jpg", ids=0)
    with pytest.raises(ValueError, match="label .*a.jpg has a lossy format.*8-bit PNG"):
        FolderDataset(labelled, classes=4)


def test_names_that_clash(labelled):
    add(labelled / "images", "a.png")
    for _ in range(2):
        with pytest.raises(ValueError, match="a.jpg and a.png in .*must be unique"):
            FolderDataset(labelled)
        # Without labels as well: results are stored by name.
        shutil.rmtree(labelled / "labels", ignore_errors=True)


def test_mixed_sizes_need_a_transform(tmp_path):
    add(tmp_path, "a.png", size=(6, 8))
    add(tmp_path, "b.png", size=(8, 6))
    data = FolderDataset(tmp_path)
    with pytest.raises(
        ValueError, match=r"a is 6x8, b is 8x6\. Give .*\"resize\".*cen"
    ):
        data.batch([0, 1])
    for transform in (Transform("resize", (16, 24)), Transform.sane((16, 24))):
        image, _ = data.with_transform(transform).batch([0, 1])
        assert image.shape == (2, 3, 16, 24)


def test_fingerprint_follows_the_bytes_of_the_files(labelled):
    first = FolderDataset(labelled).fingerprint()
    assert FolderDataset(labelled).fingerprint() == first
    before = (labelled / "images" / "a.jpg").read_bytes()
    add(labelled / "images", "a.jpg")
    changed = FolderDataset(labelled).fingerprint()
    assert changed != first
    (labelled / "images" / "a.jpg").write_bytes(before)
    assert FolderDataset(labelled).fingerprint() == first
    add(labelled / "labels", "a.png", ids=3)
    assert FolderDataset(labelled).fingerprint() != first
    (labelled / "images" / "a.jpg").rename(labelled / "images" / "z.jpg")
    (labelled / "labels" / "a.png").rename(labelled / "labels" / "z.png")
    assert FolderDataset(labelled).fingerprint() not in (first, changed)


def test_check_names_every_problem(labelled):
    assert datasets.check("folder", labelled).complete
    add(labelled / "labels", "a.png", size=(8, 6), ids=0)
    (labelled / "images" / "b.jpg").write_text("no image")
    report = datasets.check("folder", labelled)
    assert not report.complete
    text = str(report)
    for part in ("all images: 2", "labels: 2 of 2", "sizes differ", "b.jpg", "next"):
        assert part in text


def test_check_of_missing_partners_and_folders(labelled, tmp_path):
    add(labelled / "images", "c.jpg")
    assert "image without label" in str(datasets.check("folder", labelled))
    report = datasets.check("folder", tmp_path / "absent")
    assert not report.complete
    assert "no data set folder at" in str(report)


def test_check_shows_a_few_of_many_problems(tmp_path):
    tmp_path.joinpath("imgs").mkdir()
    for i in range(9):
        (tmp_path / "imgs" / f"{i}.jpg").write_text("no image")
    assert "[FAIL] ... and 4 more" in str(datasets.check("folder", tmp_path))


def png_header(width, height):
    """The beginning of a PNG file, which claims some size."""
    fields = struct.pack(">4sIIBBBBB", b"IHDR", width, height, 8, 2, 0, 0, 0)
    crc = struct.pack(">I", zlib.crc32(fields))
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + fields + crc


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("empty.jpg", b""),
        ("cut.png", png_header(8, 6)[:20]),
        ("huge.png", png_header(60_000, 60_000)),
        ("cut.webp", b"RIFF1234WEBPVP8 "),
    ],
)
def test_check_names_files_whose_header_is_damaged(tmp_path, name, content):
    """Pillow answers each in its own way, most of them without the file's name."""
    (tmp_path / name).write_bytes(content)
    report = datasets.check("folder", tmp_path)
    assert not report.complete
    assert f"[FAIL] cannot read picture {tmp_path / name}: " in str(report)


def test_check_understands_turned_photographs(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    (tmp_path / "imgs").mkdir()
    Image.new("RGB", (8, 6)).save(tmp_path / "imgs" / "a.jpg", exif=exif)
    add(tmp_path / "labels", "a.png", size=(8, 6), ids=0)
    assert datasets.check("folder", tmp_path).complete
    assert FolderDataset(tmp_path)[0]["label"].shape == (8, 6)
