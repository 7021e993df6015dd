"""A folder of photographs segmented: every picture of it, with or without labels.

Under the folder of results, each file written whole or not at all::

    labels/NAME.png     ids as a palette PNG, of the photograph's own upright size
    overlays/NAME.jpg   the photograph tinted, regions outlined
    thumbs/NAME.jpg     both side by side, small
    legend.png  index.html  summary.json
    model.safetensors   where :func:`train_on_folder` trained it

A finished picture is not made again unless it, the model or the options changed.
"""

import copy
import hashlib
import json
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from uss_utils import contact_sheet, crf, naming, painting
from uss_utils.datasets.labels import voc_palette
from uss_utils.datasets.transforms import Transform
from uss_utils.evaluation import evaluate
from uss_utils.frozen import weights_digest
from uss_utils.json_files import read_object
from uss_utils.monitors import monitor
from uss_utils.paths import atomic_file, clear_leftovers, user_path
from uss_utils.photo_files import (
    Scan,
    find,
    nothing_readable,
    read,
    scan,
    usable_labels,
)
from uss_utils.photo_training import PhotoSet, common_size, train_on_folder
from uss_utils.pictures import MAX_SIDE
from uss_utils.segmenter import Segmenter

__all__ = [
    "FolderResult",
    "Scan",
    "check_places",
    "scan",
    "segment_folder",
    "train_on_folder",
]

MONITORED = 16  # pictures that the monitors look at, evenly spaced
_DONE = ".finished"


@dataclass(frozen=True)
class FolderResult:
    """What :func:`segment_folder` did.

    Attributes:
        out: folder of the results.
        made: names of the pictures segmented now.
        kept: names of those that were finished before.
        skipped: reason of every file that could not be used.
        summary: content of ``summary.json``.
        page: the contact sheet, ``index.html``.
    """

    out: Path
    made: tuple[str, ...]
    kept: tuple[str, ...]
    skipped: dict[str, str]
    summary: dict[str, Any]
    page: Path


def segment_folder(
    segmenter: Segmenter,
    folder: str | Path,
    out: str | Path,
    *,
    crf: bool = False,
    max_side: int = MAX_SIDE,
    names: naming.Names | str | Path | None = None,
    overwrite: bool = False,
    progress: bool = False,
) -> FolderResult:
    """Segment every picture of a folder, one by one, and make a page of them.

    Args:
        segmenter: the model.
        folder: a folder or one picture, see :func:`uss_utils.photo_files.find`.
        out: gets the results listed at the top of this module; another folder.
        crf: sharpen with the dense CRF.
        max_side: see :meth:`Segmenter.segment`.
        names: of clusters, or a file of them, see :func:`uss_utils.naming.apply`.
        overwrite: make finished pictures again.
        progress: show bars.

    Returns:
        What was done. Files that cannot be read are skipped, with their reasons.

    Raises:
        FileNotFoundError: there is no such folder, or no file in it.
        ValueError: not a single picture can be read, or an option makes no sense.
        ImportError: ``crf`` where pydensecrf is missing.
        OSError: the results cannot be written.
    """
    check_places(folder, out, crf)
    out, found = user_path(out), find(folder)
    most = max(len(segmenter.classes), segmenter.n_clusters)
    if most > painting.NO_CLASS:
        raise ValueError(
            f"the model tells {most} clusters or classes apart, a palette PNG holds "
            f"{painting.NO_CLASS}"
        )
    shown = naming.apply(segmenter, names) if names else segmenter
    options = {"crf": crf, "max_side": max_side, "named": bool(names)}
    model_key = _fingerprint(shown)
    work = _Work(shown, out, model_key + json.dumps([crf, max_side]), options)
    done, made, kept = {}, [], []
    skipped = dict(found.skipped)
    for place in ("labels", "overlays", "thumbs", _DONE):
        clear_leftovers(out / place)
    for path in tqdm(found.files, "segment", unit="img", disable=not progress):
        name = found.names[path]
        if not overwrite and (finished := work.finished(path, name)):
            done[path] = finished
            kept.append(name)
            continue
        try:
            pixels = read(path)
        except OSError as error:
            skipped[found.shown(path)] = str(error)
            continue
        done[path] = work.make(name, work.key(path), pixels)
        made.append(name)
    if not done:
        raise nothing_readable(folder, skipped)
    sizes = {path: tuple(each["size"]) for path, each in done.items()}
    labels, classes, useless = usable_labels(found, sizes)
    scanned = Scan(tuple(done), skipped | useless, found, sizes, labels, classes)
    summary = _summary(segmenter, work, scanned, done, progress)
    page = contact_sheet.write(out, summary)
    return FolderResult(out, tuple(made), tuple(kept), scanned.skipped, summary, page)


