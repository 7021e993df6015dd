"""Transforms, crops, label maps and palettes against the authors' own."""

import os
import re

import numpy as np
import pytest
import torch

from tests.golden.golden import assert_close, golden_files, load
from uss_utils.datasets.labels import (
    CITYSCAPES_PALETTE,
    LABEL_MAPS,
    remap,
    voc_palette,
)
from uss_utils.datasets.transforms import Transform, five_crops, to_uint8

pytestmark = pytest.mark.golden


def numbered(pair: dict, prefix: str) -> list[str]:
    """Endings of the keys ``prefix<number>``, e.g. ["0", "1"]."""
    found = (re.fullmatch(rf"{prefix}(\d*)", key) for key in pair)
    return [match.group(1) for match in found if match]


@pytest.mark.parametrize("path", golden_files("stego", "transform_center*.npz"))
def test_centre_transform(path):
    pair = load(path)
    transform = Transform.authors(pair["param_res"])
    cases = numbered(pair, "in_image")
    assert cases
    for case in cases:
        image, label = transform(
            pair[f"in_image{case}"].numpy(),
            pair[f"in_label{case}"].numpy().astype(np.int64),
        )
        assert_close(image, pair[f"out_image{case}"], 1e-5)
        assert torch.equal(label, pair[f"out_label{case}"].long())


@pytest.mark.parametrize("path", golden_files("stego", "five_crop*.npz"))
def test_five_crops(path):
    pair = load(path)
    ratio = pair["param_ratio"]
    keys = [key for key in pair if re.fullmatch(r"in_(image|label)\d*", key)]
    assert keys
    for key in keys:
        expected = pair[key.replace("in_", "out_")]
        assert torch.equal(five_crops(pair[key], ratio), expected)
        assert np.array_equal(five_crops(pair[key].numpy(), ratio), expected.numpy())


@pytest.mark.parametrize("path", golden_files("stego", "dense_crf*.npz"))
def test_truncated_bytes_for_the_crf(path):
    pair = load(path)
    actual = to_uint8(pair["in_image"]).movedim(-1, 0)
    assert torch.equal(actual, pair["in_image_uint8"])


@pytest.mark.parametrize("path", golden_files("stego", "label_maps*.npz"))
def test_label_maps(path):
    pair = load(path)
    names = [key.removeprefix("out_") for key in pair if key.startswith("out_")]
    assert names
    ids = [key for key in pair if key.startswith("in_")]
    for name in names:
        key = max(ids, key=lambda key: shared(key, name))
        table = LABEL_MAPS[re.sub(r"^coco(stuff)?", "cocostuff", name)]
        expected = pair[f"out_{name}"].long().clamp(min=-1)  # negative means ignore
        assert torch.equal(remap(pair[key], table), expected)


def shared(key: str, name: str) -> int:
    """Length of the common beginning of ``in_<set>_id`` and a map's name."""
    return len(os.path.commonprefix([key.removeprefix("in_"), name]))


@pytest.mark.parametrize("path", golden_files("stego", "colormaps*.npz"))
def test_palettes(path):
    pair = load(path)
    if "out_cityscapes" in pair:
        expected = pair["out_cityscapes"].numpy()
        assert np.array_equal(CITYSCAPES_PALETTE, expected)
    if "out_voc" in pair:
        expected = pair["out_voc"].numpy()
        assert np.array_equal(voc_palette()[: len(expected)], expected)
