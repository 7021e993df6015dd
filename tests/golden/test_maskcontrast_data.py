"""MaskContrast's crops, area gate and probe geometry against recorded pairs."""

import numpy as np
import pytest
import torch

from tests.golden.golden import assert_close, golden_files, load
from uss_utils.datasets.transforms import Transform, normalise
from uss_utils.datasets.turning import turn
from uss_utils.methods._maskcontrast_data import crop_pair, draw_accepted

pytestmark = pytest.mark.golden


@pytest.mark.parametrize("path", golden_files("maskcontrast", "joint_crop*.npz"))
def test_joint_crop(path):
    pair = load(path)
    box = pair["in_box_top_left_height_width"].tolist()
    options = {"size": pair["param_size"], "flip": bool(pair["param_flip"])}
    image, grey = pair["in_image"].numpy(), pair["in_mask"].numpy()
    crop, stored = crop_pair(image, grey, box, **options)
    assert torch.equal(torch.from_numpy(crop), pair["out_image_uint8"])
    assert torch.equal(torch.from_numpy(stored), pair["out_mask_uint8"])
    assert_close(normalise(crop), pair["out_image"], 1e-5)
    # An object is where 255 is stored; decoding before the crop changes nothing.
    mask = crop_pair(image, (grey == 255).astype(np.int64), box, **options)[1]
    assert torch.equal(torch.from_numpy(mask), pair["out_mask"].long())


@pytest.mark.parametrize("path", golden_files("maskcontrast", "mask_area_gate*.npz"))
def test_area_gate(path):
    pair = load(path)
    limits = pair["param_min_area"], pair["param_max_area"]
    for areas, attempts, replaced in zip(
        pair["in_areas"],
        pair["out_attempts"].tolist(),
        pair["out_uses_replacement"],
        strict=True,
    ):
        coming, seen = iter(areas.tolist()), []

        def draw(other, coming=coming, seen=seen):
            seen.append(other)
            return len(seen), next(coming)

        assert draw_accepted(draw, *limits) == attempts == len(seen)
        assert seen == replaced[:attempts].bool().tolist()


@pytest.mark.parametrize("path", golden_files("maskcontrast", "probe_geometry*.npz"))
def test_probe_geometry(path):
    pair = load(path)
    image, label = pair["in_image"].numpy(), pair["in_label"].numpy()
    squeeze = Transform("resize", pair["param_size"], "cubic")
    resized = squeeze.apply_image(image).astype(int)
    assert np.abs(resized - pair["out_resized_image"].numpy().astype(int)).max() <= 1
    assert np.array_equal(squeeze.apply_label(label), pair["out_resized_label"].numpy())
    turned, ids = turn(
        image, label, pair["param_rotation_degrees"], pair["param_scale"], fill_label=0
    )
    expected = pair["out_rotated_image"].numpy().astype(int)
    assert np.abs(turned.astype(int) - expected).mean() <= 1
    assert (ids == pair["out_rotated_label"].numpy()).mean() >= 0.99
