"""How to train what the papers report: commands, batch, disk and the score to expect.

One recipe per reported result that a preset aims at. Its numbers are those of
:mod:`uss_utils.published`; where no number could be read, the recipe says so, and hours
stand there only where the authors told them. What a run takes on a machine of one's own
is what ``estimate`` measures.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any

from uss_utils import methods, published
from uss_utils.boards import markdown_table
from uss_utils.cost_facts import CROP_BYTES, FP16, KNOWN, facts
from uss_utils.cost_words import size_words
from uss_utils.datasets import DATASETS
from uss_utils.presets import unknown
from uss_utils.published import Published
from uss_utils.recipe import LearnedRecipe

FILE = Path(__file__).with_name("paper_recipes.json")
PROGRAM = "python -m uss_utils"
DOWNLOADED = ("camvid", "coco", "cocostuff27", "voc")  # by `data download`
UNKNOWN_HOURS = "not measured"
LINEAR_EPOCHS = 60  # of MaskContrast's linear classifier on VOC


@dataclass(frozen=True)
class PaperRecipe:
    """One training of a paper.

    Attributes:
        method: the method's module.
        preset: its settings.
        benchmark: what is scored.
        backbone: the network, as the paper calls it.
        authors: batch and hardware of the authors, and where that stands.
        processes: GPUs that the commands for several share the batch by.
        settings: further ones, NAME=VALUE.
        data: data sets that are needed beside the preset's own.
        by_hand: what no command fetches.
        first: name of the recipe whose model this one begins with; "": none.
        hours: GPU hours that the authors tell; None: nobody does.
        hours_source: where that stands.
        expected: the reported result; None: no number could be read.
        no_score: why there is none; "" where there is one.
    """

    method: str
    preset: str
    benchmark: str
    backbone: str
    authors: str
    processes: int
    settings: tuple[str, ...] = ()
    data: tuple[str, ...] = ()
    by_hand: str = ""
    first: str = ""
    hours: float | None = None
    hours_source: str = ""
    expected: Published | None = None
    no_score: str = ""

    @property
    def name(self) -> str:
        """Method and preset, and the method whose model it stands on."""
        on = self.first.split()[0] if self.first else self.method
        return f"{self.method} {self.preset}" + f" on {on}" * (on != self.method)

    @property
    def source(self) -> str:
        """Where the score was read, or why there is none."""
        return self.expected.source if self.expected else self.no_score

    @cached_property
    def config(self) -> LearnedRecipe:
        """The preset's settings; files that have to be made first are left out."""
        return methods.load(self.method).Config.preset(self.preset)

    @property
    def batch(self) -> str:
        """How processes, and parts of a batch, make up the authors' batch."""
        whole = self.config.batch_size
        each = whole // self.processes
        return (
            f"{whole} = {self.processes} processes x {each}, or 1 process x {whole}, "
            f"or 1 process x {self.processes} parts x {each} (--accumulate "
            f"{self.processes}; images are then compared within a part)"
        )

    def data_commands(self) -> list[str]:
        """Fetching what can be fetched, looking for the rest, and preparing it."""
        lines = []
        for name in (self.config.dataset, *self.data):
            get = "download" if name in DOWNLOADED else "check"
            lines.append(f"{PROGRAM} data {get} {name}")
        if self.config.crops:
            lines.append(
                f"{PROGRAM} data prepare {self.config.dataset} --no-neighbours"
            )
        return lines

    def train_command(self) -> str:
        """Training on one device."""
        return f"{PROGRAM} {self._training()}"

    def launch_command(self, processes: int | None = None, machines: int = 1) -> str:
        """Training on several GPUs, on one machine or on each of several.

        Args:
            processes: GPUs in all; None: as many as the recipe has, per machine.
            machines: that each start this command, with its own number (RANK), and the
                address of the first one (ADDRESS).
        """
        processes = machines * self.processes if processes is None else processes
        words = ["accelerate launch"]
        if machines > 1:
            words += [
                f"--num_machines {machines} --machine_rank RANK",
                "--main_process_ip ADDRESS --main_process_port 29500",
            ]
        words += [f"--num_processes {processes} -m uss_utils", self._training()]
        return " ".join(words)

    def _training(self) -> str:
        words = ["train", self.method, "--preset", self.preset]
        for setting in self.settings:
            words += ["-s", setting]
        return " ".join(words)

    def evaluate_command(self) -> str:
        """Scoring as the paper does: clusters named by the evaluated images' labels."""
        model = f"runs/{self.preset}/models/{self.method}-seed0.safetensors"
        words = [PROGRAM, "evaluate", model, "--fit-map-on eval"]
        if self.method in ("stego", "hp", "ppap", "primaps"):
            words.append("--crf")
        if self.method == "maskcontrast":
            words.append(f"--classifier-epochs {LINEAR_EPOCHS}")
        return " ".join(words)

    def commands(self) -> list[str]:
        """All commands in their order, on one device; what comes first included."""
        before = [by_name(self.first).train_command()] if self.first else []
        return [
            *self.data_commands(),
            f"{PROGRAM} estimate {self.method} --preset {self.preset}",
            *before,
            self.train_command(),
            self.evaluate_command(),
        ]

    def disk(self) -> dict[str, float]:
        """Bytes by what takes them: "images", "crops", and "features" if all are kept.

        From published sizes, whether the sets are here or not; nothing is opened.
        """
        cfg = self.config
        sets = (cfg.dataset, *self.data)
        images = sum(1e9 * (KNOWN[name].gigabytes or 0) for name in sets)
        found = facts(methods.load(self.method), cfg, look=False)
        parts = {"images": images}
        if found.crops:
            pixels = prod(found.train.size) * found.train.number
            parts["crops"] = CROP_BYTES * pixels
        if cfg.backbone != "pixels":
            parts["features"] = FP16 * prod(found.shape)
        return parts


