"""k-means and PCA."""

import torch

from tests.benchmarks.__main__ import alone
from tests.benchmarks.cases import Case
from uss_utils.clustering import PCA, assign, kmeans
from uss_utils.environment import generator

N, DIM, K = 200_000, 192, 27


def features(blobs: bool = True) -> torch.Tensor:
    """Rows around more centres than there will be clusters, like image features."""
    g = generator(0)
    noise = torch.randn(N, DIM, generator=g)
    if not blobs:
        return noise
    centres = 0.5 * torch.randn(60, DIM, generator=g)
    return noise.add_(centres[torch.randint(60, (N,), generator=g)])


def clusters(options: dict, blobs: bool = True):
    rows = features(blobs)
    return lambda: kmeans(rows, K, generator=generator(0), **options)


def nearest():
    rows = features()
    centroids = rows[:K].clone()
    return lambda: assign(rows, centroids)


def whitening():
    rows = features()
    return lambda: PCA.fit(rows, 32, True)


SIZE = "200 000 x 192, K 27"
ONCE = {"repeats": 1, "target": 10}
CASES = (
    Case("k-means, 3 starts, cosine", SIZE, clusters, ({},), **ONCE),
    Case(
        "k-means, 3 starts, euclidean",
        SIZE,
        clusters,
        ({"metric": "euclidean"},),
        **ONCE,
    ),
    Case("k-means, 3 starts, of pure noise", SIZE, clusters, ({}, False), **ONCE),
    Case(
        "k-means, batches of 4096", SIZE, clusters, ({"batch_size": 4096},), repeats=1
    ),
    Case("rows to their centroids", SIZE, nearest),
    Case("whitening PCA to 32", "200 000 x 192", whitening, repeats=3),
)

if __name__ == "__main__":
    raise SystemExit(alone("clustering"))
