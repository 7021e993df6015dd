"""What a training would take, before it is started: images, disk, memory, steps, hours.

Sizes follow from the settings (:mod:`uss_utils.cost_facts`); times from a short run of
the method's own training (:mod:`uss_utils.cost_measuring`), a few images and steps of
it, which is then extrapolated: a fixed part and one per image, or per step.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import prod
from types import ModuleType

from uss_utils.cost_facts import FP16, FP32, Facts, Made, facts
from uss_utils.cost_measuring import Measured, Pass, measure
from uss_utils.recipe import Recipe

SECONDS = 40.0  # that measuring takes at most, about
# Methods whose processes train a network on their own images each; those of the others
# share the frozen network alone.
SHARED = ("maskcontrast", "hsg")
PLACES = {
    "memory": "kept in memory",
    "disk": "kept on disk",
    "images": "not kept: computed again in every step",
}
PARTS = {
    "prepare": "preparation",
    "train": "training",
    "finish": "probes, names",
    "score": "scoring",
}

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
        return "\n".join(_lines(self))


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
    last = _last(found)
    if not last.memory:
        return None
    rows = [(p.batch, p.memory) for p in found.passes if 0 < p.batch < last.batch]
    slope = (last.memory - rows[-1][1]) / (last.batch - rows[-1][0]) if rows else 0.0
    whole = last.memory + max(0.0, slope) * (known.batch_size - last.batch)
    if known.place == "memory":
        whole += FP32 * prod(known.shape[1:]) * (known.train.number - last.n)
    return whole + found.missing


def _last(found: Measured) -> Pass:
    """The largest pass that came as far as its steps; the first one if none did."""
    return [p for p in found.passes if p.memory or p is found.passes[0]][-1]


def _sized(made: Made, last: Pass) -> Made:
    if made.size is None and made.kept in last.files:
        return made._replace(size=round(made.number * last.files[made.kept]))
    return made


# ------------------------------------------------------------------------------- words


def _lines(cost: Cost) -> Iterable[str]:
    known = cost.facts
    yield f"{known.method}, preset {known.preset}. Nothing was started."
    yield ""
    yield from _under("images", _images(known))
    yield from _under("features", _features(known))
    yield from _under("files", _files(cost))
    yield from _under("steps", _steps(cost))
    if cost.measured is not None:
        yield from _under("memory", _memory_words(cost))
        yield from _under("time", _times(cost))
        yield from _under("measured", _measured(cost))
    else:
        yield from _under("time", ["not measured"])


def _under(word: str, lines: Iterable[str]) -> Iterable[str]:
    for number, text in enumerate(lines):
        yield f"{word if number == 0 else '':10}{text}"


def _images(known: Facts) -> Iterable[str]:
    crops = ", five crops of each stored one" if known.crops else ""
    height, width = known.size
    if known.cut:
        yield f"{known.cut.number} of {known.cut.dataset} to train on, as stored"
        yield f"{known.train.number} of {known.train.dataset} to name clusters by"
    else:
        yield f"{known.train.number} to train on{crops}, {height} x {width} pixels"
    yield f"{known.val.number} to score"
    parts = [known.train, known.val, *([known.cut] if known.cut else [])]
    absent = {part.dataset for part in parts if part.found is None}
    if absent:
        yield (
            f"{', '.join(sorted(absent))}: not here, numbers as published; get it with "
            f"data download, see data check"
        )


def _features(known: Facts) -> Iterable[str]:
    shape = " x ".join(map(str, known.shape))
    if known.shape[1] == 3 and known.place == "images":
        yield "none: the network sees the images"
        return
    words = PLACES[known.place]
    kept = f", {size_words(known.cache_bytes)}" if known.cache_bytes else ""
    yield f"{shape}, {words}{kept}"
    if known.place == "images":
        disk = size_words(FP16 * prod(known.shape))
        yield f"a cache would take {disk} of disk, more than half of what is free"


def _files(cost: Cost) -> Iterable[str]:
    for made in cost.files:
        size = "size not measured" if made.size is None else size_words(made.size)
        number = f"{made.number} " if made.number > 1 else ""
        yield f"{number}{made.what}: {size}"


def _steps(cost: Cost) -> Iterable[str]:
    known = cost.facts
    if not known.steps:
        yield "none: nothing is learned but clusters and a linear probe"
        return
    share = f", {known.batch_size // cost.processes} of them in each process"
    yield (
        f"{known.steps} of {known.batch_size} images{share * (cost.processes > 1)}: "
        f"{known.epochs:.1f} epochs"
    )


def _memory_words(cost: Cost) -> Iterable[str]:
    if cost.memory is None:
        yield "not measured"
        return
    last, known = _last(cost.measured), cost.facts
    how = "measured"
    if last.batch < known.batch_size:
        how += f" with {last.batch} images per step, scaled to {known.batch_size}"
    if known.place == "memory" and last.n < known.train.number:
        how += ", and all features"
    yield f"{size_words(cost.memory)} at the peak of training ({how})"


def _times(cost: Cost) -> Iterable[str]:
    wanted = PARTS if cost.facts.steps else {"finish": "training", "score": "scoring"}
    for name, words in wanted.items():
        spent = cost.seconds.get(name)
        text = "not measured" if spent is None else time_words(spent)
        if name == "train" and cost.step:
            text += f", {cost.step:.3g} s per step"
        yield f"{words:14}{text}"
    if cost.hours is not None:
        yield f"{'together':14}{time_words(3600 * cost.hours)}, for one seed"


def _measured(cost: Cost) -> Iterable[str]:
    found, known = cost.measured, cost.facts
    last = _last(found)
    done = []
    if "step" in last.seconds:
        done.append(f"{last.steps} steps of {last.batch} images")
    if "prepare" in last.seconds:
        done.append(f"{last.n} images prepared")
    if "finish" in last.seconds:
        done.append(f"{last.n} named")
    if "score" in last.seconds:
        done.append(f"{last.n_val} scored")
    yield f"in {found.seconds:.0f} s: {', '.join(done)}; the rest follows from these"
    if not known.present:
        yield "on generated pictures of the data set's size"
    if found.random:
        yield f"with random weights of {', '.join(found.random)}: as fast"
    if found.cut:
        yield (
            f"with the last two blocks of the network; all of it takes "
            f"{found.per_image:.2g} s per image, which was added"
        )
    if known.steps and last.batch < known.batch_size:
        yield f"steps of {known.batch_size} images were too slow to be measured"
    if len(found.passes) == 1:
        yield "a single short run, its first seconds included: rather too much"
    if cost.processes > 1:
        yield (
            f"{cost.processes} processes are computed: what they share takes an n-th "
            "part, their exchange nothing"
        )
    if found.complaint:
        yield f"incomplete: {found.complaint}"


def size_words(n_bytes: float) -> str:
    """Bytes in words a person reads: 3.8 GB, 12 MB."""
    for unit, factor in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if n_bytes >= factor:
            return f"{n_bytes / factor:.{1 if n_bytes < 10 * factor else 0}f} {unit}"
    return f"{n_bytes / 1e3:.0f} kB"


def time_words(seconds: float) -> str:
    """Seconds in words a person reads: 40 s, 12 min, 3.5 h, 8 days."""
    for unit, factor in (("days", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * factor:
            value = seconds / factor
            return f"{value:.{1 if value < 10 else 0}f} {unit}"
    return f"{seconds:.{1 if seconds < 10 else 0}f} s"
