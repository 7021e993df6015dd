"""What only notebooks use: showing source, recording numbers, checking exercises."""

import copy
import html
import inspect
import json
import textwrap
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from IPython.display import Markdown, display

from uss_utils import exercises
from uss_utils.boards import markdown_table
from uss_utils.metrics import Scores
from uss_utils.notebooks import RECORD_MARK
from uss_utils.paths import repo_root
from uss_utils.records import jsonable

LONGEST_VALUE = 120


class Source:
    """Source code that a notebook shows highlighted and a terminal as text."""

    def __init__(self, text: str, caption: str):
        self.text = text
        self.caption = caption

    def _repr_mimebundle_(self, include=None, exclude=None) -> dict[str, str]:
        return {"text/plain": self.text, "text/html": self._html()}

    def __repr__(self) -> str:
        return self.text

    def _html(self) -> str:
        from pygments import highlight
        from pygments.formatters import HtmlFormatter
        from pygments.lexers import PythonLexer

        # Inline styles survive where style sheets are stripped (code hosting sites),
        # and a background of its own keeps the colours readable on a dark theme.
        formatter = HtmlFormatter(
            noclasses=True,
            prestyles="padding: 0.6em; color: #222; background: #f6f6f6",
        )
        caption = html.escape(self.caption)
        code = highlight(self.text, PythonLexer(), formatter)
        return f'<div style="color: #777; font-size: 85%">{caption}</div>{code}'


def show_source(obj: Any) -> Source:
    """The source of a function, class or method as it is installed.

    Decorators and docstring are part of it; imports and the rest of the module are
    not.

    Raises:
        ValueError: ``obj`` has no Python source (a builtin, a value).
    """
    obj = inspect.unwrap(obj) if callable(obj) else obj
    try:
        lines, first = inspect.getsourcelines(obj)
        file = Path(inspect.getsourcefile(obj) or "")
    except (TypeError, OSError) as error:
        raise ValueError(
            f"{obj!r} has no Python source to show; give a function, class or method"
        ) from error
    text = textwrap.dedent("".join(lines)).rstrip()
    root = repo_root()
    place = (
        file.relative_to(root).as_posix() if file.is_relative_to(root) else file.name
    )
    return Source(text, f"{place}, line {first}")


def show_table(
    rows: Mapping[str, Mapping[str, Any] | Scores], note: str = "", corner: str = ""
) -> None:
    """Display numbers as a table, a note (the protocol, say) in italics beneath.

    Args:
        rows: name of a row -> heading of a column -> value, or the scores whose
            accuracy and mIoU to show; floats get one decimal, a value that a row lacks
            is a dash.
        note: text under the table.
        corner: heading of the names.

    Raises:
        ValueError: there is no row.
    """
    if not rows:
        raise ValueError("show_table needs at least one row")
    table = {
        str(name): {"accuracy": row.acc, "mIoU": row.miou}
        if isinstance(row, Scores)
        else row
        for name, row in rows.items()
    }
    columns = list(dict.fromkeys(heading for row in table.values() for heading in row))
    cells = [
        [name, *(_cell(row.get(heading, "–")) for heading in columns)]
        for name, row in table.items()
    ]
    lines = markdown_table([corner, *map(str, columns)], cells)
    lines += ["", f"*{note}*"] if note else []
    display(Markdown("\n".join(lines)))


# Fields that say where something lies or what it is called, not what is done.
_NO_SETTINGS = ("name", "seed", "root", "weights", "cache", "crf", "limit_crf")


def show_settings(configs: Mapping[str, Any], note: str = "") -> None:
    """Display the settings in which some configurations differ, one column for each.

    Args:
        configs: heading of a column -> a method's ``Config``, all of one method.
        note: text under the table.

    Raises:
        ValueError: fewer than two, of different methods, or all the same.
    """
    if len(configs) < 2 or len({type(each) for each in configs.values()}) != 1:
        raise ValueError("show_settings needs at least two Configs of one method")
    rows = {}
    for field in fields(next(iter(configs.values()))):
        said = {k: getattr(config, field.name) for k, config in configs.items()}
        if field.name not in _NO_SETTINGS and len({*map(str, said.values())}) > 1:
            rows[field.name] = {
                k: "–" if v is None else str(v) for k, v in said.items()
            }
    show_table(rows, note, corner="setting")


def _cell(value: Any) -> str:
    return f"{value:.1f}" if isinstance(value, float | np.floating) else str(value)


