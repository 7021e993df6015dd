"""Children of one warm process: everything is imported once, torch has not computed.

A child shows where it is in memory that it shares with its parent, so that the parent
can say, and choose, where a kill lands.
"""

import mmap
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path

SLOT = 64  # bytes of the shared line
EVERY = 0.002  # seconds between two looks at where the child is
# Phase by function: the first of these that is running names it.
PHASES = {
    ("run_state", "save"): "checkpoint",
    ("run_state", "resume"): "resuming",
    ("update", "__call__"): "step",
    ("training", "fit"): "between steps",
    ("feature_cache", "build"): "feature cache",
    ("_primaps_cache", "build"): "masks",
    ("mask_making", "make_masks"): "masks",
    ("region_files", "make_regions"): "regions",
    ("neighbour_index", "neighbour_index"): "neighbours",
    ("model_file", "write"): "saving",
    ("readout", "fit_clusters"): "probes",
    ("readout", "fit_linear"): "probes",
    ("evaluation", "fit_map"): "naming clusters",
}


class Child:
    """A forked process that runs one function.

    Args:
        work: called without arguments; the exit status is 0 if it returns.
        log: gets all that it prints, and its traceback.
        watched: keep :attr:`phase` up to date.
    """

    def __init__(self, work: Callable[[], None], log: Path, watched: bool = False):
        self._shared = mmap.mmap(-1, SLOT)
        self.log = log
        sys.stdout.flush()
        sys.stderr.flush()
        self.pid = os.fork()
        if not self.pid:
            self._run(work, watched)

    def _run(self, work: Callable[[], None], watched: bool) -> None:
        status = 1
        try:
            with self.log.open("ab", buffering=0) as file:
                os.dup2(file.fileno(), 1)
                os.dup2(file.fileno(), 2)
            if watched:
                threading.Thread(target=self._show, daemon=True).start()
            work()
            status = 0
        except BaseException:  # nothing may return into the parent's code
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)

    def _show(self) -> None:
        main = threading.main_thread().ident
        while True:
            line = where(sys._current_frames().get(main)).encode()[: SLOT - 1]
            self._shared[: len(line) + 1] = line + b"\n"
            time.sleep(EVERY)

    @property
    def phase(self) -> str:
        """Where it is, or was when it ended."""
        return self._shared[:].partition(b"\n")[0].strip(b"\0").decode()

    def ended(self) -> int | None:
        """Exit status, negative for a signal; None while it runs."""
        pid, status = os.waitpid(self.pid, os.WNOHANG)
        return os.waitstatus_to_exitcode(status) if pid else None

    def wait(self) -> int:
        """Exit status, negative for a signal."""
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])

    def kill(self) -> None:
        """SIGKILL, and wait for the end."""
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)

    def explain(self) -> str:
        """The end of what it printed."""
        return self.log.read_text(encoding="utf-8", errors="replace")[-3000:]


def where(frame) -> str:
    """Phase of a stack, by the innermost function of the package that names one."""
    running = set()
    while frame is not None:
        module = frame.f_globals.get("__name__", "")
        if module.startswith("uss_utils."):
            name = frame.f_code.co_name
            running.add((module.rpartition(".")[2], name))
        frame = frame.f_back
    phase = next((p for key, p in PHASES.items() if key in running), None)
    if phase is None:
        names = {name for _, name in running}
        phase = "preparation" if "prepare" in names else "between phases"
    return phase
