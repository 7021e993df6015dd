"""Picture files of all kinds, whole and broken: RGB, or one clear error."""

import zlib

import numpy as np
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import ExifTags, Image

from tests.fuzz.cases import fewer
from tests.fuzz.damage import (
    PICTURES,
    chunk,
    damaged,
    encoded,
    ihdr,
    outcome,
    photograph,
    png,
)
from uss_utils import photo_files, pictures
from uss_utils.datasets.files import read_image, stored_size

# Pillow warns of much that it reads all the same.
pytestmark = [pytest.mark.fuzz, pytest.mark.filterwarnings("ignore")]

KINDS = sorted(PICTURES)
UNREADABLE = {"eps", "tiff-float"}
LENIENT = {"jpeg2000", "pcx"}  # decoders that do not notice where a file ends
SMALL = st.integers(1, 9)


def check_reading(path):
    """Read a file in every way; returns the upright pixels, None where refused."""
    stored = outcome(lambda: read_image(path, upright=False), path, OSError)
    image = outcome(lambda: read_image(path), path, OSError)
    for upright, pixels in ((True, image), (False, stored)):
        size = outcome(lambda: stored_size(path, upright), path, OSError)  # noqa: B023
        if pixels is not None:
            assert pixels.dtype == np.uint8 and pixels.ndim == 3 and pixels.size
            assert pixels.shape[2] == 3
            assert size == pixels.shape[1::-1], "the header's size is another"
    try:
        assert np.array_equal(photo_files.read(path), image)
    except OSError as error:
        assert type(error) is OSError and image is None
        assert 0 < len(str(error)) < 200 and "\n" not in str(error)
    return image


@pytest.mark.parametrize("kind", KINDS)
@given(data=st.data())
@fewer(2)
def test_damaged(kind, data, tmp_path):
    path = tmp_path / "a.png"  # Pillow looks at the content
    path.write_bytes(data.draw(damaged(PICTURES[kind])))
    check_reading(path)


