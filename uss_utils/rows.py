"""Feature vectors as rows, shape (N, D): what k-means and PCA work on."""

from collections.abc import Iterator

import torch
from torch import Tensor

METRICS = ("cosine", "euclidean")  # how rows are compared
SLICE = 4096  # rows per product: such a slice stays in a CPU's cache
GPU_SLICE = 1 << 18


def as_float(x: Tensor) -> Tensor:
    """float64 stays, everything else becomes float32."""
    return x if x.dtype == torch.float64 else x.float()


def check_metric(metric: str, known: tuple[str, ...] = METRICS) -> None:
    """Refuse a metric that is not among the known ones.

    Raises:
        ValueError: naming them.
    """
    if metric not in known:
        raise ValueError(f"unknown metric {metric!r}; known: {', '.join(known)}")


def check_finite(x: Tensor) -> None:
    """Refuse rows that hold NaN or infinite values.

    Raises:
        ValueError: naming how many rows are affected.
    """
    # The sum is finite unless an entry is not (or it overflows): 20 times cheaper.
    if not x.sum().isfinite() and not x.isfinite().all():
        bad = int((~x.isfinite()).any(1).sum())
        raise ValueError(
            f"{bad} of {len(x)} rows hold NaN or infinite values; check the images "
            "and the model that made these features"
        )


def first_largest(x: Tensor, axis: int = 1) -> Tensor:
    """Place of the largest value along an axis of a matrix, the first of equals.

    Args:
        x: numbers, shape (N, D).
        axis: the axis that is searched.

    Returns:
        int64 (N,) for axis 1, (D,) for axis 0.
    """
    # numpy promises the first of equal maxima, torch does not.
    return torch.from_numpy(x.detach().cpu().numpy().argmax(axis)).to(x.device)


def slices(x: Tensor) -> Iterator[Tensor]:
    """Views of successive rows, as many at a time as suits the device."""
    return iter(x.split(SLICE if x.device.type == "cpu" else GPU_SLICE))
