"""Scaling up in figures: seconds of a step, number formats, shared batches, speed."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap, to_rgba
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Patch, Rectangle
from matplotlib.ticker import MaxNLocator

from uss_utils.colours import to_rgb
from uss_utils.figures import ACCENT, PLAIN, WIDTH, new_axes, new_figure

PARTS = ("#4c72b0", "#dd8452", "#55a868", "#8172b3", "#937860")
PROCESSES = (PLAIN, ACCENT, "#55a868", "#8172b3")
# Runs on top of each other: line, width, opacity, colour.
CURVES = (("-", 6.0, 0.35), ("-", 1.4, 1.0), (":", 2.2, 1.0), ("--", 1.2, 1.0))
COLOURS = ("0.3", ACCENT, PLAIN, "#55a868")
# Bits of a number: sign, exponent (how far it reaches), fraction (how fine it is).
FORMATS = {
    "float32": (1, 8, 23),
    "float16 (fp16)": (1, 5, 10),
    "bfloat16 (bf16)": (1, 8, 7),
}
BITS = {"sign": "#8c8c8c", "exponent": ACCENT, "fraction": PLAIN}


def time_bars(rows: Mapping[str, Mapping[str, float]], *, title: str = "") -> Figure:
    """Where the time goes: one bar per row, cut into parts.

    Args:
        rows: name of a bar -> part -> seconds per step; all with the same parts.
        title: the finding.

    Raises:
        ValueError: no row.
    """
    if not rows:
        raise ValueError("time_bars needs at least one row")
    figure = new_figure(WIDTH, 1.1 + 0.45 * len(rows))
    ax = new_axes(figure)[0, 0]
    names = list(dict.fromkeys(part for row in rows.values() for part in row))
    whole = max(sum(row.values()) for row in rows.values())
    for y, row in enumerate(rows.values()):
        left = 0.0
        for name, colour in zip(names, PARTS, strict=False):
            width = row.get(name, 0.0)
            label = name if y == 0 else None
            ax.barh(y, width, 0.62, left, color=colour, label=label)
            if width > 0.07 * whole:
                words = f"{width:.2g} s"
                middle = left + width / 2
                ax.text(middle, y, words, ha="center", va="center", color="white")
            left += width
        ax.text(left + 0.01 * whole, y, f"{left:.2g} s", va="center", ha="left")
    ax.set_yticks(range(len(rows)), list(rows))
    ax.set(ylim=(len(rows) - 0.5, -0.5), xlim=(0, 1.12 * whole), title=title)
    ax.set_xlabel("seconds per step")
    ax.grid(axis="y", visible=False)
    figure.legend(loc="outside lower center", ncols=len(names))
    return figure


def number_formats() -> Figure:
    """The bits of float32, float16 and bfloat16."""
    figure = new_figure(WIDTH, 1.9)
    ax = new_axes(figure)[0, 0]
    for y, (name, widths) in enumerate(FORMATS.items()):
        x = 0
        for width, colour in zip(widths, BITS.values(), strict=True):
            for _ in range(width):
                box = Rectangle((x, y - 0.38), 0.92, 0.76, facecolor=colour)
                ax.add_patch(box)
                x += 1
        _, exponent, fraction = widths
        words = (
            f"{sum(widths)} bits: {exponent} for the reach, {fraction} for the fineness"
        )
        ax.text(x + 0.4, y, words, va="center", fontsize=9)
        ax.text(-0.4, y, name, ha="right", va="center", weight="bold")
    ax.set(xlim=(-9.5, 56), ylim=(2.6, -0.6))
    ax.axis("off")
    handles = [Patch(color=colour, label=name) for name, colour in BITS.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=3)
    return figure


def compared_pairs(n: int, shares: int = 2) -> Figure:
    """Which images of a batch a contrastive loss compares, computed in three ways.

    Args:
        n: images of the batch.
        shares: parts, or processes.

    Raises:
        ValueError: fewer images than shares, or more shares than colours.
    """
    if not 1 <= shares <= min(n, len(PROCESSES)):
        raise ValueError(
            f"{n} images cannot be shown in {shares} shares; at most "
            f"{min(n, len(PROCESSES))}"
        )
    owner = np.repeat(
        np.arange(shares), [len(x) for x in np.array_split(range(n), shares)]
    )
    whole = np.zeros((n, n), int)
    parts = np.where(owner[:, None] == owner, owner[:, None], -1)
    gathered = np.broadcast_to(owner[:, None], (n, n))
    kept = (parts >= 0).mean()
    panels = {
        "the whole batch at once": whole,
        f"{shares} parts: {kept:.0%} of the pairs": parts,
        f"{shares} processes: codes are gathered": gathered,
    }
    figure = new_figure(WIDTH, 3.1)
    colours = ListedColormap(["#ececec", *PROCESSES[:shares]])
    for ax, (title, table) in zip(
        new_axes(figure, 1, 3)[0], panels.items(), strict=True
    ):
        ax.pcolormesh(
            table, cmap=colours, vmin=-1.5, vmax=shares - 0.5, edgecolors="w", lw=1.5
        )
        ax.set(title=title, aspect="equal", xlabel="image", xticks=[], yticks=[])
        ax.invert_yaxis()
        ax.grid(False)
        ax.spines[:].set(visible=False)
    figure.axes[0].set_ylabel("is compared with image")
    names = [f"computed by part or process {k}" for k in range(shares)]
    handles = [Patch(color=c, label=x) for c, x in zip(PROCESSES, names, strict=False)]
    handles.append(Patch(color="#ececec", label="never compared"))
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles))
    return figure


def shared_batch(images: Sequence[Any], features: Sequence[Any]) -> Figure:
    """One program in two processes: who draws, who computes which rows, who gathers.

    Args:
        images: of the batch, an even number up to six, as in
            :func:`uss_utils.colours.to_rgb`.
        features: of each a picture.

    Raises:
        ValueError: an odd number, or not as many features.
    """
    n = len(images)
    if n % 2 or not 2 <= n <= 6 or len(features) != n:
        raise ValueError(
            f"expected 2, 4 or 6 images and as many features, got {n} and "
            f"{len(features)}"
        )
    figure = new_figure(WIDTH, 3.2)
    ax = new_axes(figure)[0, 0]
    side = 2.0 / n
    top, bottom = 2.0, 0.0
    middle = (top + bottom + side) / 2
    for process, y in enumerate((top, bottom)):
        half, colour = y + side / 2, PROCESSES[process]
        own = range(process * n // 2, (process + 1) * n // 2)
        name = f"process {process}"
        ax.text(0.03, y + side + 0.08, name, color=colour, weight="bold", fontsize=9)
        _pictures(ax, images, 0.0, y, side, own)
        _box(ax, f"frozen network:\nits {len(own)} images", 2.4, y, 1.15, side, colour)
        _pictures(ax, features, 3.9, y, side, range(n))
        _box(ax, f"head and loss:\nall {n} images", 6.3, y, 1.15, side, colour)
        for start, end in ((2.05, 2.4), (3.55, 3.9), (5.95, 6.3)):
            _arrow(ax, (start, half), (end, half))
        _arrow(ax, (7.47, half), (7.75, middle + (0.25 if y == top else -0.25)))
    _arrow(ax, (4.9, bottom + side + 0.05), (4.9, top - 0.05), "<|-|>")
    _box(
        ax, "gradients\naveraged:\nequal\nweights", 7.75, middle - 0.45, 1.0, 0.9, "0.3"
    )
    words = {
        (0.03, middle): "equal generators:\nboth draw this batch,\neach reads its half",
        (5.0, middle): "rows are gathered",
        (3.93, top + side + 0.2): "features (colours: PCA, notebook 02)",
    }
    for place, text in words.items():
        ax.text(*place, text, va="center", fontsize=9)
    ax.set(xlim=(-0.02, 8.78), ylim=(-0.1, top + side + 0.3), aspect="equal")
    ax.axis("off")
    return figure


def _pictures(
    ax: Axes, pictures: Sequence[Any], x: float, y: float, side: float, own: range
) -> None:
    """A row of small pictures with frames; those that are not read here are pale."""
    n = len(pictures)
    for i, picture in enumerate(pictures):
        left = x + i * side
        extent = (left + 0.03, left + side - 0.03, y + 0.03, y + side - 0.03)
        here = i in own
        colour = PROCESSES[2 * i // n]
        ax.imshow(to_rgb(picture), extent=extent, alpha=1.0 if here else 0.15)
        edge = to_rgba(colour, 1.0 if here else 0.0)
        size = side - 0.06
        box = Rectangle((extent[0], extent[2]), size, size, fill=False, ec=edge, lw=2)
        ax.add_patch(box)


def _box(ax: Axes, text: str, x, y, width, height, colour: str) -> None:
    style = "round,pad=0,rounding_size=0.06"
    ax.add_patch(
        FancyBboxPatch((x, y), width, height, boxstyle=style, fc="white", ec=colour)
    )
    middle = x + width / 2, y + height / 2
    ax.text(*middle, text, ha="center", va="center", fontsize=8.5)


def _arrow(ax: Axes, start, end, style: str = "-|>") -> None:
    options = {"arrowstyle": style, "mutation_scale": 10, "color": "0.4"}
    ax.add_patch(FancyArrowPatch(start, end, shrinkA=1, shrinkB=1, **options))


def overlaid(
    losses: Mapping[str, Any], *, marks: Mapping[str, float] | None = None, title=""
) -> Figure:
    """Loss curves on top of each other; beside it, their distance from the first one.

    Where all are equal one panel says so.

    Args:
        losses: name of a run -> loss of every step; two to four runs.
        marks: words -> step at which a line is drawn.
        title: the finding.

    Raises:
        ValueError: not two to four runs, or of different length.
    """
    series = {name: np.asarray(each, float) for name, each in losses.items()}
    if (
        not 2 <= len(series) <= len(CURVES)
        or len({len(each) for each in series.values()}) != 1
    ):
        raise ValueError(
            "overlaid needs two to four runs of equal length, got "
            f"{[len(each) for each in series.values()]}"
        )
    first, *others = series.values()
    same = all((each == first).all() for each in others)
    figure = new_figure(WIDTH, 3.1)
    axes = new_axes(figure, 1, 1 if same else 2)[0]
    for number, (name, each) in enumerate(series.items()):
        line, width, alpha = CURVES[number]
        style = {"ls": line, "lw": width, "color": COLOURS[number], "label": name}
        axes[0].plot(each, alpha=alpha, **style)
        if number and not same:
            axes[1].plot(abs(each - first), **style)
    for ax in axes:
        for height, (words, step) in enumerate((marks or {}).items()):
            ax.axvline(step - 0.5, color="0.5", lw=1, ls="--")
            if ax is axes[0]:
                _words_left_of(ax, words, step - 0.5, 0.03 + 0.08 * height)
        ax.set_xlabel("step")
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    title = title or "the loss"
    if same:
        title += ": the difference is 0 everywhere"
    else:
        _distances(axes[1], float(abs(first).max()) * 2.0**-23 or 1e-9)
    axes[0].set(ylabel="loss", title=title)
    handles = axes[0].get_legend_handles_labels()
    figure.legend(*handles, loc="outside lower center", ncols=len(series))
    return figure


def _words_left_of(ax: Axes, words: str, x: float, height: float) -> None:
    """Words that end at a vertical line."""
    options = {"xycoords": ("data", "axes fraction"), "textcoords": "offset points"}
    options |= {"va": "bottom", "ha": "right", "fontsize": 8}
    ax.annotate(words, (x, height), xytext=(-3, 0), **options)


def _distances(ax: Axes, rounding: float) -> None:
    """Powers of ten from one rounding on, and zero."""
    ax.set_yscale("symlog", linthresh=rounding / 10)
    ax.set_ylim(0, 1e6 * rounding)
    ax.set_yticks([0, *10.0 ** (np.ceil(np.log10(rounding)) + np.arange(6))])
    ax.axhline(rounding, color="0.6", lw=1)
    options = {"transform": ax.get_yaxis_transform(), "ha": "right", "va": "top"}
    ax.text(0.99, rounding, "one rounding of float32", fontsize=8, **options)
    ax.set(ylabel="difference", title="distance from the first (colours as left)")


def speedups(shares: Mapping[str, float], most: int = 16) -> Figure:
    """How many times faster several processes are, when they share a part of a step.

    Args:
        shares: name -> part of a step that is shared, 0 to 1.
        most: processes.

    Raises:
        ValueError: a share outside [0, 1].
    """
    wrong = {name: s for name, s in shares.items() if not 0 <= s <= 1}
    if wrong:
        raise ValueError(f"shares lie between 0 and 1, got {wrong}")
    figure = new_figure(5.5, 3.0)
    ax = new_axes(figure)[0, 0]
    n = np.arange(1, most + 1)
    ax.plot(n, n, color="0.7", ls="--", label="everything shared")
    for (name, share), colour in zip(shares.items(), PARTS, strict=False):
        label = f"{name}: {share:.0%} shared"
        ax.plot(n, 1 / (1 - share + share / n), "o-", ms=3, color=colour, label=label)
    ax.set(xlabel="processes", ylabel="times as fast", xlim=(1, most), ylim=(0, most))
    ax.set_title("What is not shared sets the limit (exchange taken as free)")
    ax.legend(fontsize=9)
    return figure