def check_places(folder: str | Path, out: str | Path, use_crf: bool = False) -> None:
    """Find mistakes that would else show after a long training.

    Args:
        folder: as for :func:`segment_folder`, like the others.
        out: folder of the results.
        use_crf: whether the CRF is wanted.

    Raises:
        FileNotFoundError: there is no such folder, or no file in it.
        ValueError: ``out`` is the folder itself, or a file.
        ImportError: there is no CRF here.
    """
    found, out = find(folder), user_path(out)
    inside = {found.folder, *(path.parent for path in found.files)}
    if out.resolve() in {place.resolve() for place in inside}:
        raise ValueError(
            f"{out} holds the photographs; give the results a folder of their own"
        )
    if out.exists() and not out.is_dir():
        raise ValueError(f"{out} is a file; give the results a folder")
    if use_crf and not crf.available():
        raise ImportError("no CRF here: pydensecrf cannot be imported; leave crf out")


class _Work:
    """Makes the files of one picture, and knows whether they are finished."""

    def __init__(
        self, segmenter: Segmenter, out: Path, key: str, options: dict[str, Any]
    ):
        self.segmenter, self.out, self.options = segmenter, out, options
        self.setting = hashlib.sha256(key.encode()).hexdigest()[:16]
        self.names, self.palette = segmenter.legend()

    def key(self, path: Path) -> str:
        """Digest of what the files of a picture depend on."""
        state = path.stat()
        text = f"{self.setting} {state.st_size} {state.st_mtime_ns}"
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def files(self, name: str) -> dict[str, Path]:
        """Files of a picture by what they are, and the note that they are finished."""
        return {
            "label": self.out / "labels" / f"{name}.png",
            "overlay": self.out / "overlays" / f"{name}.jpg",
            "thumb": self.out / "thumbs" / f"{name}.jpg",
            "note": self.out / _DONE / f"{name}.json",
        }

    def finished(self, path: Path, name: str) -> dict[str, Any] | None:
        """The note of a picture whose files are as they would be made now."""
        files = self.files(name)
        try:
            note = read_object(files["note"])
            whole = all(file.stat().st_size for file in files.values())
            return note if whole and note["key"] == self.key(path) else None
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def make(self, name: str, key: str, pixels: np.ndarray) -> dict[str, Any]:
        """Segment a picture and write its files, the note last."""
        begun = time.perf_counter()
        ids = self.segmenter.segment(
            pixels, self.options["crf"], max_side=self.options["max_side"]
        ).numpy()
        files = self.files(name)
        painting.write_label(files["label"], ids, self.palette)
        tinted = painting.overlay(pixels, ids, self.palette)
        painting.write_jpeg(files["overlay"], tinted, 88)
        painting.write_jpeg(files["thumb"], painting.thumbnail(pixels, tinted), 82)
        count = np.bincount(ids.ravel() + 1, minlength=len(self.names) + 1)
        note = {
            "key": key,
            "size": list(ids.shape),
            "shares": {
                str(k - 1): round(int(n) / ids.size, 5)
                for k, n in enumerate(count)
                if n
            },
            "seconds": round(time.perf_counter() - begun, 3),
        }
        with atomic_file(files["note"]) as temporary:
            temporary.write_text(json.dumps(note), encoding="utf-8")
        return note


