"""Exercises of ``08_maskcontrast``."""

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from uss_utils.environment import generator
from uss_utils.exercises import register


@register("object_prototypes")
def object_prototypes() -> Iterator:
    """``f(embedding, ids, n)``: unit mean of each object's unit pixels, or zeros."""
    draw = generator(0)
    for n, shape in ((1, (2, 3, 2, 3)), (3, (4, 6, 5, 7))):
        embedding = torch.randn(shape, generator=draw)
        size = (shape[0], *shape[2:])
        ids = torch.randint(n + 1, size, generator=draw)
        ids[0][ids[0] == n] = 0  # one object is missing
        unit, rows = F.normalize(embedding, dim=1), []
        for image, mask in zip(unit, ids, strict=True):
            for number in range(1, n + 1):
                rows.append(F.normalize(image[:, mask == number].sum(1), dim=0))
        yield (embedding, ids, n), torch.stack(rows)


@register("balanced_gradient")
def balanced_gradient() -> Iterator:
    """``f(s, mask)``: derivative of the balanced cross-entropy by the logits."""
    draw = generator(0)
    for shape, share in (((4,), 0.5), ((3, 5, 6), 0.2), ((2, 4, 4), 0.9)):
        s = torch.randn(shape, generator=draw, requires_grad=True)
        mask = torch.rand(shape, generator=draw) < share
        mask.view(-1)[:2] = torch.tensor([True, False])
        w = 1 - mask.float().mean()
        loss = w * F.softplus(-s[mask]).sum() + (1 - w) * F.softplus(s[~mask]).sum()
        (expected,) = torch.autograd.grad(loss / s.numel(), s)
        yield (s.detach(), mask), expected


@register("second_eigenvector")
def second_eigenvector() -> Iterator:
    """``f(W)``: unit vector y of the second smallest ``(D - W) y = lambda D y``."""
    draw = generator(0)
    for n in (12, 40):
        kind = (torch.arange(n) % 3 == 0).long()
        rows = torch.eye(2, 6)[kind] + 0.5 * torch.randn(n, 6, generator=draw)
        unit = F.normalize(rows, dim=1)
        graph = (unit @ unit.T > 0.4).float().clamp(min=1e-2)
        yield (graph,), _parallel_to(_second(graph))


def _second(graph: Tensor) -> Tensor:
    """By a dense solver."""
    root = graph.double().sum(1).rsqrt()
    vectors = torch.linalg.eigh(root[:, None] * graph.double() * root).eigenvectors
    return F.normalize(root * vectors[:, -2], dim=0).float()


def _parallel_to(expected: Tensor) -> Callable[[object], str]:
    """Judges a vector whose sign means nothing."""

    def complaint(got: object) -> str:
        if not isinstance(got, Tensor) or got.shape != expected.shape:
            return f"expected a tensor of shape {tuple(expected.shape)}"
        length = float(got.norm())
        if abs(length - 1) > 1e-3:
            return f"expected a vector of length 1, got length {length:.3f}"
        cosine = abs(float(got.float() @ expected))
        if cosine > 1 - 1e-4:
            return ""
        return f"|cosine| with the right vector is {cosine:.3f} instead of 1"

    return complaint
