"""What an evaluation has to know of the segments of a data set: two small tables.

The network sees every image once. Of each segment its prototype is kept and how many
pixels of every class lie under it; whatever names segments afterwards (clusters of any
seed and number, retrieval from any memory) is scored by adding up these counts, to the
same numbers as if maps had been painted and compared. No map is stored.
"""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from uss_utils.crf import CRFParams, CRFPool, sharpen_ids
from uss_utils.datasets.base import SegmentationDataset
from uss_utils.datasets.objects import BACKGROUND
from uss_utils.datasets.transforms import to_uint8
from uss_utils.metrics import MATCHINGS
from uss_utils.scored_batches import ScoredBatch, eval_mode, resized, scored_batches
from uss_utils.segment_maps import (
    Weighting,
    class_counts,
    region_prototypes,
    segment_prototypes,
    split_components,
)
from uss_utils.upsampling import upsample

# Normalised images (B, 3, H, W) to embeddings (B, D, h, w), not normalised, and
# saliency logits (B, h', w').
Model = Callable[[Tensor], tuple[Tensor, Tensor]]
# Places in a data set to ids 0..n of its segments, (B, H, W).
Masks = Callable[[range], Tensor]
Objects = Literal["image", "components"]
_NAMINGS = tuple(name for name in MATCHINGS if name != "identity")


@dataclass(frozen=True)
class SegmentProtocol:
    """Every switch of the evaluation of segments; the defaults are MaskContrast's.

    Attributes:
        threshold: on the saliency logit.
        weighting: of the pixels of a prototype, by "logit", or all the same ("mask").
        objects: the salient pixels are one object per "image", or as many as they have
            connected "components".
        min_share: components with a smaller share of the image are background.
        clusters: number of clusters of segments; None: one per class beside the
            background.
        over: further numbers of clusters, for over-clustering.
        whiten: divide the principal coordinates by their standard deviation.
        components: principal components kept; None: all.
        restarts: starts of each k-means.
        seeds: k-means is repeated with seeds 0..seeds-1, the scores are averaged.
        matching: names the clusters, background included, where there are not more of
            them than classes.
        over_matching: the same where there are more: "iou" or "majority".
        crf: score masks that the dense CRF has sharpened too.
        crf_params: its parameters.
    """

    threshold: float = 0.5
    weighting: Weighting = "logit"
    objects: Objects = "image"
    min_share: float = 0.01
    clusters: int | None = None
    over: tuple[int, ...] = ()
    whiten: bool = True
    components: int | None = None
    restarts: int = 10
    seeds: int = 5
    matching: str = "hungarian-iou"
    over_matching: str = "iou"
    crf: bool = False
    crf_params: CRFParams = field(default_factory=CRFParams)

    def __post_init__(self) -> None:
        """Check the choices.

        Raises:
            ValueError: a switch has no such position.
        """
        for name, known in (
            ("weighting", get_args(Weighting)),
            ("objects", get_args(Objects)),
            ("matching", _NAMINGS),
            ("over_matching", _NAMINGS),
        ):
            if getattr(self, name) not in known:
                raise ValueError(
                    f"{name}={getattr(self, name)!r} is unknown; known: "
                    + ", ".join(known)
                )
        if self.seeds < 1:
            raise ValueError(f"seeds={self.seeds}: k-means runs at least once")

    def describe(self) -> str:
        """One line for under a table."""
        kept = "all" if self.components is None else str(self.components)
        whole = self.components is None and not self.whiten
        parts = [
            f"saliency logit > {self.threshold:g}",
            f"one object per {self.objects.removesuffix('s')}",
            f"prototypes weighted by {self.weighting}",
            "no PCA" if whole else f"PCA with {kept} components",
            "whitened" if self.whiten else "not whitened",
            f"k-means on the scored split, best of {self.restarts} starts, mean of "
            f"{self.seeds} seeds",
            f"clusters named by {self.matching} ({self.over_matching} if more than "
            "classes)",
            "absent classes count 0",
        ]
        return ", ".join(parts)

    def to_json(self) -> dict:
        """All switches, and the line."""
        return asdict(self) | {"line": self.describe()}


@dataclass(frozen=True, eq=False)
class SegmentTable:
    """The segments of a data set.

    Pixels are counted at a *place*: "work", the size the network sees; "own", that of
    the stored labels, to which maps are brought by nearest neighbour; "crf", the same
    after the CRF (absent where none was asked for).

    Attributes:
        dataset: what was read.
        prototypes: unit vectors, float32 (N, D), on the CPU.
        counts: by place, pixels per class of every segment, int64 (N, K).
        outside: by place, those of the background, int64 (K,).
        images: number of images.
        empty: those without any segment.
    """

    dataset: SegmentationDataset
    prototypes: Tensor
    counts: dict[str, Tensor]
    outside: dict[str, Tensor]
    images: int
    empty: int

    def __len__(self) -> int:
        return len(self.prototypes)


