"""Hierarchies as figures: nested levels of regions, and what objects they cover."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from matplotlib.colors import hsv_to_rgb
from matplotlib.figure import Figure

from uss_utils.colours import to_numpy, to_rgb
from uss_utils.covering import covering_by_budget, mean_covering
from uss_utils.figures import WIDTH, new_axes, new_figure
from uss_utils.hierarchy import Hierarchy
from uss_utils.masks_shown import enlarge
from uss_utils.objects_shown import bare
from uss_utils.regions import cut_tree, image_tree, resize_ids
from uss_utils.regions_shown import borders


def nested_colours(hierarchy: Hierarchy) -> list[np.ndarray]:
    """Colours of the regions of every level, alike where the coarser ones are.

    The coarsest regions share the circle of hues; what a region is made of shares its
    part of the circle, and is told apart by lightness besides.

    Returns:
        uint8 (R, 3) for every level, fine to coarse.
    """
    counts = hierarchy.counts
    span = np.stack([np.arange(counts[-1]), np.arange(1, counts[-1] + 1)], 1)
    spans = [span / counts[-1]]
    for parents in reversed(hierarchy.parents):
        parents, above = to_numpy(parents), spans[0]
        own = np.zeros((len(parents), 2))
        for region in range(len(above)):
            inside = np.flatnonzero(parents == region)
            low, high = above[region]
            edges = np.linspace(low, low + 0.8 * (high - low), len(inside) + 1)
            own[inside] = np.stack([edges[:-1], edges[1:]], 1)
        spans.insert(0, own)
    colours = []
    for depth, each in enumerate(reversed(spans)):
        number = np.arange(len(each))
        light = 0.95 - 0.4 * (number % (1 + 2 * depth)) / max(1, 2 * depth)
        hue = each.mean(1) % 1
        parts = np.stack([hue, np.full(len(each), 0.65), light], 1)
        colours.insert(0, np.rint(255 * hsv_to_rgb(parts)).astype(np.uint8))
    return colours


def nested(
    images: Sequence[Any], hierarchies: Sequence[Hierarchy], names: Sequence[str]
) -> Figure:
    """Images and their regions, coarse to fine, fine colours alike in a coarse region.

    Args:
        images: as in :func:`uss_utils.colours.to_rgb`.
        hierarchies: one per image.
        names: of the levels, fine to coarse, each a plural in -s.
    """
    columns = 1 + len(names)
    rgbs = [to_rgb(image) for image in images]
    side = min(WIDTH / columns, 1.95)
    ratio = rgbs[0].shape[0] / rgbs[0].shape[1]
    figure = new_figure(side * columns, (side * ratio + 0.22) * len(rgbs))
    axes = new_axes(figure, len(rgbs), columns)
    for row, rgb, found in zip(axes, rgbs, hierarchies, strict=True):
        row[0].imshow(rgb)
        colours, levels = nested_colours(found), list(found)
        for ax, name, k in zip(
            row[1:], names[::-1], range(len(names))[::-1], strict=True
        ):
            ax.imshow(_mixed(rgb, enlarge(levels[k], rgb.shape[:2]), colours[k]))
            number = found.counts[k]
            ax.set_title(f"{number} {name}" if number > 1 else f"1 {name[:-1]}")
        for ax in row:
            bare(ax)
    axes[0, 0].set_title("image")
    return figure


def _mixed(rgb: np.ndarray, ids: np.ndarray, colours: np.ndarray) -> np.ndarray:
    """Regions in their colours over the grey image, with borders."""
    grey = rgb.mean(2, keepdims=True)
    mixed = 0.25 * grey + 0.75 * colours[ids]
    return np.where(borders(ids)[..., None], 20, mixed).astype(np.uint8)


def cover(
    true: Sequence[Any], nested: Callable[[int], Any], budgets: Sequence[int]
) -> dict[str, float]:
    """Mean foreground covering of some pictures, in percent.

    Args:
        true: objects of every picture, 0 = none, integers (H, W).
        nested: gives the levels of the picture at a place, fine to coarse.
        budgets: most regions of each level, coarse to fine.

    Returns:
        By the most regions allowed: those of the coarsest level alone, of the next one
        besides, and so on; empty without pictures.
    """
    total = np.cumsum(budgets).tolist()
    found = [covering_by_budget(ids, nested(i), total) for i, ids in enumerate(true)]
    means = [100 * mean_covering(part) for part in zip(*found, strict=True)]
    return {f"{n} regions": mean for n, mean in zip(total, means, strict=False)}


def few_regions(
    image: np.ndarray, side: int, budgets: Sequence[int], size: tuple[int, int]
) -> list[np.ndarray]:
    """Cuts of an image's tree into at most so many regions each, fine to coarse.

    Args:
        image: uint8 RGB.
        side: longer side at which regions are sought.
        budgets: coarse to fine.
        size: (H, W) of the maps.
    """
    tree = image_tree(image, side)
    return [resize_ids(cut_tree(tree, 0.0, n), size) for n in budgets[::-1]]
