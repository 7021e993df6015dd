"""A folder of pictures such as people have: many formats, some turned, some broken.

Cut out of generated streets, so that the course can show, offline, what it does with a
folder of photographs. Every third picture is of an ugly kind.
"""

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image

from uss_utils.datasets.scenes import STREET_CLASSES, canvas
from uss_utils.paths import atomic_file

# Height and width relative to the canvas.
ASPECTS = ((2 / 3, 1.0), (0.75, 1.0), (1.0, 0.75))
SIDES = (96, 112, 128, 144)  # windows of the scenes: from near and from far
LARGE = 480
BROKEN = ("cut_off.jpg", "empty.png", "no_picture.jpg")


def write(folder: str | Path, n: int = 40, seed: int = 0, labels: int = 0) -> Path:
    """Write a folder of pictures, good ones and ugly ones, and three that are broken.

    Args:
        folder: made where missing; files of the same names are replaced.
        n: pictures that can be read.
        seed: another one gives other pictures.
        labels: the first so many pictures get label maps, laid out as
            :mod:`uss_utils.datasets.folder` says; 0: the pictures alone.

    Returns:
        The folder.

    Raises:
        ValueError: fewer than one picture, or more labels than pictures.
        OSError: the folder is read-only or the disk is full.
    """
    if not 0 <= labels <= n or n < 1:
        raise ValueError(f"{n} pictures with {labels} labels: give n >= 1 and n labels")
    folder = Path(folder)
    images = folder / "imgs" if labels else folder
    for i in range(n):
        kind = kind_of(i)
        pixels, label = _cut_out(i, seed, LARGE if kind == "large" else None)
        data, ending = _KINDS.get(kind, _plain)(pixels)
        name = f"photo_{i:03d}"
        _write(images / f"{name}.{ending}", data)
        if i < labels:
            stored = Image.fromarray(np.where(label < 0, 255, label).astype(np.uint8))
            _write(folder / "labels" / f"{name}.png", _encoded(stored, "PNG"))
    if labels:
        _write(folder / "classes.txt", "\n".join(STREET_CLASSES).encode())
    whole = _plain(_cut_out(n, seed)[0])[0]
    broken = whole[: len(whole) // 2], b"", b"These are letters, no pixels.\n"
    for name, data in zip(BROKEN, broken, strict=True):
        _write(images / name, data)
    return folder


def kind_of(index: int) -> str:
    """What is special about a picture of :func:`write`; "plain" for most."""
    return "plain" if index % 3 < 2 else list(_KINDS)[index // 3 % len(_KINDS)]


def _write(path: Path, data: bytes) -> None:
    with atomic_file(path, bulk=True) as temporary:
        temporary.write_bytes(data)


def _cut_out(
    index: int, seed: int, side: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Pixels and classes of a rectangle of a scene's canvas."""
    rng = np.random.default_rng([seed, index])
    side = int(rng.choice(SIDES)) if side is None else side
    # Far from the scenes that the course trains and scores on.
    whole = canvas(3_000_000 + index, seed, "street", side)
    full = len(whole.image)
    height, width = (
        round(full * part) for part in ASPECTS[rng.choice(3, p=(0.4, 0.35, 0.25))]
    )
    top, left = ((full - n) // 2 for n in (height, width))
    window = np.s_[top : top + height, left : left + width]
    return whole.image[window], whole.label[window]


def _encoded(image: Image.Image, kind: str, **options) -> bytes:
    stored = io.BytesIO()
    image.save(stored, kind, **options)
    return stored.getvalue()


def _plain(pixels: np.ndarray) -> tuple[bytes, str]:
    return _encoded(Image.fromarray(pixels), "JPEG", quality=90), "jpg"


def _turned(turn: Image.Transpose, tag: int) -> Callable:
    """Stored lying down, with the camera's note how to turn it upright."""

    def encode(pixels: np.ndarray) -> tuple[bytes, str]:
        exif = Image.Exif()
        exif[ExifTags.Base.Orientation] = tag
        image = Image.fromarray(pixels).transpose(turn)
        return _encoded(image, "JPEG", quality=90, exif=exif), "JPG"

    return encode


def _grey(pixels: np.ndarray) -> tuple[bytes, str]:
    return _encoded(Image.fromarray(pixels).convert("L"), "JPEG", quality=90), "jpeg"


def _alpha(pixels: np.ndarray) -> tuple[bytes, str]:
    """Transparent outside an ellipse."""
    y, x = (np.linspace(-1, 1, n) for n in pixels.shape[:2])
    distance = np.hypot(y[:, None], x)
    alpha = np.clip(255 * (1.15 - distance) / 0.1, 0, 255).astype(np.uint8)
    return _encoded(Image.fromarray(np.dstack([pixels, alpha])), "PNG"), "png"


def _deep(pixels: np.ndarray) -> tuple[bytes, str]:
    """Sixteen bits of grey."""
    grey = np.asarray(Image.fromarray(pixels).convert("L")).astype(np.uint16)
    return _encoded(Image.fromarray(257 * grey), "PNG"), "png"


def _palette(pixels: np.ndarray) -> tuple[bytes, str]:
    return _encoded(Image.fromarray(pixels).quantize(64), "PNG"), "png"


def _tiff(pixels: np.ndarray) -> tuple[bytes, str]:
    return _encoded(Image.fromarray(pixels), "TIFF"), "tif"


_KINDS = {
    "turned": _turned(Image.Transpose.ROTATE_90, 6),
    "grey": _grey,
    "transparent": _alpha,
    "large": _plain,  # in pixels
    "16 bits": _deep,
    "upside down": _turned(Image.Transpose.ROTATE_180, 3),
    "palette": _palette,
    "TIFF": _tiff,
}
