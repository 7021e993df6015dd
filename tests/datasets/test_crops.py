"""Stored five crops: the authors' format, restarts, and refusals."""

import json
import signal
import subprocess
import sys
from io import BytesIO

import numpy as np
import pytest
import torch
from PIL import Image

from tests.datasets.benchmark_files import make_cityscapes, make_coco, write
from uss_utils import datasets
from uss_utils.datasets import crops
from uss_utils.datasets.cityscapes import Cityscapes
from uss_utils.datasets.cocostuff import CocoStuff
from uss_utils.datasets.transforms import five_crops


def cut(root, **options):
    options = {"processes": 1, "progress": False, **options}
    return crops.write_crops(Cityscapes("train", root), root, **options)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Crops of four frames, made without interruption."""
    root = make_cityscapes(tmp_path_factory.mktemp("whole"))
    cut(root)
    return root


def content(root) -> dict[str, bytes]:
    folder = crops.crops_folder(root, "cityscapes27")
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    return {str(p.relative_to(folder)): p.read_bytes() for p in files}


def test_files_are_those_of_the_authors(whole):
    folder = whole / "cropped" / "cityscapes27_five_crop_0.5"
    frames = Cityscapes("train", whole)
    for item in range(4):
        image, label = frames.read(item)
        expected = five_crops(image.transpose(2, 0, 1))
        labels = five_crops(label)
        for crop in range(5):
            stored = folder / f"img/train/{5 * item + crop}.jpg"
            buffer = BytesIO()
            picture = Image.fromarray(expected[crop].transpose(1, 2, 0).copy())
            picture.save(buffer, "JPEG")  # Pillow's default is quality 75
            assert stored.read_bytes() == buffer.getvalue()
            with Image.open(folder / f"label/train/{5 * item + crop}.png") as file:
                assert file.mode == "L"
                assert np.array_equal(np.array(file), labels[crop] + 1)
    assert len(content(whole)) == 41  # and the record


def test_reader(whole):
    options = {"size": 16, "resample": "nearest"}
    data = datasets.load("cityscapes27", "train", whole, crops="five", **options)
    assert len(data) == 20 and data.has_labels and data.n_classes == 27
    image, label = data.batch(range(20))
    assert image.shape == (20, 3, 16, 16)
    assert torch.equal(data.labels(range(20)), label)
    raw = data.read(7)[1]
    assert np.array_equal(raw, five_crops(Cityscapes("train", whole).read(1)[1])[2])
    assert (data.read(5)[1][:2] == -1).all()  # ignored in the original too
    assert data.item_name(7) == "7" and data[-1]["name"] == "19"
    assert (
        len(datasets.load("cityscapes27", "train", whole, crops="five", limit=3)) == 3
    )
    assert len(datasets.load("cityscapes27", "train", whole, crops=None)) == 4


def test_a_root_with_nothing_but_crops_can_be_read(whole, tmp_path):
    (tmp_path / "cropped").symlink_to(whole / "cropped")
    assert len(datasets.load("cityscapes27", "train", tmp_path, crops="five")) == 20


def test_photographs_of_different_sizes(tmp_path):
    make_coco(tmp_path, names=(25,), height=41, width=53)
    make_coco(tmp_path, names=(25, 139), height=30, width=20)
    crops.write_crops(CocoStuff("val", tmp_path), tmp_path, processes=1, progress=False)
    data = datasets.load("cocostuff27", "val", tmp_path, crops="five", size=8)
    assert data.batch(range(10))[0].shape == (10, 3, 8, 8)
    assert data.read(0)[0].shape == (15, 10, 3)


def test_only_missing_files_are_made_again(whole, tmp_path):
    root = make_cityscapes(tmp_path)
    folder = cut(root)
    (folder / "img/train/3.jpg").unlink()
    (folder / "label/train/12.png").write_bytes(b"")  # as after a power cut
    stamps = {p: p.stat().st_mtime_ns for p in folder.glob("*/train/*")}
    cut(root)
    assert content(root) == content(whole)
    changed = [p for p, stamp in stamps.items() if p.stat().st_mtime_ns != stamp]
    assert [p.name for p in changed] == ["12.png"]


KILLED = """
import os, signal, sys
from pathlib import Path
from uss_utils.datasets import crops
from uss_utils.datasets.cityscapes import Cityscapes

