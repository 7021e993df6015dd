"""PASCAL VOC 2012: photographs of 20 kinds of objects and background, 21 classes.

Everingham et al.: "The PASCAL Visual Object Classes Challenge: A Retrospective", IJCV
2015; trainaug adds the labels of SBD (Hariharan et al.: "Semantic Contours from Inverse
Detectors", ICCV 2011). Two layouts are read, the official one and that of the release
of MaskContrast (Van Gansbeke et al., ICCV 2021), which brings saliency masks::

    VOCdevkit/VOC2012/                       VOCSegmentation/
      JPEGImages/ID.jpg                        images/ID.jpg
      ImageSets/Segmentation/{train,val}.txt   sets/{train,trainaug,val}.txt
      SegmentationClass/ID.png                 SegmentationClass/ID.png
      SegmentationClassAug/ID.png              SegmentationClassAug/ID.png
                                               saliency_{un,}supervised_model/ID.png

Labels are palette or grey PNGs of ids; 255 (borders, difficult objects) is ignored. In
the official layout :mod:`uss_utils.datasets.sbd` makes the labels and list of trainaug.
"""

from dataclasses import dataclass
from pathlib import Path

from uss_utils.datasets import roots
from uss_utils.datasets.files import FileDataset, read_text
from uss_utils.datasets.labels import CLASS_NAMES, palette, strict_table
from uss_utils.datasets.transforms import Transform

NAME = "voc"
MAPS = "voc21"
# Published number of images.
SPLITS = {"train": 1_464, "trainaug": 10_582, "val": 1_449}
LABELS, AUGMENTED = "SegmentationClass", "SegmentationClassAug"
# Names under which a list goes round; the first is the one that is written.
_LISTS = {"trainaug": ("trainaug.txt", "train_aug.txt")}
SALIENCY = ("supervised", "unsupervised")
FETCH = f"python -m uss_utils data download {NAME}"
COMPLETE = f"Complete the set with `{FETCH}`; `data check {NAME}` counts"


@dataclass(frozen=True)
class Layout:
    """Folders of a layout.

    Attributes:
        images: folder of the photographs.
        lists: folder of the lists.
    """

    images: str
    lists: str


OFFICIAL = Layout("JPEGImages", "ImageSets/Segmentation")
RELEASE = Layout("images", "sets")


def find_root(root: str | Path | None = None) -> Path:
    """Folder that holds the images, their labels and lists.

    Args:
        root: that folder or one above it; None: ``voc`` under the data folder.

    Raises:
        FileNotFoundError: it was not found; the message says how to get the set.
    """
    return roots.find_root(
        "PASCAL VOC 2012",
        root,
        names=("voc", "VOC2012", "VOCSegmentation"),
        places=("VOCdevkit/VOC2012", "voc/VOCdevkit/VOC2012", "PASCAL_VOC"),
        holds=(OFFICIAL.lists, RELEASE.lists),
        advice=f"Get the set with `{FETCH}` (3.4 GB, no login), or name its folder "
        "with --data-root (notebooks: DATA_ROOT)",
    )


def layout_of(root: Path) -> Layout:
    """Which of the two layouts a folder has; the official one if it has neither.

    Args:
        root: see :func:`find_root`.
    """
    official = (root / OFFICIAL.lists).is_dir() or not (root / RELEASE.lists).is_dir()
    return OFFICIAL if official else RELEASE


def label_folder(split: str) -> str:
    """Folder of a split's labels."""
    return AUGMENTED if split == "trainaug" else LABELS


def list_file(root: Path, split: str) -> Path:
    """The list of a split's images; where it would be, if it is absent."""
    names = _LISTS.get(split, (f"{split}.txt",))
    files = [root / layout_of(root).lists / name for name in names]
    return next((path for path in files if path.is_file()), files[0])


def read_list(path: Path) -> list[str]:
    """Image ids of a list, one per line.

    Lines that name an image and a label file, as other projects write them, give the
    same ids.

    Raises:
        ValueError: no ids, or one that occurs twice.
    """
    lines = read_text(path).splitlines()
    ids = [Path(line.split()[0]).stem for line in lines if line.strip()]
    if not ids or len(set(ids)) < len(ids):
        what = "names an image twice" if ids else "is empty"
        raise ValueError(f"{path} {what}; replace the list (one image id per line)")
    return ids


def how_to_get(root: Path, split: str) -> str:
    """The step that brings what is missing of a split."""
    if split != "trainaug":
        return COMPLETE
    return (
        f"trainaug needs the labels of SBD: `{FETCH} --data-root {root}` gets and "
        "converts them (1.4 GB); if SBD's benchmark.tgz is unpacked in that folder, "
        f"`python -m uss_utils data prepare {NAME} --no-neighbours --data-root {root}` "
        "is enough"
    )


def saliency_folder(root: Path, kind: str) -> Path:
    """Where the masks of :func:`saliency_dir` lie, if they are there."""
    return root / f"saliency_{kind}_model"


def saliency_dir(root: str | Path | None, kind: str) -> Path:
    """Folder of the saliency masks that come with MaskContrast's release.

    Masks are grey PNGs of their image's name and size, 255 on the object, 0 elsewhere;
    an image without a mask was found to show none.

    Args:
        root: see :func:`find_root`.
        kind: "supervised" or "unsupervised", by how the saliency network was trained.

    Raises:
        ValueError: the kind is unknown.
        FileNotFoundError: the folder is absent, or holds no masks.
    """
    if kind not in SALIENCY:
        raise ValueError(
            f"unknown kind of saliency {kind!r}; known: {', '.join(SALIENCY)}"
        )
    folder = saliency_folder(find_root(root), kind)
    if not roots.listed(folder, ".png"):
        state = "empty" if folder.is_dir() else "absent"
        raise FileNotFoundError(
            f"no {kind} saliency masks: {folder} is {state}. They come with "
            "MaskContrast's release (PASCAL_VOC.tgz, linked in its README) only: put "
            "that folder there, or make masks of your own from a backbone's features"
        )
    return folder


class Voc(FileDataset):
    """One split of PASCAL VOC 2012 with 21 classes.

    Args:
        split: "train", "trainaug" or "val".
        root: see :func:`find_root`.
        transform: geometry; None keeps the photographs' own sizes, which differ.

    Attributes:
        root: folder of the set.

    Raises:
        FileNotFoundError: the set, a list, a listed image or its label is absent.
        ValueError: the list makes no sense.
    """

    upright = False  # labels belong to the pixels as stored

    def __init__(
        self,
        split: str = "train",
        root: str | Path | None = None,
        transform: Transform | None = None,
    ):
        self.root = find_root(root)
        advice = how_to_get(self.root, split)
        path = list_file(self.root, split)
        if not path.is_file():
            raise FileNotFoundError(f"no list of {split} at {path}. {advice}")
        ids = read_list(path)
        folder = self.root / layout_of(self.root).images
        images = roots.listed_files(f"images of {split}", folder, ids, ".jpg", COMPLETE)
        folder = self.root / label_folder(split)
        labels = roots.listed_files(f"labels of {split}", folder, ids, ".png", advice)
        super().__init__(
            NAME,
            split,
            list(zip(images, labels, strict=True)),
            CLASS_NAMES[MAPS],
            palette(MAPS),
            strict_table(len(CLASS_NAMES[MAPS])),
            transform,
        )

    def saliency_dir(self, kind: str) -> Path:
        """See :func:`saliency_dir`."""
        return saliency_dir(self.root, kind)
