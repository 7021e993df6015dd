import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.models import grey_model
from tests.photo_kinds import street, write_kinds
from uss_utils import painting, photo_folder, photo_training
from uss_utils.datasets.files import read_ids
from uss_utils.methods import hp, kmeans, stego
from uss_utils.photo_files import find, read
from uss_utils.photo_folder import scan, segment_folder, train_on_folder
from uss_utils.photo_training import PhotoSet
from uss_utils.segmenter import Segmenter


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    """50 files: the folder, upright sizes of the good ones, names of the others."""
    folder = tmp_path_factory.mktemp("photos") / "mixed"
    return folder, *write_kinds(folder)


@pytest.fixture(scope="module")
def segmented(mixed, tmp_path_factory):
    out = tmp_path_factory.mktemp("results") / "out"
    return segment_folder(grey_model(classes=()), mixed[0], out)


def few(folder: Path, n: int = 3, labels: bool = False) -> Path:
    """A folder of ``n`` good pictures."""
    for k in range(n):
        pixels = street(k, 64)
        place = folder / "imgs" if labels else folder
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(place / f"p{k}.png")
        if labels:
            (folder / "labels").mkdir(exist_ok=True)
            # Sky above, ground below.
            label = np.zeros(pixels.shape[:2], np.uint8)
            label[len(label) // 2 :] = 1
            Image.fromarray(label).save(folder / "labels" / f"p{k}.png")
    return folder


def stamps(folder: Path) -> dict:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path: path.stat().st_mtime_ns for path in files}


# ------------------------------------------------------------------------- reading


def test_fifty_files_of_all_kinds(mixed):
    folder, good, bad = mixed
    assert len(list(folder.iterdir())) == 50
    found = scan(folder)
    assert {path.name for path in found.pictures} == set(good)
    assert found.skipped.keys() == bad
    assert {path.name: size for path, size in found.sizes.items()} == good
    assert found.classes == () and found.labels == {}
    names = list(found.found.names.values())
    assert len({name.casefold() for name in names}) == len(names) == 50


def test_reasons_are_told_in_words(mixed):
    reasons = scan(mixed[0]).skipped
    assert reasons["empty.jpg"] == "the file is empty"
    assert reasons["gone.jpg"] == "neither a file nor a link to one"
    assert reasons["letters.jpg"].startswith("no picture")
    assert reasons["cut_off.jpg"].startswith("cut off or damaged (image file is trunc")
    assert reasons["cut_off.png"].startswith("cut off or damaged")
    assert "convert it" in reasons["floats.tif"]
    assert not any(str(mixed[0]) in reason for reason in reasons.values())


def test_turned_pictures_are_set_upright(mixed):
    # Pictures 14 to 20 were written turned.
    for tag in range(2, 9):
        upright = street(12 + tag).astype(float)
        assert abs(read(mixed[0] / f"turned_{tag}.jpg") - upright).mean() < 8, tag


def test_anything_pillow_raises_is_a_reason(tmp_path, monkeypatch):
    def accident(image):
        raise KeyError("deep inside")

    few(tmp_path, 1)
    monkeypatch.setattr("uss_utils.datasets.files.upright_rgb", accident)
    with pytest.raises(ValueError, match=r"none of the 1 files .* p0.png \(cut off or"):
        scan(tmp_path)


def test_no_folder_no_file_no_picture(tmp_path):
    with pytest.raises(FileNotFoundError, match="no folder of photographs at"):
        scan(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="holds no file; put photographs"):
        scan(tmp_path)
    (tmp_path / ".hidden.jpg").write_bytes(b"1")
    with pytest.raises(FileNotFoundError, match="holds no file"):
        scan(tmp_path)
    for k in range(5):
        (tmp_path / f"{k}.txt").write_text("no")
    with pytest.raises(ValueError, match=r"none of the 5 .* and 2 more"):
        scan(tmp_path)


def test_layouts(tmp_path):
    (few(tmp_path / "plain") / "classes.txt").write_text("a\n")
    assert len(find(tmp_path / "plain").files) == 3
    found = scan(few(tmp_path / "labelled", labels=True))
    assert len(found.labels) == 3 and found.classes == ("class 0", "class 1")
    splits = tmp_path / "splits" / "images"
    for split in ("train", "val"):
        few(splits / split, 2)
    found = find(splits.parent)
    assert list(found.names.values()) == [
        "p0.png",
        "p1.png",
        "val-p0.png",
        "val-p1.png",
    ]
    single = find(few(tmp_path / "one") / "p1.png")
    assert [path.name for path in single.files] == ["p1.png"]


