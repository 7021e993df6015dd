"""Run the notebooks headlessly: the whole course with one command.

Each notebook runs in a kernel of this Python, whatever kernels the machine knows. A
failing notebook stops no other; what was finished before an interruption is kept.
"""

import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import papermill
import psutil
from ipykernel.kernelspec import get_kernel_dict
from jupyter_client import AsyncKernelManager
from jupyter_client.kernelspec import KernelSpec

from uss_utils import pages, published, publishing
from uss_utils.datasets.processes import cores
from uss_utils.memory import PeakMemory
from uss_utils.notebooks import (
    find,
    injected,
    parameters_of,
    parse_parameters,
    read_record,
)
from uss_utils.paths import atomic_file, repo_root, runs_dir, weights_dir
from uss_utils.weights_card import machine

__all__ = ["Result", "find", "parse_parameters", "refresh", "run"]

# These presets use what ships with the course: a request to a hub would be a mistake.
OFFLINE_PRESETS = ("smoke", "scenes")
CELL_TIMEOUT = 1800
GATHERING = ("10_comparison",)  # these read records of others: they run after them
# After these nothing runs beside them: the last starts and times processes of its own.
LAST = (*GATHERING, "12_scaling_up")
MEMORY = 3e9  # bytes that a notebook may need on the scenes


@dataclass
class Result:
    """What became of one notebook.

    Attributes:
        notebook: its name without ending.
        ok: executed to the end.
        seconds: wall time, the start of the kernel included.
        peak_mb: largest memory of the kernel and its worker processes, sampled.
        output: the executed notebook, complete or up to the error.
        error: empty, or what failed, in at most three lines.
        record: the numbers it recorded, None where it recorded none.
    """

    notebook: str
    ok: bool
    seconds: float
    peak_mb: float
    output: Path
    error: str = ""
    record: dict[str, Any] | None = None


class ThisPython(AsyncKernelManager):
    """Starts kernels with the running interpreter, not one found by name."""

    @property
    def kernel_spec(self) -> KernelSpec:
        """The native kernel of ``sys.executable``."""
        # Kernels warn about TCP without encryption; theirs never leaves this host.
        return KernelSpec(**get_kernel_dict(["--log-level=CRITICAL"]))


def run(
    notebooks: Sequence[str | Path] | None = None,
    preset: str = "scenes",
    out: str | Path | None = None,
    parameters: Mapping[str, Any] | None = None,
    timeout: int | None = CELL_TIMEOUT,
    jobs: int = 1,
) -> list[Result]:
    """Execute notebooks in order, and write what came out.

    Writes into ``<out>/<preset>``: ``notebooks/``, ``records/`` (by the notebooks
    themselves), ``results.json``, ``leaderboard.md``, ``leaderboard.json`` and
    ``index.html``, one page that needs no other file.

    Every notebook computes with one thread, unless ``$OMP_NUM_THREADS`` says otherwise:
    several threads round sums differently, and the numbers would depend on the machine.

    Args:
        notebooks: as in :func:`find`; all when None.
        preset: given to every notebook that has a parameter PRESET.
        out: used instead of ``runs/`` (``$USS_RUNS``).
        parameters: further parameters, each for the notebooks that know it.
        timeout: seconds that one cell may take; no limit when None.
        jobs: notebooks that run at a time; see :func:`jobs_here`.

    Returns:
        One result per notebook; failures are in them, not raised.

    Raises:
        FileNotFoundError: a notebook that does not exist.
        ValueError: a parameter that none of the notebooks knows.
        KeyboardInterrupt: passed on after finished results are written.
    """
    for name, number in (("jobs", jobs), ("timeout", timeout)):
        if number is not None and number < 1:
            raise ValueError(f"{name} has to be at least 1, got {number}")
    paths = find(notebooks)
    given = (
        {"PRESET": preset} if any("PRESET" in parameters_of(p) for p in paths) else {}
    )
    own = injected(paths, given | dict(parameters or {}))
    root = Path(out) if out is not None else runs_dir()
    folder = root.expanduser().resolve() / preset
    environment = {
        "USS_RUNS": str(folder.parent),
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1"),
    }
    if preset in OFFLINE_PRESETS:
        environment["HF_HUB_OFFLINE"] = "1"
    results: list[Result] = []
    started = time.perf_counter()
    try:
        with _environment(environment):
            work = [
                partial(_run_one, path, folder / "notebooks", values, timeout)
                for path, values in zip(paths, own, strict=True)
            ]
            if jobs > 1 and len(paths) > 1:
                _side_by_side(paths, work, jobs, results)
            else:
                _one_by_one(paths, work, results)
    except KeyboardInterrupt:
        print(f"\ninterrupted; {len(results)} finished notebooks are kept")
        raise
    finally:
        _write(results, folder, preset, time.perf_counter() - started)
    return results


