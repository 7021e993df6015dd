"""Masks as figures: how they are grown, how they vote, what is remembered of it."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from uss_utils import crf
from uss_utils.charts import point_groups
from uss_utils.colours import (
    IGNORE_GREY,
    default_palette,
    overlay,
    to_numpy,
    to_rgb,
)
from uss_utils.figures import ACCENT, PLAIN, WIDTH, new_axes, new_figure
from uss_utils.pca import PCA
from uss_utils.plots import show_row
from uss_utils.segmenter import Segmenter

MASK_COLOUR = np.array([[253, 214, 66]], dtype=np.uint8)
ROWS = ("along the direction", "like the seed", "mask", "what is left")


def enlarge(grid: Any, size: tuple[int, int]) -> np.ndarray:
    """A map of patches at the size of its picture, every patch a block.

    Args:
        grid: shape (h, w).
        size: (H, W) in pixels.
    """
    grid = to_numpy(grid)
    rows, columns = (
        np.arange(n) * cells // n for n, cells in zip(size, grid.shape, strict=True)
    )
    return grid[rows][:, columns]


def group_colours(k: int) -> np.ndarray:
    """Colours of K groups, those of :func:`uss_utils.charts.point_groups`."""
    return default_palette(2 * k)[::2]


def mask_colours(count: int) -> np.ndarray:
    """Colours of an image's masks; no greys, which mean "in no mask".

    Args:
        count: number of masks; colours repeat after 18.
    """
    strong = [c for c in default_palette(20) if c.max() - c.min() > 16]
    return np.array(strong)[np.arange(count) % len(strong)]


def film_strip(
    image: Any, feat: Any, masks: Any, seeds: Any, directions: Any, *, title: str = ""
) -> Figure:
    """Rounds in which an image is split into masks, one column each.

    From top to bottom: how far every patch lies along the round's direction, how much
    it resembles the seed (the small square), the mask on the image, and what is left
    of the image afterwards.

    Args:
        image: as in :func:`uss_utils.colours.to_rgb`, (H, W) pixels.
        feat: features of any length, shape (C, h, w).
        masks: more than 0 inside, (h, w) for every round.
        seeds: row-major place of every seed, (rounds,); -1 where there was no round.
        directions: (C,) for every round.
        title: the finding.

    Raises:
        ValueError: no round.
    """
    image, feat = to_rgb(image), to_numpy(feat)
    rounds = [(k, int(place)) for k, place in enumerate(seeds) if int(place) >= 0]
    if not rounds:
        raise ValueError("film_strip needs at least one round")
    size, width = image.shape[:2], feat.shape[2]
    unit = feat / np.maximum(np.linalg.norm(feat, axis=0), 1e-12)
    gone = np.zeros(feat.shape[1:], bool)
    side = min(1.75, WIDTH / len(rounds))
    height = side * size[0] / size[1]
    figure = new_figure(side * len(rounds) + 0.2, len(ROWS) * height + 0.3)
    axes = new_axes(figure, len(ROWS), len(rounds))
    for column, (k, place) in zip(axes.T, rounds, strict=True):
        row, col = divmod(place, width)
        along = np.tensordot(to_numpy(directions[k]), unit, 1)
        like = np.tensordot(unit[:, row, col], unit, 1)
        for ax, values in zip(column[:2], (along, like), strict=True):
            ax.imshow(np.ma.masked_array(values, gone), cmap="cividis")
            ax.set_facecolor("0.5")
            ax.plot(col, row, "s", ms=7, mfc="none", mec=ACCENT, mew=1.8)
        inside = to_numpy(masks[k]) > 0
        gone = gone | inside
        mask = np.where(enlarge(inside, size), 0, -1)
        left = np.where(enlarge(gone, size)[..., None], np.uint8(IGNORE_GREY), image)
        column[2].imshow(overlay(image, mask, MASK_COLOUR, alpha=0.75))
        column[3].imshow(left)
        column[0].set_title(f"round {k + 1}")
        column[3].set_title(f"{1 - gone.mean():.0%} left")
        for ax in column:
            _bare(ax)
    for ax, name in zip(axes[:, 0], ROWS, strict=True):
        ax.set_ylabel(name)
    if title:
        figure.suptitle(title)
    return figure


def _bare(ax: Axes) -> None:
    """A picture without ticks, whose label stays."""
    ax.set(xticks=[], yticks=[])
    ax.grid(False)
    for spine in ax.spines.values():
        spine.set_visible(False)


def sharpened(
    image: Any, ids: Any, count: int, gain: float, params: crf.CRFParams
) -> Figure:
    """Masks of an image, after the dense CRF as published, and after another one.

    Where pydensecrf is missing, the masks alone.

    Args:
        image: as in :func:`uss_utils.colours.to_rgb`, (H, W) pixels.
        ids: masks 0..count-1 of patches, -1 = none, shape (h, w).
        count: number of masks.
        gain: factor on the one-hot map of the masks before its softmax; published: 1.
        params: of the other CRF.
    """
    image, ids = to_rgb(image), to_numpy(ids)
    hot = torch.from_numpy(np.eye(count + 1, dtype=np.float32)[ids + 1]).movedim(-1, 0)
    columns = {"image": image, "median": enlarge(ids, image.shape[:2])}
    ways = {"published": (1, crf.DEFAULT), "yours": (gain, params)}
    for name, (factor, used) in ways.items() if crf.available() else ():
        found = crf.dense_crf(torch.from_numpy(image), factor * hot, used)
        columns[name] = found.argmax(0).numpy() - 1
    return show_row(**columns, palette=mask_colours(count))


def mask_votes(image: Any, inside: Any, votes: Any, *, title: str = "") -> Figure:
    """One mask on its image, and what its pixels vote for.

    Args:
        image: as in :func:`uss_utils.colours.to_rgb`, (H, W) pixels.
        inside: bool, shape (H, W).
        votes: number of pixels per group, shape (K,).
        title: of the bars; the winner and its share when empty.

    Raises:
        ValueError: nobody voted.
    """
    votes = to_numpy(votes).astype(float)
    if not votes.sum() > 0:
        raise ValueError("nobody voted: the mask is empty")
    label = np.where(to_numpy(inside), 0, -1)
    winner = int(votes.argmax())
    share = f"group {winner} wins with {votes[winner] / votes.sum():.0%}"
    figure = new_figure(6.2, 2.4)
    left, right = new_axes(figure, 1, 2)[0]
    left.imshow(overlay(image, label, MASK_COLOUR, alpha=0.75))
    left.set_title("one mask")
    _bare(left)
    colours = group_colours(len(votes)) / 255
    edges = ["black" if k == winner else "none" for k in range(len(votes))]
    right.bar(range(len(votes)), votes, color=colours, edgecolor=edges, linewidth=1.5)
    right.set(xlabel="group", ylabel="pixels", xticks=range(len(votes)))
    right.set_title(title or share)
    right.grid(False, axis="x")
    return figure


def line_panels(
    panels: Mapping[str, tuple[Any, Any]],
    *,
    xlabel: str = "",
    ylabel: str = "",
    marks: Mapping[str, float] | None = None,
) -> Figure:
    """One line per panel, over axes that mean the same.

    Args:
        panels: title of a panel -> x and y, shape (N,) each.
        xlabel: what the horizontal axes are.
        ylabel: what the vertical ones are, written once.
        marks: name -> x of a dashed line in every panel.

    Raises:
        ValueError: no panel.
    """
    if not panels:
        raise ValueError("line_panels needs at least one panel")
    figure = new_figure(0.4 + 2.9 * len(panels), 2.4)
    axes = new_axes(figure, 1, len(panels))[0]
    for ax, (title, (x, y)) in zip(axes, panels.items(), strict=True):
        ax.plot(to_numpy(x), to_numpy(y), color=PLAIN)
        for name, at in (marks or {}).items():
            ax.axvline(at, color="0.45", ls="--", lw=1)
            place = {
                "xycoords": ("data", "axes fraction"),
                "rotation": 90,
                "va": "bottom",
            }
            behind = {"facecolor": "white", "edgecolor": "none", "pad": 1}
            ax.annotate(name, (at, 0.04), ha="center", fontsize=8, bbox=behind, **place)
        ax.set(title=title, xlabel=xlabel)
    axes[0].set_ylabel(ylabel)
    return figure


def prototypes_in_plane(patches: Tensor, models: Mapping[str, Segmenter]) -> Figure:
    """Prototypes among patches in the plane of their two main directions.

    Of a prototype the direction is drawn, at the patches' mean length: its own length
    is a matter of scale.

    Args:
        patches: codes, shape (N, C); their colour is the prototype of the largest inner
            product.
        models: title of a panel -> model of these codes.
    """
    plane, reach = PCA.fit(patches, 2), patches.norm(dim=1).mean()
    panels = {}
    for title, model in models.items():
        rows = model.cluster_probe.clusters.detach()
        ends = plane.transform(reach * F.normalize(rows, dim=1))
        panels[title] = ((patches @ rows.T).argmax(1), ends)
    return point_groups(plane.transform(patches), panels)


def group_bars(values: Mapping[str, Any], *, ylabel: str = "") -> Figure:
    """One number per group, at several moments side by side.

    Args:
        values: name of a moment -> shape (K,).
        ylabel: what the numbers are.

    Raises:
        ValueError: no moment.
    """
    if not values:
        raise ValueError("group_bars needs the numbers of at least one moment")
    rows = [to_numpy(each) for each in values.values()]
    k, width = len(rows[0]), 0.8 / len(rows)
    figure = new_figure(6.2, 2.3)
    ax = new_axes(figure)[0, 0]
    for i, each in enumerate(rows):
        place = np.arange(k) + (i - (len(rows) - 1) / 2) * width
        strong = 0.3 + 0.7 * (i + 1) / len(rows)
        ax.bar(place, each, 0.9 * width, color=group_colours(k) / 255, alpha=strong)
    ax.set(xlabel="group", ylabel=ylabel, xticks=range(k))
    ax.set_title("from pale to strong: " + ", ".join(values))
    ax.grid(False, axis="x")
    return figure
