"""Regions of an image at every scale: contours, superpixels, a tree of their merges.

What HSG takes from an oriented watershed and an ultrametric contour map (Ke, Hwang,
Guo, Wang, Yu, "Unsupervised Hierarchical Semantic Segmentation with Multiview
Cosegmentation and Clustering Transformers", CVPR 2022, section 3), made from colours
alone: contours where colours change, one superpixel around every place without, and
superpixels merged pair by pair, the most alike first. The merges form a tree whose
heights never fall, so one tree holds every cut, and coarser cuts nest in finer ones.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy import ndimage
from skimage.color import rgb2lab
from skimage.segmentation import watershed

from uss_utils.datasets.transforms import Transform
from uss_utils.region_merging import merge_neighbours

SIDE = 320  # longer side of the image that regions are found in
THRESHOLD, MAX_REGIONS = 0.25, 48  # of HSG on MSCOCO
STEP = 0.01  # by which the threshold rises until there are few enough regions
LAB_RANGE = (100.0, 110.0, 110.0)
SCALES = (1.5, 3.0)  # standard deviations, in pixels
ROUNDING = 1e-5  # of colour: less is no change, one step of a byte 100 times as much


@dataclass(frozen=True)
class Tree:
    """Superpixels, and in which order they merge.

    Superpixels are nodes 0..n-1; the k-th merge makes node n+k, as in SciPy's linkage.

    Attributes:
        leaves: superpixel of every pixel, int64 (H, W).
        merges: the two nodes that merge and the height, in [0, 1] and never falling,
            float64 (n-1, 3).
    """

    leaves: np.ndarray
    merges: np.ndarray

    @cached_property
    def heights(self) -> np.ndarray:
        """Height of every merge, shape (n-1,), ascending."""
        return np.ascontiguousarray(self.merges[:, 2])

    def count(self, threshold: float | np.ndarray) -> np.ndarray:
        """Number of regions of the cut at a threshold, or at each of several."""
        joined = np.searchsorted(self.heights, threshold, side="right")
        return len(self.merges) + 1 - joined

    def cut(self, threshold: float) -> np.ndarray:
        """Regions after all merges up to a height.

        Returns:
            int64 (H, W), numbered from 0 in the order of their first superpixels. Every
            region is connected over sides of pixels.
        """
        return self._regions(threshold)[self.leaves]

    def _regions(self, threshold: float) -> np.ndarray:
        """Region of every superpixel, shape (n,)."""
        n = len(self.merges) + 1
        joined = n - int(self.count(threshold))
        parent = np.arange(n + joined)
        children = self.merges[:joined, :2].astype(np.int64)
        parent[children] = n + np.arange(joined)[:, None]
        # Doubling the step each time, every node reaches the top of its region.
        while not np.array_equal(above := parent[parent], parent):
            parent = above
        _, first, region = np.unique(parent[:n], return_index=True, return_inverse=True)
        return first.argsort().argsort()[region]


def borders(ids: np.ndarray, reach: int = 1) -> np.ndarray:
    """Pixels whose right or lower neighbour is in another region.

    Args:
        ids: region of every pixel, integers (H, W).
        reach: how far away the neighbour is: the width of the line.

    Returns:
        Bool (H, W).
    """
    found = np.zeros(ids.shape, bool)
    found[:-reach] |= ids[:-reach] != ids[reach:]
    found[:, :-reach] |= ids[:, :-reach] != ids[:, reach:]
    return found


def contour_strength(image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """How strongly colours change around every pixel.

    Gradients of the smoothed Lab colours at two scales, averaged and brought into the
    unit interval relative to the strong contours of the same image.

    Args:
        image: uint8 RGB, shape (H, W, 3).

    Returns:
        Lab, channels divided by 100, 110 and 110, float32 (H, W, 3), and the strength,
        float32 (H, W), in [0, 1]; an image of one colour has 0 everywhere.

    Raises:
        ValueError: another kind of array.
    """
    _check(image)
    lab = rgb2lab(image.astype(np.float32) / 255) / np.float32(LAB_RANGE)
    scales = [sigma * _gradient(lab, sigma) for sigma in SCALES]
    change = sum(scales) / len(scales)
    change[change < ROUNDING] = 0
    strong = np.percentile(change, 95)
    # Where nearly everything is flat the few changes that there are set the scale.
    strong = strong if strong > 0 else change.max()
    if strong <= 0:
        return lab, np.zeros_like(change)
    return lab, 1 - np.exp(-change / (0.5 * strong))


def _gradient(lab: np.ndarray, sigma: float) -> np.ndarray:
    """Length of the gradient of all channels at one scale, shape (H, W)."""
    channels = (
        ndimage.gaussian_gradient_magnitude(lab[..., c], sigma) for c in range(3)
    )
    return np.sqrt(sum(channel**2 for channel in channels))


def superpixels(strength: np.ndarray) -> np.ndarray:
    """Watershed of contours: one superpixel around every local minimum.

    Args:
        strength: contours, shape (H, W).

    Returns:
        int64 (H, W), numbered from 0; neighbours over sides, no line between them.
    """
    if strength.min() == strength.max():  # one minimum everywhere
        return np.zeros(strength.shape, np.int64)
    return watershed(strength, connectivity=1).astype(np.int64) - 1


def ultrametric_tree(
    strength: np.ndarray, superpixels: np.ndarray, lab: np.ndarray
) -> Tree:
    """Merge superpixels two by two, the least dissimilar neighbours first.

    The dissimilarity of two neighbours is half the mean contour strength along their
    border plus half the difference of their mean colours, and shrinks with the smaller
    area where that is below a hundredth of the image: crumbs merge first, otherwise
    they alone would be left in the end. A merge's height is its dissimilarity, or that
    of an earlier merge if that was larger.

    Args:
        strength: contours in [0, 1], shape (H, W).
        superpixels: ids from 0, every one used and connected, int64 (H, W).
        lab: colours, shape (H, W, 3), as :func:`contour_strength` gives them.

    Raises:
        ValueError: shapes that differ, or ids with gaps.
    """
    if not strength.shape == superpixels.shape == lab.shape[:2]:
        raise ValueError(
            f"contours {strength.shape}, superpixels {superpixels.shape} and colours "
            f"{lab.shape} differ in height and width"
        )
    flat = superpixels.ravel()
    area = np.bincount(flat)
    if not area.all():
        raise ValueError("superpixels have to be numbered 0..n-1 without gaps")
    colours = [np.bincount(flat, lab[..., c].ravel()) / area for c in range(3)]
    borders = _borders(strength, superpixels, len(area))
    return Tree(superpixels, merge_neighbours(area, colours, borders))


def _borders(strength: np.ndarray, ids: np.ndarray, n: int) -> tuple[np.ndarray, ...]:
    """Neighbours (a < b), the strength summed along their border, and its length."""
    keys, values = [], []
    for one, two in ((np.s_[:-1], np.s_[1:]), (np.s_[:, :-1], np.s_[:, 1:])):
        across = ids[one] != ids[two]
        a, b = ids[one][across], ids[two][across]
        keys.append(np.minimum(a, b) * n + np.maximum(a, b))
        values.append(np.maximum(strength[one], strength[two])[across])
    pair, inverse, length = np.unique(
        np.concatenate(keys), return_inverse=True, return_counts=True
    )
    summed = np.bincount(inverse, np.concatenate(values), minlength=len(pair))
    return pair // n, pair % n, summed, length


def cut_tree(
    tree: Tree, threshold: float = THRESHOLD, max_regions: int = MAX_REGIONS
) -> np.ndarray:
    """Regions at a threshold, which rises until there are few enough.

    Args:
        tree: of an image.
        threshold: merges up to this height are made.
        max_regions: most regions; while there are more, the threshold rises by 0.01.

    Returns:
        int64 (H, W), see :meth:`Tree.cut`.

    Raises:
        ValueError: see :func:`raised_threshold`.
    """
    return tree.cut(raised_threshold(tree, threshold, max_regions))


def raised_threshold(tree: Tree, threshold: float, max_regions: int) -> float:
    """First of threshold, threshold + 0.01, ... with few enough regions.

    Raises:
        ValueError: a threshold outside [0, 1], or no region wanted.
    """
    check_cut(threshold, max_regions)
    steps = np.arange(int((1 - threshold) / STEP) + 2)
    tried = threshold + STEP * steps  # the last one is above every height
    return float(tried[np.argmax(tree.count(tried) <= max_regions)])


def check_cut(threshold: float, max_regions: int) -> None:
    """Check what a cut is asked for.

    Raises:
        ValueError: a threshold outside [0, 1], or no region wanted.
    """
    if not 0 <= threshold <= 1:
        raise ValueError(f"threshold {threshold} is outside [0, 1], where heights lie")
    if max_regions < 1:
        raise ValueError(f"max_regions={max_regions} must be at least 1")


def tree_levels(tree: Tree, thresholds: Sequence[float]) -> list[np.ndarray]:
    """Cuts at several thresholds, in their order; coarser ones nest in finer ones.

    Returns:
        Label maps as of :meth:`Tree.cut`, int64 (H, W) each.
    """
    return [tree.cut(threshold) for threshold in thresholds]


def image_tree(image: np.ndarray, longer_side: int | None = SIDE) -> Tree:
    """Tree of an image brought to a certain size.

    Args:
        image: uint8 RGB, shape (H, W, 3).
        longer_side: in pixels; None: the image's own.

    Raises:
        ValueError: another kind of array, or a side below 1.
    """
    _check(image)
    if longer_side is not None:
        size = working_size(image.shape[:2], longer_side)
        image = Transform("resize", size).apply_image(image)
    lab, strength = contour_strength(image)
    return ultrametric_tree(strength, superpixels(strength), lab)


def regions_of(
    image: np.ndarray,
    longer_side: int | None = SIDE,
    threshold: float = THRESHOLD,
    max_regions: int = MAX_REGIONS,
) -> np.ndarray:
    """Regions of an image, found in a resized copy.

    Args:
        image: uint8 RGB, shape (H, W, 3).
        longer_side: of the copy, in pixels; None: the image's own.
        threshold: see :func:`cut_tree`.
        max_regions: see :func:`cut_tree`.

    Returns:
        int64 (H, W) of the image's own size, by nearest neighbour, numbered from 0
        without gaps. Where the copy was larger a region may be lost or torn.

    Raises:
        ValueError: see :func:`image_tree` and :func:`cut_tree`.
    """
    check_cut(threshold, max_regions)
    ids = cut_tree(image_tree(image, longer_side), threshold, max_regions)
    size = image.shape[:2]
    return ids if ids.shape == size else dense(resize_ids(ids, size))


def working_size(size: tuple[int, int], longer_side: int) -> tuple[int, int]:
    """Height and width with the given longer side and nearly the same proportions.

    Raises:
        ValueError: a side below 1.
    """
    if longer_side < 1:
        raise ValueError(f"longer_side={longer_side} must be at least 1 pixel")
    return tuple(max(1, round(n * longer_side / max(size))) for n in size)


def resize_ids(ids: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A map of ids at another size, by nearest neighbour."""
    return Transform("resize", size).apply_label(ids)


def dense(ids: np.ndarray) -> np.ndarray:
    """The same regions, numbered from 0 without gaps, in the order of their ids.

    Args:
        ids: non-negative integers of any shape.

    Returns:
        int64, same shape.
    """
    if ids.max(initial=0) >= 2**24:  # a count per number up to there is too much
        return np.unique(ids, return_inverse=True)[1].reshape(ids.shape)
    present = np.bincount(ids.ravel()) > 0
    return (np.cumsum(present) - 1)[ids]


def _check(image: np.ndarray) -> None:
    wrong = image.ndim != 3 or image.shape[-1] != 3 or image.dtype != np.uint8
    if wrong or not image.size:
        raise ValueError(
            f"regions need an image of uint8 RGB, shape (H, W, 3), got {image.dtype} "
            f"of shape {image.shape}"
        )
