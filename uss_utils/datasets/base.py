"""What every data set of the course offers."""

import copy
import hashlib
import operator
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from uss_utils.datasets.transforms import Transform


def text_bytes(name: str) -> bytes:
    """A name as it is on disk, where it may hold bytes that are no text."""
    return name.encode("utf-8", "surrogateescape")


class SegmentationDataset(Dataset):
    """Images, with or without labels, of one split.

    A subclass says how many items there are and how one is read (:meth:`__len__`,
    :meth:`read`); names, tensors, batches, subsets and fingerprints follow.

    Attributes:
        name: data set as the table of data sets calls it.
        split: "train", "val", ...
        classes: class names, index = class id.
        palette: colours, uint8 (K, 3).
        n_classes: K.
        transform: geometry applied to every item.
        has_labels: False: every label is -1 everywhere.
        threads: how many items are read at a time; 1 where reading is only a copy.
    """

    threads = 4

    def __init__(
        self,
        name: str,
        split: str,
        classes: Sequence[str],
        palette: np.ndarray,
        transform: Transform | None = None,
        has_labels: bool = True,
    ):
        palette = np.asarray(palette, dtype=np.uint8)
        if palette.shape != (len(classes), 3):
            raise ValueError(
                f"{len(classes)} classes need a palette of shape ({len(classes)}, 3), "
                f"got {palette.shape}"
            )
        self.name, self.split = name, split
        self.classes, self.palette = tuple(classes), palette
        self.transform = transform or Transform()
        self.has_labels = has_labels
        self._content: str | None = None

    @property
    def n_classes(self) -> int:
        """Number of classes K."""
        return len(self.classes)

    def __len__(self) -> int:
        raise NotImplementedError

    def read(self, index: int) -> tuple[np.ndarray, np.ndarray | None]:
        """Raw pixels: uint8 RGB (H, W, 3) and int64 label (H, W), ignore = -1."""
        raise NotImplementedError

    def read_label(self, index: int) -> np.ndarray:
        """Raw label alone, int64 (H, W), all -1 without one.

        File sets override it: their images need not be decoded.
        """
        image, label = self.read(index)
        return np.full(image.shape[:2], -1) if label is None else label

    def read_image(self, index: int) -> np.ndarray:
        """Raw pixels alone, uint8 RGB (H, W, 3).

        File sets override it: their labels need not be decoded.
        """
        return self.read(index)[0]

    def read_size(self, index: int) -> tuple[int, int]:
        """Height and width of the raw image.

        File sets override it: the header says it.
        """
        return self.read_image(index).shape[:2]

    def item_name(self, index: int) -> str:
        """Short name of an item, unique in its split."""
        return f"{self.split}_{index:06d}"

    def item_digest(self, index: int) -> bytes:
        """Digest of one item's raw content; file sets override it to skip decoding."""
        image, label = self.read(index)
        digest = hashlib.sha256(repr(image.shape).encode() + image.tobytes())
        if label is not None:
            digest.update(label.astype(np.int64).tobytes())
        return digest.digest()

    def fingerprint(self) -> str:
        """Hex digest of names, pixels, labels and geometry.

        Reads the whole set once per object and remembers the result; two sets with
        the same fingerprint give the same tensors.
        """
        if self._content is None:
            digest = hashlib.sha256()
            for start in range(0, len(self), 4096):  # a million waiting jobs are heavy
                some = range(start, min(start + 4096, len(self)))
                for part in self._parallel(self._named_digest, some):
                    digest.update(part)
            self._content = digest.hexdigest()
        text = f"{self._content}|{len(self)}|{self.transform.describe()}"
        return hashlib.sha256(text.encode()).hexdigest()

    def _named_digest(self, index: int) -> bytes:
        name = hashlib.sha256(text_bytes(self.item_name(index))).digest()
        return name + self.item_digest(index)

    def __getitem__(self, index: int) -> dict:
        """One item: ``image`` (3, H, W), ``label`` (H, W), ``index`` and ``name``."""
        index = self._checked(index)
        image, label = self.read(index)
        image, label = self.transform(image, label)
        return {
            "image": image,
            "label": label,
            "index": index,
            "name": self.item_name(index),
        }

    def _checked(self, index: int) -> int:
        index, n = operator.index(index), len(self)
        if not -n <= index < n:
            raise IndexError(f"item {index} of {n} in {self.name} {self.split}")
        return index % n

    def _parallel(self, function, indices: Sequence[int]) -> list:
        if self.threads <= 1 or len(indices) < 2:
            return [function(i) for i in indices]
        with ThreadPoolExecutor(min(self.threads, len(indices))) as pool:
            return list(pool.map(function, indices))

    def batch(self, indices: Iterable[int]) -> tuple[Tensor, Tensor]:
        """Several items as tensors, read by a few threads.

        Args:
            indices: positions in the set; a list, range or integer tensor.

        Returns:
            image, float32 (B, 3, H, W), and label, int64 (B, H, W).

        Raises:
            ValueError: no index was given, or the items differ in size.
        """
        items = self._items(self.__getitem__, indices)
        images = torch.stack([item["image"] for item in items])
        return images, torch.stack([item["label"] for item in items])

    def labels(self, indices: Iterable[int]) -> Tensor:
        """Labels alone, read without the images where these lie in files of their own.

        Args:
            indices: as for :meth:`batch`.

        Returns:
            int64 (B, H, W): what :meth:`batch` returns second.

        Raises:
            ValueError: no index was given, or the items differ in size.
        """
        items = self._items(self._label_item, indices)
        return torch.stack([item["label"] for item in items])

    def _label_item(self, index: int) -> dict:
        index = self._checked(index)
        label = self.transform.apply_label(self.read_label(index))
        label = torch.from_numpy(label.astype(np.int64))
        return {"label": label, "name": self.item_name(index)}

    def _items(self, read: Callable[[int], dict], indices: Iterable[int]) -> list[dict]:
        """Items read by a few threads, all of one size."""
        indices = [int(i) for i in indices]
        if not indices:
            raise ValueError("a batch needs at least one index")
        items = self._parallel(read, indices)
        sizes = {tuple(item["label"].shape): item["name"] for item in items}
        if len(sizes) > 1:
            (a, name_a), (b, name_b) = list(sizes.items())[:2]
            raise ValueError(
                f"images of different sizes cannot form one batch: {name_a} is "
                f"{a[0]}x{a[1]}, {name_b} is {b[0]}x{b[1]}. Give the data set a "
                'transform that makes them equal: Transform("resize", (H, W)) or '
                'Transform("center", size)'
            )
        return items

    def with_transform(self, transform: Transform) -> "SegmentationDataset":
        """The same items with another geometry; nothing is read again."""
        other = copy.copy(self)
        other.transform = transform
        return other

    def subset(self, indices: Iterable[int]) -> "SegmentationDataset":
        """The chosen items, in the given order, as a data set of their own.

        Raises:
            IndexError: an index lies outside the set.
        """
        return Subset(self, indices)


