"""Results on disk: one JSON file per evaluation, and the tables made from them.

The schema of a record stands in :mod:`uss_utils.evaluation`, which makes them. Tables
are made from records only, so no number in this course is typed by hand.
"""

import hashlib
import json
import math
import re
import statistics
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from uss_utils.boards import board
from uss_utils.json_files import read_object
from uss_utils.paths import atomic_file

# What one row of a table shares; seeds are what it averages over.
GROUP = ("method", "name", "preset", "overrides", "dataset", "split", "backbone")
# Of which type the fields are that tables are made from. Those inside another are
# there wherever that one is.
_TYPES: dict[str, Any] = {
    **dict.fromkeys(set(GROUP) - {"overrides"}, str),
    **dict.fromkeys(("overrides", "protocol"), dict),
    **dict.fromkeys(("protocol.line", "protocol.short"), str),
    "seed": int,
    "images": int,
    "order": list | None,
    "run": dict,
    **dict.fromkeys(("crf", "cluster", "parameters"), dict | None),
    "crf.without": dict,
    "crf.images": int,
    **dict.fromkeys(("parameters.head", "parameters.cluster_probe"), int),
}
LONGEST = 120  # characters of the changed settings in a file's name
# Where a record holds accuracies and mIoUs.
PATHS = (
    "cluster.train",
    "cluster.eval",
    "linear",
    "crf.cluster.train",
    "crf.cluster.eval",
    "crf.linear",
    "segments.kmeans",
    "segments.retrieval.all",
    "segments.linear",
)


