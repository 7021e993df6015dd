"""Objects as figures: how they are cut out, cropped, told apart, found again."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor

from uss_utils.charts import curves
from uss_utils.colours import overlay, to_numpy, to_rgb
from uss_utils.figures import ACCENT, WIDTH, new_axes, new_figure
from uss_utils.masks_shown import enlarge, mask_colours
from uss_utils.saliency import affinity, ncut_saliency

RIGHT = "#2a9d5c"
TINT, DARK = 0.45, 0.3  # weight of an object's colour; light left of the background
MOST_PAIRS = 4  # whose crops are drawn
PANELS = 4  # in a row of a strip


def on_image(image: Any, ids: Any) -> np.ndarray:
    """Objects on their image, the background dark and grey.

    Args:
        image: as in :func:`uss_utils.colours.to_rgb`, (H, W) pixels.
        ids: bool (one object, in its own colours), or 0 background and 1..n objects,
            tinted; (h, w) patches or (H, W) pixels.

    Returns:
        uint8 RGB, shape (H, W, 3).
    """
    rgb, ids = to_rgb(image), to_numpy(ids)
    tint = 0.0 if ids.dtype == bool else TINT
    ids = enlarge(ids.astype(np.int64), rgb.shape[:2])
    dark = (DARK * rgb.mean(2, keepdims=True)).astype(np.uint8)
    # Every second colour is the pale one of the colour before: neighbouring ids would
    # look alike.
    colours = mask_colours(18)
    colours = np.concatenate([colours[::2], colours[1::2]])
    colours = colours[np.arange(max(1, int(ids.max()))) % len(colours)]
    return overlay(np.where(ids[..., None] > 0, rgb, dark), ids - 1, colours, tint)


def bare(ax: Axes) -> None:
    """A picture without ticks."""
    ax.set(xticks=[], yticks=[])
    ax.grid(False)


def _strip(panels: int, shape: Sequence[int]) -> tuple[Figure, list[Axes]]:
    """A figure of pictures side by side, in as many rows as it takes."""
    columns = min(panels, PANELS)
    rows = -(-panels // columns)
    side = min(WIDTH / columns, 2.6)
    height = side * shape[0] / shape[1] + 0.25
    figure = new_figure(side * columns, height * rows)
    axes = new_axes(figure, rows, columns).ravel()
    for ax in axes[panels:]:
        ax.axis("off")
    return figure, list(axes[:panels])


def cut_strip(
    image: Any, features: Tensor, grid: tuple[int, int], tau: float, **masks: Any
) -> Figure:
    """From an image to its objects: edges of the middle patch, eigenvector, sides.

    Args:
        image: as in :func:`uss_utils.colours.to_rgb`, (H, W) pixels.
        features: what the graph is made of, shape (h w, C).
        grid: (h, w).
        tau: cosine above which patches are joined.
        **masks: further panels: title -> bool or ids, (h, w) patches or (H, W) pixels.
    """
    rgb, (h, w) = to_rgb(image), grid
    row, column = h // 2, w // 2
    cut = ncut_saliency(features, grid, tau)
    fields = {
        "its edges": affinity(features, tau)[row * w + column].view(grid),
        "eigenvector": cut.eigenvector.view(grid),
    }
    masks = {"one side": cut.partition, "its largest piece": cut.mask} | masks
    figure, axes = _strip(3 + len(masks), rgb.shape)
    axes[0].imshow(rgb)
    down, across = rgb.shape[0] / h, rgb.shape[1] / w
    corner = column * across - 0.5, row * down - 0.5
    axes[0].add_patch(Rectangle(corner, across, down, fill=False, color=ACCENT, lw=2))
    axes[0].set_title("a patch")
    for ax, (title, values) in zip(axes[1:3], fields.items(), strict=True):
        ax.imshow(to_numpy(values), cmap="cividis")
        ax.set_title(title)
    for ax, (title, ids) in zip(axes[3:], masks.items(), strict=True):
        ax.imshow(on_image(rgb, ids))
        ax.set_title(title.replace("_", " "))
    for ax in axes:
        bare(ax)
    return figure


def area_gate(
    image: Any, mask: Any, boxes: Any, limits: tuple[float, float] = (0.01, 0.99)
) -> Figure:
    """Pairs of crops of one image, and which of them hold enough of its object.

    Args:
        image: as in :func:`uss_utils.colours.to_rgb`, (H, W) pixels.
        mask: bool, shape (H, W).
        boxes: top, left, height, width of both crops, shape (n, 2, 4).
        limits: the object's shares of both crops have to lie between them.
    """
    mask, boxes = to_numpy(mask), to_numpy(boxes)
    cut = (mask[t : t + h, x : x + w] for t, x, h, w in boxes.reshape(-1, 4))
    areas = np.array([crop.mean() for crop in cut]).reshape(-1, 2)
    accepted = ((areas > limits[0]) & (areas < limits[1])).all(1)
    figure = new_figure(WIDTH, 3.0)
    axes = new_axes(figure, 1, 3)[0]
    for ax, kind, colour in zip(axes, (True, False), (RIGHT, ACCENT), strict=False):
        ax.imshow(on_image(image, mask))
        few = boxes[accepted == kind][:MOST_PAIRS]
        for top, left, height, width in few.reshape(-1, 4):
            style = {"fill": False, "color": colour, "lw": 1.3, "clip_on": False}
            ax.add_patch(Rectangle((left - 0.5, top - 0.5), width, height, **style))
        word = "accepted" if kind else "rejected"
        ax.set_title(f"{int((accepted == kind).sum())} pairs {word}; {len(few)} shown")
        bare(ax)
    colours = np.where(accepted, RIGHT, ACCENT)
    axes[2].scatter(*(100 * areas.T), s=22, c=colours, edgecolors="white", lw=0.4)
    for limit in limits:
        axes[2].axvline(100 * limit, color="0.5", ls="--", lw=1)
        axes[2].axhline(100 * limit, color="0.5", ls="--", lw=1)
    axes[2].set(xlabel="object in view 1 (%)", ylabel="object in view 2 (%)")
    axes[2].set_title("one dot per pair")
    high = max(4.0, 115 * areas.max())
    axes[2].set(xlim=(-0.04 * high, high), ylim=(-0.04 * high, high))
    return figure


def candidates(
    logits: Tensor, own: Tensor, prototypes: Tensor, groups: Any, names: Sequence[str]
) -> Figure:
    """What the pixels of every object take for their object: prototypes and queue.

    The softmax of an object's pixels is averaged. Objects are sorted by class; white
    lines part the classes, a red one the queue, and red frames mark every object's own
    prototype. Objects without a prototype are left out.

    Args:
        logits: of object pixels, shape (P, O + K): O prototypes, then the queue.
        own: column of each pixel's own prototype, int64 (P,).
        prototypes: shape (O, D); zero where an object has none.
        groups: class of every object, integers (O,).
        names: of the classes.
    """
    n, there = len(prototypes), prototypes.any(1)
    logits = logits[there[own]].clone()
    logits[:, :n][:, ~there] = -torch.inf
    own, groups = own[there[own]], to_numpy(groups)
    pixels = torch.bincount(own, minlength=n)
    shares = torch.zeros(n, logits.shape[1]).index_add_(0, own, logits.softmax(1))
    shares = to_numpy(shares / pixels[:, None].clamp(min=1))
    order = np.argsort(groups, kind="stable")
    order = order[to_numpy(pixels > 0)[order]]
    shares = shares[order][:, [*order, *range(n, shares.shape[1])]]
    figure = new_figure(WIDTH, 4.2)
    ax = new_axes(figure)[0, 0]
    top = np.quantile(np.diagonal(shares), 0.9)
    heat = ax.imshow(shares, cmap="cividis", vmin=0, vmax=top, aspect="auto")
    for i in range(len(order)):
        corner = (i - 0.5, i - 0.5)
        ax.add_patch(Rectangle(corner, 1, 1, fill=False, color=ACCENT, lw=1))
    _part_classes(ax, groups[order], shares.shape[1], names)
    right = float((logits.argmax(1) == own).float().mean())
    alike = (groups[order][:, None] == groups[order]).mean()
    ax.set_title(
        f"{right:.0%} of the pixels find their object; {alike:.0%} of all pairs of "
        "objects share a class"
    )
    ax.set(ylabel="object pixels of", xlabel="prototypes of")
    ax.grid(False)
    figure.colorbar(heat, ax=ax, label="share of the softmax", extend="max")
    return figure


def _part_classes(
    ax: Axes, groups: np.ndarray, columns: int, names: Sequence[str]
) -> None:
    """Lines between sorted objects of different classes, and before the queue."""
    o = len(groups)
    for edge in np.flatnonzero(np.diff(groups)) + 0.5:
        ax.plot([-0.5, o - 0.5], [edge, edge], color="white", lw=0.8)
        ax.plot([edge, edge], [-0.5, o - 0.5], color="white", lw=0.8)
    if columns > o:
        ax.axvline(o - 0.5, color=ACCENT, lw=2)
    present = np.unique(groups)
    middle = [np.flatnonzero(groups == k).mean() for k in present]
    words = [names[k] for k in present]
    ax.set_yticks(middle, words)
    if columns > o:
        middle, words = [*middle, (o + columns - 1) / 2], [*words, "queue"]
    ax.set_xticks(middle, words, rotation=40, ha="right", rotation_mode="anchor")


def loss_landmarks(objects: int, queue: int, temperature: float) -> dict[str, float]:
    """Levels of the contrastive loss between which a training moves.

    Args:
        objects: prototypes O of a batch.
        queue: columns K.
        temperature: T.

    Returns:
        "start": all embeddings alike, the queue random and far from them,
        ``ln(O + K exp(-1/T))``; "stall": the queue alike, too, ``ln(O + K)``; "floor":
        all others orthogonal, ``ln(1 + (O + K - 1) exp(-1/T))``.
    """
    every, far = objects + queue, math.exp(-1 / temperature)
    levels = (objects + queue * far, every, 1 + (every - 1) * far)
    names = ("start", "stall", "floor")
    return {k: math.log(level) for k, level in zip(names, levels, strict=True)}


def landmark_curves(
    history: Any, levels: Mapping[str, Mapping[str, float]], *, smooth: int = 10
) -> Figure:
    """Training curves between levels that theory names.

    Args:
        history: a ``training.History``.
        levels: name of a curve -> name of a level -> where to draw it; one panel each.
        smooth: length of the moving average.
    """
    figure = curves(history, list(levels), smooth=smooth)
    place = {"xycoords": ("axes fraction", "data"), "va": "bottom", "ha": "right"}
    for ax, landmarks in zip(figure.axes, levels.values(), strict=False):
        for word, level in landmarks.items():
            ax.axhline(level, color="0.45", ls="--", lw=1)
            ax.annotate(word, (0.99, level), fontsize=8, **place)
        ax.margins(y=0.12)
    return figure
