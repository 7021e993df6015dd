"""SBD's labels as PASCAL VOC's: what makes the split trainaug.

Hariharan et al.: "Semantic Contours from Inverse Detectors", ICCV 2011. SBD labels
11 355 images of PASCAL VOC 2012 in MATLAB files::

    benchmark_RELEASE/dataset/{cls/ID.mat, train.txt, val.txt}

trainaug holds its images and those of VOC's train split, without VOC's val split:
10 582 images. Those of train keep the labels of VOC, whose borders are ignored; SBD's
have no such borders.
"""

import shutil
from pathlib import Path

import numpy as np
from PIL import Image

from uss_utils import paths
from uss_utils.datasets import mat_files, roots, voc
from uss_utils.datasets.labels import CLASS_NAMES
from uss_utils.datasets.processes import spread
from uss_utils.paths import atomic_file, clear_leftovers
from uss_utils.resumable import locked

# Published number of labelled images of both its splits.
IMAGES = 11_355
FOLDER = "sbd"  # where a download puts it, in VOC's folder
_PLACES = ("", "dataset", "benchmark_RELEASE/dataset")


def find_sbd(root: Path) -> Path:
    """Folder that holds ``cls/`` and the lists of SBD.

    Args:
        root: folder of VOC; up to two folders above it are looked at as well.

    Raises:
        FileNotFoundError: it was not found; the message says how to get it.
    """
    for start in (root, *root.parents[:2]):
        for name in ("", FOLDER, "SBD"):
            for place in _PLACES:
                folder = start / name / place
                if (folder / "cls").is_dir() and (folder / "train.txt").is_file():
                    return folder
    raise FileNotFoundError(
        f"no SBD (cls/*.mat, train.txt, val.txt) at {root / FOLDER} or beside VOC. "
        f"{voc.how_to_get(root, 'trainaug')}"
    )


def is_made(root: Path) -> bool:
    """Whether VOC's folder holds the list of trainaug and all its labels."""
    path = voc.list_file(root, "trainaug")
    if not path.is_file():
        return False
    return not set(voc.read_list(path)) - roots.written(root / voc.AUGMENTED, ".png")


def make_trainaug(
    root: str | Path | None = None,
    *,
    processes: int | None = None,
    progress: bool = True,
) -> Path:
    """Convert SBD's labels and write the list of trainaug; a killed run is continued.

    A list that is there already is kept, and decides which labels are made. Labels
    that are there already are kept, too; complete ones need no SBD.

    Args:
        root: see :func:`uss_utils.datasets.voc.find_root`.
        processes: None: one per core.
        progress: show a bar.

    Returns:
        The folder of the labels.

    Raises:
        FileNotFoundError: VOC, SBD, or a label of theirs is absent.
        ValueError: a list makes no sense, or a label is none of VOC's.
        OSError: a file cannot be read or written.
    """
    root = voc.find_root(root)
    target, path = root / voc.AUGMENTED, voc.list_file(root, "trainaug")
    clear_leftovers(path.parent, path.name)
    if is_made(root):
        return target
    ids = trainaug_ids(root)
    target.mkdir(exist_ok=True)
    with locked(target):
        clear_leftovers(target)
        there = roots.written(target, ".png")
        missing = [name for name in ids if name not in there]
        jobs = list(_sources(root, missing).items()) if missing else []
        made = spread(
            convert,
            target,
            jobs,
            processes=processes,
            desc="labels of SBD",
            progress=progress,
        )
        for _ in made:
            pass
        paths.settle()
        if not path.is_file():  # comes last: where it is, everything is
            with atomic_file(path) as temporary:
                text = "".join(f"{name}\n" for name in ids)
                temporary.write_text(text, encoding="utf-8")
    return target


def trainaug_ids(root: Path) -> list[str]:
    """Images of trainaug: by the list, by complete labels, or by the rule above.

    Args:
        root: folder of VOC.

    Raises:
        FileNotFoundError: a list of VOC or SBD is absent.
        ValueError: a list makes no sense.
    """
    path = voc.list_file(root, "trainaug")
    if path.is_file():
        return voc.read_list(path)
    val = set(_read_list(voc.list_file(root, "val")))
    labelled = roots.written(root / voc.AUGMENTED, ".png") - val
    if len(labelled) >= voc.SPLITS["trainaug"]:
        return sorted(labelled)
    folder = find_sbd(root)
    lists = [voc.list_file(root, "train"), folder / "train.txt", folder / "val.txt"]
    return sorted({name for path in lists for name in _read_list(path)} - val)


def _read_list(path: Path) -> list[str]:
    if not path.is_file():
        raise FileNotFoundError(
            f"no list at {path}, from which trainaug is put together. {voc.COMPLETE}"
        )
    return voc.read_list(path)


def _sources(root: Path, ids: list[str]) -> dict[str, Path]:
    """The file that each image's label comes from."""
    folder = find_sbd(root) / "cls"
    of_voc = roots.written(root / voc.LABELS, ".png")
    of_sbd = roots.written(folder, ".mat")
    missing = [name for name in ids if name not in of_voc | of_sbd]
    if missing:
        raise FileNotFoundError(
            f"{len(missing)} of {len(ids)} labels of trainaug are neither in {folder} "
            f"nor in {root / voc.LABELS}, first {missing[0]}; {len(of_sbd)} "
            f"of SBD's {IMAGES} files are there. Unpack benchmark.tgz again"
        )
    return {
        name: root / voc.LABELS / f"{name}.png"
        if name in of_voc
        else folder / f"{name}.mat"
        for name in ids
    }


def convert(target: Path, job: tuple[str, Path]) -> None:
    """Write the label of one image as a PNG of ids.

    Args:
        target: folder of the labels.
        job: the image, and its label: SBD's ``.mat`` or VOC's ``.png``.
    """
    name, source = job
    with atomic_file(target / f"{name}.png", bulk=True) as path:
        if source.suffix == ".png":
            shutil.copyfile(source, path)
        else:
            Image.fromarray(read_label(source)).save(path, "PNG")


def read_label(path: Path) -> np.ndarray:
    """Class ids of a file of SBD, uint8 (H, W).

    Raises:
        OSError: the file cannot be read.
        ValueError: it holds no label, or ids that VOC does not have.
    """
    ids = mat_files.read(path, "GTcls", "Segmentation")
    if ids.ndim != 2 or ids.dtype.kind not in "iu" or not ids.size:
        raise ValueError(
            f"'GTcls.Segmentation' in {path} is {ids.dtype} {ids.shape}; expected "
            "integers (height, width)"
        )
    n_classes = len(CLASS_NAMES[voc.MAPS])
    if ids.min() < 0 or ids.max() >= n_classes:
        strange = ids.min() if ids.min() < 0 else ids.max()
        raise ValueError(
            f"{path} holds id {strange}; SBD's labels have ids 0..{n_classes - 1}"
        )
    return ids.astype(np.uint8)
