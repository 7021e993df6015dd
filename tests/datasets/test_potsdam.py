"""Potsdam: the published patches, and those cut from the tiles."""

import numpy as np
import pytest
import scipy.io
import torch
from PIL import Image

from tests.datasets.benchmark_files import (
    TILE_COLOURS,
    make_potsdam,
    make_tiles,
    noise,
    write,
)
from uss_utils import datasets
from uss_utils.datasets.potsdam import Potsdam, PotsdamTiles
from uss_utils.datasets.potsdam_tiles import TILES, VAL_TILES, cut_tiles, fine_ids


def test_patches_in_the_order_of_the_list(tmp_path):
    data = datasets.load("potsdam3", "train", make_potsdam(tmp_path, train=(11, 3)))
    assert [data.item_name(i) for i in range(2)] == ["11", "3"]
    image, label = data.read(0)
    assert np.array_equal(image, noise(200, 200, 4, 11)[..., :3])
    # Fine ids 0..5: surface, building, low vegetation, tree, car, clutter.
    assert label[0, :6].tolist() == [0, 1, 2, 2, 0, 1]
    assert data.classes[0] == "roads and cars" and data.n_classes == 3
    assert datasets.DATASETS["potsdam3"].upright is False
    enlarged = datasets.load(
        "potsdam3", "val", tmp_path, size=224, resample="nearest"
    ).batch([0])
    assert enlarged[0].shape == (1, 3, 224, 224)


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int32, np.int64])
def test_integers_of_any_width(tmp_path, dtype):
    label = Potsdam("val", make_potsdam(tmp_path, dtype=dtype)).read_label(0)
    assert label.dtype == np.int64 and label[0, :3].tolist() == [0, 1, 2]


def test_a_patch_without_label_is_ignored_with_a_warning(tmp_path):
    make_potsdam(tmp_path, bare=(11,))
    with pytest.warns(
        UserWarning, match="1 of 2 patches of potsdam3 train have no lab"
    ):
        data = Potsdam("train", tmp_path)
    assert data.has_labels
    label = data.labels([0, 1])
    assert torch.equal(label, data.batch([0, 1])[1])
    assert (label[1] == -1).all() and (label[0] >= 0).all()


def test_absent_set_list_and_patch(tmp_path):
    match = r"no Potsdam patches at .*Potsdam.tar.gz.*--data-root.*potsdam3-tiles"
    with pytest.raises(FileNotFoundError, match=match):
        Potsdam("train", tmp_path)
    make_potsdam(tmp_path / "potsdam")
    (tmp_path / "potsdam/imgs/3.mat").unlink()
    match = r"1 of 2 patches of train are missing, first .*imgs/3.mat\. The patches"
    with pytest.raises(FileNotFoundError, match=match):
        Potsdam("train", tmp_path)
    (tmp_path / "potsdam/labelled_test.txt").unlink()
    with pytest.raises(
        FileNotFoundError, match="no list of patches at .*labelled_test"
    ):
        Potsdam("val", tmp_path)
    for text, found in (("", "is empty"), ("3\n3\n", "names a patch twice")):
        (tmp_path / "potsdam/labelled_test.txt").write_text(text)
        with pytest.raises(ValueError, match=f"labelled_test.txt {found}"):
            Potsdam("val", tmp_path)


@pytest.mark.parametrize(
    ("content", "error", "match"),
    [
        (b"", OSError, "cannot read .*7.mat"),
        (b"MATLAB 5.0 MAT-file" + bytes(200), OSError, "cannot read .*7.mat"),
        ({"other": np.zeros((2, 2))}, ValueError, "holds other, but no array named"),
        ({"gt": np.zeros((200, 200))}, ValueError, "is float64 .*expected integers"),
        ({"gt": np.zeros((1, 2, 3), int)}, ValueError, r"\(1, 2, 3\); expected int"),
        ({"gt": {"a": 1}}, ValueError, "'gt' in .* is something .*expected numbers"),
        ({"gt": np.zeros((100, 200), int)}, ValueError, "is 200x200 .*is 200x100"),
    ],
)
def test_bad_labels(tmp_path, content, error, match):
    data, path = Potsdam("val", make_potsdam(tmp_path)), tmp_path / "gt/7.mat"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        scipy.io.savemat(path, content)
    for read in (data.read, data.read_label):
        with pytest.raises(error, match=match):
            read(0)


def test_bad_images(tmp_path):
    data, path = Potsdam("val", make_potsdam(tmp_path)), tmp_path / "imgs/7.mat"
    for image in (np.zeros((200, 200)), np.zeros((200, 200, 2), np.uint8)):
        scipy.io.savemat(path, {"img": image})
        with pytest.raises(ValueError, match="'img' in .*expected uint8"):
            data.read(0)
    path.write_bytes(path.read_bytes()[:150])
    with pytest.raises(OSError, match="cannot read .*7.mat"):
        data.read(0)


