"""Geometry of images and labels of any size."""

import numpy as np
import pytest
import torch
from hypothesis import assume, example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tests.fuzz.cases import fewer
from uss_utils.datasets.transforms import (
    KINDS,
    RESAMPLES,
    Transform,
    denormalise,
    five_crops,
    normalise,
)

pytestmark = pytest.mark.fuzz

SIDES = st.integers(1, 40)
ODD = st.sampled_from([None, 0, -3, (0, 4), (4,), (1, 2, 3)])


@given(
    size=st.tuples(SIDES, SIDES),
    kind=st.sampled_from(KINDS),
    out=SIDES | st.tuples(SIDES, SIDES) | ODD,
    resample=st.sampled_from(RESAMPLES),
    seed=st.integers(0, 99),
)
def test_any_size_to_any_size(size, kind, out, resample, seed):
    """Image and label get the size asked for, and no label that was not there."""
    sides = (out, out) if isinstance(out, int) else out
    valid = sides is not None and len(sides) == 2 and min(sides) > 0
    try:
        transform = Transform(kind, out, resample)
    except ValueError as error:
        assert (out is not None) if kind == "none" else not valid
        assert "\n" not in str(error)
        return
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 256, (*size, 3), np.uint8)
    label = rng.integers(-1, 5, size)
    pixels, classes = transform(image, label)
    wanted = size if kind == "none" else sides
    assert pixels.shape == (3, *wanted) and pixels.dtype == torch.float32
    assert classes.shape == wanted and classes.dtype == torch.int64
    assert set(classes.unique().tolist()) <= set(np.unique(label).tolist())
    # No resampling but the cubic one leaves the range, and that is clamped.
    back = denormalise(pixels) * 255
    assert back.min() > -0.01 and back.max() < 255.01
    assert transform(image)[1].eq(-1).all()
    assert np.array_equal(transform.apply_label(label), classes.numpy())


@given(image=hnp.arrays(np.uint8, (5, 4, 3)), label=st.tuples(SIDES, SIDES))
@fewer(4)
def test_sizes_that_differ(image, label):
    assume(label != (5, 4))
    with pytest.raises(ValueError, match="both must have the same size"):
        Transform()(image, np.zeros(label, np.int64))


@given(
    array=hnp.arrays(
        st.sampled_from([np.uint8, np.int64]), hnp.array_shapes(min_dims=2, max_side=9)
    ),
    ratio=st.floats(-1, 2) | st.sampled_from([0.5, 1.0, 0.0, float("nan")]),
)
def test_five_crops(array, ratio):
    """Corners and centre, cut from the array; tensors as arrays."""
    height, width = array.shape[-2:]
    usable = 0 < ratio <= 1 and min(int(height * ratio), int(width * ratio)) >= 1
    if not usable:
        with pytest.raises(ValueError, match=r"five_crops|ratio"):
            five_crops(array, ratio)
        return
    crops = five_crops(array, ratio)
    h, w = int(height * ratio), int(width * ratio)
    assert crops.shape == (5, *array.shape[:-2], h, w)
    assert np.array_equal(crops[0], array[..., :h, :w])
    assert np.array_equal(crops[3], array[..., height - h :, width - w :])
    tensors = five_crops(torch.from_numpy(array.copy()), ratio)
    assert np.array_equal(tensors.numpy(), crops)


@given(
    image=hnp.arrays(
        st.sampled_from([np.uint8, np.uint8, np.int32, np.float32]),
        hnp.array_shapes(min_dims=1, max_dims=5, max_side=4),
    )
)
@example(image=np.zeros((1, 1, 3), np.uint8))  # one row, turned over
def test_normalising(image):
    """Bytes there and back, whatever the strides."""
    fits = image.dtype == np.uint8 and image.ndim in (3, 4) and image.shape[-1] == 3
    if not fits:
        with pytest.raises(ValueError, match="normalise expects uint8 RGB"):
            normalise(image)
        return
    for view in (image, image[..., ::-1, :]):
        back = (denormalise(normalise(view)) * 255).round().to(torch.uint8)
        assert np.array_equal(back.movedim(-3, -1).numpy(), view)