@pytest.mark.parametrize("kind", KINDS)
def test_cut_at_every_length(kind, tmp_path, record_property):
    """A file that ends early is refused unless all its pixels are there."""
    whole, path = PICTURES[kind], tmp_path / "a.jpg"
    path.write_bytes(whole)
    image = check_reading(path)
    assert (image is None) == (kind in UNREADABLE)
    # At every length in a full sweep, at some hundred otherwise.
    step = max(1, len(whole) // (3 * settings().max_examples))
    for length in range(0, len(whole), step):
        path.write_bytes(whole[:length])
        cut = outcome(lambda: read_image(path), path, OSError)
        partial = cut is not None and not np.array_equal(cut, image)
        assert not partial or kind in LENIENT, f"{length} of {len(whole)} bytes"
    record_property("cases", len(range(0, len(whole), step)))


@given(
    start=st.sampled_from(
        [b"", *(each[:n] for each in PICTURES.values() for n in (4, 16, 40))]
    ),
    rest=st.binary(max_size=300),
)
def test_noise(start, rest, tmp_path):
    path = tmp_path / "a.jpg"
    path.write_bytes(start + rest)
    check_reading(path)


NAMES = [b"tRNS", b"PLTE", b"eXIf", b"iCCP", b"gAMA", b"acTL", b"fcTL", b"zTXt"]
NAMES += [b"iTXt", b"tEXt", b"cHRM", b"pHYs", b"IDAT", b"fdAT", b"sRGB", b"IHDR"]


@given(
    sides=st.tuples(SMALL, SMALL),
    depth=st.sampled_from([1, 2, 4, 8, 16, 3]),
    colour=st.sampled_from([0, 2, 3, 4, 6, 1]),
    interlaced=st.integers(0, 2),
    before=st.lists(
        st.tuples(st.sampled_from(NAMES), st.binary(max_size=24)), max_size=2
    ),
    pixels=st.binary(max_size=100),
    after=st.lists(
        st.tuples(st.sampled_from(NAMES), st.binary(max_size=24)), max_size=2
    ),
)
@example(
    sides=(1, 1), depth=1, colour=3, interlaced=0, before=[], pixels=b"", after=[]
)  # a palette picture without palette
def test_png_of_strange_chunks(
    sides, depth, colour, interlaced, before, pixels, after, tmp_path
):
    """Checksums are right: what is wrong is found by the decoder alone."""
    path = tmp_path / "a.png"
    path.write_bytes(
        png(
            ihdr(*sides, depth, colour, interlaced),
            *(chunk(*each) for each in before),
            chunk(b"IDAT", zlib.compress(pixels)),
            *(chunk(*each) for each in after),
        )
    )
    check_reading(path)


@given(
    width=st.integers(0, 2**32 - 1) | st.sampled_from([0, 13_000, 60_000]),
    height=st.integers(0, 2**32 - 1) | st.sampled_from([0, 1, 60_000]),
    kind=st.sampled_from(["png-RGB", "bmp", "tiff", "ppm", "gif", "jpeg"]),
)
@fewer(2)
def test_huge_declared_size(width, height, kind, tmp_path):
    """A few bytes that claim to be a wall of pixels take no memory."""
    assume(width * height > 2e8 or not width * height)
    path = tmp_path / "a.png"
    path.write_bytes(resized(kind, width, height))
    image = check_reading(path)
    # Sides of 16 bits wrap around here; a GIF's frames have sizes of their own.
    assert image is None or kind in ("gif", "jpeg")


def resized(kind, width, height):
    """A small file whose header claims another size."""
    whole = bytearray(PICTURES[kind])
    if kind == "png-RGB":
        return png(ihdr(width, height, 8, 2), bytes(whole[33:-12]))
    if kind == "ppm":
        return f"P6 {width} {height} 255 ".encode() + bytes(20)
    small = (
        (width % 65536).to_bytes(2, "little"),
        (height % 65536).to_bytes(2, "little"),
    )
    if kind == "bmp":
        whole[18:26] = width.to_bytes(4, "little") + height.to_bytes(4, "little")
    elif kind == "gif":
        whole[6:10] = b"".join(small)
    elif kind == "jpeg":
        at = whole.index(b"\xff\xc0") + 5
        whole[at : at + 4] = small[1][::-1] + small[0][::-1]
    else:
        for tag, value in ((256, width), (257, height)):
            at = whole.index(tag.to_bytes(2, "little") + b"\x04\0\1\0\0\0")
            whole[at + 8 : at + 12] = value.to_bytes(4, "little")
    return bytes(whole)


LOSSLESS = ["PNG", "TIFF", "BMP", "WEBP"]


@given(
    pixels=hnp.arrays(np.uint8, st.tuples(SMALL, SMALL, st.just(3))),
    kind=st.sampled_from(LOSSLESS),
)
def test_pixels_come_back(pixels, kind, tmp_path):
    path = tmp_path / "a.dat"
    options = {"lossless": True} if kind == "WEBP" else {}
    Image.fromarray(pixels).save(path, kind, **options)
    assert np.array_equal(check_reading(path), pixels)
    with Image.open(path) as image:
        assert np.array_equal(pictures.read_picture(image), pixels)


@given(
    tag=st.integers(-1, 70_000)
    | st.sampled_from([1, 2, 3, 4, 5, 6, 7, 8, 9])
    | st.text(max_size=3)
    | st.lists(st.integers(0, 9), max_size=3).map(tuple)
    | st.binary(max_size=3)
    | st.sampled_from([6.0, 5.5]),
    kind=st.sampled_from(["JPEG", "PNG", "TIFF", "WEBP"]),
)
@example(tag=9, kind="JPEG")  # turned by nobody, and once by us
@example(tag=6, kind="TIFF")  # turned by Pillow, and once more by us
def test_any_note_of_the_camera(tag, kind, tmp_path):
    """Whatever the orientation tag holds: the header's size is that of the pixels."""
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = tag
    path = tmp_path / "a.dat"
    try:
        path.write_bytes(encoded(photograph(5, 8), kind, exif=exif))
    except Exception:  # noqa: BLE001  such a tag cannot be written
        assume(False)
    check_reading(path)


@given(exif=st.binary(max_size=60), kind=st.sampled_from(["JPEG", "PNG", "WEBP"]))
def test_any_bytes_as_note_of_the_camera(exif, kind, tmp_path):
    path = tmp_path / "a.dat"
    start = b"Exif\0\0II*\0\x08\0\0\0"
    path.write_bytes(encoded(photograph(5, 8), kind, exif=start + exif))
    check_reading(path)


ARRAYS = hnp.arrays(
    st.sampled_from([np.uint8, np.uint8, np.int64, np.float32, np.bool_, np.uint16]),
    hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=5),
)


@given(array=ARRAYS)
def test_arrays_as_pictures(array):
    try:
        image = pictures.read_picture(array)
    except ValueError as error:
        assert "an array must be uint8" in str(error) and "\n" not in str(error)
        return
    assert array.dtype == np.uint8 and image.dtype == np.uint8
    assert image.shape == (*array.shape[:2], 3)


@given(
    size=st.tuples(st.integers(1, 100_000), st.integers(1, 100_000)),
    patch=st.integers(1, 64),
    most=st.integers(1, 2000),
)
def test_working_size(size, patch, most):
    if most < patch:
        with pytest.raises(ValueError, match="is smaller than a patch"):
            pictures.working_size(size, patch, most)
        return
    height, width = pictures.working_size(size, patch, most)
    assert height % patch == width % patch == 0
    assert patch <= min(height, width) and max(height, width) < most + patch
