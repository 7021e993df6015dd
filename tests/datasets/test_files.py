"""Decoding image and label files."""

import numpy as np
import pytest
import torch
from PIL import Image

from uss_utils.datasets import files
from uss_utils.datasets.files import FileDataset, list_files, read_ids, read_image
from uss_utils.datasets.labels import strict_table

CUT = ["jpg", "progressive.jpg", "png", "bmp", "tif", "webp"]
RNG = np.random.default_rng(0)
PHOTO = RNG.integers(0, 256, (24, 32, 3), dtype=np.uint8)


def save(path, array, mode=None, **options):
    image = Image.fromarray(array)
    (image.convert(mode) if mode else image).save(path, **options)
    return path


@pytest.mark.parametrize("suffix", ["png", "bmp", "tif", "webp", "PNG"])
def test_lossless_formats(tmp_path, suffix):
    options = {"lossless": True} if suffix == "webp" else {}
    path = save(tmp_path / f"a.{suffix}", PHOTO, **options)
    image = read_image(path)
    assert np.array_equal(image, PHOTO)
    image[0] = 0  # the caller owns it


@pytest.mark.parametrize("suffix", ["jpg", "JPEG"])
def test_jpeg(tmp_path, suffix):
    image = read_image(save(tmp_path / f"a.{suffix}", PHOTO // 64 * 8 + 100))
    assert image.shape == PHOTO.shape
    assert abs(image.astype(int).mean() - (PHOTO // 64 * 8 + 100).mean()) < 3


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_cameras_orientation_is_applied(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = read_image(save(tmp_path / "a.png", PHOTO, exif=exif))
    turns = {
        1: PHOTO,
        2: PHOTO[:, ::-1],
        3: PHOTO[::-1, ::-1],
        4: PHOTO[::-1],
        5: PHOTO.transpose(1, 0, 2),
        6: np.rot90(PHOTO, -1),
        7: PHOTO.transpose(1, 0, 2)[::-1, ::-1],
        8: np.rot90(PHOTO),
    }
    assert np.array_equal(image, turns[orientation])


def test_grey_becomes_rgb(tmp_path):
    image = read_image(save(tmp_path / "a.png", PHOTO[..., 0]))
    assert np.array_equal(image, np.repeat(PHOTO[..., :1], 3, axis=2))


def test_sixteen_bits_are_scaled_not_clipped(tmp_path):
    values = np.array([[0, 128, 129, 257 * 100, 65535, 4000]], dtype=np.uint16)
    image = read_image(save(tmp_path / "a.png", values))
    assert image[0, :, 0].tolist() == [0, 0, 1, 100, 255, 16]
    deep = values.astype(np.int32) * 70000
    with pytest.raises(OSError, match="32-bit values; convert it to 8 or 16 bits"):
        read_image(save(tmp_path / "deep.tif", deep))
    with pytest.raises(OSError, match="floating-point values"):
        read_image(save(tmp_path / "float.tif", values.astype(np.float32)))


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparency_is_laid_on_white(tmp_path, mode):
    alpha = np.zeros((24, 32, 1), np.uint8)
    alpha[:, 16:] = 255
    path = tmp_path / "a.png"
    Image.fromarray(np.concatenate([PHOTO, alpha], axis=2)).convert(mode).save(path)
    image = read_image(path)
    assert (image[:, :16] == 255).all()
    expected = PHOTO
    if mode == "LA":
        expected = np.asarray(Image.fromarray(PHOTO).convert("L").convert("RGB"))
    assert np.array_equal(image[:, 16:], expected[:, 16:])


def test_palette_images_and_their_transparent_colour(tmp_path):
    picture = Image.fromarray(np.array([[0, 1]], np.uint8), mode="P")
    picture.putpalette([10, 20, 30, 40, 50, 60])
    picture.save(tmp_path / "a.png", transparency=1)
    assert read_image(tmp_path / "a.png").tolist() == [[[10, 20, 30], [255] * 3]]
    picture.save(tmp_path / "b.png")
    assert read_image(tmp_path / "b.png")[0, 1].tolist() == [40, 50, 60]


def test_four_colour_print_jpeg(tmp_path):
    save(tmp_path / "a.jpg", np.full((8, 8, 3), 200, np.uint8), "CMYK")
    image = read_image(tmp_path / "a.jpg")
    assert abs(image.astype(int) - 200).max() < 6


@pytest.mark.parametrize("suffix", CUT)
@pytest.mark.parametrize("kept", [0.0, 0.3, 0.9, 0.99])
def test_truncated_files_never_give_half_a_picture(tmp_path, suffix, kept):
    big = RNG.integers(0, 256, (200, 300, 3), dtype=np.uint8)
    options = {"progressive": True} if "progressive" in suffix else {}
    path = save(tmp_path / f"cut.{suffix}", big, **options)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * kept)])
    with pytest.raises(OSError, match=rf"cannot read image .*cut\.{suffix}.*replace"):
        read_image(path)


def test_not_an_image_and_not_there(tmp_path):
    (tmp_path / "a.jpg").write_text("<html>404</html>")
    with pytest.raises(OSError, match="cannot read image .*a.jpg.*remove it"):
        read_image(tmp_path / "a.jpg")
    with pytest.raises(FileNotFoundError, match="no image file at .*b.jpg"):
        read_image(tmp_path / "b.jpg")


@pytest.mark.parametrize("mode", ["L", "P", "1", "16"])
def test_stored_ids_are_read_as_they_are(tmp_path, mode):
    ids = np.array([[0, 1], [1, 0]] if mode == "1" else [[0, 7], [255, 3]])
    array = ids.astype(np.uint16 if mode == "16" else np.uint8)
    if mode == "1":
        array = array.astype(bool)
    image = Image.fromarray(array, mode="P" if mode == "P" else None)
    if mode == "P":
        image.putpalette(RNG.integers(0, 256, 768, dtype=np.uint8).tobytes())
    image.save(tmp_path / "a.png")
    assert np.array_equal(read_ids(tmp_path / "a.png"), ids)


def test_bad_labels(tmp_path):
    save(tmp_path / "colour.png", PHOTO)
    with pytest.raises(ValueError, match=r"colour.png is a colour picture \(mode RGB"):
        read_ids(tmp_path / "colour.png")
    (tmp_path / "broken.png").write_bytes(b"\x89PNG")
    with pytest.raises(OSError, match="cannot read label .*broken.png"):
        read_ids(tmp_path / "broken.png")
    with pytest.raises(FileNotFoundError, match="no label file at"):
        read_ids(tmp_path / "absent.png")


def test_list_files(tmp_path):
    for name in ("b.JPG", "a.png", "._a.png", "notes.txt", "c.WebP"):
        (tmp_path / name).touch()
    assert [p.name for p in list_files(tmp_path)] == ["a.png", "b.JPG", "c.WebP"]


# -------------------------------------------------------------------- file data sets


def file_set(pairs, table=None, upright=True):
    table = strict_table(3) if table is None else table
    colours = np.zeros((3, 3), np.uint8)
    data = FileDataset("toy", "train", pairs, ("a", "b", "c"), colours, table)
    data.upright = upright
    return data


def test_labels_alone_need_no_decoded_image(tmp_path, monkeypatch):
    label = save(tmp_path / "l.png", RNG.integers(0, 3, (24, 32), dtype=np.uint8))
    images = [save(tmp_path / f"i.{suffix}", PHOTO) for suffix in ("jpg", "png")]
    pairs = [(images[0], label), (images[1], label), (images[0], None)]
    data = file_set(pairs, upright=False)
    expected = data.batch([0, 1, 2])[1]
    monkeypatch.setattr(files, "read_image", None)
    assert torch.equal(data.labels([0, 1, 2]), expected)
    assert torch.equal(data.subset([1, 2]).labels([0, 1]), expected[1:])
    assert (expected[2] == -1).all() and expected[0].max() == 2


@pytest.mark.parametrize("upright", [True, False])
def test_the_cameras_tag_turns_only_sets_that_want_it(tmp_path, upright):
    exif = Image.Exif()
    exif[0x0112] = 6
    image = save(tmp_path / "i.jpg", PHOTO, exif=exif)
    size = (32, 24) if upright else (24, 32)
    right = save(tmp_path / "l.png", np.zeros(size, np.uint8))
    wrong = save(tmp_path / "w.png", np.zeros(size[::-1], np.uint8))
    data = file_set([(image, right), (image, wrong)], upright=upright)
    assert data.read(0)[0].shape[:2] == size == data.read_label(0).shape
    assert data.read_size(0) == size
    for read in (data.read, data.read_label):
        with pytest.raises(ValueError, match=r"sizes differ: image .*i.jpg .*w.png is"):
            read(1)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_unknown_ids_are_refused_or_ignored_as_the_table_says(tmp_path, dtype):
    ids = np.array([[0, 1, 2, 200]], dtype)
    if dtype == np.uint16:
        ids[0, 3] = 1000
    pair = (save(tmp_path / "i.png", PHOTO[:1, :4]), save(tmp_path / "l.png", ids))
    lenient = np.array([2, -1, 0] + [-1] * 253)
    assert file_set([pair], lenient).read(0)[1].tolist() == [[2, -1, 0, -1]]
    match = rf"label id {ids[0, 3]} in .*l.png .*ids 0\.\.2 and 255 \(ignored\) are kn"
    with pytest.raises(ValueError, match=match):
        file_set([pair]).read(0)
