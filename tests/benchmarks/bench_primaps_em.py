"""PriMaPs-EM's prototypes on one thread: a step, the votes, the start, student views.

Target figures are for C 384, K 27, 40 x 40 patches and images of 320 x 320; the
released step took 2.12 s and 1.6 GB, its votes 129 ms, its start 5.0 s.

Run: ``python -m tests.benchmarks.bench_primaps_em``
"""

import multiprocessing

import torch
from torchvision.transforms import functional as tv

from tests.benchmarks.timing import Peak, cpu_seconds
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


def step_figures(batch: int) -> tuple[float, float, float]:
    """Seconds, bytes at the peak, bytes of them added."""
    torch.set_num_threads(1)
    plain, augmented = torch.randn(2, batch, C, GRID, GRID)
    masks = blocks(batch, 1, 12, 16).to(torch.uint8)
    label = blocks(batch, -1, K, 16)
    model = EMStep(PrototypeHead(torch.randn(K, C)), LinearProbe(C, K))
    optimisers = model.optimisers(5e-3, 5e-3).values()

    def step():
        for optimiser in optimisers:
            optimiser.zero_grad()
        model.losses(plain, augmented, masks, label)["loss"].backward()
        for optimiser in optimisers:
            optimiser.step()

    with Peak() as peak:
        seconds = cpu_seconds(step, 5)
    return seconds, peak.top, peak.added


def vote_seconds() -> float:
    torch.set_num_threads(1)
    masks, class_map = blocks(8, 1, 12, 16).to(torch.uint8), blocks(8, 0, K, 4)
    return cpu_seconds(lambda: assign_masks(class_map, masks, K), 9)


def start_figures(images: int) -> tuple[float, float]:
    """Seconds and bytes added, for features made 32 images at a time."""
    torch.set_num_threads(1)
    one = torch.randn(32, C, GRID, GRID)
    batches = [32] * (images // 32) + [images % 32] * bool(images % 32)
    with Peak() as peak:
        seconds = cpu_seconds(lambda: pca_centers((one[:n] for n in batches), K), 1)
    return seconds, peak.added


def view_figures() -> tuple[float, float]:
    """Seconds of a batch of 32: ours, and torchvision's blur alone."""
    torch.set_num_threads(1)
    images = torch.randn(32, 3, SIDE, SIDE)
    changes = draw_changes(32, generator(0))

    def theirs():
        for image, change in zip(images, changes, strict=True):
            tv.gaussian_blur(image, [21, 21], [change.sigma] * 2)

    ours = cpu_seconds(lambda: student_view(images, changes=changes), 3)
    return ours, cpu_seconds(theirs, 1)


def main() -> None:
    # A process of its own for each figure: freed memory of another one would hide.
    context = multiprocessing.get_context("spawn")
    with context.Pool(1, maxtasksperchild=1) as pool:
        for batch, target in ((2, " (targets 0.4 s, 1 GB in all)"), (32, "")):
            seconds, peak, added = pool.apply(step_figures, (batch,))
            print(
                f"EM step, B {batch}: {seconds:.3f} s, {peak / 1e9:.2f} GB in all, "
                f"{added / 1e9:.2f} GB added{target}"
            )
        seconds = pool.apply(vote_seconds)
        print(f"votes, B 8: {1000 * seconds:.1f} ms (target 20)")
        for images in (10, 320, 1280):
            seconds, added = pool.apply(start_figures, (images,))
            print(
                f"PCA start, {images} images, {images * GRID * GRID} patches: "
                f"{seconds:.2f} s, {added / 1e6:.0f} MB added"
            )
        ours, theirs = pool.apply(view_figures)
        print(
            f"student views, B 32: {ours:.3f} s (torchvision's blur alone: "
            f"{theirs:.2f} s)"
        )


if __name__ == "__main__":
    main()
