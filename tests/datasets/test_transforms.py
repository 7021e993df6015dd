"""Geometry and normalisation."""

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import functional as reference

from uss_utils.datasets.transforms import (
    RESAMPLES,
    Transform,
    denormalise,
    five_crops,
    floor_indices,
    nearest_indices,
    normalise,
    resize_cubic,
    resize_to_patch,
    to_uint8,
)

RNG = np.random.default_rng(0)
SIZES = [(37, 53), (53, 37), (12, 15), (200, 201), (64, 64), (360, 480), (7, 300)]


def photo(height: int, width: int) -> np.ndarray:
    return RNG.integers(0, 256, (height, width, 3), dtype=np.uint8)


def ids(height: int, width: int) -> np.ndarray:
    return RNG.integers(-1, 27, (height, width))


def test_normalise_and_back():
    image = photo(9, 5)
    out = normalise(image)
    assert out.shape == (3, 9, 5)
    expected = (image[..., 1] / 255 - 0.456) / 0.224
    np.testing.assert_allclose(out[1].numpy(), expected, atol=1e-6)
    back = denormalise(out).movedim(0, -1).numpy() * 255
    np.testing.assert_allclose(back, image, atol=1e-3)


def test_normalise_accepts_batches_and_read_only_or_flipped_arrays():
    images = np.stack([photo(4, 6), photo(4, 6)])
    images.setflags(write=False)
    flipped = images[:, :, ::-1]
    assert torch.equal(normalise(images)[1], normalise(images[1]))
    assert torch.equal(normalise(flipped), normalise(images).flip(-1))


@pytest.mark.parametrize("bad", [np.zeros((4, 4)), np.zeros((4, 4), np.uint8)])
def test_normalise_refuses_other_arrays(bad):
    with pytest.raises(ValueError, match=r"expects uint8 RGB of shape \(H, W, 3\)"):
        normalise(bad)


def test_to_uint8_is_the_byte_or_one_below():
    image = photo(64, 64)
    below = image.astype(int) - to_uint8(normalise(image)).numpy()
    assert set(np.unique(below)) == {0, 1}  # truncation, not rounding
    assert to_uint8(normalise(np.stack([image] * 2))).shape == (2, 64, 64, 3)
    assert to_uint8(torch.full((3, 1, 1), 9.0)).tolist() == [[[255] * 3]]


@pytest.mark.parametrize("source", [1, 2, 7, 53, 360, 1000])
@pytest.mark.parametrize("target", [1, 2, 16, 53, 128, 1001])
def test_nearest_indices_are_pillows_along_both_axes(source, target):
    column = Image.fromarray(np.arange(source, dtype=np.int32)[:, None])
    expected = column.resize((1, target), Image.Resampling.NEAREST)
    assert np.array_equal(nearest_indices(source, target), np.asarray(expected)[:, 0])


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("resample", ["nearest", "bilinear"])
def test_centre_crop_is_torchvisions_on_pillow_images(size, resample):
    image, label, res = photo(*size), ids(*size), 32
    mode = getattr(Image.Resampling, resample.upper())
    expected = reference.center_crop(
        reference.resize(Image.fromarray(image), res, mode), res
    )
    out, out_label = Transform("center", res, resample)(image, label)
    assert torch.equal(out, normalise(np.array(expected)))
    small = Image.fromarray(label.astype(np.int32))
    small = reference.resize(small, res, Image.Resampling.NEAREST)
    expected = np.asarray(reference.center_crop(small, res))
    assert np.array_equal(out_label.numpy(), expected)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("target", [(16, 24), (24, 16), (320, 416), (1, 1)])
@pytest.mark.parametrize("kind", ["center", "resize"])
def test_output_always_has_the_asked_size(size, target, kind):
    image, label = Transform(kind, target)(photo(*size), ids(*size))
    assert image.shape == (3, *target)
    assert label.shape == target
    assert label.dtype == torch.int64


def test_resize_keeps_the_whole_image():
    label = np.repeat(np.arange(4)[:, None], 8, axis=1)
    out = Transform("resize", (8, 4))(np.zeros((4, 8, 3), np.uint8), label)[1]
    assert out[:, 0].tolist() == [0, 0, 1, 1, 2, 2, 3, 3]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kind", ["center", "resize"])
def test_tensor_resizing_is_torchvisions_on_tensors(size, kind):
    image, label, res = photo(*size), ids(*size), 32
    asked = res if kind == "center" else (res, res)
    pixels = torch.from_numpy(image).movedim(-1, 0) / 255
    bilinear = reference.resize(pixels, asked, antialias=False)
    classes = torch.from_numpy(label)[None]
    nearest = reference.resize(classes, asked, reference.InterpolationMode.NEAREST)
    if kind == "center":
        bilinear, nearest = (reference.center_crop(x, res) for x in (bilinear, nearest))
    out, out_label = Transform(kind, res, "tensor")(image, label)
    torch.testing.assert_close(denormalise(out), bilinear, atol=1e-6, rtol=0)
    assert torch.equal(out_label, nearest[0])


