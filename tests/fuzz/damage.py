"""Breaking files in the ways they break, and what may come of reading them."""

import io
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import strategies as st
from PIL import Image

from uss_utils.datasets.scenes import scene


@st.composite
def damaged(draw, whole: bytes) -> bytes:
    """A file cut off, overwritten, with bytes lost, added or turned; maybe twice."""
    content = bytearray(whole)
    for _ in range(draw(st.integers(1, 2))):
        size = len(content)
        at = draw(st.integers(0, max(0, size - 1)))
        length = draw(st.sampled_from([1, 2, 4, 16, size // 2]))
        how = draw(st.sampled_from(["flip", "cut", "zero", "ones", "drop", "add"]))
        if how == "flip" and size:
            for _ in range(draw(st.integers(1, 4))):
                place = draw(st.integers(0, size - 1))
                content[place] ^= draw(st.integers(1, 255))
        elif how == "cut":
            del content[at:]
        elif how in ("zero", "ones"):
            part = slice(at, min(size, at + length))
            content[part] = (b"\0" if how == "zero" else b"\xff") * len(content[part])
        elif how == "drop":
            del content[at : at + length]
        else:
            content[at:at] = draw(st.binary(max_size=16))
    return bytes(content)


def outcome(call: Callable[[], Any], path: Path, *errors: type[Exception]) -> Any:
    """What a call returns, or None where it raised a documented error.

    The error has to be of one of the types, not of a subclass that Pillow or Python
    have for accidents, to name the file, and to have one line.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return call()
        except errors as error:
            # The system's own errors, such as PermissionError, are subclasses.
            plain = type(error) in errors or type(error).__module__ == "builtins"
            accident = isinstance(error, UnicodeError)
            assert plain and not accident, f"{type(error).__name__}: {error}"
            assert path.name in str(error), f"which file? {error}"
            assert "\n" not in str(error), error
            return None


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    """The bytes of a picture file."""
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def chunk(kind: bytes, content: bytes) -> bytes:
    """A chunk of a PNG, with its checksum."""
    body = kind + content
    return len(content).to_bytes(4, "big") + body + zlib.crc32(body).to_bytes(4, "big")


def png(*chunks: bytes) -> bytes:
    """A PNG of chunks."""
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks) + chunk(b"IEND", b"")


def ihdr(width: int, height: int, depth=8, colour=0, interlaced=0) -> bytes:
    """First chunk of a PNG; ``colour`` 0 grey, 2 RGB, 3 palette, 4 grey + alpha, 6."""
    sides = width.to_bytes(4, "big") + height.to_bytes(4, "big")
    return chunk(b"IHDR", sides + bytes([depth, colour, 0, 0, interlaced]))


def grey_png(ids: np.ndarray, depth: int) -> bytes:
    """Ids as a grey PNG of 1, 2, 4 or 8 bits per pixel, as optimisers store them."""
    bits = (ids[..., None] >> np.arange(depth)[::-1]) & 1
    rows = np.packbits(bits.reshape(len(ids), -1).astype(np.uint8), axis=1)
    lines = np.concatenate([np.zeros((len(ids), 1), np.uint8), rows], axis=1)
    height, width = ids.shape
    return png(ihdr(width, height, depth), chunk(b"IDAT", zlib.compress(bytes(lines))))


def photograph(height: int = 10, width: int = 13) -> Image.Image:
    """A small generated picture in RGB."""
    return Image.fromarray(scene(3, seed=1, size=64).image[20 : 20 + height, :width])


def _converted(mode: str) -> Image.Image:
    image = photograph()
    if mode.startswith(("I", "F")):
        grey = np.asarray(image.convert("L"))
        kind = {"I;16": np.uint16, "I": np.int32, "F": np.float32}[mode]
        return Image.fromarray(grey.astype(kind) * 257)
    if mode.endswith("A"):
        image.putalpha(image.convert("L"))
    return image.convert(mode)


def _turned(tag: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = tag
    exif[0x010F] = "a camera"
    return exif


# Name of a kind of file: mode, Pillow's name of the format, options.
_KINDS: dict[str, tuple[str, str, dict]] = {
    "jpeg": ("RGB", "JPEG", {}),
    "jpeg-progressive": ("RGB", "JPEG", {"progressive": True}),
    "jpeg-turned": ("RGB", "JPEG", {"exif": _turned(6)}),
    "jpeg-grey": ("L", "JPEG", {}),
    "jpeg-cmyk": ("CMYK", "JPEG", {}),
    **{f"png-{m}": (m, "PNG", {}) for m in ("1", "L", "LA", "P", "RGB", "RGBA")},
    "png-16": ("I;16", "PNG", {}),
    "png-turned": ("RGB", "PNG", {"exif": _turned(5)}),
    "png-hole": ("P", "PNG", {"transparency": 0}),
    "bmp": ("RGB", "BMP", {}),
    "bmp-palette": ("P", "BMP", {}),
    "tiff": ("RGB", "TIFF", {}),
    "tiff-turned": ("RGB", "TIFF", {"exif": _turned(8)}),
    "tiff-lzw": ("RGB", "TIFF", {"compression": "tiff_lzw"}),
    "tiff-deflate": ("L", "TIFF", {"compression": "tiff_adobe_deflate"}),
    "tiff-packbits": ("1", "TIFF", {"compression": "packbits"}),
    "tiff-16": ("I;16", "TIFF", {}),
    "tiff-32": ("I", "TIFF", {}),
    "tiff-float": ("F", "TIFF", {}),
    "webp": ("RGB", "WEBP", {}),
    "webp-lossless": ("RGBA", "WEBP", {"lossless": True}),
    "gif": ("P", "GIF", {"save_all": True, "append_images": [_converted("L")]}),
    "ico": ("RGBA", "ICO", {"sizes": [(9, 9)]}),
    "ppm": ("RGB", "PPM", {}),
    "tga": ("RGB", "TGA", {}),
    "sgi": ("RGB", "SGI", {}),
    "pcx": ("P", "PCX", {}),
    "dds": ("RGBA", "DDS", {}),
    "im": ("RGB", "IM", {}),
    "jpeg2000": ("RGB", "JPEG2000", {}),
    "avif": ("RGB", "AVIF", {}),
    "eps": ("RGB", "EPS", {}),
}


def _made() -> dict[str, bytes]:
    """Files of all kinds that this Pillow writes."""
    found = {}
    for name, (mode, kind, options) in _KINDS.items():
        try:
            found[name] = encoded(_converted(mode), kind, **options)
        except (KeyError, OSError):  # built without this codec
            continue
    return found


PICTURES = _made()
