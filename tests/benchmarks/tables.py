"""The table of the benchmarks: as text, as a JSON that is kept, and against it."""

import datetime
import json
import os
import subprocess
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import psutil

from tests.benchmarks.cases import SECONDS
from uss_utils.environment import versions
from uss_utils.paths import atomic_file, repo_root
from uss_utils.records import jsonable
from uss_utils.weights_card import machine

FORMAT = 1
NOTHING = "-"
SHOWN = 0.05  # GB: smaller changes of memory are those of the allocator
HEADER = (
    "step",
    "size",
    "ours",
    "memory",
    "released",
    "memory",
    "source",
    "gain",
    "target",
    "met",
    "change",
)

Row = dict[str, Any]


def about() -> dict[str, Any]:
    """What a table stands on: date, commit, machine, versions."""
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d"),
        "commit": _commit(),
        "cores": os.cpu_count(),
        "machine": machine(),
        "load": round(psutil.getloadavg()[0], 1),
        "versions": versions(),
    }


def _commit() -> str | None:
    """Commit that stands here, with + where files differ from it; None: no checkout."""
    command = ["git", "describe", "--always", "--abbrev=10", "--dirty=+", "--exclude=*"]
    try:
        done = subprocess.run(command, cwd=repo_root(), capture_output=True, text=True)
    except OSError:
        return None
    return done.stdout.strip() or None


def described(facts: dict[str, Any]) -> str:
    """:func:`about` in one line."""
    named = facts["versions"]
    return (
        f"{facts['date']}, commit {facts['commit'] or 'unknown'}, {facts['machine']}, "
        f"{facts['cores']} cores, load {facts['load']} at the start, "
        f"python {named['python']}, torch {named['torch']}"
    )


def write(rows: Sequence[Row], facts: dict[str, Any], path: Path) -> None:
    """Keep a table, completely or not at all."""
    kept = jsonable({"format": FORMAT, "about": facts, "rows": list(rows)})
    with atomic_file(path) as temporary:
        temporary.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")


def read(path: Path) -> dict[str, Any]:
    """A kept table.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is no such file.
    """
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
        if kept["format"] != FORMAT:
            raise ValueError(f"format {kept['format']}")
        [key(row) for row in kept["rows"]]
        kept["about"]["date"]
    except FileNotFoundError:
        raise FileNotFoundError(f"no kept table at {path}; --save writes one") from None
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is no kept table of benchmarks: {error}") from error
    return kept


def key(row: Row) -> tuple[str, str, str]:
    """What a row is compared by."""
    return row["group"], row["name"], row["size"]


def gain(row: Row) -> float | None:
    """How many times better than the authors' code."""
    return _better(row, row["released"])


def _better(row: Row, other: float | None) -> float | None:
    """Factor by which a row's figure is better than another one."""
    if not row["figure"] or not other:
        return None
    both = row["figure"], other
    return other / row["figure"] if row["unit"] == SECONDS else both[0] / both[1]


def met(row: Row) -> bool | None:
    """Whether the targets are reached; None where there is none."""
    if row["target"] is None and row["memory_target"] is None:
        return None
    if row["error"] or row["figure"] is None:
        return False
    factor = _better(row, row["target"])
    small = row["memory_target"] is None or row["memory"] <= row["memory_target"]
    return small and (factor is None or factor >= 1)


def change(row: Row, kept: Row | None) -> str:
    """A row against the kept one: time and memory that it takes more or less."""
    if kept is None or row["figure"] is None:
        return "new" if kept is None else NOTHING
    if not kept["figure"]:
        return "new"
    text = f"{100 * (1 / _better(row, kept['figure']) - 1):+.0f} %"
    if row["memory"] is not None and kept["memory"] is not None:
        more = row["memory"] - kept["memory"]
        if abs(more) >= SHOWN:
            text += f", {more:+.2f} GB"
    return text


def table(rows: Iterable[Row], kept: dict[str, Any] | None = None) -> str:
    """All rows as aligned text, by group.

    Args:
        rows: measured ones.
        kept: from :func:`read`; adds the change of time (and memory) against it.
    """
    rows = list(rows)
    before = {key(row): row for row in kept["rows"]} if kept else {}
    cells = {place: _cells(row) for place, row in enumerate(rows)}
    for place, row in enumerate(rows if kept else ()):
        cells[place] += [change(row, before.get(key(row)))]
    header = HEADER if kept else HEADER[:-1]
    lines = aligned([header, *cells.values()])
    text, group = [lines[0]], None
    for row, line in zip(rows, lines[1:], strict=True):
        if row["group"] != group:
            group = row["group"]
            text += ["", group]
        text.append(line)
        if row["error"]:
            text.append(f"    failed: {row['error']}")
    return "\n".join(text)


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of columns that stand below each other."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]


def _cells(row: Row) -> list[str]:
    sign = "+" if row["memory_counts"] == "added" else ""
    factor, reached = gain(row), met(row)
    return [
        f"  {row['name']}",
        row["size"],
        "failed" if row["error"] else figure(row["figure"], row["unit"]),
        memory(row["memory"], sign),
        figure(row["released"], row["unit"]),
        memory(row["released_memory"], sign),
        row["source"] or NOTHING,
        NOTHING if factor is None else f"{factor:.{1 if factor < 10 else 0}f} x",
        _target(row),
        {None: NOTHING, True: "yes", False: "NO"}[reached],
    ]


def figure(value: float | None, unit: str) -> str:
    """A figure with its unit; short times in milliseconds."""
    if value is None:
        return NOTHING
    if unit == SECONDS and value < 0.1:
        return f"{1000 * value:.3g} ms"
    return f"{value:.3g} {unit}" if value < 1000 else f"{value:.0f} {unit}"


def memory(value: float | None, sign: str = "") -> str:
    """GB in words; with a sign where it is what was added."""
    return NOTHING if value is None else f"{sign}{value:.2f} GB"


def _target(row: Row) -> str:
    parts = []
    if row["target"] is not None:
        relation = "<=" if row["unit"] == SECONDS else ">="
        parts.append(f"{relation} {figure(row['target'], row['unit'])}")
    if row["memory_target"] is not None:
        parts.append(f"<= {row['memory_target']:g} GB")
    return ", ".join(parts) or NOTHING


def summary(rows: Sequence[Row]) -> str:
    """How many targets are met, and which are not."""
    judged = [row for row in rows if met(row) is not None]
    missed = [f"{row['group']}: {row['name']}" for row in judged if not met(row)]
    failed = sum(bool(row["error"]) for row in rows)
    text = f"{len(judged) - len(missed)} of {len(judged)} targets met"
    text += f"; not met: {'; '.join(missed)}" if missed else ""
    return text + (f"; {failed} of {len(rows)} rows failed" if failed else "")