plain = crops.atomic_file
count = 0

def killing(path, **options):
    global count
    count += path.suffix != ".json"
    if count == 14:
        manager = plain(path, **options)
        manager.__enter__().write_bytes(b"half")
        os.kill(os.getpid(), signal.SIGKILL)
    return plain(path, **options)

crops.atomic_file = killing
root = Path(sys.argv[1])
crops.write_crops(Cityscapes("train", root), root, processes=1, progress=False)
"""


def test_a_killed_run_is_continued_with_the_same_files(whole, tmp_path):
    root = make_cityscapes(tmp_path)
    done = subprocess.run([sys.executable, "-c", KILLED, str(root)])
    assert done.returncode == -signal.SIGKILL
    there = content(root)
    assert len([name for name in there if name.startswith(("img", "label"))]) == 14
    assert any(".tmp-" in name for name in there)
    match = r"no complete five crops .*of 20 each.*data prepare cityscapes27 --split tr"
    with pytest.raises(FileNotFoundError, match=match):
        datasets.load("cityscapes27", "train", root, crops="five")
    cut(root)
    assert content(root) == content(whole)


def test_several_processes_make_the_same_files(whole, tmp_path):
    root = make_cityscapes(tmp_path)
    cut(root, processes=2)
    assert content(root) == content(whole)


def test_crops_of_other_images_are_refused(tmp_path):
    root = make_cityscapes(tmp_path)
    folder = cut(root)
    make_cityscapes(root, cities=("ulm",))
    with pytest.raises(
        ValueError, match="another list of images .4 items there, 6 now"
    ):
        cut(root)
    (folder / "train.json").unlink()
    with pytest.raises(ValueError, match="of unknown origin .train.json is missing"):
        cut(root)
    (folder / "train.json").write_text("{")
    with pytest.raises(ValueError, match="train.json is damaged"):
        cut(root)


def test_a_file_too_many_and_a_file_that_cannot_be_read(tmp_path):
    root = make_cityscapes(tmp_path)
    folder = cut(root)
    (folder / "img/train/20.jpg").write_bytes(b"x")
    with pytest.raises(
        ValueError, match="img/train holds 21 files, but 4 images make 20"
    ):
        cut(root)
    with pytest.raises(FileNotFoundError, match="21 images and 20 labels of 20 each"):
        datasets.load("cityscapes27", "train", root, crops="five")
    label = next((root / "gtFine/train/aachen").glob("*0_gtFine_labelIds.png"))
    label.write_bytes(b"x")
    (folder / "img/train/20.jpg").unlink()
    (folder / "img/train/1.jpg").unlink()
    with pytest.raises(OSError, match="cannot read label .*aachen"):
        cut(root, processes=2)


def test_not_prepared_and_unknown_crops(whole, tmp_path):
    match = (
        r"no complete five crops of cocostuff27 val .*0 images and 0 labels\).*`pyth"
    )
    with pytest.raises(FileNotFoundError, match=match):
        datasets.load("cocostuff27", "val", make_coco(tmp_path), crops="five")
    with pytest.raises(ValueError, match="unknown crops 'ten'; known: five"):
        datasets.load("cityscapes27", "train", whole, crops="ten")


def test_labels_beyond_the_classes_are_refused(tmp_path):
    root = make_cityscapes(tmp_path)
    folder = cut(root)
    write(folder / "label/train/0.png", np.full((16, 32), 28, np.uint8))
    data = datasets.load("cityscapes27", "train", root, crops="five")
    with pytest.raises(
        ValueError, match=r"label id 28 .*ids 1\.\.27 and 0 \(ignored\)"
    ):
        data.read(0)


def test_the_record_says_what_the_crops_were_made_from(whole):
    folder = crops.crops_folder(whole, "cityscapes27")
    record = json.loads((folder / "train.json").read_text())
    assert record["items"] == 4 and record["complete"] and record["quality"] == 75
