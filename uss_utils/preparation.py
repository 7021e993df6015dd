"""What training reads beside the images, made once: patches, crops, similar images."""

from pathlib import Path

from uss_utils import backbones, datasets
from uss_utils.datasets import SegmentationDataset, potsdam_tiles, sbd
from uss_utils.datasets.crops import crops_folder, write_crops
from uss_utils.environment import pick_device
from uss_utils.neighbour_index import neighbour_index
from uss_utils.neighbours import check_length
from uss_utils.sources import FeatureSource

SIZE = 224  # to which the published methods bring stored images


def prepare(
    name: str,
    split: str = "train",
    root: str | Path | None = None,
    *,
    crops: bool | None = None,
    neighbours: bool = True,
    backbone: str = backbones.SHIPPED,
    weights: str | Path | None = None,
    size: int | tuple[int, int] | None = None,
    resample: str | None = None,
    k: int = 8,
    processes: int | None = None,
    device: str = "auto",
    progress: bool = True,
) -> list[str]:
    """Prepare one split of a data set; what is there already is not made again.

    Tiles are cut into patches where the set consists of tiles, SBD's labels are
    converted for VOC's split trainaug, then five crops are stored, then the features of
    a backbone say which images look alike. Features that are worth keeping stay in the
    feature cache, where training finds them.

    Args:
        name: data set, see :func:`uss_utils.datasets.names`.
        split: the split.
        root: folder of a stored set; None: its folder under the data folder.
        crops: store five crops per image and look for similar crops; None: where the
            published methods train on crops.
        neighbours: list the similar images.
        backbone: whose features are compared, see :func:`uss_utils.backbones.load`.
        weights: of the backbone, where they are one's own.
        size: of the compared images, see :func:`uss_utils.datasets.load`; None: 224 for
            stored sets.
        resample: how they get this size; None: "nearest" for stored sets.
        k: length of the lists, the image itself included.
        processes: for patches, labels and crops; None: one per core.
        device: of the backbone; "auto" picks.
        progress: show bars.

    Returns:
        One line for each thing that was made.

    Raises:
        ValueError: unknown names, a set without crops, nothing to do, or fewer than
            ``k`` images.
        FileNotFoundError: the set is not there; the message says how to get it.
        OSError: a file cannot be read or written, or weights cannot be had.
    """
    info = datasets.info(name)
    if crops is None:
        crops = "crops" in info.options and split == "train"
    if crops and "crops" not in info.options:
        known = [n for n, row in datasets.DATASETS.items() if "crops" in row.options]
        raise ValueError(
            f"{name} is not trained on crops; those that are: {', '.join(known)}"
        )
    done = []
    if name == "potsdam3-tiles":
        done += _patches(split, root, processes, progress)
    if name == "voc" and split != "val":
        needed = split == "trainaug" or not neighbours
        done.append(_trainaug(root, needed, processes, progress))
    if crops:
        done.append(_crops(name, split, root, processes, progress))
    if neighbours:
        options = {"crops": "five"} if crops else {}
        if "resample" in info.options:
            size = SIZE if size is None else size
            options["resample"] = resample or "nearest"
        data = datasets.load(name, split, root, size=size, **options)
        done.append(_neighbours(data, backbone, weights, k, device, progress))
    if not done:
        raise ValueError(
            f"there is nothing to prepare for {name} {split} without --neighbours"
        )
    return done


def _patches(
    split: str, root: str | Path | None, processes: int | None, progress: bool
) -> list[str]:
    """Cut Potsdam's tiles unless that has been done."""
    try:
        datasets.load("potsdam3-tiles", split, root)
    except FileNotFoundError:
        place = potsdam_tiles.cut_tiles(root, processes=processes, progress=progress)
        return [f"patches: {place}"]
    return ["patches: complete"]


def _trainaug(
    root: str | Path | None, needed: bool, processes: int | None, progress: bool
) -> str:
    """Make the labels of VOC's trainaug; without SBD that is an error if needed."""
    try:
        place = sbd.make_trainaug(root, processes=processes, progress=progress)
    except FileNotFoundError as error:
        if needed:
            raise
        return f"labels of trainaug: not made ({error})"
    return f"labels of trainaug: {place}"


def _crops(
    name: str,
    split: str,
    root: str | Path | None,
    processes: int | None,
    progress: bool,
) -> str:
    try:
        whole = datasets.load(name, split, root)
    except FileNotFoundError:
        if not _has_crops(name, split, root):
            raise
        return "five crops: complete (the images they were made from are not there)"
    write_crops(whole, whole.root, processes=processes, progress=progress)
    return f"five crops: {crops_folder(whole.root, name)}"


def _has_crops(name: str, split: str, root: str | Path | None) -> bool:
    try:
        datasets.load(name, split, root, crops="five")
    except FileNotFoundError:
        return False
    return True


def _neighbours(
    data: SegmentationDataset,
    backbone: str,
    weights: str | Path | None,
    k: int,
    device: str,
    progress: bool,
) -> str:
    check_length(k, len(data))
    place = pick_device(device)
    network = backbones.load(backbone, weights, device=str(place))
    source = FeatureSource.open(network, data, progress=progress)
    lists = neighbour_index(
        network,
        data,
        k,
        features=None if source.where == "images" else source.batches(),
        progress=progress,
    )
    size = data.transform.describe()
    return f"neighbours: {lists.shape[1]} of {len(lists)} images, {backbone}, {size}"
