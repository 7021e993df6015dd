"""Principal component analysis of feature vectors, optionally whitening."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from uss_utils.rows import as_float, check_finite, slices

NOISE = 1e-10  # variance, relative to the largest, that is rounding error


@dataclass(frozen=True, eq=False)
class PCA:
    """Principal components, in order of falling variance.

    Attributes:
        mean: shape (D,).
        components: orthonormal rows, shape (dim, D); the entry of largest magnitude of
            each is positive, so that the same rows always give the same signs.
        scale: what coordinates are divided by, shape (dim,): their standard deviation
            when whitening, else 1.
        explained: share of the total variance of each component, shape (dim,).
    """

    mean: Tensor
    components: Tensor
    scale: Tensor
    explained: Tensor

    @classmethod
    def fit(cls, x: Tensor, dim: int, whiten: bool = False) -> "PCA":
        """Fit to rows, by eigenvectors of the float64 covariance.

        Args:
            x: floats, shape (N, D).
            dim: number of components.
            whiten: give every coordinate unit variance (N-1 normalisation).

        Raises:
            ValueError: not rows, NaN, or more components asked for than the rows span.
        """
        return cls.fit_batches([x], dim, whiten)

    @classmethod
    def fit_batches(
        cls, batches: Iterable[Tensor], dim: int | None = None, whiten: bool = False
    ) -> "PCA":
        """:meth:`fit` to rows that never are in memory together.

        Args:
            batches: rows, floats, shape (n, D) each.
            dim: number of components; None: as many as the rows span.
            whiten: see :meth:`fit`.

        Raises:
            ValueError: see :meth:`fit`; or the batches differ in their channels.
        """
        moments = _Moments()
        for x in batches:
            moments.add(x)
        mean, covariance = moments.result()
        values, vectors = torch.linalg.eigh(covariance)
        values, components = values.flip(0).clamp(min=0), vectors.T.flip(0)
        rank = int((values > NOISE * values[0]).sum())
        dim = rank if dim is None else dim
        if not 1 <= dim <= rank:
            raise ValueError(
                f"PCA was asked for {dim} components, but {moments.count} rows of "
                f"{len(mean)} channels span {rank}; choose 1..{rank}"
            )
        components = components[:dim]
        largest = components.abs().argmax(1, keepdim=True)
        components = components * components.gather(1, largest).sign()
        scale = values[:dim].sqrt() if whiten else torch.ones_like(values[:dim])
        explained = values[:dim] / values.sum()
        parts = (mean, components, scale, explained)
        return cls(*(part.to(moments.like) for part in parts))

    def transform(self, x: Tensor) -> Tensor:
        """Coordinates of rows, shape (..., D) to (..., dim)."""
        return (as_float(x) - self.mean) @ self.components.T / self.scale


class _Moments:
    """Mean and covariance of rows in float64, slice by slice, in one pass.

    Slices are centred by their own mean and merged (Chan, Golub and LeVeque, 1983): a
    plain sum of squares would cancel where the mean is large.

    Attributes:
        count: rows so far.
        like: an empty tensor of the rows' device and precision.
    """

    def __init__(self):
        self.count = 0

    def add(self, x: Tensor) -> None:
        """Add rows.

        Raises:
            ValueError: not rows, rows of other channels, or NaN.
        """
        if x.dim() != 2 or (self.count and x.shape[1] != len(self.mean)):
            channels = len(self.mean) if self.count else "D"
            raise ValueError(
                f"PCA expects rows, shape (N, {channels}), got {tuple(x.shape)}"
            )
        x = as_float(x)
        check_finite(x)
        for part in slices(x) if len(x) else ():
            self._merge(part)

    def _merge(self, part: Tensor) -> None:
        on = torch.device("cpu") if part.device.type == "mps" else part.device
        wide = part.to(on, torch.float64)
        mean = wide.mean(0)
        centred = wide - mean
        if not self.count:
            self.mean = torch.zeros_like(mean)
            self.scatter = mean.new_zeros(len(mean), len(mean))
            self.like = part[:0]
        shift, before = mean - self.mean, self.count
        self.count += len(part)
        share = len(part) / self.count
        self.scatter.addmm_(centred.T, centred).addr_(
            shift, shift, alpha=before * share
        )
        self.mean += shift * share

    def result(self) -> tuple[Tensor, Tensor]:
        """Mean (D,) and covariance (D, D), N-1 normalisation.

        Raises:
            ValueError: fewer than two rows.
        """
        if self.count < 2:
            raise ValueError(
                f"PCA expects at least two rows, shape (N, D), got {self.count}"
            )
        return self.mean, self.scatter / (self.count - 1)
