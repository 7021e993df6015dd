"""Peak memory of a process tree, for programs that start others."""

import threading
from typing import Any

import psutil


class PeakMemory:
    """Samples the memory of the processes that are started while it is open.

    Attributes:
        peak_mb: largest sum seen, in MB (10^6 bytes); libraries that several processes
            share are counted once.
    """

    def __init__(self, interval: float = 0.2):
        self.peak_mb = 0.0
        self._interval = interval
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._own = psutil.Process()
        self._before = {child.pid for child in self._own.children(recursive=True)}

    def __enter__(self) -> "PeakMemory":
        self._thread.start()
        return self

    def __exit__(self, *details: Any) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(self._interval):
            private, shared = 0, [0]
            for child in self._own.children(recursive=True):
                if child.pid in self._before:
                    continue
                try:
                    memory = child.memory_info()
                except psutil.Error:  # it ended just now
                    continue
                # Pages of libraries are resident in every process, but exist once.
                common = getattr(memory, "shared", 0)
                private += memory.rss - common
                shared.append(common)
            self.peak_mb = max(self.peak_mb, (private + max(shared)) / 1e6)
