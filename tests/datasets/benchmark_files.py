"""Small data sets in the true formats of COCO-Stuff, Cityscapes, Potsdam and VOC."""

import numpy as np
import scipy.io
from PIL import Image


def noise(height, width, channels=3, seed=0):
    """A picture that JPEG can hold: smooth, but nowhere the same."""
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 256, (4, 4, channels), dtype=np.uint8)
    bands = [
        np.asarray(Image.fromarray(small[..., c]).resize((width, height)))
        for c in range(channels)
    ]
    return np.stack(bands, -1)


def write(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)
    return path


def coco_label(height=40, width=48, ids=(0, 105, 255, 12)):
    """Quarters of the picture hold the given ids."""
    label = np.empty((height, width), np.uint8)
    h, w = height // 2, width // 2
    label[:h, :w], label[:h, w:], label[h:, :w], label[h:, w:] = ids
    return label


def make_coco(root, split="val", names=(25, 139), lists=True, **label):
    """Images and labels of COCO-Stuff with a list of all of them."""
    ids = [f"{number:012d}" for number in names]
    for i, name in enumerate(ids):
        array = coco_label(**label)
        write(
            root / "images" / f"{split}2017" / f"{name}.jpg", noise(*array.shape, 3, i)
        )
        write(root / "annotations" / f"{split}2017" / f"{name}.png", array)
    if lists:
        folder = root / "curated" / f"{split}2017"
        folder.mkdir(parents=True, exist_ok=True)
        text = "".join(f"{name}\n" for name in ids)
        (folder / "Coco164kFull_Stuff_Coarse_7.txt").write_text(text)
    return root


def make_cityscapes(root, split="train", cities=("aachen", "zurich"), size=(32, 64)):
    """Two frames per city."""
    for c, city in enumerate(cities):
        for frame in range(2):
            stem = f"{city}_{c:06d}_{frame:06d}"
            label = np.full(size, 7 + frame, np.uint8)
            label[0] = 0
            label[1] = 255  # what the licence plate's -1 becomes in 8 bits
            images = root / "leftImg8bit" / split / city
            labels = root / "gtFine" / split / city
            write(images / f"{stem}_leftImg8bit.png", noise(*size, 3, frame))
            write(labels / f"{stem}_gtFine_labelIds.png", label)
            write(labels / f"{stem}_gtFine_color.png", noise(*size, 4))
    return root


def make_potsdam(root, train=(3, 11), val=(7,), bare=(), dtype=np.int32):
    """Patches as MATLAB files; those in ``bare`` have no label."""
    for folder in ("imgs", "gt"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    for number in (*train, *val):
        scipy.io.savemat(
            root / f"imgs/{number}.mat", {"img": noise(200, 200, 4, number)}
        )
        if number not in bare:
            gt = np.arange(200 * 200).reshape(200, 200) % 6
            scipy.io.savemat(root / f"gt/{number}.mat", {"gt": gt.astype(dtype)})
    for name, numbers in (("labelled_train", train), ("labelled_test", val)):
        (root / f"{name}.txt").write_text("".join(f"{n}\n" for n in numbers))
    return root


TILE_COLOURS = [(255, 255, 255), (0, 0, 255), (0, 255, 255), (0, 255, 0), (255, 255, 0)]
TILE_COLOURS += [(255, 0, 0), (0, 0, 0)]


def make_tiles(root, tiles, side=400, label_end="label"):
    """Tiles of ISPRS: four channels, and a label in colours."""
    for i, tile in enumerate(tiles):
        picture = noise(side, side, 4, i)
        write(root / "4_Ortho_RGBIR" / f"top_potsdam_{tile}_RGBIR.tif", picture)
        ids = np.arange(side) // 8 % 7
        label = np.array(TILE_COLOURS, np.uint8)[np.broadcast_to(ids, (side, side))]
        folder = root / "5_Labels_all"
        write(folder / f"top_potsdam_{tile}_{label_end}.tif", label)
    return root


VOC_IDS = {"train": ("2007_000032", "2008_000002"), "val": ("2007_000033",)}
SBD_ONLY = ("2008_000003", "2010_000001")


def voc_label(height=24, width=30, classes=(0, 15, 255, 20)):
    """Quarters of the picture hold the given ids."""
    return coco_label(height, width, classes)


def write_palette(path, ids):
    """A label as VOC stores it: ids with colours, which a reader has to ignore."""
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.fromarray(ids, "P")
    picture.putpalette(np.random.default_rng(0).integers(0, 256, 768).tolist())
    picture.save(path)


def make_voc(root, layout="official", saliency=(), ids=VOC_IDS):
    """PASCAL VOC in the official layout, or in that of MaskContrast's release."""
    release = layout == "release"
    lists = root / ("sets" if release else "ImageSets/Segmentation")
    images = root / ("images" if release else "JPEGImages")
    lists.mkdir(parents=True)
    named = dict(ids, trainaug=ids["train"] + SBD_ONLY) if release else ids
    for split, names in named.items():
        (lists / f"{split}.txt").write_text("".join(f"{n}\n" for n in names))
    every = [*ids["train"], *ids["val"], *SBD_ONLY]
    for i, name in enumerate(every):
        write(images / f"{name}.jpg", noise(24, 30, 3, i))
        if name not in SBD_ONLY:
            write_palette(root / "SegmentationClass" / f"{name}.png", voc_label())
        if release and name not in ids["val"]:
            write(root / "SegmentationClassAug" / f"{name}.png", voc_label())
    for kind in saliency:
        for name in every[:2]:
            mask = np.zeros((24, 30), np.uint8)
            mask[4:12] = 255
            write(root / f"saliency_{kind}_model" / f"{name}.png", mask)
    return root


def make_sbd(root, train=("2008_000002", *SBD_ONLY), val=VOC_IDS["val"], label=None):
    """SBD's MATLAB files, of which VOC's val split is no part of trainaug."""
    folder = root / "benchmark_RELEASE" / "dataset"
    (folder / "cls").mkdir(parents=True)
    for split, names in (("train", train), ("val", val)):
        (folder / f"{split}.txt").write_text("".join(f"{n}\n" for n in names))
        for name in names:
            ids = voc_label(classes=(0, 3, 3, 12)) if label is None else label
            held = {"Segmentation": ids, "CategoriesPresent": np.unique(ids)}
            scipy.io.savemat(folder / "cls" / f"{name}.mat", {"GTcls": held})
    return folder
