"""Pictures from users: any file, array or folder, of any size and orientation."""

from pathlib import Path

import numpy as np
from PIL import Image

from uss_utils.datasets import files
from uss_utils.datasets.transforms import resize_to_patch

MAX_SIDE = 512  # longer sides of pictures are shrunk to this before the backbone
Picture = str | Path | Image.Image | np.ndarray


def read_picture(image: Picture) -> np.ndarray:
    """Any picture as upright 8-bit RGB.

    Args:
        image: file, PIL image, or uint8 array of shape (H, W) or (H, W, 1|3|4).

    Returns:
        uint8, shape (H, W, 3).

    Raises:
        FileNotFoundError: no such file.
        OSError: the file is no picture or is cut off.
        ValueError: another kind of array.
    """
    if isinstance(image, str | Path):
        return files.read_image(image)
    if isinstance(image, np.ndarray):
        flat = image[..., 0] if image.ndim == 3 and image.shape[-1] == 1 else image
        fits = flat.ndim == 2 or (flat.ndim == 3 and flat.shape[-1] in (3, 4))
        if image.dtype != np.uint8 or not fits or not image.size:
            raise ValueError(
                f"an array must be uint8 (H, W) or (H, W, 1|3|4), got {image.dtype} "
                f"{image.shape}; channels come last, values are 0..255"
            )
        image = Image.fromarray(np.ascontiguousarray(flat))
    if not isinstance(image, Image.Image):
        raise ValueError(
            f"cannot segment a {type(image).__name__}; give a path, a folder, a PIL "
            "image or a uint8 array"
        )
    return files.upright_rgb(image)


def working_size(
    size: tuple[int, int], patch: int, max_side: int = MAX_SIDE
) -> tuple[int, int]:
    """Size at which the backbone sees a picture; see :meth:`Segmenter.segment`.

    Args:
        size: (H, W) of the picture.
        patch: side of a patch.
        max_side: bound of the longer side, before rounding to whole patches.

    Raises:
        ValueError: ``max_side`` smaller than a patch.
    """
    if max_side < patch:
        raise ValueError(f"max_side {max_side} is smaller than a patch of {patch}")
    scale = min(1.0, max_side / max(size))
    height, width = (max(1, round(side * scale)) for side in size)
    return resize_to_patch((height, width), patch)


def list_pictures(folder: Path) -> list[Path]:
    """Picture files of a folder, by name; hidden files are left out.

    Raises:
        FileNotFoundError: there is none.
    """
    paths = files.list_files(folder)
    if not paths:
        raise FileNotFoundError(
            f"no picture in {folder}; known endings: {', '.join(files.IMAGE_SUFFIXES)}"
        )
    return paths
