"""Drawings that explain: the map of the course, patches, two views of a scene."""

from collections.abc import Mapping
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import (
    ConnectionPatch,
    FancyArrowPatch,
    FancyBboxPatch,
    Rectangle,
)
from matplotlib.textpath import TextPath

from uss_utils.colours import to_numpy, to_rgb
from uss_utils.figures import ACCENT, PLAIN, WIDTH, new_axes, new_figure
from uss_utils.paths import notebooks_dir

# Every notebook of the course: number -> title. Which of them exist is looked up.
NOTEBOOKS = {
    "00": "start here",
    "01": "datasets",
    "02": "dense features",
    "03": "clustering and evaluation",
    "04": "STEGO",
    "05": "hidden positives",
    "06": "proxy anchors",
    "07": "PriMaPs-EM",
    "08": "MaskContrast",
    "09": "HSG",
    "10": "comparison",
    "11": "your images",
    "12": "scaling up",
}
STATIONS = ("images", "features", "code", "clusters", "names")
# What an arrow of the map does.
ARROWS = ("describe\npatches", "learn a\nbetter code", "group", "match to\nclasses")
_SIDE, _GAP, _EDGE = 1.12, 0.78, 0.07  # inches
_STEP = _SIDE + _GAP
# First and last station (as a place from 0 to 4) that a notebook is about, and its row.
_PLACES = {
    "00": (0, 4, None),
    "01": (0, 0, 0),
    "02": (0.62, 1, 0),
    "03": (2.62, 4, 0),
    "10": (2.62, 4, 1),
    "11": (0, 4, 6),
    "12": (0, 4, 7),
} | {f"{4 + i:02}": (1.62, 2, i) for i in range(6)}
_ROW = 0.27
_FONT = 8
_BOTTOM = 8 * _ROW + 0.25  # height below the pictures


def course_map(
    pictures: Mapping[str, Any] | None = None, here: str | None = None
) -> Figure:
    """The way from images to names, and which notebook explains which part of it.

    Notebooks that do not exist yet are drawn dashed.

    Args:
        pictures: name of a station (see :data:`STATIONS`) -> picture shown there, as
            in :func:`uss_utils.colours.to_rgb`, or a few words; the others stay empty.
        here: number of the notebook the reader is in, e.g. "00".

    Raises:
        ValueError: an unknown station or notebook.
    """
    pictures = dict(pictures or {})
    unknown = [n for n in pictures if n not in STATIONS]
    unknown += [here] if here not in (None, *NOTEBOOKS) else []
    if unknown:
        raise ValueError(
            f"{unknown[0]!r} is not on the map; stations: {', '.join(STATIONS)}; "
            f"notebooks: {', '.join(NOTEBOOKS)}"
        )
    height = _BOTTOM + _SIDE + 0.65
    figure = new_figure(WIDTH, height)
    ax = new_axes(figure)[0, 0]
    for i, name in enumerate(STATIONS):
        _station(ax, i, name, pictures.get(name))
    for i, text in enumerate(ARROWS):
        _arrow(ax, i, text)
    present = {p.name[:2] for p in notebooks_dir().glob("[0-9][0-9]_*.ipynb")}
    for number, (first, last, row) in _PLACES.items():
        y = _BOTTOM + _SIDE + 0.34 if row is None else _BOTTOM - 0.33 - row * _ROW
        span = first * _STEP + _EDGE, last * _STEP + _SIDE + _EDGE
        _notebook(ax, number, span, y, number in present, number == here)
    y = _BOTTOM - 0.33 - 5 * _ROW
    _chip(ax, "ready", (_EDGE, _EDGE + 1), y, PLAIN, "solid")
    _chip(ax, "planned", (_EDGE + 1.1, _EDGE + 2.1), y, "0.45", "dashed")
    # After the pictures: each of them moves the limits.
    ax.set(xlim=(0, 4 * _STEP + _SIDE + 2 * _EDGE), ylim=(0, height), aspect="equal")
    ax.axis("off")
    return figure


def _station(ax: Axes, i: int, name: str, picture: Any) -> None:
    left, right = i * _STEP + _EDGE, i * _STEP + _EDGE + _SIDE
    if isinstance(picture, str):
        middle = (left + right) / 2, _BOTTOM + _SIDE / 2
        ax.text(*middle, picture, ha="center", va="center", fontsize=9)
    elif picture is not None:
        rgb = _square(to_rgb(picture))
        extent = (left, right, _BOTTOM, _BOTTOM + _SIDE)
        ax.imshow(rgb, extent=extent, interpolation="nearest")
    ax.add_patch(Rectangle((left, _BOTTOM), _SIDE, _SIDE, fill=False, color="0.3"))
    ax.text(
        (left + right) / 2,
        _BOTTOM + _SIDE + 0.05,
        name,
        ha="center",
        va="bottom",
        weight="bold",
    )


