"""Label maps, class names and colours."""

import numpy as np
import pytest
import torch

from uss_utils.datasets import labels
from uss_utils.datasets.labels import CLASS_NAMES, LABEL_MAPS, remap

COUNTS = {
    "cocostuff27": 27,
    "cocostuff15": 15,
    "cocostuff3": 3,
    "cityscapes27": 27,
    "cityscapes19": 19,
    "potsdam3": 3,
    "camvid11": 11,
    "voc21": 21,
}


@pytest.mark.parametrize("name", COUNTS)
def test_every_map_reaches_exactly_its_classes(name):
    table = LABEL_MAPS[name]
    assert sorted(set(table.tolist())) == list(range(-1, COUNTS[name]))
    assert len(CLASS_NAMES[name]) == len(set(CLASS_NAMES[name])) == COUNTS[name]
    assert labels.palette(name).shape == (COUNTS[name], 3)


def test_known_ids():
    coco = LABEL_MAPS["cocostuff27"]
    name = CLASS_NAMES["cocostuff27"]
    cases = {0: "person", 52: "food (thing)", 121: "food (stuff)", 148: "ground"}
    for fine, expected in cases.items():
        assert name[coco[fine]] == expected
    assert (coco[:182] >= 0).all()
    assert (coco[182:] == -1).all()  # unknown ids are ignored, not class 0
    city = LABEL_MAPS["cityscapes19"]
    assert [city[i] for i in (7, 9, 11, 33, 0, 34)] == [0, -1, 2, 18, -1, -1]
    assert LABEL_MAPS["camvid11"][[0, 10, 11, 12]].tolist() == [0, 10, -1, -1]
    assert LABEL_MAPS["voc21"][[0, 20, 21, 255]].tolist() == [0, 20, -1, -1]


def test_coarser_coco_maps_follow_the_27():
    coarse = LABEL_MAPS["cocostuff27"]
    stuff = coarse >= 12
    assert np.array_equal(LABEL_MAPS["cocostuff15"][stuff], coarse[stuff] - 12)
    assert (LABEL_MAPS["cocostuff15"][~stuff] == -1).all()
    three = LABEL_MAPS["cocostuff3"]
    assert {(c, t) for c, t in zip(coarse, three, strict=True) if t >= 0} == {
        (23, 0),
        (22, 1),
        (21, 2),
    }
    assert CLASS_NAMES["cocostuff3"] == ("sky", "plant", "ground")


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int64])
def test_remap_of_arrays_and_tensors_agree(dtype):
    fine = np.arange(256).astype(dtype).reshape(2, 8, 16)
    out = remap(fine, "cityscapes27")
    assert out.dtype == np.int64
    tensor = remap(torch.from_numpy(fine), LABEL_MAPS["cityscapes27"])
    assert tensor.dtype == torch.int64
    assert np.array_equal(tensor.numpy(), out)
    # The lookup for labels on a GPU, here on the CPU.
    table = torch.tensor(LABEL_MAPS["cityscapes27"])
    assert torch.equal(
        labels._remap_tensor(torch.from_numpy(fine).long(), table), tensor
    )


def test_remap_ignores_ids_outside_the_table():
    table = np.array([4, 5])
    for kind in (np.array, torch.tensor):
        mapped = remap(kind([-3, -1, 0, 1, 2, 900]), table)
        assert mapped.tolist() == [-1, -1, 4, 5, -1, -1]
    for dtype in (np.int8, np.uint8, np.dtype(">u2"), np.uint64):
        ids = np.array([-3, 1, 2]).astype(dtype)
        assert remap(ids, table).tolist() == [-1, 5, -1]
    assert remap(np.array([-1, 255, 256]), "potsdam3").tolist() == [-1, -1, -1]
    assert remap(np.array([-1, 3], np.int8), "potsdam3").tolist() == [-1, 2]
    outside = labels._remap_tensor(torch.tensor([-3, 1, 2]), torch.tensor(table))
    assert outside.tolist() == [-1, 5, -1]


def test_remap_bad_input():
    with pytest.raises(ValueError, match="unknown label map 'coco'; known: cocostuff"):
        remap(np.zeros(2, int), "coco")
    with pytest.raises(ValueError, match="must be integers, got float64"):
        remap(np.zeros(2), "potsdam3")
    with pytest.raises(ValueError, match="must be integers, got bool"):
        remap(np.zeros(2, bool), "potsdam3")
    with pytest.raises(ValueError, match="must be integers, got torch.float32"):
        remap(torch.zeros(2), "potsdam3")


def test_tables_cannot_be_changed_by_accident():
    with pytest.raises(ValueError, match="read-only"):
        LABEL_MAPS["potsdam3"][0] = 5


def test_palettes():
    voc = labels.voc_palette()
    assert voc.shape == (512, 3)
    assert len(np.unique(voc[:256], axis=0)) == 256
    assert voc[1].tolist() == [128, 0, 0]
    assert labels.palette("camvid11")[3].tolist() == [128, 64, 128]
    assert labels.palette("cityscapes19")[-1].tolist() == [119, 11, 32]
    assert labels.CITYSCAPES_PALETTE[-1].tolist() == [0, 0, 0]
    for name in ("scenes", "scenes-aerial"):
        assert labels.palette(name).shape == (len(CLASS_NAMES[name]), 3)
    longer = labels.palette("camvid11", 13)
    assert np.array_equal(longer[11:], voc[11:13])
    assert np.array_equal(labels.palette("cocostuff27", 5), voc[:5])
    with pytest.raises(ValueError, match="unknown palette 'x'; known: scenes, sc"):
        labels.palette("x")
