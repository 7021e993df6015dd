"""The widgets as a reader meets them: in JupyterLab, with keyboard and mouse."""

import re

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook

from uss_utils import publishing

pytestmark = [pytest.mark.browser, pytest.mark.timeout(600)]

EXPLORE = """
from uss_utils import plots, widgets
plots.use_notebook_style()

def draw(k=3):
    print("drawing", k)
    if k == 5:
        raise ValueError("five is too many")
    return plots.bar_ladder({"a": k})

widgets.explore(draw, k=(1, 9));
"""
PICK = """
import numpy as np

def mark(row, column):
    print("patch", row, column)
    return plots.heatmap_on(image, np.eye(4), (row, column))

image = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
widgets.pick_patch(mark, image, (4, 4));
"""


@pytest.fixture
def opened(lab, page):
    folder, address = lab
    notebook = new_notebook(cells=[new_code_cell(EXPLORE), new_code_cell(PICK)])
    notebook.metadata.kernelspec = publishing.KERNEL
    nbformat.write(notebook, folder / "widgets.ipynb")
    page.goto(address.format("widgets.ipynb"))
    _wait_idle(page)
    for i in range(2):
        cell = page.locator(".jp-CodeCell").nth(i)
        cell.locator(".cm-content").click()
        page.keyboard.press("Shift+Enter")
        cell.locator(".jp-Cell-outputWrapper img").wait_for()
    _wait_idle(page)  # keys pressed before the controls are connected would be lost
    return page


def _wait_idle(page):
    # The status bar: the notebook's own indicator says idle before there is a kernel.
    page.locator("#jp-main-statusbar").get_by_text(re.compile(r"\| Idle$")).wait_for()


def test_slider_and_click_redraw_the_figure_in_place(opened):
    cells = opened.locator(".jp-CodeCell")
    first, second = (cells.nth(i).locator(".jp-Cell-outputWrapper") for i in range(2))
    picture = first.locator("img")
    picture.wait_for()
    assert picture.count() == 1
    seen = [picture.get_attribute("src")]

    handle = first.locator(".noUi-handle")
    handle.focus()
    handle.press("ArrowRight")
    first.get_by_text("drawing 4").wait_for()
    opened.wait_for_function(
        "old => document.querySelector('.jp-CodeCell .jp-OutputArea img').src != old",
        arg=seen[0],
    )
    assert picture.count() == 1

    handle.press("ArrowRight")
    first.get_by_text("ValueError: five is too many").wait_for()
    handle.press("ArrowRight")
    first.get_by_text("drawing 6").wait_for()
    assert first.get_by_text("ValueError").count() == 0

    picture = second.locator("img")
    picture.wait_for()
    before = picture.get_attribute("src")
    buttons = second.locator(".widget-gridbox button")
    assert buttons.count() == 16
    buttons.nth(7).click()
    second.get_by_text("patch 1 3").wait_for()
    readouts = second.locator(".widget-readout")
    assert [readouts.nth(i).inner_text() for i in range(2)] == ["1", "3"]
    opened.wait_for_function(
        "old => document.querySelectorAll('.jp-CodeCell')[1]"
        ".querySelector('.jp-OutputArea img').src != old",
        arg=before,
    )
