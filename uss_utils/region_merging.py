"""Merging neighbouring regions two by two, the least dissimilar ones first.

The loop behind :func:`uss_utils.regions.ultrametric_tree`, which says what for.
"""

import heapq
from collections.abc import Sequence

import numpy as np

CRUMB = 0.01  # share of the image below which regions merge early
COLOUR_GAIN = 3.0


def merge_neighbours(
    area: np.ndarray,
    colours: Sequence[np.ndarray],
    borders: tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray],
) -> np.ndarray:
    """Merge regions until one is left.

    The dissimilarity of two regions is

        min(1, sqrt(smaller area / 1% of the image))
        * (mean strength along the border + min(1, 3 * colour difference)) / 2.

    Args:
        area: pixels of every region, shape (n,).
        colours: mean of every channel, shape (n,) each.
        borders: of neighbours: one, the other (one < other, each pair once), the
            strength summed along their border, and its length; shape (m,) each. All
            regions hang together.

    Returns:
        float64 (n-1, 3): the two nodes that merge, and the height; see
        :class:`uss_utils.regions.Tree`.
    """
    merges = _Merging(area, colours, borders).run()
    return np.array(merges, np.float64).reshape(-1, 3)


class _Merging:
    """Greedy merging with a heap, on plain lists: a step handles a few numbers.

    A region keeps the place of its part with more neighbours. The heap holds the best
    neighbour of every region as it was when the region last changed; an entry whose
    neighbour has changed since is a reason to look again. No pair is missed: the one of
    two regions that changed last has an entry at least as good.
    """

    def __init__(self, area: np.ndarray, colours: Sequence[np.ndarray], borders: tuple):
        self.full = CRUMB * float(area.sum())
        self.area = area.astype(float).tolist()
        self.colours = [channel.tolist() for channel in colours]
        self.links: list[dict[int, list]] = [{} for _ in self.area]
        for a, b, *border in zip(*(part.tolist() for part in borders), strict=True):
            self.links[a][b] = self.links[b][a] = border
        self.node = list(range(len(self.area)))
        self.changes = [0] * len(self.area)  # how often; -1: merged into another

    def run(self) -> list[tuple[int, int, float]]:
        """All merges: two nodes and the height."""
        heap = [self.nearest(place) for place in range(len(self.area)) if self.links[0]]
        heapq.heapify(heap)
        merges, height, changes = [], 0.0, self.changes
        for new in range(len(self.area), 2 * len(self.area) - 1):
            while True:
                cost, one, two, when, when_two = heap[0]
                if changes[one] != when:
                    heapq.heappop(heap)
                elif changes[two] != when_two:
                    heapq.heapreplace(heap, self.nearest(one))
                else:
                    break
            height = max(height, cost)
            pair = sorted((self.node[one], self.node[two]))
            merges.append((*pair, height))
            kept = self.merge(one, two)
            self.node[kept] = new
            if self.links[kept]:
                heapq.heappush(heap, self.nearest(kept))
        return merges

    def nearest(self, place: int) -> tuple[float, int, int, int, int]:
        """Heap entry: smallest dissimilarity, both places and their states."""
        area, full, (first, second, third) = self.area, self.full, self.colours
        a, b, c = first[place], second[place], third[place]
        own = min(area[place], full)
        best, found = 2.0, -1
        for other, (strength, length) in self.links[place].items():
            colour = (
                abs(a - first[other]) + abs(b - second[other]) + abs(c - third[other])
            )
            cost = strength / length + min(1.0, COLOUR_GAIN * colour)
            cost *= 0.5 * (min(own, area[other]) / full) ** 0.5
            if cost < best:
                best, found = cost, other
        return best, place, found, self.changes[place], self.changes[found]

    def merge(self, one: int, two: int) -> int:
        """Join two regions; returns the place that goes on."""
        if len(self.links[one]) < len(self.links[two]):
            one, two = two, one
        links, area = self.links, self.area
        kept = links[one]
        for other, border in links[two].items():
            del links[other][two]
            if other == one:
                continue
            there = kept.get(other)
            if there is None:
                kept[other] = links[other][one] = border
            else:
                there[0] += border[0]
                there[1] += border[1]
        total = area[one] + area[two]
        for channel in self.colours:
            channel[one] += (channel[two] - channel[one]) * (area[two] / total)
        area[one] = total
        links[two] = {}
        self.changes[one] += 1
        self.changes[two] = -1
        return one