def jobs_here() -> int:
    """Notebooks that this machine runs at a time: one per core that finds memory."""
    return max(1, min(cores(), int(psutil.virtual_memory().available // MEMORY)))


def _one_by_one(
    paths: Sequence[Path], work: Sequence[partial], results: list[Result]
) -> None:
    for i, (path, task) in enumerate(zip(paths, work, strict=True), 1):
        print(f"[{i}/{len(paths)}] {path.stem} ...", flush=True)
        results.append(task())
        print(_line(results[-1]), flush=True)


def _side_by_side(
    paths: Sequence[Path], work: Sequence[partial], jobs: int, results: list[Result]
) -> None:
    """Several at a time; what was finished stands in ``results`` whatever happens."""
    print(f"{len(paths)} notebooks, {jobs} at a time", flush=True)
    pool = ProcessPoolExecutor(jobs, get_context("spawn"), _ignore_interrupts)
    futures: dict[int, Future] = {}

    def say(name: str, future: Future) -> None:
        if not future.cancelled() and not future.exception():
            print(f"{name}\n{_line(future.result())}", flush=True)

    gathers = [path.stem in LAST for path in paths]
    try:
        for i in sorted(range(len(paths)), key=gathers.__getitem__):
            if gathers[i]:
                wait(futures.values())
            futures[i] = pool.submit(work[i])
            futures[i].add_done_callback(partial(say, paths[i].stem))
        wait(futures.values())
    except KeyboardInterrupt:
        pool.shutdown(wait=False, cancel_futures=True)
        for process in psutil.Process().children(recursive=True):
            process.kill()
        raise
    finally:
        done = [f for _, f in sorted(futures.items()) if f.done() and not f.cancelled()]
        results += [f.result() for f in done if not f.exception()]
        pool.shutdown()
    broken = [f.exception() for f in futures.values() if f.exception()]
    if broken:
        raise RuntimeError(f"a notebook's process ended: {broken[0]}") from broken[0]


def _ignore_interrupts() -> None:
    # Ctrl-C reaches all processes of a terminal; the first of them ends the others.
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _line(result: Result) -> str:
    state = "done" if result.ok else "FAILED"
    line = f"      {state} in {result.seconds:.1f} s, peak {result.peak_mb:.0f} MB"
    if result.ok:
        return line
    error = result.error.replace("\n", "\n      ")
    return f"{line}\n      {error}\n      executed so far: {result.output}"


def _run_one(
    path: Path, folder: Path, parameters: dict[str, Any], timeout: int | None
) -> Result:
    folder.mkdir(parents=True, exist_ok=True)
    output = folder / path.name
    output.unlink(missing_ok=True)  # an older run must not pass for this one
    started, error = time.perf_counter(), ""
    with PeakMemory() as memory, _CellProgress() as progress:
        try:
            papermill.execute_notebook(
                path,
                output,
                parameters=parameters or None,
                kernel_name="python3",
                kernel_manager_class=ThisPython,
                cwd=path.parent,
                progress_bar=False,
                execution_timeout=timeout,
                on_cell_start=progress,
            )
        except Exception as caught:  # whatever it is, the other notebooks still run
            error = _three_lines(caught)
    seconds = time.perf_counter() - started
    result = Result(path.stem, not error, seconds, memory.peak_mb, output, error)
    if result.ok:
        try:
            result.record = read_record(output)
        except ValueError:  # the notebook records nothing
            result.record = None
    return result


def _three_lines(error: Exception) -> str:
    """Error, where it happened and the statement, for people."""
    if isinstance(error, papermill.PapermillExecutionError):
        message = " ".join(error.evalue.split())[:300]
        frames = [line for line in error.traceback if "-->" in line]
        arrow = next((line for line in frames[0].splitlines() if "-->" in line), "")
        line, _, code = (
            publishing.plain(arrow).partition("-->")[2].strip().partition(" ")
        )
        where = f"in cell [{error.exec_count}], line {line}: {code}" if code else ""
        return "\n".join(filter(None, (f"{error.ename}: {message}", where)))
    text = [line for line in str(error).splitlines() if line.strip()]
    return "\n".join([type(error).__name__, *text][:3])


class _CellProgress:
    """Shows on a terminal which cell runs; silent where output goes to a file."""

    def __init__(self):
        self.count = 0
        self.live = sys.stderr.isatty()

    def __call__(self, cell: Any, cell_index: int) -> None:
        self.count += 1
        if self.live:
            print(f"\r      cell {cell_index + 1}", end="", file=sys.stderr, flush=True)

    def __enter__(self) -> "_CellProgress":
        return self

    def __exit__(self, *details: Any) -> None:
        if self.live:
            print("\r" + " " * 20 + "\r", end="", file=sys.stderr, flush=True)


@contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    """Environment variables that kernels started inside the block inherit."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _write(results: list[Result], folder: Path, preset: str, seconds: float) -> None:
    if not results:
        return
    rows = [asdict(r) | {"output": f"notebooks/{r.output.name}"} for r in results]
    with atomic_file(folder / "results.json") as temporary:
        temporary.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    board = pages.write_leaderboard(folder)
    page = pages.write_page(results, folder, preset, board)
    failed = [result.notebook for result in results if not result.ok]
    done = len(results) - len(failed)
    print(f"\n{done} of {len(results)} notebooks in {seconds:.0f} s")
    if failed:
        print(f"failed: {', '.join(failed)}")
    print(f"look at {page}")


def refresh(notebooks: Sequence[str | Path] | None = None) -> list[Result]:
    """Rewrite notebooks with the outputs of one clean run of their own parameters.

    A notebook that fails, or whose outputs must not be published (an absolute path, too
    large), is left as it was. When all notebooks were asked for and none failed, the
    README's scores, minutes and picture are made anew as well.

    Returns:
        One result per notebook, as :func:`run`.
    """
    paths = find(notebooks)
    folder = runs_dir() / "scenes"
    if notebooks is None:  # records of an older run must not mix with this one's
        shutil.rmtree(folder / "records", ignore_errors=True)
    results = run(paths, preset="scenes", jobs=jobs_here())
    for path, result in zip(paths, results, strict=True):
        if not result.ok:
            continue
        try:
            size = publishing.publish(path, result.output)
        except ValueError as error:
            result.ok, result.error = False, str(error)
            print(f"{path.name} NOT rewritten: {error}")
        else:
            print(f"{path.name} rewritten, {size / 1000:.0f} kB")
    if notebooks is None and all(result.ok for result in results):
        readme = repo_root() / "README.md"
        board = (folder / "leaderboard.md").read_text(encoding="utf-8")
        publishing.publish_scores(readme, board)
        publishing.publish_minutes(
            readme, {r.notebook: (r.seconds, r.peak_mb) for r in results}, machine()
        )
        publishing.replace_between(readme, publishing.PUBLISHED, published.table())
        publishing.publish_picture(paths[0], weights_dir() / "result.jpg")
    return results
