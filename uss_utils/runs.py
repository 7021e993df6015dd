"""Training and scoring a method from the command line, with everything kept on disk.

Under one folder: ``checkpoints/`` (a killed training continues), ``models/`` (finished
segmenters) and ``records/`` (their scores). Several processes
(:mod:`uss_utils.launch`) share the work; the first one writes.
"""

import re
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from tqdm.auto import tqdm

from uss_utils import ranks
from uss_utils.datasets import SegmentationDataset
from uss_utils.datasets.transforms import Transform, normalise
from uss_utils.evaluation import (
    EvalProtocol,
    evaluate,
    evaluate_together,
    write_record,
)
from uss_utils.history import History
from uss_utils.learning import Trained
from uss_utils.linear_classifier import (
    ClassifierRecipe,
    score_linear_classifier,
    train_linear_classifier,
)
from uss_utils.paths import atomic_file, runs_dir
from uss_utils.pictures import MAX_SIDE, list_pictures, read_picture, working_size
from uss_utils.recipe import Recipe
from uss_utils.segmenter import Segmenter


def train(
    method: ModuleType,
    cfg: Recipe,
    seeds: Iterable[int],
    folder: Path,
    *,
    device: str = "auto",
) -> list[dict[str, Any]]:
    """Train once per seed, save every model, score it, and write its record.

    A finished model is not trained again: its training's last checkpoint is loaded.

    Args:
        method: a method's module.
        cfg: the settings; each seed replaces theirs.
        seeds: one training each.
        folder: where everything goes.
        device: where to compute; "auto" picks.

    Returns:
        The records, in the order of the seeds, one for every model of a training.

    Raises:
        ValueError: a checkpoint in ``folder`` belongs to other settings.
        FileNotFoundError: the data set is not there.
    """
    val_set = cfg.open("val")
    records = []
    shown = ranks.is_main()
    for done in trainings(method, cfg, seeds, folder, device=device, progress=shown):
        for path in done.paths:
            print("model:", path)
        records += score(method, done.cfg, done.models, folder, val_set, progress=shown)
    return records


class Training(NamedTuple):
    """One finished training.

    Attributes:
        cfg: the settings with their seed.
        models: first the method's own, then those that come with it.
        paths: where they were saved.
    """

    cfg: Recipe
    models: list[Segmenter]
    paths: list[Path]


def trainings(
    method: ModuleType,
    cfg: Recipe,
    seeds: Iterable[int],
    folder: Path,
    *,
    device: str = "auto",
    progress: bool = False,
) -> Iterator[Training]:
    """Train once per seed and save every model; nothing is scored.

    Args:
        method: see :func:`train`, as are the others.
        cfg: the settings.
        seeds: one training each.
        folder: where checkpoints and models go.
        device: where to compute.
        progress: show bars.

    Yields:
        One training at a time.
    """
    learned = hasattr(method, "prepare")
    if learned:
        material = method.prepare(cfg, device=device, progress=progress)
    name = method.__name__.rpartition(".")[2]
    for seed in seeds:
        own = replace(cfg, seed=seed)
        if learned:
            place = folder / "checkpoints" / f"{name}-seed{seed}.safetensors"
            trained = method.train(own, material, checkpoint=place)
        else:
            begun = time.perf_counter()
            model = method.train(own, device=device, progress=progress)
            trained = Trained(model, History(seconds=time.perf_counter() - begun))
        models = [trained.segmenter, *trained.others.values()]
        yield Training(own, models, save([trained], folder))


def model_path(folder: Path, method: str, seed: int, word: str = "") -> Path:
    """Where the model of a method and seed is kept.

    Args:
        folder: of the run.
        method: the method's module.
        seed: of the training.
        word: tells apart the models that come with it.
    """
    ending = f"-{word}" if word else ""
    return folder / "models" / f"{method}-seed{seed}{ending}.safetensors"


def save(trained: Iterable[Trained | Segmenter], folder: Path) -> list[Path]:
    """Save trained models where later runs look for them.

    Args:
        trained: models, with or without the history of their training, which tells how
            long it took.
        folder: of the run; existing models of the same methods and seeds are replaced.

    Returns:
        The files.

    Raises:
        OSError: the folder is read-only or the disk is full.
    """
    paths = []
    for each in trained:
        models = [each]
        if isinstance(each, Trained):
            models = [each.segmenter, *each.others.values()]
            for model in models:
                model.meta["training_seconds"] = round(each.history.seconds, 2)
        for model in models:
            # What sets a variant apart: "running" of "primaps, running".
            name = model.meta.get("name", model.method).removeprefix(model.method)
            word = re.sub(r"\W+", "-", name).strip("-")
            place = model_path(folder, model.method, model.meta["seed"], word)
            paths.append(model.save(place) if ranks.is_main() else place)
    return paths


def keep(
    trained: Iterable[Trained | Segmenter],
    run: str,
    records: Iterable[dict[str, Any]],
) -> list[Path]:
    """Save a notebook's models and scores for the notebooks after it.

    Args:
        trained: as in :func:`save`.
        run: name of a folder under ``runs/``, the preset's.
        records: from :func:`~uss_utils.evaluation.evaluate`.
    """
    folder = runs_dir() / run
    for record in records:
        write_record(record, folder / "records")
    return save(trained, folder)


def score(
    method: ModuleType,
    cfg: Recipe,
    models: Sequence[Segmenter],
    folder: Path,
    val_set: SegmentationDataset,
    *,
    progress: bool = False,
) -> list[dict[str, Any]]:
    """Score the models of one training and write their records.

    Args:
        method: its module.
        cfg: its settings.
        models: they share a backbone.
        folder: records go below it.
        val_set: images to score.
        progress: show bars.
    """
    found = evaluate_together(
        models,
        val_set,
        limit_crf=cfg.limit_crf,
        progress=progress,
    )
    for record, segmenter in zip(found, models, strict=True):
        _write(record, method, cfg, segmenter, folder / "records", progress)
    return found


