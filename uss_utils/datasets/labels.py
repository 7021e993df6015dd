"""Label maps, class names and colours.

A label map is a lookup table: entry ``id`` is the class of the stored fine id, -1 where
the id is ignored or unknown. (The authors' code sends unknown COCO ids to class 0; no
such id occurs in the data.)
"""

import numpy as np
import torch
from torch import Tensor

from uss_utils.datasets import scenes

IGNORE = -1
# In the strict tables of some readers: an id that must not occur. Never in LABEL_MAPS.
FORBIDDEN = -2
# Of a set: labels have up to 16 bits. More is a mistake, and would fill the memory.
MOST_CLASSES = 2**16

# COCO-Stuff: coarse class -> fine ids (= COCO id - 1), inclusive ranges. The twelve
# classes of things come first, then the fifteen of stuff.
_COCO_COARSE = (
    ("electronic", "71-76"),
    ("appliance", "77-82"),
    ("food (thing)", "51-60"),
    ("furniture (thing)", "61-70"),
    ("indoor", "83-90"),
    ("kitchen", "43-50"),
    ("accessory", "25-32"),
    ("animal", "15-24"),
    ("outdoor", "9-14"),
    ("person", "0"),
    ("sports", "33-42"),
    ("vehicle", "1-8"),
    ("ceiling", "101 102"),
    ("floor", "100 113-117"),
    ("food (stuff)", "120 121 152 169"),
    ("furniture (stuff)", "97 106 107 109 111 122 129 132 155 160 164"),
    ("raw material", "99 131 138 142"),
    ("textile", "91 92 103 104 108 130 136 140 151 166 167"),
    ("wall", "170-176"),
    ("window", "179 180"),
    ("building", "94 95 127 150 157 165"),
    ("ground", "110 124 125 135 139 143 144 146 148 153 158"),
    ("plant", "93 96 118 123 128 133 141 162 168"),
    ("sky", "105 156"),
    ("solid", "126 134 149 159 161 181"),
    ("structural", "98 112 137 145 163"),
    ("water", "119 147 154 177 178"),
)
_COCO_THINGS = 12
# The released code calls these three ground, plant, sky, although 23 is sky.
_COCO_THREE = (23, 22, 21)

# Cityscapes from labelId 7 on: name, colour, 19-class train id (-1: not evaluated).
_CITYSCAPES = (
    ("road", (128, 64, 128), 0),
    ("sidewalk", (244, 35, 232), 1),
    ("parking", (250, 170, 160), -1),
    ("rail track", (230, 150, 140), -1),
    ("building", (70, 70, 70), 2),
    ("wall", (102, 102, 156), 3),
    ("fence", (190, 153, 153), 4),
    ("guard rail", (180, 165, 180), -1),
    ("bridge", (150, 100, 100), -1),
    ("tunnel", (150, 120, 90), -1),
    ("pole", (153, 153, 153), 5),
    ("polegroup", (153, 153, 153), -1),
    ("traffic light", (250, 170, 30), 6),
    ("traffic sign", (220, 220, 0), 7),
    ("vegetation", (107, 142, 35), 8),
    ("terrain", (152, 251, 152), 9),
    ("sky", (70, 130, 180), 10),
    ("person", (220, 20, 60), 11),
    ("rider", (255, 0, 0), 12),
    ("car", (0, 0, 142), 13),
    ("truck", (0, 0, 70), 14),
    ("bus", (0, 60, 100), 15),
    ("caravan", (0, 0, 90), -1),
    ("trailer", (0, 0, 110), -1),
    ("train", (0, 80, 100), 16),
    ("motorcycle", (0, 0, 230), 17),
    ("bicycle", (119, 11, 32), 18),
)
_FIRST_CITYSCAPES_ID = 7

_CAMVID = (
    ("sky", (128, 128, 128)),
    ("building", (128, 0, 0)),
    ("pole", (192, 192, 128)),
    ("road", (128, 64, 128)),
    ("pavement", (60, 40, 222)),
    ("tree", (128, 128, 0)),
    ("sign", (192, 128, 128)),
    ("fence", (64, 64, 128)),
    ("car", (64, 0, 128)),
    ("pedestrian", (64, 64, 0)),
    ("bicyclist", (0, 128, 192)),
)

