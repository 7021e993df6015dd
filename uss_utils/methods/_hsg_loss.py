"""HSG's objective: three groupings of pixels to be told apart, two of them to be found.

Ke, Hwang, Guo, Wang, Yu, Unsupervised Hierarchical Semantic Segmentation with Multiview
Cosegmentation and Clustering Transformers, CVPR 2022, section 3. Regions, fine and
coarse groups attract the pixels of both views of an image; modularity and balance say
how good the groups are, and their centroids repel each other. Labels are constants:
what trains the clustering transformers are the last three alone.

Where several processes share a batch, each has the pixels of its own views. Prototypes
are those of all; from these every process makes the graph and the groups of all images,
which takes a small part of a step, so that the terms are those of one process. The
released code means over each process's pixels and nodes, and averages the means.

Where a batch is computed in parts, segments and centroids are compared within a part,
an image has as many slots as its part needs, and batch norms see a part.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from uss_utils import ranks
from uss_utils.grouping import Assignment, Grouping, Levels, compose_levels
from uss_utils.methods._hsg_contrast import (
    centroid_contrast,
    retrieval_accuracy,
    segment_contrast,
)
from uss_utils.methods._hsg_graph import balance_loss, knn_graph, modularity_loss
from uss_utils.methods._hsg_segments import (
    Nodes,
    Segments,
    dense_numbers,
    image_index,
    nodes_of,
    segment_views,
)

LEVELS = ("fine", "coarse")


@dataclass(frozen=True)
class HSGLoss:
    """The weighted sum of all terms, and each of them.

    The paper's settings for the second stage on COCO are the defaults; the first stage
    has no grouping, grid (1, 1) and 1 iteration. For Cityscapes modularity and centroid
    weigh 0.2, ``knn`` is 4 and ``per_view`` False.

    Attributes:
        region: weight of the contrast among regions of both views.
        fine: weight of the contrast among fine groups.
        coarse: weight of the contrast among coarse groups.
        modularity: weight of the modularity of both levels.
        balance: weight of the balance of both levels; None: that of the modularity.
        centroid: weight of the contrast among centroids, both levels.
        grid: cells (ky, kx) from which k-means starts in every view.
        iterations: of k-means.
        kappa: concentration of every contrast.
        knn: neighbours of a node in the graph.
        per_view: look for neighbours in each view; False: among all nodes of the image.
        slots: M; None: the largest number of nodes of an image of the batch.
        standard: modularity as it is defined; False: as HSG does.
    """

    region: float = 1.0
    fine: float = 0.1
    coarse: float = 0.1
    modularity: float = 1.0
    balance: float | None = None
    centroid: float = 1.0
    grid: tuple[int, int] = (4, 4)
    iterations: int = 15
    kappa: float = 16.0
    knn: int = 2
    per_view: bool = True
    slots: int | None = None
    standard: bool = False

    def __call__(
        self,
        emb: Tensor,
        regions: Tensor,
        valid: Tensor,
        image_of_view: Tensor,
        grouping: Grouping | Levels | None = None,
    ) -> dict[str, Tensor]:
        """All terms of a batch of views.

        Args:
            emb: embedding maps, not normalised, shape (N, C, h, w).
            regions: ids, the same in all views of an image, integers (N, H, W).
            valid: pixels that are no padding, bool (N, H, W).
            image_of_view: image of each view, int64 (N,).
            grouping: the clustering transformers (``HSGNet.grouping``), or logits and
                centroids of the nodes (of all processes); None: regions alone.

        Returns:
            Scalars: "total"; "region" and, with a grouping, "fine", "coarse" and
            "modularity", "balance" and "centroid", each with "_fine" or "_coarse"
            behind it, all before they are weighted; and "top5", the share of the five
            segments most like a segment, itself included, that have its image and
            region. Without any valid pixel all are 0. The mean over processes is that
            of the whole batch.

        Raises:
            ValueError: shapes that do not fit, more nodes than slots, or a grouping
                trained on a single image.
        """
        segments = segment_views(emb, regions, valid, self.grid, self.iterations)
        return self.of_segments(segments, image_of_view, grouping)

    def of_segments(
        self,
        segments: Segments,
        image_of_view: Tensor,
        grouping: Grouping | Levels | None = None,
    ) -> dict[str, Tensor]:
        """The same of given segments; see :meth:`__call__`."""
        with torch.autocast(segments.pixels.device.type, enabled=False):
            everyone = segments.gathered()
            nodes, levels, groups = self._grouped(
                segments, everyone, image_of_view, grouping
            )
            labels = _labels(everyone, nodes, groups)
            terms = self._contrasts(everyone, labels)
            if levels is not None:
                terms |= self._goodness(nodes, levels, groups)
            if not len(everyone.prototypes):  # centroids of nothing would still repel
                nothing = segments.pixels.sum() * 0
                terms = dict.fromkeys(terms, nothing)
            weights = self._weights()
            total = sum(weights[name] * term for name, term in terms.items())
            top5 = retrieval_accuracy(everyone.prototypes, labels[0])
        return {"total": total, **terms, "top5": top5}

    def _grouped(
        self,
        segments: Segments,
        everyone: Segments,
        image_of_view: Tensor,
        grouping: Grouping | Levels | None,
    ) -> tuple[Nodes, Levels | None, Assignment | None]:
        """Nodes, levels and groups of the images of all processes."""
        position, made = None, isinstance(grouping, Grouping)
        if made:
            place = grouping.positions(segments.shape[1:])
            position = ranks.gather_rows(segments.positions(place))
        nodes = nodes_of(everyone, _numbered(image_of_view), position, self.slots)
        if made:
            grouping = grouping(nodes.x, nodes.padding, nodes.position)
        if grouping is None:
            return nodes, None, None
        expected = (len(nodes.padding), nodes.padding.shape[1])
        given = (len(grouping.fine_logits), grouping.fine_logits.shape[2])
        if given != expected:
            raise ValueError(
                f"the fine logits are of {given[0]} images with {given[1]} slots, the "
                f"nodes of {expected[0]} with {expected[1]}"
            )
        found = compose_levels(grouping.fine_logits, grouping.coarse_logits)
        return nodes, grouping, found

    def _contrasts(self, everyone: Segments, labels: list[Tensor]) -> dict[str, Tensor]:
        """Each pixel against the segments of all processes, at every level."""
        names = ("region", *LEVELS)[: len(labels)]
        rows = everyone.pixels, everyone.pixel_segment, everyone.prototypes
        values = segment_contrast(*rows, labels, self.kappa, reduce=False).sum(1)
        # A sum over the share of each process, averaged over processes, is the mean.
        counts = ranks.counts(len(everyone.pixels))
        values = values / (sum(counts) / len(counts) or 1)
        return dict(zip(names, values, strict=True))

    def _goodness(
        self, nodes: Nodes, levels: Levels, groups: Assignment
    ) -> dict[str, Tensor]:
        """Modularity, balance and contrast of centroids at both levels."""
        among = nodes.view if self.per_view else None
        graph = knn_graph(nodes.x, nodes.padding, self.knn, among)
        found = {}
        for level in LEVELS:
            probs = getattr(groups, f"{level}_probs")
            centroids = getattr(levels, f"{level}_centroids")
            found[f"modularity_{level}"] = modularity_loss(
                probs, graph, nodes.padding, self.standard
            )
            found[f"balance_{level}"] = balance_loss(probs, nodes.padding)
            found[f"centroid_{level}"] = centroid_contrast(centroids, self.kappa)
        return found

    def _weights(self) -> dict[str, float]:
        """Weight of every term."""
        balance = self.modularity if self.balance is None else self.balance
        weights = {"region": self.region, "fine": self.fine, "coarse": self.coarse}
        for level in LEVELS:
            weights[f"modularity_{level}"] = self.modularity
            weights[f"balance_{level}"] = balance
            weights[f"centroid_{level}"] = self.centroid
        return weights


def _numbered(image_of_view: Tensor) -> Tensor:
    """Images of the views of all processes, numbered through."""
    index = image_index(image_of_view)
    images = ranks.counts(int(index.max()) + 1)
    return ranks.gather_rows(index + sum(images[: ranks.rank()]))


def _labels(
    segments: Segments, nodes: Nodes, groups: Assignment | None
) -> list[Tensor]:
    """Numbers of (image, region) and, with groups, of (image, fine or coarse group)."""
    labels = [segments.segment_region]
    if groups is not None:
        labels += [nodes.of_segments(g) for g in (groups.fine, groups.coarse)]
    return [dense_numbers(nodes.image_of_segment, label) for label in labels]
