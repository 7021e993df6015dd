"""`data prepare`: patches, crops and neighbour lists as training will look for them."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from tests.datasets.benchmark_files import make_cityscapes, make_coco, make_tiles
from uss_utils import backbones, datasets, preparation
from uss_utils.data_commands import app
from uss_utils.datasets import potsdam, potsdam_tiles
from uss_utils.neighbour_index import neighbour_index
from uss_utils.sources import FeatureSource

SMALL = {"size": 16, "device": "cpu", "progress": False, "processes": 1}


@pytest.fixture(autouse=True)
def data_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("USS_DATA", str(tmp_path / "data"))


@pytest.fixture
def root(tmp_path):
    return make_cityscapes(tmp_path / "cityscapes")


def files(folder):
    return {p: p.stat().st_mtime_ns for p in sorted(folder.rglob("*")) if p.is_file()}


def indices(tmp_path):
    return sorted((tmp_path / "data/cache/neighbours").rglob("neighbours.npy"))


def command(*words):
    """Output of `python -m uss_utils data ...`; a user's mistake is raised."""
    result = CliRunner().invoke(app, list(map(str, words)), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_crops_and_neighbours_are_what_training_asks_for(root, tmp_path, monkeypatch):
    first = preparation.prepare("cityscapes27", root=root, **SMALL)
    assert [line.partition(":")[0] for line in first] == ["five crops", "neighbours"]
    before = files(tmp_path)
    assert preparation.prepare("cityscapes27", root=root, **SMALL) == first
    after = files(tmp_path)
    record = root / "cropped/cityscapes27_five_crop_0.5/train.json"  # written anew
    assert {p: t for p, t in before.items() if p != record} == {
        p: t for p, t in after.items() if p != record
    }
    data = datasets.load(
        "cityscapes27", "train", root, size=16, resample="nearest", crops="five"
    )
    vit = backbones.load("vit_tiny_scenes")
    source = FeatureSource.open(vit, data, cache="images")
    monkeypatch.setattr(vit, "features", None)  # nothing is computed again
    lists = neighbour_index(vit, source.dataset, 8)
    assert lists.shape == (20, 8) and lists.dtype == torch.int64
    assert lists[:, 0].tolist() == list(range(20))


def test_switches(root, tmp_path):
    done = preparation.prepare("cityscapes27", root=root, neighbours=False, **SMALL)
    assert len(done) == 1 and not indices(tmp_path)
    whole = preparation.prepare("cityscapes27", root=root, crops=False, k=3, **SMALL)
    geometry = "centre crop 16x16, nearest images, nearest labels"
    assert whole == [f"neighbours: 3 of 4 images, vit_tiny_scenes, {geometry}"]
    with pytest.raises(ValueError, match="nothing to prepare for cityscapes27 train"):
        preparation.prepare(
            "cityscapes27", root=root, crops=False, neighbours=False, **SMALL
        )


def test_by_default_only_the_training_split_is_cropped(tmp_path):
    root = make_coco(tmp_path / "coco", "val", names=(1, 2, 3))
    (line,) = preparation.prepare("cocostuff27", "val", root, k=2, **SMALL)
    assert line.startswith("neighbours: 2 of 3 images")
    assert not (root / "cropped").exists()
    lines = preparation.prepare("cocostuff27", "val", root, crops=True, k=2, **SMALL)
    assert lines[1].startswith("neighbours: 2 of 15 images")


def test_a_root_that_holds_only_crops_is_enough(root, tmp_path):
    preparation.prepare("cityscapes27", root=root, neighbours=False, **SMALL)
    alone = tmp_path / "alone"
    alone.mkdir()
    (root / "cropped").rename(alone / "cropped")
    lines = preparation.prepare("cityscapes27", root=alone, **SMALL)
    assert "complete" in lines[0] and "8 of 20 images" in lines[1]


def test_tiles_are_cut_once(tmp_path, monkeypatch):
    root = make_tiles(tmp_path / "potsdam", potsdam_tiles.TILES)
    monkeypatch.setattr(potsdam, "TILE_SPLITS", {"train": 20, "val": 4})
    lines = preparation.prepare("potsdam3-tiles", root=root, **SMALL)
    assert lines[0] == f"patches: {root / 'by_tile'}"
    assert lines[1].startswith("neighbours: 8 of 20 images")
    for tile in root.rglob("*.tif"):
        tile.unlink()
    lines = preparation.prepare("potsdam3-tiles", "val", root, k=2, **SMALL)
    assert lines[0] == "patches: complete" and "2 of 4 images" in lines[1]


def test_generated_sets_keep_their_own_size(tmp_path, monkeypatch):
    monkeypatch.setitem(datasets.SCENES_SPLITS, "val", 9)
    (line,) = preparation.prepare("scenes", "val", device="cpu", progress=False)
    assert line.startswith("neighbours: 8 of 9 images") and len(indices(tmp_path)) == 1


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        ({"name": "nope"}, ValueError, "unknown data set 'nope'; known: scenes"),
        ({"split": "test"}, ValueError, "no split 'test'; known: train, val"),
        ({"split": "val"}, FileNotFoundError, "no frames of val.*needs a login"),
        ({"k": 21}, ValueError, r"cannot list 21 nearest of 20 images; .* 1\.\.20"),
        ({"backbone": "vit_huge"}, ValueError, "vit_huge"),
        ({"resample": "lanczos"}, ValueError, "unknown resampling 'lanczos'"),
        ({"size": 20}, ValueError, "does not divide into patches of 8"),
        (
            {"name": "potsdam3", "crops": True},
            ValueError,
            "potsdam3 is not trained on crops; those that are: cocostuff27, city",
        ),
    ],
)
def test_what_cannot_be_prepared(root, tmp_path, change, error, match):
    options = {"name": "cityscapes27", "root": root, **SMALL, **change}
    with pytest.raises(error, match=match):
        preparation.prepare(**options)
    assert not indices(tmp_path)


