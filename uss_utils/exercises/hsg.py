"""Exercises of ``09_hsg``."""

import math
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from uss_utils.environment import generator
from uss_utils.exercises import register


@register("rounds_of")
def rounds_of() -> Iterator:
    """``f(f, labels, k, n)``: J of n rounds of spherical k-means, and the labels.

    The first case is a grid of 28 pixels in four cells of 5, 9, 9 and 5. In the last
    one cluster 1 begins empty, and comes back: pixel 2 is opposite to the others.
    """
    draw = generator(0)
    starts = torch.tensor([5, 9, 9, 5]).cumsum(0)
    cells = torch.bucketize(torch.arange(28), starts, right=True)
    rows = F.normalize(torch.randn(28, 3, generator=draw), dim=1)
    yield (rows, cells, 4, 6), _judge(*_rounds(rows, cells, 4, 6))
    angle = torch.tensor([0.0, 0.2, 3.0])
    rows = torch.stack([angle.cos(), angle.sin()], 1)
    labels = torch.zeros(3, dtype=torch.int64)
    yield (rows, labels, 2, 3), _judge(*_rounds(rows, labels, 2, 3))


def _rounds(f: Tensor, labels: Tensor, k: int, n: int) -> tuple[list[float], Tensor]:
    scores = []
    for _ in range(n):
        sums = torch.stack([f[labels == c].sum(0) for c in range(k)])
        cosines = f @ F.normalize(sums, dim=1).T
        scores.append(float(cosines.amax(1).sum()))
        labels = cosines.argmax(1)
    return scores, labels


def _judge(scores: list[float], labels: Tensor) -> Callable[[object], str]:
    def complaint(got: object) -> str:
        try:
            found, last = got
            found = [float(value) for value in found]
            last = torch.as_tensor(last).tolist()
        except (TypeError, ValueError):
            return f"got {type(got).__name__}, expected the values of J and the labels"
        if len(found) != len(scores):
            return f"got {len(found)} values of J, expected {len(scores)}"
        if any(b < a - 1e-4 for a, b in zip(found, found[1:], strict=False)):
            return f"J falls: {[round(value, 3) for value in found]}"
        if not all(
            math.isclose(a, b, rel_tol=1e-4) for a, b in zip(found, scores, strict=True)
        ):
            shown = ([round(v, 3) for v in each] for each in (found, scores))
            return "J is {}, expected {}".format(*shown)
        if last != labels.tolist():
            return f"the last labels are {last}, expected {labels.tolist()}"
        return ""

    return complaint


@register("level_loss")
def level_loss() -> Iterator:
    """``f(m, n, c, kappa)``: loss of a pixel with m positives at 1, n negatives at c.

    With everything alike it is ln((m + n) / m), and ln 48 for 48 equal centroids.
    """
    yield (3, 12, 1.0, 16.0), math.log(5)
    yield (3, 12, 1.0, 4.0), math.log(5)
    yield (0, 47, 1.0, 16.0), math.log(48)
    yield (0, 47, 0.0, 4.0), math.log1p(47 * math.exp(-4))
    yield (2, 5, 0.5, 6.0), math.log1p(2.5 * math.exp(-3))


@register("modularity")
def modularity() -> Iterator:
    """``f(S, A)``: HSG's modularity loss of one image.

    One group costs 3/4 on any graph, K equal components told apart 1/2 + 1/(4 K).
    """
    draw = generator(0)
    graph = (torch.rand(12, 12, generator=draw) < 0.3).float().fill_diagonal_(1)
    yield (F.one_hot(torch.zeros(12, dtype=torch.int64), 3).float(), graph), 0.75
    for k in (2, 4):
        part = torch.arange(k).repeat_interleave(5)
        same = (part[:, None] == part).float()
        yield (F.one_hot(part).float(), same), 0.5 + 0.25 / k
    soft = torch.randn(12, 4, generator=draw).softmax(1)
    yield (soft, graph), _modularity(soft, graph)


def _modularity(soft: Tensor, graph: Tensor) -> float:
    """Pair by pair."""
    degree = graph.sum(1)
    w = 2 * float(degree.sum())
    chance = degree[:, None] * degree / w
    together = soft @ soft.T
    return 1 - float(((graph - chance) * together).sum()) / w
