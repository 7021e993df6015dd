"""Interactive figures: controls around a plain drawing function.

The function is called once, plainly, so its figure is an ordinary output of the cell:
it stays readable without a kernel, and an error in it fails a headless run. The
controls then replace that figure in place; nothing of them needs to be stored.
"""

import inspect
import io
from collections.abc import Callable
from contextlib import redirect_stdout
from typing import Any

import ipywidgets
import numpy as np
from IPython.display import display

from uss_utils.colours import to_rgb

MOST_BUTTONS = 600
_NONE = inspect.Parameter.empty


class Explorer:
    """A drawing function, its controls and the figure they replace.

    Attributes:
        controls: name of an argument -> its widget; setting ``.value`` redraws.
        figure: what the function returned last.
        messages: ipywidgets.Output with what it printed, or its error in one line.
    """

    def __init__(self, draw: Callable, **controls: Any):
        self._draw = draw
        given = inspect.signature(draw).parameters
        self.controls = {
            name: _widget(
                name, control, given[name].default if name in given else _NONE
            )
            for name, control in controls.items()
        }
        self.messages = ipywidgets.Output()
        self.figure = draw(**self.values())
        self._handle = None
        for control in self.controls.values():
            control.observe(self._redraw, names="value")

    def values(self) -> dict[str, Any]:
        """The arguments that the controls stand at."""
        return {name: control.value for name, control in self.controls.items()}

    def set(self, **values: Any) -> None:
        """Move several controls and draw once."""
        for control in self.controls.values():
            control.unobserve(self._redraw, names="value")
        try:
            for name, value in values.items():
                self.controls[name].value = value
        finally:
            for control in self.controls.values():
                control.observe(self._redraw, names="value")
        self._redraw()

    def show(self, *extra: ipywidgets.Widget) -> None:
        """Display the controls (and other widgets), below them the figure."""
        box = [*self.controls.values(), *extra, self.messages]
        display(ipywidgets.VBox(box))
        if self.figure is not None:
            self._handle = display(self.figure, display_id=True)

    def _ipython_display_(self) -> None:
        """Nothing: it is shown already when it ends a cell."""

    def _redraw(self, change: Any = None) -> None:
        printed = io.StringIO()
        try:
            with redirect_stdout(printed):
                self.figure = self._draw(**self.values())
        except Exception as error:  # shown where the learner looks, never lost in a log
            self._say(printed.getvalue(), f"{type(error).__name__}: {error}")
            return
        self._say(printed.getvalue())
        if self._handle is not None and self.figure is not None:
            self._handle.update(self.figure)

    def _say(self, printed: str, error: str = "") -> None:
        streams = {"stdout": printed, "stderr": error}
        self.messages.outputs = tuple(
            {"output_type": "stream", "name": name, "text": text}
            for name, text in streams.items()
            if text
        )


def _widget(name: str, control: Any, start: Any) -> ipywidgets.ValueWidget:
    made = ipywidgets.interactive.widget_from_abbrev(control, start)
    if made is None:
        raise ValueError(
            f"no control can be made for {name}={control!r}; give (min, max), "
            "(min, max, step), a list, True or False, a number, or a widget"
        )
    made.description = made.description or name.replace("_", " ")
    # Drawing takes a moment: redraw when a slider is let go, not at every pixel.
    if made.has_trait("continuous_update"):
        made.continuous_update = False
    return made


def explore(draw: Callable, **controls: Any) -> Explorer:
    """Show ``draw``'s figure with controls that redraw it.

    ``explore(draw_clusters, k=(2, 12))`` needs ``draw_clusters(k)`` to return a figure.

    Args:
        draw: function of the controls' names; an error in the first call is raised,
            later ones are shown below the controls.
        **controls: (min, max), (min, max, step), a list of choices, a bool, a number,
            or a widget. They start at the default of the argument, where it has one.

    Returns:
        The explorer, shown already.
    """
    explorer = Explorer(draw, **controls)
    explorer.show()
    return explorer


