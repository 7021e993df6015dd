"""The normalised cut of a graph of patches (Shi & Malik, PAMI 2000).

Patches are the nodes of a graph whose edges W are strong between similar ones. Cutting
it into two parts that hold together is relaxed to the second smallest eigenpair of
``(D - W) y = lambda D y`` with the degrees D = diag(W 1); TokenCut (Wang et al., CVPR
2022) builds such graphs from the features of a vision transformer.
"""

from typing import Literal, get_args

import numpy as np
import torch
import torch.nn.functional as F
from scipy.linalg import eigh
from torch import Tensor

from uss_utils.environment import generator
from uss_utils.rows import as_float

Method = Literal["auto", "power", "eigh"]
WEAK = 1e-5  # weight of the edges between patches that are not alike
VECTORS = 4  # rows of a product with a matrix that cost as much as one
BETWEEN = 8  # steps from one check to the next
CLOSE = 2**14  # difference of eigenvalues, in roundings, that tells vectors apart
TIE = 1e-3  # relative difference below which two entries count as equal


def affinity(features: Tensor, tau: float = 0.2, eps: float = WEAK) -> Tensor:
    """Graph of patches: 1 between those whose cosine exceeds tau, else eps.

    Every patch is joined to itself; one without any direction only to itself.

    Args:
        features: of any length, shape (N, C) or (B, N, C).
        tau: cosine, in [-1, 1).
        eps: weight of the weak edges, in (0, 1); without them a graph in several pieces
            would have several solutions.

    Returns:
        W, float32 (float64 stays), shape (N, N) or (B, N, N).

    Raises:
        ValueError: another shape, a setting out of range, or features not finite.
    """
    if features.dim() not in (2, 3) or not features.numel():
        raise ValueError(
            "features must have shape (N, C) or (B, N, C), none of them 0, got "
            f"{tuple(features.shape)}"
        )
    if not -1 <= tau < 1 or not 0 < eps < 1:
        raise ValueError(f"tau={tau} has to lie in [-1, 1) and eps={eps} in (0, 1)")
    if not bool(features.isfinite().all()):
        raise ValueError(
            "features hold NaN or infinite values; look at these images and at the "
            "backbone's weights"
        )
    with torch.autocast(features.device.type, enabled=False):
        unit = F.normalize(as_float(features), dim=-1)
        strong = unit @ unit.mT > tau
    strong.diagonal(dim1=-2, dim2=-1).fill_(True)
    return strong.to(unit.dtype).clamp_(min=eps)


