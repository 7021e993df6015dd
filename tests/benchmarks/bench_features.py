"""Speed of feature extraction and of the feature cache.

Run: ``python tests/benchmarks/bench_features.py`` on an otherwise idle machine.
"""

import tempfile
import time
from contextlib import redirect_stdout
from os import devnull
from pathlib import Path

import torch
from timing import cpu_seconds, show

from uss_utils.backbones import load
from uss_utils.datasets.scenes import Scenes
from uss_utils.environment import generator
from uss_utils.features import FeatureCache, extract

TARGET = 100  # images per second at 128 x 128 on two cores


def wall(function) -> float:
    """Shortest wall-clock seconds of three calls, after one call to warm up."""
    function()
    taken = []
    for _ in range(3):
        begun = time.perf_counter()
        function()
        taken.append(time.perf_counter() - begun)
    return min(taken)


def extraction() -> None:
    """Tiny ViT at 128 x 128: two threads by the clock, one by processor time."""
    backbone = load("vit_tiny_random")
    images = torch.randn(128, 3, 128, 128, generator=generator(0))
    torch.set_num_threads(2)
    rate = len(images) / wall(lambda: extract(backbone, images))
    print(
        f"tiny ViT features 128x128, two threads: {rate:.0f} images/s (target {TARGET})"
    )
    torch.set_num_threads(1)
    rate = len(images) / cpu_seconds(lambda: extract(backbone, images), 3)
    print(f"the same, one thread: {rate:.0f} images per processor second (no target)")


def cache() -> None:
    """Writing costs little beside the backbone; reading replaces it."""
    backbone, scenes = load("vit_tiny_random"), Scenes("street", "train", 64)
    scenes.fingerprint()
    rows = torch.randperm(64, generator=generator(0))
    with tempfile.TemporaryDirectory() as folder:
        folders = iter(Path(folder) / str(i) for i in range(10))

        def build():
            with Path(devnull).open("w") as nothing, redirect_stdout(nothing):
                return FeatureCache.build(backbone, scenes, next(folders))

        plain = cpu_seconds(lambda: extract(backbone, scenes), 3)
        show("features of 64 scenes in memory", plain)
        show("features of 64 scenes into a cache", cpu_seconds(build, 3))
        made = build()
        show("reading 64 cached maps 192x16x16", cpu_seconds(lambda: made.batch(rows)))


if __name__ == "__main__":
    extraction()
    cache()
