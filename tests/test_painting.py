import numpy as np
import pytest
from PIL import Image

from uss_utils import painting
from uss_utils.datasets.files import read_ids

PALETTE = np.array([[200, 0, 0], [0, 100, 0]], dtype=np.uint8)


def test_label_files_hold_ids_and_show_colours(tmp_path):
    ids = np.array([[0, 1, -1], [1, 1, 0]])
    painting.write_label(tmp_path / "a.png", ids, PALETTE)
    assert read_ids(tmp_path / "a.png").tolist() == [[0, 1, 255], [1, 1, 0]]
    with Image.open(tmp_path / "a.png") as image:
        shown = np.array(image.convert("RGB"))
    assert shown[0].tolist() == [[200, 0, 0], [0, 100, 0], list(painting.GREY)]


@pytest.mark.parametrize("ids", ([[2]], [[-2]]))
def test_ids_without_colour(tmp_path, ids):
    with pytest.raises(ValueError, match="do not fit a palette of 2 colours"):
        painting.write_label(tmp_path / "a.png", np.array(ids), PALETTE)
    assert not list(tmp_path.iterdir())


def test_overlays_mix_and_outline():
    pixels = np.full((8, 9, 3), 100, np.uint8)
    ids = np.zeros((8, 9), int)
    ids[:, 5:] = -1
    mixed = painting.overlay(pixels, ids, PALETTE)
    assert mixed[3, 2].tolist() == [144, 55, 55]
    assert mixed[3, 7].tolist() == [100, 100, 100]  # no class: the photograph
    assert mixed[3, 4].tolist() == [255, 255, 255]  # the border
    assert mixed.dtype == np.uint8


def test_white_stays_in_range():
    white = np.full((2, 2, 3), 255, np.uint8)
    palette = np.full((1, 3), 255, np.uint8)
    assert painting.overlay(white, np.zeros((2, 2), int), palette).min() == 255


def test_large_overlays_are_shrunk():
    pixels, ids = np.zeros((30, 400, 3), np.uint8), np.zeros((30, 400), int)
    assert painting.overlay(pixels, ids, PALETTE, side=100).shape == (8, 100, 3)
    assert painting.overlay(pixels[:1], ids[:1], PALETTE, side=100).shape[0] == 1


@pytest.mark.parametrize("shape", [(1, 1), (3, 900), (900, 3), (600, 800)])
def test_thumbnails_fit(shape):
    pixels = np.zeros((*shape, 3), np.uint8)
    width, height = painting.thumbnail(pixels, pixels).size
    assert height <= painting.THUMB and width <= 3.2 * painting.THUMB + 4


def test_legends_of_many_classes(tmp_path):
    names = [f"sort {k} äßжα" for k in range(60)]
    painting.write_legend(tmp_path / "l.png", names, np.zeros((60, 3), np.uint8))
    with Image.open(tmp_path / "l.png") as image:
        assert image.height < 24 * 28 + 20 < image.width + 400