_POTSDAM = {
    "roads and cars": (0, 4),
    "buildings and clutter": (1, 5),
    "trees and vegetation": (2, 3),
}

VOC_CLASSES = (
    *("background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car"),
    *("cat", "chair", "cow", "dining table", "dog", "horse", "motorbike", "person"),
    *("potted plant", "sheep", "sofa", "train", "tv monitor"),
)


def _table(size: int = 256) -> np.ndarray:
    return np.full(size, IGNORE, dtype=np.int64)


def _ids(text: str) -> list[int]:
    """Numbers of "0 3-5": [0, 3, 4, 5]."""
    spans = [part.partition("-") for part in text.split()]
    return [n for a, _, b in spans for n in range(int(a), int(b or a) + 1)]


def _coco27() -> np.ndarray:
    table = _table()
    for coarse, (_, text) in enumerate(_COCO_COARSE):
        table[_ids(text)] = coarse
    return table


def _coco15() -> np.ndarray:
    coarse = _coco27()
    return np.where(coarse >= _COCO_THINGS, coarse - _COCO_THINGS, IGNORE)


def _coco3() -> np.ndarray:
    coarse, table = _coco27(), _table()
    for index, kept in enumerate(_COCO_THREE):
        table[coarse == kept] = index
    return table


def _cityscapes(train_ids: bool) -> np.ndarray:
    table = _table()
    for index, (_, _, train_id) in enumerate(_CITYSCAPES):
        table[_FIRST_CITYSCAPES_ID + index] = train_id if train_ids else index
    return table


def _potsdam3() -> np.ndarray:
    table = _table()
    for index, fine in enumerate(_POTSDAM.values()):
        table[list(fine)] = index
    return table


def strict_table(n_classes: int, ignore: int = 255) -> np.ndarray:
    """Table of a set whose stored ids are the classes already.

    Args:
        n_classes: ids 0..n_classes-1 are classes.
        ignore: id that means "no label".

    Returns:
        int64, shape (256,) or longer; :data:`FORBIDDEN` for every other id, so that
        readers can refuse a file instead of dropping pixels in silence.

    Raises:
        ValueError: a number is negative, or beyond what labels hold.
    """
    if not 0 <= n_classes <= MOST_CLASSES or not 0 <= ignore < MOST_CLASSES:
        raise ValueError(
            f"{n_classes} classes with ignore={ignore}: labels hold ids from 0 to "
            f"{MOST_CLASSES - 1}, one of which may mean 'ignore'"
        )
    table = np.full(max(256, n_classes, ignore + 1), FORBIDDEN, dtype=np.int64)
    table[:n_classes] = np.arange(n_classes)
    table[ignore] = IGNORE
    # Readers see by a forbidden entry that ids beyond the table are forbidden, too.
    full = not (table == FORBIDDEN).any()
    return np.append(table, FORBIDDEN) if full else table


def _frozen(table: np.ndarray) -> np.ndarray:
    table.setflags(write=False)
    return table


LABEL_MAPS: dict[str, np.ndarray] = {
    "cocostuff27": _frozen(_coco27()),
    "cocostuff15": _frozen(_coco15()),
    "cocostuff3": _frozen(_coco3()),
    "cityscapes27": _frozen(_cityscapes(train_ids=False)),
    "cityscapes19": _frozen(_cityscapes(train_ids=True)),
    "potsdam3": _frozen(_potsdam3()),
    # Void is 11 in CamVid, not 255.
    "camvid11": _frozen(strict_table(len(_CAMVID), ignore=11).clip(min=IGNORE)),
    "voc21": _frozen(strict_table(len(VOC_CLASSES)).clip(min=IGNORE)),
}

_COCO_NAMES = tuple(name for name, _ in _COCO_COARSE)
CLASS_NAMES: dict[str, tuple[str, ...]] = {
    "scenes": scenes.STREET_CLASSES,
    "scenes-aerial": scenes.AERIAL_CLASSES,
    "cocostuff27": _COCO_NAMES,
    "cocostuff15": _COCO_NAMES[_COCO_THINGS:],
    "cocostuff3": tuple(_COCO_NAMES[i] for i in _COCO_THREE),
    "cityscapes27": tuple(row[0] for row in _CITYSCAPES),
    "cityscapes19": tuple(row[0] for row in _CITYSCAPES if row[2] >= 0),
    "potsdam3": tuple(_POTSDAM),
    "camvid11": tuple(row[0] for row in _CAMVID),
    "voc21": VOC_CLASSES,
}

