"""Dense features of many images: one loop for memory and for the disk cache."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing

import torch
from torch import Tensor
from tqdm.auto import tqdm

from uss_utils import ranks
from uss_utils.batches import in_order
from uss_utils.datasets.base import SegmentationDataset
from uss_utils.environment import pick_device
from uss_utils.frozen import Frozen


def extract(
    backbone: Frozen,
    images: Tensor | SegmentationDataset,
    *,
    batch_size: int = 32,
    device: str | torch.device | None = None,
    autocast: bool = True,
    progress: bool = False,
    shared: bool = False,
) -> Tensor:
    """Features of all images at once, in memory.

    Args:
        backbone: see :func:`uss_utils.backbones.load`.
        images: normalised floats of shape (N, 3, H, W), or a data set.
        batch_size: images per forward pass.
        device: where to compute (the backbone is moved there); None: where it is.
        autocast: half precision on a CUDA device; no effect elsewhere.
        progress: show a bar.
        shared: where several processes work together, each computes its share of every
            batch and all get the whole; all have to call it.

    Returns:
        feat on the CPU, float32 (N, C, h, w).

    Raises:
        ValueError: no image, a batch size below 1, or features that are not finite.
    """
    n = len(images)
    feat = None
    for rows, part in feature_batches(
        backbone,
        images,
        batch_size=batch_size,
        device=device,
        autocast=autocast,
        progress=progress,
        shared=shared,
    ):
        if feat is None:
            feat = torch.empty(n, *part.shape[1:])
        feat[rows.start : rows.stop] = part
    return feat


def feature_batches(
    backbone: Frozen,
    images: Tensor | SegmentationDataset,
    *,
    start: int = 0,
    batch_size: int = 32,
    device: str | torch.device | None = None,
    autocast: bool = True,
    progress: bool = False,
    shared: bool = False,
) -> Iterator[tuple[range, Tensor]]:
    """Features batch by batch: (rows, float32 (B, C, h, w) on the CPU).

    The next batch is read while the current one is computed. ``start`` skips the first
    images; the other arguments are those of :func:`extract`.
    """
    n = len(images)
    if n == 0:
        raise ValueError("there is no image to extract features from")
    device = device_of(backbone) if device is None else pick_device(str(device))
    backbone.to(device)
    half = autocast and device.type == "cuda"
    batches = in_order(_reader(images, shared), n, batch_size, start)
    bar = tqdm(
        total=n, initial=start, desc="features", unit="img", disable=not progress
    )
    with bar, closing(batches):
        for rows, batch in batches:
            with torch.autocast(device.type, enabled=half):
                feat = backbone.features(batch.to(device)).float()
            if shared:
                feat = ranks.gather_rows(feat)
            feat = feat.cpu()
            _check_finite(feat, rows, backbone.name)
            yield rows, feat
            bar.update(len(rows))


def device_of(backbone: Frozen) -> torch.device:
    """Where a backbone's weights are; the CPU if it has none."""
    return next((p.device for p in backbone.parameters()), torch.device("cpu"))


def _reader(
    images: Tensor | SegmentationDataset, shared: bool
) -> Callable[[range], Tensor]:
    def read(rows: range) -> Tensor:
        if isinstance(images, Tensor):
            own = rows[ranks.share(len(rows))] if shared else rows
            return images[own.start : own.stop]
        return own_images(images, rows) if shared else images.batch(rows)[0]

    return read


def own_images(dataset: SegmentationDataset, indices: Sequence[int]) -> Tensor:
    """Normalised images of this process's share of some items, (b, 3, H, W)."""
    own = indices[ranks.share(len(indices))]
    if len(own):
        return dataset.batch(own)[0]
    # Fewer images than processes: none, but of the right size.
    return dataset.batch(indices[:1])[0][:0]


def _check_finite(feat: Tensor, rows: range, name: str) -> None:
    finite = torch.isfinite(feat).flatten(1).all(1)
    if not bool(finite.all()):
        first = rows[int((~finite).nonzero()[0])]
        raise ValueError(
            f"{name} gives NaN or infinite features for image {first}; look at that "
            "image and at the weights, or turn autocast off"
        )