def recipes(method: str | None = None) -> list[PaperRecipe]:
    """All recipes, in the order of the chapters.

    Args:
        method: of this method only.

    Raises:
        ValueError: there is no such method, or none of its results has a recipe.
    """
    content = json.loads(FILE.read_text(encoding="utf-8"))
    found = [_recipe(dict(row), content["authors"]) for row in content["recipes"]]
    known = list(dict.fromkeys(row.method for row in found))
    if method is not None and method not in known:
        raise ValueError(
            f"no recipes of {method!r}; there are some of {', '.join(known)}"
        )
    return [row for row in found if method in (None, row.method)]


def by_name(name: str) -> PaperRecipe:
    """One recipe.

    Args:
        name: as :attr:`PaperRecipe.name` says.

    Raises:
        ValueError: none has this name; the message lists the known.
    """
    known = {row.name: row for row in recipes()}
    if name not in known:
        raise ValueError(unknown("recipe", name, known))
    return known[name]


def _recipe(row: dict[str, Any], authors: dict[str, str]) -> PaperRecipe:
    wanted, source = row.pop("published", ""), row.pop("published_source", "")
    row["authors"] = authors[row["authors"]]
    for name in ("settings", "data"):
        row[name] = tuple(row.get(name, ()))
    found = PaperRecipe(**row)
    if not wanted:
        why = found.no_score or published.not_found()[found.method]
        return replace(found, no_score=why)
    rows = [
        result
        for result in published.published(found.method, found.benchmark)
        if result.name == wanted
        and result.backbone == found.backbone
        and source in result.source
    ]
    return replace(found, expected=rows[0])


def table(rows: Iterable[PaperRecipe] | None = None, *, sources: bool = True) -> str:
    """Markdown: batch, steps, disk, hours and expected score of recipes.

    Args:
        rows: from :func:`recipes`; None: all.
        sources: with a column that says where the score was read, or why there is none.
    """
    header = ["recipe", "benchmark", "backbone", "batch", "authors' batch and machine"]
    header += ["steps", "disk", "GPU hours", "expected"]
    cells = [
        [
            row.name,
            row.benchmark,
            row.backbone,
            str(row.config.batch_size),
            row.authors,
            str(row.config.steps),
            disk_words(row.disk()),
            hours_words(row),
            score_words(row),
            *([row.source] if sources else []),
        ]
        for row in (recipes() if rows is None else rows)
    ]
    lines = markdown_table([*header, *(["source"] if sources else [])], cells)
    return "\n".join([LEGEND, "", *lines])


LEGEND = (
    "Expected: accuracy / mIoU in percent as reported, – where it was not. Disk: the "
    "stored images, five crops of each where training reads them, and the features if "
    "all are kept; computed. GPU hours: as the authors tell; the others were not "
    "measured."
)


def disk_words(parts: dict[str, float]) -> str:
    """Bytes by what takes them, in words."""
    return ", ".join(
        f"{name} {size_words(size) if size else 'of unknown size'}"
        for name, size in parts.items()
    )


def hours_words(row: PaperRecipe) -> str:
    """Hours that the authors tell, with their source."""
    if row.hours is None:
        return UNKNOWN_HOURS
    return f"{row.hours:g} ({row.hours_source})"


def score_words(row: PaperRecipe) -> str:
    """The expected scores by how they are reached."""
    if row.expected is None:
        return "–"
    words = []
    for column, pair in published.COLUMNS.items():
        values = [row.expected.scores.get(name) for name in pair]
        if any(value is not None for value in values):
            shown = ("–" if v is None else f"{v:.1f}" for v in values)
            words.append(f"{column} {' / '.join(shown)}")
    return "; ".join(words)


def text(row: PaperRecipe) -> str:
    """One recipe as it can be followed: commands in their order, and what to expect."""
    lines = [
        f"# {row.name}: {row.benchmark}, {row.backbone}",
        f"# authors: {row.authors}",
        f"# batch: {row.batch}; {row.config.steps} steps",
        f"# disk: {disk_words(row.disk())}",
        f"# GPU hours: {hours_words(row)}",
        f"# expected: {score_words(row)} ({row.source})",
    ]
    lines += [f"# by hand: {row.by_hand}"] if row.by_hand else []
    lines += [_licence(row), *row.commands()]
    lines.append(f"# on {row.processes} GPUs, instead of the training above:")
    lines.append(row.launch_command())
    lines.append("# on two machines, on each with its RANK 0 or 1:")
    lines.append(row.launch_command(machines=2))
    return "\n".join(lines)


def _licence(row: PaperRecipe) -> str:
    sets = (row.config.dataset, *row.data)
    return "# data: " + "; ".join(f"{n}, {DATASETS[n].licence}" for n in sets)