def test_very_long_names_and_names_that_are_no_text(tmp_path):
    for name in (b"x" * 240 + b".png", b"x" * 240 + b".PNG", b"bad\xff.png"):
        Image.fromarray(street(0)).save(tmp_path / os.fsdecode(name), "PNG")
    out = tmp_path / "out"
    result = segment_folder(grey_model(classes=()), tmp_path, out)
    assert "bad_" in result.made and len(set(result.made)) == 3
    assert len(list((out / "labels").iterdir())) == 3


def test_subfolders_with_pictures_are_told(tmp_path):
    few(few(tmp_path) / "holiday")
    (tmp_path / "nothing").mkdir()
    assert list(scan(tmp_path).skipped) == ["holiday/"]


def test_useless_labels_are_told_and_left_out(tmp_path):
    few(tmp_path, 5, labels=True)
    labels = tmp_path / "labels"
    (labels / "p0.png").write_bytes(b"")
    Image.new("L", (3, 3)).save(labels / "p1.png")
    Image.new("RGB", (64, 42)).save(labels / "p2.png")
    (labels / "p3.png").unlink()
    found = scan(tmp_path)
    assert len(found.pictures) == 5
    assert [path.stem for path in found.labels] == ["p4"]
    assert set(found.skipped) == {f"labels/p{k}.png" for k in range(3)}
    assert "3x3 pixels" in found.skipped["labels/p1.png"]
    assert "colour picture" in found.skipped["labels/p2.png"]
    data = PhotoSet(found)
    assert data.has_labels and data.read(0)[1] is None and data.read(4)[1].max() == 1
    assert len(PhotoSet(found, labelled=True)) == 1


def test_class_names_and_labels_beyond_them(tmp_path):
    few(tmp_path, 2, labels=True)
    (tmp_path / "classes.txt").write_text("sky\nground\n")
    assert scan(tmp_path).classes == ("sky", "ground")
    (tmp_path / "classes.txt").write_text("sky\n")
    found = scan(tmp_path)
    assert found.classes == ()
    assert "classes.txt names 1 classes" in found.skipped["labels/p0.png"]


# ---------------------------------------------------------------------- segmenting


def test_every_file_is_segmented_or_told(mixed, segmented):
    _, good, bad = mixed
    pictures = segmented.summary["pictures"]
    assert {row["file"] for row in pictures.values()} == set(good)
    assert set(segmented.made) == pictures.keys() and segmented.kept == ()
    assert segmented.skipped.keys() == bad


def test_label_maps_have_the_upright_sizes_and_what_segment_says(mixed, segmented):
    folder, good, _ = mixed
    model = grey_model(classes=())
    for name, row in segmented.summary["pictures"].items():
        ids = read_ids(segmented.out / "labels" / f"{name}.png")
        assert ids.shape == good[row["file"]] == (row["height"], row["width"])
        assert np.array_equal(ids, model.segment(read(folder / row["file"])))
        assert sum(row["shares"].values()) == pytest.approx(1, abs=1e-3)
        assert (segmented.out / "overlays" / f"{name}.jpg").stat().st_size


def test_summary_tells_model_and_monitors(segmented):
    summary = json.loads((segmented.out / "summary.json").read_text())
    assert summary == segmented.summary
    assert summary["model"]["method"] == "grey" and "record" not in summary
    assert 0 < summary["monitors"]["usage_entropy"] <= 1
    assert [row["name"] for row in summary["legend"]][0] == "cluster 0"
    assert sum(summary["shares"].values()) == pytest.approx(1, abs=1e-3)


def test_running_again_does_nothing(mixed, segmented, monkeypatch):
    before = stamps(segmented.out)

    def never(*args, **options):
        raise AssertionError("nothing had changed")

    for name in ("monitor", "evaluate"):
        monkeypatch.setattr(photo_folder, name, never)
    monkeypatch.setattr(Segmenter, "segment", never)
    again = segment_folder(grey_model(classes=()), mixed[0], segmented.out)
    assert again.made == () and set(again.kept) == set(segmented.made)
    assert again.skipped == segmented.skipped and again.summary == segmented.summary
    written = {
        path.name
        for path, when in stamps(segmented.out).items()
        if before[path] != when
    }
    assert written <= {"index.html", "summary.json", "legend.png"}


