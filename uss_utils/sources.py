"""Features and labels of a training set, wherever the features come from.

The backbone is frozen and the geometry of an image is fixed, so its features never
change: they are computed once and kept, in memory while they are few, on disk while
there is room, and only otherwise computed again in every step.
"""

import shutil
from collections.abc import Iterable, Iterator
from typing import Literal

import torch
from torch import Tensor

from uss_utils import ranks
from uss_utils.batches import in_order
from uss_utils.datasets.base import SegmentationDataset
from uss_utils.extraction import extract, feature_batches, own_images
from uss_utils.feature_cache import FeatureCache
from uss_utils.frozen import Frozen
from uss_utils.paths import cache_dir
from uss_utils.sampling import labels

Place = Literal["memory", "disk", "images"]
IN_MEMORY = 1_000_000_000  # bytes of float32 features that are kept in memory
DISK_SHARE = 0.5  # of the free disk that a cache may take


class FeatureSource:
    """Features and labels of a data set by index.

    ``batch`` is what a training loop fetches, in background threads if it likes;
    ``feat`` turns its "input" into features on the device. Make one with :meth:`open`.

    Where several processes train together, each reads and passes through the backbone
    only its share of a batch of images; ``feat`` returns the features of the whole
    batch to all of them. Features that are kept every process reads by itself.

    Args:
        backbone: frozen network.
        dataset: images of one size.
        where: "memory", "disk" or "images".
        feat: features, (N, C, h, w), for "memory".
        cache: for "disk".

    Attributes:
        shape: (N, C, h, w).
    """

    def __init__(
        self,
        backbone: Frozen,
        dataset: SegmentationDataset,
        where: Place,
        feat: Tensor | None = None,
        cache: FeatureCache | None = None,
    ):
        self.backbone, self.dataset, self.where = backbone, dataset, where
        self.shape = feature_shape(backbone, dataset)
        self._feat, self._cache = feat, cache
        self._labels: Tensor | None = None

    @classmethod
    def open(
        cls,
        backbone: Frozen,
        dataset: SegmentationDataset,
        *,
        cache: Literal["auto", "memory", "disk", "images"] = "auto",
        batch_size: int = 32,
        progress: bool = False,
    ) -> "FeatureSource":
        """Choose the place, say its size, and compute the features if they are kept.

        Args:
            backbone: see :func:`uss_utils.backbones.load`.
            dataset: all images of one size.
            cache: "memory", "disk" (built once, reused by later runs), "images"
                (nothing kept), or "auto": memory up to 1 GB, else the disk if the
                cache takes at most half of its free space, else images.
            batch_size: images per forward pass while computing.
            progress: show a bar.

        Raises:
            ValueError: no image, images of several sizes or unfit for the patch, or
                features that are not finite.
            OSError: the disk is too full for the chosen cache.
        """
        shape = feature_shape(backbone, dataset)
        # One decision for all: free disks differ from machine to machine.
        where = ranks.from_main(choose(shape) if cache == "auto" else cache)
        size = 4 if where == "memory" else 2
        n_bytes = size * torch.Size(shape).numel()
        text = " x ".join(map(str, shape))
        place = {"memory": "in memory", "disk": "on disk", "images": "not kept"}[where]
        print(f"features: {text}, {n_bytes / 1e6:.0f} MB, {place}")
        options = {"batch_size": batch_size, "progress": progress}
        if where == "memory":
            feat = extract(backbone, dataset, **options, shared=True)
            return cls(backbone, dataset, where, feat=feat)
        if where == "disk":
            kept = FeatureCache.build(backbone, dataset, **options)
            return cls(backbone, dataset, where, cache=kept)
        return cls(backbone, dataset, where)

    def __len__(self) -> int:
        return self.shape[0]

    def batch(self, indices: Iterable[int]) -> dict[str, Tensor]:
        """What a step needs of some items.

        Args:
            indices: positions in the data set.

        Returns:
            "input": features (B, C, h, w), or with "images" the normalised images (of
            this process's share); and "label": int64 (B, H, W).
        """
        indices = torch.as_tensor(list(map(int, indices)))
        if self.where == "images" and ranks.world_size() == 1:
            images, label = self.dataset.batch(indices)
            return {"input": images, "label": label}
        return {"input": self.inputs(indices), "label": self.labels(indices)}

    def inputs(self, indices: Iterable[int]) -> Tensor:
        """The "input" of :meth:`batch` alone."""
        indices = torch.as_tensor(list(map(int, indices)))
        return self.images(indices) if self.where == "images" else self._kept(indices)

    def _kept(self, indices: Tensor) -> Tensor:
        if self._feat is not None:
            return self._feat[indices]
        return self._cache.batch(indices)

    @torch.no_grad()
    def feat(self, inputs: Tensor) -> Tensor:
        """Features of an "input", float32 (B, C, h, w), on the input's device."""
        if self.where != "images":
            return inputs
        own = self.backbone.to(inputs.device).features(inputs).float()
        return ranks.gather_rows(own)

    def labels(self, indices: Iterable[int]) -> Tensor:
        """Labels of some items, int64 (B, H, W).

        Beside features in memory all labels are kept in memory too.
        """
        if self.where != "memory":
            return self.dataset.labels(indices)
        return self.all_labels()[torch.as_tensor(list(map(int, indices)))].long()

    def all_labels(self) -> Tensor:
        """Labels of the whole set, int16 (N, H, W); read once."""
        if self._labels is None:
            self._labels = labels(self.dataset)
        return self._labels

    def images(self, indices: Iterable[int]) -> Tensor:
        """Normalised images of this process's share of some items, (b, 3, H, W)."""
        return own_images(self.dataset, list(map(int, indices)))

    def batches(self, batch_size: int = 32) -> Iterator[tuple[range, Tensor]]:
        """All features in order: (rows, float32 (B, C, h, w) on the CPU)."""
        if self.where == "images":
            yield from feature_batches(
                self.backbone, self.dataset, batch_size=batch_size
            )
        else:
            yield from in_order(self._kept_rows, len(self), batch_size)

    def _kept_rows(self, rows: range) -> Tensor:
        return self._kept(torch.arange(rows.start, rows.stop))


def choose(shape: tuple[int, int, int, int]) -> Place:
    """Where features of this shape are kept when nobody says: see :meth:`open`."""
    n = torch.Size(shape).numel()
    if 4 * n <= IN_MEMORY:
        return "memory"
    place = cache_dir()
    while not place.exists():
        place = place.parent
    return "disk" if 2 * n <= DISK_SHARE * shutil.disk_usage(place).free else "images"


def feature_shape(
    backbone: Frozen, dataset: SegmentationDataset
) -> tuple[int, int, int, int]:
    """Shape (N, C, h, w) of a set's features, from the size of its first image.

    Raises:
        ValueError: no image, or a side that is no multiple of the patch.
    """
    if len(dataset) == 0:
        raise ValueError(f"{dataset.name} {dataset.split} holds no image")
    images, _ = dataset.batch([0])
    return len(dataset), backbone.dim, *backbone.grid(images)
