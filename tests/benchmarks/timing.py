"""How the benchmarks measure and print."""

import time


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