@torch.no_grad()
def ncut_eigenvector(
    graph: Tensor,
    method: Method = "auto",
    *,
    steps: int = 200,
    tol: float = 1e-5,
    free: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Second smallest eigenpair of ``(D - W) y = lambda D y``.

    ``y = D^(-1/2) x`` for the second largest eigenvector x of
    ``A = D^(-1/2) W D^(-1/2)``; the largest is known, ``u = D^(1/2) 1`` with
    eigenvalue 1. In ``M = (I + A)/2 - u u^T`` no eigenvalue is negative and that of u
    is 0, so that powers of M lead to x. Four vectors are multiplied at a time, which
    costs no more than one and tells near-equal eigenvalues apart (Rayleigh-Ritz).

    Args:
        graph: W, symmetric and positive, shape (N, N) or (B, N, N).
        method: "power"; "eigh": a dense solver, in float64; "auto": power, then eigh
            for the images where it did not settle or the next eigenvalue is too close.
        steps: most products.
        tol: they end where x moves by less than this, as a length, between two checks.
        free: patches that are in the graph, bool (N,) or (B, N); None: all.

    Returns:
        y, shape (N,) or (B, N), and lambda in [0, 2], shape () or (B,). y has length 1,
        0 at patches that are not in the graph, and its entry of largest magnitude (the
        first of those that nearly tie) is positive. Where all edges weigh the same
        there is nothing to cut, and y is 0.

    Raises:
        ValueError: unknown method, or shapes that do not fit.
    """
    if method not in get_args(Method):
        known = ", ".join(get_args(Method))
        raise ValueError(f"unknown method {method!r}; known: {known}")
    _check_graph(graph, free)
    if graph.dim() == 2:
        alone = None if free is None else free[None]
        y, value = ncut_eigenvector(
            graph[None], method, steps=steps, tol=tol, free=alone
        )
        return y[0], value[0]
    with torch.autocast(graph.device.type, enabled=False):
        graph = _without(as_float(graph), free)
        degree = graph.sum(-1)
        root, flat = _inverse_root(degree), _flat(graph, degree)
        if method == "eigh":
            solved = [_dense(one) for one in graph]
            x, value = (torch.stack(part) for part in zip(*solved, strict=True))
        else:
            x, value, settled = _powers(_deflated(graph, degree), steps, tol)
        if method == "auto":
            for row in (~settled & ~flat).nonzero()[:, 0].tolist():
                x[row], value[row] = _dense(graph[row])
        y = F.normalize(x * root, dim=-1) * ~flat[:, None]
        return _oriented(y), (2 - 2 * value).clamp(0, 2)


def _check_graph(graph: Tensor, free: Tensor | None) -> None:
    square = graph.dim() in (2, 3) and graph.shape[-1] == graph.shape[-2]
    fits = free is None or (free.dtype == torch.bool and free.shape == graph.shape[:-1])
    if not square or not graph.numel() or not fits:
        given = "" if free is None else f" and {free.dtype} {tuple(free.shape)}"
        raise ValueError(
            "the graph must have shape (N, N) or (B, N, N), and free be bool (N,) or "
            f"(B, N), got {tuple(graph.shape)}{given}"
        )


def _without(graph: Tensor, free: Tensor | None) -> Tensor:
    if free is None:
        return graph
    free = free.to(graph)
    return graph * free[:, :, None] * free[:, None]


def _flat(graph: Tensor, degree: Tensor) -> Tensor:
    """Graphs whose edges, from patch to patch, all weigh the same, bool (B,)."""
    b, n = degree.shape
    if n == 1:
        return torch.ones(b, dtype=torch.bool, device=degree.device)
    # Behind the first entry, every (N + 1)-th one lies on the diagonal.
    edges = graph.flatten(1)[:, 1:].unflatten(1, (n - 1, n + 1))[..., :-1]
    heaviest = edges.amax((1, 2))
    if bool((degree == 0).any()):
        edges = edges.masked_fill(edges == 0, torch.inf)
    return edges.amin((1, 2)) >= heaviest


def _inverse_root(degree: Tensor) -> Tensor:
    """D^(-1/2), 0 where there is no degree."""
    return degree.clamp_min(torch.finfo(degree.dtype).tiny).rsqrt() * (degree > 0)


def _deflated(graph: Tensor, degree: Tensor) -> Tensor:
    """M = (I + A)/2 - u u^T; rows and columns of absent patches are 0."""
    root, u = _inverse_root(degree), F.normalize(degree.sqrt(), dim=-1)
    matrix = graph * (root[:, :, None] / 2)
    matrix *= root[:, None]
    matrix.diagonal(dim1=1, dim2=2).add_((degree > 0).to(matrix) / 2)
    return matrix.baddbmm_(u[:, :, None], u[:, None], alpha=-1)


def _dense(graph: Tensor) -> tuple[Tensor, Tensor]:
    """Largest eigenvector (N,) and eigenvalue () of a graph's M, by way of float64."""
    inside = graph.diagonal() > 0
    vector = graph.new_zeros(len(graph))
    present = graph[inside][:, inside].cpu().double()
    if not len(present):
        return vector, graph.new_zeros(())
    matrix = _deflated(present[None], present.sum(0)[None])[0].numpy()
    last = len(matrix) - 1
    values, vectors = eigh(matrix, subset_by_index=(last, last))
    if not len(values):  # what LAPACK may make of eigenvalues that are exactly equal
        values, vectors = np.linalg.eigh(matrix)
    vector[inside] = torch.from_numpy(vectors[:, -1]).to(vector)
    return vector, vector.new_tensor(values[-1])


def _powers(matrix: Tensor, steps: int, tol: float) -> tuple[Tensor, Tensor, Tensor]:
    """Leading vectors (B, N), values (B,), and where they are to be trusted (B,).

    Images leave the batch once they settle; where the next eigenvalue is too close for
    the precision of the numbers, the vector is a mixture that means little.
    """
    b, n, _ = matrix.shape
    # The same start for every image and every call: nothing here is left to chance.
    start = torch.randn(min(VECTORS, n), n, generator=generator(0)).to(matrix)
    block = _orthonormal(start.expand(b, -1, -1))
    found, value = block[:, 0].clone(), matrix.new_zeros(b)
    rows = torch.arange(b, device=matrix.device)
    settled = torch.zeros_like(rows, dtype=torch.bool)
    gap = CLOSE * torch.finfo(matrix.dtype).eps
    for _ in range(0, steps, BETWEEN):
        for _ in range(BETWEEN):
            block = block @ matrix  # rows: for columns the product is half as fast
        block, values = _ritz(_orthonormal(block), matrix)
        moved = _distance(block[:, 0], found[rows])
        found[rows], value[rows] = block[:, 0], values[:, 0]
        still = moved >= tol
        settled[rows] = ~still & (values[:, 0] - values[:, :2].amin(1) >= gap)
        if not bool(still.all()):
            rows, block, matrix = rows[still], block[still], matrix[still]
        if not len(rows):
            break
    return found, value, settled


def _orthonormal(block: Tensor) -> Tensor:
    return torch.linalg.qr(block.mT).Q.mT


def _ritz(block: Tensor, matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Best eigenpairs within the span of a block, the leading one first."""
    small = block @ matrix @ block.mT
    values, vectors = torch.linalg.eigh((small + small.mT) / 2)
    return vectors.flip(-1).mT @ block, values.flip(-1)


def _distance(x: Tensor, y: Tensor) -> Tensor:
    """Between two unit vectors whose signs mean nothing."""
    return torch.minimum((x - y).norm(dim=1), (x + y).norm(dim=1))


def _oriented(y: Tensor) -> Tensor:
    """Sign such that the first entry of (nearly) largest magnitude is positive."""
    size = y.abs()
    # A bool has no argmax on every device; the first of equal bytes wins.
    first = (size >= (1 - TIE) * size.amax(1, keepdim=True)).to(torch.uint8)
    lead = y.gather(1, first.argmax(1, keepdim=True))
    return torch.where(lead < 0, -y, y)
