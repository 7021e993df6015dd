"""The committed notebooks: house rules, exercises, smoke runs, recorded numbers.

Two sets of numbers are compared. What a notebook's committed outputs recorded must
agree with a fresh run of the same notebook on the ``scenes`` preset. That run is taken
from ``runs/scenes`` when ``make course`` made it from the present code; otherwise
notebooks that take less than ``QUICK`` seconds are run again here, and longer ones are
skipped, saying so.
"""

import math
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from tests import notebook_tools as tools
from uss_utils import course, notebooks, publishing
from uss_utils.paths import repo_root, runs_dir

QUICK = 45
SECONDS = 180  # three times what a smoke notebook should take

if tools.NOTEBOOKS:
    NOTEBOOKS = [pytest.param(path, id=path.stem) for path in tools.NOTEBOOKS]
else:
    reason = "there are no notebooks yet"
    NOTEBOOKS = [pytest.param(None, id="none", marks=pytest.mark.skip(reason=reason))]
each_notebook = pytest.mark.parametrize("path", NOTEBOOKS)


@each_notebook
def test_house_rules(path):
    assert tools.lint(path) == []


@each_notebook
def test_every_exercise_has_a_solution_that_passes(path):
    notebook = tools.read(path)
    exercises = tools.checked(notebook)
    assert set(tools.solutions(notebook)) == set(exercises)
    for name in exercises:
        assert tools.solve(notebook, name).state == "correct", name


@each_notebook
@pytest.mark.notebook
@pytest.mark.timeout(SECONDS + 60)
def test_smoke_run(path, tmp_path):
    result = tools.execute(path, tmp_path, "smoke", timeout=SECONDS)
    assert result.ok, result.error
    assert result.seconds < SECONDS
    assert result.record["preset"] == "smoke"
    for name, value in tools.numbers(result.record):
        assert value is not None and math.isfinite(value), name
    executed = tools.read(result.output)
    text = "".join(
        o.get("text", "") for c in executed.cells for o in c.get("outputs", [])
    )
    for name in tools.checked(executed):
        assert f"{name}: not attempted yet" in text
    assert publishing.absolute_paths(executed) == []


@each_notebook
@pytest.mark.notebook
@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_committed_numbers_are_those_of_a_fresh_run(path, tmp_path):
    committed = notebooks.read_record(path)
    fresh = _fresh_record(path)
    if fresh is None:
        seconds = committed.get("seconds")
        # Where no record lies the gathering ones make all of them first.
        if seconds is None or seconds > QUICK or path.stem in course.GATHERING:
            pytest.skip(f"takes {seconds} s: run `make course` first, then this test")
        result = tools.execute(path, tmp_path, "scenes", timeout=1200)
        assert result.ok, result.error
        fresh = result.record
    assert tools.differences(committed, fresh) == []


def _fresh_record(path: Path) -> dict | None:
    """What ``make course`` recorded, unless notebook or package changed since."""
    run = runs_dir() / "scenes" / "notebooks" / path.name
    if not run.is_file():
        return None
    sources = [
        *(repo_root() / "uss_utils").rglob("*.py"),
        repo_root() / "pyproject.toml",
    ]
    if max(file.stat().st_mtime for file in sources) > run.stat().st_mtime:
        return None
    committed, fresh = (
        [cell.source for cell in tools.code_cells(tools.read(file))]
        for file in (path, run)
    )
    return notebooks.read_record(run) if committed == fresh else None


GOOD = [
    new_markdown_cell("# Title\n\nAfter this notebook you can count."),
    new_code_cell("import math", execution_count=1),
    new_code_cell(
        'PRESET = "scenes"  # size\nSEED = 0  # seed\nSTEPS = None  # steps',
        metadata={"tags": ["parameters"]},
        execution_count=2,
    ),
    new_code_cell("def iou(matrix):\n    return None", execution_count=3),
    new_code_cell(
        'check("iou", iou)',
        execution_count=4,
        outputs=[new_output("stream", text="iou: not attempted yet\n")],
    ),
    new_markdown_cell(
        "<details><summary>Solution</summary>\n\n```python\ndef iou(matrix):\n"
        "    both = matrix.sum(0) + matrix.sum(1) - matrix.diag()\n"
        "    return matrix.diag() / both\n```\n\n</details>"
    ),
    new_markdown_cell("## Recap\n\nDone.\n\n## References\n\nNone."),
    new_code_cell(
        "record(preset=PRESET)",
        execution_count=5,
        outputs=[
            new_output(
                "display_data",
                {"application/json": {"preset": "scenes"}},
                metadata={"uss_record": True},
            )
        ],
    ),
]


