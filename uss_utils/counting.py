"""One pass over a data set: what several models predict, counted, never stored.

Evaluation turns these counts into scores (:mod:`uss_utils.evaluation`).
"""

from collections.abc import Collection, Sequence
from contextlib import ExitStack, closing
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from uss_utils import ranks
from uss_utils.batches import in_order
from uss_utils.crf import CRFPool, dense_crf_batch
from uss_utils.datasets.base import SegmentationDataset
from uss_utils.metrics import Confusion

if TYPE_CHECKING:
    from uss_utils.protocol import EvalProtocol
    from uss_utils.segmenter import Segmenter


class Counts:
    """What one model predicted on some images.

    Args:
        segmenter: the model.
        labelled: whether the images have labels.
        linear: count the linear probe too, if there is one.

    Attributes:
        images: how many images were counted.
        usage: pixels per cluster, int64 (K + E,).
        cluster: confusion of the clusters; None without labels.
        linear: confusion of the linear probe; None without labels or probe.
    """

    def __init__(self, segmenter: "Segmenter", labelled: bool, linear: bool = True):
        n_classes, n_clusters = len(segmenter.classes), segmenter.n_clusters
        self.images = 0
        self.usage = torch.zeros(n_clusters, dtype=torch.int64)
        self.cluster = self.linear = None
        if labelled:
            self.cluster = Confusion(n_classes, n_clusters - n_classes)
        if labelled and linear and segmenter.linear_probe is not None:
            self.linear = Confusion(n_classes)

    @property
    def probes(self) -> tuple[str, ...]:
        """Probes whose predictions :meth:`update` needs."""
        return ("cluster",) if self.linear is None else ("cluster", "linear")

    def update(self, found: dict[str, Tensor], label: Tensor) -> None:
        """Add predictions, int64 (B, H, W) per probe; the label has the same shape."""
        clusters = found["cluster"]
        self.images += len(clusters)
        counted = torch.bincount(clusters.flatten(), minlength=len(self.usage))
        self.usage += counted.cpu()
        if self.cluster is not None:
            self.cluster.update(clusters, label)
        if self.linear is not None:
            self.linear.update(found["linear"], label)

    def join(self) -> None:
        """Add the counts of all processes; alone, nothing happens."""
        self.images = int(ranks.total(torch.tensor(self.images)))
        self.usage = ranks.total(self.usage)
        for confusion in (self.cluster, self.linear):
            if confusion is not None:
                confusion.all_reduce()

    def monitors(self) -> dict[str, Any]:
        """Facts that need no labels: how evenly the clusters are used."""
        share = self.usage.double() / self.usage.sum()
        even = torch.tensor(float(max(len(share), 2)), dtype=torch.float64).log()
        entropy = float(torch.special.entr(share).sum() / even)
        return {
            "usage": [round(value, 6) for value in share.tolist()],
            "usage_entropy": round(entropy, 6),
        }


class Tally:
    """All counts of one model on one set.

    Attributes:
        all: every image.
        crf: the images that were predicted with the CRF too, with it.
        plain: the same images without it.
    """

    def __init__(self, segmenter: "Segmenter", labelled: bool, linear: bool):
        self.all, self.crf, self.plain = (
            Counts(segmenter, labelled, linear) for _ in range(3)
        )

    def join(self) -> None:
        """Add the counts of all processes; alone, nothing happens."""
        for counts in (self.all, self.crf, self.plain):
            counts.join()


def count(
    segmenters: Sequence["Segmenter"],
    dataset: SegmentationDataset,
    protocol: "EvalProtocol",
    *,
    feat: Tensor | None = None,
    linear: bool = True,
    crf_images: Collection[int] = (),
    batch_size: int = 16,
    progress: bool = False,
) -> list[Tally]:
    """Predict a whole set with models that share one backbone.

    Several processes take every n-th batch each, and all return the sum.

    Args:
        segmenters: the models.
        dataset: images of one size.
        protocol: flip average, and the CRF's temperature and parameters.
        feat: features of all images where they are known, (N, C, h, w), not mirrored.
        linear: count the linear probes too.
        crf_images: positions of the images that are predicted with the CRF as well.
        batch_size: images per pass.
        progress: show a bar.

    Returns:
        One tally per model.

    Raises:
        ValueError: images of different sizes, or codes that are not finite.
    """
    tallies = [Tally(model, dataset.has_labels, linear) for model in segmenters]
    device = segmenters[0].device
    # Labels alone are read much faster, where nothing is left to compute from images.
    needed = feat is None or protocol.flip or crf_images
    read = dataset.batch if needed else lambda rows: (None, dataset.labels(rows))
    with ExitStack() as stack:
        title = f"{dataset.name} {dataset.split}"
        bar = tqdm(total=len(dataset), desc=title, unit="img", disable=not progress)
        stack.enter_context(bar)
        pool = stack.enter_context(CRFPool()) if crf_images else None
        batches = in_order(read, len(dataset), batch_size, shared=True)
        for rows, (image, label) in stack.enter_context(closing(batches)):
            image = None if image is None else image.to(device)
            label = label.to(device)
            known = None if feat is None else feat[rows.start : rows.stop].to(device)
            found = _features(segmenters[0], image, known, protocol.flip)
            chosen = [i for i, row in enumerate(rows) if row in crf_images]
            for model, tally in zip(segmenters, tallies, strict=True):
                code = model.code_of(*found)
                _check_finite(code, model, rows)
                _add(tally.all, model, code, label)
                if chosen:
                    part = (code[chosen], image[chosen], label[chosen])
                    _add(tally.plain, model, part[0], part[2])
                    _add_sharp(tally.crf, model, *part, protocol, pool)
            bar.update(len(rows))
    for tally in tallies:
        tally.join()
    return tallies


def _features(
    segmenter: "Segmenter", image: Tensor | None, known: Tensor | None, flip: bool
) -> tuple[Tensor, Tensor | None]:
    """Features of the images and, for a flip average, of the mirrored images."""
    backbone = segmenter.backbone
    feat = backbone.features(image) if known is None else known
    return feat, backbone.features(image.flip(-1)) if flip else None


def _check_finite(code: Tensor, segmenter: "Segmenter", rows: range) -> None:
    if not bool(torch.isfinite(code).all()):
        raise ValueError(
            f"{segmenter.method} on {segmenter.backbone.name} gives NaN or infinite "
            f"codes for images {rows.start}..{rows.stop - 1}; look at these images and "
            "at the weights"
        )


def _add(counts: Counts, model: "Segmenter", code: Tensor, label: Tensor) -> None:
    size = tuple(label.shape[-2:])
    found = {which: model.predict_of(code, size, which) for which in counts.probes}
    counts.update(found, label)


def _add_sharp(
    counts: Counts,
    model: "Segmenter",
    code: Tensor,
    image: Tensor,
    label: Tensor,
    protocol: "EvalProtocol",
    pool: CRFPool,
) -> None:
    """Add the predictions after the CRF; one round of the pool serves both probes."""
    size = tuple(label.shape[-2:])
    logits = [
        each
        for which in counts.probes
        for each in model.log_probs_of(code, size, protocol.alpha, which).cpu()
    ]
    images = list(image.cpu()) * len(counts.probes)
    sharp = dense_crf_batch(images, logits, params=protocol.crf_params, pool=pool)
    ids = torch.stack([q.argmax(0) for q in sharp]).chunk(len(counts.probes))
    counts.update(dict(zip(counts.probes, ids, strict=True)), label.cpu())
