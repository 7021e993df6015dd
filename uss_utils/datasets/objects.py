"""A data set in which only objects have classes; everything else is background.

What finds and names objects (MaskContrast) has nothing to say about sky and road. On
sets that label every pixel the other classes become one, "background", as in VOC.
"""

import hashlib
from collections.abc import Sequence

import numpy as np

from uss_utils.datasets.base import SegmentationDataset

BACKGROUND = "background"


class ObjectClasses(SegmentationDataset):
    """Another data set with chosen classes, in the given order, behind "background".

    Args:
        parent: the data set; its geometry stays.
        objects: names of the classes that are objects.

    Raises:
        ValueError: no class is chosen, one is chosen twice, or the set has no such
            class.
    """

    def __init__(self, parent: SegmentationDataset, objects: Sequence[str]):
        objects = tuple(objects)
        unknown = [name for name in objects if name not in parent.classes]
        if unknown or not objects or len(set(objects)) < len(objects):
            raise ValueError(
                f"objects {', '.join(objects) or 'none'} of {parent.name}: choose one "
                f"or several of {', '.join(parent.classes)}, each once"
            )
        ids = [parent.classes.index(name) for name in objects]
        super().__init__(
            parent.name,
            parent.split,
            (BACKGROUND, *objects),
            np.concatenate([np.zeros((1, 3), np.uint8), parent.palette[ids]]),
            parent.transform,
            parent.has_labels,
        )
        self.threads, self.parent = parent.threads, parent
        # The last row is that of the ignored pixels: index -1.
        self._table = np.zeros(parent.n_classes + 1, np.int64)
        self._table[ids] = np.arange(1, len(ids) + 1)
        self._table[-1] = -1

    def __len__(self) -> int:
        return len(self.parent)

    def read(self, index: int) -> tuple[np.ndarray, np.ndarray | None]:
        """Raw pixels; see :meth:`SegmentationDataset.read`."""
        image, label = self.parent.read(index)
        return image, None if label is None else self._table[label]

    def read_label(self, index: int) -> np.ndarray:
        """Raw label alone."""
        return self._table[self.parent.read_label(index)]

    def item_name(self, index: int) -> str:
        """Name of the item in the set it comes from."""
        return self.parent.item_name(index)

    def item_digest(self, index: int) -> bytes:
        """Digest of the item and of what its classes become."""
        digest = self.parent.item_digest(index) + self._table.tobytes()
        return hashlib.sha256(digest).digest()
