"""Training a method on the very photographs that it is to segment."""

import hashlib
import json
import math
import shutil
from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from uss_utils.datasets.files import FileDataset
from uss_utils.datasets.labels import strict_table, voc_palette
from uss_utils.datasets.transforms import Transform, resize_to_patch
from uss_utils.paths import user_path
from uss_utils.photo_files import IGNORED, Scan, scan
from uss_utils.recipe import Recipe
from uss_utils.segmenter import Segmenter

PRESET = "camvid-tiny"
CLUSTERS = 8  # where neither labels nor the user say how many
MOST = 1000  # pictures trained on, evenly spaced, unless n_train says otherwise
MODEL = "model.safetensors"
_UNFINISHED = "training"  # folder of a training's checkpoint


class PhotoSet(FileDataset):
    """The pictures of a scanned folder as a data set; some or all without labels.

    Args:
        scanned: from :func:`scan`.
        transform: geometry; None keeps the pixels as they are.
        labelled: only those with a label.
    """

    def __init__(
        self, scanned: Scan, transform: Transform | None = None, labelled: bool = False
    ):
        pairs = [(path, scanned.labels.get(path)) for path in scanned.pictures]
        pairs = [pair for pair in pairs if pair[1] is not None or not labelled]
        count = len(scanned.classes)
        super().__init__(
            "folder",
            "all",
            pairs,
            scanned.classes,
            voc_palette(count + 1)[1:],
            strict_table(count, IGNORED),
            transform,
        )
        self.names = scanned.found.names

    def item_name(self, index: int) -> str:
        """What the picture's results are called; unique."""
        return self.names[self.pairs[index][0]]


def train_on_folder(
    method: ModuleType,
    folder: str | Path,
    out: str | Path,
    *,
    preset: str = PRESET,
    clusters: int | None = None,
    steps: int | None = None,
    settings: Mapping[str, Any] | None = None,
    seed: int = 0,
    device: str = "auto",
    overwrite: bool = False,
    progress: bool = False,
) -> Segmenter:
    """Train a method on a folder's pictures, and keep the model in ``out``.

    Labels are optional; where there are some, they name the clusters. Pictures are cut
    to one size with about as many pixels as the preset's and the folder's usual aspect.
    A model that was trained with the same settings is loaded instead, and a killed
    training continues.

    Args:
        method: a method's module, see :func:`uss_utils.methods.load`.
        folder: a folder or one picture, see :func:`uss_utils.photo_files.scan`.
        out: folder of the model.
        preset: of the method.
        clusters: how many; None: one per class of the labels, :data:`CLUSTERS` without.
        steps: optimiser steps; None: the preset's.
        settings: fields of the preset to replace.
        seed: of everything drawn.
        device: where to train; "auto" picks.
        overwrite: train again even if there is a model.
        progress: show bars, and say what was chosen.

    Raises:
        FileNotFoundError: there is no such folder, or no file in it.
        ValueError: no picture can be read, too few for the method, or settings that do
            not fit.
        OSError: the model cannot be written.
    """
    out = user_path(out)
    say = print if progress else _nothing
    name = method.__name__.rpartition(".")[2]
    asked = {
        "method": name,
        "preset": preset,
        "clusters": clusters,
        "steps": steps,
        "settings": dict(settings or {}),
        "seed": seed,
    }
    cfg = method.Config.preset(
        preset,
        **{"dataset": "folder", "clusters": clusters, "steps": steps, "seed": seed}
        | asked["settings"],
    )
    if not overwrite and (known := _trained_before(out / MODEL, asked, device, say)):
        return known
    scanned = scan(folder, progress=progress)
    cfg, data = _fitted(cfg, scanned, name, say)
    unfinished = out / _UNFINISHED
    text = json.dumps([asked, data.fingerprint()], sort_keys=True, default=str)
    place = unfinished / f"{hashlib.sha256(text.encode()).hexdigest()[:16]}.safetensors"
    segmenter = _train(method, cfg, data, place, device, progress)
    segmenter.meta["asked"] = json.loads(json.dumps(asked, default=str))
    segmenter.save(out / MODEL)
    shutil.rmtree(unfinished, ignore_errors=True)
    say(f"model: {out / MODEL}")
    return segmenter


def _nothing(line: str) -> None:
    """In place of ``print``."""


