"""Classes behind the scores of a comparison: how each fares, and what it is called.

Made of the records of :meth:`uss_utils.study.Study.records` alone, as the tables of
:mod:`uss_utils.comparison` are.
"""

import math
from collections.abc import Iterable
from typing import Any

import numpy as np

from uss_utils.comparison import name_of

Record = dict[str, Any]


def renamed(records: Iterable[Record]) -> dict[str, dict[str, Any]]:
    """Which classes change their cluster when the scored labels give the names.

    Args:
        records: of :meth:`uss_utils.study.Study.records`.

    Returns:
        Title of a method -> "renamed in" (seeds), "classes" (which, in any seed), and
        how the pixels of the largest class fall on its two largest clusters, in percent
        of its pixels, mean over the seeds.
    """
    found: dict[str, list] = {}
    for record in records:
        if "confusion" in record:
            found.setdefault(name_of(record), []).append(record)
    table = {}
    for name, mine in found.items():
        moved = [_moved(record) for record in mine]
        counts = [np.array(record["confusion"]["cluster"]) for record in mine]
        largest = int(sum(counts).sum(0).argmax())
        parts = [np.sort(c[:, largest])[::-1] / c[:, largest].sum() for c in counts]
        one, two = 100 * np.mean(parts, 0)[:2]
        classes = mine[0]["classes"]
        table[name] = {
            "renamed in": f"{sum(map(bool, moved))} of {len(mine)} seeds",
            "classes": ", ".join(classes[k] for k in sorted(set().union(*moved)))
            or "–",
            f"{classes[largest]} in its two largest clusters": f"{one:.0f} + {two:.0f}",
        }
    return table


def _moved(record: Record) -> set[int]:
    """Classes whose clusters differ under the two ways to give names."""
    train, held = (np.array(record["cluster"][on]["map"]) for on in ("train", "eval"))
    return {int(k) for k in {*train[train != held], *held[train != held]} if k >= 0}


def sized_classes(records: Iterable[Record]) -> list[str]:
    """Names of the classes, each with its share of the scored pixels in percent.

    Args:
        records: of :meth:`uss_utils.study.Study.records`; all of one data set.

    Raises:
        ValueError: no record tells how many pixels a class has.
    """
    record = next((r for r in records if "confusion" in r), None)
    if record is None:
        raise ValueError("no record holds a confusion; complete the study first")
    pixels = np.array(record["confusion"]["cluster"]).sum(0)
    share = 100 * pixels / max(pixels.sum(), 1)
    return [
        f"{name} {part:.0f}%"
        for name, part in zip(record["classes"], share, strict=True)
    ]


def class_scores(
    records: Iterable[Record], path: str = "cluster.train"
) -> dict[str, np.ndarray]:
    """IoU of every class, mean over the seeds.

    Args:
        records: of :meth:`uss_utils.study.Study.records`.
        path: "cluster.train", "cluster.eval" or "linear".

    Returns:
        Title of a method -> percent, float64 (K,); NaN where a class never occurs.
    """
    found: dict[str, list] = {}
    for record in records:
        node: Any = record
        for key in path.split("."):
            node = node.get(key, {})
        if node:
            found.setdefault(name_of(record), []).append(
                [math.nan if value is None else value for value in node["iou"]]
            )
    return {name: _mean_of(values) for name, values in found.items()}


def _mean_of(values: list[list[float]]) -> np.ndarray:
    """Mean over the seeds; NaN, without a warning, where no seed has a value."""
    table = np.array(values, dtype=float)
    known = (~np.isnan(table)).sum(0)
    total = np.nansum(table, 0)
    return np.divide(total, known, out=np.full(len(total), math.nan), where=known > 0)


def failures(records: Iterable[Record]) -> dict[str, dict[str, Any]]:
    """Which class every method finds worst, and what it takes its pixels for.

    Args:
        records: of :meth:`uss_utils.study.Study.records`; the confusions of all seeds
            of a method are added.

    Returns:
        Title of a method -> "worst class", its "IoU" in percent, "taken for" (the class
        that most of its other pixels are called) and "share" of its pixels, in percent.
    """
    records, found = list(records), {}
    for name, iou in class_scores(records).items():
        mine = [r for r in records if name_of(r) == name and "confusion" in r]
        if not mine or np.isnan(iou).all():
            continue
        classes, worst = mine[0]["classes"], int(np.nanargmin(iou))
        called = sum(_called(record)[:, worst] for record in mine)
        share = 100 * called / called.sum()
        share[worst] = -1
        other = int(share.argmax())
        found[name] = {
            "worst class": classes[worst],
            "IoU": float(iou[worst]),
            "taken for": [*classes, "nothing"][other],
            "share": float(share[other]),
        }
    return found


def _called(record: Record) -> np.ndarray:
    """Pixels per given name (row; the last: none) and true class (column)."""
    counts = np.array(record["confusion"]["cluster"])
    called = np.zeros((counts.shape[1] + 1, counts.shape[1]), dtype=np.int64)
    np.add.at(called, record["cluster"]["train"]["map"], counts)  # -1: the last row
    return called