def good_notebook() -> nbformat.NotebookNode:
    notebook = new_notebook(cells=[nbformat.from_dict(dict(cell)) for cell in GOOD])
    notebook.metadata = nbformat.from_dict({"kernelspec": publishing.KERNEL})
    return nbformat.reads(nbformat.writes(notebook), as_version=4)


def _edit(index, field, value):
    def change(notebook):
        notebook.cells[index][field] = value

    return change


def _drop(index):
    return lambda notebook: notebook.cells.pop(index)


def _widget_state(notebook):
    notebook.metadata["widgets"] = {}


def _kernel(notebook):
    notebook.metadata.kernelspec.name = "ann"


def _big(notebook):
    notebook.cells[1].outputs = [new_output("display_data", {"image/png": "a" * 10**7})]


def _error(notebook):
    notebook.cells[1].outputs = [new_output("error", ename="KeyError", evalue="x")]


def _computed(notebook):
    notebook.cells[2].source += "\nSIZE = 2 * SEED  # derived"


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (_edit(0, "source", "Title"), "no H1"),
        (_edit(6, "source", "## References"), "no heading with recap"),
        (_edit(6, "source", "## Recap"), "no heading with references"),
        (_kernel, "kernel is not python3"),
        (_widget_state, "widget state"),
        (_drop(2), "0 cells are tagged"),
        (_computed, "not NAME = literal"),
        (
            _edit(2, "source", 'PRESET = "scenes"  # a\nSEED = 0  # b'),
            "STEPS is missing",
        ),
        (_edit(2, "source", 'PRESET = "scenes"\nSEED = 0  # b'), "no comment in"),
        (_edit(2, "source", 'PRESET = "smoke"  # a'), "the defaults are"),
        (_edit(1, "source", "!pip install x"), "installs packages"),
        (_edit(1, "source", 'a = "https://x.org"'), "holds a URL"),
        (_edit(1, "source", "x.cuda()"), r"calls .cuda\(\)"),
        (_edit(1, "source", 'open("/home/ann/x")'), "absolute path in cell 1"),
        (_edit(1, "source", "\n".join(["x = 1"] * 26)), "26 lines, at most 25"),
        (_edit(1, "source", "x = " + "1" * 80), "longer than 80"),
        (_drop(7), "does not call record"),
        (_edit(7, "outputs", []), "holds 0 records"),
        (_edit(3, "execution_count", 7), "not the outputs of one clean run"),
        (_edit(3, "execution_count", None), "not the outputs of one clean run"),
        (_error, "holds an error: KeyError"),
        (_big, "at most 1200000"),
    ],
)
def test_lint_finds(tmp_path, change, complaint):
    import re

    path = tmp_path / "00_a.ipynb"
    notebook = good_notebook()
    nbformat.write(notebook, path)
    assert tools.lint(path) == []
    change(notebook)
    nbformat.write(notebook, path)
    assert any(re.search(complaint, line) for line in tools.lint(path))


def test_solution_tool_runs_the_collapsed_code():
    notebook = good_notebook()
    notebook.cells[1].source += '\nprint(datasets.check("camvid", None))'
    assert tools.checked(notebook) == {"iou": "iou"}
    assert tools.solve(notebook, "iou").state == "correct"
    notebook.cells[5].source = notebook.cells[5].source.replace("/ both", "")
    assert tools.solve(notebook, "iou").state == "wrong"
    notebook.cells.pop(5)
    assert tools.solutions(notebook) == {}


@pytest.mark.parametrize(
    ("fresh", "expected"),
    [
        ({"miou": 26.0, "acc": 0.52, "iou": [1, 2], "name": "b"}, 0),
        ({"miou": 29.0, "acc": 0.5, "iou": [1, 2]}, 1),
        ({"miou": 25.0, "acc": 0.6, "iou": [1, 9]}, 2),
        ({"miou": 25.0, "acc": None, "iou": [1, 2]}, 1),
        ({"miou": 25.0}, 1),
    ],
)
def test_differences_of_recorded_numbers(fresh, expected):
    committed = {"miou": 25.0, "acc": 0.5, "iou": [1, 2], "seconds": 3}
    assert len(tools.differences(committed, fresh | {"seconds": 99})) == expected
