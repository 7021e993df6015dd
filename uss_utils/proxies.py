"""Proxies that walk, as figures: on the unit circle, and what their path changes."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from uss_utils.colours import to_numpy
from uss_utils.distributions import BINS
from uss_utils.figures import ACCENT, PLAIN, WIDTH, draw_legend, new_axes, new_figure

# What an anchor takes another patch for, in the order of the numbers of `zones`.
ZONES = ("negatives", "ambiguous", "positives")
ZONE_COLOURS = np.array(
    [[76, 114, 176], [214, 210, 200], [221, 132, 82]], dtype=np.uint8
)
MOST_PANELS = 5
MOST_LINES = 60


def blobs_on_circle(
    blobs: Sequence[tuple[float, float, int]], generator: torch.Generator
) -> Tensor:
    """Points of the unit circle in von Mises blobs.

    Args:
        blobs: middle in degrees, concentration (large = narrow), number of points.
        generator: CPU generator.

    Returns:
        Unit vectors, shape (N, 2), blob by blob.
    """
    # torch draws such angles from its global generator alone.
    seed = int(torch.randint(2**31, (1,), generator=generator))
    draw = np.random.default_rng(seed)
    angles = [draw.vonmises(np.radians(at), kappa, n) for at, kappa, n in blobs]
    angle = torch.from_numpy(np.concatenate(angles)).float()
    return torch.stack([angle.cos(), angle.sin()], 1)


def zones(sim: Any, phi: Any, psi: Any) -> np.ndarray:
    """What patches are to an anchor: 0 negative, 1 ambiguous, 2 positive.

    Args:
        sim: cosines to the proxy, any shape.
        phi: boundary of the positives.
        psi: boundary of the negatives; beyond both, a patch is a positive.

    Returns:
        int64, the shape of ``sim``.
    """
    sim, phi, psi = map(to_numpy, (sim, phi, psi))
    return np.where(sim > phi, 2, np.where(sim < psi, 0, 1)).astype(np.int64)


def walk_on_circle(points: Any, way: Sequence[tuple[Any, Any, Any]]) -> Figure:
    """A proxy's path on the unit circle, one panel per moment.

    Points are drawn a little outside the circle, so that dense places show. The arc
    inside says what a point there would be; stars are the proxy's places so far.

    Args:
        points: unit vectors, shape (N, 2).
        way: at the anchor and after every step the proxy, shape (2,), phi and psi; of a
            long path some moments are shown, the first and the last among them.

    Raises:
        ValueError: points or places that are not of the plane.
    """
    points = to_numpy(points)
    trail = np.stack([to_numpy(place) for place, _, _ in way])
    if points.shape[1:] != (2,) or trail.shape != (len(way), 2):
        raise ValueError(
            f"expected points (N, 2) and places of a proxy ({len(way)}, 2), got "
            f"{points.shape} and {trail.shape}"
        )
    shown = np.linspace(0, len(way) - 1, min(MOST_PANELS, len(way))).round().astype(int)
    side = min(2.4, WIDTH / len(shown))
    figure = new_figure(side * len(shown), side + 0.7)
    for ax, t in zip(new_axes(figure, 1, len(shown))[0], shown, strict=True):
        _circle(ax, points, trail[: t + 1], float(way[t][1]), float(way[t][2]))
        name = "start" if t == 0 else f"step {t}"
        ax.set_title(f"{name}\nΦ {way[t][1]:.2f}, Ψ {way[t][2]:.2f}")
    draw_legend(figure, ZONES, ZONE_COLOURS)
    return figure


def _circle(
    ax: Axes, points: np.ndarray, trail: np.ndarray, phi: float, psi: float
) -> None:
    angle = np.linspace(0, 2 * np.pi, 361)
    circle = np.stack([np.cos(angle), np.sin(angle)])
    proxy, colours = trail[-1], ZONE_COLOURS / 255
    arc = zones(proxy @ circle, phi, psi)
    ax.scatter(*(0.86 * circle), s=18, color=colours[arc], lw=0)
    ax.plot(*circle, color="0.6", lw=0.8)
    # How far outside the circle a point is means nothing: any fixed pattern does.
    far = 1.06 + 0.22 * (np.arange(len(points)) * 0.618 % 1)
    found = zones(points @ proxy, phi, psi)
    outside = (far[:, None] * points).T
    edge = {"edgecolors": "0.35", "linewidths": 0.4}
    ax.scatter(*outside, s=14, color=colours[found], **edge)
    ax.plot([0, proxy[0]], [0, proxy[1]], color="0.3", lw=1)
    ax.plot(*trail.T, "*", ms=11, color="0.75", mec="0.1", mew=0.6)
    ax.plot(*proxy[:, None], "*", ms=14, color=ACCENT, mec="0.1", mew=0.6)
    ax.set(xlim=(-1.35, 1.35), ylim=(-1.35, 1.35), aspect="equal")
    ax.axis("off")


def zone_histograms(
    panels: Mapping[str, tuple[Any, float, float]],
    *,
    xlabel: str = "cosine with the proxy",
) -> Figure:
    """Histograms of cosines, coloured by what they make of a patch.

    Args:
        panels: title of a panel -> cosines (any shape), phi and psi; all panels share
            one axis.
        xlabel: what the values are.

    Raises:
        ValueError: no panel.
    """
    if not panels:
        raise ValueError("zone_histograms needs at least one panel")
    values = {name: to_numpy(parts[0]).ravel() for name, parts in panels.items()}
    low = min(found.min() for found in values.values())
    edges = np.linspace(low, 1, BINS + 1)
    figure = new_figure(3.0 * len(panels), 2.6)
    axes = new_axes(figure, 1, len(panels))[0]
    for ax, (name, (_, phi, psi)) in zip(axes, panels.items(), strict=True):
        count, _ = np.histogram(values[name], edges)
        zone = zones((edges[:-1] + edges[1:]) / 2, float(phi), float(psi))
        colours = ZONE_COLOURS[zone] / 255
        ax.bar(edges[:-1], count, np.diff(edges), align="edge", color=colours)
        for limit, letter in ((float(psi), "Ψ"), (float(phi), "Φ")):
            ax.axvline(limit, color="0.1", lw=1.2)
            place = {"xycoords": ("data", "axes fraction"), "va": "top"}
            ax.annotate(f" {letter}", (limit, 1), **place)
        ax.set(title=name, xlabel=xlabel, yticks=[])
        ax.grid(False, axis="y")
    draw_legend(figure, ZONES, ZONE_COLOURS)
    return figure


def closing_zone(phi: Any, psi: Any) -> Figure:
    """Both boundaries of many anchors, step by step, and their means.

    Args:
        phi: boundary of the positives, shape (T + 1, ...).
        psi: boundary of the negatives, the same shape.
    """
    figure = new_figure(5.2, 2.6)
    ax = new_axes(figure)[0, 0]
    for name, values, colour in (
        ("Φ", phi, ZONE_COLOURS[2] / 255),
        ("Ψ", psi, ZONE_COLOURS[0] / 255),
    ):
        lines = to_numpy(values).reshape(len(values), -1)
        few = lines[:, :: -(-lines.shape[1] // MOST_LINES)]
        ax.plot(few, color=colour, lw=0.6, alpha=0.3)
        ax.plot(lines.mean(1), color=colour, lw=2.5, label=f"{name}, mean")
    ax.set(xlabel="step", ylabel="cosine", xticks=range(len(phi)))
    ax.set_title("positives above, negatives below, ambiguous between")
    figure.legend(loc="outside right center")
    return figure


def band_against_way(
    moved: Any, band: Any, closes_at: float, lonely: Any = None
) -> Figure:
    """How far proxies went, and the width of their ambiguous zones over it.

    Args:
        moved: length of every anchor's path, the sum of 1 - cos, any shape.
        band: phi - psi of the same anchors; below 0 the boundaries have crossed.
        closes_at: the path length at which the width is 0.
        lonely: bool, anchors without positives, drawn black; None: none is.
    """
    moved, band = (to_numpy(value).ravel() for value in (moved, band))
    alone = np.zeros(len(moved), bool) if lonely is None else to_numpy(lonely).ravel()
    figure = new_figure(7.2, 2.5)
    left, right = new_axes(figure, 1, 2)[0]
    left.hist(moved, BINS // 2, color=PLAIN)
    left.set(
        title="how far the proxies went", xlabel="path D", ylabel="anchors", yticks=[]
    )
    left.grid(False, axis="y")
    right.plot(moved[~alone], band[~alone], ".", ms=4, color=PLAIN)
    if alone.any():
        marks = {"color": "black", "label": "no positive"}
        right.plot(moved[alone], band[alone], "o", ms=4, **marks)
    right.axhline(0, color="0.5", lw=1)
    right.axvline(closes_at, color=ACCENT, ls="--", label="D*: the zone closes")
    right.set(title="width of the zone", xlabel="path D", ylabel="Φ − Ψ")
    right.legend(loc="lower left")
    return figure
