"""Spherical k-means of the pixels of a view, started from a grid (HSG, section 3.1).

Ke, Hwang, Guo, Wang, Yu, Unsupervised Hierarchical Semantic Segmentation with Multiview
Cosegmentation and Clustering Transformers, CVPR 2022. The place of a pixel counts as
two more channels here, and nowhere else.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from uss_utils.rows import as_float

EPS = 1e-12  # vectors shorter than this are not scaled to unit length
BLOCK = 1 << 19  # similarities that k-means holds at a time
GPU_BLOCK = 1 << 26


def coordinates(height: int, width: int) -> Tensor:
    """Place (y, x) of every pixel of a map, from -1/2 to 1/2, shape (H, W, 2)."""
    rows, columns = (torch.linspace(0, 1, n) - 0.5 for n in (height, width))
    return torch.stack(torch.meshgrid(rows, columns, indexing="ij"), 2)


def pixel_features(emb: Tensor) -> tuple[Tensor, Tensor]:
    """Directions of the pixels, for every loss; and with their place, for k-means.

    Args:
        emb: embeddings, not normalised, shape (N, C, H, W).

    Returns:
        Unit rows e, shape (N, H, W, C), float32 (float64 stays); and the unit rows of
        [e, y, x], shape (N, H, W, C + 2), without gradient. The place is that in the
        map, between -1/2 and 1/2.
    """
    with torch.autocast(emb.device.type, enabled=False):
        rows = as_float(emb).movedim(1, 3).contiguous()
        e = F.normalize(rows, dim=3, eps=EPS)
        with torch.no_grad():
            place = coordinates(*emb.shape[2:]).to(e).expand(len(e), -1, -1, -1)
            joint = torch.cat([e, place], 3)
            norm = torch.linalg.vector_norm(joint, dim=3, keepdim=True)
            joint /= norm.clamp_min_(EPS)
    return e, joint


def grid_labels(height: int, width: int, grid: tuple[int, int]) -> Tensor:
    """Start labels of k-means: cells of a grid, those at the border half as wide.

    Args:
        height: H.
        width: W.
        grid: cells (ky, kx) along both axes.

    Returns:
        Numbers row + ky column of the cells, int64, shape (H, W); where cells outnumber
        the pixels, some numbers are not used.

    Raises:
        ValueError: a number of cells below 1.
    """
    if min(grid) < 1:
        raise ValueError(f"a grid needs at least 1 x 1 cells, got {tuple(grid)}")
    row, column = (
        torch.linspace(0, cells - 1, pixels).round().long()  # a half becomes even
        for cells, pixels in zip(grid, (height, width), strict=True)
    )
    return row[:, None] + grid[0] * column


@torch.no_grad()
def spherical_kmeans(
    f: Tensor,
    labels: Tensor,
    k: int,
    iterations: int,
    history: bool = False,
    valid: Tensor | None = None,
) -> Tensor:
    """K-means on the sphere from given labels, of one view or of several at once.

    Each iteration takes the direction of every cluster's sum and moves each row to the
    cluster most like it, the smallest of equals. A cluster without rows is the zero
    vector: its similarity is 0, so that rows unlike all others may fill it again. The
    sum over rows of the largest similarity never falls.

    Args:
        f: unit rows, shape (P, D), or of N views (N, P, D).
        labels: start, 0..k-1, int64 (P,) or (N, P); one start (P,) serves all views.
        k: clusters per view.
        iterations: T; 0 returns the start.
        history: give the labels after every iteration.
        valid: rows that take part, bool, (P,) or (N, P); None: all.

    Returns:
        int64, the shape of ``f`` without its last axis, -1 where not valid; with
        ``history`` behind one more axis of length T.

    Raises:
        ValueError: shapes that do not fit, k below 1, or labels that are not 0..k-1.
    """
    shape = f.shape[:-1]
    member = torch.ones(shape, dtype=torch.bool, device=f.device)
    member = member if valid is None else member & valid
    _check_start(f, labels, member, k, iterations)
    # Rows that take no part have a cluster of their own, which nobody looks at.
    found = torch.where(member, labels, k).view(-1, shape[-1])
    past = []
    with torch.autocast(f.device.type, enabled=False):
        rows = as_float(f).view(-1, *f.shape[-2:])
        sums = _moved(rows, found, k, None)
        for _ in range(iterations):
            centres = F.normalize(sums[:, :k], dim=2, eps=EPS)
            found = found.clone() if history else found
            sums = _moved(rows, found, k, centres)
            past.append(found)
    member = member.view(found.shape)
    if history:
        return torch.stack(past).where(member, -1).view(-1, *shape)
    return found.where(member, -1).view(shape)


def _moved(rows: Tensor, labels: Tensor, k: int, centres: Tensor | None) -> Tensor:
    """Sums of the clusters after ``labels`` (N, P) are changed to the best centres.

    Both in one pass over the rows, some at a time, so that similarities are never held
    as a whole. Label k stays as it is.
    """
    sums = rows.new_zeros(len(rows), k + 1, rows.shape[2])
    block = BLOCK if rows.device.type == "cpu" else GPU_BLOCK
    step = max(1, block // (max(1, len(rows)) * (k + 1)))
    for part, own in zip(rows.split(step, 1), labels.split(step, 1), strict=True):
        if centres is not None:
            best = (part @ centres.transpose(1, 2)).max(2).indices
            own.copy_(torch.where(own == k, k, best))
        _add(sums, part, own)
    return sums


def _add(sums: Tensor, rows: Tensor, labels: Tensor) -> None:
    """Add rows (N, p, D) to the sums (N, k + 1, D) of their labels."""
    n, k, _ = sums.shape
    if rows.device.type == "cpu":
        number = labels + k * torch.arange(n)[:, None]
        sums.flatten(0, 1).index_add_(0, number.flatten(), rows.flatten(0, 1))
    else:  # a product adds in the same order every time, a scatter on a GPU does not
        onehot = rows.new_zeros(*labels.shape, k).scatter_(2, labels[..., None], 1)
        sums.baddbmm_(onehot.transpose(1, 2), rows)


def _check_start(
    f: Tensor, labels: Tensor, member: Tensor, k: int, iterations: int
) -> None:
    if f.dim() not in (2, 3) or labels.shape != member.shape[-labels.dim() :]:
        raise ValueError(
            "k-means expects rows (P, D) or (N, P, D) and a label for each, got "
            f"{tuple(f.shape)} and {tuple(labels.shape)}"
        )
    if k < 1 or iterations < 0:
        raise ValueError(
            f"k-means expects k >= 1 and iterations >= 0, got {k} and {iterations}"
        )
    used = labels.expand(member.shape)[member]
    if used.numel() and not 0 <= int(used.min()) <= int(used.max()) < k:
        raise ValueError(
            f"start labels have to be 0..{k - 1} for k={k}, got "
            f"{int(used.min())}..{int(used.max())}"
        )
