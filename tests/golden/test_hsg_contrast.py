"""HSG's contrast of pixels with segments and of centroids, against recorded pairs."""

import re

import pytest
import torch

from tests.golden.golden import golden_files, load
from uss_utils.methods._hsg_contrast import (
    centroid_contrast,
    retrieval_accuracy,
    segment_contrast,
)
from uss_utils.methods._hsg_segments import dense_numbers

pytestmark = pytest.mark.golden


def assert_near(actual, expected, rtol: float, share: float = 0.0, atol: float = 0.0):
    """The pairs' measure: rtol of the entry, and a share of the largest one."""
    expected = torch.as_tensor(expected, dtype=torch.float64)
    allowed = atol + share * float(expected.abs().max())
    actual = actual.detach().double()
    torch.testing.assert_close(actual, expected, rtol=rtol, atol=allowed)


@pytest.mark.parametrize("path", golden_files("hsg", "05_pixel_segment_contrast*.npz"))
def test_contrast_of_pixels_and_segments(path):
    pair = load(path)
    found = [re.fullmatch(r"out_loss_(\w+)_k(\d+)", name) for name in pair]
    kinds = [match.groups() for match in found if match]
    assert kinds
    own, labels = pair["in_pixel_segment"], pair["in_segment_label"]
    for kind, kappa in kinds:
        pixels = pair["in_pixels"].clone().requires_grad_()
        prototypes = pair["in_prototypes"].clone().requires_grad_()
        parts = (pixels, own, prototypes, labels, float(kappa))
        options = {"own_only": {"neighbour": False, "self": True}[kind]}
        name = f"{kind}_k{kappa}"
        each = segment_contrast(*parts, reduce=False, **options)
        assert_near(each, pair[f"out_per_pixel_{name}"], 1e-3, atol=1e-6)
        loss = segment_contrast(*parts, **options)
        assert_near(loss, pair[f"out_loss_{name}"], 1e-4)
        loss.backward()
        for grad, side in ((pixels.grad, "pixels"), (prototypes.grad, "prototypes")):
            assert_near(grad, pair[f"out_grad_{side}_{name}"], 1e-3, 1e-4)


@pytest.mark.parametrize("path", golden_files("hsg", "05b_contrast_far_positive*.npz"))
def test_far_positives_in_32_bit(path):
    pair = load(path)
    negative = pair["in_prototypes"][-1:]
    for i, pixel in enumerate(pair["in_pixels"]):
        rows = torch.cat([pair["in_prototypes"][2 * i : 2 * i + 2], negative])
        pixel = pixel[None].clone().requires_grad_()
        kappa = pair["param_concentration"]
        own, labels = torch.tensor([0]), torch.tensor([0, 0, 1])
        loss = segment_contrast(pixel, own, rows, labels, kappa)
        assert_near(loss, pair["out_per_pixel"][i], 1e-4)
        loss.backward()
        assert_near(pixel.grad[0], pair["out_grad_pixels"][i], 1e-4, 1e-6)


@pytest.mark.parametrize("path", golden_files("hsg", "12_centroid_contrast*.npz"))
def test_contrast_of_centroids(path):
    pair = load(path)
    names = [n[3:-10] for n in pair if n.startswith("in_") and n.endswith("_centroids")]
    sides = {n: pair[f"in_{n}_centroids"].clone().requires_grad_() for n in names}
    kappa = pair["param_concentration"]
    loss = sum(centroid_contrast(c, kappa) for c in sides.values())
    assert_near(loss, pair["out_loss"], 1e-4)
    loss.backward()
    for name, side in sides.items():
        assert_near(side.grad, pair[f"out_grad_{name}"], 1e-3, 1e-4)


@pytest.mark.parametrize("path", golden_files("hsg", "08_total_loss*.npz"))
def test_retrieval_among_the_segments_of_a_step(path):
    pair = load(path)
    image = pair["in_image_of_view"][pair["out_segment_view"]]
    labels = dense_numbers(image, pair["out_segment_region"])
    accuracy = retrieval_accuracy(pair["out_segment_prototypes"], labels)
    assert_near(accuracy, pair["out_top5_accuracy"], 1e-4)
