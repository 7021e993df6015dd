"""Speed of MaskContrast's evaluations of segments on one thread, network left out.

Run: ``python tests/benchmarks/bench_segments.py``
"""

import torch
import torch.nn.functional as F
from timing import cpu_seconds, show

from uss_utils.environment import generator
from uss_utils.segments import (
    SegmentMemory,
    class_counts,
    cluster_segments,
    segment_prototypes,
)
from uss_utils.upsampling import upsample


def main():
    torch.set_num_threads(1)
    g = generator(0)
    embedding = torch.randn(4, 32, 64, 64, generator=g)
    logit = torch.randn(4, 64, 64, generator=g)
    label = torch.randint(-1, 21, (4, 512, 512), generator=g)

    def table():
        large = upsample(logit[:, None], (512, 512))[:, 0]
        _, masks = segment_prototypes(embedding, large)
        class_counts(masks, label, 21)

    def plainly():
        large = F.interpolate(logit[:, None], (512, 512), mode="bilinear")
        maps = F.interpolate(embedding, (512, 512), mode="bilinear")
        weight = large * (large > 0.5)
        F.normalize((maps * weight).sum((2, 3)), dim=1)

    show("prototypes and class counts, 4 images 512x512, D 32", cpu_seconds(table))
    show("the same prototypes from upsampled embeddings", cpu_seconds(plainly))
    rows = F.normalize(torch.randn(1449, 32, generator=g), dim=1)
    show(
        "k-means of 1449 whitened prototypes, 20 clusters, 10 starts",
        cpu_seconds(lambda: cluster_segments(rows), 3),
    )
    memory = F.normalize(torch.randn(10_582, 32, generator=g), dim=1)
    counts = torch.randint(0, 9, (10_582, 21), generator=g)
    known = SegmentMemory.from_counts(memory, counts)
    name = "retrieval of 1449 segments from 10 582"
    show(name, cpu_seconds(lambda: known.retrieve(rows)))


if __name__ == "__main__":
    main()
