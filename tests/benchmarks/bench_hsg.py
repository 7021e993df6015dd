"""HSG: contrast (forward and backward), k-means, graph, retrieval."""

import torch
import torch.nn.functional as F

from tests.benchmarks.__main__ import alone
from tests.benchmarks.cases import Case, Released
from tests.methods.test_hsg_contrast import plain_losses
from uss_utils.environment import generator
from uss_utils.methods._hsg_contrast import segment_contrast
from uss_utils.methods._hsg_graph import knn_graph
from uss_utils.methods._hsg_segments import segment_views
from uss_utils.segments import SegmentMemory

C = 128


def unit(n: int, seed: int) -> torch.Tensor:
    return F.normalize(torch.randn(n, C, generator=generator(seed)), dim=1)


def contrast(pixels: int, segments: int, images: int, fused: bool = True):
    """Regions, fine and coarse groups."""
    draw = generator(2)
    rows, prototypes = (
        unit(n, seed).requires_grad_() for seed, n in enumerate((pixels, segments))
    )
    own = torch.randint(segments, (pixels,), generator=draw)
    image = torch.arange(segments) * images // segments
    labels = [
        image * 1000 + torch.randint(n, (segments,), generator=draw) for n in (30, 8, 4)
    ]
    parts = (rows, own, prototypes)

    def step():
        rows.grad = prototypes.grad = None
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
    return without_gradient(
        lambda: segment_views(emb, regions, valid, (cells, cells), 15)
    )


def graph(images: int, slots: int, k: int):
    """Neighbours in each of two views."""
    x = unit(images * slots, 0).view(images, slots, C).transpose(1, 2)
    padding = torch.zeros(images, slots, dtype=torch.bool)
    views = (torch.arange(slots) * 2 // slots).expand(images, -1)
    return without_gradient(lambda: knn_graph(x, padding, k, views))


def retrieval(queries: int, rows: int, k: int):
    """Nearest neighbours and their vote."""
    labels = torch.randint(21, (rows,), generator=generator(3))
    memory = SegmentMemory(unit(rows, 0), labels, torch.arange(rows))
    asked = unit(queries, 1)
    return without_gradient(lambda: memory.vote(asked, k))


def without_gradient(work):
    return torch.no_grad()(work)


SECTION = "hsg, section 12"
LEVELS = "contrast, 3 levels"
CASES = (
    Case(LEVELS, "P 9408, S 300", contrast, (9408, 300, 6), repeats=3),
    Case(
        *(LEVELS, "P 9408, S 1000", contrast, (9408, 1000, 6)),
        repeats=3,
        target=0.65,
        memory_target=0.4,
        released=Released(SECTION, 0.78),
    ),
    Case(
        *("the same by autograd", "P 9408, S 1000", contrast, (9408, 1000, 6, False)),
        repeats=3,
    ),
    Case(
        *(LEVELS, "P 9408, S 4600", contrast, (9408, 4600, 6)),
        repeats=3,
        target=3,
        released=Released(f"{SECTION} (one level)", 5.3, 1.7),
    ),
    Case(
        *("segments", "12 views 28 x 28, 16 cells", segments, (12, 28, 4)),
        released=Released(f"{SECTION} (k-means alone)", 0.035),
    ),
    Case(
        *("segments", "512 x 512, 36 cells", segments, (1, 512, 6)),
        repeats=3,
        memory_target=1.0,
        released=Released(f"{SECTION} (peak)", 2.5, 1.2),
    ),
    Case(
        *("graph, k 2", "6 images of 256 nodes", graph, (6, 256, 2)),
        released=Released(SECTION, 0.0093),
    ),
    Case(
        *("retrieval, top 20", "36 of 381 000", retrieval, (36, 381_000, 20)),
        target=0.12,
        released=Released(SECTION, 1.08),
    ),
)

if __name__ == "__main__":
    raise SystemExit(alone("hsg"))