@torch.no_grad()
def segment_table(
    model: Model,
    dataset: SegmentationDataset,
    protocol: SegmentProtocol | None = None,
    *,
    masks: Masks | None = None,
    batch_size: int = 16,
    device: str | torch.device = "cpu",
    progress: bool = False,
) -> SegmentTable:
    """Find and describe the segments of a labelled set, in one pass.

    Args:
        model: the network; a module, or a method of one, is put into eval mode
            meanwhile, a plain function has to see to it itself. It has to compute on
            ``device``. Maps coarser than the images count as upsampled bilinearly.
        dataset: images that its transform brings to one size; class 0 is "background".
        protocol: None: the defaults.
        masks: gives the segments instead of the model's saliency; their prototypes are
            plain means. None: the salient pixels.
        batch_size: images per pass.
        device: where the images are wanted.
        progress: show a bar.

    Raises:
        ValueError: no images or labels, no background class, or maps that are not
            finite or do not fit the images.
        ImportError: a CRF is asked for, but pydensecrf is missing.
    """
    protocol = protocol or SegmentProtocol()
    if dataset.classes[0] != BACKGROUND:
        raise ValueError(
            f"{dataset.name} has no class {BACKGROUND!r} in place 0, which is what "
            "lies outside of all segments; wrap it in "
            "datasets.objects.ObjectClasses(dataset, objects) first"
        )
    n_classes, parts = dataset.n_classes, []
    with ExitStack() as stack:
        stack.enter_context(eval_mode(model))
        pool = stack.enter_context(CRFPool()) if protocol.crf else None
        for batch in scored_batches(dataset, batch_size, progress=progress):
            prototypes, ids = _segments(model, batch, protocol, masks, device)
            parts.append(_counted(prototypes, ids, batch, n_classes, protocol, pool))
    places = parts[0].counts
    return SegmentTable(
        dataset,
        torch.cat([part.prototypes for part in parts]),
        {at: torch.cat([part.counts[at] for part in parts]) for at in places},
        {at: sum(part.outside[at] for part in parts) for at in places},
        len(dataset),
        sum(part.empty for part in parts),
    )


def _segments(
    model: Model,
    batch: ScoredBatch,
    protocol: SegmentProtocol,
    masks: Masks | None,
    device: str | torch.device,
) -> tuple[Tensor, Tensor]:
    """Prototypes (B n, D) and ids 0..n, int64 (B, H, W), of a batch, on the CPU."""
    embedding, logit = (part.float() for part in model(batch.image.to(device)))
    size = tuple(batch.label.shape[-2:])
    if masks is not None:
        ids = masks(batch.rows)
        if tuple(ids.shape) != tuple(batch.label.shape):
            raise ValueError(
                f"masks of shape {tuple(ids.shape)} for images of shape "
                f"{tuple(batch.label.shape)}; give one map per image, of its size"
            )
        return region_prototypes(embedding, ids.to(embedding.device)).cpu(), ids.cpu()
    logit = upsample(logit[:, None], size)[:, 0]
    options = (protocol.threshold, protocol.weighting)
    if protocol.objects == "image":
        prototypes, found = segment_prototypes(embedding, logit, *options)
        return prototypes.cpu(), found.long().cpu()
    ids = split_components(logit > protocol.threshold, protocol.min_share)
    weights = logit if protocol.weighting == "logit" else None
    return region_prototypes(embedding, ids.to(logit.device), weights).cpu(), ids


class _Part(NamedTuple):
    """A :class:`SegmentTable` of one batch."""

    prototypes: Tensor
    counts: dict[str, Tensor]
    outside: dict[str, Tensor]
    empty: int


def _counted(
    prototypes: Tensor,
    ids: Tensor,
    batch: ScoredBatch,
    n_classes: int,
    protocol: SegmentProtocol,
    pool: CRFPool | None,
) -> _Part:
    """Count the classes under the segments that have a prototype."""
    n = len(prototypes) // len(ids)
    found = {"work": class_counts(ids, batch.label, n_classes, n)}
    found["own"] = found["work"]
    if any(own.shape != batch.label[0].shape for own in batch.own):
        found["own"] = _at_own_size(ids, batch.own, n_classes, n)
    if pool is not None:
        bytes_, counts = to_uint8(batch.image), ids.flatten(1).amax(1).tolist()
        sharp = sharpen_ids(
            bytes_, ids.to(torch.uint8), counts, protocol.crf_params, pool
        )
        found["crf"] = _at_own_size(sharp.long(), batch.own, n_classes, n)
    valid = prototypes.any(1)
    counts, outside = {}, {}
    for place, each in found.items():
        rows = each[:, 1:].flatten(0, 1)
        counts[place] = rows[valid]
        outside[place] = each[:, 0].sum(0) + rows[~valid].sum(0)
    empty = int((~valid.view(len(ids), n).any(1)).sum())
    return _Part(prototypes[valid], counts, outside, empty)


def _at_own_size(ids: Tensor, own: list[Tensor], n_classes: int, n: int) -> Tensor:
    """Counts of maps brought to the size of each label, (B, 1 + n, K)."""
    return torch.cat(
        [
            class_counts(
                resized(each[None], tuple(label.shape)), label[None], n_classes, n
            )
            for each, label in zip(ids, own, strict=True)
        ]
    )
