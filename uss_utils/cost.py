"""What a training would take, before it is started: images, disk, memory, steps, hours.

Sizes follow from the settings (:mod:`uss_utils.cost_facts`); times from a short run of
the method's own training (:mod:`uss_utils.cost_measuring`), a few images and steps of
it, which is then extrapolated: a fixed part and one per image, or per step.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from types import ModuleType

from uss_utils.cost_facts import FP32, Facts, Made, facts
from uss_utils.cost_measuring import measure
from uss_utils.cost_passes import Measured, Pass, reached
from uss_utils.cost_words import PARTS, lines
from uss_utils.recipe import Recipe

SECONDS = 40.0  # that measuring takes at most, about
# Methods whose processes train a network on their own images each; those of the others
# share the frozen network alone.
SHARED = ("maskcontrast", "hsg")

Point = tuple[float, float]


@dataclass(frozen=True)
class Cost:
    """What a run would take.

    Attributes:
        facts: what the settings say.
        measured: the short run; None: only the settings were looked at.
        processes: that train together, each with a device of its own.
        seconds: of the parts named in :data:`PARTS` that were measured.
        step: seconds of one optimiser step; None without one.
        memory: peak of one process in bytes, on its device if that is a GPU; None
            without a short run.
        files: what is written, with sizes where they are known.
    """

    facts: Facts
    measured: Measured | None
    processes: int
    seconds: dict[str, float]
    step: float | None
    memory: float | None
    files: tuple[Made, ...]

    @property
    def hours(self) -> float | None:
        """All parts together; None where one was not measured."""
        wanted = set(PARTS) if self.facts.steps else {"finish", "score"}
        if wanted - self.seconds.keys():
            return None
        return sum(self.seconds.values()) / 3600

    @property
    def disk(self) -> int:
        """Bytes of all files whose size is known."""
        return sum(made.size or 0 for made in self.files)

    def __str__(self) -> str:
        """The estimate in lines, with what was measured and what was not."""
        return "\n".join(lines(self))


def estimate(
    method: ModuleType,
    cfg: Recipe,
    *,
    device: str = "auto",
    processes: int = 1,
    seconds: float = SECONDS,
) -> Cost:
    """Say what a training would take; nothing is started and nothing is kept.

    Args:
        method: the method's module.
        cfg: its settings.
        device: where the short run computes; "auto" picks.
        processes: that would train together; computed, not measured: what they share
            takes an n-th part, and their exchange nothing.
        seconds: about how long the short run may take; 0: no short run.

    Raises:
        ValueError: settings that do not fit.
        FileNotFoundError: the data set is not there, and its size is not known.
        RuntimeError: nothing could be measured in this time.
    """
    if processes < 1 or seconds < 0:
        raise ValueError(
            f"processes={processes} has to be at least 1, seconds={seconds} at least 0"
        )
    known = facts(method, cfg)
    if not seconds:
        return Cost(known, None, processes, {}, None, None, known.files)
    found = measure(method, cfg, device=device, seconds=seconds)
    parts, step = _seconds(cfg, known, found, processes)
    written = [p for p in found.passes if p.files] or found.passes
    files = tuple(_sized(made, written[-1]) for made in known.files)
    return Cost(known, found, processes, parts, step, _memory(known, found), files)


def line(points: Sequence[Point], x: float) -> float:
    """Value at x of a line through the last two points, or through one and the origin.

    Args:
        points: (x, value), the later ones the surer. A line that falls, or begins below
            zero, is not believed: there the last point is scaled.
        x: at least 0.
    """
    last_x, last = points[-1]
    if x <= last_x:  # as many as were measured, or fewer
        return last * (x / last_x) if x < last_x else last
    for other_x, other in reversed(points[:-1]):
        if other_x != last_x:
            slope = (last - other) / (last_x - other_x)
            if slope > 0 and last - slope * last_x >= 0:
                return last + slope * (x - last_x)
            break
    return last * x / last_x


def parabola(points: Sequence[Point], x: float) -> float:
    """Value at x where it grows with x, and with its square if points say so.

    Args:
        points: (x, value); one that is four times as wide as another tells of the
            square.
        x: above 0.
    """
    last_x, last = points[-1]
    square = 0.0
    for other_x, other in points[:-1]:
        if 4 * other_x <= last_x:
            square = max(0.0, (last / last_x - other / other_x) / (last_x - other_x))
    square = min(square, last / last_x**2)
    return x * (last / last_x + square * (x - last_x))


def _seconds(
    cfg: Recipe, known: Facts, found: Measured, processes: int
) -> tuple[dict[str, float], float | None]:
    """Seconds of every part, and of a step."""
    together = 1 - 1 / processes

    def passes(name: str) -> list[Pass]:
        every = [part for part in found.passes if name in part.seconds]
        return every[1:] or every  # the first one is cold

    def part(name: str, x: str, whole: int) -> float:
        every = passes(name)
        spent = line([(_count(known, p, x), p.seconds[name]) for p in every], whole)
        net = line([(_count(known, p, x), p.network[name]) for p in every], whole)
        return max(0.0, spent - together * net)

    def step(name: str) -> float:
        every = passes(name)
        spent = parabola([(p.batch, p.seconds[name]) for p in every], known.batch_size)
        if known.method in SHARED:
            return spent / processes
        last = every[-1]
        net = last.network[name] * known.batch_size / last.batch
        return max(0.0, spent - together * net)

    parts: dict[str, float] = {}
    one = None
    if passes("prepare"):
        parts["prepare"] = part("prepare", "items", known.items)
    if known.reads_masks:
        parts["prepare"] = 0.0  # the masks that stand-ins needed are read, not made
    if passes("step"):
        one = step("step")
        parts["train"] = one * known.steps
    if passes("start"):
        parts["train"] = parts.get("train", 0.0) + step("start") * cfg.start_steps
    if passes("finish"):
        parts["finish"] = part("finish", "train", known.train.number)
    if passes("score"):
        objects = known.train.number if known.method in SHARED else 0
        parts["score"] = part("score", "scored", known.val.number + objects)
    return parts, one


def _count(known: Facts, part: Pass, what: str) -> int:
    if what == "scored":
        return part.n_val + (part.n if known.method in SHARED else 0)
    return part.n


def _memory(known: Facts, found: Measured) -> float | None:
    """Peak at the full batch, and all features that are kept in memory."""
    last = reached(found)
    if not last.memory:
        return None
    rows = [(p.batch, p.memory) for p in found.passes if 0 < p.batch < last.batch]
    slope = (last.memory - rows[-1][1]) / (last.batch - rows[-1][0]) if rows else 0.0
    whole = last.memory + max(0.0, slope) * (known.batch_size - last.batch)
    if known.place == "memory":
        whole += FP32 * prod(known.shape[1:]) * (known.train.number - last.n)
    return whole + found.missing


def _sized(made: Made, last: Pass) -> Made:
    if made.size is None and made.kept in last.files:
        return made._replace(size=round(made.number * last.files[made.kept]))
    return made
