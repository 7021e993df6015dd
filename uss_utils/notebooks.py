"""Which notebooks there are, which parameters they know and what they recorded."""

import ast
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import nbformat

from uss_utils.paths import notebooks_dir

RECORD_MARK = "uss_record"  # marks the output that holds a notebook's numbers


def find(names: Sequence[str | Path] | None = None) -> list[Path]:
    """The notebooks of the course, or those named, in order.

    Args:
        names: file names, with or without ending, or their leading number ("03");
            paths of other notebooks. All of the course when None.

    Raises:
        FileNotFoundError: a name that fits none; the message names the known ones.
    """
    known = sorted(notebooks_dir().glob("[0-9]*.ipynb"))
    if not names:
        if not known:
            raise FileNotFoundError(f"there are no notebooks in {notebooks_dir()}")
        return known
    return [_find_one(Path(name), known) for name in names]


def _find_one(name: Path, known: list[Path]) -> Path:
    if name.suffix == ".ipynb" and name.is_file():
        return name.resolve()
    for path in known:
        if name.name in (path.name, path.stem, path.stem.split("_")[0]):
            return path
    listed = ", ".join(path.stem for path in known) or "none"
    raise FileNotFoundError(f"no notebook {str(name)!r}; known: {listed}")


def parameters_of(path: Path) -> dict[str, Any]:
    """Names and values of a notebook's cell tagged ``parameters``.

    Raises:
        ValueError: the file is no notebook, or the cell holds more than literals.
    """
    try:
        notebook = nbformat.read(path, as_version=4)
    except (ValueError, nbformat.ValidationError) as error:
        raise ValueError(f"{path} is not a notebook in format 4") from error
    found = {}
    for cell in notebook.cells:
        if "parameters" in cell.metadata.get("tags", []):
            for line in ast.parse(cell.source).body:
                try:
                    (target,) = line.targets
                    found[target.id] = ast.literal_eval(line.value)
                except (AttributeError, ValueError) as error:
                    raise ValueError(
                        f"{path.name}: the parameters cell may hold NAME = literal "
                        f"lines only, not {ast.unparse(line)!r}"
                    ) from error
    return found


def parse_parameters(words: Sequence[str]) -> dict[str, Any]:
    """``["SEED=3", "DATA_ROOT=/data"]`` as dictionary; literals become values.

    Raises:
        ValueError: a word without "=".
    """
    found = {}
    for word in words:
        name, sign, text = word.partition("=")
        if not sign or not name.isidentifier():
            raise ValueError(f"parameter {word[:50]!r} should look like NAME=VALUE")
        try:
            found[name] = ast.literal_eval(text)
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            found[name] = text  # "{[]: 1}" and "----...1" are no literals either
    return found


def injected(paths: Sequence[Path], parameters: Mapping[str, Any]) -> list[dict]:
    """Which parameters each notebook gets: those it knows and that change something.

    Raises:
        ValueError: a parameter that none of the notebooks knows (papermill would only
            warn and run on with the default).
    """
    known = {path: parameters_of(path) for path in paths}
    unknown = set(parameters).difference(*known.values())
    if unknown:
        lines = [
            f"  {path.stem}: {', '.join(k) or 'none'}" for path, k in known.items()
        ]
        raise ValueError(
            f"unknown parameter {', '.join(sorted(unknown))}; the notebooks know\n"
            + "\n".join(lines)
        )
    return [
        {name: v for name, v in parameters.items() if name in own and own[name] != v}
        for own in known.values()
    ]


def read_record(notebook: str | Path | nbformat.NotebookNode) -> dict[str, Any]:
    """What the executed notebook recorded.

    Raises:
        ValueError: it recorded nothing, or more than once.
    """
    name = "the notebook"
    if not isinstance(notebook, nbformat.NotebookNode):
        name = Path(notebook).name
        notebook = nbformat.read(notebook, as_version=4)
    found = [
        output.data["application/json"]
        for cell in notebook.cells
        for output in cell.get("outputs", [])
        if output.get("metadata", {}).get(RECORD_MARK)
    ]
    if len(found) != 1:
        raise ValueError(
            f"{name} holds {len(found)} records, expected one: call record(...) once, "
            "in the last code cell, and execute the notebook to its end"
        )
    return found[0]
