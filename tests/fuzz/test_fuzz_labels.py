"""Label files of all kinds, and the tables that make classes of their ids."""

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from tests.fuzz.cases import fewer
from tests.fuzz.damage import PICTURES, damaged, encoded, grey_png, outcome
from uss_utils.datasets import labels
from uss_utils.datasets.files import FileDataset, read_ids
from uss_utils.datasets.folder import FolderDataset
from uss_utils.datasets.labels import LABEL_MAPS, remap, strict_table, voc_palette

pytestmark = pytest.mark.fuzz

SMALL = st.integers(1, 7)
SIZES = st.tuples(SMALL, SMALL)
# Pillow's mode of a label, what it holds, and formats that store it.
MODES = {
    "1": (np.bool_, ("PNG", "TIFF", "BMP")),
    "L": (np.uint8, ("PNG", "TIFF", "BMP")),
    "P": (np.uint8, ("PNG", "TIFF", "BMP")),
    "I;16": (np.uint16, ("PNG", "TIFF")),
    "I": (np.int32, ("TIFF",)),
}
COLOURS = ("RGB", "RGBA", "LA", "CMYK", "F")


@st.composite
def stored(draw, modes=tuple(MODES), sizes=SIZES):
    """Ids, and a file that holds them."""
    mode = draw(st.sampled_from(modes))
    kind, formats = MODES[mode]
    ids = draw(hnp.arrays(kind, sizes))
    image = Image.fromarray(ids)
    if mode == "P":
        image = Image.fromarray(ids, "L").convert("P")
        image.putpalette(voc_palette(256).tobytes())
        image = image.copy()
        image.frombytes(ids.tobytes())
    return ids.astype(np.int64), encoded(image, draw(st.sampled_from(formats)))


@given(label=stored())
def test_every_id_comes_back(label, tmp_path):
    ids, content = label
    path = tmp_path / "a.png"
    path.write_bytes(content)
    found = read_ids(path)
    assert found.dtype.kind in "iu" and np.array_equal(found, ids)


@given(depth=st.sampled_from([1, 2, 4, 8]), data=st.data())
def test_ids_in_few_bits(depth, data, tmp_path):
    """What programs that make PNGs smaller leave: the ids, in fewer bits."""
    ids = data.draw(hnp.arrays(np.uint8, SIZES, elements=st.integers(0, 2**depth - 1)))
    path = tmp_path / "a.png"
    path.write_bytes(grey_png(ids, depth))
    assert np.array_equal(read_ids(path), ids)


@given(mode=st.sampled_from(COLOURS), size=SIZES, kind=st.sampled_from(["PNG", "TIFF"]))
def test_colours_are_refused(mode, size, kind, tmp_path):
    kind = "TIFF" if mode in ("CMYK", "F") else kind
    path = tmp_path / "a.png"
    path.write_bytes(encoded(Image.new(mode, size), kind))
    with pytest.raises(ValueError, match="a.png is a colour picture"):
        read_ids(path)


