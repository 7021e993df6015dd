"""A folder of pictures of every kind that people have, good and broken ones mixed."""

import io
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image

from uss_utils.datasets.scenes import scene

# Names that a page or a shell could stumble over; each with a kind to write.
NAMES = {
    "plain.jpg": "JPEG",
    "plain.png": "PNG",
    "Plain.webp": "WEBP",
    "two words.jpg": "JPEG",
    "Grüße aus 東京.jpg": "JPEG",
    "<b>bold & \"quoted\" 'name'.png": "PNG",
    "50% #1 really?.jpg": "JPEG",
    "dots.in.the.name.jpg": "JPEG",
    "dots.in.the.name.jpg.png": "PNG",
    "no_suffix": "PNG",
    "wrong_suffix.jpg": "PNG",
    "CAPITALS.JPG": "JPEG",
    "old.bmp": "BMP",
    "large.tif": "TIFF",
}


def street(index: int, size: int = 72) -> np.ndarray:
    """A generated street, uint8 (H, W, 3), not square."""
    image = scene(index, seed=5, size=size).image
    return image[: size * 2 // 3] if index % 3 else image[:, : size * 3 // 4]


def write_kinds(folder: Path, picture=street, n: int = 50) -> tuple[dict, set]:
    """Write ``n`` files, a dozen of them broken.

    Args:
        folder: made where missing.
        picture: index to pixels.
        n: files wanted, at least as many as there are kinds.

    Returns:
        Upright (H, W) of every good file by its name, and the names of the others.
    """
    folder.mkdir(parents=True, exist_ok=True)
    good = {}
    for name, kind in NAMES.items():
        pixels = picture(len(good))
        Image.fromarray(pixels).save(folder / name, kind)
        good[name] = pixels.shape[:2]
    for tag in range(2, 9):
        good |= _exif(folder / f"turned_{tag}.jpg", picture(len(good)), tag)
    for mode, name in _MODES.items():
        pixels = picture(len(good))
        _converted(pixels, mode).save(folder / name)
        good[name] = pixels.shape[:2]
    good |= _odd(folder, picture)
    bad = _broken(folder, picture)
    if len(good) + len(bad) > n:
        raise ValueError(f"{len(good) + len(bad)} kinds do not fit into {n} files")
    for k in range(n - len(good) - len(bad)):
        pixels = picture(100 + k)
        Image.fromarray(pixels).save(folder / f"photo_{k:02d}.jpg", quality=90)
        good[f"photo_{k:02d}.jpg"] = pixels.shape[:2]
    return good, bad


_MODES = {
    "1": "two_colours.png",
    "L": "grey.jpg",
    "LA": "grey_alpha.png",
    "RGBA": "alpha.png",
    "P": "palette.png",
    "CMYK": "print.jpg",
    "I;16": "deep.png",
    "I": "deeper.tif",
}


def _converted(pixels: np.ndarray, mode: str) -> Image.Image:
    image = Image.fromarray(pixels)
    if mode.startswith("I"):
        deep = np.asarray(image.convert("L")).astype(np.uint16) * 257
        return Image.fromarray(deep.astype(np.int32) if mode == "I" else deep)
    if mode.endswith("A"):
        image.putalpha(image.convert("L"))
    return image.quantize(32) if mode == "P" else image.convert(mode)


# By orientation tag: the inverse of what a viewer does.
_STORED = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


def _exif(path: Path, pixels: np.ndarray, tag: int) -> dict:
    """Stored turned or mirrored, with the camera's note how to undo that."""
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = tag
    Image.fromarray(pixels).transpose(_STORED[tag]).save(path, exif=exif, quality=95)
    return {path.name: pixels.shape[:2]}


def _odd(folder: Path, picture) -> dict:
    """An animation, a palette with a hole, one pixel, a strip."""
    frames = [Image.fromarray(picture(k)[:40, :40]).quantize(16) for k in (1, 2, 4)]
    frames[0].save(folder / "moving.gif", save_all=True, append_images=frames[1:])
    hole = Image.fromarray(picture(5)).quantize(16)
    hole.save(folder / "hole.png", transparency=0)
    Image.fromarray(picture(3)[:1, :1]).save(folder / "pixel.png")
    strip = np.tile(picture(4)[:5], (1, 6, 1))
    Image.fromarray(strip).save(folder / "strip.png")
    return {
        "moving.gif": (40, 40),
        "hole.png": hole.size[::-1],
        "pixel.png": (1, 1),
        "strip.png": strip.shape[:2],
    }


def _broken(folder: Path, picture) -> set:
    stored = {}
    for kind in ("JPEG", "PNG"):
        file = io.BytesIO()
        Image.fromarray(picture(6)).save(file, kind)
        stored[kind] = file.getvalue()
    middle = len(stored["PNG"]) // 2
    files = {
        "cut_off.jpg": stored["JPEG"][: len(stored["JPEG"]) // 2],
        "cut_off.png": stored["PNG"][: len(stored["PNG"]) // 2],
        "header_only.jpg": stored["JPEG"][:40],
        "scratched.png": stored["PNG"][:middle] + bytes(64) + stored["PNG"][middle:],
        "empty.jpg": b"",
        "letters.jpg": b"These are letters, no pixels.\n",
        "notes & <todo>.txt": b"buy film\n",
        "noise.webp": np.random.default_rng(0).bytes(500),
        "drawing.svg": b"<svg xmlns='http://www.w3.org/2000/svg'/>",
    }
    for name, content in files.items():
        (folder / name).write_bytes(content)
    Image.fromarray(np.ones((9, 9), np.float32)).save(folder / "floats.tif")
    (folder / "gone.jpg").symlink_to(folder / "nowhere.jpg")
    return {*files, "floats.tif", "gone.jpg"}
