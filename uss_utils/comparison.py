"""Methods side by side, made of records alone: one table, and what its numbers mean.

The records come from :meth:`uss_utils.study.Study.records`; nothing is computed here
but means, spreads and differences.
"""

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from uss_utils.boards import markdown_table, title
from uss_utils.records import per_seed, scores, summarise

Record = dict[str, Any]

OWN_NETWORK = "pixels"  # the "backbone" of methods that train a whole network
# Header of a column, and its score; {split} is the evaluated one.
COLUMNS = {
    "accuracy": "cluster.train.acc",
    "mIoU": "cluster.train.miou",
    "mIoU, named on {split}": "cluster.eval.miou",
    "linear probe mIoU": "linear.miou",
}
# The same for the CRF: the score without it on the same images, and with it.
CRF_COLUMNS = {"mIoU + CRF": "cluster.train", "linear + CRF": "linear"}


def rows(records: Iterable[Record]) -> list[dict[str, Any]]:
    """One row per method: means and spreads over its seeds, and what it cost.

    Args:
        records: of :meth:`uss_utils.study.Study.records`.

    Returns:
        The rows of :func:`uss_utils.records.summarise`, and in each: ``title``,
        ``own_network`` (it trains a whole network; † in the title), ``parameters``
        (trained: head and clusters), ``seconds`` (of a training, mean), ``records`` (of
        the seeds), and for every score with the CRF its gain over the same images
        without, ``crf.gain.cluster.train.miou`` say, with ``.sd``. What no record tells
        is None.
    """
    records = list(records)
    found = []
    for row in summarise(records):
        mine = [r for r in records if r["name"] == row["name"]]
        found.append(row | _cost(mine) | _gains(mine) | {"title": name_of(row)})
    return found


def name_of(record: Mapping[str, Any]) -> str:
    """What people call a method; with † where it trains a whole network of its own.

    Args:
        record: a record, or a row.
    """
    return title(record) + " †" * (record["backbone"] == OWN_NETWORK)


def _cost(records: list[Record]) -> dict[str, Any]:
    sizes = records[0].get("parameters")
    seconds = [r["run"].get("training_seconds") for r in records]
    known = [s for s in seconds if s is not None]
    return {
        "records": records,
        "own_network": records[0]["backbone"] == OWN_NETWORK,
        "parameters": sizes and sizes["head"] + sizes["cluster_probe"],
        "seconds": statistics.fmean(known) if known else None,
    }


def _gains(records: list[Record]) -> dict[str, Any]:
    """What the CRF adds, image for image the same."""
    found: dict[str, Any] = {}
    for path in ("cluster.train", "cluster.eval", "linear"):
        name = f"{path}.miou"
        pairs = [
            (scores(r["crf"]["without"]).get(name), scores(r["crf"]).get(name))
            for r in records
            if "crf" in r
        ]
        gains = [b - a for a, b in pairs if None not in (a, b)]
        if gains:
            found[f"crf.gain.{name}"] = statistics.fmean(gains)
            spread = statistics.stdev(gains) if len(gains) > 1 else None
            found[f"crf.gain.{name}.sd"] = spread
    return found


def table(found: Sequence[Mapping[str, Any]]) -> str:
    """Markdown: one line per method, what its numbers used beneath.

    Args:
        found: of :func:`rows`.
    """
    if not found:
        return "no records yet"
    split = found[0]["split"]
    header = ["method", "parameters trained", "seconds"]
    header += [head.format(split=split) for head in COLUMNS]
    gains = {head: f"crf.gain.{path}.miou" for head, path in CRF_COLUMNS.items()}
    gains = {h: name for h, name in gains.items() if any(name in r for r in found)}
    cells = [
        [
            row["title"],
            "–" if row["parameters"] is None else f"{row['parameters']:,}",
            "–" if row["seconds"] is None else f"{row['seconds']:.1f}",
            *(_mean(row, name) for name in COLUMNS.values()),
            *(_mean(row, name, "+") for name in gains.values()),
        ]
        for row in found
    ]
    lines = markdown_table([*header, *gains], cells)
    return "\n".join([*lines, "", *_legend(found, bool(gains))])


