"""Work on very many files: over the cores, with a bar, and nothing left behind."""

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context, parent_process
from threading import Thread
from typing import Any

from tqdm.auto import tqdm

_shared: Any = None


def cores() -> int:
    """Processor cores for this process: its share where several train together."""
    found = os.cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):
        found = len(os.sched_getaffinity(0))
    return max(1, found // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def spread(
    work: Callable[[Any, Any], Any],
    shared: Any,
    jobs: Sequence[Any],
    *,
    processes: int | None = None,
    desc: str = "",
    progress: bool = True,
) -> Iterator[Any]:
    """``work(shared, job)`` for every job, over processes; results in order.

    Args:
        work: a function of a module.
        shared: handed to every process once.
        jobs: what the calls differ in.
        processes: None: one per core; 1: no other process.
        desc: text of the bar.
        progress: show it.

    Raises:
        ValueError: no process.
        Exception: what ``work`` raised first; jobs not begun are dropped.
    """
    wanted = cores() if processes is None else processes
    if wanted < 1:
        raise ValueError(f"processes={processes} must be at least 1")
    with tqdm(total=len(jobs), desc=desc, unit="", disable=not progress) as bar:
        for result in _results(work, shared, jobs, min(wanted, len(jobs))):
            bar.update()
            yield result


def _results(
    work: Callable, shared: Any, jobs: Sequence[Any], processes: int
) -> Iterator[Any]:
    if processes <= 1:
        yield from (work(shared, job) for job in jobs)
        return
    # Spawned: forking a process that has computed with threads can hang.
    pool = ProcessPoolExecutor(processes, get_context("spawn"), _begin, (shared,))
    try:
        chunk = max(1, min(16, len(jobs) // (4 * processes)))
        yield from pool.map(_call, [(work, job) for job in jobs], chunksize=chunk)
    finally:
        pool.shutdown(cancel_futures=True)


def _begin(shared: Any) -> None:
    global _shared
    _shared = shared
    Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """Workers of a killed process would wait for work for ever."""
    parent_process().join()
    os._exit(1)


def _call(job: tuple[Callable, Any]) -> Any:
    work, item = job
    return work(_shared, item)
