"""Stored masks: what their values mean, what is missing, what is damaged."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from tests.models import Stripes
from uss_utils import backbones
from uss_utils.mask_files import MaskFiles, decode, open_masks, released

OBJECT = np.zeros((4, 6), bool)
OBJECT[1:3, 2:5] = True


def store(path, values):
    Image.fromarray(values).save(path)
    return path


@pytest.mark.parametrize(
    "values",
    [
        OBJECT * np.uint8(255),
        OBJECT * np.uint8(200) + np.uint8(20),
        OBJECT.astype(np.uint8),
        OBJECT,
    ],
    ids=["0 and 255", "greys", "0 and 1", "bits"],
)
def test_masks_of_one_object_in_every_form(tmp_path, values):
    found = decode(store(tmp_path / "a.png", values), binary=True)
    assert found.dtype == torch.uint8
    assert np.array_equal(found, OBJECT)


@pytest.mark.parametrize("value", [0, 255, 1])
def test_masks_without_background_or_object(tmp_path, value):
    path = store(tmp_path / "a.png", np.full((4, 6), value, np.uint8))
    assert (decode(path, binary=True) == (value > 0)).all()


def test_ids_stay(tmp_path):
    ids = np.arange(24, dtype=np.uint8).reshape(4, 6)
    found = decode(store(tmp_path / "a.png", ids), binary=False)
    assert np.array_equal(found, ids)


def test_damaged_and_strange_files(tmp_path):
    (tmp_path / "a.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"a\.png is no readable mask .* delete it"):
        decode(tmp_path / "a.png", binary=True)
    store(tmp_path / "b.png", np.zeros((4, 6, 3), np.uint8))
    with pytest.raises(ValueError, match=r"shape \(4, 6, 3\) instead of one channel"):
        decode(tmp_path / "b.png", binary=True)


def test_images_without_a_mask_or_an_object(tmp_path):
    paths = [tmp_path / f"{name}.png" for name in "abc"]
    store(paths[0], OBJECT * np.uint8(255))
    store(paths[2], np.zeros((4, 6), np.uint8))
    masks = MaskFiles(paths, binary=True)
    assert [masks.has(i) for i in range(len(masks))] == [True, False, False]
    assert np.array_equal(masks.read([0, 0]), np.stack([OBJECT] * 2))
    assert masks.read([0]).dtype == torch.int64
    with pytest.raises(ValueError, match="b.png is no readable mask"):
        masks.read([1])


def test_masks_of_different_sizes_make_no_batch(tmp_path):
    paths = [tmp_path / f"{name}.png" for name in "ab"]
    for path, height in zip(paths, (4, 5), strict=True):
        store(path, np.zeros((height, 6), np.uint8))
    with pytest.raises(ValueError, match="masks of different sizes"):
        MaskFiles(paths, binary=True).read([0, 1])


def test_a_folder_without_masks(tmp_path):
    with pytest.raises(ValueError, match=r"none of the 1 images has a mask: .*a\.png"):
        MaskFiles([tmp_path / "a.png"], binary=True)


def test_released_masks_belong_to_voc():
    with pytest.raises(ValueError, match="released for voc alone, not for stripes"):
        released(Stripes(), None, "supervised")


def settings(**changes):
    values = {"mask_features": "feat", "mask_map": "none", "mask_side": None}
    values |= {"masks": "ncut", "tau": 0.2}
    values["load_mask_backbone"] = lambda _: backbones.load("vit_tiny_random")
    return SimpleNamespace(
        **values
        | {"objects": 1, "distil": "none", "refine": False, "root": None}
        | changes
    )


def test_made_masks_have_a_place_by_content(tmp_path, monkeypatch):
    monkeypatch.setenv("USS_DATA", str(tmp_path))
    dataset = Stripes(n=3, size=(32, 48), ignore=False)
    masks = open_masks(settings(), dataset)
    assert masks.read(range(3)).shape == (3, 32, 48)
    assert masks.paths[0].is_relative_to(tmp_path)
    other = open_masks(settings(tau=0.3), dataset)
    assert other.paths[0].parent != masks.paths[0].parent
    assert open_masks(settings(), dataset).paths == masks.paths
