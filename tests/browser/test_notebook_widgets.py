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
from tests.browser.controls import Control, controls, untried
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


HEALTHY = """
import ipywidgets
from IPython.display import Javascript, display
from uss_utils import plots, widgets
plots.use_notebook_style()

def draw(name="u", **values):
    values["name"] = len(name)
    numbers = {k: float(ord(v) if isinstance(v, str) else v) for k, v in values.items()}
    return plots.bar_ladder(numbers)

several = {"toggles": ipywidgets.ToggleButtons(options=["p", "q"])}
several["radio"] = ipywidgets.RadioButtons(options=["r", "s"])
several["toggle"] = ipywidgets.ToggleButton(description="toggle")
several |= {"k": (1, 9), "x": (0.0, 1.0), "which": ["a", "b"]}
widgets.explore(draw, tick=False, name="u", **several);
"""
BROKEN = {  # cell -> what has to be said of it
    """
def fails(k=3):
    if k == 9:
        raise ValueError("nine is too many")
    return draw(k=k)

widgets.explore(fails, k=(1, 9));
""": ["k, to its end: ValueError: nine is too many"],
    """
widgets.explore(lambda k, dull: draw(k=k), k=(1, 9), dull=["a", "b"]);
""": ["dull never changes the picture"],
    """
drawn = []

def remembers(k=3):
    drawn.append(k)
    return draw(k=len(drawn))

widgets.explore(remembers, k=(1, 9));
""": ["k, back where it was, draws another picture than first"],
    """
if not drawn:
    widgets.explore(draw, k=(1, 9))
""": ["1 calls, 0 groups of widgets", "0 controls, at least 1 were asked for"],
    """
button = ipywidgets.Button(description="break")
button.on_click(lambda button: 1 / 0)
display(ipywidgets.VBox([button, ipywidgets.ColorPicker()]))
""": [
        "0 calls, 1 groups of widgets",
        "1 elements are of no kind",
        "submit 'a word': .*ZeroDivisionError",
        "submit 'another word': .*ZeroDivisionError",
        "never changes the picture",
    ],
}
BROKEN_WHILE_RUNNING = {
    "display(Javascript('console.error(\"from the page\")'))": "console: from the page",
    "raise KeyError('in a cell')": "while the cells ran: .*KeyError: 'in a cell'",
}


def test_whatever_is_broken_is_named(opened):
    sources = [HEALTHY, *BROKEN, *BROKEN_WHILE_RUNNING]
    notebook = new_notebook(cells=[new_code_cell(source) for source in sources])
    found = complaints(opened, notebook)
    expected = [
        f"code cell {i}: .*{text}"
        for i, texts in enumerate(BROKEN.values(), 2)
        for text in texts
    ]
    expected += BROKEN_WHILE_RUNNING.values()
    for text in expected:
        named = [each for each in found if re.search(text, each, re.DOTALL)]
        assert len(named) == 1, (text, found)
    assert len(found) == len(expected), found


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
        if views or expected:
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
        found = list(controls(group))
        made += len(found)
        if untried(group, found):
            yield f"{untried(group, found)} elements are of no kind in controls.py"
        for control in found:
            yield from _tried(shown, outputs, group, control)
    # One control per keyword, or a row and a column.
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
