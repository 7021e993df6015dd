"""What a benchmark is: a case, and how one is measured.

Every module ``bench_*.py`` names its own in a tuple ``CASES``.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from tests.benchmarks.timing import Peak, cpu_seconds

SECONDS = "s"


@dataclass(frozen=True)
class Released:
    """What the authors' code took, where a specification says so.

    Attributes:
        source: specification and section, and what differs, if anything.
        figure: in the unit of the case.
        memory: GB (10^9 bytes), counted as the case counts.
    """

    source: str
    figure: float | None = None
    memory: float | None = None


@dataclass(frozen=True)
class Case:
    """One row of the table.

    Attributes:
        name: what is done.
        size: on how much.
        make: prepares the work and returns it as a function without arguments, which
            is then timed on one thread; or measures by itself and returns the figure.
        arguments: of ``make``.
        unit: of the figure: "s" (the less the better), or anything else, as "images/s"
            or "x" (the more the better).
        items: pieces of work in one call; the figure is of one piece, or pieces per
            second.
        repeats: timed calls; 1: the first call is the only one.
        memory: "added" to what was there when the work began, or "in all".
        target: the figure that has to be reached.
        memory_target: most GB.
        released: the authors' code at the same size.
        slow: takes minutes; left out unless asked for.
    """

    name: str
    size: str
    make: Callable[..., Callable[[], Any] | float]
    arguments: tuple = ()
    unit: str = SECONDS
    items: int = 1
    repeats: int = 5
    memory: str = "added"
    target: float | None = None
    memory_target: float | None = None
    released: Released | None = None
    slow: bool = False


def measure(case: Case) -> dict[str, float | None]:
    """Figure and peak memory (GB) of a case, in this process.

    Memory is that of the first two calls: what the libraries keep for themselves is
    part of it.
    """
    torch.set_num_threads(1)
    work = case.make(*case.arguments)
    if not callable(work):
        return {"figure": float(work), "memory": None}
    with Peak() as peak:
        seconds = cpu_seconds(work, 1)
        if case.repeats > 1:
            work()
    if case.repeats > 1:
        seconds = cpu_seconds(work, case.repeats)
    each = seconds / case.items
    grown = peak.added if case.memory == "added" else peak.top
    figure = each if case.unit == SECONDS else 1 / each
    return {"figure": figure, "memory": grown / 1e9}


def row(group: str, case: Case) -> dict[str, Any]:
    """What is known of a case before it is measured; JSON-able."""
    released = case.released or Released("")
    return {
        "group": group,
        "name": case.name,
        "size": case.size,
        "unit": case.unit,
        "figure": None,
        "memory": None,
        "memory_counts": case.memory,
        "released": released.figure,
        "released_memory": released.memory,
        "source": released.source,
        "target": case.target,
        "memory_target": case.memory_target,
        "error": None,
    }