def test_unknown_fine_ids_are_ignored(tmp_path):
    data = Potsdam("val", make_potsdam(tmp_path))
    gt = np.tile(np.array([[6, 255, -4, 70_000, 4]]), (200, 40))
    scipy.io.savemat(tmp_path / "gt/7.mat", {"gt": gt})
    assert data.read(0)[1][0, :5].tolist() == [-1, -1, -1, -1, 0]


def test_check(tmp_path):
    text = str(datasets.check("potsdam3", make_potsdam(tmp_path, bare=(3,))))
    assert "[MISS] train patches: 2 of 4545" in text
    assert "[MISS] train labels: 1 of 4545" in text
    assert "xuji/datasets/Potsdam.tar.gz" in text
    broken = tmp_path / "gt/7.mat"
    assert broken.is_file()
    broken.write_bytes(b"no matlab")
    assert "[FAIL] cannot read" in str(datasets.check("potsdam3", tmp_path))


# ------------------------------------------------------------------------ from tiles


def test_split_by_tile():
    assert VAL_TILES == ("2_12", "4_12", "6_9", "7_9")
    assert len(set(TILES)) == 24


@pytest.fixture(scope="module")
def tiles(tmp_path_factory):
    """All tiles, of 2 x 1 patches."""
    root = tmp_path_factory.mktemp("tiles")
    make_tiles(root, TILES)
    path = root / "4_Ortho_RGBIR/top_potsdam_2_10_RGBIR.tif"
    write(path, noise(800, 400, 4, 5))
    label = np.array(TILE_COLOURS, np.uint8)[np.arange(400) // 8 % 7]
    write(root / "5_Labels_all/top_potsdam_2_10_label.tif", np.tile(label, (800, 1, 1)))
    cut_tiles(root, processes=1, progress=False)
    return root


def test_patches_of_the_tiles(tiles):
    train = datasets.load("potsdam3-tiles", "train", tiles)
    val = datasets.load("potsdam3-tiles", "val", tiles)
    assert len(train) == 21 and len(val) == 4
    names = [train.item_name(i) for i in range(3)]
    assert names == ["2_10_00_00", "2_10_01_00", "2_11_00_00"]
    assert [val.item_name(i)[:-6] for i in range(4)] == list(VAL_TILES)
    image, label = train.read(1)
    tile = noise(800, 400, 4, 5)[400:, :, :3].reshape(200, 2, 200, 2, 3)
    assert np.abs(image - tile.mean((1, 3))).max() <= 0.5
    assert label[0, ::4][:8].tolist() == [0, 1, 2, 2, 0, 1, -1, 0]
    assert datasets.DATASETS["potsdam3-tiles"].upright is False


def test_colours_that_are_slightly_off_and_ids(tmp_path):
    label = np.array(TILE_COLOURS, np.int16)
    label = np.abs(label - 3).astype(np.uint8)[:, None].repeat(2, 1).repeat(2, 0)
    path = write(tmp_path / "a.tif", label)
    assert fine_ids(path)[:, 0].tolist() == [0, 1, 2, 3, 4, 5, 255]
    Image.fromarray(label[..., 0]).save(path)
    with pytest.raises(ValueError, match="expected uint8 with channels for red, green"):
        fine_ids(path)
    path.write_bytes(b"II*")
    with pytest.raises(OSError, match="cannot read .*a.tif"):
        fine_ids(path)


def test_cutting_again_makes_only_what_is_missing(tiles):
    folder = tiles / "by_tile"
    gone = folder / "gt/3_11_00_00.png"
    before = {path: path.stat().st_mtime_ns for path in folder.glob("*/*.png")}
    content = gone.read_bytes()
    gone.write_bytes(b"")  # as after a power cut
    cut_tiles(tiles, processes=2, progress=False)
    assert gone.read_bytes() == content
    after = {path: path.stat().st_mtime_ns for path in folder.glob("*/*.png")}
    assert [path for path in before if before[path] != after[path]] == [gone]
    assert before.keys() == after.keys() and len(after) == 50


def test_tiles_that_are_missing_or_do_not_fit(tmp_path):
    with pytest.raises(
        FileNotFoundError, match="have no image file below .*5_Labels_al"
    ):
        cut_tiles(tmp_path)
    make_tiles(tmp_path, TILES[1:])
    match = r"1 of 24 tiles have no image file below .*: 2_10\. Get 4_Ortho_RGBIR.zip"
    with pytest.raises(FileNotFoundError, match=match):
        cut_tiles(tmp_path)
    make_tiles(tmp_path, TILES[:1], side=404)
    with pytest.raises(ValueError, match="tile 2_10: .*404x404.*a multiple of 400"):
        cut_tiles(tmp_path, processes=1, progress=False)
    with pytest.raises(
        FileNotFoundError, match="no list of patches .*data prepare pots"
    ):
        PotsdamTiles("train", tmp_path)
    text = str(datasets.check("potsdam3-tiles", tmp_path))
    assert "[MISS] train patches: 0 of 4500" in text
    assert "[OK]   tiles, images: 24 of 24" in text
    with pytest.raises(FileNotFoundError, match="no patches cut from Potsdam's tiles"):
        PotsdamTiles("train", tmp_path / "nowhere")
