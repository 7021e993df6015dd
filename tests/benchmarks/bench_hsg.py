"""HSG on one thread: contrast, k-means, graph, retrieval; seconds and memory added.

Beside each figure stands its target. Forward and backward where there is a gradient.
"""

import multiprocessing

import torch
import torch.nn.functional as F

from tests.benchmarks.timing import Peak, cpu_seconds
from tests.methods.test_hsg_contrast import plain_losses
from uss_utils.environment import generator
from uss_utils.methods._hsg_contrast import segment_contrast
from uss_utils.methods._hsg_graph import knn_graph
from uss_utils.methods._hsg_segments import segment_views
from uss_utils.segments import SegmentMemory

C = 128


def unit(n: int, seed: int) -> torch.Tensor:
    return F.normalize(torch.randn(n, C, generator=generator(seed)), dim=1)


def contrast_parts(pixels: int, segments: int, images: int):
    draw = generator(2)
    rows, prototypes = unit(pixels, 0), unit(segments, 1)
    own = torch.randint(segments, (pixels,), generator=draw)
    image = torch.arange(segments) * images // segments
    labels = [
        image * 1000 + torch.randint(n, (segments,), generator=draw) for n in (30, 8, 4)
    ]
    return rows.requires_grad_(), own, prototypes.requires_grad_(), labels


def contrast(pixels: int, segments: int, images: int, fused: bool = True):
    """Regions, fine and coarse groups."""
    rows, own, prototypes, labels = contrast_parts(pixels, segments, images)

    def step():
        rows.grad = prototypes.grad = None
        parts = (rows, own, prototypes)
        if fused:
            return segment_contrast(*parts, labels).sum().backward()
        return sum(plain_losses(*parts, x).mean() for x in labels).backward()

    return step


def segments(views: int, side: int, cells: int):
    """Features, k-means of 15 iterations, numbering and prototypes."""
    draw = generator(0)
    emb = torch.randn(views, C, side, side, generator=draw)
    emb = F.avg_pool2d(emb, 5, 1, 2)
    regions = torch.zeros(views, side, side, dtype=torch.int64)
    valid = torch.ones(views, side, side, dtype=torch.bool)
    return lambda: segment_views(emb, regions, valid, (cells, cells), 15)


def graph(images: int, slots: int, k: int):
    """Neighbours in each of two views."""
    x = unit(images * slots, 0).view(images, slots, C).transpose(1, 2)
    padding = torch.zeros(images, slots, dtype=torch.bool)
    views = (torch.arange(slots) * 2 // slots).expand(images, -1)
    return lambda: knn_graph(x, padding, k, views)


def retrieval(queries: int, rows: int, k: int):
    """Nearest neighbours and their vote."""
    labels = torch.randint(21, (rows,), generator=generator(3))
    memory = SegmentMemory(unit(rows, 0), labels, torch.arange(rows))
    asked = unit(queries, 1)
    return lambda: memory.vote(asked, k)


def figures(make, arguments: tuple) -> tuple[float, float]:
    """Seconds, and bytes added."""
    torch.set_num_threads(1)
    with torch.set_grad_enabled(make is contrast):
        work = make(*arguments)
        with Peak() as peak:
            seconds = cpu_seconds(work, 3)
    return seconds, peak.added


WORK = (
    ("contrast, 3 levels, P 9408, S 300", contrast, (9408, 300, 6), ""),
    ("contrast, 3 levels, P 9408, S 1000", contrast, (9408, 1000, 6), "0.65 s, 0.4 GB"),
    ("the same by autograd", contrast, (9408, 1000, 6, False), ""),
    ("contrast, 3 levels, P 9408, S 4600", contrast, (9408, 4600, 6), "3 s"),
    ("segments, 12 views 28 x 28, 16 cells", segments, (12, 28, 4), "0.035 s"),
    ("segments, 512 x 512, 36 cells", segments, (1, 512, 6), "2.5 s, 1.0 GB"),
    ("graph, 6 images of 256 nodes, k 2", graph, (6, 256, 2), "0.009 s"),
    ("retrieval, 36 of 381 000, top 20", retrieval, (36, 381_000, 20), "0.12 s"),
)


def main() -> None:
    # A process of its own for each figure: freed memory of another one would hide.
    context = multiprocessing.get_context("spawn")
    with context.Pool(1, maxtasksperchild=1) as pool:
        for name, make, arguments, target in WORK:
            seconds, added = pool.apply(figures, (make, arguments))
            aim = f" (targets {target})" if target else ""
            print(f"{name}: {seconds:.4f} s, {added / 1e9:.2f} GB added{aim}")


if __name__ == "__main__":
    main()
