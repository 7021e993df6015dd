"""Feature extraction and the feature cache."""

import itertools
import tempfile
from pathlib import Path

import torch

from tests.benchmarks.__main__ import alone
from tests.benchmarks.cases import Case
from tests.benchmarks.timing import wall_seconds
from uss_utils.backbones import load
from uss_utils.datasets.scenes import Scenes
from uss_utils.environment import generator
from uss_utils.features import FeatureCache, extract


def images() -> torch.Tensor:
    return torch.randn(128, 3, 128, 128, generator=generator(0))


def one_thread():
    backbone, seen = load("vit_tiny_random"), images()
    return lambda: extract(backbone, seen)


def two_threads() -> float:
    """Images per second by the clock."""
    backbone, seen = load("vit_tiny_random"), images()
    torch.set_num_threads(2)
    extract(backbone, seen)
    return len(seen) / wall_seconds(lambda: extract(backbone, seen), 3)


def scenes() -> Scenes:
    found = Scenes("street", "train", 64)
    found.fingerprint()
    return found


def in_memory():
    backbone, data = load("vit_tiny_random"), scenes()
    return lambda: extract(backbone, data)


def into_cache():
    """Writing costs little beside the backbone."""
    backbone, data, root = load("vit_tiny_random"), scenes(), Path(tempfile.mkdtemp())
    numbers = itertools.count()
    return lambda: FeatureCache.build(backbone, data, root / str(next(numbers)))


def from_cache():
    """Reading replaces the backbone."""
    folder = Path(tempfile.mkdtemp()) / "cache"
    made = FeatureCache.build(load("vit_tiny_random"), scenes(), folder)
    rows = torch.randperm(64, generator=generator(0))
    return lambda: made.batch(rows)


RATE = {"unit": "images/s", "items": 128}
CASES = (
    Case(
        *("tiny ViT, two threads, by the clock", "128 x 128", two_threads),
        unit="images/s",
        target=100,
    ),
    Case("tiny ViT, one thread", "128 x 128", one_thread, repeats=3, **RATE),
    Case("features in memory", "64 scenes", in_memory, repeats=3),
    Case("features into a cache", "64 scenes", into_cache, repeats=3),
    Case("reading cached maps", "64 of 192 x 16 x 16", from_cache),
)

if __name__ == "__main__":
    raise SystemExit(alone("features"))
