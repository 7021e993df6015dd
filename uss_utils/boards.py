"""Tables of scores for people: one per data set, few columns, the rest beneath.

Rows are those of :func:`uss_utils.records.summarise`; nothing is read or computed here.
"""

import re
from collections.abc import Iterable, Sequence
from typing import Any

Row = dict[str, Any]

# What people call a method, and the rows whose names explain nothing by themselves.
TITLES = {
    "kmeans": "k-means",
    "stego": "STEGO",
    "hp": "Hidden Positives",
    "ppap": "PPAP",
    "primaps": "PriMaPs-EM",
    "maskcontrast": "MaskContrast",
    "hsg": "HSG",
}
NAMES = {
    ("kmeans", "row index"): "row index alone: place, no picture",
    ("kmeans", "colour"): "k-means of colours",
    ("kmeans", "random init"): "k-means of an untrained network's features",
    ("kmeans", "pretrained"): "k-means of features",
    ("kmeans", "pretrained, whitened"): "k-means of whitened features",
    ("primaps", "primaps' k-means"): "PriMaPs-EM's start, k-means",
}
# Header of a column, and its score; {split} is that of the table.
COLUMNS = {
    "accuracy": "cluster.train.acc",
    "mIoU": "cluster.train.miou",
    "mIoU, named on {split}": "cluster.eval.miou",
    "linear probe mIoU": "linear.miou",
    "mIoU + CRF": "crf.cluster.train.miou",
    "mIoU + CRF, named on {split}": "crf.cluster.eval.miou",
    "linear probe mIoU + CRF": "crf.linear.miou",
    "k-means of segments, named on {split}, mIoU": "segments.kmeans.miou",
    "segment retrieval (uses labels), mIoU": "segments.retrieval.all.miou",
    "linear classifier (uses labels), mIoU": "segments.linear.miou",
}
# Facts that get a column unless all rows of a table agree.
FACTS = ("preset", "overrides")
# Backbones that learned nothing; the names of their rows say so.
CONTROLS = ("row", "colour", "vit_tiny_random")
RARE = 1 / 3  # a column that at most so many rows fill is told beneath instead
LETTERS = "ᵃᵇᶜᵈᵉᶠᵍʰⁱʲᵏˡᵐⁿᵒᵖʳˢᵗᵘᵛʷˣʸᶻ"


def title(row: Row) -> str:
    """What people call the row's kind of model.

    Args:
        row: with ``method`` and ``name``.
    """
    method, name = row["method"], row["name"]
    if (method, name) in NAMES:
        return NAMES[method, name]
    # A variant's name may begin with the method's: "primaps on stego".
    if not name.startswith(method):
        name = f"{method}: {name}"
    return re.sub(r"\w+", lambda word: TITLES.get(word[0], word[0]), name)


def board(rows: Sequence[Row]) -> str:
    """Markdown: a table for every data set and split, in the order of the rows.

    Facts in which all rows of a table agree stand above it. A row under another
    protocol than the first carries a letter; what differs is told beneath, as are
    backbones and scores that few rows have.

    Args:
        rows: of :func:`uss_utils.records.summarise`; scores in percent.
    """
    if not rows:
        return "no records yet"
    tables: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        tables.setdefault((row["dataset"], row["split"]), []).append(row)
    protocols = list(dict.fromkeys(row["protocol"] for row in rows))
    parts = [_table(group, protocols) for group in tables.values()]
    return "\n\n".join(["\n\n".join(parts), _legend(rows, protocols)])


def _table(rows: list[Row], protocols: list[str]) -> str:
    split = rows[0]["split"]
    filled = {head: [row for row in rows if s in row] for head, s in COLUMNS.items()}
    rare = [
        head
        for head, found in filled.items()
        if found and (len(found) <= RARE * len(rows) or _part(head, found))
    ]
    columns = [h for h, found in filled.items() if found and h not in rare]
    facts = [key for key in FACTS if not _agree(rows, key)]
    if _ambiguous(rows, facts):
        facts.append("backbone")
    many = not _agree(rows, "seeds")
    header = ["method", *facts, *(head.format(split=split) for head in columns)]
    cells = [
        [title(row) + _letter(row, protocols)]
        + [fact(row, key) for key in facts]
        + [mean_sd(row, COLUMNS[head]) for head in columns]
        + [str(len(row["seeds"]))] * many
        for row in rows
    ]
    lines = [_heading(rows), "", *markdown_table(header + ["seeds"] * many, cells)]
    beneath = [
        f"- {head.format(split=split)}{_part(head, filled[head])}: "
        + "; ".join(
            f"{title(row)} {mean_sd(row, COLUMNS[head])}" for row in filled[head]
        )
        for head in rare
    ]
    backbones = _backbones(rows)
    if "backbone" not in facts and len(backbones) > 1:
        # The commonest needs no list of its rows.
        common = max(backbones, key=lambda name: len(backbones[name]))
        others = (
            f"`{name}` of {'; '.join(titles)}"
            for name, titles in backbones.items()
            if name != common
        )
        beneath.append(f"- backbone: `{common}`, but {', '.join(others)}")
    return "\n".join([*lines, "", *beneath] if beneath else lines)


