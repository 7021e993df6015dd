"""Masks, regions and other maps on disk, of which some are broken."""

import json

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from tests.fuzz.cases import fewer
from tests.fuzz.damage import PICTURES, damaged, grey_png, outcome
from tests.fuzz.test_fuzz_labels import LARGE, MINUS, stored
from uss_utils import map_files, mask_files, region_files, regions
from uss_utils.datasets.files import FileDataset
from uss_utils.datasets.labels import strict_table, voc_palette

pytestmark = pytest.mark.fuzz

SIZES = st.tuples(st.integers(1, 6), st.integers(1, 6))


def check_mask(path, binary):
    mask = outcome(lambda: mask_files.decode(path, binary).numpy(), path, ValueError)
    if mask is not None:
        assert mask.dtype == np.uint8 and mask.ndim == 2 and mask.size
        assert not binary or mask.max() <= 1
    return mask


@pytest.mark.parametrize(
    "kind", [k for k in sorted(PICTURES) if k.startswith(("png", "tiff", "gif", "bmp"))]
)
@given(data=st.data(), binary=st.booleans())
@fewer(4)
def test_damaged_maps(kind, data, binary, tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(data.draw(damaged(PICTURES[kind])))
    check_mask(path, binary)
    files = region_files.RegionFiles([path], ["a"])
    ids = outcome(lambda: files.read(0).numpy(), path, ValueError)
    assert ids is None or (ids.min() == 0 and len(np.unique(ids)) == ids.max() + 1)


@given(label=stored(), binary=st.booleans())
def test_masks(label, binary, tmp_path):
    ids, content = label
    path = tmp_path / "a.png"
    path.write_bytes(content)
    mask = check_mask(path, binary)
    if ids.max() > 255 or ids.min() < 0:
        assert mask is None
    elif mask is not None and not binary:
        assert np.array_equal(mask, ids)


@given(depth=st.sampled_from([1, 2, 4, 8]), data=st.data())
def test_masks_in_few_bits(depth, data, tmp_path):
    elements = st.integers(0, 2**depth - 1)
    ids = data.draw(hnp.arrays(np.uint8, SIZES, elements=elements))
    path = tmp_path / "a.png"
    path.write_bytes(grey_png(ids, depth))
    assert np.array_equal(check_mask(path, binary=False), ids)
    grey = ids * (255 // (2**depth - 1))
    inside = ids > 0 if ids.max() < 2 else grey > 127
    assert np.array_equal(check_mask(path, binary=True), inside)


@given(label=stored(), picture=SIZES)
@example(label=MINUS, picture=(2, 3))
@example(label=LARGE, picture=(2, 3))
def test_regions(label, picture, tmp_path):
    """Any integers from 0 on, numbered anew; of the size of the image."""
    ids, content = label
    path, image = tmp_path / "regions.png", tmp_path / "a.bmp"
    path.write_bytes(content)
    Image.new("RGB", picture[::-1]).save(image)
    data = FileDataset(
        "set", "all", [(image, None)], ["c"], voc_palette(1), strict_table(1)
    )
    for dataset in (None, data):
        files = region_files.RegionFiles([path], ["a"], dataset)
        found = outcome(lambda: files.read(0).numpy(), path, ValueError)  # noqa: B023
        if ids.min() < 0 or (dataset and ids.shape != picture):
            assert found is None
        else:
            assert np.array_equal(
                found, np.unique(ids, return_inverse=True)[1].reshape(ids.shape)
            )


@given(
    kind=st.sampled_from([np.uint8, np.uint16, np.int32, np.int64]),
    top=st.sampled_from([5, 255, 2**16, 2**31]),
    size=SIZES,
    data=st.data(),
)
def test_dense(kind, top, size, data):
    top = min(top - 1, np.iinfo(kind).max)
    ids = data.draw(hnp.arrays(kind, size, elements=st.integers(0, top)))
    found = regions.dense(ids)
    assert found.dtype == np.int64
    assert np.array_equal(
        found, np.unique(ids, return_inverse=True)[1].reshape(ids.shape)
    )


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.text(max_size=5) | st.sampled_from(["a", "n"]), inner, max_size=3
        )
    ),
    max_leaves=5,
)
TEXTS = JSON.map(lambda value: json.dumps(value).encode()) | st.binary(max_size=30)
DEEP = b"[" * 100_000


@given(content=TEXTS | damaged(b'{"a": 1, "n": 3}'))
@example(content=DEEP)
@example(content=b'[["a", 1], ["n", 3]]')
def test_what_a_folder_of_maps_says_of_itself(content, tmp_path):
    """Whatever stands there: the same options, or an error and nothing touched."""
    folder = tmp_path / "made"
    folder.mkdir(exist_ok=True)
    note = folder / "options.json"
    note.write_bytes(content)
    options = {"a": 1, "n": 3}

    def claim():
        with map_files.to_be_made(folder, 2, options, "maps") as (files, missing):
            return files, missing

    found = outcome(claim, folder, ValueError)
    assert note.read_bytes() == content
    assert [p.name for p in folder.iterdir()] == ["options.json"]
    assert found is None or found[1] == {0, 1}


@given(
    maps=st.lists(hnp.arrays(np.uint8, SIZES) | st.none(), min_size=1, max_size=4),
    wanted=st.lists(st.integers(-6, 6), max_size=4) | st.integers(-6, 6),
)
def test_reading_several(maps, wanted, tmp_path):
    for old in tmp_path.iterdir():
        old.unlink()
    paths = [tmp_path / f"{k}.png" for k in range(len(maps))]
    for path, each in zip(paths, maps, strict=True):
        if each is not None:
            map_files.write_map(path, each)
    try:
        files = mask_files.MaskFiles(paths, binary=False)
    except ValueError as error:
        assert "has a mask" in str(error) and all(each is None for each in maps)
        return
    assert [files.has(k) for k in range(len(maps))] == [
        each is not None and bool(each.any()) for each in maps
    ]
    indices = wanted if isinstance(wanted, list) else [wanted]
    outside = any(not 0 <= k < len(maps) for k in indices)
    try:
        found = files.read(wanted)
    except (ValueError, IndexError) as error:
        some = [maps[k] for k in indices if 0 <= k < len(maps)]
        sizes = {None if each is None else each.shape for each in some}
        assert outside or len(sizes) != 1 or None in sizes
        assert outside or isinstance(error, ValueError)
        return
    stack = np.stack([maps[k] for k in indices])
    assert np.array_equal(
        found.numpy(), stack if isinstance(wanted, list) else stack[0]
    )
