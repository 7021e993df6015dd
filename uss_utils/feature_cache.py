"""Features of a frozen backbone, kept on disk in half precision.

A cache is a folder with ``features.npy`` (float16, N x C x h x w) and, beside it,
``features.json``: what it was made from. It is complete when both files are there.
"""

import hashlib
import json
from collections.abc import Iterable
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from uss_utils import ranks
from uss_utils.datasets.base import SegmentationDataset
from uss_utils.environment import pick_device
from uss_utils.extraction import device_of, feature_batches
from uss_utils.frozen import Frozen
from uss_utils.json_files import read_object
from uss_utils.paths import atomic_file, cache_dir
from uss_utils.resumable import ArrayWriter, explained, locked, npy_size

DATA, RECORD = "features.npy", "features.json"
FORMAT = 1
# What a reader must agree with, and how to say that it does not.
KEY = {
    "format": "another version of the file format",
    "dataset": "other images, or another transform",
    "backbone": "other backbone weights",
    "position": "another resampling of the position table",
    "patch": "another patch size",
    "image_size": "another image size",
    "shape": "another shape",
}


class FeatureCache:
    """Read access to a finished cache, memory-mapped: ``cache[i]``, ``cache.batch``.

    Make one with :meth:`build` or :meth:`open`.

    Attributes:
        folder: where it lies.
        record: the fields of its JSON file.
        shape: (N, C, h, w).
    """

    def __init__(self, folder: Path, record: dict):
        self.folder, self.record = folder, record
        self.shape = tuple(record["shape"])
        self._map = _mapped(folder / DATA, record)

    @classmethod
    def build(
        cls,
        backbone: Frozen,
        dataset: SegmentationDataset,
        folder: str | Path | None = None,
        *,
        batch_size: int = 32,
        device: str | torch.device | None = None,
        autocast: bool = True,
        progress: bool = False,
    ) -> "FeatureCache":
        """Make the cache, finish a half-made one, or open it if it is complete.

        An interrupted run (even a killed one) is continued by the next call with the
        same arguments, and the result is the same to the last bit. Of two runs that
        build the same cache the second waits and then opens it. The processes of one
        run share the images (:mod:`uss_utils.ranks`); the first writes.

        Args:
            backbone: see :func:`uss_utils.backbones.load`.
            dataset: all items must have one image size.
            folder: where to put it; None: a folder under the cache directory named by
                data set, backbone and content.
            batch_size: images per forward pass.
            device: where to compute; None: where the backbone is.
            autocast: half precision while computing on CUDA.
            progress: show a bar.

        Raises:
            ValueError: ``folder`` holds a cache of something else; the data set is
                empty; features that half precision cannot hold.
            OSError: the place cannot be written, or the disk is full.
        """
        key = content_key(backbone, dataset)
        path = _default(key, backbone, dataset) if folder is None else Path(folder)
        path = path.expanduser()
        if ranks.is_main():
            with explained(path):
                path.mkdir(parents=True, exist_ok=True)
        ranks.barrier()
        if not ranks.everywhere(path.is_dir()):
            raise ValueError(
                f"not all machines see {path}: set USS_DATA to a folder that they "
                "share, or keep no features (-s cache=images)"
            )
        settings = {"batch_size": batch_size, "autocast": autocast}
        place = pick_device(str(device_of(backbone) if device is None else device))
        with locked(path) if ranks.is_main() else nullcontext():
            writer = _writer(path, key, settings, place) if ranks.is_main() else None
            done = ranks.from_main(writer.done if writer else None)
            if done is not None:
                batches = feature_batches(
                    *(backbone, dataset),
                    start=done,
                    device=place,
                    progress=progress,
                    shared=True,
                    **settings,
                )
                _write(writer, batches, backbone, dataset)
            ranks.barrier()
            return cls._checked(path, key)

    @classmethod
    def open(
        cls, folder: str | Path, *, backbone: Frozen, dataset: SegmentationDataset
    ) -> "FeatureCache":
        """Open a finished cache after checking that it is the wanted one.

        Raises:
            FileNotFoundError: no finished cache there.
            ValueError: made from other images, weights or geometry (the message says
                which), or damaged.
        """
        folder = Path(folder).expanduser()
        if not _complete(folder):
            raise FileNotFoundError(
                f"no finished feature cache in {folder}; FeatureCache.build makes it"
            )
        return cls._checked(folder, content_key(backbone, dataset))

    @classmethod
    def _checked(cls, folder: Path, key: dict) -> "FeatureCache":
        try:
            record = read_object(folder / RECORD)
        except ValueError as error:
            raise _damaged(folder, f"{RECORD} is not JSON of a record") from error
        _check_key(folder, record, key)
        return cls(folder, record)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: int | slice) -> Tensor:
        """Features of one image, float32 (C, h, w)."""
        return torch.from_numpy(np.array(self._map[index])).float()

    def batch(self, indices: Iterable[int]) -> Tensor:
        """Features of some images in the given order, float32 (B, C, h, w)."""
        rows = np.asarray([int(i) for i in indices], dtype=np.int64)
        return torch.from_numpy(self._map[rows]).float()

    def __repr__(self) -> str:
        return f"FeatureCache({' x '.join(map(str, self.shape))} at {self.folder})"


def _complete(folder: Path) -> bool:
    """Both files are there.

    Raises:
        ValueError: data without a record, which no run of ours leaves behind.
    """
    data, record = (folder / DATA).is_file(), (folder / RECORD).is_file()
    if data and not record:
        raise _damaged(folder, f"{DATA} without {RECORD}")
    return data and record


