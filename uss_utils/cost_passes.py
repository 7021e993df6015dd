"""Short runs of a method's training, part by part, with stand-ins where needed."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import TypeVar

import torch

from uss_utils import backbones, runs
from uss_utils.cost_facts import Facts
from uss_utils.cost_stand_ins import KEPT_BLOCKS, Networks, stand_in
from uss_utils.environment import peak_memory_mb
from uss_utils.paths import cache_dir
from uss_utils.recipe import Recipe
from uss_utils.segmenter import Segmenter

T = TypeVar("T")


@dataclass
class Pass:
    """One short run.

    Attributes:
        n: training images.
        n_val: scored images.
        batch: images per step.
        steps: optimiser steps.
        seconds: "prepare", "start" and "step" (of one step each), "finish" (all of the
            training but the steps) and "score".
        network: how many of these seconds the frozen network takes.
        memory: largest memory of the process so far, in bytes.
        files: bytes of one checkpoint, one model, and of one image's map.
    """

    n: int
    n_val: int
    batch: int
    steps: int
    seconds: dict[str, float] = field(default_factory=dict)
    network: dict[str, float] = field(default_factory=dict)
    memory: float = 0.0
    files: dict[str, float] = field(default_factory=dict)


@dataclass
class Measured:
    """What the process has found so far.

    Attributes:
        passes: the short runs; the first one is cold.
        per_image: seconds that one training image takes in the frozen network.
        cut: the network was cut to its last blocks, the rest computed.
        missing: bytes of the weights that were cut off.
        random: names of the networks that had random weights.
        complaint: why there is no more; "" if nothing went wrong.
        seconds: that measuring took.
    """

    passes: list[Pass] = field(default_factory=list)
    per_image: float = 0.0
    cut: bool = False
    missing: int = 0
    random: list[str] = field(default_factory=list)
    complaint: str = ""
    seconds: float = 0.0


def reached(found: Measured) -> Pass:
    """The largest pass that came as far as its steps; the first one if none did."""
    return [p for p in found.passes if p.memory or p is found.passes[0]][-1]


class Runner:
    """Runs passes of one method, and adds what a cut network would have taken.

    Args:
        method: the method's module.
        cfg: its settings.
        known: what these say.
        place: where to compute.
        found: gets the passes; says whether the network is cut.
        folder: for everything that is written.
        send: called with ``found`` after every part.
    """

    def __init__(
        self,
        method: ModuleType,
        cfg: Recipe,
        known: Facts,
        place: torch.device,
        found: Measured,
        folder: Path,
        send: Callable[[Measured], None],
    ):
        self.method, self.cfg, self.known = method, cfg, known
        self.place, self.found, self.folder = place, found, folder
        self.send = send
        self.networks = Networks(cfg, found.cut)
        self.network = backbones.untrained(cfg.backbone, device="meta")

    def run(self, part: Pass) -> None:
        """One pass, sent on after each of its parts."""
        self.found.passes.append(part)
        folder = self.folder / f"run{len(self.found.passes)}"
        cfg = stand_in(self.cfg, self.known, self.networks, part.n, part.n_val)
        changes = {"batch_size": part.batch, "steps": part.steps}
        if not self.known.steps:
            changes = {}
        if hasattr(cfg, "start_steps"):
            changes |= {"start_steps": part.steps, "pca_images": part.batch}
        cfg = cfg.override(**changes)
        checkpoint = folder / "checkpoints" / "training.safetensors"
        if hasattr(self.method, "prepare"):
            models = self._learned(cfg, part, checkpoint)
        else:
            done = self._stage(
                part, "finish", lambda: self.method.train(cfg, device=str(self.place))
            )
            models = [done]
        self._stage(
            part,
            "score",
            lambda: runs.score(self.method, cfg, models, folder, cfg.open("val")),
        )
        part.files = self._sizes(checkpoint, runs.save(models[:1], folder)[0])
        self.send(self.found)

    def _learned(self, cfg: Recipe, part: Pass, checkpoint: Path) -> list[Segmenter]:
        """All of a training; where it begins and ends its steps is watched."""
        method = self.method
        material = self._stage(
            part, "prepare", lambda: method.prepare(cfg, device=str(self.place))
        )
        starting = 0.0
        if hasattr(method, "start"):
            begun = self._network_seconds()
            _, history = method.start(cfg, material)
            part.seconds["start"] = history.seconds / part.steps
            part.network["start"] = (self._network_seconds() - begun) / part.steps
            starting = history.seconds
            self._done(part, "start")
        moments: list[tuple[float, float]] = []

        def watch(steps: int, _: Segmenter) -> None:
            moments.append((time.perf_counter(), self._network_seconds()))
            if steps:  # told at once: what comes behind the steps may take long
                part.memory = self._memory()
                self._stepped(part, *moments)

        begun, through = time.perf_counter(), self._network_seconds()
        trained = method.train(
            cfg,
            material,
            checkpoint=checkpoint,
            watch=watch,
            watch_at=(0, part.steps),
        )
        whole = time.perf_counter() - begun - starting
        in_network = self._network_seconds() - through
        stepping = moments[1][0] - moments[0][0]
        part.seconds["finish"] = max(0.0, whole - stepping)
        part.network["finish"] = in_network - (moments[1][1] - moments[0][1])
        part.network["finish"] -= part.network.get("start", 0.0) * part.steps
        self._done(part, "finish")
        return [trained.segmenter, *trained.others.values()]

    def _stepped(
        self, part: Pass, before: tuple[float, float], after: tuple[float, float]
    ) -> None:
        """Note what a step takes; each moment is a time and the network's seconds."""
        part.seconds["step"] = (after[0] - before[0]) / part.steps
        part.network["step"] = (after[1] - before[1]) / part.steps
        self._done(part, "step")

    def _stage(self, part: Pass, name: str, work: Callable[[], T]) -> T:
        through, begun = self._network_seconds(), time.perf_counter()
        result = work()
        part.seconds[name] = time.perf_counter() - begun
        part.network[name] = self._network_seconds() - through
        self._done(part, name)
        return result

    def _network_seconds(self) -> float:
        """Seconds in the whole frozen network of all images that went through so far.

        A block's work grows with the tokens, that of its attention with their square.
        """
        name = self.cfg.backbone
        if not self.found.per_image:
            return 0.0
        return self.found.per_image * sum(
            images * self._work(height, width) / self._work(*self.known.size)
            for (seen, height, width), images in self.networks.seen.items()
            if seen == name
        )

    def _work(self, height: int, width: int) -> float:
        tokens = height * width / self.network.patch**2
        return tokens * (6 * self.network.dim + tokens)

    def _done(self, part: Pass, *names: str) -> None:
        """Add what the blocks would have taken that a network was cut by; send all."""
        gone = 1 - KEPT_BLOCKS / self.network.depth if self.found.cut else 0.0
        for name in set(names) & part.seconds.keys():
            part.seconds[name] += gone * part.network[name]
        self.found.random = sorted(self.networks.random)
        self.send(self.found)

    def _memory(self) -> float:
        if self.place.type == "cuda":
            return float(torch.cuda.max_memory_allocated(self.place))
        return 1e6 * peak_memory_mb()

    def _sizes(self, checkpoint: Path, model: Path) -> dict[str, float]:
        """Bytes of one file of each kind."""
        maps = [path.stat().st_size for path in cache_dir().rglob("0*.png")]
        found = {"models": float(model.stat().st_size)}
        if maps:
            found["maps"] = sum(maps) / len(maps)
        if checkpoint.is_file():
            found["checkpoints"] = float(checkpoint.stat().st_size)
        return found
