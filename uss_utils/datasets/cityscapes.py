"""Cityscapes: streets of 50 cities from a car, 27 or 19 classes, 2048 x 1024 pixels.

Cordts et al.: "The Cityscapes Dataset for Semantic Urban Scene Understanding", CVPR
2016. The official layout::

    cityscapes/
      leftImg8bit/{train,val}/CITY/CITY_000000_000019_leftImg8bit.png
      gtFine/{train,val}/CITY/CITY_000000_000019_gtFine_labelIds.png

The 27 classes are the label ids 7 to 33; the others are ignored. The 19 classes of the
benchmark (train ids) are those of them that are evaluated. Its publishers ask for an
account, so nothing is downloaded.
"""

from pathlib import Path

from uss_utils.datasets import roots
from uss_utils.datasets.crops import crops_folder
from uss_utils.datasets.files import FileDataset
from uss_utils.datasets.labels import CLASS_NAMES, LABEL_MAPS, palette
from uss_utils.datasets.transforms import Transform

NAME, NAME_19 = "cityscapes27", "cityscapes19"
# Published number of frames with fine labels.
SPLITS = {"train": 2_975, "val": 500}
IMAGES, LABELS = "leftImg8bit", "gtFine"
_ENDS = {IMAGES: "_leftImg8bit.png", LABELS: "_gtFine_labelIds.png"}
HOW = (
    "Cityscapes needs a login: register at www.cityscapes-dataset.com, download "
    "leftImg8bit_trainvaltest.zip (11 GB) and gtFine_trainvaltest.zip (241 MB) and "
    "unpack both into one folder"
)


def find_root(root: str | Path | None = None) -> Path:
    """Folder that holds ``leftImg8bit/`` and ``gtFine/``.

    Args:
        root: that folder or one above it; None: ``cityscapes`` under the data folder.

    Raises:
        FileNotFoundError: it was not found; the message says how to get the set.
    """
    return roots.find_root(
        "Cityscapes",
        root,
        names=("cityscapes", NAME, "Cityscapes"),
        holds=(IMAGES, LABELS, str(crops_folder(Path(), NAME))),
        advice=f"{HOW}; name it with --data-root (notebooks: DATA_ROOT)",
    )


def find_files(root: Path, kind: str, split: str) -> dict[str, Path]:
    """Files of a split by frame, ``CITY_SEQUENCE_FRAME``, in the order of the names.

    Args:
        root: see :func:`find_root`.
        kind: :data:`IMAGES` or :data:`LABELS`.
        split: a split's name.
    """
    end = _ENDS[kind]
    files = (root / kind / split).glob(f"*/*{end}")
    frames = {p.name.removesuffix(end): p for p in files if not p.name.startswith(".")}
    return dict(sorted(frames.items()))


class Cityscapes(FileDataset):
    """One split of Cityscapes with 27 classes.

    Args:
        split: "train" or "val".
        root: see :func:`find_root`.
        transform: geometry; None keeps 2048 x 1024.

    Raises:
        FileNotFoundError: the set or the split is absent, or a frame lacks its label
            or its image.
    """

    upright = False  # labels belong to the pixels as stored
    maps = NAME  # of classes and colours, and the name of the set

    def __init__(
        self,
        split: str = "train",
        root: str | Path | None = None,
        transform: Transform | None = None,
    ):
        self.root = find_root(root)
        images = find_files(self.root, IMAGES, split)
        labels = find_files(self.root, LABELS, split)
        every = sorted(images.keys() | labels.keys())
        if not every:
            raise FileNotFoundError(
                f"no frames of {split} in {self.root / IMAGES / split} and "
                f"{self.root / LABELS / split}. {HOW}"
            )
        for kind, found in ((IMAGES, images), (LABELS, labels)):
            missing = [frame for frame in every if frame not in found]
            if missing:
                raise FileNotFoundError(
                    f"{len(missing)} of {len(every)} frames of {split} have no file in "
                    f"{self.root / kind / split}, first "
                    f"{missing[0].partition('_')[0]}/{missing[0]}{_ENDS[kind]}. {HOW}"
                )
        super().__init__(
            self.maps,
            split,
            [(images[frame], labels[frame]) for frame in every],
            CLASS_NAMES[self.maps],
            palette(self.maps),
            LABEL_MAPS[self.maps],
            transform,
        )

    def item_name(self, index: int) -> str:
        """City, sequence and frame."""
        return self.pairs[index][0].name.removesuffix(_ENDS[IMAGES])


class Cityscapes19(Cityscapes):
    """One split of Cityscapes with the 19 classes of the benchmark, as HSG uses it.

    The same files; every other label id is ignored.
    """

    maps = NAME_19
