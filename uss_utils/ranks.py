"""What the processes of one training exchange; alone, a process gets its own back.

They run one program with the same random draws, made for the whole batch. What is heavy
each does for its :func:`share` of the rows; what the loss needs of the others is
gathered. So the number of processes changes a result by no more than rounding, and a
checkpoint of some is continued by any number.

Collective calls: all processes make them, in the same order.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.autograd.function import once_differentiable


def world_size() -> int:
    """Processes that train together."""
    running = dist.is_available() and dist.is_initialized()
    return dist.get_world_size() if running else 1


def rank() -> int:
    """Number of this process, from 0."""
    return dist.get_rank() if world_size() > 1 else 0


def is_main() -> bool:
    """Whether this process is the one that writes and prints."""
    return rank() == 0


def share(n: int) -> slice:
    """The rows of a batch that are this process's: consecutive, nearly equally many.

    Args:
        n: rows of the whole batch.
    """
    each, more = divmod(n, world_size())
    first = rank() * each + min(rank(), more)
    return slice(first, first + each + (rank() < more))


def barrier() -> None:
    """Wait for all processes."""
    if world_size() > 1:
        dist.barrier()


def from_main(value: Any) -> Any:
    """The first process's value; small, and made of what JSON knows."""
    if world_size() == 1:
        return value
    found = [value]
    dist.broadcast_object_list(found, device=_place())
    return found[0]


def total(x: Tensor) -> Tensor:
    """Sum over all processes, without a gradient."""
    if world_size() == 1:
        return x.detach()
    place = _place() or x.device
    found = x.detach().to(place, copy=True)
    dist.all_reduce(found)
    return found.to(x.device)


def everywhere(true: bool) -> bool:
    """Whether it is so in all processes."""
    return all(counts(int(true)))


def alike(*modules: nn.Module) -> None:
    """Give all processes the first one's weights and buffers, in place.

    What every process computes for itself, on another kind of machine perhaps, differs
    by rounding.
    """
    if world_size() == 1:
        return
    for module in modules:
        for value in module.state_dict().values():
            shared = value.to(_place() or value.device).contiguous()
            dist.broadcast(shared, 0)
            value.copy_(shared)


def _place() -> torch.device | None:
    """Where NCCL wants what it exchanges; elsewhere anything goes."""
    return torch.device("cuda") if dist.get_backend() == "nccl" else None


def gather(x: Tensor) -> Tensor:
    """Rows of all processes in the order of their ranks; all have equally many.

    No gradient passes.
    """
    if world_size() == 1:
        return x
    own = x.to(_place() or x.device).contiguous()
    parts = [torch.empty_like(own) for _ in range(world_size())]
    dist.all_gather(parts, own)
    return torch.cat(parts).to(x.device)


def counts(n: int) -> list[int]:
    """The numbers that the processes give, in the order of their ranks.

    Args:
        n: this one's.
    """
    if world_size() == 1:
        return [n]
    return gather(torch.tensor([n])).tolist()


def gather_rows(x: Tensor) -> Tensor:
    """Rows of all processes in the order of their ranks, however many each has.

    The gradient is the sum over all processes of what each makes of these rows: with
    gradients that are averaged over processes afterwards, that of their mean loss.

    Args:
        x: shape (n, ...); only n may differ.
    """
    if world_size() == 1:
        return x
    return _GatherRows.apply(x, counts(len(x)))


class _GatherRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, counts: list[int]) -> Tensor:
        ctx.counts = counts
        padded = x.new_zeros(max(counts), *x.shape[1:])
        padded[: len(x)] = x
        whole = gather(padded).view(len(counts), *padded.shape)
        return torch.cat([part[:n] for part, n in zip(whole, counts, strict=True)])

    @staticmethod
    @once_differentiable
    def backward(ctx, upstream: Tensor) -> tuple[Tensor, None]:
        return total(upstream.contiguous()).split(ctx.counts)[rank()], None
