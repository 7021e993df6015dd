"""Two levels of groups: segments become fine groups, and these become coarse ones.

Two :mod:`clustering transformers <uss_utils.clustering_transformer>` stand one behind
the other: the second groups what the first has found, so that the levels nest softly
(Ke et al., Unsupervised Hierarchical Semantic Segmentation with Multiview
Cosegmentation and Clustering Transformers, CVPR 2022, section 3).
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from uss_utils.clustering_transformer import ClusteringTransformer
from uss_utils.rows import as_float

SIDE = 50  # rows and columns of the position table
HEADS = 4  # of every attention


class PositionTable(nn.Module):
    """A learned embedding of every place of a map: its column's, then its row's.

    Drawn uniformly from [0, 1) by torch's global generator.

    Args:
        dim: channels C, even.
        side: longest side of a map.

    Raises:
        ValueError: an odd number of channels.
    """

    def __init__(self, dim: int, side: int = SIDE):
        super().__init__()
        if dim % 2:
            raise ValueError(f"the position table needs an even dim, got {dim}")
        self.columns = nn.Parameter(torch.rand(side, dim // 2))
        self.rows = nn.Parameter(torch.rand(side, dim // 2))

    def forward(self, size: tuple[int, int]) -> Tensor:
        """The map of a size (h, w), not normalised, shape (C, h, w).

        Raises:
            ValueError: a side is longer than the table.
        """
        return position_map(self.columns, self.rows, size)


def position_map(columns: Tensor, rows: Tensor, size: tuple[int, int]) -> Tensor:
    """Column and row embeddings side by side: (y, x) holds columns[x], then rows[y].

    Args:
        columns: shape (side, C / 2).
        rows: same shape.
        size: (h, w).

    Returns:
        shape (C, h, w).

    Raises:
        ValueError: a side is longer than the tables.
    """
    h, w = size
    if h > len(rows) or w > len(columns):
        raise ValueError(
            f"a map of {h} x {w} places is larger than the position table, which has "
            f"{len(rows)} rows and {len(columns)} columns; take the map of a coarser "
            "grid and enlarge it bilinearly"
        )
    across = columns[:w].T[:, None].expand(-1, h, -1)
    down = rows[:h].T[:, :, None].expand(-1, -1, w)
    return torch.cat([across, down])


class Levels(NamedTuple):
    """Fine groups of the nodes, and coarse groups of the fine ones.

    Attributes:
        fine_logits: shape (B, K1, M).
        coarse_logits: shape (B, K2, K1).
        fine_centroids: shape (B, C, K1).
        coarse_centroids: shape (B, C, K2).
    """

    fine_logits: Tensor
    coarse_logits: Tensor
    fine_centroids: Tensor
    coarse_centroids: Tensor


class Assignment(NamedTuple):
    """Soft groups of the nodes at both levels, and the most probable ones.

    Attributes:
        fine_probs: P1, shape (B, K1, M); its columns sum to 1.
        coarse_probs: P2, shape (B, K2, M); so do these.
        fine: int64 (B, M).
        coarse: int64 (B, M).
    """

    fine_probs: Tensor
    coarse_probs: Tensor
    fine: Tensor
    coarse: Tensor


def compose_levels(fine_logits: Tensor, coarse_logits: Tensor) -> Assignment:
    """p(coarse | node) = sum over fine groups of p(coarse | fine) p(fine | node).

    The coarse label is the most probable one of the node, not of its fine group: a fine
    group usually, not always, lies in one coarse group.

    Args:
        fine_logits: shape (B, K1, M).
        coarse_logits: shape (B, K2, K1).
    """
    fine = as_float(fine_logits).softmax(1)
    with torch.autocast(fine.device.type, enabled=False):
        coarse = as_float(coarse_logits).softmax(1) @ fine
    return Assignment(fine, coarse, fine.argmax(1), coarse.argmax(1))


def group_positions(
    position: Tensor, label: Tensor, padding: Tensor, num_groups: int
) -> Tensor:
    """Mean position embedding of the nodes of every group; 0 for an empty group.

    Args:
        position: of the nodes, shape (B, C, M).
        label: group of every node, int64 (B, M).
        padding: bool (B, M).
        num_groups: K.

    Returns:
        shape (B, C, K).
    """
    groups = torch.arange(num_groups, device=label.device)
    member = ((label[:, :, None] == groups) & ~padding[:, :, None]).to(position)
    return position @ member / member.sum(1, keepdim=True).clamp_min(1)


class Grouping(nn.Module):
    """Position table and both clustering transformers with their queries.

    The features that the second transformer offers to a next level are not used.

    Args:
        dim: channels C of embeddings and nodes, even.
        fine: groups K1 of the first level.
        coarse: groups K2 of the second.
        heads: see :class:`ClusteringTransformer`; so are the others.
        layers: of encoder and decoder.
        hidden: channels of the small networks.
        dropout: share dropped while training.

    Raises:
        ValueError: channels that are odd or that the heads do not divide.
    """

    def __init__(
        self,
        dim: int = 128,
        fine: int = 8,
        coarse: int = 4,
        heads: int = HEADS,
        layers: int = 2,
        hidden: int = 256,
        dropout: float = 0.1,
    ):
        super().__init__()
        self.options = {
            "fine": fine,
            "coarse": coarse,
            "heads": heads,
            "layers": layers,
            "hidden": hidden,
            "dropout": dropout,
        }
        shared = (heads, layers, hidden, dropout)
        self.positions = PositionTable(dim)
        self.fine = ClusteringTransformer(dim, fine, *shared)
        self.coarse = ClusteringTransformer(dim, coarse, *shared)

    def forward(self, x: Tensor, padding: Tensor, position: Tensor) -> Levels:
        """Both levels of given nodes.

        Args:
            x: nodes, shape (B, C, M).
            padding: slots without a node, bool (B, M).
            position: mean of the position map over every node, shape (B, C, M).

        Raises:
            ValueError: see :meth:`ClusteringTransformer.forward`.
        """
        fine = self.fine(x, padding, pos=position)
        label = fine.logits.argmax(1)
        place = group_positions(position, label, padding, self.fine.num_clusters)
        coarse = self.coarse(fine.features, pos=place)
        return Levels(fine.logits, coarse.logits, fine.centroids, coarse.centroids)
