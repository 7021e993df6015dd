"""Many values at once as figures: histograms, and how well a score finds pairs."""

from collections.abc import Mapping
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from uss_utils.colours import to_numpy
from uss_utils.figures import ACCENT, PLAIN, new_axes, new_figure

BINS = 60
OUTSIDE = 0.1  # percent of the values that a histogram may leave out on either side
MOST_POINTS = 500  # drawn of a curve


def split_histogram(
    panels: Mapping[str, Any],
    limits: Mapping[str, float] | float,
    *,
    sides: tuple[str, str] = ("below", "above"),
    xlabel: str = "",
    title: str = "",
) -> Figure:
    """Histograms with a limit, and how many of the values lie on either side of it.

    Args:
        panels: title of a panel -> values, any shape; all panels share one axis.
        limits: the limit of every panel by its title, or one for all.
        sides: what values below and above the limit are called.
        xlabel: what the values are.
        title: the finding.

    Raises:
        ValueError: no panel, or values that are none or not finite.
    """
    values = _flat(panels)
    if not isinstance(limits, Mapping):
        limits = dict.fromkeys(values, limits)
    low, high = _range(list(values.values()))
    edges = np.linspace(low, high, BINS + 1)
    figure = new_figure(3.0 * len(values), 2.4)
    for ax, (name, found) in zip(
        new_axes(figure, 1, len(values))[0], values.items(), strict=True
    ):
        limit = float(limits[name])
        above = float((found > limit).mean())
        count, _ = np.histogram(found.clip(low, high), edges)
        # A bar belongs to the side of its middle; the shares count the values.
        colours = np.where((edges[:-1] + edges[1:]) / 2 > limit, ACCENT, PLAIN)
        ax.bar(edges[:-1], count, np.diff(edges), align="edge", color=colours)
        ax.axvline(limit, color="0.1", lw=1.5)
        shares = f"{1 - above:.0%} {sides[0]}, {above:.0%} {sides[1]}"
        ax.set(title=f"{name}\n{shares}", xlabel=xlabel, yticks=[])
        ax.set_xlim(min(low, limit), max(high, limit))
        ax.grid(False, axis="y")
    if title:
        figure.suptitle(title)
    return figure


def histograms(
    panels: Mapping[str, Mapping[str, Any]], *, xlabel: str = "", title: str = ""
) -> Figure:
    """Outlines of several histograms per panel, from dark (first) to bright (last).

    Args:
        panels: title of a panel -> name of a histogram -> values, any shape. Every
            histogram has the same area; all panels share one axis.
        xlabel: what the values are.
        title: the finding.

    Raises:
        ValueError: no panel, panels that differ in their names, or values that are
            none or not finite.
    """
    values = {name: _flat(parts) for name, parts in panels.items()}
    names = [tuple(parts) for parts in values.values()]
    if not names or set(names) != {names[0]}:
        raise ValueError(
            f"every panel needs the same histograms, got {names or 'no panel'}"
        )
    every = [found for parts in values.values() for found in parts.values()]
    edges = np.linspace(*_range(every), BINS + 1)
    shades = np.linspace(0, 0.85, len(names[0]))
    figure = new_figure(3.0 * len(values), 2.5)
    axes = new_axes(figure, 1, len(values))[0]
    for ax, (name, parts) in zip(axes, values.items(), strict=True):
        for (label, found), shade in zip(parts.items(), shades, strict=True):
            count, _ = np.histogram(found.clip(edges[0], edges[-1]), edges)
            colour = matplotlib.colormaps["cividis"](shade)
            ax.stairs(count / count.sum(), edges, color=colour, lw=1.6, label=label)
        ax.set(title=name, xlabel=xlabel, yticks=[])
        ax.grid(False, axis="y")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(
        handles, labels, ncols=min(len(labels), 6), loc="outside lower center"
    )
    if title:
        figure.suptitle(title)
    return figure


def retrieval_curves(
    curves: Mapping[str, tuple[Any, Any]],
    chance: float | None = None,
    *,
    title: str = "",
) -> Figure:
    """Precision over recall of several scores.

    Args:
        curves: name of a score -> precision and recall in [0, 1], as
            :func:`uss_utils.similarity.precision_recall` gives them.
        chance: share of all pairs that are relevant: the precision of a blind guess.
        title: the finding.

    Raises:
        ValueError: no curve.
    """
    if not curves:
        raise ValueError("retrieval_curves needs at least one curve")
    figure = new_figure(4.6, 3.0)
    ax = new_axes(figure)[0, 0]
    for name, parts in curves.items():
        precision, recall = map(to_numpy, parts)
        # Equally spaced in recall: the dense end would take all points otherwise.
        wanted = np.linspace(recall[0], recall[-1], MOST_POINTS)
        place = np.unique(np.searchsorted(recall, wanted).clip(max=len(recall) - 1))
        ax.plot(recall[place], precision[place], label=name)
    if chance is not None:
        ax.axhline(chance, color="0.5", ls="--", lw=1, label="blind guess")
    ax.set(xlim=(0, 1), ylim=(0, 1.02), xlabel="recall", ylabel="precision")
    ax.set_title(title)
    figure.legend(loc="outside right upper")
    return figure


def _flat(panels: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Values as flat float arrays, checked."""
    if not panels:
        raise ValueError("a histogram needs at least one set of values")
    values = {name: to_numpy(v).ravel().astype(float) for name, v in panels.items()}
    for name, found in values.items():
        if not found.size or not np.isfinite(found).all():
            raise ValueError(f"the values of {name!r} are none, or not all finite")
    return values


def _range(values: list[np.ndarray]) -> tuple[float, float]:
    """Common axis without the rarest values, which would squeeze all others."""
    ends = [np.percentile(found, (OUTSIDE, 100 - OUTSIDE)) for found in values]
    low, high = min(e[0] for e in ends), max(e[1] for e in ends)
    return (low, high) if high > low else (low - 0.5, high + 0.5)
