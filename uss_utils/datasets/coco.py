"""MSCOCO: photographs of everyday scenes, all of a split, without labels.

Lin et al.: "Microsoft COCO: Common Objects in Context", ECCV 2014. HSG learns from the
118 287 images of train2017. Two layouts are read, that of COCO-Stuff, whose images
these are, and that of the archives unpacked side by side::

    images/{train2017,val2017}/000000000025.jpg
    {train2017,val2017}/000000000025.jpg
"""

from pathlib import Path

from uss_utils.datasets import cocostuff, roots
from uss_utils.datasets.files import FileDataset
from uss_utils.datasets.labels import strict_table, voc_palette
from uss_utils.datasets.transforms import Transform
from uss_utils.datasets.voc import read_list
from uss_utils.paths import user_path

NAME = "coco"
SPLITS = cocostuff.SPLITS  # also the names of the folders
CLASSES = ("unlabelled",)
SUFFIX = ".jpg"
FETCH = f"python -m uss_utils data download {NAME}"


def find_root(root: str | Path | None = None) -> Path:
    """Folder that holds ``images/`` or the splits themselves.

    Args:
        root: that folder or one above it; None: ``coco`` under the data folder, or
            ``cocostuff``, whose images are the same.

    Raises:
        FileNotFoundError: it was not found; the message says how to get the set.
    """
    return roots.find_root(
        "MSCOCO",
        root,
        names=("coco", "cocostuff", "cocostuff27", "MSCOCO", "COCO-Stuff"),
        holds=(
            *(f"images/{folder}" for folder in SPLITS.values()),
            *SPLITS.values(),
        ),
        advice=f"Get the set with `{FETCH}` (20 GB, no login), or name its folder with "
        "--data-root (notebooks: DATA_ROOT)",
    )


def image_folder(root: Path, split: str) -> Path:
    """Folder of a split's images; where they would be, if they are absent.

    Args:
        root: see :func:`find_root`.
        split: "train" or "val".
    """
    flat = root / SPLITS[split]
    return flat if flat.is_dir() else root / "images" / SPLITS[split]


class Coco(FileDataset):
    """The images of one split of MSCOCO, without labels.

    Args:
        split: "train" or "val".
        root: see :func:`find_root`.
        transform: geometry; None keeps the photographs' own sizes, which differ.
        list_file: text file that names an image first in every line, as HSG's lists do
            (``train2017/000000000009.jpg ...``); only these are read, in its order.
            None: all images of the split.

    Attributes:
        root: folder of the set.

    Raises:
        FileNotFoundError: the set, the split, the list or a listed image is absent.
        ValueError: the list makes no sense.
    """

    upright = False  # region maps belong to the pixels as stored

    def __init__(
        self,
        split: str = "train",
        root: str | Path | None = None,
        transform: Transform | None = None,
        list_file: str | Path | None = None,
    ):
        self.root = find_root(root)
        folder = image_folder(self.root, split)
        advice = f"Complete the set with `{FETCH}`; `data check {NAME}` counts"
        names = sorted(roots.listed(folder, SUFFIX))
        if list_file is not None:
            names = read_list(_existing(list_file))
        if not names:
            raise FileNotFoundError(f"no images of {split} in {folder}. {advice}")
        images = roots.listed_files(f"images of {split}", folder, names, SUFFIX, advice)
        super().__init__(
            NAME,
            split,
            [(image, None) for image in images],
            CLASSES,
            voc_palette(len(CLASSES)),
            strict_table(len(CLASSES)),
            transform,
        )


def _existing(path: str | Path) -> Path:
    path = user_path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"no list of images at {path}; leave it out to use all images of the split"
        )
    return path
