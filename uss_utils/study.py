"""All methods under one preset with several seeds: what is there, and what is missing.

What a folder lacks is trained and scored by the very code of the command line, one
training at a time, so that a run that was stopped goes on where it was. Tables of the
records are made in :mod:`uss_utils.comparison`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from uss_utils import crf, runs
from uss_utils.evaluation import evaluate_together
from uss_utils.json_files import read_object
from uss_utils.recipe import Recipe
from uss_utils.records import jsonable, read_records, write_record
from uss_utils.segmenter import Segmenter

Record = dict[str, Any]

# Names under which a method's own record may stand, where they are not the method's.
ALIASES = {"kmeans": ("pretrained",)}
CRF_IMAGES = 24  # evenly spaced; the CRF takes longer than everything else
# Settings that decide which images are scored, and how large they are.
_IMAGES = ("dataset", "size", "eval_size", "resample", "eval_resample", "n_val")


class Gap(NamedTuple):
    """What one method lacks.

    Attributes:
        method: its module's name.
        train: seeds to train: their model, or their record too, is not there.
        score: seeds without a record.
        sharpen: seeds whose record tells nothing of the CRF, or not how large the model
            is.
    """

    method: str
    train: tuple[int, ...]
    score: tuple[int, ...]
    sharpen: tuple[int, ...]

    def __str__(self) -> str:
        words = (
            ("train", self.train),
            ("score", self.score),
            ("with CRF", self.sharpen),
        )
        told = [f"{word} seed {', '.join(map(str, s))}" for word, s in words if s]
        return f"{self.method}: {'; '.join(told)}"


@dataclass(frozen=True)
class Study:
    """Every method at one preset, with several seeds.

    Attributes:
        folder: of the run: ``records``, ``models`` and ``checkpoints`` lie in it.
        modules: name of a method -> its module, in the order of tables.
        preset: of every method.
        seeds: of the trainings.
        overrides: settings replaced in all methods, None leaves the preset's.
        crf_images: on how many images the CRF is scored.
    """

    folder: Path
    modules: Mapping[str, ModuleType]
    preset: str
    seeds: Sequence[int]
    overrides: Mapping[str, Any] = field(default_factory=dict)
    crf_images: int = CRF_IMAGES

    def settings(self, method: str) -> Recipe:
        """A method's settings.

        Raises:
            ValueError: the method has no such preset, or no such setting.
        """
        return self.modules[method].Config.preset(self.preset, **self.overrides)

    def records(self) -> list[Record]:
        """The methods' own records of the seeds, as far as they are there.

        Variants, baselines and other protocols are left out; every record bears the
        name of its method.
        """
        return [
            record | {"name": method} for (method, _), record in self._stored().items()
        ]

    def _stored(self) -> dict[tuple[str, int], Record]:
        """Method and seed -> its record under the name that it has on disk."""
        folder = self.folder / "records"
        every = read_records(folder) if folder.is_dir() else []
        found = {}
        for method in self.modules:
            cfg = self.settings(method)
            mine = [record for record in every if _belongs(record, method, cfg)]
            for name in (*ALIASES.get(method, ()), method):  # the own name wins
                found |= {(method, r["seed"]): r for r in mine if r["name"] == name}
        keys = [(method, seed) for method in self.modules for seed in self.seeds]
        return {key: found[key] for key in keys if key in found}

    def missing(self) -> list[Gap]:
        """What has to run before the comparison is complete, method by method.

        A model is wanted for the first seed, which is shown in pictures, and wherever a
        record lacks something that only the model can tell. Methods that lack
        nothing are left out.
        """
        records, gaps = self._stored(), []
        for method in self.modules:
            known = {seed: records.get((method, seed)) for seed in self.seeds}
            score = [seed for seed in self.seeds if known[seed] is None]
            sharpen = [s for s in self.seeds if known[s] is None or _blunt(known[s])]
            wanted = dict.fromkeys([*self.seeds[:1], *score, *sharpen])
            train = [s for s in wanted if self._kept(method, s, known[s]) is None]
            gap = Gap(method, *map(tuple, (train, score, sharpen)))
            if any(gap[1:]):
                gaps.append(gap)
        return gaps

    def _kept(self, method: str, seed: int, record: Record | None) -> Path | None:
        """The file of a model, if it is of these settings and of this record."""
        path = runs.model_path(self.folder, method, seed)
        try:
            told = read_object(path.with_suffix(".json"))
            meta = dict(told["meta"])
        except (OSError, ValueError, KeyError, TypeError):
            return None
        cfg = self.settings(method)
        same = (told.get("preset"), meta.get("seed")) == (cfg.name, seed)
        same &= meta.get("overrides") == jsonable(cfg.overrides())
        named = ((record or {}).get("cluster") or {}).get("train")
        if same and isinstance(named, dict):
            # The names of the clusters tell a model of another training apart.
            same = told.get("cluster_to_class") == named.get("map")
        return path if same and path.is_file() else None

    def complete(self, device: str = "auto") -> list[Record]:
        """Train and score what is missing, and say what.

        Stopped, it goes on where it was: finished trainings, models and records stay.

        Args:
            device: where to compute; "auto" picks.

        Returns:
            The records, complete.

        Raises:
            ValueError: a checkpoint in the folder belongs to other settings.
            FileNotFoundError: the data set is not there.
        """
        gaps = self.missing()
        for gap in gaps:
            print(gap, flush=True)
            self._fill(gap, device)
        self._sharpen(gaps, device)
        print("all records are there" if not gaps else "done")
        return self.records()

    def _fill(self, gap: Gap, device: str) -> None:
        method, cfg = self.modules[gap.method], self.settings(gap.method)
        val_set = cfg.open("val")
        if gap.train:
            for done in runs.trainings(
                method, cfg, gap.train, self.folder, device=device
            ):
                seed = done.cfg.seed
                record = self._stored().get((gap.method, seed))
                # On another machine a training ends elsewhere than its old record.
                if record is None or self._kept(gap.method, seed, record) is None:
                    runs.score(method, *done[:2], self.folder, val_set)
        trained = set(gap.train)
        for seed in (s for s in gap.score if s not in trained):
            model = self.model(gap.method, seed, device)
            own = replace(cfg, seed=seed)
            runs.score(method, own, [model], self.folder, val_set)

    def _sharpen(self, gaps: Sequence[Gap], device: str) -> None:
        """Add to records what evaluating a few images with the CRF tells."""
        groups: dict[tuple, list[Segmenter]] = {}
        for gap in gaps:
            for seed in dict.fromkeys([*gap.sharpen, *gap.train]):
                model = self.model(gap.method, seed, device)
                network, cfg = model.backbone, self.settings(gap.method)
                key = (network.fingerprint, network.view, model.protocol)
                key += tuple(getattr(cfg, name) for name in _IMAGES)
                groups.setdefault(key, []).append(model)
        for models in groups.values():
            for model in models:
                model.backbone = models[0].backbone  # one pass for all
            val_set = self.settings(models[0].method).open("val")
            n = min(self.crf_images, len(val_set))
            spaced = torch.linspace(0, len(val_set) - 1, n).round().long()
            protocol = replace(models[0].protocol, crf=True)
            some = val_set.subset(spaced.tolist())
            found = evaluate_together(models, some, protocol=protocol)
            for model, extra in zip(models, found, strict=True):
                self._amend(model, extra)

    def _amend(self, model: Segmenter, extra: Record) -> None:
        """Write into a model's record what another evaluation of it found."""
        record = self._stored()[model.method, model.meta["seed"]]
        record["parameters"] = extra["parameters"]
        seconds = extra["run"].get("training_seconds")
        if seconds is not None:
            record["run"]["training_seconds"] = seconds
        if "crf" in extra:
            record["crf"] = extra["crf"]
        write_record(record, self.folder / "records")

    def model(
        self, method: str, seed: int | None = None, device: str = "auto"
    ) -> Segmenter:
        """A method's trained model.

        Args:
            method: its name.
            seed: of its training; None: the first.
            device: where to put it; "auto" picks.

        Raises:
            FileNotFoundError: it is not there; :meth:`complete` makes it.
        """
        seed = self.seeds[0] if seed is None else seed
        path = runs.model_path(self.folder, method, seed)
        return Segmenter.load(path, device, weights=self.overrides.get("weights"))

    def predictions(self, images: Tensor) -> dict[str, Tensor]:
        """What the first seed's model of every method says of some images.

        Args:
            images: normalised, shape (N, 3, H, W).

        Returns:
            Name of a method -> class per pixel, -1 = none, int64 (N, H, W).

        Raises:
            FileNotFoundError: a model is not there; :meth:`complete` makes it.
        """
        found = {}
        for method in self.modules:
            model = self.model(method)
            parts = [
                model.predict_of(
                    model.code(part.to(model.device), model.protocol.flip),
                    tuple(part.shape[-2:]),
                ).cpu()
                for part in images.split(16)
            ]
            found[method] = model.cluster_to_class[torch.cat(parts)]
        return found


def _belongs(record: Record, method: str, cfg: Recipe) -> bool:
    """Whether a record is of these settings, under the method's own protocol."""
    return (
        record["method"] == method
        and record["preset"] == cfg.name
        and record["split"] == "val"
        and record["overrides"] == jsonable(cfg.overrides())
        and record["protocol"]["short"] == cfg.protocol().short()
    )


def _blunt(record: Record) -> bool:
    """Whether a record lacks what its model could tell."""
    sharp = "crf" in record or "cluster" not in record or not crf.available()
    return not sharp or "parameters" not in record