def jsonable(value: Any) -> Any:
    """Plain JSON values: arrays to lists, tuples to lists, NaN and infinity to None."""
    if isinstance(value, dict):
        return {str(key): jsonable(item) for key, item in value.items()}
    if hasattr(value, "tolist"):  # tensors, arrays and their scalars
        return jsonable(value.tolist())
    if isinstance(value, list | tuple):
        return [jsonable(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def file_name(record: dict[str, Any]) -> str:
    """Name that tells a record apart: method, preset, data, protocol, seed.

    The same evaluation run twice gets the same name, so the later replaces the earlier.
    Where many settings are changed, a digest stands for them: names are limited.
    """
    changed = [f"{key}={value}" for key, value in record["overrides"].items()]
    if len("_".join(changed)) > LONGEST:
        digest = hashlib.sha256("_".join(changed).encode()).hexdigest()[:12]
        changed = [f"{len(changed)}-changes-{digest}"]
    parts = [record["method"], record["preset"], *changed, record["dataset"]]
    parts += [record["split"], record["backbone"]]
    if record["name"] != record["method"]:
        parts.append(record["name"])
    parts += [record["protocol"]["short"], f"seed{record['seed']}"]
    slugs = (re.sub(r"[^a-z0-9.=]+", "-", str(p).lower()).strip("-") for p in parts)
    return "_".join(slug for slug in slugs if slug) + ".json"


def write_record(record: dict[str, Any], folder: str | Path) -> Path:
    """Write one record, completely or not at all.

    Args:
        record: what :func:`uss_utils.evaluation.evaluate` returned.
        folder: made where missing.

    Returns:
        The file; its name comes from :func:`file_name`.

    Raises:
        OSError: the folder is read-only or the disk is full.
    """
    path = Path(folder) / file_name(record)
    text = json.dumps(jsonable(record), indent=1, allow_nan=False)
    # Lists of numbers on one line each: a confusion matrix stays readable.
    text = re.sub(r"\[[^][{}\"]*\]", lambda m: re.sub(r"\s*\n\s*", " ", m[0]), text)
    with atomic_file(path) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")
    return path


def read_records(folder: str | Path) -> list[dict[str, Any]]:
    """All records of a folder, in the order of tables.

    By data set, then by ``order`` (from knowing nothing to the latest chapter; records
    without one come last), then by file name.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: a file is no readable record; the message names it.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder of records at {folder}")
    records = [_read(path) for path in sorted(folder.glob("*.json"))]
    return sorted(records, key=_place)


def _place(record: dict[str, Any]) -> tuple[str, list[float]]:
    return str(record["dataset"]), record.get("order") or [math.inf]


def _read(path: Path) -> dict[str, Any]:
    try:
        record = jsonable(read_object(path))
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"{path} is not readable JSON ({error}); delete it and evaluate again"
        ) from error
    missing = sorted({*GROUP, "protocol", "seed", "images"} - record.keys())
    wrong = f"{', '.join(missing)} missing" if missing else _wrong(record)
    if wrong:
        raise ValueError(
            f"{path} is not a record of an evaluation: {wrong}; "
            "keep other files out of the folder of records"
        )
    return record


def _wrong(record: dict[str, Any]) -> str | None:
    """What in a record is of another type than tables can show."""
    for path, kind in _TYPES.items():
        parent, _, key = path.rpartition(".")
        node = record.get(parent) if parent else record
        if node is None or (not parent and key not in record):
            continue
        value = node.get(key)
        if not isinstance(value, kind) or isinstance(value, bool):
            return f"{path} is {str(value)[:50]!r}"
    order = record.get("order") or []
    if not all(isinstance(place, int | float) for place in order):
        return f"order is {str(order)[:50]!r}"
    return None


def scores(record: dict[str, Any]) -> dict[str, float]:
    """Accuracies and mIoUs of a record under dotted names, in percent.

    For example ``cluster.train.miou``, ``linear.acc``, ``crf.cluster.eval.miou``. A
    record of images without labels has none.
    """
    found = {}
    for path in PATHS:
        node: Any = record
        for key in path.split("."):
            node = node.get(key) if isinstance(node, dict) else None
        for measure in ("acc", "miou"):
            value = node.get(measure) if isinstance(node, dict) else None
            if isinstance(value, int | float) and 0 <= value <= 100:
                found[f"{path}.{measure}"] = value
    return found


def per_seed(records: Iterable[dict[str, Any]], score: str) -> dict[str, list[float]]:
    """One score of every record, gathered by the records' names.

    Args:
        records: seeds of one or several models.
        score: a name of :func:`scores`.

    Returns:
        Name of a model -> values in the order of the records; models without this score
        are left out.
    """
    found: dict[str, list[float]] = {}
    for record in records:
        value = scores(record).get(score)
        if value is not None:
            found.setdefault(record["name"], []).append(value)
    return found


def versus(
    records: Iterable[dict[str, Any]],
    name: str,
    score: str = "cluster.train.miou",
    *,
    paired: bool = False,
) -> str:
    """One line: how far a model is from the best other, and what seeds alone move.

    Args:
        records: seeds of the model and of what it is compared with.
        name: of the model, as its records have it.
        score: a name of :func:`scores`.
        paired: both come from the same start under the same seed, so that the gain of
            every seed counts, too.

    Raises:
        ValueError: no record of the model, or of any other, holds the score.
    """
    values = per_seed(records, score)
    others = {k: statistics.fmean(v) for k, v in values.items() if k != name}
    if name not in values or not others:
        raise ValueError(
            f"comparing {name!r} by {score} needs its records and others'; there are: "
            f"{', '.join(values) or 'none'}"
        )
    best = max(others, key=others.get)
    gain = statistics.fmean(values[name]) - others[best]
    line = f"{name} against {best}: {gain:+.1f} points of {score}"
    apart = [max(values[n]) - min(values[n]) for n in (name, best)]
    if len(values[name]) > 1 or len(values[best]) > 1:
        line += f"; seeds alone move them by {apart[0]:.1f} and {apart[1]:.1f}"
    if paired and len(values[name]) > 1:
        gains = [a - b for a, b in zip(values[name], values[best], strict=True)]
        line += f"; seed by seed {min(gains):+.1f} to {max(gains):+.1f}"
    return line


def summarise(records: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Mean and spread over seeds, one row per kind of run.

    Returns:
        Rows in the order in which their kind first occurs: the fields of
        :data:`GROUP`, ``protocol`` (its printed line), ``seeds`` (list), ``crf_images``
        (how many went through the CRF; None: all, or none), and for every
        score of :func:`scores` its mean under its own name and its sample standard
        deviation under the name + ``.sd`` (None with a single seed).
    """
    groups: dict[str, list[dict[str, Any]]] = {}
    for record in records:
        key = {name: record[name] for name in GROUP} | {
            "protocol": record["protocol"]["line"]
        }
        groups.setdefault(json.dumps(jsonable(key)), []).append(record)
    return [json.loads(key) | _spread(found) for key, found in groups.items()]


def _spread(group: list[dict[str, Any]]) -> dict[str, Any]:
    # The last record of a seed wins: the same run evaluated again is no second sample.
    by_seed = {record["seed"]: scores(record) for record in group}
    row: dict[str, Any] = {"seeds": list(by_seed), "crf_images": _some(group)}
    names = dict.fromkeys(name for found in by_seed.values() for name in found)
    for name in names:
        values = [found[name] for found in by_seed.values() if name in found]
        row[name] = statistics.fmean(values)
        row[name + ".sd"] = statistics.stdev(values) if len(values) > 1 else None
    return row


def _some(group: list[dict[str, Any]]) -> int | None:
    """Images that went through the CRF, where those are not all."""
    counts = {
        record["crf"]["images"]
        for record in group
        if record.get("crf") and 0 < record["crf"]["images"] < record.get("images", 0)
    }
    return max(counts, default=None)


def leaderboard(records: Iterable[dict[str, Any]]) -> str:
    """Markdown tables of :func:`summarise`, see :func:`uss_utils.boards.board`."""
    return board(summarise(records))