def test_what_changed_is_made_again(tmp_path):
    folder, out = few(tmp_path / "in"), tmp_path / "out"
    model = grey_model(classes=())
    assert len(segment_folder(model, folder, out).made) == 3
    Image.fromarray(street(9)).save(folder / "p1.png")
    assert segment_folder(model, folder, out).made == ("p1",)
    (out / "overlays" / "p2.jpg").write_bytes(b"")
    assert segment_folder(model, folder, out).made == ("p2",)
    (out / ".finished" / "p0.json").write_text("{")
    assert segment_folder(model, folder, out).made == ("p0",)
    assert len(segment_folder(model, folder, out, overwrite=True).made) == 3
    assert len(segment_folder(model, folder, out, max_side=16).made) == 3
    other = grey_model(classes=())
    other.cluster_probe.clusters.data += 0.1
    assert len(segment_folder(other, folder, out, max_side=16).made) == 3
    (folder / "p0.png").unlink()
    assert segment_folder(other, folder, out, max_side=16).kept == ("p1", "p2")


def test_what_was_finished_before_a_stop_stays(tmp_path, monkeypatch):
    folder, out = few(tmp_path / "in"), tmp_path / "out"
    model, whole = grey_model(classes=()), Segmenter.segment
    seen = []

    def stopped(self, image, *args, **options):
        seen.append(image)
        if len(seen) == 2:
            raise KeyboardInterrupt
        return whole(self, image, *args, **options)

    monkeypatch.setattr(Segmenter, "segment", stopped)
    with pytest.raises(KeyboardInterrupt):
        segment_folder(model, folder, out)
    result = segment_folder(model, folder, out)
    assert result.kept == ("p0",) and result.made == ("p1", "p2")
    assert not list(out.rglob(".tmp-*"))


def test_names_merge_clusters(tmp_path):
    folder, out = few(tmp_path / "in"), tmp_path / "out"
    result = segment_folder(grey_model(classes=()), folder, out, names={0: "a", 2: "a"})
    assert [row["name"] for row in result.summary["legend"]] == ["a", "cluster 1"]
    assert read_ids(out / "labels" / "p0.png").max() <= 1
    with pytest.raises(ValueError, match="no cluster 7"):
        segment_folder(grey_model(classes=()), folder, out, names={7: "a"})


def test_clusters_without_class_are_grey_255(tmp_path):
    folder, out = few(tmp_path / "in"), tmp_path / "out"
    model = grey_model(table=[0, 1, -1])
    result = segment_folder(model, folder, out)
    ids = read_ids(out / "labels" / "p0.png")
    assert set(np.unique(ids)) <= {0, 1, 255} and (ids == 255).any()
    assert result.summary["pictures"]["p0"]["shares"]["-1"] > 0
    with Image.open(out / "labels" / "p0.png") as image:
        assert image.getpalette()[-3:] == list(painting.GREY)
        assert image.getpalette()[:3] == model.palette[0].tolist()


def test_labels_give_the_usual_record(tmp_path):
    folder = few(tmp_path / "in", 4, labels=True)
    named = segment_folder(grey_model([0, 1, 2]), folder, tmp_path / "a").summary
    # Two classes in the labels, three in the model: theirs are the model's first.
    assert named["record"]["headline"]["cluster_acc"] > 0
    assert named["record"]["classes"] == ["dark", "middle", "bright"]
    free = segment_folder(grey_model(classes=()), folder, tmp_path / "b").summary
    assert free["record"]["classes"] == ["class 0", "class 1"]
    (folder / "classes.txt").write_text("sky\nground\n")
    other = segment_folder(grey_model([0, 1, 2]), folder, tmp_path / "c").summary
    assert "record" not in other and "sky, ground" in other["not_scored"]


def test_mistakes(tmp_path, monkeypatch):
    folder, model = few(tmp_path / "in"), grey_model(classes=())
    with pytest.raises(ValueError, match="holds the photographs"):
        segment_folder(model, folder, folder)
    with pytest.raises(ValueError, match="is a file; give"):
        segment_folder(model, folder, folder / "p0.png")
    with pytest.raises(ValueError, match="max_side 0"):
        segment_folder(model, folder, tmp_path / "out", max_side=0)
    monkeypatch.setattr("uss_utils.crf.available", lambda: False)
    with pytest.raises(ImportError, match="no CRF here"):
        segment_folder(model, folder, tmp_path / "out", crf=True)


# ------------------------------------------------------------------------ training


