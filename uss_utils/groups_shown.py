"""Groups of segments as figures: a pixel's likes, the graph, who belongs where."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor

from uss_utils.clustering_transformer import ClusteringTransformer
from uss_utils.colours import to_numpy, to_rgb
from uss_utils.figures import ACCENT, PLAIN, WIDTH, new_axes, new_figure
from uss_utils.masks_shown import enlarge
from uss_utils.objects_shown import RIGHT, bare
from uss_utils.run_state import own_random_state

# From the narrowest level to what has nothing in common with a pixel.
KINDS = {
    "same region": ACCENT,
    "same fine group": "#dd8452",
    "same coarse group": RIGHT,
    "same picture": PLAIN,
    "other pictures": "0.6",
}
LINES = (ACCENT, PLAIN, "0.3", RIGHT)
GAP = 0.06  # between two views, in widths of a view


def alike(
    views: Any,
    maps: Any,
    cosines: Any,
    own: int,
    labels: Sequence[Any],
    place: tuple[int, int],
    losses: Sequence[float],
) -> Figure:
    """One pixel of a view among the segments of a batch.

    Args:
        views: both views of a picture, as in :func:`uss_utils.colours.to_rgb`.
        maps: segments of both, -1 where there is none, integers (2, h, w).
        cosines: of the pixel with every segment, shape (S,).
        own: segment of the pixel.
        labels: region, fine group, coarse group and picture of every segment, integers
            (S,) each; the first three equal only within one picture.
        place: row and column of the pixel in the first view.
        losses: of the pixel at the first three levels.
    """
    cosines, maps, losses = map(to_numpy, (cosines, maps, losses))
    same = [label == label[int(own)] for label in map(to_numpy, labels)]
    # The first level that both share; the last kind shares none.
    kind = np.select(same, range(len(same)), len(same))
    figure = new_figure(WIDTH, 2.7)
    *panels, chart = new_axes(figure, 1, 3)[0]
    low, high = cosines.min(), cosines.max()
    for ax, view, ids in zip(panels, views, maps, strict=True):
        rgb = to_rgb(view)
        field = enlarge(np.where(ids < 0, np.nan, cosines[ids]), rgb.shape[:2])
        ax.imshow(rgb.mean(2), cmap="gray")
        ax.imshow(field, cmap="cividis", alpha=0.75, vmin=low, vmax=high)
        bare(ax)
    panels[0].set_title("a pixel of view 1, its segments")
    panels[1].set_title("view 2")
    down, across = (n / m for n, m in zip(rgb.shape, maps.shape[1:], strict=False))
    corner = place[1] * across - 0.5, place[0] * down - 0.5
    mark = Rectangle(corner, across, down, fill=False, color=ACCENT, lw=2)
    panels[0].add_patch(mark)
    for k, colour in enumerate(KINDS.values()):
        mine = np.flatnonzero(kind == k)
        rows = k + np.linspace(-0.3, 0.3, len(mine))
        chart.scatter(cosines[mine], rows, s=12, color=colour)
    chart.plot(cosines[int(own)], 0, "o", ms=9, mfc="none", mec="0.1")
    counts = np.bincount(kind, minlength=len(KINDS))
    words = [f"{name} ({n})" for name, n in zip(KINDS, counts, strict=True)]
    chart.set_yticks(range(len(words)), words)
    chart.set(xlabel="cosine (circle: own segment)", ylim=(len(words) - 0.5, -0.6))
    chart.set_title("losses " + ", ".join(f"{loss:.2f}" for loss in losses))
    return figure


def segment_graph(views: Any, maps: Any, adjacency: Any) -> Figure:
    """Nodes at the centres of their segments in two views, and the edges of the graph.

    Args:
        views: both views of a picture, as in :func:`uss_utils.colours.to_rgb`.
        maps: node of every pixel, -1 where there is none, integers (2, h, w).
        adjacency: 0 or 1, row i has the edges from node i, shape (M, M).
    """
    maps, edges = to_numpy(maps), np.argwhere(to_numpy(adjacency) > 0)
    pictures = [to_rgb(view) for view in views]
    height, width = pictures[0].shape[:2]
    shift = (1 + GAP) * width
    wide = 0.8 * WIDTH
    figure = new_figure(wide, wide * height / (width + shift) + 0.3)
    ax = new_axes(figure)[0, 0]
    centre, side = {}, {}
    for v, (rgb, ids) in enumerate(zip(pictures, maps, strict=True)):
        ids = enlarge(ids, rgb.shape[:2])
        left = v * shift - 0.5
        extent = (left, left + width, height - 0.5, -0.5)
        pale = (255 + rgb.mean(2, keepdims=True).repeat(3, 2)) / 2
        ax.imshow(pale.astype(np.uint8), extent=extent)
        for node in np.unique(ids[ids >= 0]).tolist():
            y, x = (axis.mean() for axis in np.nonzero(ids == node))
            centre[node], side[node] = (x + v * shift, y), v
    across = np.array([side[a] != side[b] for a, b in edges.tolist()], bool)
    for crossing, colour, alpha in ((False, PLAIN, 0.9), (True, ACCENT, 0.55)):
        lines = [(centre[a], centre[b]) for a, b in edges[across == crossing].tolist()]
        ax.add_collection(LineCollection(lines, colors=colour, alpha=alpha, lw=1))
    ax.scatter(*np.array(list(centre.values())).T, s=14, color="white", ec="k", lw=0.6)
    ax.set_title(
        f"{len(centre)} nodes, {len(edges)} edges: {int((~across).sum())} inside a "
        f"view (blue), {int(across.sum())} between both (red)"
    )
    ax.set(xlim=(-0.5, width + shift - 0.5), ylim=(height - 0.5, -0.5))
    ax.set_aspect("equal")
    bare(ax)
    return figure


def probabilities(tables: Mapping[str, tuple[Any, str, str]]) -> Figure:
    """Tables of probabilities below each other, columns as wide as they are many.

    Args:
        tables: title -> values in [0, 1], shape (R, N), and what rows and columns are.

    Raises:
        ValueError: no table.
    """
    if not tables:
        raise ValueError("probabilities needs at least one table")
    values = {title: to_numpy(each[0]) for title, each in tables.items()}
    heights = [len(each) + 2.5 for each in values.values()]
    figure = new_figure(WIDTH, 0.15 * sum(heights) + 0.4)
    grid = figure.add_gridspec(len(values), 1, height_ratios=heights)
    for i, (title, table) in enumerate(values.items()):
        ax = figure.add_subplot(grid[i])
        shown = ax.imshow(table, cmap="cividis", vmin=0, vmax=1, aspect="auto")
        _, rows, columns = tables[title]
        ax.set(title=title, ylabel=rows, xlabel=columns, yticks=[], xticks=[])
        ax.grid(False)
    figure.colorbar(shown, ax=figure.axes, shrink=0.6)
    return figure


def toy_nodes(
    draw: torch.Generator,
    images: int = 8,
    nodes: int = 32,
    regions: int = 4,
    dim: int = 16,
    noise: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """Nodes around the directions of a few regions per image.

    Args:
        draw: generator.
        images: B.
        nodes: M of every image, of which no slot is padding.
        regions: of every image.
        dim: channels C.
        noise: length of what is added to the region's unit vector, on average.

    Returns:
        Unit columns (B, C, M), and the padding, bool (B, M).
    """
    centre = F.normalize(torch.randn(images, regions, dim, generator=draw), dim=2)
    kind = torch.randint(regions, (images, nodes, 1), generator=draw)
    x = centre.gather(1, kind.expand(-1, -1, dim))
    x = x + noise / dim**0.5 * torch.randn(x.shape, generator=draw)
    return F.normalize(x, dim=2).mT, torch.zeros(images, nodes, dtype=torch.bool)


def toy_grouping(
    x: Tensor,
    cost: Callable[..., Tensor],
    weights: Sequence[float],
    seed: int,
    groups: int = 8,
    steps: int = 100,
) -> dict[str, list[float]]:
    """Train a clustering transformer alone.

    Args:
        x: nodes, shape (B, C, M).
        cost: ``cost(P, *weights)`` of probabilities (B, K, M).
        weights: given to the cost.
        seed: of start and dropout.
        groups: K.
        steps: of Adam.

    Returns:
        After every step "groups": how many are the most probable one of some node, mean
        over images; and "sure": mean of every node's largest probability.
    """
    found: dict[str, list[float]] = {"groups": [], "sure": []}
    with own_random_state(seed, torch.device("cpu")):
        net = ClusteringTransformer(x.shape[1], groups)
        adam = torch.optim.Adam(net.parameters(), 2e-3)
        for _ in range(steps):
            probs = net(x).logits.softmax(1)
            adam.zero_grad()
            cost(probs, *weights).backward()
            adam.step()
            sure, label = probs.detach().max(1)
            used = F.one_hot(label, groups).any(1).sum(1)
            found["groups"].append(float(used.float().mean()))
            found["sure"].append(float(sure.mean()))
    return found


def collapse(runs: Mapping[str, Mapping[str, Any]]) -> Figure:
    """Groups in use, and how sure nodes are of theirs, over the steps of some runs.

    Args:
        runs: name of a run -> what :func:`toy_grouping` gives.

    Raises:
        ValueError: no run.
    """
    if not runs:
        raise ValueError("collapse needs at least one run")
    figure = new_figure(WIDTH, 2.6)
    panels = {"groups": "groups in use", "sure": "mean largest probability"}
    for ax, (key, title) in zip(new_axes(figure, 1, 2)[0], panels.items(), strict=True):
        for (name, run), colour in zip(runs.items(), LINES, strict=False):
            ax.plot(to_numpy(run[key]), color=colour, label=name)
        ax.set(title=title, xlabel="step", ylim=(0, None))
    handles = figure.axes[0].get_legend_handles_labels()
    figure.legend(*handles, loc="outside lower center", ncols=len(runs))
    return figure
