"""Potsdam: aerial views at 10 cm per pixel, 3 classes, patches of 200 x 200 pixels.

The ISPRS benchmark "2D semantic labelling, Potsdam" has 38 tiles. IIC (Ji et al., ICCV
2019) halved them, cut them into patches and drew a random split, without a seed, so
that it exists only in the published archive (``potsdam3``)::

    potsdam/
      imgs/0.mat    "img", uint8 (200, 200, 4): red, green, blue, infrared
      gt/0.mat      "gt", integers (200, 200), six fine ids; absent: no label
      labelled_train.txt   labelled_test.txt     one number per line

Its train and test patches come from the same tiles. ``potsdam3-tiles`` is cut from the
tiles by this package and split by tile (:mod:`uss_utils.datasets.potsdam_tiles`); it
lies in ``by_tile/`` in the same layout, with PNG files.
"""

import warnings
from pathlib import Path

import numpy as np

from uss_utils.datasets import mat_files, roots
from uss_utils.datasets.files import FileDataset, read_text
from uss_utils.datasets.labels import CLASS_NAMES, LABEL_MAPS, palette
from uss_utils.datasets.transforms import Transform

LISTS = {"train": "labelled_train.txt", "val": "labelled_test.txt"}
# Number of patches: published, and in our split by tile.
SPLITS = {"train": 4_545, "val": 855}
TILE_SPLITS = {"train": 4_500, "val": 900}
MAPS = "potsdam3"
BY_TILE = "by_tile"
HOW = (
    "The patches with their split are published by the authors of IIC, no login: "
    "https://www.robots.ox.ac.uk/~xuji/datasets/Potsdam.tar.gz; unpack them so that "
    "imgs/, gt/ and the lists lie in one folder"
)
HOW_TILES = (
    "Get 4_Ortho_RGBIR.zip and 5_Labels_all.zip of ISPRS Potsdam "
    "(www.isprs.org/education/benchmarks/UrbanSemLab/2d-sem-label-potsdam.aspx), "
    "unpack both into one folder and run "
    "`python -m uss_utils data prepare potsdam3-tiles --data-root FOLDER`"
)
_NAMES = ("potsdam", "potsdam3", "Potsdam")


def find_root(root: str | Path | None = None) -> Path:
    """Folder that holds ``imgs/``, ``gt/`` and the lists.

    Args:
        root: that folder or one above it; None: ``potsdam`` under the data folder.

    Raises:
        FileNotFoundError: it was not found; the message says how to get the set.
    """
    return roots.find_root(
        "Potsdam patches",
        root,
        names=_NAMES,
        holds=("imgs",),
        advice=f"{HOW}, and name it with --data-root (notebooks: DATA_ROOT). From the "
        "tiles of ISPRS the set potsdam3-tiles can be made instead",
    )


def find_tiles_root(root: str | Path | None = None) -> Path:
    """Folder of the patches that were cut from the tiles, ``by_tile/``.

    Args:
        root: the folder above it, or one higher; None: ``potsdam`` under the data
            folder.

    Raises:
        FileNotFoundError: they have not been cut; the message says how.
    """
    above = roots.find_root(
        "patches cut from Potsdam's tiles",
        root,
        names=_NAMES,
        holds=(BY_TILE,),
        advice=HOW_TILES,
    )
    return above / BY_TILE


def read_list(path: Path) -> list[str]:
    """Names of patches, one per line."""
    return read_text(path).split()


class Potsdam(FileDataset):
    """One split of the published patches.

    Args:
        split: "train" or "val".
        root: see :func:`find_root`.
        transform: geometry; None keeps 200 x 200.

    Raises:
        FileNotFoundError: the set, a list or a listed patch is absent.
        ValueError: the list makes no sense.
    """

    NAME = "potsdam3"
    SUFFIX = ".mat"
    HOW = HOW
    upright = False  # views from above have no camera's tag
    find = staticmethod(find_root)

    def __init__(
        self,
        split: str = "train",
        root: str | Path | None = None,
        transform: Transform | None = None,
    ):
        self.root = self.find(root)
        names = self._names(split)
        images = roots.listed_files(
            f"patches of {split}", self.root / "imgs", names, self.SUFFIX, self.HOW
        )
        gt = self.root / "gt"
        labelled = roots.listed(gt, self.SUFFIX)
        labels = [gt / path.name if path.stem in labelled else None for path in images]
        super().__init__(
            self.NAME,
            split,
            list(zip(images, labels, strict=True)),
            CLASS_NAMES[MAPS],
            palette(MAPS),
            LABEL_MAPS[MAPS],
            transform,
        )
        bare = labels.count(None)
        if bare:
            warnings.warn(
                f"{bare} of {len(labels)} patches of {self.NAME} {split} have no label "
                f"in {gt}; they count as ignored everywhere",
                stacklevel=2,
            )

    def _names(self, split: str) -> list[str]:
        path = self.root / LISTS[split]
        if not path.is_file():
            raise FileNotFoundError(f"no list of patches at {path}. {self.HOW}")
        names = read_list(path)
        if not names or len(set(names)) < len(names):
            what = "names a patch twice" if names else "is empty"
            raise ValueError(f"{path} {what}; replace the list")
        return names

    def decode_image(self, path: Path) -> np.ndarray:
        """Red, green and blue of a patch, uint8 (200, 200, 3)."""
        if path.suffix != ".mat":
            return super().decode_image(path)
        image = mat_files.read(path, "img")
        fits = image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] >= 3
        if not fits or not image.size:
            raise ValueError(
                f"'img' in {path} is {image.dtype} {image.shape}; expected uint8 "
                "(200, 200, 4): red, green, blue, infrared"
            )
        return np.ascontiguousarray(image[..., :3])

    def decode_size(self, path: Path) -> tuple[int, int]:
        """Width and height of a patch."""
        if path.suffix != ".mat":
            return super().decode_size(path)
        shape = mat_files.shape(path, "img")
        if len(shape) == 3 and shape[2] >= 3:
            return shape[1], shape[0]
        return self.decode_image(path).shape[1::-1]  # says what is wrong

    def decode_ids(self, path: Path) -> np.ndarray:
        """Fine ids of a patch, integers (200, 200)."""
        if path.suffix != ".mat":
            return super().decode_ids(path)
        ids = mat_files.read(path, "gt")
        if ids.dtype.kind not in "iu" or ids.ndim != 2:
            raise ValueError(
                f"'gt' in {path} is {ids.dtype} {ids.shape}; expected integers "
                "(200, 200)"
            )
        return ids


class PotsdamTiles(Potsdam):
    """One split of the patches cut from the tiles of ISPRS, split by tile.

    Arguments and errors as for :class:`Potsdam`.
    """

    NAME = "potsdam3-tiles"
    SUFFIX = ".png"
    HOW = HOW_TILES
    find = staticmethod(find_tiles_root)
