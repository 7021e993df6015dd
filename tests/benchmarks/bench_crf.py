"""The dense CRF, and what two worker processes gain over one.

The gain is by the clock: it tells something on an otherwise idle machine only.
"""

import torch

from tests.benchmarks.__main__ import alone
from tests.benchmarks.cases import Case, Released
from tests.benchmarks.timing import wall_seconds
from uss_utils.crf import CRFPool, dense_crf_batch
from uss_utils.datasets.scenes import scene
from uss_utils.datasets.transforms import normalise
from uss_utils.environment import generator


def inputs(size: int, classes: int, n: int) -> tuple[torch.Tensor, torch.Tensor]:
    images = [normalise(scene(i, 0, "street", size).image) for i in range(n)]
    shape = (n, classes, size // 8, size // 8)
    return torch.stack(images), 3 * torch.randn(*shape, generator=generator(0))


def serially(size: int, classes: int):
    images, logits = inputs(size, classes, 1)
    return lambda: dense_crf_batch(images, logits, workers=1)


def gain(size: int, classes: int, n: int, with_start: bool = False) -> float:
    """Of two processes; those started beforehand, or their start included."""
    images, logits = inputs(size, classes, n)
    alone = wall_seconds(lambda: dense_crf_batch(images, logits, workers=1))
    if with_start:
        return alone / wall_seconds(lambda: dense_crf_batch(images, logits, workers=2))
    with CRFPool(2) as pool:
        dense_crf_batch(images[:2], logits[:2], pool=pool)
        return alone / wall_seconds(lambda: dense_crf_batch(images, logits, pool=pool))


SECTION = "stego, section 10"
STARTED, STARTING = "2 processes, started before", "2 processes, with their start"
CASES = (
    Case(
        *("one image, serially", "320 x 320, 27 classes", serially, (320, 27)),
        repeats=3,
        released=Released(SECTION, 3.73),
    ),
    Case(
        *("one image, serially", "320 x 320, 3 classes", serially, (320, 3)),
        repeats=3,
        released=Released(SECTION, 0.96),
    ),
    Case(
        *(STARTED, "12 images 320 x 320, 27 classes", gain, (320, 27, 12)),
        unit="x",
        target=1.7,
    ),
    Case(
        *(STARTING, "12 images 320 x 320, 27 classes", gain, (320, 27, 12, True)),
        unit="x",
    ),
    Case(
        *(STARTED, "24 images 128 x 128, 12 classes", gain, (128, 12, 24)),
        unit="x",
    ),
)

if __name__ == "__main__":
    raise SystemExit(alone("crf"))