class Subset(SegmentationDataset):
    """Chosen items of another data set; keeps its names, classes and geometry."""

    def __init__(self, parent: SegmentationDataset, indices: Iterable[int]):
        super().__init__(
            parent.name,
            parent.split,
            parent.classes,
            parent.palette,
            parent.transform,
            parent.has_labels,
        )
        self.threads = parent.threads
        self.parent = parent
        self.indices = [parent._checked(int(i)) for i in indices]

    def __len__(self) -> int:
        return len(self.indices)

    def read(self, index: int) -> tuple[np.ndarray, np.ndarray | None]:
        """Raw pixels of the chosen item; see :meth:`SegmentationDataset.read`."""
        return self.parent.read(self.indices[index])

    def read_label(self, index: int) -> np.ndarray:
        """Raw label of the chosen item."""
        return self.parent.read_label(self.indices[index])

    def read_image(self, index: int) -> np.ndarray:
        """Raw pixels of the chosen item."""
        return self.parent.read_image(self.indices[index])

    def read_size(self, index: int) -> tuple[int, int]:
        """Height and width of the chosen item."""
        return self.parent.read_size(self.indices[index])

    def item_name(self, index: int) -> str:
        """Name of the item in the set it was chosen from."""
        return self.parent.item_name(self.indices[index])

    def item_digest(self, index: int) -> bytes:
        """Digest of the item in the set it was chosen from."""
        return self.parent.item_digest(self.indices[index])


class Mirrored(SegmentationDataset):
    """Another data set with left and right exchanged, after its geometry.

    Mirroring first and then cropping would cut another piece wherever a border is odd.
    """

    def __init__(self, parent: SegmentationDataset):
        super().__init__(
            parent.name,
            parent.split,
            parent.classes,
            parent.palette,
            parent.transform,
            parent.has_labels,
        )
        self.threads = parent.threads
        self.parent = parent

    def __len__(self) -> int:
        return len(self.parent)

    def __getitem__(self, index: int) -> dict:
        """One mirrored item; see :meth:`SegmentationDataset.__getitem__`."""
        item = self.parent[index]
        return item | {key: item[key].flip(-1) for key in ("image", "label")}

    def _label_item(self, index: int) -> dict:
        item = self.parent._label_item(index)
        return item | {"label": item["label"].flip(-1)}

    def item_name(self, index: int) -> str:
        """Name of the item that is mirrored."""
        return self.parent.item_name(index)

    def fingerprint(self) -> str:
        """Hex digest that differs from the one of the set as it is."""
        return hashlib.sha256(
            f"mirrored {self.parent.fingerprint()}".encode()
        ).hexdigest()