def _summary(
    segmenter: Segmenter,
    work: _Work,
    scanned: Scan,
    done: dict[Path, dict[str, Any]],
    progress: bool,
) -> dict[str, Any]:
    """Write the legend and ``summary.json``; what has not changed is not redone."""
    found, names = scanned.found, scanned.found.names
    state = [[names[path], note["key"]] for path, note in done.items()]
    state += [[str(p), p.stat().st_mtime_ns] for p in scanned.labels.values()]
    key = hashlib.sha256(repr((state, scanned.classes)).encode()).hexdigest()[:16]
    pictures = {
        names[path]: {
            "file": found.shown(path),
            "height": note["size"][0],
            "width": note["size"][1],
            "shares": note["shares"],
            "seconds": note["seconds"],
        }
        for path, note in done.items()
    }
    summary = {
        "key": key,
        "folder": found.folder.name,
        "model": {
            "method": segmenter.method,
            "preset": segmenter.preset,
            "backbone": segmenter.backbone.name,
            "untrained": segmenter.backbone.untrained,
            "clusters": segmenter.n_clusters,
            "meta": segmenter.meta,
        },
        "settings": work.options,
        "legend": [
            {"id": k, "name": name, "colour": "#" + bytes(colour).hex()}
            for k, (name, colour) in enumerate(
                zip(work.names, work.palette.tolist(), strict=True)
            )
        ],
        "shares": _mean_shares(done.values()),
        "pictures": pictures,
        "skipped": scanned.skipped,
    }
    before = _stored(work.out / "summary.json")
    if before.get("key") == key:
        known = ("record", "not_scored", "monitors")
        summary |= {name: before[name] for name in known if name in before}
    else:
        summary |= _judged(segmenter, work.options, scanned, progress)
    painting.write_legend(work.out / "legend.png", work.names, work.palette)
    with atomic_file(work.out / "summary.json") as temporary:
        temporary.write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
    return summary


def _mean_shares(notes: Iterable[dict[str, Any]]) -> dict[str, float]:
    """Mean over the pictures of the share of every id, as large pictures as small."""
    notes, sums = list(notes), {}
    for note in notes:
        for k, share in note["shares"].items():
            sums[k] = sums.get(k, 0.0) + share / len(notes)
    return {k: round(sums[k], 5) for k in sorted(sums, key=int)}


def _stored(path: Path) -> dict[str, Any]:
    try:
        return read_object(path)
    except (OSError, ValueError):
        return {}


# ------------------------------------------------------------------ how good it is


def _judged(
    segmenter: Segmenter, options: dict[str, Any], scanned: Scan, progress: bool
) -> dict[str, Any]:
    """Monitors, and the usual record where there are labels."""
    some = np.linspace(0, len(scanned.pictures) - 1, MONITORED).round().astype(int)
    watched = [scanned.pictures[i] for i in sorted(set(some.tolist()))]
    found = {"monitors": monitor(segmenter, watched, max_side=options["max_side"])}
    if not scanned.labels:
        return found
    try:
        record = _record(segmenter, scanned, options["crf"], progress)
    except ValueError as error:
        return found | {"not_scored": str(error)}
    return found | {"record": record}


def _record(
    segmenter: Segmenter, scanned: Scan, use_crf: bool, progress: bool
) -> dict[str, Any]:
    """The record of the pictures with labels, at the size the model was trained at.

    Raises:
        ValueError: the labels' classes are not the model's.
    """
    model, named = copy.copy(segmenter), scanned.found.classes_file is not None
    if not model.classes:  # trained without labels: these here name its clusters
        model.classes = scanned.classes
        model.palette = voc_palette(len(scanned.classes) + 1)[1:]
    elif not named and len(scanned.classes) <= len(model.classes):
        scanned = replace(scanned, classes=model.classes)
    transform = segmenter.transform
    if transform.kind == "none":
        size = common_size(scanned, 320 * 320, segmenter.backbone.patch)
        transform = Transform("center", size)
    protocol = replace(model.protocol, crf=use_crf)
    if "map" not in model.meta:  # no training labels are known to have named them
        protocol = replace(protocol, fit_map_on="eval")
    labelled = PhotoSet(scanned, transform, labelled=True)
    return evaluate(model, labelled, protocol=protocol, progress=progress)


def _fingerprint(segmenter: Segmenter) -> str:
    """Digest of everything that decides what a model makes of a picture."""
    table = segmenter.cluster_to_class
    names, palette = segmenter.legend()
    told = [
        segmenter.backbone.fingerprint,
        segmenter.head.config(),
        asdict(segmenter.protocol),
        None if table is None else table.tolist(),
        names,
        palette.tolist(),
    ]
    parts = {"head": segmenter.head, "cluster_probe": segmenter.cluster_probe}
    state = {
        f"{part}.{name}": value
        for part, module in parts.items()
        for name, value in module.state_dict().items()
    }
    return weights_digest(json.dumps(told, default=str), state)
