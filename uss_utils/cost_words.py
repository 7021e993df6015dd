"""An estimate in words."""

from collections.abc import Iterable
from math import prod
from typing import TYPE_CHECKING

from uss_utils import sources
from uss_utils.cost_facts import FP16, Facts
from uss_utils.cost_passes import reached

if TYPE_CHECKING:
    from uss_utils.cost import Cost

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


def lines(cost: "Cost") -> Iterable[str]:
    """The estimate line by line, with what was measured and what was not.

    Args:
        cost: from :func:`uss_utils.cost.estimate`.
    """
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
        large = sources.choose(known.shape) == "images"
        why = "more than half of what is free" if large else "none was asked for"
        yield f"a cache would take {disk} of disk; {why}"


def _files(cost: "Cost") -> Iterable[str]:
    if cost.facts.reads_masks:
        yield "masks are read, not made: released ones"
    for made in cost.files:
        size = "size not measured" if made.size is None else size_words(made.size)
        number = f"{made.number} " if made.number > 1 else ""
        yield f"{number}{made.what}: {size}"


def _steps(cost: "Cost") -> Iterable[str]:
    known = cost.facts
    if not known.steps:
        yield "none: nothing is learned but clusters and a linear probe"
        return
    share = f", {known.batch_size // cost.processes} of them in each process"
    yield (
        f"{known.steps} of {known.batch_size} images{share * (cost.processes > 1)}: "
        f"{known.epochs:.1f} epochs"
    )


def _memory_words(cost: "Cost") -> Iterable[str]:
    if cost.memory is None:
        yield "not measured"
        return
    last, known = reached(cost.measured), cost.facts
    how = "measured"
    scaled = any(part.batch < last.batch for part in cost.measured.passes)
    if last.batch < known.batch_size:
        how += f" with {last.batch} images per step, "
        how += f"scaled to {known.batch_size}" if scaled else "more take more"
    if known.place == "memory" and last.n < known.train.number:
        how += ", and all features"
    yield f"{size_words(cost.memory)} at the peak of training ({how})"


def _times(cost: "Cost") -> Iterable[str]:
    wanted = PARTS if cost.facts.steps else {"finish": "training", "score": "scoring"}
    for name, words in wanted.items():
        spent = cost.seconds.get(name)
        text = "not measured" if spent is None else time_words(spent)
        if name == "train" and cost.step:
            text += f", {cost.step:.3g} s per step"
        yield f"{words:14}{text}"
    if cost.hours is not None:
        yield f"{'together':14}{time_words(3600 * cost.hours)}, for one seed"


def _measured(cost: "Cost") -> Iterable[str]:
    found, known = cost.measured, cost.facts
    last = reached(found)
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
