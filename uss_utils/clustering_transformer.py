"""Clustering transformers: from the segments of an image to a few groups of them.

Ke, Hwang, Guo, Wang, Yu, Unsupervised Hierarchical Semantic Segmentation with Multiview
Cosegmentation and Clustering Transformers, CVPR 2022, section 3. An encoder lets the
nodes, one per segment, look at each other; a decoder turns K queries into centroids;
products of both say how much a node belongs to a centroid.

Nodes stand in M slots per image. Slots that no node fills are padded: nothing attends
to them, but they take part in the statistics of batch norms, as in the released code.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from uss_utils.rows import as_float

_TINY = 1e-20  # below it a variance has no root with a finite slope


class Clusters(NamedTuple):
    """What a clustering transformer finds, ordered by falling peak logit.

    Attributes:
        centroids: what the nodes are compared with, shape (B, C, K).
        features: the groups as nodes of the next level, shape (B, C, K).
        logits: of every node and group, shape (B, K, M).
        memory: the encoded nodes, shape (B, C, M).
    """

    centroids: Tensor
    features: Tensor
    logits: Tensor
    memory: Tensor


class _Layer(nn.Module):
    """What encoder and decoder layers share: residual sums, each with a batch norm.

    Tensors inside have shape (B, slots, C).
    """

    def __init__(self, dim: int, heads: int, hidden: int, dropout: float, sums: int):
        super().__init__()
        self.attention = nn.MultiheadAttention(dim, heads, batch_first=True)
        self.widen, self.narrow = nn.Linear(dim, hidden), nn.Linear(hidden, dim)
        self.norms = nn.ModuleList(nn.BatchNorm1d(dim) for _ in range(sums))
        self.drop = nn.Dropout(dropout)

    def add(self, number: int, x: Tensor, change: Tensor) -> Tensor:
        return _normed(self.norms[number], x + self.drop(change))

    def mix(self, x: Tensor) -> Tensor:
        return self.narrow(self.drop(self.widen(x).relu()))


class EncoderLayer(_Layer):
    """Self-attention of the nodes, then a small network on each."""

    def __init__(self, dim: int, heads: int, hidden: int, dropout: float):
        super().__init__(dim, heads, hidden, dropout, 2)

    def forward(self, x: Tensor, position: Tensor, hidden: Tensor | None) -> Tensor:
        """New nodes (B, M, C); ``hidden`` slots, bool (B, M), are looked at by none."""
        x = self.add(
            0, x, _attend(self.attention, x + position, x, x + position, hidden)
        )
        return self.add(1, x, self.mix(x))


class DecoderLayer(_Layer):
    """Self-attention of the groups, a look at the nodes, a small network on each."""

    def __init__(self, dim: int, heads: int, hidden: int, dropout: float):
        super().__init__(dim, heads, hidden, dropout, 3)
        self.cross = nn.MultiheadAttention(dim, heads, batch_first=True)

    def forward(
        self,
        t: Tensor,
        query: Tensor,
        keys: Tensor,
        memory: Tensor,
        hidden: Tensor | None,
    ) -> Tensor:
        """New groups (B, K, C) from nodes ``memory`` (B, M, C) found by ``keys``."""
        t = self.add(0, t, _attend(self.attention, t + query, t, t + query, None))
        t = self.add(1, t, _attend(self.cross, t + query, memory, keys, hidden))
        return self.add(2, t, self.mix(t))


class ClusteringTransformer(nn.Module):
    """Groups of nodes, found by queries.

    Residual sums are followed by batch norms over slots and images, not layer norms.
    Matrices start from Xavier's uniform distribution, queries from a normal one, drawn
    by torch's global generator. Dropout acts on what a residual sum adds and inside the
    small networks.

    Args:
        dim: channels C of nodes and groups.
        num_clusters: groups K.
        heads: of every attention; they divide ``dim``.
        layers: of the encoder, and as many of the decoder.
        hidden: channels inside the small networks.
        dropout: share of entries dropped while training.

    Raises:
        ValueError: heads that do not divide the channels.
    """

    def __init__(
        self,
        dim: int,
        num_clusters: int,
        heads: int = 4,
        layers: int = 2,
        hidden: int = 256,
        dropout: float = 0.1,
    ):
        super().__init__()
        if dim % heads:
            raise ValueError(f"{heads} heads do not divide {dim} channels")
        self.dim, self.num_clusters = dim, num_clusters
        options = (dim, heads, hidden, dropout)
        self.encoder = nn.ModuleList(EncoderLayer(*options) for _ in range(layers))
        self.decoder = nn.ModuleList(DecoderLayer(*options) for _ in range(layers))
        self.norm = nn.BatchNorm1d(dim)
        self.start = nn.Sequential(
            nn.Linear(2 * dim, hidden, bias=False),
            nn.BatchNorm1d(hidden),
            nn.ReLU(),
            nn.Linear(hidden, dim),
        )
        self.assign, self.feature = _Output(dim), _Output(dim)
        for weight in self.parameters():
            if weight.ndim == 2:
                nn.init.xavier_uniform_(weight)
        self.queries = nn.Parameter(torch.randn(num_clusters, dim))

    def forward(
        self,
        x: Tensor,
        padding: Tensor | None = None,
        queries: Tensor | None = None,
        pos: Tensor | None = None,
    ) -> Clusters:
        """Group the nodes of every image.

        Args:
            x: nodes, shape (B, C, M).
            padding: slots without a node, bool (B, M); None: there are none.
            queries: shape (K, C), instead of the transformer's own.
            pos: embeddings of the nodes' places, shape (B, C, M); None: none.

        Raises:
            ValueError: shapes that do not fit, or a single image while training: the
                batch norm of the start would see one row.
        """
        self._check(x, padding)
        queries = self.queries if queries is None else queries
        with torch.autocast(x.device.type, enabled=False):
            nodes = as_float(x).mT
            place = torch.zeros_like(nodes) if pos is None else as_float(pos).mT
            hidden = _hidden(padding)
            for layer in self.encoder:
                nodes = layer(nodes, place, hidden)
            memory = nodes.mT
            t = self.start(start_statistics(memory, padding))
            t = t[:, None].expand(-1, len(queries), -1)
            for layer in self.decoder:
                t = layer(t, queries, nodes + place, nodes, hidden)
            t = _normed(self.norm, t)
            return self._ordered(self.assign(t), self.feature(t), memory)

    def _ordered(self, centroids: Tensor, features: Tensor, memory: Tensor) -> Clusters:
        """Groups by falling peak logit, so that the first ones hold the sure nodes."""
        logits = centroids @ memory / self.dim**0.5
        order = logits.amax(2).argsort(dim=1, descending=True, stable=True)[:, :, None]
        centroids, features, logits = (
            torch.take_along_dim(part, order, 1)
            for part in (centroids, features, logits)
        )
        return Clusters(centroids.mT, features.mT, logits, memory)

    def _check(self, x: Tensor, padding: Tensor | None) -> None:
        if x.ndim != 3 or x.shape[1] != self.dim or not x.shape[2]:
            raise ValueError(
                f"nodes must have shape (B, {self.dim}, M) with M > 0, got "
                f"{tuple(x.shape)}"
            )
        if padding is not None and padding.shape != (len(x), x.shape[2]):
            raise ValueError(
                f"the padding of nodes {tuple(x.shape)} must have shape "
                f"{(len(x), x.shape[2])}, got {tuple(padding.shape)}"
            )
        if self.training and len(x) == 1:
            raise ValueError(
                "a clustering transformer cannot be trained on a batch of one image: "
                "the batch norm of its start would see a single row; use at least two"
            )


class _Output(nn.Module):
    """ReLU, a linear map without bias, a batch norm: (B, K, C) -> (B, K, C)."""

    def __init__(self, dim: int):
        super().__init__()
        self.linear, self.norm = nn.Linear(dim, dim, bias=False), nn.BatchNorm1d(dim)

    def forward(self, t: Tensor) -> Tensor:
        return _normed(self.norm, self.linear(t.relu()))


def _normed(norm: nn.Module, x: Tensor) -> Tensor:
    """A batch norm over slots and images, of (B, slots, C)."""
    return norm(x.flatten(0, 1)).view_as(x)


def _attend(
    attention: nn.MultiheadAttention,
    query: Tensor,
    value: Tensor,
    key: Tensor,
    hidden: Tensor | None,
) -> Tensor:
    return attention(query, key, value, hidden, need_weights=False)[0]


def _hidden(padding: Tensor | None) -> Tensor | None:
    """What must not be attended to: padded slots, but in images that have no other.

    The softmax of nothing would be NaN, and spread to the other images.
    """
    return None if padding is None else padding & ~padding.all(1, keepdim=True)


def start_statistics(memory: Tensor, padding: Tensor | None = None) -> Tensor:
    """Mean and spread of the nodes, from which every group starts.

    With padding, the mean is that of the n nodes, and the spread is
    sqrt(sum over all M slots of (x - mean)^2 / (n + 1)) with x = 0 where padded, as in
    the released code. Without, both are ordinary (the variance over M - 1).

    Args:
        memory: shape (B, C, M).
        padding: bool (B, M), or None.

    Returns:
        shape (B, 2 C).
    """
    if padding is None:
        count, below = memory.shape[2], max(1, memory.shape[2] - 1)
    else:
        valid = ~padding[:, None]
        memory = memory * valid
        count = valid.sum(2).clamp_min(1)
        below = valid.sum(2) + 1
    mean = memory.sum(2) / count
    variance = (memory - mean[:, :, None]).square().sum(2) / below
    return torch.cat([mean, variance.clamp_min(_TINY).sqrt()], 1)
