"""Methods side by side as figures: seeds, maps, classes, costs, the same pictures."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import seaborn
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import EngFormatter, LogLocator, NullLocator
from matplotlib.transforms import Bbox

from uss_utils.colours import colourise, to_numpy, to_rgb
from uss_utils.figures import (
    ACCENT,
    PLAIN,
    WIDTH,
    draw_legend,
    new_axes,
    new_figure,
)
from uss_utils.records import scores

COSTS = {
    "seconds": "seconds of training (log scale)",
    "parameters": "parameters trained (log scale)",
}
# Of a name beside its point, in points of type: right and up; the first is the best.
PLACES = ((6, 3), (-6, 3), (6, -3), (-6, -3), (0, 7), (0, -7), (0, 18), (0, -18))
COLUMNS = 5  # panels beside each other
OWN = "#8c8c8c"  # methods that train a network of their own stand apart
OWN_LABEL = "† a whole network trained"

Rows = Sequence[Mapping[str, Any]]


def seed_points(rows: Rows, *, title: str = "") -> Figure:
    """Every seed of every method as a point, clusters and linear probe.

    Args:
        rows: of :func:`uss_utils.comparison.rows`.
        title: the finding.
    """
    figure = new_figure(WIDTH, 0.9 + 0.36 * len(rows))
    ax = _named_rows(figure, rows)
    kinds = {"linear.miou": ("D", "none"), "cluster.train.miou": ("o", PLAIN)}
    for score, (mark, face) in kinds.items():
        label = "linear probe" if score == "linear.miou" else "clusters"
        for y, row in enumerate(rows):
            values = _values(row, score)
            style = {"marker": mark, "facecolors": face, "edgecolors": PLAIN}
            ax.scatter(values, [y] * len(values), s=32, label=label, **style)
            label = "_"  # once in the legend
    ax.set(xlabel="mIoU in percent, one mark per seed", title=title)
    ax.set_xlim(left=0)
    _legend(figure, rows)
    return figure


def both_maps(rows: Rows, *, measure: str = "miou", title: str = "") -> Figure:
    """Clusters under both ways to name them, joined by a line per seed.

    Args:
        rows: of :func:`uss_utils.comparison.rows`.
        measure: "miou" or "acc".
        title: the finding.
    """
    figure = new_figure(WIDTH, 0.9 + 0.36 * len(rows))
    ax = _named_rows(figure, rows)
    for y, row in enumerate(rows):
        train, held = (
            _values(row, f"cluster.{on}.{measure}") for on in ("train", "eval")
        )
        place = y + np.linspace(-0.22, 0.22, len(held)) * (len(held) > 1)
        if len(train) == len(held):
            ax.hlines(place, train, held, color=OWN, linewidth=1.5)
            ax.scatter(train, place, color=PLAIN, s=14, zorder=3)
        # A ring, so that both marks are seen where they agree.
        ax.scatter(held, place, s=52, facecolors="none", edgecolors=ACCENT, zorder=4)
    split = rows[0]["split"] if rows else "val"
    ax.scatter([], [], color=PLAIN, s=14, label="named by training labels")
    named = f"named by the labels of {split}"
    ax.scatter([], [], s=52, facecolors="none", edgecolors=ACCENT, label=named)
    label = {"miou": "cluster mIoU", "acc": "accuracy of the clusters"}[measure]
    ax.set(xlabel=f"{label} in percent, one mark of each per seed", title=title)
    _legend(figure, rows)
    return figure


def _legend(figure: Figure, rows: Rows) -> None:
    """The marks, and the grey band where there is one."""
    handles, labels = figure.axes[0].get_legend_handles_labels()
    if any(row["own_network"] for row in rows):
        handles.append(Patch(color=OWN, alpha=0.25, linewidth=0))
        labels.append(OWN_LABEL)
    figure.legend(handles, labels, loc="outside upper right", ncols=3)


def _named_rows(figure: Figure, rows: Rows) -> Axes:
    """Axes with one method per line, first at the top; own networks shaded."""
    if not rows:
        raise ValueError("no method has records; complete the study first")
    ax = new_axes(figure)[0, 0]
    ax.set_yticks(range(len(rows)), [row["title"] for row in rows])
    ax.set_ylim(len(rows) - 0.5, -0.5)
    for y, row in enumerate(rows):
        if row["own_network"]:
            ax.axhspan(y - 0.5, y + 0.5, color=OWN, alpha=0.12, linewidth=0)
    return ax


def _values(row: Mapping[str, Any], score: str) -> list[float]:
    found = (scores(record).get(score) for record in row["records"])
    return [value for value in found if value is not None]


def win_map(names: Sequence[str], share: np.ndarray, *, title: str = "") -> Figure:
    """How often the method of a row beats that of a column, over all pairs of seeds.

    Args:
        names: titles of the methods.
        share: of :func:`uss_utils.comparison.wins`, (M, M).
        title: the finding.
    """
    figure = new_figure(2.6 + 0.62 * len(names), 1.3 + 0.36 * len(names))
    label = "row wins, % of the pairs of seeds"
    ax = _heat(figure, 100 * share, names, names, label, (0, 100), "vlag")
    ax.patch.set(hatch="///", edgecolor="0.75")  # seen where there is no cell
    ax.set(title=title, xlabel="against this one", ylabel="this method")
    return figure


def class_map(
    iou: Mapping[str, Any],
    classes: Sequence[str],
    *,
    against: str | None = None,
    title: str = "",
) -> Figure:
    """IoU of every class under every method, or what a method gains on another.

    Args:
        iou: title of a method -> percent (K,); NaN where a class does not occur.
        classes: K names.
        against: title of the method whose scores are subtracted; None: none.
        title: the finding.

    Raises:
        ValueError: no method, other numbers of classes, or an unknown ``against``.
    """
    table = {name: np.array(to_numpy(v), dtype=float) for name, v in iou.items()}
    wrong = {k: v.shape for k, v in table.items() if v.shape != (len(classes),)}
    if wrong or not table:
        raise ValueError(f"expected {len(classes)} values per method, got {wrong}")
    if against is not None and against not in table:
        raise ValueError(f"no method {against!r}; there are: {', '.join(table)}")
    values = np.stack(list(table.values()))
    limits, label, colours = (0, max(np.nanmax(values), 1)), "IoU, percent", "cividis"
    if against is not None:
        values = values - table[against]
        far = max(float(np.nanmax(np.abs(values))), 1)
        limits, label, colours = (-far, far), f"points above {against}", "vlag"
    figure = new_figure(2.9 + 0.62 * len(classes), 1.2 + 0.36 * len(table))
    ax = _heat(figure, values, list(table), classes, label, limits, colours)
    ax.set(title=title)
    return figure


def _heat(
    figure: Figure,
    values: np.ndarray,
    names: Sequence[str],
    columns: Sequence[str],
    label: str,
    limits: tuple[float, float],
    colours: str = "cividis",
) -> Axes:
    """A heat map with a number in every cell."""
    ax = new_axes(figure)[0, 0]
    ax.grid(False)
    seaborn.heatmap(
        np.round(values) + 0.0,  # no -0
        ax=ax,
        vmin=limits[0],
        vmax=limits[1],
        cmap=colours,
        annot=len(columns) <= 30,
        fmt=".0f",
        annot_kws={"fontsize": 8},
        xticklabels=list(columns),
        yticklabels=list(names),
        cbar_kws={"label": label},
    )
    ax.tick_params(axis="y", rotation=0)
    ax.tick_params(axis="x", rotation=45)
    for text in ax.get_xticklabels():
        text.set(ha="right", rotation_mode="anchor")
    return ax


def cost_against_quality(rows: Rows, cost: str = "seconds") -> Figure:
    """What a method costs and what its clusters are worth, with the spread of seeds.

    Args:
        rows: of :func:`uss_utils.comparison.rows`; those whose cost nobody noted are
            named beneath.
        cost: "seconds" or "parameters".

    Raises:
        ValueError: another cost.
    """
    if cost not in COSTS:
        raise ValueError(f"unknown cost {cost!r}; known: {', '.join(COSTS)}")
    figure = new_figure(6.6, 3.4)
    ax = new_axes(figure)[0, 0]
    known = [r for r in rows if r.get(cost) and r.get("cluster.train.miou") is not None]
    for row in known:
        x, y = row[cost], row["cluster.train.miou"]
        colour = OWN if row["own_network"] else PLAIN
        spread = row["cluster.train.miou.sd"] or 0
        ax.errorbar(x, y, yerr=spread, fmt="o", color=colour, capsize=3)
    ax.set_xscale("log")
    least, most = (f((r[cost] for r in known), default=1) for f in (min, max))
    ax.xaxis.set_major_locator(
        LogLocator(subs=(1, 2, 5) if most < 100 * least else (1,))
    )
    ax.xaxis.set_major_formatter(EngFormatter(sep=""))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.margins(x=0.25, y=0.15)
    ax.set_ylim(bottom=0)
    ax.set(xlabel=COSTS[cost], ylabel="cluster mIoU, mean ± sd")
    if any(row["own_network"] for row in known):
        ax.plot([], [], "o", color=OWN, label=OWN_LABEL)
        figure.legend(loc="outside upper right")
    _place_labels(ax, known, cost)
    absent = [row["title"] for row in rows if row not in known]
    if absent:
        figure.suptitle(f"not noted: {', '.join(absent)}", fontsize=8)
    return figure


def _place_labels(ax: Axes, rows: Rows, cost: str) -> None:
    """Names beside their points, each at the first place that is still free."""
    ax.figure.draw_without_rendering()  # settles where the points lie
    points = [(row[cost], row["cluster.train.miou"]) for row in rows]
    dots = ax.transData.transform(points) if points else []
    taken = [Bbox.from_extents(*(dot - 4), *(dot + 4)) for dot in dots]
    sides = {1: "left", -1: "right", 0: "center"}
    for row, point in zip(rows, points, strict=True):
        style = {"textcoords": "offset points", "fontsize": 8}
        name = ax.annotate(row["title"], point, PLACES[0], **style)
        for right, up in PLACES:
            name.set_position((right, up))
            name.set_horizontalalignment(sides[int(np.sign(right))])
            name.set_verticalalignment("bottom" if up > 0 else "top")
            box = name.get_window_extent()
            if not box.count_overlaps(taken):
                break
        taken.append(box)


def same_picture(
    image: Any,
    truth: Any,
    guesses: Mapping[str, Any],
    *,
    palette: Any,
    classes: Sequence[str],
    marks: Mapping[str, float] | None = None,
) -> Figure:
    """One picture, its truth, and what every method says.

    Args:
        image: normalised (3, H, W), or uint8 (H, W, 3).
        truth: classes, -1 = ignored, (H, W).
        guesses: title of a method -> classes, (H, W).
        palette: uint8 (K, 3).
        classes: K names.
        marks: title -> mIoU of this picture, in percent, for the titles.
    """
    panels = {"picture": to_rgb(image), "truth": colourise(truth, palette)}
    for name, guess in guesses.items():
        mark = "" if marks is None else f"  {marks[name]:.0f}"
        panels[name + mark] = colourise(guess, palette)
    lines = -(-len(panels) // COLUMNS)
    height, width = np.shape(panels["picture"])[:2]
    side = WIDTH / COLUMNS
    figure = new_figure(WIDTH, (side * height / width + 0.25) * lines + 0.3)
    axes = new_axes(figure, lines, COLUMNS).ravel()
    for ax, (name, pixels) in zip(axes, panels.items(), strict=False):
        ax.imshow(pixels)
        ax.set_title(name, fontsize=9)
    for ax in axes:
        ax.axis("off")
    draw_legend(figure, classes, palette)
    return figure


def worst_pictures(
    images: Any,
    truth: Any,
    guesses: Mapping[str, Any],
    marks: Mapping[str, Any],
    *,
    palette: Any,
    classes: Sequence[str],
) -> Figure:
    """For every method the picture that it segments worst, chosen by score.

    Args:
        images: normalised, (N, 3, H, W).
        truth: classes, (N, H, W).
        guesses: title of a method -> classes, (N, H, W).
        marks: title of a method -> mIoU of every picture in percent, (N,); NaN: none.
        palette: uint8 (K, 3).
        classes: K names.
    """
    size = np.shape(truth)[1:]
    side = WIDTH / len(guesses)
    figure = new_figure(WIDTH, 3 * side * size[0] / size[1] + 0.9)
    axes = new_axes(figure, 3, len(guesses))
    for column, (name, guess) in enumerate(guesses.items()):
        i = int(np.nanargmin(to_numpy(marks[name])))
        axes[0, column].imshow(to_rgb(images[i]))
        axes[1, column].imshow(colourise(truth[i], palette))
        axes[2, column].imshow(colourise(guess[i], palette))
        mark = float(marks[name][i])
        axes[0, column].set_title(f"{_short(name)}\n{mark:.0f}", fontsize=8)
    for ax in axes.ravel():
        ax.set(xticks=[], yticks=[])
        ax.grid(False)
    for ax, word in zip(axes[:, 0], ("picture", "truth", "predicted"), strict=True):
        ax.set_ylabel(word)
    draw_legend(figure, classes, palette)
    return figure


def _short(name: str) -> str:
    return name if len(name) <= 14 else name.replace(" ", "\n", 1)
