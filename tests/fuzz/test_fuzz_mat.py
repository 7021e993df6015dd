"""MATLAB files of SBD and Potsdam, mutated: ids, pixels, or one clear error."""

import io

import numpy as np
import pytest
import scipy.io
import scipy.sparse
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from tests.fuzz.cases import fewer
from tests.fuzz.damage import damaged, outcome
from uss_utils.datasets import labels, mat_files, potsdam, sbd

pytestmark = pytest.mark.fuzz

SIDES = st.integers(1, 6)


def mat(content, **options) -> bytes:
    """A MATLAB file of some variables."""
    file = io.BytesIO()
    scipy.io.savemat(file, content, **options)
    return file.getvalue()


def sbd_file(ids, **options) -> bytes:
    """A label as SBD has it: a struct with the ids, the edges and a list of classes."""
    edges = np.empty((20, 1), object)
    for k in range(20):
        edges[k, 0] = scipy.sparse.csc_matrix(ids == k)
    held = {
        "Boundaries": edges,
        "Segmentation": ids,
        "CategoriesPresent": np.unique(ids),
    }
    return mat({"GTcls": held}, **options)


IDS = (np.arange(48).reshape(6, 8) % 21).astype(np.uint8)
SBD = [sbd_file(IDS), sbd_file(IDS, do_compression=True)]
IMG = np.arange(96, dtype=np.uint8).reshape(4, 6, 4)
GT = np.arange(24, dtype=np.int32).reshape(4, 6) % 7
PATCHES = [
    mat({"img": IMG, "gt": GT}, do_compression=compressed) for compressed in (0, 1)
]
PATCHES.append(mat({"gt": GT}, format="4"))


@pytest.fixture(scope="module")
def patches(tmp_path_factory):
    """Potsdam with one patch, whose files the tests replace."""
    root = tmp_path_factory.mktemp("potsdam")
    for folder in ("imgs", "gt"):
        (root / folder).mkdir()
        (root / folder / "7.mat").write_bytes(PATCHES[0])
    (root / "labelled_train.txt").write_text("7\n")
    return potsdam.Potsdam("train", root)


def check_sbd(path):
    ids = outcome(lambda: sbd.read_label(path), path, OSError, ValueError)
    if ids is not None:
        assert ids.dtype == np.uint8 and ids.ndim == 2 and ids.size and ids.max() <= 20
    return ids


def check_patch(data):
    """Reads the only item in every way."""
    path = data.pairs[0][0]
    image = outcome(lambda: data.read_image(0), path, OSError, ValueError)
    size = outcome(lambda: data.read_size(0), path, OSError, ValueError)
    label = outcome(lambda: data.read_label(0), path, OSError, ValueError)
    if image is not None:
        assert image.dtype == np.uint8 and image.shape == (*size, 3) and image.size
    if label is not None:
        assert label.dtype == np.int64 and label.shape == size
        assert label.min() >= -1 and label.max() < 3
    return image, label


@given(which=st.sampled_from(SBD), data=st.data())
def test_damaged_sbd(which, data, tmp_path):
    """scipy's reader ends the process on some of these."""
    path = tmp_path / "2008_000001.mat"
    path.write_bytes(data.draw(damaged(which)))
    check_sbd(path)


@given(data=st.data())
def test_compressed_files_have_a_checksum(data, tmp_path):
    """One wrong byte in what is compressed never passes for other ids."""
    path, whole = tmp_path / "a.mat", bytearray(SBD[1])
    whole[data.draw(st.integers(136, len(whole) - 1))] ^= data.draw(st.integers(1, 255))
    path.write_bytes(whole)
    ids = check_sbd(path)
    assert ids is None or np.array_equal(ids, IDS)


@given(
    which=st.sampled_from(PATCHES),
    place=st.sampled_from(["imgs", "gt"]),
    data=st.data(),
)
def test_damaged_patches(which, place, data, patches):
    for folder in ("imgs", "gt"):
        content = data.draw(damaged(which)) if folder == place else PATCHES[0]
        (patches.root / folder / "7.mat").write_bytes(content)
    check_patch(patches)


@pytest.mark.parametrize("which", [0, 1])
def test_sbd_cut_at_every_length(which, tmp_path, record_property):
    path, whole = tmp_path / "a.mat", SBD[which]
    for length in range(0, len(whole), 3):
        path.write_bytes(whole[:length])
        ids = check_sbd(path)
        assert ids is None or np.array_equal(ids, IDS)
    record_property("cases", len(range(0, len(whole), 3)))


HEADERS = st.sampled_from(
    [
        b"MATLAB 7.3 MAT-file, Platform: GLNXA64".ljust(124) + b"\x00\x02IM",
        b"\x89HDF\r\n\x1a\n",
        b"MATLAB 5.0 MAT-file".ljust(124) + b"\x00\x01IM",
        b"MATLAB 5.0 MAT-file".ljust(124) + b"\x01\x00MI",
        b"\0" * 20,
        b"",
    ]
)


@given(start=HEADERS, rest=st.binary(max_size=200))
def test_noise(start, rest, tmp_path, patches):
    path = tmp_path / "a.mat"
    path.write_bytes(start + rest)
    check_sbd(path)
    for folder in ("imgs", "gt"):
        (patches.root / folder / "7.mat").write_bytes(start + rest)
    check_patch(patches)


