"""What the tests know about notebooks: house rules, exercises, recorded numbers."""

import ast
import re
import statistics
from collections.abc import Iterator
from pathlib import Path

import nbformat

from uss_utils import notebooks, publishing, teaching
from uss_utils.course import Result, run
from uss_utils.paths import notebooks_dir
from uss_utils.records import jsonable

NOTEBOOKS = sorted(notebooks_dir().glob("*.ipynb"))
COMMON_PARAMETERS = ("PRESET", "SEED", "STEPS")
# What may differ between two runs of the same notebook on the same machine.
VOLATILE = ("seconds", "peak_mb")
FORBIDDEN = {
    r"^\s*[!%]\s*(pip|conda|apt)": "installs packages",
    r"https?://": "holds a URL (use the download registry)",
    r"\.cuda\(": "calls .cuda() (use pick_device)",
}


def read(path: Path) -> nbformat.NotebookNode:
    return nbformat.read(path, as_version=4)


def code_cells(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def prose(notebook: nbformat.NotebookNode) -> str:
    return "\n\n".join(c.source for c in notebook.cells if c.cell_type == "markdown")


def lint(path: Path) -> list[str]:
    """Every breach of the house rules, in words; empty for a good notebook."""
    notebook = read(path)
    size = path.stat().st_size
    found = [*_form(notebook), *_parameters(notebook), *_code(notebook)]
    found += [*_outputs(notebook)]
    found += [
        f"absolute path in {leak}" for leak in publishing.absolute_paths(notebook)
    ]
    if size > publishing.LARGEST_BYTES:
        found.append(f"holds {size} bytes, at most {publishing.LARGEST_BYTES}")
    return found


def _form(notebook: nbformat.NotebookNode) -> Iterator[str]:
    first = notebook.cells[0]
    if first.cell_type != "markdown" or not first.source.startswith("# "):
        yield "the first cell is no H1 heading"
    headings = [line for line in prose(notebook).splitlines() if line.startswith("#")]
    for wanted in ("recap|what we saw", "references"):
        if not any(re.search(wanted, line, re.IGNORECASE) for line in headings):
            yield f"no heading with {wanted.replace('|', ' or ')}"
    if notebook.metadata.get("kernelspec", {}).get("name") != "python3":
        yield "the kernel is not python3"
    if "widgets" in notebook.metadata:
        yield "holds widget state"
    ids = [cell.get("id") for cell in notebook.cells]
    if None in ids or len(set(ids)) != len(ids):
        yield "cells without an id of their own"


def _parameters(notebook: nbformat.NotebookNode) -> Iterator[str]:
    tagged = [
        c for c in code_cells(notebook) if "parameters" in c.metadata.get("tags", [])
    ]
    if len(tagged) != 1:
        yield f"{len(tagged)} cells are tagged parameters, expected one"
        return
    names = {}
    for line in tagged[0].source.splitlines():
        try:
            (statement,) = ast.parse(line).body
            names[statement.targets[0].id] = ast.literal_eval(statement.value)
        except (ValueError, SyntaxError, AttributeError):
            yield f"parameters: not NAME = literal, one per line: {line!r}"
        if "#" not in line:
            yield f"parameters: no comment in {line!r}"
    for name in COMMON_PARAMETERS:
        if name not in names:
            yield f"parameters: {name} is missing"
    if names.get("PRESET") != "scenes" or names.get("STEPS") is not None:
        yield 'parameters: the defaults are PRESET = "scenes" and STEPS = None'


def _code(notebook: nbformat.NotebookNode) -> Iterator[str]:
    cells = code_cells(notebook)
    lengths = [len(cell.source.splitlines()) for cell in cells]
    if len(cells) > 30 or sum(lengths) > 250:
        yield f"{len(cells)} code cells, {sum(lengths)} lines; at most 30 and 250"
    if lengths and statistics.median(lengths) > 8:
        yield f"the median code cell has {statistics.median(lengths)} lines, at most 8"
    for i, cell in enumerate(notebook.cells):
        if cell.cell_type != "code":
            continue
        lines = cell.source.splitlines()
        if len(lines) > 25:
            yield f"cell {i} has {len(lines)} lines, at most 25"
        yield from (f"cell {i}: longer than 80: {x!r}" for x in lines if len(x) > 80)
        for pattern, complaint in FORBIDDEN.items():
            if re.search(pattern, cell.source, re.MULTILINE):
                yield f"cell {i} {complaint}"
    if not cells or not re.search(r"\brecord\(", cells[-1].source):
        yield "the last code cell does not call record("


def _outputs(notebook: nbformat.NotebookNode) -> Iterator[str]:
    cells = code_cells(notebook)
    counts = [cell.execution_count for cell in cells]
    if counts != list(range(1, len(cells) + 1)):
        yield f"not the outputs of one clean run: execution counts {counts}"
    for i, cell in enumerate(notebook.cells):
        for output in cell.get("outputs", []):
            if output.output_type == "error":
                yield f"cell {i} holds an error: {output.ename}"
            if publishing.WIDGET in output.get("data", {}):
                yield f"cell {i} holds a widget view"
    try:
        notebooks.read_record(notebook)
    except ValueError as error:
        yield str(error)


def checked(notebook: nbformat.NotebookNode) -> dict[str, str]:
    """Name of every exercise -> name of the function given to ``check``."""
    found = {}
    for cell in code_cells(notebook):
        for node in ast.walk(ast.parse(_without_magics(cell.source))):
            # A plain name: ``datasets.check`` looks for files.
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "check":
                name, attempt = node.args
                found[name.value] = ast.unparse(attempt)
    return found


def solutions(notebook: nbformat.NotebookNode) -> dict[str, str]:
    """Name of every exercise -> code of the collapsed solution that follows it."""
    found: dict[str, str] = {}
    pending: list[str] = []
    for cell in notebook.cells:
        if cell.cell_type == "code":
            names = checked(nbformat.v4.new_notebook(cells=[cell]))
            pending = list(names) or pending
        elif "<details" in cell.source and pending:
            fences = re.findall(r"```python\n(.*?)```", cell.source, re.DOTALL)
            found |= dict.fromkeys(pending, "\n".join(fences))
            pending = []
    return found


def imports(notebook: nbformat.NotebookNode) -> str:
    """All top-level import statements: what a solution may rely on."""
    lines = []
    for cell in code_cells(notebook):
        for node in ast.parse(_without_magics(cell.source)).body:
            if isinstance(node, ast.Import | ast.ImportFrom):
                lines.append(ast.unparse(node))
    return "\n".join(lines)


def solve(notebook: nbformat.NotebookNode, name: str) -> teaching.Outcome:
    """Run the notebook's own solution of an exercise against its check."""
    namespace: dict = {}
    exec(imports(notebook), namespace)
    exec(solutions(notebook)[name], namespace)
    return teaching.outcome(name, namespace[checked(notebook)[name]])


def execute(path: Path, folder: Path, preset: str, timeout: int = 180) -> Result:
    """Run one notebook with a preset, writing below ``folder``."""
    (result,) = run([path], preset=preset, out=folder, timeout=timeout)
    return result


def numbers(record: dict, prefix: str = "") -> Iterator[tuple[str, float | None]]:
    """Every number of a record under a dotted name; null counts as number."""
    for name, value in record.items():
        if name in VOLATILE or isinstance(value, bool | str):
            continue
        if isinstance(value, list):
            value = dict(enumerate(value))
        if isinstance(value, dict):
            yield from numbers(
                {str(k): v for k, v in value.items()}, f"{prefix}{name}."
            )
        else:
            yield prefix + name, value


def differences(committed: dict, fresh: dict) -> list[str]:
    """Recorded numbers of two runs that are too far apart, in words.

    Runs differ a little between machines (order of sums, then other k-means optima):
    10 % or two points are allowed, 0.05 for numbers up to 1.
    """
    old, new = dict(numbers(jsonable(committed))), dict(numbers(jsonable(fresh)))
    if old.keys() != new.keys():
        return [f"recorded names differ: {sorted(old.keys() ^ new.keys())}"]
    found = []
    for name, was in old.items():
        now = new[name]
        if was is None or now is None:
            close = was is now
        else:
            close = abs(now - was) <= max(0.1 * abs(was), 2 if abs(was) > 1 else 0.05)
        if not close:
            found.append(f"{name}: committed {was}, fresh {now}")
    return found


def _without_magics(source: str) -> str:
    return re.sub(r"^(\s*)[%!].*$", r"\1pass", source, flags=re.MULTILINE)
