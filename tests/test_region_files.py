"""Region maps on disk: made, restarted, spread over processes, or as released."""

import json
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from tests.models import Stripes
from tests.toy_images import Toy
from uss_utils import region_files, regions
from uss_utils.datasets import load
from uss_utils.datasets.transforms import Transform
from uss_utils.region_files import (
    RegionFiles,
    RegionRecipe,
    make_regions,
    open_regions,
    released,
)

SMALL = RegionRecipe(side=16)


def made(folder, n=5, recipe=SMALL, workers=1, **options):
    files = make_regions(Toy(n), recipe, folder=folder, workers=workers, **options)
    return files.read(range(len(files)))


def test_maps_are_the_regions_of_the_images(tmp_path):
    files = make_regions(Toy(3), SMALL, folder=tmp_path, workers=1)
    assert len(files) == 3
    assert files.names == ("train_000000", "train_000001", "train_000002")
    for index in range(3):
        ids = files.read(index)
        assert ids.dtype == torch.int64 and ids.shape == (16, 16)
        assert np.array_equal(ids, regions.regions_of(Toy(3).read_image(index), 16))
    assert torch.equal(files.read([2, 0]), torch.stack([files.read(2), files.read(0)]))
    assert files.read(torch.tensor([1])).shape == (1, 16, 16)


def test_regions_are_made_behind_the_transform(tmp_path):
    dataset = Toy(2, transform=Transform("center", 12))
    files = make_regions(dataset, SMALL, folder=tmp_path, workers=1)
    image = dataset.transform.apply_image(dataset.read_image(1))
    assert files.read([0, 1]).shape == (2, 12, 12)
    assert np.array_equal(files.read(1), regions.regions_of(image, 16))


def test_ids_above_a_byte(tmp_path):
    recipe = RegionRecipe(side=64, threshold=0, max_regions=5000)
    dataset = Toy(1, size=64)
    files = make_regions(dataset, recipe, folder=tmp_path, workers=1)
    ids = files.read(0)
    assert ids.max() > 255
    image = dataset.read_image(0)
    assert np.array_equal(ids, regions.regions_of(image, 64, 0, 5000))


def test_the_recipe_of_cityscapes_caps_the_regions(tmp_path):
    """The release's cap never acts; ours does, at whatever threshold it takes."""
    recipe = RegionRecipe(threshold=0.05, max_regions=128)
    dataset = Toy(1, size=64)
    free = regions.image_tree(dataset.read_image(0), recipe.side).count(0.05)
    ids = make_regions(dataset, recipe, folder=tmp_path, workers=1).read(0)
    assert free > 128 >= ids.max() + 1 > 48


def test_workers_change_nothing(tmp_path):
    one, two = made(tmp_path / "1", 6), made(tmp_path / "2", 6, workers=2)
    assert torch.equal(one, two)


def test_what_is_there_is_not_made_again(tmp_path, monkeypatch):
    before = made(tmp_path)
    monkeypatch.setattr(region_files, "_make", None)
    assert torch.equal(made(tmp_path), before)


def test_missing_and_empty_files_are_made_as_they_were(tmp_path):
    before = made(tmp_path)
    (tmp_path / "000001.png").unlink()
    (tmp_path / "000003.png").write_bytes(b"")
    stamp = (tmp_path / "000000.png").stat().st_mtime_ns
    assert torch.equal(made(tmp_path), before)
    assert (tmp_path / "000000.png").stat().st_mtime_ns == stamp


def test_a_folder_of_other_regions_is_refused(tmp_path):
    made(tmp_path)
    with pytest.raises(ValueError, match=r"differ in threshold\)"):
        made(tmp_path, recipe=RegionRecipe(side=16, threshold=0.3))
    options = json.loads((tmp_path / "options.json").read_text())
    assert options["side"] == 16 and options["images"] == 5
    (tmp_path / "options.json").unlink()
    with pytest.raises(ValueError, match="region maps without options.json"):
        made(tmp_path)


SLOW = """
import sys
from tests.test_region_files import SMALL, Toy
from uss_utils import region_files
real = region_files.write_map
def write(*args):
    real(*args)
    print("written", flush=True)
    sys.stdin.readline()
region_files.write_map = write
region_files.make_regions(Toy(5), SMALL, folder=sys.argv[1], workers=1)
"""


def test_killed_in_the_middle(tmp_path):
    command = [sys.executable, "-c", SLOW, str(tmp_path / "killed")]
    with subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=Path(__file__).parents[1],
        text=True,
    ) as process:
        assert process.stdout.readline() == "written\n"
        process.stdin.write("\n")
        process.stdin.flush()
        assert process.stdout.readline() == "written\n"
        process.send_signal(signal.SIGKILL)
    assert len(list((tmp_path / "killed").glob("*.png"))) == 2
    assert torch.equal(made(tmp_path / "killed"), made(tmp_path / "whole"))


def test_a_bar_is_shown_if_there_is_work(tmp_path, capsys):
    made(tmp_path, progress=True)
    assert "regions" in capsys.readouterr().err
    made(tmp_path, progress=True)
    assert capsys.readouterr().err == ""


