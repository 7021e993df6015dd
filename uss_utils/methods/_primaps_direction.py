"""The direction in which the free patches of an image vary most, and its sign.

Used round by round while patches leave, so the sums behind it are kept up to date.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from uss_utils.environment import generator
from uss_utils.rows import as_float

BLOCK = 4  # directions that are iterated together
ITERATIONS = 60
FLAT = 1e-9  # share of the energy below which features count as constant
FRESH = 1e-2  # share of the spread below which moments are summed again


def principal_direction(features: Tensor, free: Tensor) -> Tensor:
    """First principal direction of the free patches (3.1, 3.2), with a fixed sign.

    The sign of a principal direction is arbitrary. It is chosen such that the patch
    most along the direction, either way, lies on its positive side (3.3).

    Args:
        features: as the backbone gives them, shape (B, C, N).
        free: bool (B, N), at least one per image.

    Returns:
        Unit vectors, shape (B, C). Where the free patches do not differ, the direction
        of their mean.
    """
    features = as_float(features)
    moments = Moments(features, free)
    return oriented(moments.direction(), F.normalize(features, dim=1), free)


def oriented(direction: Tensor, unit: Tensor, free: Tensor) -> Tensor:
    """A direction turned such that the free patch most along it is on its side (3.3).

    Args:
        direction: of either sign, shape (B, C).
        unit: features of unit length, shape (B, C, N).
        free: bool (B, N).
    """
    share = along(direction, unit).masked_fill(~free, 0)
    place = share.abs().argmax(1, keepdim=True)
    return torch.where(share.gather(1, place) < 0, -direction, direction)


def along(direction: Tensor, unit: Tensor) -> Tensor:
    """Inner products of a direction with all patches, (B, C), (B, C, N) -> (B, N)."""
    return torch.bmm(direction[:, None], unit)[:, 0]


class Moments:
    """Number, sum and sum of products of the free patches, kept up to date.

    Only the patches that leave are subtracted, so all rounds together cost about one
    Gram matrix. Where little is left of an image's spread, rounding of what has gone
    would drown it, so that image's sums are made afresh.

    Args:
        features: shape (B, C, N).
        free: bool (B, N).
    """

    def __init__(self, features: Tensor, free: Tensor):
        self.features = features
        self.offset, self.x, self.n, self.sum, self.products = _sums(features, free)
        self.whole = self.trace()

    def trace(self) -> Tensor:
        """Sum of squared distances from the mean, (B,)."""
        squares = self.products.diagonal(dim1=1, dim2=2).sum(1)
        return squares - self.sum.square().sum(1) / self.n.clamp_min(1)

    def select(self, images: Tensor) -> None:
        """Keep only some images, bool (B,)."""
        for name, value in vars(self).items():
            setattr(self, name, value[images])

    def remove(self, gone: Tensor, free: Tensor) -> None:
        """Take patches off; ``free`` is what they leave, both bool (B, N)."""
        most = int(gone.sum(1).max())
        chosen = gone.to(torch.uint8).topk(most, dim=1)
        index = chosen.indices[:, None].expand(-1, self.x.shape[1], -1)
        part = self.x.gather(2, index) * chosen.values[:, None]
        self.n = self.n - gone.sum(1)
        self.sum = self.sum - part.sum(2)
        self.products = self.products - part @ part.mT
        stale = (self.trace() < FRESH * self.whole).nonzero()[:, 0]
        if len(stale):
            made = _sums(self.features[stale], free[stale])
            own = self.offset, self.x, self.n, self.sum, self.products
            for kept, new in zip(own, made, strict=True):
                kept[stale] = new
            self.whole[stale] = self.trace()[stale]

    def direction(self) -> Tensor:
        """Leading eigenvector of the covariance, unit, of either sign, (B, C)."""
        mean = self.sum / self.n.clamp_min(1)[:, None]
        spread = self.products - self.sum[:, :, None] * mean[:, None]
        trace, mean = self.trace(), mean + self.offset[:, :, 0]
        flat = trace <= FLAT * self.n * mean.square().sum(1)
        scale = torch.where(flat, 1.0, trace)[:, None, None]
        leading = _leading(spread / scale)
        return torch.where(flat[:, None], F.normalize(mean, dim=1), leading)


def _sums(features: Tensor, free: Tensor) -> tuple[Tensor, ...]:
    """Mean of the free patches, features less it, and their moments of order 0 to 2.

    Sums of what is already centred lose no digits.
    """
    n = free.sum(1).to(features)
    kept = free[:, None].to(features)
    offset = (features * kept).sum(2, keepdim=True) / n.clamp_min(1)[:, None, None]
    x = features - offset
    kept = x * kept
    return offset, x, n, kept.sum(2), kept @ kept.mT


def _leading(matrices: Tensor) -> Tensor:
    """Leading eigenvectors of symmetric matrices, (B, C, C) -> (B, C).

    Block power iteration from a fixed start, then the best combination of the block.
    """
    c = matrices.shape[-1]
    start = torch.randn(c, min(BLOCK, c), generator=generator(0)).to(matrices)
    block = start.expand(len(matrices), -1, -1)
    for _ in range(ITERATIONS):
        block = torch.linalg.qr(matrices @ block).Q
    small = block.mT @ matrices @ block
    best = torch.linalg.eigh((small + small.mT) / 2).eigenvectors[..., -1:]
    return F.normalize((block @ best)[..., 0], dim=1)