def _legend(found: Sequence[Mapping[str, Any]], sharpened: bool) -> list[str]:
    first = found[0]["records"][0]
    many = max(len(row["seeds"]) for row in found)
    lines = [
        f"{first['dataset']}, {first['images']} images of split {first['split']}; "
        + (f"percent, mean ± sd over {many} seeds" if many > 1 else "percent, 1 seed")
        + ". Labels used by: "
    ]
    named = f"{first.get('fit_images', 'no')} labelled training images"
    lines[0] += (
        f"*accuracy* and *mIoU*, {named}, to name the clusters; *named on "
        f"{first['split']}*, the labels it is scored by; *linear*, the labels of the "
        "training images, to train it. No label reached a head or a cluster."
    )
    lines.append(
        "*Seconds*: of the training steps alone (k-means: of everything); features, "
        "masks, regions and the pretraining of the ViT come on top."
    )
    if any(row["own_network"] for row in found):
        lines.append(
            "† trains a whole network of its own; all others stand on the frozen "
            f"pretrained `{_common_backbone(found)}`. **Do not compare the two kinds.**"
        )
    if sharpened:
        images = next(
            r["crf"]["images"] for x in found for r in x["records"] if "crf" in r
        )
        lines.append(f"*+ CRF*: points it adds, on the same {images} images.")
    kinds: dict[str, list[str]] = {}
    for row in found:
        kinds.setdefault(row["protocol"], []).append(row["title"])
    lines += [f"Protocol of {', '.join(who)}: {line}." for line, who in kinds.items()]
    return [text for line in lines for text in (line, "")][:-1]


def _common_backbone(found: Sequence[Mapping[str, Any]]) -> str:
    names = [row["backbone"] for row in found if not row["own_network"]]
    return statistics.mode(names) if names else "backbone"


def _mean(row: Mapping[str, Any], name: str, sign: str = "") -> str:
    if row.get(name) is None:
        return "–"
    sd = row[name + ".sd"]
    return f"{row[name]:{sign}.1f}" + (f" ± {sd:.1f}" if sd is not None else "")


def wins(
    records: Iterable[Record], score: str = "cluster.train.miou"
) -> tuple[list[str], np.ndarray]:
    """How often one method beats another, over all pairs of their seeds.

    Args:
        records: of :meth:`uss_utils.study.Study.records`.
        score: a name of :func:`uss_utils.records.scores`.

    Returns:
        Titles of the methods, and shares in [0, 1], float64 (M, M): row against
        column, ties count half; NaN on the diagonal.
    """
    values = per_seed([r | {"name": name_of(r)} for r in records], score)
    share = np.full((len(values), len(values)), math.nan)
    for i, mine in enumerate(values.values()):
        for j, other in enumerate(values.values()):
            if i != j:
                a, b = np.array(mine)[:, None], np.array(other)
                share[i, j] = ((a > b) + 0.5 * (a == b)).mean()
    return list(values), share


def paired(
    records: Iterable[Record], before: str, after: str, score: str
) -> dict[int, float]:
    """Gain of every seed, where two models share start, data and protocol.

    Args:
        records: all of a folder, not only the methods' own.
        before: name of the model before.
        after: name of the model after.
        score: a name of :func:`uss_utils.records.scores`.

    Returns:
        Seed -> points gained; empty where one of the two is not there.
    """
    found: dict[str, dict[tuple, float]] = {before: {}, after: {}}
    for record in records:
        value = scores(record).get(score)
        if record["name"] in found and value is not None:
            key = record["seed"], record["protocol"]["line"]
            found[record["name"]][key] = value
    return {
        key[0]: value - found[before][key]
        for key, value in found[after].items()
        if key in found[before]
    }


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