@pytest.mark.parametrize("kind", [k for k in sorted(PICTURES) if "jpeg" not in k])
@given(data=st.data())
@fewer(4)
def test_damaged_labels(kind, data, tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(data.draw(damaged(PICTURES[kind])))
    ids = outcome(lambda: read_ids(path), path, OSError, ValueError)
    assert ids is None or (ids.ndim == 2 and ids.dtype.kind in "iu" and ids.size)


SEVENS = np.full((2, 2), 7), encoded(Image.new("L", (2, 2), 7), "PNG")
TABLES = {
    **{name: (table, False) for name, table in LABEL_MAPS.items()},
    "strict": (strict_table(5), True),
    "strict-11": (strict_table(11, ignore=11), True),
    "one": (strict_table(1), True),
    "none": (strict_table(1, ignore=0), True),
}


@given(name=st.sampled_from(sorted(TABLES)), label=stored(), picture=SIZES)
@example(name="none", label=SEVENS, picture=(2, 2))  # no class to tell of
def test_label_of_an_item(name, label, picture, tmp_path):
    """Classes, -1 where ignored; or an error that names the file."""
    table, strict = TABLES[name]
    ids, content = label
    image, path = tmp_path / "a.bmp", tmp_path / "labels" / "a.png"
    path.parent.mkdir(exist_ok=True)
    Image.new("RGB", picture[::-1]).save(image)
    path.write_bytes(content)
    k = max(1, int(table.max()) + 1)
    data = FileDataset("set", "all", [(image, path)], ["c"] * k, voc_palette(k), table)
    for read in (data.read_label, lambda i: data.read(i)[1]):
        found = outcome(lambda: read(0), path, ValueError)  # noqa: B023
        known = (ids >= 0) & (ids < len(table))
        mapped = np.where(
            known, table[ids.clip(0, len(table) - 1)], -2 if strict else -1
        )
        if picture != ids.shape or (strict and mapped.min() < -1):
            assert found is None
        else:
            assert found.dtype == np.int64 and np.array_equal(found, mapped)
            assert -1 <= found.min() and found.max() < k


INTEGERS = [np.int8, np.uint8, np.int16, np.uint16, np.int32, np.uint32, np.int64]


@given(
    ids=hnp.arrays(
        st.sampled_from([*INTEGERS, np.uint64]),
        hnp.array_shapes(min_dims=0, min_side=0),
    ),
    table=hnp.arrays(np.int64, st.integers(1, 300), elements=st.integers(-1, 30))
    | st.sampled_from(sorted(LABEL_MAPS)),
)
def test_remap(ids, table):
    found = remap(ids, table)
    entries = (LABEL_MAPS[table] if isinstance(table, str) else table).tolist()
    expected = [
        entries[i] if 0 <= i < len(entries) else -1 for i in ids.ravel().tolist()
    ]
    assert found.dtype == np.int64 and found.shape == ids.shape
    assert found.ravel().tolist() == expected
    if ids.dtype != np.uint64:
        assert np.array_equal(remap(torch.from_numpy(ids.copy()), table).numpy(), found)


@given(
    ids=hnp.arrays(st.sampled_from([np.float32, np.bool_, np.complex64, "U2"]), SIZES),
    name=st.sampled_from(sorted(LABEL_MAPS)) | st.text(max_size=4),
)
def test_remap_refuses(ids, name):
    with pytest.raises(
        ValueError, match="label ids must be integers|unknown label map"
    ):
        remap(ids, name)


@given(n=st.integers(-5, 70_000), ignore=st.integers(-300, 100_000) | st.just(255))
def test_strict_table(n, ignore):
    try:
        table = strict_table(n, ignore)
    except ValueError as error:
        assert not (0 <= ignore < 2**16 and 0 <= n <= 2**16)
        assert str(ignore) in str(error) or str(n) in str(error)
        return
    assert table[ignore] == -1 and len(table) >= 256 and len(table) > ignore
    assert set(np.unique(table[n:])) <= {-2, -1}
    assert np.array_equal(
        np.delete(table[:n], [ignore] * (ignore < n)),
        np.delete(np.arange(n), [ignore] * (ignore < n)),
    )


@given(n=st.integers(0, 300), name=st.sampled_from(sorted(labels.CLASS_NAMES)))
def test_palettes(n, name):
    for colours in (voc_palette(n), labels.palette(name, n)):
        assert colours.shape == (n, 3) and colours.dtype == np.uint8


def _wide(number):
    ids = np.full((2, 3), number, np.int32)
    return ids.astype(np.int64), encoded(Image.fromarray(ids), "TIFF")


MINUS, LARGE = _wide(-1), _wide(2**31 - 1)


@given(
    maps=st.lists(stored(sizes=st.just((2, 3))), min_size=1, max_size=2),
    classes=st.none()
    | st.integers(-3, 300)
    | st.lists(st.text(max_size=5), max_size=4)
    | st.just(10**9),
    ignore=st.integers(-10, 300) | st.sampled_from([0, 255, 65_535, 10**9]),
)
@example(
    maps=[(np.full((2, 3), 7), encoded(Image.new("L", (3, 2), 7), "PNG"))],
    classes=1,
    ignore=10**9,
)
@example(maps=[MINUS], classes=256, ignore=0)  # no id of 8 bits is wrong
@example(maps=[LARGE], classes=None, ignore=255)  # two thousand million classes
@fewer(2)
def test_folder_with_any_labels(maps, classes, ignore, tmp_path):
    """As many classes as are asked for or in use; wrong settings make one error."""
    (tmp_path / "imgs").mkdir(exist_ok=True)
    (tmp_path / "labels").mkdir(exist_ok=True)
    for old in tmp_path.glob("*/*"):
        old.unlink()
    for k, (_, content) in enumerate(maps):
        Image.new("RGB", (3, 2)).save(tmp_path / "imgs" / f"{k}.png")
        (tmp_path / "labels" / f"{k}.png").write_bytes(content)
    try:
        data = FolderDataset(tmp_path, classes=classes, ignore=ignore)
    except ValueError as error:
        assert type(error) is ValueError and "\n" not in str(error)
        highest = max(int(ids.max()) for ids, _ in maps)
        odd = classes in (0, []) or (
            isinstance(classes, int) and not 0 < classes <= 2**16
        )
        assert odd or not 0 <= ignore < 2**16 or (classes is None and highest >= 2**16)
        return
    for k, (ids, _) in enumerate(maps):
        path = tmp_path / "labels" / f"{k}.png"
        label = outcome(lambda: data.read_label(k), path, ValueError)  # noqa: B023
        wrong = (ids != ignore) & ((ids < 0) | (ids >= data.n_classes))
        assert (label is None) == bool(wrong.any())
        if label is not None:
            assert np.array_equal(label, np.where(ids == ignore, -1, ids))
