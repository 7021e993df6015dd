"""Every control of every notebook, moved in JupyterLab: its picture has to follow."""

import ast
import re
import time
from collections.abc import Iterator

import nbformat
import pytest
from IPython.core.inputtransformer2 import TransformerManager
from nbformat.v4 import new_code_cell, new_notebook

from tests import notebook_tools as tools
from tests.browser.controls import Control, controls
from tests.browser.lab_page import LabPage
from uss_utils import publishing

pytestmark = [pytest.mark.browser, pytest.mark.timeout(600)]

SHOWING = ("explore", "pick_patch", "name_clusters")  # calls that show widgets
SECONDS = 240  # for all cells of a notebook, on a busy machine
SLOW = 15  # seconds: a redraw takes one or two, on a busy machine some more


@pytest.fixture(scope="module")
def context(browser) -> Iterator:
    """One for all notebooks: what JupyterLab is made of is loaded once."""
    made = browser.new_context(viewport={"width": 1200, "height": 1400})
    made.set_default_timeout(60_000)
    yield made
    made.close()


@pytest.fixture
def opened(lab, context) -> Iterator:
    """Function that opens a notebook without outputs."""
    folder, address = lab
    shown = LabPage(context.new_page())

    def show(notebook: nbformat.NotebookNode) -> LabPage:
        for cell in tools.code_cells(notebook):
            cell.outputs, cell.execution_count = [], None
        notebook.metadata.kernelspec = publishing.KERNEL
        nbformat.write(notebook, folder / "shown.ipynb")
        shown.open(address.format("shown.ipynb"))
        return shown

    yield show
    shown.shut_down()
    shown.page.close()


@pytest.mark.notebook
@pytest.mark.slow
@pytest.mark.parametrize("path", tools.NOTEBOOKS, ids=lambda path: path.stem)
def test_every_control_changes_its_picture(opened, path):
    notebook = smoke(tools.read(path))
    if not any(calls(cell.source) for cell in tools.code_cells(notebook)):
        pytest.skip("shows no widgets; its smoke run is another test")
    assert complaints(opened, notebook) == []


def smoke(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """The notebook with the preset for tests, as a reader would write it."""
    (cell,) = (
        c
        for c in tools.code_cells(notebook)
        if "parameters" in c.metadata.get("tags", [])
    )
    cell.source, count = re.subn(
        r"^PRESET = .*$", 'PRESET = "smoke"', cell.source, flags=re.MULTILINE
    )
    assert count == 1
    return notebook


def calls(source: str) -> list[ast.Call]:
    """The calls in a cell that show widgets."""
    tree = ast.parse(TransformerManager().transform_cell(source))
    return [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and _called(node) in SHOWING
    ]


def _called(call: ast.Call) -> str:
    return getattr(call.func, "id", getattr(call.func, "attr", ""))


def complaints(opened, notebook: nbformat.NotebookNode) -> list[str]:
    """Run the notebook, move every control, and say what went wrong."""
    started = time.perf_counter()
    shown = opened(notebook)
    loaded = time.perf_counter()
    shown.run_all(SECONDS)
    ran = time.perf_counter()
    found = [f"while the cells ran: {text}" for text in shown.errors()]
    cells = zip(tools.code_cells(notebook), shown.views(), strict=True)
    for i, (cell, views) in enumerate(cells):
        expected = calls(cell.source)
        if len(expected) != views:
            found.append(
                f"code cell {i + 1}: {len(expected)} calls, {views} groups of widgets"
            )
        if views:
            found += [
                f"code cell {i + 1}: {text}" for text in _cell(shown, i, expected)
            ]
    found += [f"the browser's console: {text}" for text in shown.console]
    print(
        f"opened in {loaded - started:.1f} s, ran in {ran - loaded:.1f} s, "
        f"tried in {time.perf_counter() - ran:.1f} s"
    )
    return found


def _cell(shown: LabPage, i: int, expected: list[ast.Call]) -> Iterator[str]:
    outputs = shown.outputs(i)
    made = 0
    for group in shown.groups(outputs):
        for control in controls(group):
            made += 1
            yield from _tried(shown, outputs, group, control)
    # A row and a column, or one control per keyword.
    fewest = sum(len(c.keywords) if _called(c) == "explore" else 2 for c in expected)
    if made < fewest:
        yield f"{made} controls, at least {fewest} were asked for"


def _tried(shown: LabPage, outputs, group, control: Control) -> Iterator[str]:
    first = before = shown.picture(outputs)
    changed, slowest = 0, 0.0
    for name, move in control.moves:
        seconds = shown.make(move)
        if seconds is None:
            continue
        slowest = max(slowest, seconds)
        after = shown.picture(outputs, before)
        changed += after != before
        before = after
        errors = [*shown.errors(), *shown.messages(group)]
        yield from (f"{control.name}, {name}: {text}" for text in errors)
    print(f"  {control.name}: {changed} pictures, slowest {slowest:.1f} s")
    if not changed:
        yield f"{control.name} never changes the picture"
    elif control.returns and after != first:
        yield f"{control.name}, back where it was, draws another picture than first"
    if slowest > SLOW:
        yield f"{control.name} takes {slowest:.0f} s to redraw"