def _part(head: str, rows: list[Row]) -> str:
    """Says that a column with the CRF is of some of the images alone."""
    numbers = {row.get("crf_images") for row in rows} if "CRF" in head else set()
    some = sorted(number for number in numbers if number)
    return f" (of {' or '.join(map(str, some))} images alone)" if some else ""


def _heading(rows: list[Row]) -> str:
    first = rows[0]
    words = [f"**{first['dataset']}**", f"split {first['split']}"]
    words += [
        f"{key} {fact(first, key)}" for key in FACTS if first[key] and _agree(rows, key)
    ]
    backbones = _backbones(rows)
    if len(backbones) == 1:
        words.append(f"backbone {next(iter(backbones))}")
    if _agree(rows, "seeds"):
        number = len(first["seeds"])
        words.append(f"{number} seed" + "s" * (number > 1))
    return " · ".join(words)


def _agree(rows: list[Row], key: str) -> bool:
    first = rows[0][key]
    if key == "seeds":  # how many, not which
        return all(len(row[key]) == len(first) for row in rows)
    return all(row[key] == first for row in rows)


def _ambiguous(rows: list[Row], facts: list[str]) -> bool:
    """Whether two rows differ in nothing shown but their backbone."""
    seen = [(title(r), r["protocol"], *(fact(r, key) for key in facts)) for r in rows]
    return len(set(seen)) < len(seen)


def _backbones(rows: list[Row]) -> dict[str, list[str]]:
    """Backbone -> titles of its rows; those that say theirs by name are left out."""
    found: dict[str, list[str]] = {}
    for row in rows:
        if row["backbone"] not in CONTROLS:
            titles = found.setdefault(row["backbone"], [])
            titles += [title(row)] * (title(row) not in titles)
    return found


def _letter(row: Row, protocols: list[str]) -> str:
    number = protocols.index(row["protocol"])
    if not number:
        return ""
    return " " + (LETTERS[number - 1] if number <= len(LETTERS) else f"({number})")


def _legend(rows: Sequence[Row], protocols: list[str]) -> str:
    spread = any(len(row["seeds"]) > 1 for row in rows)
    lines = ["In percent" + ", mean ± standard deviation over seeds" * spread + "."]
    if any("cluster.eval.miou" in row for row in rows):
        lines[0] += (
            " Labels of the training images give the clusters their names; under"
            ' "named on", those of the scored images do, the field\'s habit.'
        )
    if any("linear.miou" in row for row in rows):
        lines[0] += (
            " The linear probe trains on labels: it measures what the features hold."
        )
    lines += ["", f"Protocol: {protocols[0]}."]
    for number, line in enumerate(protocols[1:], 1):
        mark = LETTERS[number - 1] if number <= len(LETTERS) else f"({number})"
        lines += ["", f"{mark} {difference(line, protocols[0])}."]
    return "\n".join(lines)


def difference(line: str, usual: str) -> str:
    """What one protocol does instead of another.

    Args:
        line: a protocol's printed line: its switches, separated by commas.
        usual: the other's.
    """
    own, others = line.split(", "), usual.split(", ")
    if len(own) != len(others):
        return f"Protocol: {line}"
    changed = [
        f"{a} instead of {b}" for a, b in zip(own, others, strict=True) if a != b
    ]
    return ", ".join(changed).capitalize() if changed else f"Protocol: {line}"


def fact(row: Row, key: str) -> str:
    """A fact of a row as text; changed settings as NAME=VALUE, "–" where none is."""
    if key != "overrides":
        return str(row[key])
    return ", ".join(f"{name}={value}" for name, value in row[key].items()) or "–"


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Lines of a markdown table."""
    cells = [header, ["---"] * len(header), *rows]
    return ["| " + " | ".join(row) + " |" for row in cells]


def mean_sd(row: Row, name: str, sign: str = "") -> str:
    """A score of a row in words: its mean ± its spread, a dash where there is none.

    Args:
        row: with the score under its name, the spread under the name + ``.sd``.
        name: of the score.
        sign: "+" shows the sign of positive numbers, too.
    """
    if row.get(name) is None:
        return "–"
    sd = row[name + ".sd"]
    return f"{row[name]:{sign}.1f}" + (f" ± {sd:.1f}" if sd is not None else "")
