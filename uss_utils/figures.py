"""How figures look and how a notebook stores them.

Figures are made without pyplot: the returned one is shown when it ends a cell (or is
given to ``display``), exactly once, and nothing stays open behind it.
"""

import io
from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from PIL import Image

DPI = 72
COLOURS = 256  # of a palette PNG
WIDTH = 8.9  # inches; with margins nine, what a notebook page shows unscaled
ACCENT = "#c44e52"
PLAIN = "#4c72b0"

STYLE = {
    "figure.dpi": DPI,
    "savefig.dpi": "figure",
    "figure.figsize": (6, 3),
    "font.size": 10,
    "axes.titlesize": 10,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.alpha": 0.3,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "image.cmap": "cividis",
    "image.interpolation": "nearest",
    "legend.frameon": False,
}


def use_notebook_style() -> None:
    """Set matplotlib's defaults and how a notebook stores figures.

    Figures with photographs are stored as JPEG (a sixth of the size), all others,
    label maps among them, as PNG with a palette, at 72 dots per inch.
    """
    matplotlib.rcParams.update(STYLE)
    from IPython import get_ipython

    shell = get_ipython()
    if shell is None:
        return
    # Imported first: on import it registers its own formatters over ours.
    import matplotlib_inline.backend_inline  # noqa: F401

    formatters = shell.display_formatter.formatters
    formatters["image/jpeg"].for_type(Figure, _jpeg_of_photographs)
    formatters["image/png"].for_type(Figure, _png_of_charts)


def _has_photograph(figure: Figure) -> bool:
    """Whether its pictures hold more colours, or values, than a palette does."""
    shown = [image.get_array() for ax in figure.axes for image in ax.images]
    return sum(map(_count_colours, shown)) > COLOURS


def _count_colours(array: Any) -> int:
    array = np.ma.getdata(array)
    if array.ndim == 2:
        return len(np.unique(array))
    if array.dtype.kind == "f":
        array = np.rint(array * 255)
    weights = 256 ** np.arange(array.shape[-1], dtype=np.int64)
    return len(np.unique(array.astype(np.int64) @ weights))


def _jpeg_of_photographs(figure: Figure) -> bytes | None:
    return picture(figure)[1] if _has_photograph(figure) else None


def _png_of_charts(figure: Figure) -> bytes | None:
    return None if _has_photograph(figure) else picture(figure)[1]


def picture(figure: Figure) -> tuple[str, bytes]:
    """File format ("jpeg" or "png") and encoded bytes of a figure."""
    kind = "jpeg" if _has_photograph(figure) else "png"
    drawn, stored = io.BytesIO(), io.BytesIO()
    figure.savefig(drawn, format="png", dpi=DPI, bbox_inches="tight", pad_inches=0.04)
    image = Image.open(drawn).convert("RGB")
    if kind == "jpeg":
        # Full colour resolution: halved, thin coloured text gets fringes.
        image.save(stored, kind, quality=80, subsampling=0, optimize=True)
    else:
        image.quantize(COLOURS).save(stored, kind, optimize=True)
    return kind, stored.getvalue()


def new_figure(width: float, height: float) -> Figure:
    """An empty figure in the course's style, at most :data:`WIDTH` inches wide."""
    with matplotlib.rc_context(STYLE):
        return Figure(
            figsize=(min(width, WIDTH), height), dpi=DPI, layout="constrained"
        )


def new_axes(figure: Figure, rows: int = 1, columns: int = 1) -> np.ndarray:
    """Axes in the course's style, shape (rows, columns)."""
    with matplotlib.rc_context(STYLE):
        return figure.subplots(rows, columns, squeeze=False)


def draw_legend(figure: Figure, classes: Sequence[str], palette: Any) -> None:
    """Names and colours of the classes below a figure.

    Args:
        figure: with the layout of :func:`new_figure`.
        classes: K names.
        palette: uint8, shape (K, 3) or more.

    Raises:
        ValueError: fewer colours than classes.
    """
    palette = np.asarray(palette)[: len(classes)] / 255
    if len(palette) != len(classes):
        raise ValueError(f"{len(classes)} classes, but {len(palette)} colours")
    handles = [
        Patch(facecolor=colour, label=name, edgecolor="0.5", linewidth=0.5)
        for name, colour in zip(classes, palette, strict=True)
    ]
    figure.legend(
        handles=handles,
        loc="outside lower center",
        ncols=_legend_columns(classes, figure.get_figwidth()),
        frameon=False,
        handlelength=1.2,
        columnspacing=1.2,
    )


def _legend_columns(classes: Sequence[str], width: float) -> int:
    """Columns of the flattest legend that fits, its rows about equally long."""
    columns = 1
    for rows in range(1, len(classes) + 1):
        columns = -(-len(classes) // rows)
        longest = (max(map(len, part)) for part in np.array_split(classes, columns))
        # Inches of a letter and of what stands between two names, at ten points.
        if sum(0.085 * letters + 0.45 for letters in longest) <= width:
            break
    return columns
