"""Naming clusters by clicking: controls around :mod:`uss_utils.naming`."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import ipywidgets
import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from uss_utils import naming, plots
from uss_utils.datasets.transforms import Transform
from uss_utils.figures import ACCENT
from uss_utils.pictures import MAX_SIDE, Picture, read_picture
from uss_utils.segmenter import Segmenter
from uss_utils.similarity import patch_classes
from uss_utils.widgets import Explorer, mosaic, repaint

GRID = (15, 20)  # patches that can be clicked
PALE = 0.8  # how far what was not chosen fades


class ClusterNamer(Explorer):
    """Photographs with their segments: click a place, type what it shows.

    Attributes:
        names: cluster -> name, as far as they are given.
        path: file that holds them too, after every change; None: no file.
        buttons: the clickable photograph.
        text: where the name is typed; the names in use are offered.
        give: button that gives the typed name to the chosen cluster; an empty one is
            taken away.
    """

    def __init__(
        self,
        segmenter: Segmenter,
        pictures: Mapping[str, Picture] | Sequence[Picture],
        path: str | Path | None = None,
        names: naming.Names | None = None,
    ):
        if not pictures:
            raise ValueError("naming clusters needs at least one picture")
        self.segmenter = naming.unnamed(segmenter)
        self.path = None if path is None else Path(path)
        self.names = self._start(segmenter, names)
        if not isinstance(pictures, Mapping):
            pictures = {f"picture {i}": each for i, each in enumerate(pictures)}
        self._pictures = dict(pictures)
        self._seen: dict[str, tuple[np.ndarray, torch.Tensor]] = {}
        self.text = ipywidgets.Combobox(placeholder="sky", description="name")
        self.give = ipywidgets.Button(description="give this name")
        self.give.on_click(self._press)
        height, width = GRID
        slider = ipywidgets.IntSlider
        super().__init__(
            self._figure_of,
            picture=list(self._pictures),
            row=slider(height // 2, 0, height - 1),
            column=slider(width // 2, 0, width - 1),
        )
        self.buttons = mosaic(self._look()[0], GRID, self.choose)
        self.controls["picture"].observe(self._turn, names="value")
        for control in self.controls.values():
            control.observe(self._prompt, names="value")
        self._prompt()

    def _start(self, segmenter: Segmenter, names: naming.Names | None) -> dict:
        """Given names, else those of the file, else those the model knows."""
        if names is not None:
            return naming.check(names, segmenter.n_clusters)
        if self.path is not None and self.path.is_file():
            return naming.read(self.path, segmenter)
        return naming.known(segmenter)

    # --------------------------------------------------------------- what a click does

    @property
    def cluster(self) -> int:
        """The chosen cluster: the one in the middle of the chosen patch."""
        at = self.values()
        return self._cluster_at(at["picture"], at["row"], at["column"])

    def choose(self, row: int, column: int) -> None:
        """Choose the cluster at a patch of the picture."""
        self.set(row=row, column=column)
        self._prompt()

    def name(self, text: str) -> None:
        """Give the chosen cluster a name, or take it away with an empty one."""
        names = {**self.names, self.cluster: text}
        self.names = naming.check(names, self.segmenter.n_clusters)
        if self.path is not None:
            naming.write(self.names, self.path, self.segmenter)
        self._prompt()
        self._redraw()

    def _press(self, button: ipywidgets.Button) -> None:
        try:
            self.name(self.text.value)
        except (OSError, ValueError) as error:  # shown where the reader looks
            self._say("", f"{type(error).__name__}: {error}")

    def named(self) -> Segmenter:
        """The model with the names as they are now; unnamed while there is none."""
        if not self.names:
            return self.segmenter
        return naming.apply(self.segmenter, self.names)

    def show(self, *extra: ipywidgets.Widget) -> None:
        """Display photograph and controls, below them the figure."""
        naming_row = ipywidgets.HBox([self.text, self.give])
        super().show(self.buttons, naming_row, *extra)

    def _turn(self, change: object = None) -> None:
        repaint(self.buttons, self._look()[0], GRID)

    def _prompt(self, change: object = None) -> None:
        self.text.options = tuple(dict.fromkeys(self.names.values()))
        self.text.value = self.names.get(self.cluster, "")

    # ------------------------------------------------------------ what it shows

    def _look(self, name: str | None = None) -> tuple[np.ndarray, torch.Tensor]:
        """Pixels (H, W, 3) and clusters (H, W) of a picture, made when first seen."""
        name = self.values()["picture"] if name is None else name
        if name not in self._seen:
            pixels = read_picture(self._pictures[name])
            scale = min(1.0, MAX_SIDE / max(pixels.shape[:2]))
            size = tuple(
                max(round(side * scale), n)
                for side, n in zip(pixels.shape[:2], GRID, strict=True)
            )
            pixels = np.array(Transform("resize", size).apply_image(pixels))
            self._seen[name] = pixels, self.segmenter.segment(pixels)
        return self._seen[name]

    def _cluster_at(self, picture: str, row: int, column: int) -> int:
        return int(patch_classes(self._look(picture)[1][None], GRID)[0, row, column])

    def _figure_of(self, picture: str, row: int, column: int) -> Figure:
        pixels, ids = self._look(picture)
        k = self._cluster_at(picture, row, column)
        figure = draw_names(pixels, ids, self.names, self.segmenter.n_clusters, k)
        down, across = (side / n for side, n in zip(ids.shape, GRID, strict=True))
        corner = (column * across - 0.5, row * down - 0.5)
        style = {"fill": False, "color": ACCENT, "lw": 2}
        figure.axes[0].add_patch(Rectangle(corner, across, down, **style))
        return figure


def draw_names(
    image: np.ndarray, ids: torch.Tensor, names: naming.Names, n_clusters: int, k: int
) -> Figure:
    """A photograph, its segments in the colours of their names, one cluster alone.

    Args:
        image: uint8 RGB, shape (H, W, 3).
        ids: cluster of every pixel, int64 (H, W).
        names: of some clusters.
        n_clusters: of the model.
        k: the cluster that the third panel leaves in its colours.
    """
    shown = naming.colours(names, n_clusters)
    alone = image.astype(np.float32)
    other = (ids != k).numpy()
    alone[other] = (1 - PALE) * alone[other] + PALE * 255
    present = [c for c in range(n_clusters) if bool((ids == c).any())]
    title = f"cluster {k}: " + names.get(k, "no name yet")
    return plots.show_row(
        photograph=image,
        segments=plots.overlay(image, ids, shown, alpha=0.6),
        chosen=alone.round().astype(np.uint8),
        titles={"chosen": title},
        classes=[f"{c}: {names.get(c, '?')}" for c in present],
        palette=shown[present],
    )


def name_clusters(
    segmenter: Segmenter,
    pictures: Mapping[str, Picture] | Sequence[Picture],
    path: str | Path | None = None,
    names: naming.Names | None = None,
) -> ClusterNamer:
    """Name the clusters of a model by clicking on photographs.

    Click a patch: its cluster is shown alone. Type what it is, and press the button.
    Several clusters may get one name; they become one class.

    Args:
        segmenter: the model; its linear probe is left aside.
        pictures: to click on, each a file, a PIL image or an array; a dict gives them
            names.
        path: file that keeps the names, written after every change; if it is there,
            they are taken up again.
        names: to start with instead of those in the file; None and no file: those the
            model knows.

    Returns:
        The controls, shown already; ``.named()`` is the model with the names.

    Raises:
        ValueError: no picture, or names of another model.
        OSError: a picture cannot be read.
    """
    namer = ClusterNamer(segmenter, pictures, path, names)
    namer.show()
    return namer