# Last row: ignore, so that index -1 is drawn black.
CITYSCAPES_PALETTE = _frozen(
    np.array([row[1] for row in _CITYSCAPES] + [(0, 0, 0)], dtype=np.uint8)
)

_OWN_PALETTES: dict[str, np.ndarray] = {
    "scenes": scenes.STREET_PALETTE,
    "scenes-aerial": scenes.AERIAL_PALETTE,
    "camvid11": np.array([row[1] for row in _CAMVID], dtype=np.uint8),
    "cityscapes27": CITYSCAPES_PALETTE[:-1],
    "cityscapes19": CITYSCAPES_PALETTE[:-1][[row[2] >= 0 for row in _CITYSCAPES]],
}


def remap(label: Tensor | np.ndarray, table: np.ndarray | str) -> Tensor | np.ndarray:
    """Replace every fine id by its class.

    Args:
        label: stored ids, any integer type and shape; ids outside the table (negative
            ones too) become -1.
        table: name in :data:`LABEL_MAPS` or a table of your own, shape (ids,).

    Returns:
        int64 of the same kind and shape.

    Raises:
        ValueError: the name is unknown, or the ids are not integers.
    """
    table = label_map(table) if isinstance(table, str) else np.asarray(table)
    if isinstance(label, Tensor):
        if label.is_floating_point() or label.is_complex():
            raise ValueError(f"label ids must be integers, got {label.dtype}")
        if label.device.type == "cpu":
            return torch.from_numpy(np.asarray(remap(label.numpy(), table)))
        # The lookup runs where the labels are: no copy from the GPU and back.
        return _remap_tensor(label.long(), torch.tensor(table, device=label.device))
    label = np.asarray(label)
    if label.dtype.kind not in "iu":
        raise ValueError(f"label ids must be integers, got {label.dtype}")
    if label.dtype == np.uint8 and len(table) >= 256:
        return table[label]
    # Read as unsigned, negative ids are large ones: one comparison finds all unknown.
    place = np.minimum(label.astype(np.int64).view(np.uint64), np.uint64(len(table)))
    return np.append(table, IGNORE)[place.view(np.int64)]


def _remap_tensor(label: Tensor, table: Tensor) -> Tensor:
    known = (label >= 0) & (label < len(table))
    return torch.where(known, table[label.clamp(0, len(table) - 1)], IGNORE)


def label_map(name: str) -> np.ndarray:
    """Table by name; an unknown name raises ValueError with the known ones."""
    if name not in LABEL_MAPS:
        raise ValueError(f"unknown label map {name!r}; known: {', '.join(LABEL_MAPS)}")
    return LABEL_MAPS[name]


def voc_palette(n: int = 512) -> np.ndarray:
    """PASCAL VOC colours: the bits of the id, spread over red, green and blue.

    Args:
        n: number of colours; the pattern uses the lowest 24 bits of the id.

    Returns:
        uint8, shape (n, 3).
    """
    ids = np.arange(n)
    colours = np.zeros((n, 3), dtype=np.int64)
    for step in range(8):
        for channel in range(3):
            bit = (ids >> (3 * step + channel)) & 1
            colours[:, channel] |= bit << (7 - step)
    return colours.astype(np.uint8)


def palette(name: str, n: int | None = None) -> np.ndarray:
    """Class colours of a label map or generated data set.

    Args:
        name: any name of :data:`CLASS_NAMES`; the generated scenes, CamVid and
            Cityscapes have colours of their own, the others the PASCAL VOC ones.
        n: number of colours; None: as many as there are classes. Beyond a set's own
            colours the VOC ones go on.

    Returns:
        uint8, shape (n, 3).

    Raises:
        ValueError: the name is unknown.
    """
    if name not in CLASS_NAMES:
        raise ValueError(f"unknown palette {name!r}; known: {', '.join(CLASS_NAMES)}")
    n = len(CLASS_NAMES[name]) if n is None else n
    own = _OWN_PALETTES.get(name, voc_palette(0))
    return np.concatenate([own, voc_palette(max(n, len(own)))[len(own) :]])[:n]