def pick_patch(
    draw: Callable,
    image: Any,
    grid: tuple[int, int],
    start: tuple[int, int] | None = None,
) -> Explorer:
    """Choose a patch of an image by clicking it, or with two sliders.

    The image is rebuilt from buttons, one per patch in its mean colour: clicks need
    no extension of JupyterLab. Very fine grids get the sliders alone.

    Args:
        draw: called as ``draw(row, column)``, returns a figure.
        image: as in :func:`uss_utils.plots.to_rgb`.
        grid: number of patches (h, w).
        start: the patch shown first; the middle one when None.
    """
    height, width = grid
    row, column = start or (height // 2, width // 2)
    slider = ipywidgets.IntSlider
    explorer = Explorer(
        draw,
        row=slider(row, 0, height - 1),
        column=slider(column, 0, width - 1),
    )
    extra = []
    if height * width <= MOST_BUTTONS:
        extra = [mosaic(image, grid, lambda r, c: explorer.set(row=r, column=c))]
    explorer.show(*extra)
    return explorer


def mosaic(
    image: Any, grid: tuple[int, int], choose: Callable[[int, int], Any]
) -> ipywidgets.GridBox:
    """An image rebuilt from buttons, one per patch in its mean colour.

    Args:
        image: as in :func:`uss_utils.plots.to_rgb`.
        grid: number of patches (h, w).
        choose: called as ``choose(row, column)`` when a patch is clicked.
    """
    height, width = grid
    # One layout for all buttons: hundreds of them would be as many messages.
    layout = ipywidgets.Layout(padding="0", margin="0", border="0")
    buttons = []
    for row, column in np.ndindex(height, width):
        button = ipywidgets.Button(layout=layout, tooltip=f"row {row}, column {column}")
        button.on_click(lambda _, r=row, c=column: choose(r, c))
        buttons.append(button)
    box = ipywidgets.GridBox(buttons, layout=ipywidgets.Layout(grid_gap="0"))
    repaint(box, image, grid)
    return box


def repaint(box: ipywidgets.GridBox, image: Any, grid: tuple[int, int]) -> None:
    """Show another image on the same buttons.

    Args:
        box: from :func:`mosaic`.
        image: as in :func:`uss_utils.plots.to_rgb`, of any shape.
        grid: number of patches (h, w) of the box.
    """
    rgb = to_rgb(image)
    across = max(10, 288 // grid[1])
    down = max(4, round(across * grid[1] / grid[0] * rgb.shape[0] / rgb.shape[1]))
    layout = box.children[0].layout
    layout.width, layout.height = f"{across}px", f"{down}px"
    box.layout.grid_template_columns = f"repeat({grid[1]}, {across}px)"
    colours = patch_colours(rgb, grid).reshape(-1, 3)
    for button, colour in zip(box.children, colours, strict=True):
        button.style.button_color = "#{:02x}{:02x}{:02x}".format(*colour)


def patch_colours(image: Any, grid: tuple[int, int]) -> np.ndarray:
    """Mean colour of every patch.

    Args:
        image: as in :func:`uss_utils.plots.to_rgb`, (H, W) pixels.
        grid: number of patches (h, w), at most (H, W).

    Returns:
        uint8 RGB, shape (h, w, 3).
    """
    rgb = to_rgb(image)
    if rgb.shape[0] < grid[0] or rgb.shape[1] < grid[1]:
        raise ValueError(f"an image of {rgb.shape[:2]} pixels has no {grid} patches")
    rows, columns = (
        np.arange(n) * length // n
        for n, length in zip(grid, rgb.shape[:2], strict=True)
    )
    total = np.add.reduceat(rgb.astype(np.int64), rows, axis=0)
    total = np.add.reduceat(total, columns, axis=1)
    tall = np.diff(np.append(rows, rgb.shape[0]))
    wide = np.diff(np.append(columns, rgb.shape[1]))
    return (total / np.outer(tall, wide)[..., None]).astype(np.uint8)
