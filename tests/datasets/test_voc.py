"""PASCAL VOC: two layouts, three splits, SBD's labels, and what is said about gaps."""

import numpy as np
import pytest
import scipy.io
from PIL import Image

from tests.datasets.benchmark_files import (
    SBD_ONLY,
    VOC_IDS,
    make_sbd,
    make_voc,
    voc_label,
    write,
)
from uss_utils import datasets, preparation
from uss_utils.datasets import sbd, voc
from uss_utils.datasets.labels import voc_palette
from uss_utils.datasets.voc import Voc, find_root, saliency_dir

QUIET = {"processes": 1, "progress": False}
AUG = sorted((*VOC_IDS["train"], *SBD_ONLY))


@pytest.mark.parametrize("layout", ["official", "release"])
@pytest.mark.parametrize("split", ["train", "val"])
def test_palette_files_are_read_as_ids(tmp_path, layout, split):
    data = datasets.load("voc", split, make_voc(tmp_path, layout))
    assert tuple(data.item_name(i) for i in range(len(data))) == VOC_IDS[split]
    image, label = data.read(0)
    assert image.shape == (24, 30, 3) and image.dtype == np.uint8
    assert np.array_equal(
        label, np.where(voc_label() == 255, -1, voc_label().astype(int))
    )
    assert np.array_equal(data.read_label(0), label)
    assert data.n_classes == 21 and data.classes[15] == "person"
    assert np.array_equal(data.palette, voc_palette(21))


def test_trainaug_of_the_release(tmp_path):
    data = datasets.load("voc", "trainaug", make_voc(tmp_path, "release"))
    assert sorted(data.item_name(i) for i in range(len(data))) == AUG
    assert data.pairs[0][1].parent.name == "SegmentationClassAug"


def test_probe_geometry(tmp_path):
    root = make_voc(tmp_path)
    data = datasets.load("voc", "val", root, size=(64, 64), resample="cubic")
    image, label = data.batch([0])
    assert image.shape == (1, 3, 64, 64) and label.shape == (1, 64, 64)
    assert "cubic images" in data.transform.describe()
    other = datasets.load("voc", "val", root, size=(64, 64))
    assert data.fingerprint() != other.fingerprint()


@pytest.mark.parametrize(
    "place",
    ["", "voc", "VOC2012", "VOCdevkit/VOC2012", "voc/VOCdevkit/VOC2012"],
)
def test_root_may_be_a_folder_above(tmp_path, place, monkeypatch):
    make_voc(tmp_path / place)
    assert find_root(tmp_path) == tmp_path / place
    monkeypatch.setenv("USS_DATA", str(tmp_path))
    if place.startswith(("voc", "VOC2012")):
        assert find_root() == tmp_path / place


def test_lists_with_two_columns(tmp_path):
    root = make_voc(tmp_path, "release")
    (root / "sets/trainaug.txt").unlink()
    lines = [f"/JPEGImages/{n}.jpg /SegmentationClassAug/{n}.png\n" for n in AUG]
    (root / "sets/train_aug.txt").write_text("".join(lines) + "\n")
    data = Voc("trainaug", root)
    assert [data.item_name(i) for i in range(4)] == AUG
    (root / "sets/val.txt").write_text("2007_000033\n2007_000033\n")
    with pytest.raises(ValueError, match=r"val.txt names an image twice; replace"):
        Voc("val", root)
    (root / "sets/val.txt").write_text("\n")
    with pytest.raises(ValueError, match=r"val.txt is empty"):
        Voc("val", root)


def test_absent_set(tmp_path):
    match = "no PASCAL VOC 2012 at .*data download voc.*--data-root"
    with pytest.raises(FileNotFoundError, match=match):
        Voc("train", tmp_path)
    with pytest.raises(ValueError, match="no split 'test'; known: train, trainaug"):
        datasets.load("voc", "test", tmp_path)


def test_half_a_set(tmp_path):
    root = make_voc(tmp_path)
    (root / "JPEGImages/2007_000033.jpg").unlink()
    match = r"1 of 1 images of val are missing, first .*JPEGImages/2007_000033.jpg"
    with pytest.raises(FileNotFoundError, match=match):
        Voc("val", root)
    (root / "ImageSets/Segmentation/val.txt").unlink()
    with pytest.raises(FileNotFoundError, match="no list of val .*val.txt.*download"):
        Voc("val", root)


