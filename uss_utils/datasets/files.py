"""Reading photographs and label maps from files, the same way for every file set."""

import codecs
import hashlib
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageOps

from uss_utils.datasets.base import SegmentationDataset
from uss_utils.datasets.labels import FORBIDDEN, remap
from uss_utils.datasets.transforms import Transform

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")
# No JPEG or WebP: lossy compression invents class ids along every boundary.
LABEL_SUFFIXES = (".png", ".bmp", ".tif", ".tiff")
_INTEGER_MODES = ("1", "L", "P", "I", "I;16", "I;16B", "I;16L")
# Pillow would start Ghostscript on these.
_DRAWINGS = ("EPS",)
# Whose words tell a person something; others are accidents inside a decoder.
_TELLING = (OSError, SyntaxError, ValueError, EOFError, NotImplementedError)
# What Pillow multiplies the values of grey pictures of fewer than 8 bits with.
_FEW_BITS = {"L;2": 85, "L;4": 17}
_UTF_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


def read_text(path: Path) -> str:
    """A text file that a person, a spreadsheet or a shell has written.

    UTF-8 with or without the mark that Windows puts in front, or UTF-16 with it;
    what is no text becomes the replacement character.

    Raises:
        OSError: the file cannot be read.
    """
    content = path.read_bytes()
    coding = "utf-16" if content.startswith(_UTF_16) else "utf-8-sig"
    return content.decode(coding, errors="replace")


def reason(error: BaseException) -> str:
    """What a decoder complains about, in one line.

    Args:
        error: whatever it raised; damaged files make decoders raise nearly everything.
    """
    told = isinstance(error, (*_TELLING, Image.DecompressionBombError))
    text = " ".join(str(error).split()) if told else ""
    return text or f"damaged ({type(error).__name__})"


