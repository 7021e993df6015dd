"""Confusion, matching and IoU."""

import torch

from tests.benchmarks.__main__ import alone
from tests.benchmarks.cases import Case, Released
from uss_utils.environment import generator
from uss_utils.metrics import Confusion


def maps(n: int, height: int, width: int, classes: int, extra: int):
    g, shape = generator(0), (n, height, width)
    pred = torch.randint(0, classes + extra, shape, generator=g)
    return pred, torch.randint(-1, classes, shape, generator=g)


def score(extra: int):
    pred, label = maps(16, 320, 320, 27, extra)

    def work():
        confusion = Confusion(27, extra)
        confusion.update(pred, label)
        return confusion.scores("hungarian")

    return work


def iou_matrix():
    pred, label = maps(4, 375, 500, 21, 0)
    return lambda: Confusion.of(pred, label, 21).iou_matrix()


HUNGARIAN = "IoU after Hungarian matching"
CASES = (
    Case(HUNGARIAN, "16 maps 320 x 320, 27 classes", score, (0,), target=0.1),
    Case(HUNGARIAN, "the same, 73 more clusters", score, (73,)),
    Case(
        *("IoU of all pairs", "4 maps 375 x 500, 21 classes", iou_matrix),
        target=0.01,
        released=Released("maskcontrast, section 9", 0.60),
    ),
)

if __name__ == "__main__":
    raise SystemExit(alone("metrics"))