def test_missing_trainaug_names_the_step(tmp_path):
    root = make_voc(tmp_path / "release", "release")
    for path in (root / "SegmentationClassAug").iterdir():
        path.unlink()
    match = (
        r"4 of 4 labels of trainaug are missing.*needs the labels of SBD: "
        rf"`python -m uss_utils data download voc --data-root {root}`"
    )
    with pytest.raises(FileNotFoundError, match=match):
        Voc("trainaug", root)
    official = make_voc(tmp_path / "official")
    with pytest.raises(FileNotFoundError, match="no list of trainaug.*labels of SBD"):
        Voc("trainaug", official)


def test_bad_labels(tmp_path):
    root = make_voc(tmp_path)
    path = root / "SegmentationClass/2007_000033.png"
    data = Voc("val", root)
    write(path, np.full((24, 30), 21, np.uint8))
    with pytest.raises(ValueError, match=r"id 21 in .*ids 0..20 and 255 \(ignored\)"):
        data.read(0)
    write(path, np.zeros((24, 30, 3), np.uint8))
    with pytest.raises(ValueError, match="is a colour picture"):
        data.read(0)
    write(path, np.zeros((20, 30), np.uint8))
    with pytest.raises(ValueError, match="sizes differ: image .* is 30x24"):
        data.read_label(0)


def test_saliency_folders(tmp_path):
    root = make_voc(tmp_path, "release", saliency=("supervised",))
    data = Voc("trainaug", root)
    assert data.saliency_dir("supervised") == root / "saliency_supervised_model"
    with pytest.raises(FileNotFoundError, match=r"no unsupervised saliency .* absent"):
        saliency_dir(root, "unsupervised")
    (root / "saliency_unsupervised_model").mkdir()
    with pytest.raises(FileNotFoundError, match=r"empty.*make masks of your own"):
        data.saliency_dir("unsupervised")
    with pytest.raises(ValueError, match="kind of saliency 'both'; known: supervised"):
        data.saliency_dir("both")


# ------------------------------------------------------------------------------- SBD


@pytest.mark.parametrize("place", ["", "VOCdevkit/VOC2012"])
@pytest.mark.parametrize("processes", [1, 2])
def test_trainaug_is_sbd_and_train_without_val(tmp_path, place, processes):
    root = make_voc(tmp_path / place)
    make_sbd(tmp_path)
    target = sbd.make_trainaug(tmp_path, processes=processes, progress=False)
    assert target == root / "SegmentationClassAug"
    data = datasets.load("voc", "trainaug", tmp_path)
    assert [data.item_name(i) for i in range(len(data))] == AUG
    # VOC's own label, with its borders, where both have one.
    both, alone = AUG.index("2008_000002"), AUG.index("2010_000001")
    assert set(np.unique(data.read_label(both))) == {-1, 0, 15, 20}
    assert set(np.unique(data.read_label(alone))) == {0, 3, 12}
    times = {path: path.stat().st_mtime_ns for path in target.iterdir()}
    assert sbd.make_trainaug(tmp_path, **QUIET) == target
    assert times == {path: path.stat().st_mtime_ns for path in target.iterdir()}


def test_a_killed_conversion_is_continued(tmp_path, monkeypatch):
    root = make_voc(tmp_path)
    make_sbd(tmp_path)
    plain, seen = sbd.convert, []

    def dying(target, job):
        if len(seen) == 2:
            raise KeyboardInterrupt
        seen.append(job[0])
        plain(target, job)

    with monkeypatch.context() as patched:
        patched.setattr(sbd, "convert", dying)
        with pytest.raises(KeyboardInterrupt):
            sbd.make_trainaug(tmp_path, **QUIET)
    assert seen == AUG[:2] and not voc.list_file(root, "trainaug").exists()
    with pytest.raises(FileNotFoundError, match="no list of trainaug"):
        Voc("trainaug", root)
    (root / "SegmentationClassAug" / f"{AUG[0]}.png").write_bytes(b"")  # power cut
    kept = root / "SegmentationClassAug" / f"{AUG[1]}.png"
    before = kept.stat().st_mtime_ns
    sbd.make_trainaug(tmp_path, **QUIET)
    assert len(Voc("trainaug", root)) == 4 and kept.stat().st_mtime_ns == before
    assert sorted(p.stem for p in kept.parent.iterdir()) == AUG


