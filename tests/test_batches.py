import threading
import time

import pytest
import torch

from uss_utils.batches import Batches, ahead, batch_indices, in_order, mix_seed


@pytest.mark.parametrize(
    "n, size, drop", [(10, 4, False), (10, 4, True), (8, 8, False)]
)
def test_every_epoch_is_a_permutation(n, size, drop):
    per_epoch = n // size if drop else -(-n // size)
    for epoch in range(3):
        steps = range(epoch * per_epoch, (epoch + 1) * per_epoch)
        parts = [batch_indices(s, n, size, 7, drop) for s in steps]
        seen = torch.cat(parts).tolist()
        assert len(seen) == len(set(seen)) == (per_epoch * size if drop else n)
        assert all(len(part) == size for part in parts[:-1])


def test_order_depends_on_seed_and_epoch_only():
    first = [batch_indices(s, 20, 5, seed=1).tolist() for s in range(8)]
    again = [batch_indices(s, 20, 5, seed=1).tolist() for s in reversed(range(8))]
    assert first == again[::-1]
    assert first[:4] != first[4:]
    assert first != [batch_indices(s, 20, 5, seed=2).tolist() for s in range(8)]


def test_changing_a_batch_does_not_change_the_order():
    before = batch_indices(0, 6, 6)
    batch_indices(0, 6, 6).zero_()
    assert torch.equal(batch_indices(0, 6, 6), before)


class Drawn:
    """Items with something random beside them."""

    def __len__(self):
        return 13

    def draw(self, indices, generator):
        return indices * 10, torch.rand(len(indices), generator=generator)


@pytest.mark.parametrize("parts", [1, 2, 3])
def test_parts_make_up_the_batch(parts):
    batches = Batches(Drawn(), 4, seed=3, drop_last=False, parts=parts)
    for step in range(8):
        whole = batch_indices(step, 13, 4, seed=3)
        epoch, found = batches(step)
        assert epoch == step // 4
        assert len(found) == min(parts, max(1, len(whole) // 2))
        sizes = [len(items) for items, _ in found]
        assert max(sizes) - min(sizes) <= 1
        assert torch.equal(torch.cat([items for items, _ in found]), whole)
        for items, (tens, _) in found:
            assert torch.equal(tens, items * 10)


def test_parts_and_steps_draw_differently():
    batches = Batches(Drawn(), 4, seed=3, drop_last=True, parts=2)
    draws = [drawn[0] for step in (0, 1) for _, (_, drawn) in batches(step)[1]]
    assert len({float(value) for value in draws}) == 4


def test_all_processes_fetch_alike():
    alone, one_of_two = (
        Batches(Drawn(), 4, seed=3, drop_last=True, workers=n) for n in (1, 2)
    )
    for mine, other in zip(alone(5)[1], one_of_two(5)[1], strict=True):
        assert torch.equal(mine[0], other[0])
        assert torch.equal(mine[1][1], other[1][1])


@pytest.mark.parametrize("batch_size, drop_last", [(3, True), (4, False)])
def test_batch_that_cannot_be_shared(batch_size, drop_last):
    few = 3 if drop_last else 1
    with pytest.raises(ValueError, match=f"a batch of {few} images .* 4 processes"):
        Batches(torch.arange(13), batch_size, 0, drop_last, workers=4)


@pytest.mark.parametrize("threads", [0, 1, 3])
def test_ahead_keeps_the_order(threads):
    def fetch(index):
        time.sleep(0.002 * (3 - index % 4))  # later ones are faster
        return index, threading.current_thread() is threading.main_thread()

    results = list(ahead(fetch, 2, 12, threads))
    assert [index for index, _ in results] == list(range(2, 12))
    assert {in_main for _, in_main in results} == {threads == 0}


def test_ahead_fetches_so_many_and_stops_when_closed():
    fetched = []
    results = ahead(fetched.append, 0, 1000, 2)
    next(results)
    results.close()
    assert len(fetched) <= 3


@pytest.mark.parametrize("start", [0, 4, 10])
def test_in_order_gives_every_item_once(start):
    found = list(in_order(lambda items: [10 * i for i in items], 10, 4, start))
    assert [i for items, _ in found for i in items] == list(range(start, 10))
    assert [v for _, values in found for v in values] == list(
        range(10 * start, 100, 10)
    )
    assert all(len(items) == 4 for items, _ in found[:-1])


def test_in_order_reads_one_batch_ahead_and_stops_when_closed():
    asked = []
    results = in_order(asked.append, 100, 1)
    next(results)
    results.close()
    assert len(asked) <= 2
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        next(in_order(asked.append, 100, 0))


def test_seeds_of_differing_numbers_differ():
    seeds = {mix_seed(a, b, c) for a in range(20) for b in range(3) for c in range(20)}
    assert len(seeds) == 1200
    assert all(0 <= seed < 2**32 for seed in seeds)
