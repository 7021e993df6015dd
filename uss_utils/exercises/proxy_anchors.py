"""Exercises of ``06_proxy_anchors``."""

from collections.abc import Iterator

import torch
import torch.nn.functional as F

from uss_utils.environment import generator
from uss_utils.exercises import register


@register("relocate")
def relocate() -> Iterator:
    """``f(x, positive)``: directions of the mean of each anchor's positives."""
    draw = generator(0)
    for n, width, anchors in ((6, 2, 1), (40, 5, 7)):
        x = F.normalize(torch.randn(n, width, generator=draw), dim=1)
        positive = torch.rand(anchors, n, generator=draw) < 0.4
        positive[:, 0] = True  # a proxy always has a positive
        rows = [F.normalize(x[mask].mean(0), dim=0) for mask in positive]
        yield (x, positive), torch.stack(rows)


@register("closing_way")
def closing_way() -> Iterator:
    """``f(phi0, psi0, sigma_pos, sigma_amb)``: the path length that closes the zone."""
    yield (0.55, 0.2, 3.0, 3.0), 0.525
    yield (0.55, 0.15, 3.0, 4.0), 0.4 * 12 / 7
    yield (0.6, 0.2, 3.0, 2.0), 0.48
    yield (0.6, 0.2, 3.0, 3.0), 0.6
    yield (0.55, 0.15, 5.0, 3.0), 0.75


@register("loss_gradient")
def loss_gradient() -> Iterator:
    """``f(u, positive, competes)``: gradient of the loss with respect to ``u``."""
    draw = generator(0)
    for anchors, n in ((1, 5), (4, 9)):
        u = torch.randn(anchors, n, generator=draw, requires_grad=True)
        positive = torch.rand(anchors, n, generator=draw) < 0.3
        positive[0, :2] = True
        competes = positive | (torch.rand(anchors, n, generator=draw) < 0.5)
        if anchors > 1:
            positive[1] = False  # no positive: no part of the mean
        loss, valid = torch.zeros(()), positive.any(1)
        for i in torch.nonzero(valid)[:, 0]:
            mean = u[i, positive[i]].mean()
            loss = loss - (mean - u[i, competes[i]].logsumexp(0)) / valid.sum()
        (expected,) = torch.autograd.grad(loss, u)
        yield (u.detach(), positive, competes), expected
