"""Methods side by side, made of records alone: one table, and what its numbers mean.

The records come from :meth:`uss_utils.study.Study.records`; nothing is computed here
but means, spreads and differences.
"""

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from uss_utils.boards import markdown_table, mean_sd, title
from uss_utils.records import per_seed, scores, summarise

Record = dict[str, Any]

OWN_NETWORK = "pixels"  # the "backbone" of methods that train a whole network
OWN = " †"  # ends their titles
# Header of a column, and its score; {split} is the evaluated one.
COLUMNS = {
    "accuracy": "cluster.train.acc",
    "mIoU": "cluster.train.miou",
    "mIoU, named on {split}": "cluster.eval.miou",
    "linear probe mIoU": "linear.miou",
}
# What the CRF adds to these, on the images that are scored without and with it.
CRF_COLUMNS = {"CRF adds (clusters)": "cluster.train", "CRF adds (linear)": "linear"}


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
    return title(record) + OWN * (record["backbone"] == OWN_NETWORK)


def _cost(records: list[Record]) -> dict[str, Any]:
    sizes = records[0].get("parameters")
    seconds = [r.get("run", {}).get("training_seconds") for r in records]
    known = [s for s in seconds if isinstance(s, int | float)]
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
            if r.get("crf")
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
            *(mean_sd(row, name) for name in COLUMNS.values()),
            *(mean_sd(row, name, "+") for name in gains.values()),
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
        "*Seconds*, mean per seed: for k-means of everything, for the others of the "
        "training steps alone; features, masks, regions and the pretraining of the ViT "
        "come on top."
    )
    if any(row["own_network"] for row in found):
        lines.append(
            "† trains a whole network of its own; all others stand on the frozen "
            f"pretrained `{_common_backbone(found)}`. **Do not compare the two kinds.**"
        )
    if sharpened:
        images = next(
            r["crf"]["images"] for x in found for r in x["records"] if r.get("crf")
        )
        lines.append(
            f"*CRF adds*: points of mIoU; the same {images} images are scored without "
            "and with it."
        )
    kinds: dict[str, list[str]] = {}
    for row in found:
        kinds.setdefault(row["protocol"], []).append(row["title"])
    lines += [f"Protocol of {', '.join(who)}: {line}." for line, who in kinds.items()]
    return [text for line in lines for text in (line, "")][:-1]


def _common_backbone(found: Sequence[Mapping[str, Any]]) -> str:
    names = [row["backbone"] for row in found if not row["own_network"]]
    return statistics.mode(names) if names else "backbone"


def wins(
    records: Iterable[Record], score: str = "cluster.train.miou"
) -> tuple[list[str], np.ndarray]:
    """How often one method beats another, over all pairs of their seeds.

    Args:
        records: of :meth:`uss_utils.study.Study.records`.
        score: a name of :func:`uss_utils.records.scores`.

    Returns:
        Titles of the methods, and shares in [0, 1], float64 (M, M): row against
        column, ties count half; NaN on the diagonal and between methods of different
        kinds, on the frozen ViT and with a network of their own.
    """
    values = per_seed([r | {"name": name_of(r)} for r in records], score)
    share = np.full((len(values), len(values)), math.nan)
    for i, (name, mine) in enumerate(values.items()):
        for j, (other, theirs) in enumerate(values.items()):
            if i != j and other in same_kind(values, name):
                a, b = np.array(mine)[:, None], np.array(theirs)
                share[i, j] = ((a > b) + 0.5 * (a == b)).mean()
    return list(values), share


def clear_wins(share: np.ndarray) -> tuple[int, int]:
    """How many pairs of methods are won by every seed of one of them, and of how many.

    Args:
        share: of :func:`wins`, (M, M).
    """
    upper = share[np.triu_indices(len(share), 1)]
    known = upper[~np.isnan(upper)]
    return int(((known == 0) | (known == 1)).sum()), len(known)


def same_kind(titled: Mapping[str, Any], name: str) -> dict[str, Any]:
    """What belongs to methods of one kind: on the frozen ViT, or networks of their own.

    Args:
        titled: title of a method, of :func:`name_of` -> anything.
        name: title of a method of this kind.
    """
    own = name.endswith(OWN)
    return {key: value for key, value in titled.items() if key.endswith(OWN) == own}


def paired(
    records: Iterable[Record], before: str, after: str, score: str
) -> dict[int, tuple[float, float]]:
    """Scores of every seed, where two models share start, data and protocol.

    Args:
        records: all of a folder, not only the methods' own.
        before: name of the model before.
        after: name of the model after.
        score: a name of :func:`uss_utils.records.scores`.

    Returns:
        Seed -> score before and after; empty where one of the two is not there.
    """
    found: dict[str, dict[tuple, float]] = {before: {}, after: {}}
    for record in records:
        value = scores(record).get(score)
        if record["name"] in found and value is not None:
            key = record["seed"], record["protocol"]["line"]
            found[record["name"]][key] = value
    return {
        key[0]: (found[before][key], value)
        for key, value in found[after].items()
        if key in found[before]
    }


def gains(
    records: Iterable[Record],
    pairs: Mapping[str, str],
    seeds: Sequence[int],
    score: str = "cluster.train.miou",
) -> dict[str, dict[str, str]]:
    """Table of pairs: before, after and gain, mean and spread over the seeds.

    Args:
        records: all of a folder, not only the methods' own.
        pairs: name of the model before -> of the model after.
        seeds: that count.
        score: a name of :func:`uss_utils.records.scores`.

    Returns:
        Titles of a pair -> "before", "after" and "gain" in words, "seeds" (number), and
        "gains above 0". Pairs that were not made are left out.
    """
    records, found = list(records), {}
    called = {record["name"]: title(record) for record in records}
    for before, after in pairs.items():
        each = paired(records, before, after, score)
        values = [each[seed] for seed in seeds if seed in each]
        if not values:
            continue
        first, last = zip(*values, strict=True)
        gained = [b - a for a, b in values]
        found[f"{called[before]} → {called[after]}"] = {
            "before": _spread(first),
            "after": _spread(last),
            "gain": _spread(gained, "+"),
            "seeds": len(values),
            "gains above 0": sum(gain > 0 for gain in gained),
        }
    return found


def _spread(values: Sequence[float], sign: str = "") -> str:
    sd = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):{sign}.1f}{sd}"
