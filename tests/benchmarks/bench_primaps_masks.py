"""PriMaPs' masks on one thread: extraction, clean-up, the CRF on maps of ids.

Target figure: 8 maps of 40 x 40 x 384 in 1.2 s; the released code takes 0.21 to 0.30 s
for each.
"""

import os
import time

import torch
import torch.nn.functional as F

from tests.benchmarks.timing import cpu_seconds, show
from uss_utils import crf
from uss_utils.environment import generator
from uss_utils.methods.primaps import clean_masks, propose_masks, refine_masks

SIDE, C = 40, 384


def maps(batch: int, blobs: int, seed: int = 0) -> torch.Tensor:
    """Features of images made of some regions, each around a direction of its own."""
    draw = generator(seed)
    centres = F.normalize(torch.randn(batch, blobs, C, generator=draw), dim=2)
    places = torch.rand(batch, blobs, 2, generator=draw) * SIDE
    grid = torch.stack(torch.meshgrid(*[torch.arange(SIDE)] * 2, indexing="ij"), -1)
    distance = torch.cdist(grid.reshape(1, -1, 2).float(), places)
    own = distance.argmin(2)
    rows = centres.gather(1, own[..., None].expand(-1, -1, C))
    noise = torch.randn(rows.shape, generator=draw) * 0.03
    return (20 * (rows + noise)).movedim(2, 1).reshape(batch, C, SIDE, SIDE)


def main() -> None:
    torch.set_num_threads(1)
    feat = torch.cat([maps(1, n, n) for n in (7, 8, 9, 10, 11, 12, 13, 13)])
    found = propose_masks(feat)
    print(f"masks of the 8 maps: {found.count.tolist()}")
    show("extraction of 8 maps", cpu_seconds(lambda: propose_masks(feat), 5), 1.2)
    show("clean-up of 8 maps", cpu_seconds(lambda: clean_masks(found), 5))
    if not crf.available():
        return
    draw = generator(1)
    for labels in (5, 10, 20):
        ids = clean_masks(propose_masks(maps(1, labels)))
        image = (torch.rand(1, 10, 10, 3, generator=draw) * 255).byte()
        image = image.repeat_interleave(32, 1).repeat_interleave(32, 2)
        counts = torch.tensor([labels])
        seconds = cpu_seconds(lambda i=ids, p=image, c=counts: refine_masks(i, p, c), 3)
        show(f"CRF 320 x 320, {labels} labels", seconds)
    ids = clean_masks(propose_masks(maps(16, 10)))
    images, counts = image.expand(16, -1, -1, -1), torch.full((16,), 10)
    with crf.CRFPool() as pool:
        refine_masks(ids[:2], images[:2], counts[:2], pool=pool)  # the workers' start
        begun = time.perf_counter()
        refine_masks(ids, images, counts, pool=pool)
        together = time.perf_counter() - begun
    begun = time.perf_counter()
    refine_masks(ids, images, counts)
    alone = time.perf_counter() - begun
    print(
        f"CRF of 16 images: {together:.2f} s in {os.cpu_count()} processes, "
        f"{alone:.2f} s in one"
    )


if __name__ == "__main__":
    main()
