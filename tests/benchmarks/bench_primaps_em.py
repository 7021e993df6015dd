"""PriMaPs-EM's prototypes: a step, the votes, the start, student views.

The start is streamed: its memory must not depend on the number of images.
"""

import torch
from torchvision.transforms import functional as tv

from tests.benchmarks.__main__ import alone
from tests.benchmarks.cases import Case, Released
from uss_utils.environment import generator
from uss_utils.methods._primaps_em import (
    EMStep,
    PrototypeHead,
    assign_masks,
    pca_centers,
)
from uss_utils.methods._primaps_views import draw_changes, student_view
from uss_utils.probes import LinearProbe

C, K, GRID, SIDE = 384, 27, 40, 320


def blocks(batch: int, low: int, high: int, size: int) -> torch.Tensor:
    """Maps of square blocks, as masks and class maps are."""
    small = torch.randint(low, high, (batch, SIDE // size, SIDE // size))
    return small.repeat_interleave(size, 1).repeat_interleave(size, 2)


def em_step(batch: int):
    plain, augmented = torch.randn(2, batch, C, GRID, GRID)
    masks = blocks(batch, 1, 12, 16).to(torch.uint8)
    label = blocks(batch, -1, K, 16)
    model = EMStep(PrototypeHead(torch.randn(K, C)), LinearProbe(C, K))
    optimisers = model.optimisers(5e-3, 5e-3).values()

    def work():
        for optimiser in optimisers:
            optimiser.zero_grad()
        model.losses(plain, augmented, masks, label)["loss"].backward()
        for optimiser in optimisers:
            optimiser.step()

    return work


def votes():
    masks, class_map = blocks(8, 1, 12, 16).to(torch.uint8), blocks(8, 0, K, 4)
    return lambda: assign_masks(class_map, masks, K)


def start(images: int):
    """From features made 32 images at a time."""
    one = torch.randn(32, C, GRID, GRID)
    batches = [32] * (images // 32) + [images % 32] * bool(images % 32)
    return lambda: pca_centers((one[:n] for n in batches), K)


def views(ours: bool):
    """Ours, or torchvision's blur alone."""
    images = torch.randn(32, 3, SIDE, SIDE)
    changes = draw_changes(32, generator(0))

    def theirs():
        for image, change in zip(images, changes, strict=True):
            tv.gaussian_blur(image, [21, 21], [change.sigma] * 2)

    return (lambda: student_view(images, changes=changes)) if ours else theirs


SECTION = "primaps, section 11"
CASES = (
    Case(
        *("EM step, heads only", "B 2, C 384, K 27, 320 x 320", em_step, (2,)),
        memory="in all",
        target=0.4,
        memory_target=1.0,
        released=Released(SECTION, 2.12, 1.6),
    ),
    Case(
        *("EM step, heads only", "B 32, C 384, K 27, 320 x 320", em_step, (32,)),
        repeats=1,
        memory="in all",
    ),
    Case(
        *("votes of masks", "B 8, 320 x 320", votes),
        repeats=9,
        target=0.020,
        released=Released(SECTION, 0.129),
    ),
    Case(
        *("PCA start", "10 images, 16 000 x 384", start, (10,)),
        released=Released(SECTION, 5.0),
    ),
    Case("PCA start", "320 images, 512 000 x 384", start, (320,), repeats=3),
    Case("PCA start", "1280 images, 2 048 000 x 384", start, (1280,), repeats=1),
    Case("student views", "B 32, 320 x 320", views, (True,), repeats=3),
    Case("torchvision's blur alone", "B 32, 320 x 320", views, (False,), repeats=1),
)

if __name__ == "__main__":
    raise SystemExit(alone("primaps_em"))
