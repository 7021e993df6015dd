"""What two worker processes gain over one for the dense CRF.

Run: ``python tests/benchmarks/bench_crf.py`` on an otherwise idle machine.
"""

import os
import time

import torch

from uss_utils.crf import CRFPool, dense_crf_batch
from uss_utils.datasets.scenes import scene
from uss_utils.datasets.transforms import normalise
from uss_utils.environment import generator

TARGET = 1.7


def wall(function) -> float:
    """Wall-clock seconds of one call."""
    begun = time.perf_counter()
    function()
    return time.perf_counter() - begun


def measure(size: int, classes: int, n: int) -> None:
    """Serial against two processes, those started beforehand and those not."""
    images = torch.stack(
        [normalise(scene(i, 0, "street", size).image) for i in range(n)]
    )
    logits = 3 * torch.randn(n, classes, size // 8, size // 8, generator=generator(0))
    serial = wall(lambda: dense_crf_batch(images, logits, workers=1))
    setting = f"CRF {n} images {size}x{size}, {classes} classes"
    print(f"{setting}: {serial / n:.3g} s/image serially (no target)")
    with CRFPool(2) as pool:
        dense_crf_batch(images[:2], logits[:2], pool=pool)
        warm = wall(lambda: dense_crf_batch(images, logits, pool=pool))
    cold = wall(lambda: dense_crf_batch(images, logits, workers=2))
    print(f"{setting}: pool of 2 {serial / warm:.2f} x serial (target >= {TARGET})")
    print(f"{setting}: with its start {serial / cold:.2f} x serial (no target)")


def main():
    torch.set_num_threads(1)
    print(f"load before: {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
    measure(320, 27, 12)
    measure(128, 12, 24)


if __name__ == "__main__":
    main()