def _write(
    record: dict[str, Any],
    method: ModuleType,
    cfg: Recipe,
    segmenter: Segmenter,
    folder: Path,
    progress: bool = True,
) -> None:
    """Write a record, then score objects where the method does, and write it again.

    What goes wrong with the objects (too few of them, a memory that is not there) is
    said and costs nothing else. Of several processes the first one writes.
    """
    if not ranks.is_main():
        return
    write_record(record, folder)
    if not hasattr(method, "score_objects"):
        return
    try:
        found = method.score_objects(cfg, segmenter, progress=progress)
    except (ValueError, OSError, ImportError, RuntimeError) as error:
        print(f"objects not scored: {error}")
        return
    if found:
        record["segments"] = found
        write_record(record, folder)


def rescore(
    method: ModuleType,
    segmenter: Segmenter,
    folder: Path,
    *,
    protocol: EvalProtocol,
    limit_crf: int | None = None,
    classifier: ClassifierRecipe | None = None,
    **overrides: Any,
) -> dict[str, Any]:
    """Score a saved model on the evaluated split of the settings it was trained with.

    Args:
        method: its method's module.
        segmenter: the model.
        folder: where the record goes.
        protocol: the switches.
        limit_crf: most images with CRF.
        classifier: train this linear classifier on the codes as well, and score it: the
            section "classifier" of the record.
        overrides: settings replaced, ``root`` above all.

    Raises:
        ValueError: the model was trained with settings that no preset names.
    """
    cfg = _settings(method, segmenter, **overrides)
    record = evaluate(
        segmenter,
        cfg.open("val"),
        protocol=protocol,
        limit_crf=limit_crf,
        progress=ranks.is_main(),
    )
    _write(record, method, cfg, segmenter, folder)
    if classifier is not None:
        record["classifier"] = _classified(cfg, segmenter, classifier, protocol)
        if ranks.is_main():
            write_record(record, folder)
    return record


def _classified(
    cfg: Recipe, segmenter: Segmenter, recipe: ClassifierRecipe, protocol: EvalProtocol
) -> dict[str, Any]:
    """Scores of a linear classifier that learned on the labelled training images.

    Several processes do not share this work: each does it, all get the same.
    """
    probe, _ = train_linear_classifier(
        segmenter.code,
        cfg.override(train_split="train").open("train"),
        recipe,
        device=segmenter.device,
        progress=ranks.is_main(),
    )
    params = protocol.crf_params if protocol.crf else None
    found = score_linear_classifier(
        *(segmenter.code, probe, cfg.open("val")),
        crf_params=params,
        progress=ranks.is_main(),
    )
    return found | {"recipe": asdict(recipe), "crf": protocol.crf}


def _settings(method: ModuleType, segmenter: Segmenter, **overrides: Any) -> Recipe:
    """The settings that a model was trained with.

    Raises:
        ValueError: no preset names them.
    """
    if segmenter.preset not in method.PRESETS:
        raise ValueError(
            f"the model's preset {segmenter.preset!r} is none of this version: "
            + ", ".join(method.PRESETS)
        )
    stored = dict(segmenter.meta.get("overrides", {}))
    stored.pop("weights", None)  # only a file's name; the model has its backbone
    return method.Config.preset(segmenter.preset, **stored | overrides)


def save_hierarchies(
    method: ModuleType,
    segmenter: Segmenter,
    images: Path,
    folder: Path,
    max_side: int = MAX_SIDE,
) -> list[Path]:
    """Cut pictures into nested regions, and write maps, tree and an overview of each.

    A picture that cannot be read is named and left out.

    Args:
        method: the model's module, which has ``hierarchy_of``.
        segmenter: the model.
        images: one picture, or a folder of them.
        folder: gets a folder per picture, see
            :meth:`~uss_utils.hierarchy.Hierarchy.save`, with ``overview.png``: the
            picture, and coarse to fine every region in its mean colour.
        max_side: longer sides of pictures are shrunk to this for the network.

    Returns:
        The folders written.

    Raises:
        ValueError: a model without a hierarchy, or no picture could be read.
        FileNotFoundError: no such picture or folder, or no picture in it.
        OSError: ``folder`` cannot be written.
    """
    if not hasattr(method, "hierarchy_of"):
        raise ValueError(
            f"models of {segmenter.method} give one level; train hsg for a hierarchy"
        )
    cfg = _settings(method, segmenter)
    paths = list_pictures(images) if images.is_dir() else [images]
    stems = [path.stem for path in paths]
    written = []
    for path in tqdm(paths, unit="img"):
        try:
            pixels = read_picture(path)
        except (OSError, ValueError) as error:
            if len(paths) == 1:
                raise
            print(f"left out: {error}")
            continue
        size = pixels.shape[:2]
        work = working_size(size, segmenter.backbone.patch, max_side)
        image = normalise(np.array(Transform("resize", work).apply_image(pixels)))
        found = method.hierarchy_of(cfg, segmenter, image).hierarchy.resized(size)
        name = path.stem if stems.count(path.stem) == 1 else path.name
        found.save(folder / name)
        panels = [pixels, *reversed(found.mean_colours(pixels))]
        with atomic_file(folder / name / "overview.png") as place:
            Image.fromarray(np.concatenate(panels, 1)).save(place, "PNG")
        written.append(folder / name)
    if not written:
        raise ValueError(f"none of the {len(paths)} pictures in {images} can be read")
    return written
