"""How good a grouping of nodes is: the graph of neighbours, its modularity, balance.

Ke, Hwang, Guo, Wang, Yu, Unsupervised Hierarchical Semantic Segmentation with Multiview
Cosegmentation and Clustering Transformers, CVPR 2022, section 3.3. Nodes are columns,
shape (B, C, M), of which those with ``padding`` do not exist; an image without nodes
plays no part in any mean.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from uss_utils.methods._hsg_kmeans import EPS
from uss_utils.rows import as_float


@torch.no_grad()
def knn_graph(
    x: Tensor, padding: Tensor, k: int, groups: Tensor | None = None
) -> Tensor:
    """Directed graph from every node to those most like it by cosine.

    Not made symmetric. A node has as many edges as there are candidates where these are
    fewer than k, and one that is all alone in its image an edge to itself.

    Args:
        x: nodes, shape (B, C, M).
        padding: bool (B, M).
        k: neighbours of each node, in every group.
        groups: any integers (B, M), the view of each node say: neighbours are looked
            for in each group separately. None: among all nodes of the image.

    Returns:
        0 or 1, shape (B, M, M), without gradient; row i holds the edges from node i.

    Raises:
        ValueError: shapes that do not fit, or k below 1.
    """
    _check_nodes(x, padding, groups, k)
    with torch.autocast(x.device.type, enabled=False):
        unit = F.normalize(as_float(x), dim=1, eps=EPS)
        cosine = unit.transpose(1, 2) @ unit
    valid = ~padding
    pairs = valid[:, :, None] & valid[:, None]
    alone = torch.diag_embed(valid & (valid.sum(1, keepdim=True) == 1))
    others = ~torch.eye(x.shape[2], dtype=torch.bool, device=x.device)
    cosine.masked_fill_(~(pairs & others), -torch.inf)
    adjacency = alone.to(cosine)
    kinds = torch.zeros_like(padding, dtype=torch.int64)
    if groups is not None:
        kinds = _numbered(groups, valid)
    for kind in range(int(kinds.max()) + 1 if kinds.numel() else 0):
        among = cosine.masked_fill((kinds != kind)[:, None], -torch.inf)
        best = among.topk(min(k, x.shape[2]), 2, sorted=False)
        edges = (best.values > -torch.inf).to(adjacency)
        adjacency.scatter_add_(2, best.indices, edges)
    return adjacency


def _numbered(groups: Tensor, valid: Tensor) -> Tensor:
    """Groups of each image as 0, 1, ..; -1 where padded."""
    same = (groups[:, :, None] == groups[:, None]) & valid[:, None]
    first = same.max(2).indices  # the group's first node stands for it
    place = torch.arange(groups.shape[1], device=groups.device)
    leaders = ((first == place) & valid).long().cumsum(1) - 1
    return leaders.gather(1, first).where(valid, -1)


def modularity_loss(
    probs: Tensor, adjacency: Tensor, padding: Tensor, standard: bool = False
) -> Tensor:
    """One minus the soft modularity of groups, the mean over images.

    With degrees d = A 1 and w = 2 sum d it is
    1 - [tr(S' A S) - sum_k (d' S_k)^2 / w] / w.

    Args:
        probs: soft assignment of the nodes to K groups, shape (B, K, M).
        adjacency: shape (B, M, M).
        padding: bool (B, M).
        standard: w = sum d, as modularity is defined. HSG doubles it, which leaves its
            optimum in place: all nodes in one group cost 3/4 on any graph instead of 1,
            K components of equal size perfectly told apart 1/2 + 1/(4K) instead of 1/K.

    Returns:
        Scalar; 0 where no image has a node.

    Raises:
        ValueError: shapes that do not fit.
    """
    _check_probs(probs, padding, adjacency)
    with torch.autocast(probs.device.type, enabled=False):
        groups = _without_padding(probs, padding)
        adjacency = adjacency.to(groups)
        degree = adjacency.sum(2, keepdim=True)
        weight = degree.sum((1, 2)) * (1 if standard else 2)
        exists = weight > 0
        weight = weight.where(exists, 1)
        inside = (groups @ adjacency * groups).sum((1, 2))
        expected = (groups @ degree).square().sum((1, 2)) / weight
        return _mean(1 - (inside - expected) / weight, exists)


def balance_loss(probs: Tensor, padding: Tensor, slots: int | None = None) -> Tensor:
    """Length of the vector of group sizes, the mean over images.

    sqrt(K) / M |sum_i S_i|: for n nodes n / M where groups are equally large, sqrt(K)
    times as much where one group has all.

    Args:
        probs: soft assignment, shape (B, K, M).
        padding: bool (B, M).
        slots: M in the formula; None: the width of ``probs``, padding included.

    Returns:
        Scalar; 0 where no image has a node.

    Raises:
        ValueError: shapes that do not fit, or fewer than 1 slot.
    """
    _check_probs(probs, padding)
    if slots is not None and slots < 1:
        raise ValueError(f"slots={slots} has to be at least 1")
    slots = probs.shape[2] if slots is None else slots
    sizes = _without_padding(probs, padding).sum(2)
    lengths = torch.linalg.vector_norm(sizes, dim=1)
    return _mean(lengths * (math.sqrt(probs.shape[1]) / slots), ~padding.all(1))


def _without_padding(probs: Tensor, padding: Tensor) -> Tensor:
    return as_float(probs).masked_fill(padding[:, None], 0)


def _mean(values: Tensor, exists: Tensor) -> Tensor:
    """Mean over the images that have nodes, 0 without any."""
    return (values * exists).sum() / exists.sum().clamp_min(1)


def _check_nodes(x: Tensor, padding: Tensor, groups: Tensor | None, k: int) -> None:
    if x.dim() != 3 or tuple(padding.shape) != (len(x), x.shape[2]):
        raise ValueError(
            f"nodes {tuple(x.shape)} and padding {tuple(padding.shape)} do not fit; "
            "expected (B, C, M) and (B, M)"
        )
    if groups is not None and groups.shape != padding.shape:
        raise ValueError(
            f"groups have shape {tuple(groups.shape)}, expected {tuple(padding.shape)}"
        )
    if k < 1:
        raise ValueError(f"k={k} neighbours have to be at least 1")


def _check_probs(
    probs: Tensor, padding: Tensor, adjacency: Tensor | None = None
) -> None:
    if probs.dim() != 3 or tuple(padding.shape) != (len(probs), probs.shape[2]):
        raise ValueError(
            f"assignments {tuple(probs.shape)} and padding {tuple(padding.shape)} do "
            "not fit; expected (B, K, M) and (B, M)"
        )
    size = (*padding.shape, padding.shape[1])
    if adjacency is not None and tuple(adjacency.shape) != size:
        raise ValueError(
            f"the graph has shape {tuple(adjacency.shape)}, expected {size}"
        )
