"""How the benchmarks measure and print."""

import threading
import time

import psutil


def cpu_seconds(function, repeats: int = 7) -> float:
    """Median processor seconds of a call, after one call to warm up.

    With one thread this is the wall-clock time of an otherwise idle machine.
    """
    function()
    taken = []
    for _ in range(repeats):
        begun = time.process_time()
        function()
        taken.append(time.process_time() - begun)
    return sorted(taken)[repeats // 2]


def show(name: str, seconds: float, target: float | None = None) -> None:
    """One line: the figure, and the target beside it."""
    aim = "no target" if target is None else f"target <= {target:g} s"
    print(f"{name}: {seconds:.4g} s ({aim})", flush=True)


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
