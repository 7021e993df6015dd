"""What can be said about a segmentation where nobody has drawn a label.

None of these numbers is a score: they tell when something went wrong, not that it went
right. Each says what it can and cannot tell.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from scipy.ndimage import binary_dilation
from scipy.stats import spearmanr
from torch import Tensor
from tqdm.auto import tqdm

from uss_utils import environment
from uss_utils.clustering import assign, kmeans
from uss_utils.counting import Counts
from uss_utils.datasets.base import SegmentationDataset
from uss_utils.datasets.transforms import Transform, normalise, to_uint8
from uss_utils.metrics import rand_index
from uss_utils.pictures import (
    MAX_SIDE,
    Picture,
    list_pictures,
    read_picture,
    working_size,
)
from uss_utils.regions import borders, contour_strength
from uss_utils.sampling import sample_tokens

if TYPE_CHECKING:
    from uss_utils.segmenter import Segmenter

PAIRS = 20_000
PATCHES, ALL_PATCHES = 64, 32_768  # compared: per image, and altogether
STRONG = 0.1  # the tenth of an image where colours change most is its edges
IN_USE = 0.01  # a cluster with a smaller share of the pixels is hardly used


def monitor(
    segmenter: "Segmenter",
    images: SegmentationDataset | Sequence[Picture] | Picture,
    *,
    edges: bool = True,
    pairs: int = PAIRS,
    generator: torch.Generator | None = None,
    max_side: int = MAX_SIDE,
    progress: bool = False,
) -> dict[str, Any]:
    """Watch a model at work on images without labels.

    Args:
        segmenter: the model.
        images: pictures of any sizes, a folder of them, or a data set. Pictures are
            brought to the size at which :meth:`Segmenter.segment` works; items of a
            data set keep its geometry. Every size counts as many pixels as it then has.
        edges: follow edges too, about a tenth of a second per picture.
        pairs: of patches, for the agreement; 20 000 leave an uncertainty of 0.01.
        generator: source of the draws; None: one with seed 0.
        max_side: as for :meth:`Segmenter.segment`.
        progress: show a bar.

    Returns:
        A dict that JSON can hold, shares and entropy in [0, 1]:

        ``images``, ``clusters``: how many.

        ``usage``, ``usage_entropy``: share of the pixels per cluster, and how evenly
        they are spread: 1 all alike, 0 one cluster took everything. Tells a collapse.
        Cannot tell good from bad: real classes are far from even, noise is even.

        ``used``: clusters with at least a hundredth of the pixels.

        ``agreement_within``, ``agreement_across``: see :func:`agreement`, of backbone
        features and code, for pairs of one image and pairs of two. Near 1 the head
        keeps what the backbone says, near 0 it has lost it. Cannot tell whether the
        features were right, nor whether a change was for the better: training is
        meant to change something. Left out for the backbone "pixels", where the head
        is the whole network and has nothing to agree with, and ``agreement_across``
        for a single image.

        ``edges_on_borders``, ``pixels_on_borders``: see :func:`edge_shares`. Borders
        that follow edges hit far more of them than of all pixels. Cannot tell a
        shadow's edge from an object's.

    Raises:
        ValueError: no image, or codes that are not finite.
        OSError: a picture cannot be read.
    """
    draw = generator or environment.generator(0)
    inputs, n = _inputs(segmenter, images, max_side)
    counts = Counts(segmenter, labelled=False)
    patches: list[tuple[Tensor, Tensor]] = []
    shares = []
    for image in tqdm(inputs, total=n, unit="img", disable=not progress):
        size = tuple(image.shape[-2:])
        feat, code, clusters = _look(segmenter, image)
        counts.update({"cluster": clusters[None]}, None)
        if segmenter.backbone.name != "pixels":
            patches.append(_some_patches(feat, code, n, draw))
        if edges and min(size) > 1:
            near = max(2, segmenter.backbone.patch // 2)
            pixels = to_uint8(image[0].cpu()).numpy()
            shares.append(edge_shares(pixels, clusters.cpu().numpy(), near))
    found = {"images": n, "clusters": segmenter.n_clusters, **counts.monitors()}
    found["used"] = sum(share >= IN_USE for share in found["usage"])
    for name, value in _agreements(patches, pairs, draw).items():
        found[f"agreement_{name}"] = round(value, 4)
    if shares:
        both = np.mean(shares, axis=0)
        names = "edges_on_borders", "pixels_on_borders"
        found |= {name: round(float(v), 4) for name, v in zip(names, both, strict=True)}
    return found


def agreement(first: Tensor, second: Tensor) -> float:
    """Do two descriptions order pairs of places alike, from least to most similar?

    Spearman's rank correlation of two lists of cosines: any stretching that keeps
    their order, as a trained head does to the features' cosines, leaves it at 1.

    Args:
        first: cosine of every pair by one description, shape (P,).
        second: by the other one, same shape.

    Returns:
        In [-1, 1]; 0 where one of them says the same of all pairs.

    Raises:
        ValueError: shapes differ, or fewer than two pairs.
    """
    if first.shape != second.shape or first.ndim != 1 or len(first) < 2:
        raise ValueError(
            "agreement needs two lists of at least two cosines of the same pairs, got "
            f"{tuple(first.shape)} and {tuple(second.shape)}"
        )
    if any(float(x.amax() - x.amin()) < 1e-6 for x in (first, second)):
        return 0.0
    return float(spearmanr(first.numpy(), second.numpy()).statistic)


def edge_shares(image: np.ndarray, ids: np.ndarray, near: int) -> tuple[float, float]:
    """How many strong edges of an image lie on borders of its segments.

    Args:
        image: uint8 RGB, shape (H, W, 3).
        ids: segment of every pixel, integers (H, W).
        near: pixels between an edge and a border that still count as on it.

    Returns:
        Share of the edges near a border, and share of all pixels there, which is what
        borders drawn blindly would reach. Both 0 where there is but one segment; the
        first equals the second where the image has no edge.

    Raises:
        ValueError: sizes that differ.
    """
    if image.shape[:2] != ids.shape:
        raise ValueError(
            f"image {image.shape[:2]} and segments {ids.shape} differ in size"
        )
    border = binary_dilation(borders(ids), np.ones((3, 3), bool), iterations=near)
    strength = contour_strength(image)[1]
    # More than the limit, not from it on: else a flat image would be all edge.
    edge = strength > np.quantile(strength, 1 - STRONG)
    chance = float(border.mean())
    return (float(border[edge].mean()) if edge.any() else chance), chance


def same_grouping(first: Tensor, second: Tensor) -> float:
    """Do two clusterings put the same places together?

    The adjusted Rand index, :func:`uss_utils.metrics.rand_index`, of two maps.

    Two runs that differ only in their seed should. It needs no matching: names of
    clusters do not count. Cannot tell whether the groups mean anything: two clusters
    of light and dark are found again and again.

    Args:
        first: cluster of every place, integers >= 0, any shape.
        second: the same places in another clustering, same shape.

    Returns:
        At most 1 (the same groups), 0 on average for groups drawn at random.

    Raises:
        ValueError: shapes differ, or fewer than two places.
    """
    if first.shape != second.shape or first.numel() < 2:
        raise ValueError(
            "two clusterings are compared on the same places, at least two; got "
            f"{tuple(first.shape)} and {tuple(second.shape)}"
        )
    a, b = first.flatten().long(), second.flatten().long()
    width = int(b.max()) + 1
    table = torch.bincount(a * width + b, minlength=(int(a.max()) + 1) * width)
    return rand_index(table.view(-1, width))


def stability(
    code: Tensor,
    clusters: int,
    *,
    metric: str = "cosine",
    rounds: int = 3,
    patches: int = 4000,
    generator: torch.Generator,
) -> list[float]:
    """Do two halves of the images give the same clusters?

    K-means on a random half of the images, k-means on the other half; both group all
    patches, and :func:`same_grouping` compares. Low: this number of clusters is not in
    the images, but in the draw. High does not mean meaningful, and few clusters are
    more easily found again than many: compare neighbouring numbers.

    Args:
        code: of all images, shape (N, D, h, w).
        clusters: how many to try.
        metric: "cosine" or "euclidean", as the model's clusters.
        rounds: how often the images are halved.
        patches: random ones of each half that k-means sees.
        generator: source of the draws.

    Returns:
        :func:`same_grouping` of every round.

    Raises:
        ValueError: fewer than two images, or than clusters patches in a half.

    Source: Lange, Roth, Braun, Buhmann, "Stability-based validation of clustering
    solutions", Neural Computation 2004.
    """
    if len(code) < 2:
        raise ValueError(f"two halves need two images, got {len(code)}")
    everything = code.movedim(1, -1).flatten(0, 2)
    found = []
    for _ in range(rounds):
        groups = []
        for half in torch.randperm(len(code), generator=generator).chunk(2):
            rows = sample_tokens(code[half], patches, generator)
            fitted = kmeans(
                rows, clusters, metric=metric, restarts=2, generator=generator
            )
            groups.append(assign(everything, fitted.centroids, metric))
        found.append(same_grouping(*groups))
    return found


# --------------------------------------------------------------------- behind them


def _inputs(
    segmenter: "Segmenter",
    images: SegmentationDataset | Sequence[Picture] | Picture,
    max_side: int,
) -> tuple[Iterator[Tensor], int]:
    """Normalised images (1, 3, H, W), one by one, and how many there will be."""
    if isinstance(images, str | Path) and Path(images).is_dir():
        images = list_pictures(Path(images))
    if not isinstance(images, SegmentationDataset | list | tuple):
        images = [images]
    if not len(images):
        raise ValueError("there is no image to look at")

    def one(item: Picture) -> Tensor:
        pixels = read_picture(item)
        work = working_size(pixels.shape[:2], segmenter.backbone.patch, max_side)
        return normalise(np.array(Transform("resize", work).apply_image(pixels)))

    def each() -> Iterator[Tensor]:
        stored = isinstance(images, SegmentationDataset)
        for i in range(len(images)):
            image = images[i]["image"] if stored else one(images[i])
            yield image[None].to(segmenter.device)

    return each(), len(images)


@torch.no_grad()
def _look(segmenter: "Segmenter", image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Features (C, h, w) and code (D, h, w) as they are, and clusters (H, W)."""
    feat = segmenter.backbone.features(image)
    code = final = segmenter.code_of(feat)
    if segmenter.protocol.flip:
        final = segmenter.code_of(feat, segmenter.backbone.features(image.flip(-1)))
    if not bool(torch.isfinite(final).all()):
        raise ValueError(
            f"{segmenter.method} on {segmenter.backbone.name} gives NaN or infinite "
            "codes; look at the images and at the weights"
        )
    return feat[0], code[0], segmenter.predict_of(final, tuple(image.shape[-2:]))[0]


