"""The parts of a record; its schema stands in :mod:`uss_utils.evaluation`."""

import math
import os
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch

from uss_utils import crf
from uss_utils.counting import Counts, Tally
from uss_utils.datasets.base import SegmentationDataset
from uss_utils.environment import peak_memory_mb, versions
from uss_utils.metrics import Confusion, Matching
from uss_utils.protocol import EvalProtocol
from uss_utils.records import jsonable

if TYPE_CHECKING:
    from uss_utils.segmenter import Segmenter


@dataclass(frozen=True)
class Map:
    """A cluster-to-class map and where it came from."""

    matching: Matching
    source: dict[str, Any]


def describe(
    segmenter: "Segmenter",
    eval_set: SegmentationDataset,
    protocol: EvalProtocol,
    found: Map | None,
) -> dict[str, Any]:
    """The part of a record that needs no counting."""
    meta = segmenter.meta
    record = {
        "method": segmenter.method,
        "name": meta.get("name", segmenter.method),
        "order": meta.get("order"),
        "preset": segmenter.preset,
        "overrides": meta.get("overrides", {}),
        "seed": meta.get("seed"),
        "steps": meta.get("steps"),
        "dataset": eval_set.name,
        "split": eval_set.split,
        "images": len(eval_set),
        "backbone": segmenter.backbone.name,
        "backbone_fingerprint": segmenter.backbone.fingerprint,
        "untrained": segmenter.backbone.untrained,
        "classes": list(segmenter.classes),
        "clusters": segmenter.n_clusters,
        "parameters": parameters(segmenter),
        "protocol": asdict(protocol)
        | {"line": protocol.describe(eval_set), "short": protocol.short()},
    }
    if found is not None and eval_set.has_labels:
        record |= {f"fit_{key}": found.source[key] for key in ("dataset", "split")}
        record["fit_images"] = found.source["images"]
    return jsonable(record)


def parameters(segmenter: "Segmenter") -> dict[str, int]:
    """How many numbers each part of a model consists of.

    Fixed maps hold none: they are fitted in closed form, not trained. Neither count
    networks that only the training needed.
    """
    parts = {"backbone": segmenter.backbone} | segmenter.parts()
    return {
        name: sum(each.numel() for each in part.parameters())
        for name, part in parts.items()
    }


def scored(
    protocol: EvalProtocol,
    tally: Tally,
    found: Map | None,
    eval_set: SegmentationDataset,
) -> dict[str, Any]:
    """Everything that needs labels; nothing at all where there are none."""
    if tally.all.cluster is None:
        return {}
    record = _both_probes(tally.all, found, protocol, eval_set)
    chosen = record["cluster"][protocol.fit_map_on]
    headline = {"cluster_acc": chosen["acc"], "cluster_miou": chosen["miou"]}
    if "linear" in record:
        headline["linear_acc"] = record["linear"]["acc"]
        headline["linear_miou"] = record["linear"]["miou"]
    record["headline"] = headline
    record["confusion"] = {
        which: getattr(tally.all, which).matrix.tolist() for which in tally.all.probes
    }
    if tally.crf.images:
        record["crf"] = {
            "images": tally.crf.images,
            **_both_probes(tally.crf, found, protocol, eval_set),
            "without": _both_probes(tally.plain, found, protocol, eval_set),
        }
    return record


def _both_probes(
    counts: Counts,
    found: Map | None,
    protocol: EvalProtocol,
    eval_set: SegmentationDataset,
) -> dict[str, Any]:
    """Scores of the clusters under both maps, and of the linear probe."""
    maps = {} if found is None else {"train": found.matching}
    maps["eval"] = counts.cluster.match(protocol.matching)
    scored = {
        "cluster": {
            fitted_on: scores(counts.cluster, matching, eval_set)
            for fitted_on, matching in maps.items()
        }
    }
    if counts.linear is not None:
        scored["linear"] = scores(counts.linear, "identity", eval_set)
    return scored


def scores(
    confusion: Confusion,
    matching: Matching | str,
    dataset: SegmentationDataset,
    absent: float = math.nan,
) -> dict[str, Any]:
    """The dict S of the schema.

    Args:
        confusion: the counts.
        matching: see :meth:`~uss_utils.metrics.Confusion.scores`.
        dataset: what was counted.
        absent: see :meth:`~uss_utils.metrics.Confusion.scores`.

    Raises:
        ValueError: no labelled pixel was counted; names the data set.
    """
    try:
        scores = confusion.scores(matching, absent)
    except ValueError as error:
        raise ValueError(f"{dataset.name} {dataset.split}: {error}") from error
    found = {
        "acc": round(scores.acc, 4),
        "miou": round(scores.miou, 4),
        "miou_classes": round(scores.miou_classes, 4),
        "iou": [round(value, 4) for value in scores.iou.tolist()],
    }
    if isinstance(matching, Matching):
        found["map"] = matching.cluster_to_class
    return jsonable(found)


def training_facts(segmenter: "Segmenter") -> dict[str, float]:
    """What differs between two trainings of the same model; empty where not noted."""
    seconds = segmenter.meta.get("training_seconds")
    return {} if seconds is None else {"training_seconds": seconds}


def run_facts(
    seconds: float, segmenters: Sequence["Segmenter"], protocol: EvalProtocol
) -> dict[str, Any]:
    """What differs between two runs of the same evaluation."""
    device = segmenters[0].device
    run: dict[str, Any] = {
        "seconds": round(seconds, 3),
        "models": len(segmenters),
        "peak_memory_mb": round(peak_memory_mb(), 1),
        "device": str(device),
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPUs",
        "threads": torch.get_num_threads(),
        "versions": versions(),
        "notes": [],
    }
    if device.type == "cuda":
        run["machine"] = torch.cuda.get_device_name(device)
        run["peak_gpu_mb"] = round(torch.cuda.max_memory_allocated(device) / 1e6, 1)
    if protocol.crf and not crf.available():
        run["notes"].append("pydensecrf2 is missing: no scores with CRF")
    return run
