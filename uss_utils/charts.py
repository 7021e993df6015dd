"""Numbers as figures: confusion, curves, bars, points. Notebooks say ``plots.…``."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import seaborn
from matplotlib.figure import Figure

from uss_utils.colours import default_palette, to_numpy
from uss_utils.figures import (
    ACCENT,
    PLAIN,
    WIDTH,
    draw_legend,
    new_axes,
    new_figure,
)


def confusion(
    matrix: Any,
    classes: Sequence[str],
    *,
    clusters: Sequence[str] | None = None,
    title: str = "",
) -> Figure:
    """Where the pixels of each class went, as shares of the class (columns sum to 1).

    Args:
        matrix: counts, shape (R, K): rows predicted, columns true.
        classes: names of the K classes.
        clusters: names of the R rows; ``classes``, or numbers where R differs from K.
        title: the finding.
    """
    matrix = to_numpy(matrix).astype(float)
    if matrix.ndim != 2 or matrix.shape[1] != len(classes):
        raise ValueError(
            f"expected a matrix with {len(classes)} columns, one per class, got shape "
            f"{matrix.shape}"
        )
    if clusters is None:
        square = len(matrix) == len(classes)
        clusters = list(classes) if square else [str(i) for i in range(len(matrix))]
    total = matrix.sum(axis=0, keepdims=True)
    share = np.divide(matrix, total, out=np.full_like(matrix, np.nan), where=total > 0)
    figure = new_figure(1.9 + 0.52 * len(classes), 1.3 + 0.36 * len(matrix))
    ax = new_axes(figure)[0, 0]
    ax.grid(False)
    seaborn.heatmap(
        share,
        ax=ax,
        vmin=0,
        vmax=1,
        cmap="cividis",
        annot=len(classes) <= 12,
        fmt=".2f",
        annot_kws={"fontsize": 8},
        xticklabels=list(classes),
        yticklabels=list(clusters),
        cbar_kws={"label": "share of the class"},
    )
    ax.set(xlabel="true class", ylabel="predicted", title=title)
    ax.tick_params(axis="x", rotation=45)
    for text in ax.get_xticklabels():
        text.set(ha="right", rotation_mode="anchor")
    return figure


def curves(
    history: Any,
    names: Sequence[str] | None = None,
    *,
    smooth: int = 1,
    one_scale: bool = False,
    title: str = "",
) -> Figure:
    """Training curves, one small panel per quantity.

    Args:
        history: a ``training.History``, its list of rows, or name -> values.
        names: quantities to show; all numbers but "step" when None.
        smooth: length of the moving average drawn over the raw values.
        one_scale: all panels show the same range of values.
        title: the finding.

    Raises:
        ValueError: nothing to draw, or an unknown name.
    """
    series = _series(history)
    names = [n for n in series if n != "step"] if names is None else list(names)
    unknown = sorted(set(names) - set(series))
    if unknown or not names:
        raise ValueError(
            f"no curve named {', '.join(unknown) or '(none)'}; there are: "
            f"{', '.join(n for n in series if n != 'step') or 'none'}"
        )
    columns = min(len(names), 3)
    rows = -(-len(names) // columns)
    figure = new_figure(1.0 + 3.0 * columns, 2.3 * rows)
    grid = new_axes(figure, rows, columns).ravel()
    for ax, name in zip(grid, names, strict=False):
        x, y = series[name]
        if one_scale and ax is not grid[0]:
            ax.sharey(grid[0])
        ax.plot(x, y, color=PLAIN, alpha=0.35 if smooth > 1 else 1)
        if smooth > 1 and len(y) >= smooth:
            mean = np.convolve(y, np.ones(smooth) / smooth, mode="valid")
            start = (smooth - 1) // 2  # the mean stands in the middle of its window
            ax.plot(x[start : start + len(mean)], mean, color=PLAIN)
        ax.set(xlabel="step", title=name.replace("_", " "))
    for ax in grid[len(names) :]:
        ax.axis("off")
    if title:
        figure.suptitle(title)
    return figure


def _series(history: Any) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Name -> (steps, values) of every number that a history holds."""
    if isinstance(history, Mapping):
        return {
            name: (np.arange(len(values)), np.asarray(values, dtype=float))
            for name, values in history.items()
        }
    found: dict[str, list[tuple[float, float]]] = {}
    for i, row in enumerate(getattr(history, "rows", history)):
        for name, value in row.items():
            if isinstance(value, int | float) and not isinstance(value, bool):
                found.setdefault(name, []).append((row.get("step", i), value))
    return {name: tuple(np.array(pairs).T) for name, pairs in found.items()}


