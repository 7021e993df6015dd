"""Principal component analysis of feature vectors, optionally whitening."""

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
        if x.dim() != 2 or len(x) < 2:
            raise ValueError(
                f"PCA expects at least two rows, shape (N, D), got {tuple(x.shape)}"
            )
        x = as_float(x)
        check_finite(x)
        mean, covariance = _moments(x)
        values, vectors = torch.linalg.eigh(covariance)
        values, components = values.flip(0).clamp(min=0), vectors.T.flip(0)
        rank = int((values > NOISE * values[0]).sum())
        if not 1 <= dim <= rank:
            raise ValueError(
                f"PCA was asked for {dim} components, but {len(x)} rows of "
                f"{x.shape[1]} channels span {rank}; choose 1..{rank}"
            )
        components = components[:dim]
        largest = components.abs().argmax(1, keepdim=True)
        components = components * components.gather(1, largest).sign()
        scale = values[:dim].sqrt() if whiten else torch.ones_like(values[:dim])
        explained = values[:dim] / values.sum()
        return cls(*(t.to(x) for t in (mean, components, scale, explained)))

    def transform(self, x: Tensor) -> Tensor:
        """Coordinates of rows, shape (..., D) to (..., dim)."""
        return (as_float(x) - self.mean) @ self.components.T / self.scale


def _moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and covariance in float64, slice by slice."""
    on = torch.device("cpu") if x.device.type == "mps" else x.device
    wide = [part.to(on, torch.float64).sum(0) for part in slices(x)]
    mean = torch.stack(wide).sum(0) / len(x)
    covariance = torch.zeros(len(mean), len(mean), dtype=torch.float64, device=on)
    for part in slices(x):
        centred = part.to(on, torch.float64) - mean
        covariance += centred.T @ centred
    return mean, covariance / (len(x) - 1)
