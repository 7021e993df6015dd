"""Names for clusters, given by a person who looked at them.

Clusters come without meaning. A person who sees where each one lies can name it, and
give one name to several: together they are a class. That is far less work than drawing
labels, one word per cluster instead of an outline per object. The names are kept in a
small file, ``{"names": {"0": "sky", "3": "road", "5": "road"}, ...}``, that may also be
written by hand; :mod:`uss_utils.naming_widget` makes it by clicking.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from uss_utils.datasets.labels import voc_palette
from uss_utils.json_files import read_object
from uss_utils.paths import atomic_file
from uss_utils.segmenter import Segmenter

Names = Mapping[int, str]  # cluster -> name; clusters may be missing


def apply(segmenter: Segmenter, names: Names | str | Path) -> Segmenter:
    """The model with clusters called, and put together, as a person says.

    Args:
        segmenter: any model.
        names: of some clusters, or a file that holds them. Clusters of one name become
            one class; those without keep theirs: of their class, or their number.

    Returns:
        Another model on the same backbone, without linear probe, which knows other
        classes. Classes are in the order of their first clusters, and have those
        clusters' colours where no other class has them.

    Raises:
        FileNotFoundError: no such file.
        ValueError: see :func:`read` and :func:`check`; or no cluster has a name.
    """
    if isinstance(names, str | Path):
        names = read(names, segmenter)
    names = check(names, segmenter.n_clusters)
    if not names:
        raise ValueError(
            f"none of the {segmenter.n_clusters} clusters has a name; name at least one"
        )
    own, shown = _own(segmenter)
    words = [names.get(k, own[k]) for k in range(segmenter.n_clusters)]
    classes = tuple(dict.fromkeys(words))
    # Two clusters of a class that were given two names would look alike.
    free = voc_palette(2 * len(words) + 1)[1:].tolist()
    palette: list[list[int]] = []
    for name in classes:
        colour = shown[words.index(name)].tolist()
        while colour in palette:
            colour = free.pop(0)
        palette.append(colour)
    table = [classes.index(word) for word in words]
    return _renamed(segmenter, classes, np.array(palette, np.uint8), table)


def _own(segmenter: Segmenter) -> tuple[list[str], np.ndarray]:
    """What a model's clusters are called, and their colours, uint8 (n, 3)."""
    words = [f"cluster {k}" for k in range(segmenter.n_clusters)]
    shown = colours({}, segmenter.n_clusters)
    for k, name in known(segmenter).items():
        words[k] = name
        shown[k] = segmenter.palette[segmenter.cluster_to_class[k]]
    return words, shown


def unnamed(segmenter: Segmenter) -> Segmenter:
    """The model without classes: :meth:`Segmenter.segment` returns cluster ids."""
    return _renamed(segmenter, (), np.zeros((0, 3), np.uint8), None)


def _renamed(
    segmenter: Segmenter,
    classes: tuple[str, ...],
    palette: np.ndarray,
    table: list[int] | None,
) -> Segmenter:
    return Segmenter(
        segmenter.backbone,
        segmenter.head,
        segmenter.cluster_probe,
        classes=classes,
        palette=palette,
        cluster_to_class=table,
        transform=segmenter.transform,
        protocol=segmenter.protocol,
        method=segmenter.method,
        preset=segmenter.preset,
        # Where an earlier map came from is no longer true.
        meta={name: v for name, v in segmenter.meta.items() if name != "map"},
    )


def known(segmenter: Segmenter) -> dict[int, str]:
    """Names that a model's clusters have already; empty where classes are unknown."""
    if segmenter.cluster_to_class is None:
        return {}
    table = segmenter.cluster_to_class.tolist()
    return {k: segmenter.classes[c] for k, c in enumerate(table) if c >= 0}


def colours(names: Names, n_clusters: int) -> np.ndarray:
    """A colour per cluster; clusters of one name have that of the first of them.

    Returns:
        uint8, shape (n_clusters, 3).
    """
    shown = voc_palette(n_clusters + 1)[1:].copy()
    first: dict[str, int] = {}
    for k in sorted(names):
        shown[k] = shown[first.setdefault(names[k], k)]
    return shown


def check(names: Mapping, n_clusters: int) -> dict[int, str]:
    """Names in good order: whole numbers, trimmed words, nothing empty.

    Args:
        names: of clusters; numbers may be text, as they are in a file.
        n_clusters: of the model.

    Raises:
        ValueError: a cluster that does not exist, or a name that is no text.
    """
    found = {}
    for key, name in names.items():
        try:
            k = int(key)
        except (TypeError, ValueError):
            k = -1
        if not 0 <= k < n_clusters:
            raise ValueError(
                f"there is no cluster {repr(key)[:50]} to name; the clusters of this "
                f"model are 0 to {n_clusters - 1}"
            )
        if not isinstance(name, str):
            raise ValueError(
                f"the name of cluster {k} must be text, got {repr(name)[:50]}"
            )
        if name.strip():
            found[k] = " ".join(name.split())
    return dict(sorted(found.items()))


# ---------------------------------------------------------------------------- on disk


def write(names: Names, path: str | Path, segmenter: Segmenter) -> Path:
    """Keep names in a file, with the mark of the model they belong to.

    Args:
        names: of some clusters.
        path: file to create or replace, completely or not at all.
        segmenter: the model.

    Returns:
        The file.

    Raises:
        ValueError: see :func:`check`.
        OSError: the folder is read-only or the disk is full.
    """
    names = check(names, segmenter.n_clusters)
    stored = {
        "names": {str(k): name for k, name in names.items()},
        "clusters": segmenter.n_clusters,
        "model": _mark(segmenter),
    }
    text = json.dumps(stored, indent=1, ensure_ascii=False) + "\n"
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return Path(path)


def read(path: str | Path, segmenter: Segmenter) -> dict[int, str]:
    """Names from a file.

    Args:
        path: written by :func:`write`, or by hand: then only ``"names"`` is needed.
        segmenter: the model they are for.

    Raises:
        FileNotFoundError: no such file.
        ValueError: another kind of file, names that :func:`check` refuses, or names of
            another model: trained again, cluster 3 is something else.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no file with names at {path}")
    try:
        stored = read_object(path)
        names = dict(stored["names"].items())
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path} holds no names of clusters; expected JSON like "
            '{"names": {"0": "sky", "3": "road"}}'
        ) from error
    if stored.get("model", _mark(segmenter)) != _mark(segmenter):
        raise ValueError(
            f"the names in {path} belong to another model, whose clusters are others; "
            "load that model, or name the clusters of this one"
        )
    try:
        return check(names, segmenter.n_clusters)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _mark(segmenter: Segmenter) -> str:
    """What tells one trained model's clusters from another's."""
    centroids = segmenter.cluster_probe.clusters.detach().cpu().contiguous()
    return hashlib.sha256(centroids.numpy().tobytes()).hexdigest()[:16]
