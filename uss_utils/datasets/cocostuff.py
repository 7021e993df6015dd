"""COCO-Stuff: photographs of everyday scenes, 172 fine labels in 27 coarse classes.

Caesar, Uijlings, Ferrari: "COCO-Stuff: Thing and stuff classes in context", CVPR 2018;
the 27 classes and the curated lists of images are those of IIC (Ji et al., ICCV 2019)
and PiCIE (Cho et al., CVPR 2021). Layout, as STEGO and its successors read it::

    cocostuff/
      images/{train2017,val2017}/000000000025.jpg
      annotations/{train2017,val2017}/000000000025.png     (COCO id - 1; 255: no label)
      curated/{train2017,val2017}/Coco164kFull_Stuff_Coarse_7.txt

A list holds one image id per line. Where it is missing, it follows from the labels: an
image is kept if both sides have at least 360 pixels and at least 75 % of the pixels
belong to one of the 15 stuff classes.
"""

import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from tqdm.auto import tqdm

from uss_utils.datasets import roots
from uss_utils.datasets.crops import crops_folder
from uss_utils.datasets.files import FileDataset, read_ids, read_text, stored_size
from uss_utils.datasets.labels import CLASS_NAMES, LABEL_MAPS, palette
from uss_utils.datasets.transforms import Transform
from uss_utils.paths import atomic_file

NAME = "cocostuff27"
SPLITS = {"train": "train2017", "val": "val2017"}
KINDS = {"images": ".jpg", "annotations": ".png"}
# Published numbers: of all images, and of those on the list below.
IMAGES = {"train": 118_287, "val": 5_000}
CURATED = {"train": 49_629, "val": 2_175}
LIST = "Coco164kFull_Stuff_Coarse_7.txt"
# STEGO's own archive holds a longer list for training, whose rule is not published.
LONG_LIST = "Coco164kFull_Stuff_Coarse.txt"
LIST_SHA256 = {
    "train": "3b837594a81880a70f177afab906fc45147d8b9c2c4f51132f784e41941812f9",
    "val": "7c629734c88f1a74bba6311e01d4d9fe976df84f07cb4fc86452ce5116e51655",
}
SHORTEST_SIDE = 360
STUFF_SHARE = 0.75
FETCH = f"python -m uss_utils data download {NAME}"
_STUFF = LABEL_MAPS[NAME] >= 12


def find_root(root: str | Path | None = None) -> Path:
    """Folder that holds ``images/``, ``annotations/`` and ``curated/``.

    Args:
        root: that folder or one above it; None: ``cocostuff`` under the data folder.

    Raises:
        FileNotFoundError: it was not found; the message says how to get the set.
    """
    return roots.find_root(
        "COCO-Stuff",
        root,
        names=("cocostuff", NAME, "COCO-Stuff"),
        holds=(
            *(f"{kind}/{split}" for kind in KINDS for split in SPLITS.values()),
            str(crops_folder(Path(), NAME)),
        ),
        advice=f"Get the set with `{FETCH}` (20 GB, no login), or name its folder with "
        "--data-root (notebooks: DATA_ROOT)",
    )


def list_file(root: Path, split: str) -> Path | None:
    """The list of a split's images that is in force; None if there is none.

    For training the longer list of STEGO's archive goes first, as there.
    """
    folder = root / "curated" / SPLITS[split]
    known = (LONG_LIST, LIST) if split == "train" else (LIST,)
    return next((folder / name for name in known if (folder / name).is_file()), None)


def read_list(path: Path) -> list[str]:
    """Image ids of a list file.

    Raises:
        ValueError: no ids, an id that is not 12 digits, or one that occurs twice.
    """
    ids = read_text(path).split()
    strange = [name for name in ids if not (len(name) == 12 and name.isdecimal())]
    if strange or not ids:
        found = f"{strange[0]!r}" if strange else "nothing"
        raise ValueError(
            f"{path} holds {found} where image ids of 12 digits were expected, one per "
            "line; remove the file, and the list is made anew from the labels"
        )
    if len(set(ids)) < len(ids):
        raise ValueError(f"{path} names an image twice; remove the file")
    return ids


def is_curated(path: Path) -> bool:
    """Whether a label file meets the rule of the curated list."""
    if min(stored_size(path, upright=False)) < SHORTEST_SIDE:
        return False
    ids = read_ids(path)
    stuff = np.count_nonzero(_STUFF[ids.clip(0, 255)])
    return bool(stuff >= STUFF_SHARE * ids.size)


def curate(root: Path, split: str, progress: bool = True) -> Path:
    """Make the curated list of a split from its label files.

    Args:
        root: see :func:`find_root`.
        split: "train" (minutes) or "val" (seconds).
        progress: show a bar.

    Returns:
        The list file.

    Raises:
        FileNotFoundError: the labels are not all there, so the list would be wrong.
        OSError: a label cannot be read, or the list cannot be written.
    """
    folder = root / "annotations" / SPLITS[split]
    target = root / "curated" / SPLITS[split] / LIST
    ids = sorted(roots.listed(folder, ".png"))
    if len(ids) != IMAGES[split]:
        raise FileNotFoundError(
            f"no list of the images of {split} at {target}, and it can only be made "
            f"from complete labels: {folder} holds {len(ids)} of {IMAGES[split]}. Put "
            f"the list there, or complete the set with `{FETCH}`"
        )
    print(f"{target.name} is missing: making it from {len(ids)} labels of {split}")
    files = [folder / f"{name}.png" for name in ids]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        kept = tqdm(pool.map(is_curated, files), "list", len(ids), disable=not progress)
        chosen = [name for name, keep in zip(ids, kept, strict=True) if keep]
    text = "".join(f"{name}\n" for name in chosen)
    same = hashlib.sha256(text.encode()).hexdigest() == LIST_SHA256[split]
    with atomic_file(target) as path:
        path.write_text(text, encoding="utf-8")
    found = "the published list" if same else f"published are {CURATED[split]}"
    print(f"{len(chosen)} images of {split} ({found}): {target}")
    return target


class CocoStuff(FileDataset):
    """One split of COCO-Stuff with 27 classes.

    Args:
        split: "train" or "val".
        root: see :func:`find_root`.
        transform: geometry; None keeps the photographs' own sizes, which differ.

    Raises:
        FileNotFoundError: the set, a listed image or its label is absent.
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
        ids = read_list(list_file(self.root, split) or curate(self.root, split))
        images, labels = (
            roots.listed_files(
                f"{kind} of {split}",
                self.root / kind / SPLITS[split],
                ids,
                suffix,
                f"Complete the set with `{FETCH}`; `data check {NAME}` counts",
            )
            for kind, suffix in KINDS.items()
        )
        super().__init__(
            NAME,
            split,
            list(zip(images, labels, strict=True)),
            CLASS_NAMES[NAME],
            palette(NAME),
            LABEL_MAPS[NAME],
            transform,
        )
