"""How the benchmarks measure time and memory."""

import threading
import time

import psutil


def cpu_seconds(function, repeats: int = 7) -> float:
    """Median processor seconds of a call.

    With one thread this is the wall-clock time of an otherwise idle machine; other
    work on the machine hardly changes it.
    """
    taken = []
    for _ in range(repeats):
        begun = time.process_time()
        function()
        taken.append(time.process_time() - begun)
    return sorted(taken)[repeats // 2]


def wall_seconds(function, repeats: int = 1) -> float:
    """Shortest wall-clock seconds of a call: for what uses several cores."""
    taken = []
    for _ in range(repeats):
        begun = time.perf_counter()
        function()
        taken.append(time.perf_counter() - begun)
    return min(taken)


class Peak:
    """Largest growth of this process's memory while a block runs, in bytes."""

    def __enter__(self) -> "Peak":
        self.process = psutil.Process()
        self.start = self.top = self.process.memory_info().rss
        self.running = True
        self.thread = threading.Thread(target=self._watch)
        self.thread.start()
        return self

    def _watch(self) -> None:
        while self.running:
            self.top = max(self.top, self.process.memory_info().rss)
            time.sleep(0.001)

    def __exit__(self, *_) -> None:
        self.running = False
        self.thread.join()

    @property
    def added(self) -> int:
        return self.top - self.start
