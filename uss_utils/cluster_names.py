"""Names that a user gives to the clusters of a model, from a file or from clicks."""

import copy
import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

from uss_utils.datasets.labels import voc_palette
from uss_utils.segmenter import Segmenter


def read_names(file: str | Path) -> dict[int, str]:
    """Names of clusters from a JSON file: ``{"names": {"0": "sky", "3": "road"}}``.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it holds something else.
    """
    file = Path(file).expanduser()
    if not file.is_file():
        raise FileNotFoundError(f"no file of cluster names at {file}")
    try:
        names = json.loads(file.read_text(encoding="utf-8"))["names"]
        return {int(k): str(name) for k, name in names.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f'{file} names no clusters: expected {{"names": {{"0": "sky", ...}}}} '
            f"({error!r})"
        ) from error


def renamed(segmenter: Segmenter, names: Mapping[int | str, str]) -> Segmenter:
    """The same model with clusters called, and put together, as the user says.

    Args:
        segmenter: the model.
        names: name by cluster; clusters of one name become one class. The others, and
            those with an empty name, keep theirs: of their class, or their number.

    Raises:
        ValueError: a number that is no cluster's.
    """
    given = {int(k): str(name).strip() for k, name in names.items()}
    wrong = sorted(k for k in given if not 0 <= k < segmenter.n_clusters)
    if wrong:
        raise ValueError(
            f"there is no cluster {wrong[0]}: the model has the clusters "
            f"0..{segmenter.n_clusters - 1}; these names belong to another model"
        )
    table = segmenter.cluster_to_class
    known = range(segmenter.n_clusters) if table is None else table.tolist()
    usual = [
        f"cluster {k}" if table is None or c < 0 else segmenter.classes[c]
        for k, c in enumerate(known)
    ]
    words = [given.get(k) or usual[k] for k in range(segmenter.n_clusters)]
    classes = tuple(dict.fromkeys(words))
    colours = dict(zip(segmenter.classes, segmenter.palette, strict=True))
    fresh = iter(voc_palette(2 * len(classes) + len(colours) + 1)[1:])
    taken = {tuple(colour) for colour in colours.values()}
    free = (colour for colour in fresh if tuple(colour) not in taken)
    other = copy.copy(segmenter)
    other.linear_probe = None  # it knows the old classes alone
    other.classes = classes
    other.palette = np.stack([colours.get(name, next(free)) for name in classes])
    other.cluster_to_class = torch.tensor([classes.index(word) for word in words])
    return other
