"""Batches for scoring at the size of the stored labels, which the network need not see.

Where a data set squeezes its images, predictions are brought back by nearest neighbour
and compared with the labels as they are stored (MaskContrast, evaluation).
"""

from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from uss_utils.batches import in_order
from uss_utils.datasets.base import SegmentationDataset
from uss_utils.datasets.transforms import floor_indices, to_uint8


class ScoredBatch(NamedTuple):
    """Images as the network sees them, labels as they are scored.

    Attributes:
        rows: places in the data set.
        image: normalised, shape (B, 3, H, W).
        label: at the network's size, int64 (B, H, W), ignore = -1.
        own: at their own size, one int64 (H', W') per image; those of ``label`` where
            the geometry of the data set cuts instead of squeezing.
        pictures: RGB bytes at the size of ``own``, uint8 (H', W', 3) each; empty unless
            asked for.
    """

    rows: range
    image: Tensor
    label: Tensor
    own: list[Tensor]
    pictures: list[Tensor]


def scored_batches(
    dataset: SegmentationDataset,
    batch_size: int = 16,
    *,
    pictures: bool = False,
    progress: bool = False,
) -> Iterator[ScoredBatch]:
    """A data set, batch by batch; the next one is read while one is in use.

    Args:
        dataset: labelled images that its transform brings to one size.
        batch_size: images at a time.
        pictures: read the pictures at the labels' own size too.
        progress: show a bar.

    Raises:
        ValueError: no images, no labels, or images of different sizes.
    """
    place = f"{dataset.name} {dataset.split}"
    if not len(dataset) or not dataset.has_labels:
        missing = "labels" if len(dataset) else "images"
        raise ValueError(f"{place} has no {missing}, so there is nothing to score")
    squeezed = dataset.transform.kind == "resize"

    def read(rows: range) -> ScoredBatch:
        image, label = dataset.batch(rows)
        if not squeezed:
            shown = list(to_uint8(image)) if pictures else []
            return ScoredBatch(rows, image, label, list(label), shown)
        own = [torch.as_tensor(dataset.read_label(i)).long() for i in rows]
        shown = [torch.tensor(dataset.read(i)[0]) for i in rows] if pictures else []
        return ScoredBatch(rows, image, label, own, shown)

    bar = tqdm(total=len(dataset), desc=place, unit="img", disable=not progress)
    with bar, closing(in_order(read, len(dataset), batch_size)) as batches:
        for rows, batch in batches:
            yield batch
            bar.update(len(rows))


def resized(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Maps of ids at another size: the pixel at floor(i in / out).

    Args:
        maps: shape (B, H, W).
        size: (H', W').

    Returns:
        Same type, shape (B, H', W').
    """
    if tuple(maps.shape[-2:]) == tuple(size):
        return maps
    rows, columns = (
        torch.tensor(floor_indices(source, target), device=maps.device)
        for source, target in zip(maps.shape[-2:], size, strict=True)
    )
    return maps[:, rows[:, None], columns]


@contextmanager
def eval_mode(function: Callable) -> Iterator[None]:
    """Eval mode for a module, or for the module a method belongs to; then as before."""
    owner = getattr(function, "__self__", function)
    parts = list(owner.modules()) if isinstance(owner, nn.Module) else []
    before = [part.training for part in parts]
    try:
        for part in parts:
            part.training = False
        yield
    finally:
        for part, mode in zip(parts, before, strict=True):
            part.training = mode