def test_a_list_or_labels_from_elsewhere_are_kept(tmp_path, monkeypatch):
    root = make_voc(tmp_path, "release")
    (root / "SegmentationClassAug/2010_000001.png").unlink()
    (root / "sets/trainaug.txt").write_text("2010_000001\n2008_000003\n")
    make_sbd(tmp_path)
    sbd.make_trainaug(root, **QUIET)
    data = Voc("trainaug", root)
    assert [data.item_name(i) for i in range(2)] == ["2010_000001", "2008_000003"]
    # Complete labels make SBD itself unnecessary.
    (root / "sets/trainaug.txt").unlink()
    (tmp_path / "benchmark_RELEASE").rename(tmp_path / "gone")
    with pytest.raises(FileNotFoundError, match=r"no SBD \(cls/\*.mat.*data download"):
        sbd.make_trainaug(root, **QUIET)
    monkeypatch.setitem(voc.SPLITS, "trainaug", 4)
    sbd.make_trainaug(root, **QUIET)
    assert (root / "sets/trainaug.txt").read_text().split() == AUG


def test_incomplete_or_foreign_sbd(tmp_path):
    make_voc(tmp_path)
    folder = make_sbd(tmp_path)
    path = folder / "cls/2010_000001.mat"
    whole = path.read_bytes()
    path.unlink()
    match = r"1 of 4 labels of trainaug are neither in .*first 2010_000001; 3 of SBD's"
    with pytest.raises(FileNotFoundError, match=match):
        sbd.make_trainaug(tmp_path, **QUIET)
    path.write_bytes(whole[:200])
    with pytest.raises(OSError, match="cannot read .*2010_000001.mat"):
        sbd.make_trainaug(tmp_path, **QUIET)
    scipy.io.savemat(path, {"GTinst": {"Segmentation": voc_label()}})
    with pytest.raises(ValueError, match="holds GTinst, but no array named 'GTcls"):
        sbd.make_trainaug(tmp_path, **QUIET)
    scipy.io.savemat(path, {"GTcls": {"Boundaries": 1}})
    with pytest.raises(
        ValueError, match="Segmentation' in .* is absent among .* Bound"
    ):
        sbd.make_trainaug(tmp_path, **QUIET)
    scipy.io.savemat(path, {"GTcls": {"Segmentation": np.full((4, 4), 21, np.uint8)}})
    with pytest.raises(ValueError, match="holds id 21; SBD's labels have ids 0..20"):
        sbd.make_trainaug(tmp_path, **QUIET)
    (folder / "val.txt").unlink()
    with pytest.raises(FileNotFoundError, match="no list at .*val.txt, from which"):
        sbd.make_trainaug(tmp_path, **QUIET)


def test_prepare(tmp_path, monkeypatch):
    monkeypatch.setenv("USS_DATA", str(tmp_path / "data"))
    root = make_voc(tmp_path / "voc")
    small = {"size": 16, "device": "cpu", "k": 2, **QUIET}
    lines = preparation.prepare("voc", root=root, **small)
    assert lines[0].startswith("labels of trainaug: not made (no SBD")
    assert lines[1].startswith("neighbours: 2 of 2 images")
    for change in ({"split": "trainaug"}, {"neighbours": False}):
        with pytest.raises(FileNotFoundError, match="no SBD"):
            preparation.prepare("voc", root=root, **change, **small)
    make_sbd(tmp_path)
    made = f"labels of trainaug: {root / 'SegmentationClassAug'}"
    assert preparation.prepare("voc", root=root, neighbours=False, **small) == [made]
    lines = preparation.prepare("voc", "trainaug", root, **small)
    assert lines[0] == made and lines[1].startswith("neighbours: 2 of 4 images")


def test_check(tmp_path):
    root = make_voc(tmp_path, "release", saliency=("supervised",))
    text = str(datasets.check("voc", root))
    assert "[MISS] train images: 2 of 1464" in text
    assert "[MISS] val labels: 1 of 1449" in text
    assert "trainaug labels: 4 of 10582 (optional: python -m uss_utils data downl" in (
        text
    )
    assert "[OK]   supervised saliency masks: 2" in text and "unsuper" not in text
    assert "next step: `python -m uss_utils data download voc`" in text
    write(root / "SegmentationClass/2007_000033.png", np.full((24, 30), 99, np.uint8))
    (root / "sets/train.txt").write_text("")
    report = datasets.check("voc", root)
    assert len(report.problems) == 2 and "label id 99" in str(report)
    assert "train.txt is empty" in str(report)
    assert "[MISS] train images: 0 of 1464" in str(
        datasets.check("voc", tmp_path / "x")
    )


def test_written_labels_are_grey_pictures_of_ids(tmp_path):
    make_voc(tmp_path)
    make_sbd(tmp_path)
    place = sbd.make_trainaug(tmp_path, **QUIET) / "2010_000001.png"
    with Image.open(place) as file:
        assert file.mode == "L"
        assert np.array_equal(file, voc_label(classes=(0, 3, 3, 12)))