SCRIPT = """
import os, signal, sys
from uss_utils import preparation
from uss_utils.backbones import Backbone

kind, root = sys.argv[1:]
def die(*args, **options):
    os.kill(os.getpid(), signal.SIGKILL)

if kind == "crops":
    from uss_utils.datasets import crops
    plain = crops.write_item
    crops.write_item = lambda s, job: die() if job[0] == 2 else plain(s, job)
else:
    Backbone.forward = die
preparation.prepare(
    "cityscapes27", root=root, size=16, device="cpu", progress=False, processes=1
)
"""


@pytest.mark.parametrize("kind", ["crops", "features"])
def test_killed_preparation_is_continued(root, tmp_path, kind):
    killed = subprocess.run(
        [sys.executable, "-c", SCRIPT, kind, str(root)],
        cwd=Path(__file__).parents[1],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
    )
    assert killed.returncode == -signal.SIGKILL
    images = root / "cropped/cityscapes27_five_crop_0.5/img/train"
    made = files(images)
    assert len(made) == (10 if kind == "crops" else 20)
    lines = preparation.prepare("cityscapes27", root=root, **SMALL)
    assert "8 of 20 images" in lines[1] and len(files(images)) == 20
    assert made.items() <= files(images).items()


# ------------------------------------------------------------------ the command line


def test_the_command(root, tmp_path):
    words = ("--data-root", root, "--device", "cpu", "--processes", "1", "--k", "5")
    said = command("prepare", "cityscapes27", *words, "--size", "16x32")
    assert "five crops: " in said and "neighbours: 5 of 20 images" in said
    assert "resize 16x32" in said and len(indices(tmp_path)) == 1
    for wrong in ("x", "12x", "1x2x3", "large"):
        with pytest.raises(ValueError, match=f"N or HxW, such as 224; got {wrong}"):
            command("prepare", "cityscapes27", *words, "--size", wrong)


@pytest.mark.parametrize(
    ("name", "match"),
    [
        ("cityscapes27", "needs a login: register at .*gtFine_trainvaltest.zip"),
        ("potsdam3", r"www.robots.ox.ac.uk.*Potsdam\.tar\.gz"),
        ("potsdam3-tiles", "data prepare potsdam3-tiles"),
        ("scenes", "generated on the fly, nothing to download. `data check scenes`"),
        ("nope", "unknown data set 'nope'"),
    ],
)
def test_download_of_sets_that_are_not_downloaded(name, match, tmp_path):
    with pytest.raises(ValueError, match=match):
        command("download", name)
    with pytest.raises(ValueError, match=f"{name} comes as a whole"):
        command("download", name, "--split", "val")
    assert not (tmp_path / "data").exists()