def test_tensor_resizing_takes_other_label_pixels_and_gives_no_bytes():
    transform = Transform("center", 4, "tensor")
    assert floor_indices(10, 4).tolist() == [0, 2, 5, 7]
    assert nearest_indices(10, 4).tolist() == [1, 3, 6, 8]
    with pytest.raises(ValueError, match="'tensor' gives no bytes; .*'bilinear'"):
        transform.apply_image(photo(10, 10))
    image = photo(4, 9)  # needs no resizing
    assert np.array_equal(transform.apply_image(image), image[:, 2:6])
    assert torch.equal(transform(image)[0], Transform.sane(4)(image)[0])


@pytest.mark.parametrize("kind", ["center", "resize"])
def test_cubic_resizing_gives_bytes_and_floor_rule_labels(kind):
    image, label = photo(30, 41), ids(30, 41)
    cubic, tensor = (Transform(kind, 24, rule) for rule in ("cubic", "tensor"))
    out, out_label = cubic(image, label)
    assert torch.equal(out, normalise(cubic.apply_image(image)))
    assert torch.equal(out_label, tensor(image, label)[1])
    assert not torch.equal(out, tensor(image)[0])


def test_cubic_resizing_overshoots_only_to_the_ends_of_the_scale():
    edge = np.zeros((4, 16, 3), np.uint8)
    edge[:, 8:] = 255
    out = resize_cubic(edge, (4, 40))
    assert out.dtype == np.uint8 and out.min() == 0 and out.max() == 255
    assert (np.diff(out[0, :, 0].astype(int)) >= 0).all()  # clamped, not wrapped
    soft = np.full((4, 16, 3), 100, np.uint8)
    soft[:, 8:] = 150
    assert resize_cubic(soft, (4, 40)).min() < 100
    assert np.array_equal(resize_cubic(soft, (4, 16)), soft)


def test_none_keeps_everything():
    image, label = photo(5, 9), ids(5, 9)
    out, out_label = Transform()(image, label)
    assert torch.equal(out, normalise(image))
    assert np.array_equal(out_label.numpy(), label)


def test_labels_are_never_mixed():
    label = np.where(ids(40, 40) > 10, 26, -1)
    out = Transform.sane(17)(photo(40, 40), label)[1]
    assert set(out.unique().tolist()) == {-1, 26}


def test_without_label_everything_is_ignored():
    label = Transform.authors(8)(photo(20, 30))[1]
    assert label.shape == (8, 8)
    assert (label == -1).all()


def test_presets_and_descriptions():
    assert Transform.authors(32) == Transform("center", (32, 32), "nearest")
    assert Transform.sane(np.int64(32)) == Transform("center", (32, 32), "bilinear")
    lines = {
        Transform(kind, size, resample).describe()
        for kind in ("center", "resize")
        for size in (32, (32, 64))
        for resample in RESAMPLES
    }
    assert len(lines) == 16
    assert Transform().describe() == "as stored"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("centre", 32), "unknown transform 'centre'; known: none, center, resize"),
        (
            ("center", 32, "lanczos"),
            "unknown resampling 'lanczos'; known: nearest, bil",
        ),
        (("center",), "'center' needs a size of at least 1 pixel"),
        (("resize", 0), "'resize' needs a size of at least 1 pixel"),
        (("resize", (3, 4, 5)), "one number or \\(H, W\\); got"),
        (("none", 32), "'none' keeps every size, but size 32"),
    ],
)
def test_senseless_transforms(arguments, message):
    with pytest.raises(ValueError, match=message):
        Transform(*arguments)


def test_label_of_another_size():
    with pytest.raises(ValueError, match="label of 4x5 pixels for an image of 5x4"):
        Transform.sane(8)(photo(5, 4), ids(4, 5))


@pytest.mark.parametrize("ratio", [0.3, 0.5, 0.7, 1.0])
def test_five_crops_are_torchvisions(ratio):
    image = torch.from_numpy(photo(21, 30)).movedim(-1, 0)
    size = (int(21 * ratio), int(30 * ratio))
    expected = torch.stack(reference.five_crop(image, size))
    assert torch.equal(five_crops(image, ratio), expected)
    assert np.array_equal(five_crops(image[0].numpy(), ratio), expected[:, 0])


@pytest.mark.parametrize("ratio", [0, -1, 1.1, 0.01])
def test_five_crops_refuse_empty_crops(ratio):
    with pytest.raises(ValueError, match=r"the ratio must be in \(0, 1\]"):
        five_crops(torch.zeros(3, 20, 20), ratio)


def test_resize_to_patch():
    assert resize_to_patch((360, 480), 8) == (360, 480)
    assert resize_to_patch((360, 480), 14) == (364, 476)
    assert resize_to_patch((3, 5), 16) == (16, 16)
    with pytest.raises(ValueError, match="must be at least 1"):
        resize_to_patch((0, 5), 16)
