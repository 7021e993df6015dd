"""Regions as figures: how a tree is cut, what two views share, how k-means goes on."""

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.colors import hsv_to_rgb
from matplotlib.figure import Figure
from torch import Tensor

from uss_utils.colours import IGNORE_GREY, to_numpy, to_rgb
from uss_utils.datasets.transforms import Transform
from uss_utils.figures import ACCENT, PLAIN, WIDTH, new_axes, new_figure
from uss_utils.hierarchy import mean_coloured
from uss_utils.masks_shown import enlarge
from uss_utils.objects_shown import bare
from uss_utils.regions import Tree, borders, raised_threshold, working_size

LINE = np.array([255, 235, 60], dtype=np.uint8)
GOLDEN = (5**0.5 - 1) / 2
PADDING = 255  # grey level of what is no image


def many_colours(n: int) -> np.ndarray:
    """Colours of n things, neighbours in number far apart in hue: uint8 (n, 3)."""
    number = np.arange(n)
    hue = (number * GOLDEN) % 1
    light = 0.62 + 0.38 * ((number * 7) % 5) / 4
    strong = 0.45 + 0.5 * ((number * 3) % 4) / 3
    colours = hsv_to_rgb(np.stack([hue, strong, light], 1).reshape(-1, 3))
    return np.rint(255 * colours).astype(np.uint8)


def outlined(image: Any, ids: Any) -> np.ndarray:
    """An image with the borders of its regions.

    Args:
        image: as in :func:`uss_utils.colours.to_rgb`, (H, W) pixels.
        ids: regions, integers (H, W), or coarser.

    Returns:
        uint8 RGB, shape (H, W, 3).
    """
    rgb = to_rgb(image)
    line = borders(enlarge(ids, rgb.shape[:2]))[..., None]
    return np.where(line, LINE, rgb)


def photo_at(image: Any, longer_side: int) -> np.ndarray:
    """An image at the size in which its regions are found, uint8 RGB."""
    rgb = to_rgb(image)
    return Transform("resize", working_size(rgb.shape[:2], longer_side)).apply_image(
        rgb
    )


def tree_cut(
    image: Any,
    strength: Any,
    tree: Tree,
    threshold: float,
    start: float,
    cap: int,
) -> Figure:
    """One cut of an image's tree, and how many regions every cut has.

    Args:
        image: as in :func:`uss_utils.colours.to_rgb`, (H, W) pixels.
        strength: contours, shape (H, W).
        tree: of these.
        threshold: of the cut that is drawn.
        start: where a threshold starts that rises until there are few enough regions.
        cap: most regions.
    """
    ids = tree.cut(threshold)
    final = raised_threshold(tree, start, cap)
    rgb = to_rgb(image)
    pictures = {
        "contour strength": to_numpy(strength),
        f"cut at {threshold:.2f}": outlined(rgb, ids),
        f"{int(tree.count(threshold))} regions, mean colours": mean_coloured(
            rgb, enlarge(ids, rgb.shape[:2])
        ),
    }
    side = WIDTH / 4
    figure = new_figure(WIDTH, side * rgb.shape[0] / rgb.shape[1] + 0.45)
    *panels, chart = new_axes(figure, 1, 4)[0]
    for ax, (title, picture) in zip(panels, pictures.items(), strict=True):
        ax.imshow(picture, cmap="cividis")
        ax.set_title(title)
        bare(ax)
    heights = np.linspace(0, 1, 201)
    chart.plot(heights, tree.count(heights), color=PLAIN)
    chart.axhline(cap, color="0.45", ls="--", lw=1)
    chart.plot(threshold, tree.count(threshold), "o", color=ACCENT)
    chart.plot(final, tree.count(final), "x", color="0.1", mew=2)
    chart.set(yscale="log", xlabel="threshold", title="regions (log scale)")
    chart.annotate(f"at most {cap}", (1, cap), ha="right", va="bottom", fontsize=8)
    return figure


def shared_regions(views: Tensor, regions: Tensor, valid: Tensor) -> Figure:
    """Pairs of views, the regions of each in the colours that they have in the other.

    A region that the other view does not show is grey, padding white.

    Args:
        views: normalised, 2 b and 2 b + 1 of one image, shape (2 B, 3, H, W).
        regions: ids, int64 (2 B, H, W).
        valid: pixels that are no padding, bool (2 B, H, W).
    """
    n, ratio = len(views), views.shape[2] / views.shape[3]
    side = 0.8 * WIDTH / 4
    figure = new_figure(4 * side, (side * ratio + 0.25) * (n // 2))
    axes = new_axes(figure, n // 2, 4)
    for v, (ax, painted) in enumerate(zip(axes.reshape(-1, 2), views, strict=True)):
        inside, other = to_numpy(valid[v]), to_numpy(regions[v ^ 1][valid[v ^ 1]])
        ids = to_numpy(regions[v])
        present = np.unique(ids[inside])
        both = np.intersect1d(present, other)
        colours = many_colours(int(ids.max()) + 1)
        colours[np.setdiff1d(np.arange(len(colours)), both)] = IGNORE_GREY
        line = (borders(ids) & inside)[..., None]
        map_ = np.where(line, 0, np.where(inside[..., None], colours[ids], PADDING))
        shown = np.where(inside[..., None], to_rgb(painted), PADDING)
        ax[0].imshow(shown.astype(np.uint8))
        ax[1].imshow(map_.astype(np.uint8))
        ax[0].set_title(f"view {v % 2 + 1}")
        ax[1].set_title(f"{len(both)} of {len(present)} regions shared")
        for each in ax:
            bare(each)
    return figure


def tightness(f: Tensor, labels: Tensor, k: int) -> float:
    """Sum over rows of the largest similarity with a centre of given clusters.

    Args:
        f: unit rows, shape (P, D).
        labels: 0..k-1, int64 (P,).
        k: clusters.
    """
    sums = torch.zeros(k, f.shape[1]).index_add_(0, labels, f)
    return float((f @ F.normalize(sums, dim=1).T).amax(1).sum())


def kmeans_rounds(
    image: Any,
    f: Tensor,
    start: Tensor,
    rounds: Tensor,
    size: tuple[int, int],
    chosen: int,
) -> Figure:
    """Clusters of an image's pixels after some rounds, and how tight every round is.

    Args:
        image: as in :func:`uss_utils.colours.to_rgb`.
        f: what is clustered, unit rows, shape (h w, D).
        start: labels before the first round, int64 (h w,).
        rounds: labels after every round, int64 (T, h w).
        size: (h, w).
        chosen: rounds done in what is drawn, 0..T.
    """
    rounds, k = torch.cat([start[None], rounds]), int(start.max()) + 1
    scores = [tightness(f, labels, k) / len(f) for labels in rounds]
    rgb = to_rgb(image)
    side = WIDTH / 3.4
    figure = new_figure(WIDTH, side * rgb.shape[0] / rgb.shape[1])
    *panels, chart = new_axes(figure, 1, 3)[0]
    ids = to_numpy(rounds[chosen].view(size))
    pictures = {
        "borders of clusters": outlined(rgb, ids),
        f"{len(np.unique(ids))} clusters, round {chosen}": many_colours(k)[ids],
    }
    for ax, (title, picture) in zip(panels, pictures.items(), strict=True):
        ax.imshow(picture)
        ax.set_title(title)
        bare(ax)
    chart.plot(scores, color=PLAIN)
    chart.plot(chosen, scores[chosen], "o", color=ACCENT)
    chart.set(xlabel="round", title=f"J / P = {scores[chosen]:.4f}")
    return figure
