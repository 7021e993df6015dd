"""Which of its neighbours a patch attends to, and mixing them into its code.

HP's local hidden positives (section 3.3): a code is averaged over the 3 x 3
neighbourhood with attention weights, so that a gradient on it reaches the neighbours in
proportion.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from uss_utils.frozen import Frozen

WINDOW = 9  # patches of the 3 x 3 neighbourhood, row by row, the patch itself fifth
SIGMA = 28.0  # the released constant: the root of the 784 patches at 224 pixels
QUANTILES = (0.1, 0.9)


def neighbour_weights(
    logits: Tensor,
    grid: tuple[int, int],
    sigma: float = SIGMA,
    quantiles: tuple[float, float] = QUANTILES,
) -> Tensor:
    """Attention of every patch to its 3 x 3 neighbourhood.

    Logits are averaged over heads, clamped to two of their quantiles per row, turned
    into a softmax over all patches times ``sigma``, and cut below the row's mean. Only
    the nine columns that are kept are ever turned into weights.

    Args:
        logits: attention logits before the softmax, prefix tokens first, shape
            (B, heads, p + n, p + n).
        grid: (h, w) with h w = n.
        sigma: factor of the softmax.
        quantiles: lower and upper clamp, in [0, 1].

    Returns:
        Shape (B, n, 9), neighbours row by row; zero outside the grid and below the
        mean.

    Raises:
        ValueError: fewer tokens than the grid has patches.
    """
    h, w = grid
    n = h * w
    if logits.ndim != 4 or logits.shape[-1] < n or logits.shape[-2] < n:
        raise ValueError(
            f"attention of shape {tuple(logits.shape)} does not hold the {n} patches "
            f"of a {h} x {w} grid; expected (B, heads, prefix + {n}, prefix + {n})"
        )
    rows = logits[..., -n:, -n:].float().mean(1)  # Shape: (B, n, n)
    low, high = _quantiles(rows, quantiles)
    rows = rows.clamp(low, high)
    log_sum = rows.logsumexp(-1, keepdim=True)
    index, inside = _window(h, w, logits.device)
    near = rows.gather(2, index.expand(len(rows), -1, -1))
    weights = (near - log_sum).exp() * sigma
    # The mean of a row of sigma * softmax is sigma / n.
    return weights * (inside & (weights >= sigma / n * (1 - 1e-6)))


def _quantiles(rows: Tensor, quantiles: tuple[float, float]) -> list[Tensor]:
    """Quantiles of every row, interpolated linearly, each (B, n, 1)."""
    ordered = rows.sort(-1).values
    found = []
    for quantile in quantiles:
        place = quantile * (rows.shape[-1] - 1)
        below = int(place)
        above = min(below + 1, rows.shape[-1] - 1)
        found.append(
            ordered[..., below].lerp(ordered[..., above], place - below)[..., None]
        )
    return found


def _window(h: int, w: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Index of the nine neighbours of every patch (n, 9), and which are in the grid."""
    y, x = torch.meshgrid(
        torch.arange(h, device=device), torch.arange(w, device=device), indexing="ij"
    )
    step = torch.tensor([-1, 0, 1], device=device)
    down, across = torch.meshgrid(step, step, indexing="ij")
    y = y.reshape(-1, 1) + down.reshape(1, -1)
    x = x.reshape(-1, 1) + across.reshape(1, -1)
    inside = (y >= 0) & (y < h) & (x >= 0) & (x < w)
    return y.clamp(0, h - 1) * w + x.clamp(0, w - 1), inside


def window_sizes(h: int, w: int, device: torch.device | str = "cpu") -> Tensor:
    """How many cells of each patch's window lie in the grid: 4, 6 or 9; (h, w)."""
    return _window(h, w, torch.device(device))[1].sum(1).reshape(h, w)


def mix_local(code: Tensor, weights: Tensor) -> Tensor:
    """Every code replaced by the weighted sum of its neighbourhood.

    Divided by the number of cells in the window, not by the sum of the weights: as
    these are small, so is the result.

    Args:
        code: shape (B, D, h, w).
        weights: of the neighbours, shape (B, h w, 9); no gradient flows into them.

    Returns:
        Shape (B, D, h, w).

    Raises:
        ValueError: weights of another grid.
    """
    b, _, h, w = code.shape
    if weights.shape != (b, h * w, WINDOW):
        raise ValueError(
            f"codes {tuple(code.shape)} need weights of shape {(b, h * w, WINDOW)}, "
            f"got {tuple(weights.shape)}"
        )
    sizes = window_sizes(h, w, code.device)
    maps = weights.detach().transpose(1, 2).reshape(b, WINDOW, h, w) / sizes
    padded = F.pad(code, (1, 1, 1, 1))
    mixed = torch.zeros_like(code)
    for k in range(WINDOW):
        down, across = divmod(k, 3)
        near = padded[:, :, down : down + h, across : across + w]
        mixed = torch.addcmul(mixed, near, maps[:, k : k + 1])
    return mixed


class WithNeighbourWeights(Frozen):
    """A backbone whose features carry the neighbour weights as nine more channels.

    So one forward pass gives both, and both are kept in the same cache.

    Args:
        inner: a backbone with attention.
        sigma: see :func:`neighbour_weights`.

    Raises:
        ValueError: a backbone without attention.
    """

    def __init__(self, inner: Frozen, sigma: float = SIGMA):
        super().__init__()
        if not inner.heads:
            raise ValueError(
                f"{inner.name} has no attention to weigh neighbours by; choose a "
                "vision transformer"
            )
        self.inner, self.sigma = inner, sigma
        self.name, self.dim = inner.name, inner.dim + WINDOW
        self.patch, self.depth, self.heads = inner.patch, inner.depth, inner.heads
        self.prefix, self.position = inner.prefix, inner.position
        self.untrained = inner.untrained
        self.eval()

    def features(self, images: Tensor) -> Tensor:
        """Features and neighbour weights, shape (B, C + 9, h, w)."""
        out = self.inner(images, attention=True)
        h, w = out.feat.shape[-2:]
        weights = neighbour_weights(out.attention, (h, w), self.sigma)
        maps = weights.transpose(1, 2).reshape(len(weights), WINDOW, h, w)
        return torch.cat([out.feat, maps], 1)

    def _kind(self) -> str:
        return f"{type(self).__name__}(sigma={self.sigma}, {self.inner.fingerprint})"


def split_weights(feat: Tensor) -> tuple[Tensor, Tensor]:
    """What :class:`WithNeighbourWeights` put together: feat, and weights (B, n, 9)."""
    maps = feat[:, -WINDOW:]
    return feat[:, :-WINDOW], maps.flatten(2).transpose(1, 2)


def own_class_shares(weights: Tensor, classes: Tensor) -> tuple[float, float]:
    """How well attention keeps to what a patch shows, by labels.

    Args:
        weights: of the neighbours, shape (B, h w, 9).
        classes: of the patches, ignore = -1, int64 (B, h, w).

    Returns:
        Of all labelled neighbours of labelled patches the share that has the patch's
        own class, and the share of their weight that these get. The patch itself does
        not count.
    """
    around = F.unfold(F.pad(classes, (1, 1, 1, 1), value=-1)[:, None].float(), 3)
    around, own = around.mT, classes.flatten(1)[..., None]
    counts = (around >= 0) & (own >= 0)
    counts[..., WINDOW // 2] = False
    same = counts & (around == own)
    got = (weights * same).sum() / (weights * counts).sum()
    return float(same.sum() / counts.sum()), float(got)
