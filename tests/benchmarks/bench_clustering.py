"""Speed of k-means and PCA on one thread.

Run: ``python tests/benchmarks/bench_clustering.py``
"""

import torch
from timing import cpu_seconds, show

from uss_utils.clustering import PCA, assign, kmeans
from uss_utils.environment import generator


def features(n: int, dim: int) -> torch.Tensor:
    """Rows around more centres than there will be clusters, like image features."""
    g = generator(0)
    centres = 0.5 * torch.randn(60, dim, generator=g)
    names = torch.randint(60, (n,), generator=g)
    return centres[names] + torch.randn(n, dim, generator=g)


def main():
    torch.set_num_threads(1)
    x = features(200_000, 192)
    noise = torch.randn(200_000, 192, generator=generator(1))
    setting = "k-means 200000 x 192, K 27, 3 restarts"

    def run(rows, **options):
        return lambda: kmeans(rows, 27, generator=generator(0), **options)

    show(f"{setting}, cosine", cpu_seconds(run(x), 1), 10)
    show(f"{setting}, euclidean", cpu_seconds(run(x, metric="euclidean"), 1), 10)
    show(f"{setting}, cosine, pure noise", cpu_seconds(run(noise), 1), 10)
    show(f"{setting}, mini-batches of 4096", cpu_seconds(run(x, batch_size=4096), 1))
    centroids = x[:27]
    show("assign 200000 x 192, K 27", cpu_seconds(lambda: assign(x, centroids), 3))
    show(
        "whitening PCA 200000 x 192 to 32", cpu_seconds(lambda: PCA.fit(x, 32, True), 3)
    )


if __name__ == "__main__":
    main()
