"""Every control of every notebook, moved in JupyterLab: its picture has to follow."""

import ast
import re
import time
from collections.abc import Callable, Iterator

import nbformat
import pytest
from IPython.core.inputtransformer2 import TransformerManager
from nbformat.v4 import new_code_cell, new_notebook

from tests import notebook_tools as tools
from tests.browser.controls import Control, controls, elements
from tests.browser.lab_page import LabPage, alike
from uss_utils import publishing

pytestmark = [pytest.mark.browser, pytest.mark.timeout(600)]

SHOWING = ("explore", "pick_patch", "name_clusters")  # calls that show widgets
SECONDS = 240  # for all cells of a notebook, on a busy machine
SLOW = 15  # seconds: a redraw takes one or two, on a busy machine some more


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


INTERACTIVE = [
    path
    for path in tools.NOTEBOOKS
    if any(calls(cell.source) for cell in tools.code_cells(tools.read(path)))
]


@pytest.fixture(scope="module")
def context(browser) -> Iterator:
    """One for all notebooks: what JupyterLab is made of is loaded once."""
    made = browser.new_context(viewport={"width": 1200, "height": 1400})
    made.set_default_timeout(60_000)
    yield made
    made.close()


@pytest.fixture(scope="module")
def started(lab, context) -> Iterator:
    """Function that opens a notebook without outputs, and begins to run it."""
    folder, address = lab
    pages: list[LabPage] = []

    def start(notebook: nbformat.NotebookNode) -> LabPage:
        for cell in tools.code_cells(notebook):
            cell.outputs, cell.execution_count = [], None
        notebook.metadata.kernelspec = publishing.KERNEL
        name = f"number_{len(pages)}.ipynb"
        nbformat.write(notebook, folder / name)
        pages.append(LabPage(context.new_page()))
        pages[-1].open(address.format(name))
        pages[-1].start()
        return pages[-1]

    yield start
    for shown in pages:
        shown.close()


@pytest.fixture(scope="module")
def running(started) -> Callable:
    """Function from a path to its page, where it runs on ``smoke``, and notebook."""
    pages: dict = {}

    def run(path) -> tuple[LabPage, nbformat.NotebookNode]:
        if path not in pages:
            notebook = smoke(tools.read(path))
            pages[path] = started(notebook), notebook
        return pages[path]

    return run


@pytest.mark.notebook
@pytest.mark.slow
@pytest.mark.parametrize("path", INTERACTIVE, ids=lambda path: path.stem)
def test_every_control_changes_its_picture(running, path, request):
    shown, notebook = running(path)
    # While its controls are tried, the next notebook runs on another core.
    own = request.node.originalname
    todo = [
        item.callspec.params["path"]
        for item in request.session.items
        if getattr(item, "originalname", "") == own
    ]
    for following in todo[todo.index(path) + 1 :][:1]:
        running(following)
    found = complaints(shown, notebook)
    shown.close()
    assert found == [], "\n".join(found)


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
    return draw(k=len(drawn), one=1)

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


def test_whatever_is_broken_is_named(started):
    sources = [HEALTHY, *BROKEN, *BROKEN_WHILE_RUNNING]
    notebook = new_notebook(cells=[new_code_cell(source) for source in sources])
    found = complaints(started(notebook), notebook)
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


def complaints(shown: LabPage, notebook: nbformat.NotebookNode) -> list[str]:
    """Let the notebook end, move every control, and say what went wrong."""
    started = time.perf_counter()
    shown.finish(SECONDS)
    shown.page.bring_to_front()  # pages behind others are drawn once a second
    ran = time.perf_counter()
    found = [f"while the cells ran: {text}" for text in shown.errors()]
    cells = zip(tools.code_cells(notebook), shown.views(), strict=True)
    for i, (cell, views) in enumerate(cells):
        expected = calls(cell.source)
        if views or expected:
            said = _cell(shown, i, views, expected)
            found += [f"code cell {i + 1}: {text}" for text in said]
    found += [f"the browser's console: {text}" for text in shown.console]
    print(
        f"waited for it {ran - started:.1f} s, "
        f"tried in {time.perf_counter() - ran:.1f} s"
    )
    return found


def _cell(
    shown: LabPage, i: int, views: int, expected: list[ast.Call]
) -> Iterator[str]:
    outputs = shown.outputs(i)
    groups = shown.groups(outputs, views)
    groups = [group for group in groups if elements(group)]  # no progress bars
    if len(expected) != len(groups):
        yield f"{len(expected)} calls, {len(groups)} groups of widgets"
    made = 0
    for group in groups:
        found = list(controls(group))
        made += len(found)
        untried = elements(group) - sum(control.parts for control in found)
        if untried:
            yield f"{untried} elements are of no kind in controls.py"
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
    elif control.returns and not alike(after, first):
        yield f"{control.name}, back where it was, draws another picture than first"
    if slowest > SLOW:
        yield f"{control.name} takes {slowest:.0f} s to redraw"