def _square(rgb: np.ndarray) -> np.ndarray:
    """The central square."""
    side = min(rgb.shape[:2])
    top, left = ((n - side) // 2 for n in rgb.shape[:2])
    return rgb[top : top + side, left : left + side]


def _arrow(ax: Axes, i: int, text: str) -> None:
    start = i * _STEP + _EDGE + _SIDE
    y = _BOTTOM + _SIDE / 2
    ax.add_patch(
        FancyArrowPatch(
            (start + 0.06, y),
            (start + _GAP - 0.06, y),
            arrowstyle="-|>",
            mutation_scale=14,
            color="0.3",
            shrinkA=0,
            shrinkB=0,
        )
    )
    middle = start + _GAP / 2
    ax.text(middle, y + 0.1, text, ha="center", va="bottom", fontsize=8)


def _notebook(ax, number, span, y, present: bool, here: bool) -> None:
    text = f"{number} {NOTEBOOKS[number]}"
    if here:
        full = f"{text}: you are here"
        text = full if _fits(full, span) else f"{text}: here"
    colour = ACCENT if here else PLAIN if present else "0.45"
    _chip(ax, text, span, y, colour, "solid" if present else "dashed")


def _fits(text: str, span: tuple[float, float]) -> bool:
    """Whether a box is wide enough; drawn, letters are a little wider."""
    width = TextPath((0, 0), text, size=_FONT).get_extents().width / 72
    return 1.05 * width <= span[1] - span[0] - 0.08


def _chip(ax, text, span, y, colour, linestyle) -> None:
    left, right = span
    filled = linestyle == "solid"
    ax.add_patch(
        FancyBboxPatch(
            (left + 0.04, y),
            right - left - 0.08,
            _ROW - 0.07,
            boxstyle="round,pad=0.02",
            facecolor=colour if filled else "white",
            edgecolor=colour,
            linestyle=linestyle,
        )
    )
    ax.text(
        (left + right) / 2,
        y + (_ROW - 0.07) / 2 - 0.01,
        text,
        ha="center",
        va="center",
        fontsize=_FONT,
        color="white" if filled else "0.3",
    )


def one_patch(image: Any, patch: int, place: tuple[int, int], feature: Any) -> Figure:
    """From an image to one of its patches to the numbers that describe it.

    Args:
        image: as in :func:`uss_utils.colours.to_rgb`, (H, W) pixels.
        patch: side of a patch in pixels.
        place: row and column of the patch to show, counted in patches.
        feature: its numbers, shape (C,).

    Raises:
        ValueError: the place lies outside the image.
    """
    rgb, feature = to_rgb(image), to_numpy(feature)
    grid = rgb.shape[0] // patch, rgb.shape[1] // patch
    row, column = place
    if not (0 <= row < grid[0] and 0 <= column < grid[1]):
        raise ValueError(f"patch {place} lies outside the grid of {grid} patches")
    figure = new_figure(WIDTH, 2.75)
    left, middle, right = new_axes(figure, 1, 3)[0]
    left.imshow(rgb)
    for i in range(1, grid[0]):
        left.axhline(i * patch - 0.5, color="white", lw=0.5, alpha=0.6)
    for j in range(1, grid[1]):
        left.axvline(j * patch - 0.5, color="white", lw=0.5, alpha=0.6)
    y, x = row * patch, column * patch
    box = Rectangle((x - 0.5, y - 0.5), patch, patch, fill=False, color=ACCENT, lw=2)
    left.add_patch(box)
    left.set_title(f"{grid[0]} × {grid[1]} patches, one marked")
    middle.imshow(rgb[y : y + patch, x : x + patch])
    middle.set_title(f"the marked patch: {patch} × {patch} pixels")
    rows = max(n for n in range(1, len(feature) + 1) if _divides(n, len(feature)))
    shown = right.imshow(feature.reshape(rows, -1), cmap="cividis")
    right.set_title(f"its feature: {len(feature)} numbers")
    figure.colorbar(shown, ax=right, shrink=0.85)
    for ax in (left, middle, right):
        ax.axis("off")
    return figure


def _divides(rows: int, n: int) -> bool:
    """Whether n cells fill a table of so many rows that is no higher than wide."""
    return n % rows == 0 and rows * rows <= n


def two_views(
    image: Any,
    boxes: tuple[Any, Any],
    views: tuple[Any, Any],
    pairs: tuple[Any, Any],
) -> Figure:
    """A picture, the two views cut from it, and points of the scene in both.

    Args:
        image: as in :func:`uss_utils.colours.to_rgb`, (H, W) pixels.
        boxes: where the views were cut: left, top, width, height in pixels.
        views: the two views, as in :func:`uss_utils.colours.to_rgb`.
        pairs: the same scene points in the first and in the second view, as (x, y) in
            [-1, 1], shape (P, 2) each.

    Raises:
        ValueError: not as many points in one view as in the other.
    """
    first, second = (to_numpy(points) for points in pairs)
    if first.shape != second.shape or first.shape[1:] != (2,):
        raise ValueError(
            "expected two lists of points of shape (P, 2), got "
            f"{first.shape} and {second.shape}"
        )
    figure = new_figure(WIDTH, WIDTH / 3)
    whole, *panels = new_axes(figure, 1, 3)[0]
    whole.imshow(to_rgb(image))
    whole.set_title("picture and two windows")
    for box, colour in zip(boxes, (ACCENT, PLAIN), strict=True):
        left, top, width, height = to_numpy(box)
        corner = left - 0.5, top - 0.5
        whole.add_patch(
            Rectangle(corner, width, height, fill=False, color=colour, lw=2)
        )
    colours = matplotlib.colormaps["hsv"](np.linspace(0, 1, len(first), endpoint=False))
    places = []
    for ax, view, points, name in zip(
        panels, views, (first, second), ("first", "second"), strict=True
    ):
        rgb = to_rgb(view)
        ax.imshow(rgb)
        ax.set_title(f"{name} view")
        places.append((points + 1) / 2 * [rgb.shape[1], rgb.shape[0]] - 0.5)
        ax.scatter(*places[-1].T, s=28, color=colours, edgecolors="k", zorder=3)
    for start, end, colour in zip(*places, colours, strict=True):
        line = ConnectionPatch(
            start, end, "data", "data", axesA=panels[0], axesB=panels[1], color=colour
        )
        line.set_in_layout(False)
        figure.add_artist(line)
    for ax, colour in zip((whole, *panels), (None, ACCENT, PLAIN), strict=True):
        ax.set(xticks=[], yticks=[])
        ax.grid(False)
        ax.spines[:].set(visible=colour is not None, color=colour, linewidth=2)
    return figure
