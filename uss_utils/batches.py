"""Batches of data: shuffled for training, one after another for everything else."""

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from functools import lru_cache, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from uss_utils import ranks
from uss_utils.environment import generator


def batch_indices(
    step: int, n: int, batch_size: int, seed: int = 0, drop_last: bool = False
) -> Tensor:
    """Items of a batch: a pure function of seed and step.

    Every epoch visits all ``n`` items once, in an order of its own.

    Args:
        step: from 0, over all epochs.
        n: number of items.
        batch_size: items per batch, at most ``n``.
        seed: of the order.
        drop_last: leave out an epoch's incomplete last batch.

    Returns:
        int64, shape (batch_size,), or fewer in the last batch of an epoch.
    """
    epoch, place = divmod(step, _batches_per_epoch(n, batch_size, drop_last))
    order = _permutation(n, seed, epoch)
    return order[place * batch_size : (place + 1) * batch_size].clone()


class Batches:
    """Fetches the batch of a step, in one part or several.

    The order, and what is drawn while fetching, are the same in all processes.

    Args:
        data: has ``draw(indices, generator)`` or ``batch(indices)``, or is called with
            the indices itself.
        batch_size: items per step, over all processes and parts.
        seed: of the order.
        drop_last: leave out an epoch's incomplete last batch.
        parts: of a batch, nearly equal; fewer where one would have a single item, or
            fewer items than there are processes.
        workers: number of processes.

    Raises:
        ValueError: a batch has fewer items than there are processes.
    """

    def __init__(
        self,
        data: Any,
        batch_size: int,
        seed: int,
        drop_last: bool,
        parts: int = 1,
        workers: int = 1,
    ):
        rest = 0 if drop_last else len(data) % batch_size
        if min(batch_size, rest or batch_size) < workers:
            raise ValueError(
                f"a batch of {rest or batch_size} images cannot be shared by {workers} "
                "processes; use fewer processes or another batch_size"
            )
        self.data, self.seed = data, seed
        self.parts, self.workers = parts, workers
        self.order = partial(
            batch_indices,
            n=len(data),
            batch_size=batch_size,
            seed=seed,
            drop_last=drop_last,
        )
        self.per_epoch = _batches_per_epoch(len(data), batch_size, drop_last)

    def __call__(self, index: int) -> tuple[int, list[tuple[Tensor, Any]]]:
        """Epoch, and indices and content of every part, of step ``index``."""
        items = self.order(index)
        most = max(1, len(items) // max(2, self.workers))
        parts = items.tensor_split(min(self.parts, most))
        found = [(part, self._load(index, k, part)) for k, part in enumerate(parts)]
        return index // self.per_epoch, found

    def _load(self, index: int, part: int, items: Tensor) -> Any:
        if hasattr(self.data, "draw"):
            # A generator of the step's own: fetching ahead and resuming change nothing.
            own = generator(mix_seed(self.seed, 3, index, part))
            return self.data.draw(items, own)
        return getattr(self.data, "batch", self.data)(items)


def _batches_per_epoch(n: int, batch_size: int, drop_last: bool) -> int:
    return n // batch_size if drop_last else -(-n // batch_size)


# An epoch's order is drawn once; two are kept as prefetching looks into the next epoch.
@lru_cache(maxsize=2)
def _permutation(n: int, seed: int, epoch: int) -> Tensor:
    return torch.randperm(n, generator=generator(mix_seed(seed, 0, epoch)))


def mix_seed(*numbers: int) -> int:
    """A seed of 32 bits; differing tuples of one length give unrelated ones."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


def ahead(
    fetch: Callable[[int], Any], start: int, stop: int, threads: int
) -> Iterator[Any]:
    """``fetch(i)`` for i from start to below stop, in order.

    Args:
        fetch: called in background threads, if there are any.
        start: first i.
        stop: i after the last.
        threads: number of threads, and of results fetched before they are asked for.
    """
    if not threads:
        yield from map(fetch, range(start, stop))
        return
    pool = ThreadPoolExecutor(threads)
    try:
        waiting: deque[Future] = deque()
        for index in range(start, stop):
            waiting.append(pool.submit(fetch, index))
            if len(waiting) > threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def in_order(
    read: Callable[[range], Any],
    n: int,
    batch_size: int,
    start: int = 0,
    shared: bool = False,
) -> Iterator[tuple[range, Any]]:
    """All items, batch by batch; the next one is read while one is in use.

    Args:
        read: called with consecutive items, in one background thread.
        n: number of items.
        batch_size: items per batch; the last one may be smaller.
        start: first item.
        shared: leave out the batches of other processes; each takes every n-th.

    Returns:
        Pairs of the items and what ``read`` returned for them.

    Raises:
        ValueError: the batch size is below 1 (raised by the first batch).
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    parts = [range(i, min(i + batch_size, n)) for i in range(start, n, batch_size)]
    if shared:
        parts = parts[ranks.rank() :: ranks.world_size()]
    with closing(ahead(lambda i: read(parts[i]), 0, len(parts), threads=1)) as coming:
        yield from zip(parts, coming, strict=True)
