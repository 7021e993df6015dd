"""Speed of confusion, matching and IoU on one thread.

Run: ``python tests/benchmarks/bench_metrics.py``
"""

import torch
from timing import cpu_seconds, show

from uss_utils.environment import generator
from uss_utils.metrics import Confusion


def main():
    torch.set_num_threads(1)
    g = generator(0)
    for extra, target in ((0, 0.1), (73, None)):
        pred = torch.randint(0, 27 + extra, (16, 320, 320), generator=g)
        label = torch.randint(-1, 27, (16, 320, 320), generator=g)

        def score(pred=pred, label=label, extra=extra):
            confusion = Confusion(27, extra)
            confusion.update(pred, label)
            return confusion.scores("hungarian")

        name = (
            f"IoU after Hungarian matching, 16 maps 320x320, 27 classes, {extra} extra"
        )
        show(name, cpu_seconds(score), target)
    pred = torch.randint(0, 21, (4, 375, 500), generator=g)
    label = torch.randint(-1, 21, (4, 375, 500), generator=g)
    name = "IoU of 21 clusters with 21 classes, 4 maps 375x500"
    seconds = cpu_seconds(lambda: Confusion.of(pred, label, 21).iou_matrix())
    show(name, seconds, 0.01)


if __name__ == "__main__":
    main()