def test_recipes_are_checked():
    for wrong, message in [
        ({"side": 0}, "longer_side=0"),
        ({"threshold": -0.1}, r"outside \[0, 1\]"),
        ({"max_regions": 0}, "at least 1"),
        ({"max_regions": 70_000}, "ids up to 65535"),
    ]:
        with pytest.raises(ValueError, match=message):
            RegionRecipe(**wrong)


@pytest.fixture
def photographs(tmp_path):
    """Two stored images of 20 x 30 pixels and a folder for their maps."""
    folder = tmp_path / "images"
    folder.mkdir()
    (tmp_path / "maps" / "deeper").mkdir(parents=True)
    for name in "ab":
        Image.fromarray(np.zeros((20, 30, 3), np.uint8)).save(folder / f"{name}.png")
    return load("folder", root=folder), tmp_path / "maps"


def blocks(first=0, dtype=np.uint8, height=20, width=30):
    """Regions: six blocks in raster order."""
    rows, columns = np.arange(height) * 2 // height, np.arange(width) * 3 // width
    return (first + 3 * rows[:, None] + columns).astype(dtype)


@pytest.mark.parametrize(
    "first, dtype", [(0, np.uint8), (1, np.uint8), (0, np.uint16), (700, np.uint16)]
)
def test_released_maps_of_any_width(photographs, first, dtype):
    dataset, folder = photographs
    ids = blocks(first, dtype)
    Image.fromarray(ids).save(folder / "b.png")
    Image.fromarray(ids).save(folder / "deeper" / "a.png")
    files = released(folder, dataset)
    assert files.names == ("a", "b")
    assert np.array_equal(files.read([0, 1]), np.stack([blocks(dtype=np.int64)] * 2))


def test_released_maps_go_through_the_transform(photographs):
    dataset, folder = photographs
    for name in "ab":
        Image.fromarray(blocks()).save(folder / f"{name}.png")
    dataset = dataset.with_transform(Transform("center", 10))
    ids = released(folder, dataset).read(0)
    # The image shrinks to 10 x 15 pixels; columns 2 to 11 of these stay.
    whole = Transform("resize", (10, 15)).apply_label(blocks())
    assert np.array_equal(ids, whole[:, 2:12])


def test_released_maps_of_cityscapes_have_the_photographs_names(photographs):
    dataset, folder = photographs
    for name in "ab":
        Image.fromarray(blocks()).save(folder / f"{name}_leftImg8bit.png")
    assert released(folder, dataset).read(0).max() == 5


def test_two_released_maps_of_one_image(photographs):
    dataset, folder = photographs
    for name in ("a", "b", "deeper/b"):
        Image.fromarray(blocks()).save(folder / f"{name}.png")
    with pytest.raises(ValueError, match="two region maps of one image, .*; name the"):
        released(folder, dataset)


def test_released_maps_that_do_not_fit(photographs):
    dataset, folder = photographs
    with pytest.raises(FileNotFoundError, match="no folder of region maps at"):
        released(folder / "nowhere", dataset)
    Image.fromarray(blocks(height=21)).save(folder / "a.png")
    with pytest.raises(FileNotFoundError, match="1 of 2 images .* first is b.png"):
        released(folder, dataset)
    (folder / "b.png").write_bytes(b"no picture")
    files = released(folder, dataset)
    with pytest.raises(ValueError, match=r"a has 20x30 pixels .*/a\.png 21x30"):
        files.read(0)
    with pytest.raises(ValueError, match=r"b\.png is no readable region map"):
        files.read(1)
    Image.fromarray(np.zeros((20, 30, 3), np.uint8)).save(folder / "b.png")
    with pytest.raises(ValueError, match="colour picture"):
        files.read(1)


def test_maps_of_different_sizes_make_no_batch(tmp_path):
    for name, height in (("a", 20), ("b", 22)):
        Image.fromarray(blocks(height=height)).save(tmp_path / f"{name}.png")
    files = RegionFiles([tmp_path / "a.png", tmp_path / "b.png"], "ab")
    assert files.read(1).shape == (22, 30)
    with pytest.raises(ValueError, match="region maps of different sizes"):
        files.read([0, 1])


def settings(**changes):
    values = {"region_side": 16, "region_threshold": 0.25, "region_max": 48}
    return SimpleNamespace(**values | {"region_folder": ""} | changes)


def test_made_regions_have_a_place_by_content(tmp_path, monkeypatch):
    monkeypatch.setenv("USS_DATA", str(tmp_path))
    dataset = Stripes(n=3, size=(32, 48), ignore=False)
    files = open_regions(settings(), dataset)
    assert files.read(range(3)).shape == (3, 32, 48)
    assert files.paths[0].is_relative_to(tmp_path)
    other = open_regions(settings(region_max=20), dataset)
    assert other.paths[0].parent != files.paths[0].parent
    assert open_regions(settings(), dataset).paths == files.paths


def test_settings_may_name_released_regions(photographs):
    dataset, folder = photographs
    for name in "ab":
        Image.fromarray(blocks()).save(folder / f"{name}.png")
    files = open_regions(settings(region_folder=str(folder)), dataset)
    assert files.paths[0] == folder / "a.png"
