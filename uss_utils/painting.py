"""Label maps as files to look at: palette PNG, overlay, thumbnail, legend.

For pictures of many megapixels: bytes and lookup tables throughout, no floats.
"""

from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from uss_utils.paths import atomic_file
from uss_utils.regions import borders

NO_CLASS = 255  # how -1 is stored
GREY = (128, 128, 128)
OVERLAY_SIDE = 2048  # longer side of an overlay at most
THUMB = 220  # height of a thumbnail
STRENGTH = 0.45  # weight of the colours


def write_label(path: Path, ids: np.ndarray, palette: np.ndarray) -> None:
    """Write a label map as an 8-bit PNG that shows its colours and holds its ids.

    Args:
        path: file to create or replace.
        ids: integers (H, W), -1 (stored as 255) to 254.
        palette: uint8 (K, 3), K at most 255.

    Raises:
        ValueError: an id has no colour.
        OSError: the file cannot be written.
    """
    if ids.max() >= min(len(palette), NO_CLASS) or ids.min() < -1:
        raise ValueError(
            f"ids from {ids.min()} to {ids.max()} do not fit a palette of "
            f"{len(palette)} colours; at most {NO_CLASS} are possible"
        )
    image = Image.fromarray(ids.astype(np.uint8))  # -1 becomes 255
    image.putpalette(_table(palette).tobytes())
    with atomic_file(path, bulk=True) as temporary:
        # Label maps are flat: higher levels cost time and save next to nothing.
        image.save(temporary, "PNG", compress_level=3)


def _table(palette: np.ndarray) -> np.ndarray:
    """Colours by stored id, uint8 (256, 3); grey where there is none."""
    table = np.full((256, 3), GREY, dtype=np.uint8)
    table[: len(palette)] = palette
    return table


def overlay(
    pixels: np.ndarray,
    ids: np.ndarray,
    palette: np.ndarray,
    side: int = OVERLAY_SIDE,
) -> np.ndarray:
    """A photograph tinted by its labels, with an outline around every region.

    Args:
        pixels: uint8 RGB (H, W, 3).
        ids: integers (H, W); where they are -1, the photograph shows.
        palette: uint8 (K, 3).
        side: longer side of the result at most; it is shrunk to that.

    Returns:
        uint8 RGB.
    """
    pixels, stored = _shrunk(pixels, ids, side)
    weights = np.full(256, round(STRENGTH * 256), dtype=np.uint16)
    weights[NO_CLASS] = 0
    # Both factors of the mixture by table: 16 bits hold 255 * 256.
    tints = _table(palette) * weights[:, None]
    mixed = pixels * (256 - weights)[stored][..., None]
    mixed += tints[stored]
    mixed >>= 8
    mixed = mixed.astype(np.uint8)
    # A thin line at every size.
    mixed[borders(stored, 1 + max(stored.shape) // 1000)] = 255
    return mixed


def _shrunk(
    pixels: np.ndarray, ids: np.ndarray, side: int
) -> tuple[np.ndarray, np.ndarray]:
    """Picture and stored ids, both shrunk until the longer side fits."""
    stored = ids.astype(np.uint8)
    height, width = ids.shape
    if max(height, width) <= side:
        return pixels, stored
    scale = side / max(height, width)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    image = Image.fromarray(pixels).resize(size, Image.Resampling.BILINEAR)
    labels = Image.fromarray(stored).resize(size, Image.Resampling.NEAREST)
    return np.asarray(image), np.asarray(labels)


def thumbnail(pixels: np.ndarray, tinted: np.ndarray, height: int = THUMB) -> Image:
    """A picture and its overlay side by side, for a page of very many.

    Args:
        pixels: uint8 RGB (H, W, 3).
        tinted: from :func:`overlay`.
        height: of the result at most; wide pictures are lower.
    """
    scale = min(1.0, height / pixels.shape[0], 1.6 * height / pixels.shape[1])
    size = tuple(max(1, round(scale * n)) for n in pixels.shape[1::-1])
    both = Image.new("RGB", (2 * size[0] + 4, size[1]), "white")
    for place, array in ((0, pixels), (size[0] + 4, tinted)):
        image = Image.fromarray(array)
        # Whole-number shrinking first: eight times as fast on large photographs.
        both.paste(image.resize(size, Image.Resampling.BOX, reducing_gap=2), (place, 0))
    return both


def write_jpeg(path: Path, image: np.ndarray | Image.Image, quality: int) -> None:
    """Write RGB pixels as JPEG; OSError where that fails."""
    if isinstance(image, np.ndarray):
        image = Image.fromarray(image)
    with atomic_file(path, bulk=True) as temporary:
        image.save(temporary, "JPEG", quality=quality)


def write_legend(path: Path, names: Sequence[str], palette: np.ndarray) -> None:
    """Write a PNG with the colour, the id and the name of every class.

    Args:
        path: file to create or replace.
        names: of the ids 0..K-1.
        palette: uint8 (K, 3).
    """
    # A font that knows most alphabets, and is there wherever this package is.
    fonts = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    font = ImageFont.truetype(str(fonts / "DejaVuSans.ttf"), 16)
    lines = [f"{k}  {name}" for k, name in enumerate(names)]
    columns = -(-len(lines) // 24)
    rows = -(-len(lines) // columns)
    width = 60 + max(round(font.getlength(line)) for line in lines)
    image = Image.new("RGB", (columns * width + 10, rows * 28 + 10), "white")
    draw = ImageDraw.Draw(image)
    for k, line in enumerate(lines):
        x, y = 10 + k // rows * width, 10 + k % rows * 28
        draw.rectangle((x, y, x + 28, y + 18), tuple(map(int, palette[k])), "black")
        draw.text((x + 38, y + 9), line, "black", font, anchor="lm")
    with atomic_file(path) as temporary:
        image.save(temporary, "PNG")