def _sweep(folder: Path) -> None:
    """Remove the temporary files of killed runs; only called under the lock."""
    for leftover in [*folder.glob(".tmp-*.progress"), *folder.glob(".tmp-*.json")]:
        leftover.unlink(missing_ok=True)
    if (folder / DATA).exists():
        (folder / DATA).with_suffix(".progress").unlink(missing_ok=True)


def _writer(
    folder: Path, key: dict, settings: dict, device: torch.device
) -> ArrayWriter | None:
    """Of what is missing; None where nothing is. Says what is going to be written."""
    _sweep(folder)
    if _complete(folder):
        return None
    shape = tuple(key["shape"])
    writer = ArrayWriter(
        folder / DATA, shape, {**key, **settings, "device": device.type}
    )
    size = f"{' x '.join(map(str, shape))} fp16 = {npy_size(shape) / 1e6:.1f} MB"
    print(f"feature cache: {size} at {writer.path}")
    if writer.done:
        print(f"feature cache: continuing at image {writer.done} of {shape[0]}")
    writer.check_space()
    return writer


def _write(
    writer: ArrayWriter | None,
    batches: Iterable[tuple[range, Tensor]],
    backbone: Frozen,
    dataset: SegmentationDataset,
) -> None:
    """Write what is missing, then the record, then the final name.

    A process without a writer only computes its share.
    """
    if writer is None:
        for _ in batches:
            pass
        return
    writer.append(_halved(rows, feat, writer.shape) for rows, feat in batches)
    record = {
        **writer.belongs_to,
        "dataset_name": f"{dataset.name} {dataset.split}",
        "backbone_name": backbone.name,
        "sample": _sample(writer.partial),
    }
    with atomic_file(writer.path.parent / RECORD) as path:
        path.write_text(json.dumps(record, indent=1), encoding="utf-8")
    writer.finish()


def _halved(rows: range, feat: Tensor, shape: tuple[int, ...]) -> np.ndarray:
    """float16 copy of a batch, checked."""
    which = f"images {rows.start}..{rows.stop - 1}"
    if tuple(feat.shape[1:]) != shape[1:]:
        raise ValueError(
            f"features of {which} have shape {tuple(feat.shape[1:])}, those of image 0 "
            f"{shape[1:]}; give the data set a transform that makes all images equal"
        )
    half = feat.half()
    if not bool(torch.isfinite(half).all()):
        raise ValueError(
            f"features of {which} exceed the range of half precision (65504) and "
            "cannot be cached; use features.extract"
        )
    return half.numpy()


def content_key(backbone: Frozen, dataset: SegmentationDataset) -> dict:
    """What decides the features of a data set, JSON-able; see :data:`KEY`.

    Raises:
        ValueError: no image, or one that does not divide into patches.
    """
    if len(dataset) == 0:
        raise ValueError("there is no image to extract features from")
    images, _ = dataset.batch([0])
    h, w = backbone.grid(images)
    return {
        "format": FORMAT,
        "dataset": dataset.fingerprint(),
        "backbone": backbone.fingerprint,
        "position": backbone.position,
        "patch": backbone.patch,
        "image_size": list(images.shape[-2:]),
        "shape": [len(dataset), backbone.dim, h, w],
    }


def _default(key: dict, backbone: Frozen, dataset: SegmentationDataset) -> Path:
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
    name = f"{dataset.name}-{dataset.split}-{backbone.name}-{digest[:12]}"
    return cache_dir() / "features" / name


def _check_key(folder: Path, record: dict, key: dict) -> None:
    wrong = [field for field in KEY if record.get(field) != key[field]]
    if wrong:
        what = "; ".join(
            f"{KEY[field]} ({field}: {_brief(record.get(field))} there, "
            f"{_brief(key[field])} now)"
            for field in wrong
        )
        raise ValueError(
            f"the feature cache in {folder} was made from something else: {what}. "
            "Delete the folder, or build in another one"
        )


def _brief(value: object) -> str:
    text = str(value)
    return text if len(text) <= 20 else text[:12] + "…"


def _mapped(path: Path, record: dict) -> np.ndarray:
    """The data, memory-mapped, after a check of size and of sampled blocks."""
    size, expected = path.stat().st_size, npy_size(record["shape"])
    if size != expected:
        raise _damaged(path.parent, f"{DATA} has {size} bytes instead of {expected}")
    if record.get("sample") != _sample(path):
        raise _damaged(path.parent, f"{DATA} was changed after it was written")
    try:
        found = np.load(path, mmap_mode="r", allow_pickle=False)
    except ValueError as error:
        raise _damaged(path.parent, f"{DATA}: {error}") from error
    if list(found.shape) != record["shape"] or found.dtype != np.float16:
        raise _damaged(path.parent, f"{DATA} holds {found.dtype} {found.shape}")
    return found


def _sample(path: Path, blocks: int = 64, length: int = 4096) -> str:
    """SHA-256 of blocks spread over a file, first and last included."""
    digest = hashlib.sha256()
    last = max(0, path.stat().st_size - length)
    with path.open("rb") as file:
        for i in range(blocks):
            file.seek(last * i // (blocks - 1))
            digest.update(file.read(length))
    return digest.hexdigest()


def _damaged(folder: Path, reason: str) -> ValueError:
    return ValueError(
        f"the feature cache in {folder} is damaged ({reason}); delete the folder and "
        "build it again"
    )
