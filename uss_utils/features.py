"""Dense features of many images, and two ways of looking at a feature map."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm.auto import tqdm

from uss_utils.datasets.base import SegmentationDataset
from uss_utils.environment import pick_device
from uss_utils.frozen import Frozen

Read = Callable[[range], Tensor]


def extract(
    backbone: Frozen,
    images: Tensor | SegmentationDataset,
    *,
    batch_size: int = 32,
    device: str | torch.device | None = None,
    autocast: bool = True,
    progress: bool = False,
) -> Tensor:
    """Features of all images at once, in memory.

    Args:
        backbone: see :func:`uss_utils.backbones.load`.
        images: normalised floats of shape (N, 3, H, W), or a data set.
        batch_size: images per forward pass.
        device: where to compute (the backbone is moved there); None: where it is.
        autocast: half precision on a CUDA device; no effect elsewhere.
        progress: show a bar.

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
) -> Iterator[tuple[range, Tensor]]:
    """Features batch by batch: (rows, float32 (B, C, h, w) on the CPU).

    The next batch is read while the current one is computed. ``start`` skips the first
    images; the other arguments are those of :func:`extract`.
    """
    n = len(images)
    if n == 0:
        raise ValueError("there is no image to extract features from")
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    device = device_of(backbone) if device is None else pick_device(str(device))
    backbone.to(device)
    half = autocast and device.type == "cuda"
    chunks = [range(i, min(i + batch_size, n)) for i in range(start, n, batch_size)]
    bar = tqdm(
        total=n, initial=start, desc="features", unit="img", disable=not progress
    )
    with bar:
        for rows, batch in _prefetched(_reader(images), chunks):
            with torch.autocast(device.type, enabled=half):
                feat = backbone.features(batch.to(device)).float().cpu()
            _check_finite(feat, rows, backbone.name)
            yield rows, feat
            bar.update(len(rows))


def device_of(backbone: Frozen) -> torch.device:
    """Where a backbone's weights are; the CPU if it has none."""
    return next((p.device for p in backbone.parameters()), torch.device("cpu"))


def _reader(images: Tensor | SegmentationDataset) -> Read:
    if isinstance(images, Tensor):
        return lambda rows: images[rows.start : rows.stop]
    return lambda rows: images.batch(rows)[0]


def _prefetched(read: Read, chunks: list[range]) -> Iterator[tuple[range, Tensor]]:
    """Batches in order, each read by one thread while the last one is in use."""
    with ThreadPoolExecutor(1) as pool:
        upcoming = pool.submit(read, chunks[0]) if chunks else None
        for index, rows in enumerate(chunks):
            batch = upcoming.result()
            if index + 1 < len(chunks):
                upcoming = pool.submit(read, chunks[index + 1])
            yield rows, batch


def _check_finite(feat: Tensor, rows: range, name: str) -> None:
    finite = torch.isfinite(feat).flatten(1).all(1)
    if not bool(finite.all()):
        first = rows[int((~finite).nonzero()[0])]
        raise ValueError(
            f"{name} gives NaN or infinite features for image {first}; look at that "
            "image and at the weights, or turn autocast off"
        )


def sample_at(map: Tensor, coords: Tensor) -> Tensor:
    """Read a map at given points: bilinear, border values outside.

    STEGO's sampling, which exchanges the two axes of the point grid on the way.

    Args:
        map: shape (B, C, H, W).
        coords: points (x, y) in [-1, 1], where -1 and 1 are the centres of the outermost
            cells, shape (B, P, Q, 2).

    Returns:
        Values, shape (B, C, Q, P): ``[b, :, q, p]`` belongs to ``coords[b, p, q]``.
    """
    return F.grid_sample(
        map,
        coords.transpose(1, 2),
        mode="bilinear",
        padding_mode="border",
        align_corners=True,
    )


def correspondence_heatmap(
    feat: Tensor,
    query: Tensor,
    feat_other: Tensor | None = None,
    size: tuple[int, int] | None = None,
) -> Tensor:
    """How similar each place of an image is to a few chosen points (STEGO, figure 2).

    Cosine of the query's feature with every patch, minus its mean over the patches,
    clamped at 0, upsampled with aligned corners.

    Args:
        feat: features of the image that holds the points, shape (1, C, h, w).
        query: points (x, y) in [-1, 1] as in :func:`sample_at`, shape (1, P, 2).
        feat_other: features of the image to search, shape (1, C, h2, w2); None: the
            same image.
        size: height and width of the result; None: the grid of the searched image.

    Returns:
        Heat maps >= 0, shape (P, H, W).

    Raises:
        ValueError: more than one image, or two maps of different width.
    """
    other = feat if feat_other is None else feat_other
    if len(feat) != 1 or len(other) != 1 or feat.shape[1] != other.shape[1]:
        raise ValueError(
            "a heat map needs two maps of shape (1, C, h, w) with the same C, got "
            f"{tuple(feat.shape)} and {tuple(other.shape)}"
        )
    points = F.normalize(sample_at(feat, query[:, :, None])[0, :, 0], dim=0)
    heat = torch.einsum("cp,chw->phw", points, F.normalize(other, dim=1)[0])
    heat = (heat - heat.mean((1, 2), keepdim=True)).clamp(min=0)
    if size is None:
        return heat
    return F.interpolate(heat[None], size, mode="bilinear", align_corners=True)[0]
