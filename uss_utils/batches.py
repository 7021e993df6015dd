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
    """Fetches this process's share of the batch of a step.

    Args:
        data: has ``draw(indices, generator)`` or ``batch(indices)``, or is called with
            the indices itself.
        batch_size: items per step, over all processes.
        seed: of the order.
        drop_last: leave out an epoch's incomplete last batch.
        rank: number of this process.
        workers: number of processes; each takes every ``workers``-th item.

    Raises:
        ValueError: the batch does not divide over the processes.
    """

    def __init__(
        self,
        data: Any,
        batch_size: int,
        seed: int,
        drop_last: bool,
        rank: int = 0,
        workers: int = 1,
    ):
        if batch_size % workers:
            raise ValueError(
                f"batch_size {batch_size} does not divide over {workers} processes"
            )
        self.data, self.seed, self.rank = data, seed, rank
        self.order = partial(
            batch_indices,
            n=len(data),
            batch_size=batch_size,
            seed=seed,
            drop_last=drop_last,
        )
        self.per_epoch = _batches_per_epoch(len(data), batch_size, drop_last)
        self.share = slice(rank, None, workers)

    def __call__(self, index: int) -> tuple[int, Tensor, Any]:
        """Epoch, indices and batch of step ``index``."""
        items = self.order(index)[self.share]
        return index // self.per_epoch, items, self._load(index, items)

    def _load(self, index: int, items: Tensor) -> Any:
        if hasattr(self.data, "draw"):
            # A generator of the step's own: fetching ahead and resuming change nothing.
            own = generator(mix_seed(self.seed, 3, index, self.rank))
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
    read: Callable[[range], Any], n: int, batch_size: int, start: int = 0
) -> Iterator[tuple[range, Any]]:
    """All items, batch by batch; the next one is read while one is in use.

    Args:
        read: called with consecutive items, in one background thread.
        n: number of items.
        batch_size: items per batch; the last one may be smaller.
        start: first item.

    Returns:
        Pairs of the items and what ``read`` returned for them.

    Raises:
        ValueError: the batch size is below 1 (raised by the first batch).
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    parts = [range(i, min(i + batch_size, n)) for i in range(start, n, batch_size)]
    with closing(ahead(lambda i: read(parts[i]), 0, len(parts), threads=1)) as coming:
        yield from zip(parts, coming, strict=True)