def _train(
    method: ModuleType,
    cfg: Recipe,
    data: PhotoSet,
    checkpoint: Path,
    device: str,
    progress: bool,
) -> Segmenter:
    if not hasattr(method, "prepare"):  # k-means: over before a checkpoint would help
        return method.train(cfg, data, device=device, progress=progress)
    material = method.prepare(cfg, data, device=device, progress=progress)
    trained = method.train(cfg, material, checkpoint=checkpoint, progress=progress)
    return trained.segmenter


def _trained_before(
    file: Path, asked: dict, device: str, say: Callable
) -> Segmenter | None:
    """The model of an earlier call with the same settings.

    Raises:
        ValueError: the file is damaged, or a model that was not trained here.
    """
    if not file.is_file():
        return None
    try:
        known = Segmenter.load(file, device)
    except ValueError as error:
        raise ValueError(
            f"{error}; overwrite replaces it, or choose another folder for the results"
        ) from error
    if "asked" not in known.meta:
        raise ValueError(
            f"{file} was not trained on this folder and would be replaced: give it as "
            "the model, or choose another folder for the results"
        )
    if known.meta["asked"] != json.loads(json.dumps(asked, default=str)):
        say(f"{file} was trained with other settings: training anew")
        return None
    say(f"trained before: {file} (--overwrite trains again)")
    return known


def _fitted(
    cfg: Recipe, scanned: Scan, name: str, say: Callable
) -> tuple[Recipe, PhotoSet]:
    """Settings that suit the folder, and its pictures as a data set.

    Raises:
        ValueError: too few pictures, or fewer clusters than classes.
    """
    count, classes = len(scanned.pictures), len(scanned.classes)
    say(f"{count} pictures can be read, {len(scanned.skipped)} files are skipped")
    n = min(count, cfg.n_train or MOST)
    changes = _for_few(cfg, n, name)
    if classes and (cfg.clusters or classes) < classes:
        raise ValueError(
            f"{cfg.clusters} clusters cannot stand for the {classes} classes of the "
            f"labels; give at least {classes}, or none"
        )
    if classes:
        say(f"labels of {len(scanned.labels)} pictures name {classes} classes")
    elif not cfg.clusters:
        changes["clusters"] = CLUSTERS
        say(f"no labels: {CLUSTERS} clusters (--clusters sets another number)")
    preset = cfg._table().get(cfg.name)
    size = cfg.size
    if preset is None or preset.size == size:
        side = (size, size) if isinstance(size, int) else size or (128, 128)
        size = common_size(scanned, math.prod(side), _patch(cfg))
    cfg = cfg.override(size=size, root=str(scanned.found.folder), **changes)
    data = PhotoSet(scanned, Transform("center", size, cfg.resample or "bilinear"))
    if n < count:
        say(f"training on {n} of them, evenly spaced (--set n_train=... for more)")
        data = data.subset(np.linspace(0, count - 1, n).round().astype(int))
    height, width = data.transform.size
    say(f"{name}, preset {cfg.name}: {n} pictures cut to {height}x{width}")
    return cfg, data


def _for_few(cfg: Recipe, n: int, name: str) -> dict[str, Any]:
    """What has to give way where a folder holds fewer pictures than a batch."""
    known = {field.name for field in fields(cfg)}
    if n < 2 and name != "kmeans":
        raise ValueError(
            f"{name} learns from what differs between pictures, and there is only one; "
            "use kmeans, or a model trained elsewhere"
        )
    changes: dict[str, Any] = {"batch_size": min(cfg.batch_size, n)}
    if "neighbours" in known:
        changes["neighbours"] = min(cfg.neighbours, n - 1)
    return changes


def _patch(cfg: Recipe) -> int:
    return max(8, getattr(cfg.load_backbone(), "patch", 8))


def common_size(scanned: Scan, pixels: int, patch: int) -> tuple[int, int]:
    """One size for all pictures of a folder: their usual aspect, whole patches.

    Args:
        scanned: the folder.
        pixels: about how many.
        patch: side of a patch.

    Returns:
        (H, W).
    """
    aspects = [height / width for height, width in scanned.sizes.values()]
    # Beyond 2:1 every picture of another aspect would lose nearly everything.
    aspect = float(np.clip(np.median(aspects), 0.5, 2))
    height = math.sqrt(pixels * aspect)
    return resize_to_patch((round(height), round(height / aspect)), patch)