def _some_patches(
    feat: Tensor, code: Tensor, n: int, draw: torch.Generator
) -> tuple[Tensor, Tensor]:
    """The same random patches of both maps, float32 (P, C) and (P, D) on the CPU."""
    if feat.shape[1:] != code.shape[1:]:
        code = F.adaptive_avg_pool2d(code, feat.shape[1:])
    many = min(PATCHES, max(4, ALL_PATCHES // n))
    rows = torch.randperm(feat[0].numel(), generator=draw)[:many]
    return tuple(x.flatten(1).float().cpu()[:, rows].T for x in (feat, code))


def _agreements(
    patches: list[tuple[Tensor, Tensor]], pairs: int, draw: torch.Generator
) -> dict[str, float]:
    if not patches:
        return {}
    count = torch.tensor([len(feat) for feat, _ in patches])
    start = count.cumsum(0) - count
    # Centred, as cosines of this course are: what all patches share says nothing.
    units = []
    for each in zip(*patches, strict=True):
        rows = torch.cat(each)
        units.append(F.normalize(rows - rows.mean(0), dim=1))

    def any_of(size: Tensor) -> Tensor:
        return (torch.rand(pairs, generator=draw) * size).long()

    image = any_of(torch.tensor(float(len(patches))))
    first = start[image] + (place := any_of(count[image]))
    found = {}
    if bool((count > 1).all()):
        shift = 1 + any_of(count[image] - 1)
        second = start[image] + (place + shift) % count[image]
        found["within"] = agreement(*((x[first] * x[second]).sum(1) for x in units))
    if len(patches) > 1:
        shift = 1 + any_of(torch.tensor(float(len(patches) - 1)))
        other = (image + shift) % len(patches)
        second = start[other] + any_of(count[other])
        found["across"] = agreement(*((x[first] * x[second]).sum(1) for x in units))
    return found