def bar_ladder(
    rows: Mapping[str, Any],
    *,
    xlabel: str = "mIoU (%)",
    title: str = "",
    highlight: str | None = None,
) -> Figure:
    """Methods from top to bottom: mean ± standard deviation over seeds, a dot per seed.

    Args:
        rows: name -> one number or one per seed.
        xlabel: what the numbers are.
        title: the finding.
        highlight: name of the row to colour.
    """
    values = {k: np.atleast_1d(to_numpy(v)).astype(float) for k, v in rows.items()}
    means = [v.mean() for v in values.values()]
    spread = [v.std(ddof=1) if len(v) > 1 else 0.0 for v in values.values()]
    figure = new_figure(6.5, 0.5 + 0.32 * len(values) + (0.25 if title else 0))
    ax = new_axes(figure)[0, 0]
    colours = [ACCENT if name == highlight else PLAIN for name in values]
    bars = {"color": colours, "ecolor": "0.3", "capsize": 3}
    ax.barh(list(values), means, xerr=spread if any(spread) else None, **bars)
    for i, (found, mean, sd) in enumerate(
        zip(values.values(), means, spread, strict=True)
    ):
        if len(found) > 1:
            dots = {"color": "0.1", "markersize": 4, "markeredgecolor": "white"}
            ax.plot(found, [i] * len(found), "o", markeredgewidth=0.6, **dots)
        text = f"{mean:.1f} ± {sd:.1f}" if sd else f"{mean:.1f}"
        end = (max(mean + sd, found.max()), i)
        ax.annotate(text, end, xytext=(5, 0), textcoords="offset points", va="center")
    ax.invert_yaxis()
    ax.margins(x=0.22)  # room for the numbers
    ax.grid(False, axis="y")
    ax.set(xlabel=xlabel, title=title)
    return figure


def iou_bars(
    iou: Any, classes: Sequence[str], palette: Any = None, *, title: str = ""
) -> Figure:
    """IoU of every class, for one method or several side by side.

    Args:
        iou: shape (K,), or name of a method -> (K,) or its ``Scores``; in [0, 1] or
            percent, NaN or None where a class does not occur.
        classes: K names.
        palette: uint8 (K, 3), the bars' colours when there is one method.
        title: the finding.
    """
    table = iou if isinstance(iou, Mapping) else {"": iou}
    table = {
        k: np.array(to_numpy(getattr(v, "iou", v)), dtype=float)
        for k, v in table.items()
    }
    wrong = {k: v.shape for k, v in table.items() if v.shape != (len(classes),)}
    if wrong:
        raise ValueError(f"expected {len(classes)} values per method, got {wrong}")
    figure = new_figure(max(4.5, 0.75 * len(classes) + 1), 2.6)
    ax = new_axes(figure)[0, 0]
    x, width = np.arange(len(classes)), 0.8 / len(table)
    for i, (name, values) in enumerate(table.items()):
        single = len(table) == 1 and palette is not None
        colour = to_numpy(palette)[: len(classes)] / 255 if single else None
        place = x + (i - (len(table) - 1) / 2) * width
        ax.bar(place, np.nan_to_num(values), width, label=name, color=colour)
        for position in place[np.isnan(values)]:
            ax.annotate("absent", (position, 0), rotation=90, ha="center", fontsize=8)
    ax.set_xticks(x, classes, rotation=40, ha="right", rotation_mode="anchor")
    ax.grid(False, axis="x")
    ax.set(ylabel="IoU", title=title)
    if len(table) > 1:
        figure.legend(ncols=min(len(table), 6), loc="outside upper center")
    return figure