def record(**values: Any) -> None:
    """Record a notebook's numbers: one JSON output that programs read back.

    Called once, in the last code cell; the course's summary and the tests read it with
    :func:`uss_utils.notebooks.read_record`.
    By convention ``seconds`` and ``peak_mb`` are what may differ between two runs.
    Arrays and tensors become lists and numbers, NaN becomes null.

    Raises:
        ValueError: nothing was given, or something that JSON has no form for.
    """
    if not values:
        raise ValueError("record() needs at least one name=value")
    values = jsonable(values)
    try:
        json.dumps(values, allow_nan=False)
    except TypeError as error:
        raise ValueError(
            f"cannot record this ({error}); give numbers, text, lists, dictionaries, "
            "arrays or tensors"
        ) from error
    width = max(map(len, values))
    lines = [f"{name:<{width}}  {_number(item)}" for name, item in values.items()]
    display(
        {"application/json": values, "text/plain": "\n".join(lines)},
        raw=True,
        metadata={RECORD_MARK: True},
    )


@dataclass(frozen=True)
class Outcome:
    """Result of a check: ``state`` is "correct", "wrong", "unattempted", "unknown"."""

    name: str
    state: str
    message: str

    def __str__(self) -> str:
        return f"{self.name}: {self.message}"


def outcome(name: str, attempt: Callable) -> Outcome:
    """Try a learner's function on the registered cases, without ever raising.

    Args:
        name: a name registered in ``uss_utils.exercises``.
        attempt: the learner's function; one that returns None counts as a stub.
    """
    known = exercises.registry()
    if name not in known:
        listed = ", ".join(sorted(known)) or "none"
        return Outcome(name, "unknown", f"there is no such exercise; known: {listed}")
    for number, (arguments, expected) in enumerate(known[name]()):
        # A copy: code that changes its input must not spoil the comparison.
        given = copy.deepcopy(arguments)
        try:
            got = attempt(*given)
        except (Exception, SystemExit) as error:
            return Outcome(name, "wrong", f"not yet – {_one_line(error, attempt)}")
        if got is None and number == 0:
            return Outcome(name, "unattempted", "not attempted yet")
        complaint = _compare(got, expected)
        if complaint:
            inputs = ", ".join(_short(argument) for argument in arguments)
            return Outcome(name, "wrong", f"not yet – for ({inputs}) {complaint}")
    return Outcome(name, "correct", "correct")


def check(name: str, attempt: Callable) -> None:
    """Print how far an exercise is: "not attempted yet", "not yet – …" or "correct"."""
    print(outcome(name, attempt))


def _compare(got: Any, expected: Any) -> str:
    """Empty when equal up to rounding, else what differs."""
    if callable(expected):
        return expected(got)
    try:
        found, wanted = _array(got), _array(expected)
    except (TypeError, ValueError):
        return f"got {_short(got)}, expected {_short(expected)}"
    if found.dtype == object and wanted.dtype != object:  # None, a generator, …
        return f"got {_short(got)}, expected {_short(expected)}"
    if found.shape != wanted.shape:
        return f"got shape {found.shape}, expected shape {wanted.shape}"
    try:
        same = np.allclose(found, wanted, rtol=1e-4, atol=1e-5, equal_nan=True)
    except TypeError:  # text and objects have no tolerance
        same = np.array_equal(found, wanted)
    return "" if same else f"got {_short(got)}, expected {_short(expected)}"


def _array(value: Any) -> np.ndarray:
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu().numpy()
    elif isinstance(value, list | tuple):
        value = [_array(item) for item in value]
    return np.asarray(value)


def _short(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu().numpy()
    if isinstance(value, np.ndarray):
        if value.size > 24:
            return f"array of shape {value.shape}"
        value = (
            np.round(value, 4).tolist() if value.dtype.kind == "f" else value.tolist()
        )
    elif isinstance(value, float | np.generic):
        value = _number(value)
    text = " ".join(str(value).split())
    return text if len(text) <= LONGEST_VALUE else text[: LONGEST_VALUE - 1] + "…"


def _number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float | np.floating) else str(value)


def _one_line(error: BaseException, attempt: Callable) -> str:
    """The error and the line of the learner's own code it came from."""
    text = " ".join(str(error).split())[:LONGEST_VALUE]
    code = getattr(attempt, "__code__", None)
    frames = traceback.walk_tb(error.__traceback__)
    numbers = [line for frame, line in frames if code and frame.f_code is code]
    where = f" in line {numbers[0]} of the cell" if numbers else ""
    return f"your code raised {type(error).__name__}{where}: {text}"