@contextmanager
def opened(path: str | Path, what: str) -> Iterator[Image.Image]:
    """A picture file, open; whatever fails inside of the block is the file's fault.

    Args:
        path: any format Pillow reads.
        what: the file, for messages: "image", "label".

    Raises:
        FileNotFoundError: there is no such file.
        OSError: it is no picture, or damaged.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no {what} file at {path}")
    try:
        with Image.open(path) as file:
            if file.format in _DRAWINGS:
                raise ValueError(f"a drawing ({file.format}), no photograph")
            yield file
    except Exception as error:
        raise OSError(
            f"cannot read {what} {path}: {reason(error)}; replace the file or remove it"
        ) from error


def list_files(folder: Path) -> list[Path]:
    """Files of a folder that look like pictures by their suffix, sorted by name.

    Hidden files are left out: copies from a Mac carry ``._name.jpg`` twins.

    Raises:
        OSError: the folder cannot be looked into.
    """
    with os.scandir(folder) as entries:
        names = [
            entry.name
            for entry in entries
            if entry.name.lower().endswith(IMAGE_SUFFIXES)
            and not entry.name.startswith(".")
            and (entry.is_symlink() or entry.is_file())
        ]
    return sorted(folder / name for name in names)


def read_image(path: str | Path, upright: bool = True) -> np.ndarray:
    """A photograph as 8-bit RGB.

    Greyscale is repeated, transparency laid on white, 16-bit values are scaled to 8
    bits (not clipped).

    Args:
        path: any format Pillow reads.
        upright: apply the camera's orientation tag. Pillow always does for TIFF.

    Returns:
        uint8, shape (H, W, 3).

    Raises:
        FileNotFoundError: there is no such file.
        OSError: the file is no image, or is cut off; no partial image is returned (for
            formats of :data:`IMAGE_SUFFIXES`: some decoders of others do not notice).
    """
    with opened(path, "image") as file:
        return upright_rgb(file) if upright else np.array(_to_rgb(file))


def upright_rgb(image: Image.Image) -> np.ndarray:
    """Pixels of an open picture, as :func:`read_image` describes them.

    Raises:
        ValueError: the values are neither 8 nor 16 bits wide.
    """
    return np.array(_to_rgb(ImageOps.exif_transpose(image)))


def stored_size(path: Path, upright: bool = True) -> tuple[int, int]:
    """Width and height of an image or label file, from its header.

    Args:
        path: any format Pillow reads.
        upright: apply the camera's orientation tag; see :func:`read_image`.

    Raises:
        FileNotFoundError: there is no such file.
        OSError: the header cannot be read.
    """
    with opened(path, "picture") as file:
        # Of a TIFF Pillow says the upright size.
        if not upright or file.format == "TIFF":
            return file.size
        turned = file.getexif().get(ExifTags.Base.Orientation) in (5, 6, 7, 8)
        return file.size[::-1] if turned else file.size


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):
        values = np.asarray(image)
        if values.min() < 0 or values.max() > 65535:
            raise ValueError("32-bit values; convert it to 8 or 16 bits per channel")
        # 65535 = 257 * 255, so this is the exact rounded rescaling.
        values = (values.astype(np.int32) + 128) // 257
        return Image.fromarray(values.astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise ValueError("floating-point values; convert it to 8 or 16 bits")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return image.convert("RGB")


def read_ids(path: str | Path) -> np.ndarray:
    """A stored label map: one integer id per pixel.

    Args:
        path: single-channel file (greyscale or palette PNG, BMP, TIFF).

    Returns:
        uint8 (or wider where the file is), shape (H, W).

    Raises:
        FileNotFoundError: there is no such file.
        OSError: the file cannot be read.
        ValueError: it holds colours instead of ids.
    """
    with opened(path, "label") as file:
        mode = file.mode
        ids = stored_values(file) if mode in _INTEGER_MODES else None
    if ids is None:
        raise ValueError(
            f"label {path} is a colour picture (mode {mode}); a label is a "
            "single-channel 8-bit PNG whose pixel values are class ids"
        )
    return ids.astype(np.uint8) if ids.dtype == bool else ids


def stored_values(file: Image.Image) -> np.ndarray:
    """Pixel values of an open file of one channel as they are stored, (H, W).

    Programs that make PNGs smaller store few ids in 2 or 4 bits, grey: Pillow would
    stretch these to 0..255.

    Args:
        file: nothing of it was decoded yet; then Pillow forgets how it is stored.
    """
    raw = file.tile[0].args if file.tile else None
    raw = raw[0] if isinstance(raw, tuple | list) and raw else raw
    values = np.array(file)
    return values // _FEW_BITS[raw] if raw in _FEW_BITS else values


def pair_files(images: Path, labels: Path) -> list[tuple[Path, Path]]:
    """Match images and labels of two folders by file name without suffix.

    Raises:
        FileNotFoundError: an image without label or a label without image; names
            the first of them and how many there are.
        ValueError: two files differ only in their suffix, or a label is a JPEG.
    """
    by_image = by_stem(list_files(images))
    by_label = by_stem(list_files(labels))
    lossy = [p for p in by_label.values() if p.suffix.lower() not in LABEL_SUFFIXES]
    if lossy:
        raise ValueError(
            f"label {lossy[0]} has a lossy format, which blurs class ids; store "
            f"labels as 8-bit PNG ({len(lossy)} such file(s))"
        )
    bare = sorted(by_image.keys() - by_label.keys())
    if bare:
        raise FileNotFoundError(
            f"image without label: {by_image[bare[0]]} has no {bare[0]}.png in "
            f"{labels} ({len(bare)} of {len(by_image)} images). Add the labels, or "
            "move the labels folder away to use the images without labels"
        )
    orphans = sorted(by_label.keys() - by_image.keys())
    if orphans:
        raise FileNotFoundError(
            f"label without image: {by_label[orphans[0]]} has no image named "
            f"{orphans[0]} in {images} ({len(orphans)} of {len(by_label)} labels). "
            "Add the images or remove the labels"
        )
    return [(by_image[stem], by_label[stem]) for stem in by_image]


def by_stem(files: list[Path]) -> dict[str, Path]:
    """Files by name without suffix; two that differ only there raise ValueError."""
    found: dict[str, Path] = {}
    for path in files:
        if path.stem in found:
            raise ValueError(
                f"{found[path.stem].name} and {path.name} in {path.parent} differ only "
                "in their suffix; names must be unique, remove or rename one"
            )
        found[path.stem] = path
    return found


class FileDataset(SegmentationDataset):
    """A set that is a list of image files with or without label files.

    Args:
        name: data set name.
        split: split name.
        pairs: image and label file of every item; label None without labels.
        classes: class names.
        palette: uint8 (K, 3).
        table: lookup from stored ids to classes, see :mod:`uss_utils.datasets.labels`.
            If it forbids any id, ids that it does not know are refused; otherwise they
            are ignored.
        transform: geometry; None keeps the pixels as they are.

    Attributes:
        upright: whether the camera's orientation tag is applied to the images.
    """

    upright = True

    def __init__(
        self,
        name: str,
        split: str,
        pairs: Sequence[tuple[Path, Path | None]],
        classes: Sequence[str],
        palette: np.ndarray,
        table: np.ndarray,
        transform: Transform | None = None,
    ):
        has_labels = any(label is not None for _, label in pairs)
        super().__init__(name, split, classes, palette, transform, has_labels)
        self.pairs = pairs
        self.table = table
        self.strict = bool((table <= FORBIDDEN).any())

    def __len__(self) -> int:
        return len(self.pairs)

    def item_name(self, index: int) -> str:
        """File name without suffix."""
        return self.pairs[index][0].stem

    def decode_image(self, path: Path) -> np.ndarray:
        """Pixels of an image file, uint8 RGB (H, W, 3)."""
        return read_image(path, self.upright)

    def decode_size(self, path: Path) -> tuple[int, int]:
        """Width and height of an image file."""
        return stored_size(path, self.upright)

    def decode_ids(self, path: Path) -> np.ndarray:
        """Stored ids of a label file, integers (H, W)."""
        return read_ids(path)

    def read(self, index: int) -> tuple[np.ndarray, np.ndarray | None]:
        """Raw pixels: uint8 RGB (H, W, 3) and int64 label (H, W), ignore = -1.

        Raises:
            OSError: a file cannot be read.
            ValueError: a label id is out of range, or the two sizes differ.
        """
        image_file, label_file = self.pairs[index]
        image = self.decode_image(image_file)
        if label_file is None:
            return image, None
        return image, self._label(index, image.shape[1::-1])

    def read_image(self, index: int) -> np.ndarray:
        """Raw pixels alone; the label is not looked at."""
        return self.decode_image(self.pairs[index][0])

    def read_size(self, index: int) -> tuple[int, int]:
        """Height and width from the header of the image file."""
        return self.decode_size(self.pairs[index][0])[::-1]

    def read_label(self, index: int) -> np.ndarray:
        """Raw label alone; of the image only the header is read."""
        image_file, label_file = self.pairs[index]
        size = self.decode_size(image_file)
        if label_file is None:
            return np.full(size[::-1], -1)
        return self._label(index, size)

    def _label(self, index: int, size: tuple[int, int]) -> np.ndarray:
        """Classes of an item whose image has the given width and height."""
        image_file, label_file = self.pairs[index]
        ids = self.decode_ids(label_file)
        if ids.shape != size[::-1]:
            raise ValueError(
                f"sizes differ: image {image_file} is {size[0]}x{size[1]} pixels "
                f"(width x height), its label {label_file} is {ids.shape[1]}x"
                f"{ids.shape[0]}; resize one of them, labels by nearest neighbour"
            )
        return self._to_classes(ids, label_file)

    def _to_classes(self, ids: np.ndarray, path: Path) -> np.ndarray:
        if not self.strict:
            return remap(ids, self.table)
        if ids.min() < 0 or ids.max() >= len(self.table):
            self._refuse(ids[(ids < 0) | (ids >= len(self.table))], path)
        label = self.table[ids]
        if label.min() <= FORBIDDEN:
            self._refuse(ids[label <= FORBIDDEN], path)
        return label

    def _refuse(self, wrong: np.ndarray, path: Path) -> None:
        raise ValueError(
            f"label id {int(wrong.flat[0])} in {path} is out of range "
            f"({wrong.size} pixels): {self.name} has {self.n_classes} classes, so "
            f"{self._known_ids()} are known"
        )

    def _known_ids(self) -> str:
        ignored = np.flatnonzero(self.table == -1)
        used = np.flatnonzero(self.table >= 0)
        also = f"{', '.join(map(str, ignored))} (ignored)" if len(ignored) else ""
        classes = f"{used[0]}..{used[-1]}" if len(used) else ""
        return "ids " + " and ".join(filter(None, (classes, also)))

    def item_digest(self, index: int) -> bytes:
        """Digest of the files' bytes and of the label table: no decoding."""
        digest = hashlib.sha256(self.table.tobytes())
        for path in self.pairs[index]:
            content = path.read_bytes() if path is not None else b""
            digest.update(hashlib.sha256(content).digest())
        return digest.digest()