def test_train_without_labels(mixed, tmp_path, capsys):
    small = {"restarts": 1, "tokens": 1000, "size": (64, 96)}
    quick = {"settings": small, "progress": True}
    model = train_on_folder(kmeans, mixed[0], tmp_path, **quick)
    told = capsys.readouterr().out
    assert "39 pictures can be read, 11 files are skipped" in told
    assert "no labels: 8 clusters" in told and "cut to " in told
    assert model.n_clusters == photo_training.CLUSTERS and model.classes == ()
    again = train_on_folder(kmeans, mixed[0], tmp_path, **quick)
    assert "trained before" in capsys.readouterr().out
    assert again.cluster_probe.clusters.equal(model.cluster_probe.clusters)
    fewer = train_on_folder(kmeans, mixed[0], tmp_path, clusters=4, **quick)
    assert "other settings" in capsys.readouterr().out and fewer.n_clusters == 4


def test_train_with_some_labels(tmp_path):
    folder = few(tmp_path / "in", 4, labels=True)
    (folder / "labels" / "p1.png").unlink()
    model = train_on_folder(kmeans, folder, tmp_path / "out", steps=5)
    assert model.classes == ("class 0", "class 1")
    assert model.cluster_to_class is not None and model.linear_probe is not None
    with pytest.raises(ValueError, match="1 clusters cannot stand for the 2 classes"):
        train_on_folder(kmeans, folder, tmp_path / "other", clusters=1)


@pytest.mark.parametrize("n", [2, 5])
@pytest.mark.parametrize("method", [stego, hp], ids=["stego", "hp"])
def test_folders_smaller_than_a_batch(method, n, tmp_path):
    folder = few(tmp_path / "in", n)
    model = train_on_folder(method, folder, tmp_path / "out", preset="smoke")
    assert segment_folder(model, folder, tmp_path / "out").made
    assert not (tmp_path / "out" / "training").exists()


def test_a_single_picture(tmp_path):
    folder = few(tmp_path / "in", 1)
    with pytest.raises(ValueError, match="there is only one; use kmeans"):
        train_on_folder(stego, folder, tmp_path / "out")
    model = train_on_folder(kmeans, folder / "p0.png", tmp_path / "out")
    result = segment_folder(model, folder / "p0.png", tmp_path / "out")
    assert result.made == ("p0",)


def test_models_from_elsewhere_are_not_replaced(tmp_path):
    folder, out = few(tmp_path / "in"), tmp_path / "out"
    grey_model().save(out / "model.safetensors")
    with pytest.raises(ValueError, match="was not trained on this folder"):
        train_on_folder(kmeans, folder, out)
    (out / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(ValueError, match="overwrite replaces it"):
        train_on_folder(kmeans, folder, out)
    assert train_on_folder(kmeans, folder, out, overwrite=True).method == "kmeans"


def test_the_common_size_has_the_usual_aspect(mixed, tmp_path):
    assert photo_training.common_size(scan(few(tmp_path)), 128 * 128, 8) == (104, 160)
    strip = np.zeros((4, 400, 3), np.uint8)
    (tmp_path / "wide").mkdir()
    Image.fromarray(strip).save(tmp_path / "wide" / "a.png")
    size = photo_training.common_size(scan(tmp_path / "wide"), 128 * 128, 8)
    assert size == (88, 184)  # no wider than 2:1


KILLED = """
import sys
from uss_utils.photo_folder import train_on_folder, segment_folder
from uss_utils.methods import stego
folder, out = sys.argv[1:]
model = train_on_folder(stego, folder, out, preset="smoke", steps=30)
segment_folder(model, folder, out)
"""


def test_a_killed_run_goes_on(tmp_path):
    folder, out = few(tmp_path / "in", 6), tmp_path / "out"
    words = [sys.executable, "-c", KILLED, str(folder), str(out)]
    running = subprocess.Popen(words, env=os.environ | {"OMP_NUM_THREADS": "1"})
    deadline = time.monotonic() + 120
    while not (kept := list((out / "training").glob("*.safetensors"))):
        assert running.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    running.send_signal(signal.SIGKILL)
    running.wait()
    assert kept and not (out / "model.safetensors").exists()
    subprocess.run(words, check=True)
    whole = train_on_folder(stego, folder, tmp_path / "w", preset="smoke", steps=30)
    resumed = Segmenter.load(out / "model.safetensors")
    assert resumed.cluster_probe.clusters.equal(whole.cluster_probe.clusters)
    assert len(list((out / "labels").iterdir())) == 6