NUMBERS = [
    np.uint8,
    np.int8,
    np.int16,
    np.uint16,
    np.int64,
    np.uint64,
    np.float64,
    bool,
]
ARRAYS = hnp.arrays(
    st.sampled_from(NUMBERS),
    hnp.array_shapes(min_dims=1, max_dims=4, min_side=0, max_side=4),
)
LABELS = hnp.arrays(np.uint8, st.tuples(SIDES, SIDES), elements=st.integers(0, 22))


def _cell(values):
    cell = np.empty(len(values), object)
    cell[:] = values
    return cell


VALUES = st.recursive(
    ARRAYS
    | LABELS
    | st.text("ab", max_size=3)
    | st.integers(-5, 300)
    | st.just(scipy.sparse.csc_matrix(np.eye(3))),
    lambda inner: (
        st.dictionaries(
            st.sampled_from(["Segmentation", "Boundaries", "other"]), inner, max_size=2
        )
        | st.lists(inner, max_size=2).map(_cell)
    ),
    max_leaves=3,
)


@given(
    content=st.dictionaries(
        st.sampled_from(["GTcls", "GTinst", "img", "gt", "x"]), VALUES, max_size=3
    )
    | VALUES.map(lambda value: {"GTcls": {"Segmentation": value}})
    | st.tuples(VALUES, VALUES).map(lambda pair: {"img": pair[0], "gt": pair[1]}),
    compressed=st.booleans(),
)
@example(
    content={"GTcls": np.zeros((0, 0), [("Segmentation", object)])}, compressed=False
)
@example(
    content={"GTcls": {"Segmentation": np.zeros((0, 3), np.uint8)}}, compressed=False
)
@example(
    content={"img": np.zeros((0, 0, 4), np.uint8), "gt": IDS[:0]}, compressed=False
)
def test_other_variables(content, compressed, tmp_path, patches):
    """Structs, cells, texts and arrays of other shapes where a label is expected."""
    try:
        stored = mat(content, do_compression=compressed)
    except (ValueError, TypeError):  # scipy cannot write it
        return
    path = tmp_path / "a.mat"
    path.write_bytes(stored)
    check_sbd(path)
    for folder in ("imgs", "gt"):
        (patches.root / folder / "7.mat").write_bytes(stored)
    check_patch(patches)


@given(
    ids=LABELS
    | hnp.arrays(np.int16, st.tuples(SIDES, SIDES), elements=st.integers(-2, 300)),
    compressed=st.booleans(),
)
def test_labels_of_sbd(ids, compressed, tmp_path):
    path = tmp_path / "a.mat"
    path.write_bytes(sbd_file(ids, do_compression=compressed))
    found = check_sbd(path)
    if ids.min() < 0 or ids.max() > 20:
        assert found is None
    else:
        assert np.array_equal(found, ids)
        (tmp_path / "out").mkdir(exist_ok=True)
        sbd.convert(tmp_path / "out", ("a", path))
        assert np.array_equal(np.array(Image.open(tmp_path / "out" / "a.png")), ids)


@given(data=st.data(), which=st.sampled_from(SBD))
@fewer(2)
def test_conversion_leaves_nothing_half(data, which, tmp_path):
    path, out = tmp_path / "a.mat", tmp_path / "out"
    path.write_bytes(data.draw(damaged(which)))
    out.mkdir(exist_ok=True)
    for old in out.iterdir():
        old.unlink()
    outcome(lambda: sbd.convert(out, ("a", path)), path, OSError, ValueError)
    left = [file.name for file in out.iterdir()]
    assert left in ([], ["a.png"])
    assert not left or np.array(Image.open(out / "a.png")).max() <= 20


@given(
    image=hnp.arrays(
        st.sampled_from([np.uint8, np.uint16, np.float32]),
        hnp.array_shapes(min_dims=2, max_dims=3, min_side=0, max_side=5),
    ),
    ids=hnp.arrays(
        st.sampled_from(NUMBERS[:6]),
        hnp.array_shapes(min_dims=1, max_dims=3, max_side=5),
    ),
)
def test_patches(image, ids, patches):
    for folder in ("imgs", "gt"):
        (patches.root / folder / "7.mat").write_bytes(mat({"img": image, "gt": ids}))
    found, label = check_patch(patches)
    fits = image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] >= 3
    assert (found is not None) == (fits and image.size > 0)
    if found is not None:
        assert np.array_equal(found, image[..., :3])
    if label is not None:
        assert np.array_equal(label, labels.remap(np.atleast_2d(ids), "potsdam3"))


@given(
    arrays=st.dictionaries(
        st.text("abXY_", min_size=1, max_size=70), ARRAYS, max_size=3
    ),
    compressed=st.booleans(),
    wanted=st.integers(0, 3),
)
def test_arrays_come_back(arrays, compressed, wanted, tmp_path):
    """Whole files: what scipy's own reader makes of them."""
    arrays = {f"v{name}"[:31]: value for name, value in arrays.items()}
    path = tmp_path / "a.mat"
    path.write_bytes(mat(arrays, do_compression=compressed))
    expected = {
        name: value
        for name, value in scipy.io.loadmat(path).items()
        if not name.startswith("__")
    }
    for name, value in expected.items():
        found = mat_files.read(path, name)
        assert found.dtype == value.dtype
        assert found.shape == value.shape == mat_files.shape(path, name)
        np.testing.assert_array_equal(found, value)  # NaN, too
        assert found.flags.c_contiguous and found.flags.writeable
    name = f"w{wanted}"
    assert mat_files.shape(path, name) == ()
    with pytest.raises(ValueError, match=f"but no array named '{name}'"):
        mat_files.read(path, name)
