"""MaskContrast's evaluations of segments, network left out."""

import torch
import torch.nn.functional as F

from tests.benchmarks.__main__ import alone
from tests.benchmarks.cases import Case
from uss_utils.environment import generator
from uss_utils.segments import (
    SegmentMemory,
    class_counts,
    cluster_segments,
    segment_prototypes,
)
from uss_utils.upsampling import upsample


def prototypes(plainly: bool):
    """With class counts; or plainly, from upsampled embeddings."""
    g = generator(0)
    embedding = torch.randn(4, 32, 64, 64, generator=g)
    logit = torch.randn(4, 64, 64, generator=g)
    label = torch.randint(-1, 21, (4, 512, 512), generator=g)

    def ours():
        large = upsample(logit[:, None], (512, 512))[:, 0]
        _, masks = segment_prototypes(embedding, large)
        class_counts(masks, label, 21)

    def plain():
        large = F.interpolate(logit[:, None], (512, 512), mode="bilinear")
        maps = F.interpolate(embedding, (512, 512), mode="bilinear")
        weight = large * (large > 0.5)
        F.normalize((maps * weight).sum((2, 3)), dim=1)

    return plain if plainly else ours


def queries() -> torch.Tensor:
    return F.normalize(torch.randn(1449, 32, generator=generator(1)), dim=1)


def clusters():
    rows = queries()
    return lambda: cluster_segments(rows)


def retrieval():
    g, rows = generator(2), queries()
    memory = F.normalize(torch.randn(10_582, 32, generator=g), dim=1)
    counts = torch.randint(0, 9, (10_582, 21), generator=g)
    known = SegmentMemory.from_counts(memory, counts)
    return lambda: known.retrieve(rows)


SIZE = "4 images 512 x 512, D 32"
CASES = (
    Case("prototypes and class counts", SIZE, prototypes, (False,)),
    Case("prototypes of upsampled maps", SIZE, prototypes, (True,)),
    Case("k-means, 10 starts", "1449 whitened, K 20", clusters, repeats=3),
    Case("retrieval", "1449 of 10 582", retrieval),
)

if __name__ == "__main__":
    raise SystemExit(alone("segments"))
