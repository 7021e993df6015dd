"""From the tiles of ISPRS Potsdam to patches, with a split by tile.

As in the published patches a tile (6000 x 6000 pixels of 5 cm) is halved and cut into
15 x 15 patches of 200 x 200 pixels; unlike there, train and test share no tile. Of the
24 tiles whose labels were given to the participants of the benchmark, every sixth in
the order of their numbers is for evaluation: 2_12, 4_12, 6_9 and 7_9 (900 patches); the
other 20 are for training (4500 patches).
"""

import re
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image

from uss_utils import paths
from uss_utils.datasets import potsdam, roots
from uss_utils.datasets.files import opened, stored_size
from uss_utils.datasets.processes import spread
from uss_utils.paths import atomic_file, clear_leftovers
from uss_utils.resumable import locked

TILES = (
    *("2_10", "2_11", "2_12", "3_10", "3_11", "3_12", "4_10", "4_11", "4_12"),
    *("5_10", "5_11", "5_12", "6_7", "6_8", "6_9", "6_10", "6_11", "6_12"),
    *("7_7", "7_8", "7_9", "7_10", "7_11", "7_12"),
)
VAL_TILES = TILES[2::6]
PATCH = 200  # pixels, after halving
UNKNOWN = 255
# Fine id of a colour, by its channels: red 1, green 2, blue 4 where it is bright.
_IDS = np.full(8, UNKNOWN, dtype=np.uint8)
_IDS[[7, 4, 6, 2, 3, 1]] = range(6)


def find_tiles(root: Path) -> dict[str, dict[str, Path]]:
    """Image and label files of the tiles, anywhere below a folder.

    Args:
        root: folder with the unpacked archives of ISPRS.

    Returns:
        "image" and "label": files by the tile's number, such as "2_10".
    """
    found: dict[str, dict[str, Path]] = {"image": {}, "label": {}}
    # RGBIR is looked at last, so that it wins: its first channels are RGB.
    for kind, ending in (("image", "RGB"), ("image", "RGBIR"), ("label", "label")):
        for path in sorted(root.rglob(f"top_potsdam_*_{ending}.tif")):
            number = re.fullmatch(rf"top_potsdam_(\d+_\d+)_{ending}", path.stem)
            if number:
                found[kind][number[1]] = path
    return found


def cut_tiles(
    root: str | Path | None = None,
    *,
    processes: int | None = None,
    progress: bool = True,
) -> Path:
    """Cut the 24 labelled tiles into patches; a killed run is continued.

    Args:
        root: folder with the unpacked archives, in which ``by_tile/`` is made; None:
            ``potsdam`` under the data folder.
        processes: None: one per core.
        progress: show a bar.

    Returns:
        The folder of the patches.

    Raises:
        FileNotFoundError: a tile or its label is absent.
        ValueError: a tile has another size than its label, or one that cannot be cut.
        OSError: a file cannot be read or written.
    """
    given = roots.expected_root(root, "potsdam")
    target, found = given / potsdam.BY_TILE, find_tiles(given)
    for kind, files in found.items():
        missing = [tile for tile in TILES if tile not in files]
        if missing:
            raise FileNotFoundError(
                f"{len(missing)} of {len(TILES)} tiles have no {kind} file below "
                f"{given}: {', '.join(missing)}. {potsdam.HOW_TILES}"
            )
    for kind in ("imgs", "gt"):
        (target / kind).mkdir(parents=True, exist_ok=True)
        clear_leftovers(target / kind)
    jobs = [(tile, found["image"][tile], found["label"][tile]) for tile in TILES]
    with locked(target):
        cut = spread(
            cut_tile, target, jobs, processes=processes, desc="tiles", progress=progress
        )
        names = dict(zip(TILES, cut, strict=True))
        paths.settle()
        for split, list_name in potsdam.LISTS.items():
            tiles = [t for t in TILES if (t in VAL_TILES) == (split == "val")]
            _write_list(target / list_name, (n for t in tiles for n in names[t]))
    return target


def _write_list(path: Path, names: Iterable[str]) -> None:
    with atomic_file(path) as temporary:
        temporary.write_text("".join(f"{n}\n" for n in names), encoding="utf-8")


def cut_tile(target: Path, job: tuple[str, Path, Path]) -> list[str]:
    """Write the patches of one tile that are not there yet.

    Args:
        target: folder that holds ``imgs/`` and ``gt/``.
        job: number, image file and label file of the tile.

    Returns:
        Names of all its patches: tile, row, column.
    """
    tile, image_file, label_file = job
    width, height = size = stored_size(image_file, upright=False)
    of_label = stored_size(label_file, upright=False)
    if width % (2 * PATCH) or height % (2 * PATCH) or of_label != size:
        raise ValueError(
            f"tile {tile}: {image_file} is {width}x{height} pixels, its label "
            f"{label_file} is {'x'.join(map(str, of_label))}; expected two "
            f"of the same size, a multiple of {2 * PATCH} (6000x6000)"
        )
    places = [
        (row, column)
        for row in range(height // (2 * PATCH))
        for column in range(width // (2 * PATCH))
    ]
    names = [f"{tile}_{row:02d}_{column:02d}" for row, column in places]
    for kind, read, file in (
        ("imgs", halved, image_file),
        ("gt", fine_ids, label_file),
    ):
        done = roots.written(target / kind, ".png")
        missing = [i for i, name in enumerate(names) if name not in done]
        pixels = read(file) if missing else None
        for i in missing:
            top, left = (PATCH * n for n in places[i])
            patch = pixels[top : top + PATCH, left : left + PATCH]
            with atomic_file(target / kind / f"{names[i]}.png", bulk=True) as path:
                Image.fromarray(patch).save(path, "PNG")
    return names


def halved(path: Path) -> np.ndarray:
    """Red, green and blue of a tile, averaged over 2 x 2 pixels: uint8 (H/2, W/2, 3).

    Raises:
        OSError: the file cannot be read.
        ValueError: it has fewer than three channels.
    """
    pixels = _channels(path)
    return np.array(Image.fromarray(pixels).reduce(2))


def fine_ids(path: Path) -> np.ndarray:
    """Fine ids of every other pixel of a label picture: uint8 (H/2, W/2).

    0 impervious surface (white), 1 building (blue), 2 low vegetation (cyan), 3 tree
    (green), 4 car (yellow), 5 clutter (red); other colours give 255. A channel counts
    as on above 127: a few published labels are off by some grey levels.

    Raises:
        OSError: the file cannot be read.
        ValueError: it has fewer than three channels.
    """
    bright = _channels(path)[::2, ::2] > 127
    return _IDS[bright @ np.array([1, 2, 4], dtype=np.uint8)]


def _channels(path: Path) -> np.ndarray:
    """The first three channels of a picture, uint8 (H, W, 3)."""
    with opened(path, "tile") as file:
        pixels = np.array(file)
    if pixels.ndim != 3 or pixels.shape[2] < 3 or pixels.dtype != np.uint8:
        raise ValueError(
            f"{path} is {pixels.dtype} {pixels.shape}; expected uint8 with channels "
            "for red, green, blue (and infrared)"
        )
    return np.ascontiguousarray(pixels[..., :3])