def similarities(
    tables: Mapping[str, Any],
    classes: Sequence[str],
    *,
    limits: tuple[float, float] | None = None,
) -> Figure:
    """How similar classes are to each other, one square table per panel.

    Args:
        tables: title of a panel -> similarities, shape (K, K); NaN is left white.
        classes: names of the K classes.
        limits: values of the darkest and the brightest colour; the extremes of all
            tables when None.

    Raises:
        ValueError: no table, or one that is not (K, K).
    """
    # Plus zero: a negative zero would be written "-0.00".
    values = {title: to_numpy(t).astype(float) + 0.0 for title, t in tables.items()}
    k = len(classes)
    wrong = {title: v.shape for title, v in values.items() if v.shape != (k, k)}
    if wrong or not values:
        raise ValueError(
            f"expected tables of {k} by {k} similarities, got {wrong or 'none'}"
        )
    every = np.stack(list(values.values()))
    low, high = limits or (np.nanmin(every), np.nanmax(every))
    figure = new_figure(1.4 + 3.6 * len(values), 4.1)
    panels = new_axes(figure, 1, len(values))[0]
    for i, (ax, (title, table)) in enumerate(zip(panels, values.items(), strict=True)):
        ax.grid(False)
        seaborn.heatmap(
            table,
            ax=ax,
            vmin=low,
            vmax=high,
            cmap="cividis",
            square=True,
            cbar=False,
            annot=k <= 12,
            fmt=".2f" if k <= 8 else ".1f",
            annot_kws={"fontsize": 8},
            xticklabels=list(classes),
            yticklabels=list(classes) if i == 0 else False,
        )
        ax.set_title(title)
        ax.tick_params(axis="x", rotation=45)
        for text in ax.get_xticklabels():
            text.set(ha="right", rotation_mode="anchor")
    return figure


def class_bands(
    tables: Mapping[str, Any], classes: Sequence[str], palette: Any
) -> Figure:
    """Which classes occur at which height of the pictures, one panel per table.

    Args:
        tables: title of a panel -> counts, one row per row of pixels from the top, one
            column per class; a row without counts stays white.
        classes: names of the K classes.
        palette: uint8, shape (K, 3).

    Raises:
        ValueError: no table, or one that has not K columns.
    """
    counts = {title: to_numpy(table).astype(float) for title, table in tables.items()}
    k = len(classes)
    wrong = {title: t.shape for title, t in counts.items() if t.shape[1:] != (k,)}
    if wrong or not counts:
        raise ValueError(
            f"expected tables with {k} columns, one per class, got {wrong or 'none'}"
        )
    figure = new_figure(4.2 * len(counts), 3.0)
    panels = new_axes(figure, 1, len(counts))[0]
    for ax, (title, table) in zip(panels, counts.items(), strict=True):
        total = table.sum(axis=1, keepdims=True)
        share = np.divide(table, total, out=np.zeros_like(table), where=total > 0)
        edge = np.pad(100 * share.cumsum(axis=1), ((0, 0), (1, 0)))
        height = 100 * (np.arange(len(edge)) + 0.5) / len(edge)
        for i, colour in enumerate(to_numpy(palette)[:k] / 255):
            ax.fill_betweenx(height, edge[:, i], edge[:, i + 1], color=colour, lw=0)
        ax.set(xlim=(0, 100), ylim=(100, 0), title=title, xlabel="share of the row (%)")
        ax.grid(False)
    panels[0].set_ylabel("height, from the top (%)")
    draw_legend(figure, classes, palette)
    return figure


def point_groups(x: Any, panels: Mapping[str, tuple[Any, Any]]) -> Figure:
    """Points of the plane in the colours of their clusters, centroids as crosses.

    Args:
        x: points, shape (N, 2).
        panels: title of a panel -> cluster of every point, integers (N,), and the
            centroids, shape (K, 2).

    Raises:
        ValueError: no panel, or points that are not of the plane.
    """
    x = to_numpy(x)
    if x.ndim != 2 or x.shape[1] != 2 or not panels:
        raise ValueError(
            f"expected points of shape (N, 2) and at least one panel, got {x.shape} "
            f"and {len(panels)} panels"
        )
    side = min(2.9, WIDTH / len(panels))
    figure = new_figure(side * len(panels), side + 0.2)
    axes = new_axes(figure, 1, len(panels))[0]
    for ax, (title, parts) in zip(axes, panels.items(), strict=True):
        assignment, centroids = map(to_numpy, parts)
        colours = default_palette(2 * len(centroids))[::2] / 255  # the darker half
        ax.scatter(*x.T, s=14, color=colours[assignment])
        ax.scatter(
            *centroids.T, s=110, marker="X", color=colours, edgecolors="k", zorder=3
        )
        ax.set(title=title, xticks=[], yticks=[])
        ax.set_aspect("equal", adjustable="datalim")
    return figure
