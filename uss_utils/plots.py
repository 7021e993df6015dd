"""Every figure of the notebooks under one name.

Each function returns its figure and needs no screen. Pictures are drawn here, charts
in :mod:`uss_utils.charts` and :mod:`uss_utils.distributions`, arrays of colours made
in :mod:`uss_utils.colours`.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from uss_utils.charts import (
    bar_ladder,
    class_bands,
    confusion,
    curves,
    iou_bars,
    point_groups,
    similarities,
)
from uss_utils.colours import (
    colourise,
    default_palette,
    overlay,
    pca_rgb,
    to_numpy,
    to_rgb,
)
from uss_utils.distributions import histograms, retrieval_curves, split_histogram
from uss_utils.figures import (
    ACCENT,
    WIDTH,
    draw_legend,
    new_axes,
    new_figure,
    use_notebook_style,
)

__all__ = [
    "bar_ladder",
    "class_bands",
    "colourise",
    "confusion",
    "correspondences",
    "curves",
    "default_palette",
    "heatmap_on",
    "histograms",
    "iou_bars",
    "legend",
    "mean_colours",
    "overlay",
    "pca_rgb",
    "point_groups",
    "retrieval_curves",
    "show_row",
    "similarities",
    "split_histogram",
    "to_rgb",
    "use_notebook_style",
    "window_weights",
]


def _panel(value: Any, palette: Any) -> tuple[np.ndarray, bool]:
    """One picture as drawable array, and whether it shows classes."""
    array = to_numpy(value)
    if array.ndim == 2:
        if array.dtype.kind not in "iub":
            return array, False
        if palette is None:
            palette = default_palette(max(int(array.max()) + 1, 1))
        return colourise(array, palette), True
    return to_rgb(value), False


def _as_rows(value: Any) -> list:
    """A batch as list of pictures, a single picture as list of one."""
    if isinstance(value, list | tuple):
        return list(value)
    array = to_numpy(value)
    one_image = 3 in (array.shape[0], array.shape[-1]) and array.dtype.kind != "i"
    batched = array.ndim == 4 or (array.ndim == 3 and not one_image)
    return list(value) if batched else [value]


def show_row(
    *,
    palette: Any = None,
    classes: Sequence[str] | None = None,
    titles: Mapping[str, str] | Sequence[str] | None = None,
    **pictures: Any,
) -> Figure:
    """Pictures side by side, one column per keyword, one row per item of a batch.

    ``show_row(image=image, truth=label, pred=pred, palette=palette, classes=classes)``
    is the picture of this course.

    Args:
        palette: uint8 (K, 3); without it clusters get :func:`default_palette`.
        classes: names of the K classes; given, a legend is drawn.
        titles: titles instead of the keywords, by keyword or in order.
        **pictures: images (see :func:`to_rgb`), integer labels (H, W) with -1 in
            grey, float maps (H, W) in cividis; or batches or lists of these.

    Raises:
        ValueError: no picture, or columns of different length.
    """
    if not pictures:
        raise ValueError("show_row needs at least one picture, e.g. image=image")
    columns = {name: _as_rows(value) for name, value in pictures.items()}
    counts = {name: len(rows) for name, rows in columns.items()}
    if len(set(counts.values())) != 1:
        raise ValueError(f"columns have different numbers of pictures: {counts}")
    if titles is not None and not isinstance(titles, Mapping):
        titles = dict(zip(columns, titles, strict=True))
    n_rows = next(iter(counts.values()))
    shape = _panel(next(iter(columns.values()))[0], palette)[0].shape
    width = min(WIDTH / len(columns), 2.6)
    height = width * shape[0] / shape[1]
    extra = 0.25 + 0.22 * (-(-len(classes) // 6) if classes is not None else 0)
    figure = new_figure(width * len(columns), height * n_rows + extra)
    axes = new_axes(figure, n_rows, len(columns))
    for j, (name, rows) in enumerate(columns.items()):
        title = (titles or {}).get(name, name.replace("_", " "))
        axes[0, j].set_title(title)
        for i, value in enumerate(rows):
            axes[i, j].imshow(_panel(value, palette)[0], cmap="cividis")
            axes[i, j].axis("off")
    if classes is not None:
        if palette is None:
            palette = default_palette(len(classes))
        draw_legend(figure, classes, palette)
    return figure


def legend(classes: Sequence[str], palette: Any) -> Figure:
    """The colours of the classes alone.

    Args:
        classes: K names.
        palette: uint8, shape (K, 3) or more.
    """
    figure = new_figure(WIDTH, 0.3 * -(-len(classes) // 6) + 0.1)
    draw_legend(figure, classes, palette)
    return figure


def mean_colours(
    images: Sequence, labels: Any, classes: Sequence[str], *, title: str = ""
) -> Figure:
    """One square per class and picture: the mean colour of the class there.

    Args:
        images: N pictures as in :func:`to_rgb`, (H, W) pixels.
        labels: integers, shape (N, H, W), ignore = -1.
        classes: names of the K classes; a cross stands where one is absent.
        title: the finding.
    """
    squares = np.full((len(classes), len(images), 3), np.nan)
    for i, (image, label) in enumerate(zip(images, to_numpy(labels), strict=True)):
        rgb = to_rgb(image)
        for k in np.unique(label[label >= 0]):
            squares[k, i] = rgb[label == k].mean(axis=0)
    figure = new_figure(WIDTH, 0.28 * len(classes) + 0.8)
    ax = new_axes(figure)[0, 0]
    absent = np.isnan(squares[..., 0])
    ax.imshow(np.nan_to_num(squares, nan=255).round().astype(np.uint8), aspect="auto")
    for k, i in np.argwhere(absent):
        ax.text(i, k, "×", color="0.6", ha="center", va="center")
    ax.set_yticks(range(len(classes)), classes)
    ax.set(xlabel="picture", title=title)
    ax.grid(False)
    return figure


def heatmap_on(
    image: Any,
    values: Any,
    query: tuple[int, int] | None = None,
    *,
    title: str = "similarity to the marked patch",
    limits: tuple[float, float] | None = None,
) -> Figure:
    """An image with a marked patch, and a map of values laid over it.

    Args:
        image: as in :func:`to_rgb`, (H, W) pixels.
        values: float map (h, w), stretched over the image.
        query: (row, column) of the patch to mark, counted in the map.
        title: title of the map.
        limits: values of the darkest and the brightest colour; the map's own extremes
            when None.
    """
    rgb, values = to_rgb(image), to_numpy(values)
    height, width = rgb.shape[:2]
    figure = new_figure(6.4, 6.4 / 2.25 * height / width + 0.3)
    left, right = new_axes(figure, 1, 2)[0]
    left.imshow(rgb)
    left.set_title("image" if query is None else "image, marked patch")
    right.imshow(rgb.mean(axis=-1), cmap="gray")
    low, high = limits or (None, None)
    extent = (-0.5, width - 0.5, height - 0.5, -0.5)
    shown = right.imshow(
        values, cmap="cividis", alpha=0.75, extent=extent, vmin=low, vmax=high
    )
    right.set_title(title)
    figure.colorbar(shown, ax=right, shrink=0.85)
    for ax in (left, right):
        ax.axis("off")
        if query is not None:
            _mark(ax, query, height / values.shape[0], width / values.shape[1])
    return figure


def correspondences(
    image: Any,
    query: tuple[int, int],
    grid: tuple[int, int],
    maps: Mapping[str, tuple[Any, Any]],
) -> Figure:
    """A marked patch, and where else its like is found, by several maps.

    Args:
        image: picture that holds the patch, as in :func:`to_rgb`, (H, W) pixels.
        query: (row, column) of the patch.
        grid: number of patches (h, w) of the image.
        maps: title of a panel -> the picture searched, and its map of values (h2, w2),
            each map from dark (its lowest value) to bright (its highest).

    Raises:
        ValueError: no map.
    """
    if not maps:
        raise ValueError("correspondences needs at least one map")
    rgb = to_rgb(image)
    height, width = rgb.shape[:2]
    side = min(WIDTH / (len(maps) + 1), 2.4)
    figure = new_figure(side * (len(maps) + 1), side * height / width + 0.3)
    first, *others = new_axes(figure, 1, len(maps) + 1)[0]
    first.imshow(rgb)
    first.set_title("the marked patch")
    _mark(first, query, height / grid[0], width / grid[1])
    for ax, (title, (searched, values)) in zip(others, maps.items(), strict=True):
        grey = to_rgb(searched).mean(axis=-1)
        extent = (-0.5, grey.shape[1] - 0.5, grey.shape[0] - 0.5, -0.5)
        ax.imshow(grey, cmap="gray")
        ax.imshow(to_numpy(values), cmap="cividis", alpha=0.7, extent=extent)
        ax.set_title(title)
    for ax in (first, *others):
        ax.axis("off")
    return figure


def _mark(ax: Axes, query: tuple[int, int], height: float, width: float) -> None:
    corner = (query[1] * width - 0.5, query[0] * height - 0.5)
    ax.add_patch(Rectangle(corner, width, height, fill=False, color=ACCENT, lw=2))


def window_weights(
    image: Any, weights: Any, places: Mapping[str, tuple[int, int]]
) -> Figure:
    """The 3 x 3 windows around a few patches, and the weights of their nine cells.

    Args:
        image: as in :func:`to_rgb`, (H, W) pixels.
        weights: of every patch's window, row by row, shape (h, w, 9).
        places: short name of a patch -> its (row, column). All glyphs share one scale,
            from black (0) to white (the largest weight shown).

    Raises:
        ValueError: no place, or weights of another shape.
    """
    rgb, weights = to_rgb(image), to_numpy(weights)
    if not places or weights.ndim != 3 or weights.shape[-1] != 9:
        raise ValueError(
            "expected weights of shape (h, w, 9) and at least one place, got "
            f"{weights.shape} and {len(places)} places"
        )
    down, across = rgb.shape[0] / weights.shape[0], rgb.shape[1] / weights.shape[1]
    figure = new_figure(2.8 + 1.25 * len(places), 2.8)
    axes = new_axes(figure, 2, 2 + len(places))
    for ax in axes[:, :2].flat:
        ax.remove()
    whole = figure.add_subplot(axes[0, 0].get_gridspec()[:, :2])
    whole.imshow(rgb)
    whole.axis("off")
    top = max(weights[place].max() for place in places.values())
    for (crop, glyph), (name, (row, column)) in zip(
        axes[:, 2:].T, places.items(), strict=True
    ):
        x, y = (column - 1) * across - 0.5, (row - 1) * down - 0.5
        style = {"fill": False, "color": ACCENT, "lw": 1.5}
        whole.add_patch(Rectangle((x, y), 3 * across, 3 * down, **style))
        whole.annotate(name, (x + 3 * across, y), color="white", weight="bold")
        crop.imshow(rgb)
        crop.set(xlim=(x, x + 3 * across), ylim=(y + 3 * down, y), title=name)
        cells = weights[row, column].reshape(3, 3)
        glyph.imshow(cells, cmap="gray", vmin=0, vmax=top)
        for ax in (crop, glyph):
            ax.set(xticks=[], yticks=[])
            ax.grid(False)
            ax.spines[:].set(visible=True, color="0.5")
    return figure
