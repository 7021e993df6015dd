"""Which images of a set look alike, kept on disk.

An index is a folder with ``neighbours.npy`` (int64, N x k, column 0 = the image itself)
and, beside it, ``neighbours.json``: what it was made from. While it is made, the
descriptors of the images lie there too.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from uss_utils.datasets.base import SegmentationDataset
from uss_utils.environment import pick_device
from uss_utils.extraction import device_of, feature_batches
from uss_utils.feature_cache import KEY, content_key
from uss_utils.frozen import Frozen
from uss_utils.json_files import read_object
from uss_utils.neighbours import check_length, global_descriptors, nearest_batches
from uss_utils.paths import atomic_file, cache_dir
from uss_utils.resumable import ArrayWriter, explained, locked
from uss_utils.rows import check_finite

DATA, RECORD, DESCRIPTORS = "neighbours.npy", "neighbours.json", "descriptors.npy"


def neighbour_index(
    backbone: Frozen,
    dataset: SegmentationDataset,
    k: int = 8,
    folder: str | Path | None = None,
    *,
    features: Iterable[tuple[range, Tensor]] | None = None,
    variant: str = "",
    batch_size: int = 32,
    device: str | torch.device | None = None,
    progress: bool = False,
) -> Tensor:
    """Lists of similar images (STEGO, section 4.2), made once and then read from disk.

    The features' mean over an image, as a unit vector, describes it; cosines rank. The
    backbone is in eval mode (the released preparation left dropout on, which was not
    meant). A killed run is continued by the next call with the same arguments. Memory
    grows by one descriptor per image, not with the square of their number.

    Args:
        backbone: see :func:`uss_utils.backbones.load`.
        dataset: all items must have one image size.
        k: length of the lists, the image itself included: 8 for seven partners. An
            index with longer lists is used, too.
        folder: where the index lies; None: a folder under the cache directory named by
            data set, backbone and content.
        features: batches (rows, features (B, C, h, w)) of the whole set in order,
            where these exist already: ``FeatureSource.batches()``. None: computed.
        variant: what was done to ``features``, in words; part of the key.
        batch_size: images per forward pass.
        device: where to compute; None: where the backbone is.
        progress: show a bar.

    Returns:
        int64 (N, k), column 0 = the image itself.

    Raises:
        ValueError: fewer than ``k`` images, features that are not finite or not those
            of the whole set, or ``folder`` holds an index of something else.
        OSError: the place cannot be written, or the disk is full.
    """
    check_length(k, len(dataset))
    key = {**content_key(backbone, dataset), "variant": variant}
    path = _default(key, backbone, dataset) if folder is None else Path(folder)
    path = path.expanduser()
    place = pick_device(str(device_of(backbone) if device is None else device))
    with explained(path):
        path.mkdir(parents=True, exist_ok=True)
    with locked(path):
        if _length(path, key) < k:
            made_by = {"device": place.type, "given": features is not None}
            if features is None:
                made_by["batch_size"] = batch_size
            writer = _descriptors(path, key, made_by)
            if features is None:
                features = feature_batches(
                    backbone,
                    dataset,
                    start=writer.done,
                    batch_size=batch_size,
                    device=place,
                    progress=progress,
                )
            _fill(writer, features)
            _rank(path, key, k, place, progress)
        _sweep(path)
        return torch.from_numpy(_read(path, key, k)[:, :k].copy())


def _default(key: dict, backbone: Frozen, dataset: SegmentationDataset) -> Path:
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
    name = f"{dataset.name}-{dataset.split}-{backbone.name}-{digest[:12]}"
    return cache_dir() / "neighbours" / name


def _length(folder: Path, key: dict) -> int:
    """Length of the lists of a finished index; 0 where there is none.

    Raises:
        ValueError: it belongs to something else.
    """
    if not ((folder / DATA).is_file() and (folder / RECORD).is_file()):
        return 0
    record = _record(folder)
    wrong = [field for field in key if record.get(field) != key[field]]
    if wrong:
        what = "; ".join(KEY.get(field, f"another {field}") for field in wrong)
        raise ValueError(
            f"the neighbour index in {folder} was made from something else: {what}. "
            "Delete the folder, or use another one"
        )
    return record["k"]


def _record(folder: Path) -> dict:
    try:
        record = {"k": 0, **read_object(folder / RECORD)}
    except ValueError as error:
        raise _damaged(folder, f"{RECORD} holds no record") from error
    if type(record["k"]) is not int:
        raise _damaged(folder, f"{RECORD} tells no length of the lists")
    return record


def _read(folder: Path, key: dict, k: int) -> np.ndarray:
    """The lists of a finished index, checked."""
    content = (folder / DATA).read_bytes()
    if hashlib.sha256(content).hexdigest() != _record(folder).get("sha256"):
        raise _damaged(folder, f"{DATA} was changed after it was written")
    try:
        found = np.load(folder / DATA, allow_pickle=False)
    except ValueError as error:
        raise _damaged(folder, f"{DATA}: {error}") from error
    n = key["shape"][0]
    wrong = found.dtype != np.int64 or found.ndim != 2 or len(found) != n
    if wrong or found.shape[1] < k or not ((found >= 0) & (found < n)).all():
        raise _damaged(folder, f"{DATA} does not list images of this set")
    return found


def _damaged(folder: Path, reason: str) -> ValueError:
    return ValueError(
        f"the neighbour index in {folder} is damaged ({reason}); delete the folder, "
        "and it is made anew"
    )


def _descriptors(folder: Path, key: dict, made_by: dict) -> ArrayWriter:
    n, channels = key["shape"][:2]
    belongs_to = {**key, **made_by, "what": "descriptors"}
    return ArrayWriter(folder / DESCRIPTORS, (n, channels), belongs_to, "<f4")


def _fill(writer: ArrayWriter, features: Iterable[tuple[range, Tensor]]) -> None:
    """Write the descriptors that are missing."""
    n = writer.shape[0]
    if writer.done < n:
        print(f"neighbours: descriptors of {n - writer.done} of {n} images")
        writer.check_space()
        writer.append(_described(features, writer))
    if writer.done != n:
        raise ValueError(
            f"the features end after {writer.done} of {n} images; give those of the "
            "whole set, in order"
        )


def _described(
    features: Iterable[tuple[range, Tensor]], writer: ArrayWriter
) -> Iterator[np.ndarray]:
    """Descriptors of the images that follow those already written."""
    expected = writer.done
    for rows, feat in features:
        if rows.stop <= expected:
            continue  # written by an earlier run
        if rows.start > expected or rows.stop > writer.shape[0]:
            raise ValueError(
                f"features of images {rows.start}..{rows.stop - 1} came where those "
                f"from {expected} on were due; give those of the whole set, in order"
            )
        part = global_descriptors(feat[expected - rows.start :].float()).cpu()
        if part.shape[1] != writer.shape[1]:
            raise ValueError(
                f"features have {part.shape[1]} channels, the backbone's "
                f"{writer.shape[1]}"
            )
        check_finite(part)
        yield part.numpy()
        expected = rows.stop


def _rank(
    folder: Path, key: dict, k: int, device: torch.device, progress: bool
) -> None:
    """Compare all images, write the lists and the record."""
    rows = np.load((folder / DESCRIPTORS).with_suffix(".partial"), allow_pickle=False)
    rows = torch.from_numpy(rows).to(device)
    writer = ArrayWriter(folder / DATA, (len(rows), k), {**key, "k": k}, "<i8")
    bar = tqdm(
        total=len(rows), initial=writer.done, desc="neighbours", disable=not progress
    )

    def lists() -> Iterator[np.ndarray]:
        for indices, _ in nearest_batches(rows, k, start=writer.done):
            yield indices.cpu().numpy()
            bar.update(len(indices))

    with bar:
        writer.append(lists())
    digest = hashlib.sha256(writer.partial.read_bytes()).hexdigest()
    (folder / DATA).unlink(missing_ok=True)  # shorter lists than are wanted now
    with atomic_file(folder / RECORD) as path:
        path.write_text(json.dumps({**key, "k": k, "sha256": digest}, indent=1))
    writer.finish()


def _sweep(folder: Path) -> None:
    """Remove what only an unfinished index needs; called under the lock."""
    for suffix in (".partial", ".progress"):
        (folder / DESCRIPTORS).with_suffix(suffix).unlink(missing_ok=True)
    for leftover in folder.glob(".tmp-*"):
        leftover.unlink(missing_ok=True)
