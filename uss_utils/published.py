"""What the papers and their projects report, each number with its source and protocol.

Only numbers that were read somewhere stand here: in a project's own files, in a thread
where its released model was scored, or in a public list of results. They were reached
on photographs, with large backbones, under protocols that differ from each other and
from this course's. Beside a record of the course they give the scale, no more.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from uss_utils.boards import markdown_table
from uss_utils.presets import unknown

FILE = Path(__file__).with_name("published.json")
# Column of the table -> the two scores it shows.
COLUMNS = {
    "clusters": ("cluster_acc", "cluster_miou"),
    "linear probe": ("linear_acc", "linear_miou"),
    "nearest labelled segments": ("retrieval_acc", "retrieval_miou"),
    "not stated how": ("unstated_acc", "unstated_miou"),
}
SCORES = tuple(score for pair in COLUMNS.values() for score in pair)


@dataclass(frozen=True)
class Published:
    """One reported result.

    Attributes:
        method: the method's module; "kmeans" for k-means baselines.
        name: what it is called, with what sets it apart.
        benchmark: data set and number of classes.
        backbone: the network below.
        scores: names of :data:`SCORES` -> percent; those reported only.
        protocol: how it was scored, in words.
        source: where the number was read, in words.
    """

    method: str
    name: str
    benchmark: str
    backbone: str
    scores: dict[str, float]
    protocol: str
    source: str


def published(
    method: str | None = None, benchmark: str | None = None
) -> list[Published]:
    """The reported results, in the order of the methods' chapters.

    Args:
        method: of this method only; one of which no number could be read gives none.
        benchmark: on this benchmark only.

    Raises:
        ValueError: nothing is known under this name; the message lists what is.
    """
    content = _read()
    rows = [_result(row, content["protocols"]) for row in content["results"]]
    methods = {row.method: None for row in rows} | dict.fromkeys(content["not_found"])
    _known("method", method, methods)
    _known("benchmark", benchmark, {row.benchmark: None for row in rows})
    return [
        row
        for row in sorted(rows, key=_place)
        if method in (None, row.method) and benchmark in (None, row.benchmark)
    ]


def not_found() -> dict[str, str]:
    """Methods of which no number could be read, and why."""
    return dict(_read()["not_found"])


def first() -> list[Published]:
    """One result of every method and protocol: a short list, all in :func:`published`.

    Of each, the first benchmark and the first backbone.
    """
    found: dict[tuple[str, str, str], Published] = {}
    for row in published():
        found.setdefault((row.method, row.name, row.protocol), row)
    benchmarks = {row.method: row.benchmark for row in reversed(published())}
    return [row for row in found.values() if row.benchmark == benchmarks[row.method]]


def table(rows: Iterable[Published] | None = None, *, sources: bool = True) -> str:
    """Markdown table of reported results, how to read it above, protocols beneath.

    Args:
        rows: from :func:`published`; None: all, with a line on what was not found.
        sources: with a column that says where each number was read.
    """
    shown = published() if rows is None else list(rows)
    if not shown:
        return "no reported results"
    protocols = list(_read()["protocols"].values())  # R1 is the same in every table
    columns = [c for c, pair in COLUMNS.items() if any(_has(r, pair) for r in shown)]
    header = ["method", "benchmark", "backbone", *columns, "protocol"]
    cells = [
        [
            row.name,
            row.benchmark,
            row.backbone,
            *(_pair(row, COLUMNS[column]) for column in columns),
            f"R{protocols.index(row.protocol) + 1}",
            *([row.source] if sources else []),
        ]
        for row in shown
    ]
    lines = [
        "Accuracy / mIoU in percent, as reported; – where it was not. R: protocol.",
        "",
    ]
    lines += markdown_table([*header, *(["source"] if sources else [])], cells)
    used = {row.protocol for row in shown}
    numbered = enumerate(protocols, 1)
    lines += ["", *(f"- R{i}: {line}" for i, line in numbered if line in used)]
    if rows is None:
        lines += [f"- {name.upper()}: {why}" for name, why in not_found().items()]
    return "\n".join(lines)


def _read() -> dict[str, Any]:
    return json.loads(FILE.read_text(encoding="utf-8"))


def _result(row: dict[str, Any], protocols: dict[str, str]) -> Published:
    scores = {name: row[name] for name in SCORES if name in row}
    rest = {name: value for name, value in row.items() if name not in scores}
    return Published(scores=scores, **rest | {"protocol": protocols[row["protocol"]]})


def _known(what: str, name: str | None, known: Iterable[str]) -> None:
    known = list(known)
    if name is not None and name not in known:
        raise ValueError(unknown(what, name, known))


def _place(row: Published) -> int:
    order = ("kmeans", "stego", "hp", "ppap", "primaps", "maskcontrast", "hsg")
    return order.index(row.method)


def _has(row: Published, pair: tuple[str, str]) -> bool:
    return any(name in row.scores for name in pair)


def _pair(row: Published, pair: tuple[str, str]) -> str:
    if not _has(row, pair):
        return "–"
    return " / ".join(
        f"{row.scores[name]:.1f}" if name in row.scores else "–" for name in pair
    )
