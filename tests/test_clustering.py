"""K-means and PCA."""

import pytest
import torch
import torch.nn.functional as F

from uss_utils import rows as rows_module
from uss_utils.clustering import PCA, assign, kmeans
from uss_utils.environment import generator

METRICS = ["cosine", "euclidean"]


def blobs(n=600, k=4, dim=6, spread=0.1, seed=0):
    """Rows around k well-separated centres, and which centre each belongs to."""
    g = generator(seed)
    centres = 3 * torch.eye(dim)[:k]
    names = torch.randint(0, k, (n,), generator=g)
    return centres[names] + spread * torch.randn(n, dim, generator=g), names


def noise(n=500, dim=5, seed=0):
    return torch.randn(n, dim, generator=generator(seed))


def same_grouping(a, b):
    """Equal up to the names of the groups."""
    pairs = torch.stack([a, b], 1).unique(dim=0)
    return len(pairs) == len(a.unique()) == len(b.unique())


def squared_distances(x, centroids, metric):
    if metric == "cosine":
        x, centroids = F.normalize(x, dim=1), F.normalize(centroids, dim=1)
    return torch.cdist(x.double(), centroids.double()).square()


def naive_lloyd(x, centroids, metric, updates):
    x = F.normalize(x, dim=1) if metric == "cosine" else x
    for _ in range(updates):
        names = squared_distances(x, centroids, metric).argmin(1)
        centroids = torch.stack([x[names == i].mean(0) for i in range(len(centroids))])
    if metric == "cosine":
        centroids = F.normalize(centroids, dim=1)
    return centroids


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("batch_size", [None, 64])
def test_planted_groups_are_found(metric, batch_size):
    x, names = blobs()
    found = kmeans(x, 4, metric=metric, batch_size=batch_size, generator=generator(0))
    assert same_grouping(found.assignment, names)


@pytest.mark.parametrize("metric", METRICS)
def test_equals_the_plain_algorithm(metric):
    x = noise()
    start = x[:6]
    found = kmeans(
        x, 6, metric=metric, init=start, iterations=7, tol=-1, generator=generator(0)
    )
    expected = naive_lloyd(x, start, metric, 7)
    torch.testing.assert_close(found.centroids, expected, atol=1e-5, rtol=1e-5)
    assert found.n_iter == 7 and len(found.history) == 8


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("batch_size", [None, 50])
def test_result_is_consistent(metric, batch_size):
    x = noise() + 2
    found = kmeans(x, 7, metric=metric, batch_size=batch_size, generator=generator(0))
    squared = squared_distances(x, found.centroids, metric)
    assert torch.equal(found.assignment, squared.argmin(1))
    assert torch.equal(assign(x, found.centroids, metric), found.assignment)
    assert found.inertia == pytest.approx(float(squared.amin(1).sum()), rel=1e-5)
    assert found.inertia == found.history[-1]
    if metric == "cosine":
        torch.testing.assert_close(found.centroids.norm(dim=1), torch.ones(7))


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("seed", range(3))
def test_inertia_never_rises_and_ends_at_a_fixed_point(metric, seed):
    x = noise(seed=seed)
    found = kmeans(
        x, 5, metric=metric, iterations=500, tol=0.0, generator=generator(seed)
    )
    history = torch.tensor(found.history, dtype=torch.float64)
    assert (history.diff() <= 1e-6 * history[0]).all()
    again = naive_lloyd(x, found.centroids, metric, 1)
    torch.testing.assert_close(again, found.centroids, atol=1e-3, rtol=1e-3)


def test_restarts_keep_the_best():
    x = noise(300, 4)
    g = generator(5)
    singles = [kmeans(x, 12, restarts=1, generator=g).inertia for _ in range(4)]
    best = kmeans(x, 12, restarts=4, generator=generator(5)).inertia
    assert best == min(singles) < max(singles)


@pytest.mark.parametrize("batch_size", [None, 64])
def test_repeatable_without_touching_global_generators(batch_size):
    x = noise()
    before = torch.get_rng_state()
    runs = [
        kmeans(x, 6, batch_size=batch_size, generator=generator(2)) for _ in range(2)
    ]
    assert torch.equal(runs[0].centroids, runs[1].centroids)
    assert torch.equal(before, torch.get_rng_state())


def test_cosine_ignores_lengths_and_euclidean_the_origin():
    x = noise()
    lengths = torch.rand(len(x), 1, generator=generator(1)) + 0.1
    plain = kmeans(x, 5, generator=generator(0))
    scaled = kmeans(x * lengths, 5, generator=generator(0))
    assert torch.equal(plain.assignment, scaled.assignment)
    # Far from the origin |x|^2 - 2 x c + |c|^2 loses all digits if taken as it is.
    near, names = blobs(spread=0.02)
    found = kmeans(near + 3e4, 4, metric="euclidean", generator=generator(0))
    assert same_grouping(found.assignment, names)
    assert same_grouping(assign(near + 3e4, found.centroids, "euclidean"), names)


def test_slices_do_not_matter(monkeypatch):
    x = noise()
    whole = kmeans(x, 5, generator=generator(0))
    monkeypatch.setattr(rows_module, "SLICE", 37)
    sliced = kmeans(x, 5, generator=generator(0))
    assert torch.equal(whole.assignment, sliced.assignment)
    torch.testing.assert_close(whole.centroids, sliced.centroids)


@pytest.mark.parametrize("metric", METRICS)
def test_a_cluster_that_empties_is_seeded_again(metric):
    x, names = blobs()
    # Two centroids share one group and one lies where no row will ever choose it.
    init = torch.stack(
        [x[names == 0][0], x[names == 0][1], x[names == 1][0], -50 * x.mean(0)]
    )
    lost = assign(x, init, metric)
    assert len(lost.unique()) == 3
    found = kmeans(x, 4, metric=metric, init=init, generator=generator(0))
    assert len(found.assignment.unique()) == 4
    stuck = naive_lloyd(x, init[:3], metric, 30)
    assert found.inertia < squared_distances(x, stuck, metric).amin(1).sum() / 2


@pytest.mark.parametrize("metric", METRICS)
def test_all_but_one_cluster_empty(metric):
    x, names = blobs()
    init = torch.cat([x[:1], -100 * x[:1].repeat(3, 1)])
    found = kmeans(x, 4, metric=metric, init=init, generator=generator(0))
    assert same_grouping(found.assignment, names)


def test_minibatches_seed_empty_clusters_again():
    x, names = blobs()
    init = torch.cat([x[:1], -100 * x[:1].repeat(3, 1)])
    found = kmeans(
        x, 4, init=init, batch_size=32, iterations=20, generator=generator(0)
    )
    assert len(found.assignment.unique()) == 4
    assert same_grouping(found.assignment, names)


def test_minibatches_come_close_to_all_rows():
    x = noise(4000, 8)
    full = kmeans(x, 10, metric="euclidean", generator=generator(0))
    mini = kmeans(
        x, 10, metric="euclidean", batch_size=256, iterations=100,
        generator=generator(0),
    )  # fmt: skip
    assert mini.inertia < 1.05 * full.inertia
    assert mini.n_iter == 100


@pytest.mark.parametrize("metric", METRICS)
def test_fewer_distinct_rows_than_clusters_warns(metric):
    x = torch.eye(4)[:3].repeat(50, 1)
    with pytest.warns(UserWarning, match="only 3 of 5 clusters hold rows"):
        found = kmeans(x, 5, metric=metric, generator=generator(0))
    assert found.inertia == pytest.approx(0, abs=1e-4)
    assert found.centroids.isfinite().all()
    assert same_grouping(found.assignment, torch.arange(3).repeat(50))


def test_as_many_clusters_as_rows():
    found = kmeans(noise(6), 6, metric="euclidean", generator=generator(0))
    assert sorted(found.assignment.tolist()) == list(range(6))
    assert found.inertia == pytest.approx(0, abs=1e-4)


def test_half_precision_rows_are_computed_in_single():
    x, names = blobs()
    found = kmeans(x.half(), 4, generator=generator(0))
    assert found.centroids.dtype == torch.float32
    assert same_grouping(found.assignment, names)


def test_bad_input_is_explained():
    x, g = noise(20), generator(0)
    with pytest.raises(ValueError, match="21 clusters were asked for, .* only 20 rows"):
        kmeans(x, 21, generator=g)
    broken = x.clone()
    broken[3, 1], broken[7, 0] = torch.nan, torch.inf
    with pytest.raises(ValueError, match="2 of 20 rows hold NaN or infinite values"):
        kmeans(broken, 3, generator=g)
    with pytest.raises(ValueError, match="2 of 20 rows hold NaN"):
        PCA.fit(broken, 2)
    with pytest.raises(ValueError, match="unknown metric 'dot'; known: cosine, eucli"):
        kmeans(x, 3, metric="dot", generator=g)
    with pytest.raises(ValueError, match="unknown metric"):
        assign(x, x, "dot")
    with pytest.raises(ValueError, match=r"expected \(N, D\) and \(K, D\)"):
        assign(x, x[:, :3])
    with pytest.raises(ValueError, match="rows of shape"):
        kmeans(torch.zeros(2, 5, 4, 4), 3, generator=g)
    with pytest.raises(ValueError, match="k is 0, expected at least 1"):
        kmeans(x, 0, generator=g)
    with pytest.raises(ValueError, match="iterations is -1"):
        kmeans(x, 2, iterations=-1, generator=g)
    with pytest.raises(ValueError, match="init has shape"):
        kmeans(x, 3, init=x[:2], generator=g)


def test_large_finite_rows_are_not_called_infinite():
    x = torch.full((8, 4), 3e38)
    x[::2] *= -1
    rows_module.check_finite(x)
    rows_module.check_finite(x.abs())  # the sum overflows, the entries do not


def stretched(n=300, dim=6, seed=3):
    g = generator(seed)
    mixing = torch.linalg.qr(torch.randn(dim, dim, generator=g)).Q
    lengths = torch.tensor([8.0, 5, 3, 2, 1, 0.5])
    return torch.randn(n, dim, generator=g) * lengths @ mixing + 10


def test_pca_agrees_with_the_singular_value_decomposition():
    x = stretched()
    pca = PCA.fit(x, 4)
    centred = x.double() - x.double().mean(0)
    _, values, vectors = torch.linalg.svd(centred, full_matrices=False)
    agreement = (pca.components.double() @ vectors[:4].T).abs()
    torch.testing.assert_close(agreement, torch.eye(4).double(), atol=1e-4, rtol=0)
    share = values.square() / values.square().sum()
    torch.testing.assert_close(pca.explained.double(), share[:4], atol=1e-5, rtol=0)
    torch.testing.assert_close(
        pca.transform(x).double().std(0), values[:4] / (len(x) - 1) ** 0.5, rtol=1e-4,
        atol=0,
    )  # fmt: skip


def test_pca_signs_depend_on_the_rows_not_on_their_order():
    x = stretched()
    shuffled = x[torch.randperm(len(x), generator=generator(0))]
    a, b = PCA.fit(x, 6), PCA.fit(shuffled, 6)
    torch.testing.assert_close(a.components, b.components, atol=1e-4, rtol=0)
    largest = a.components.abs().argmax(1, keepdim=True)
    assert (a.components.gather(1, largest) > 0).all()


@pytest.mark.parametrize("sizes", [[300], [1, 99, 0, 200], [100] * 3])
def test_pca_of_batches_is_that_of_all_rows(sizes):
    x = stretched() + 1000  # a plain sum of squares in float32 would lose the spread
    whole, parts = PCA.fit(x, 4), PCA.fit_batches(iter(x.split(sizes)), 4)
    for name in ("mean", "components", "explained"):
        torch.testing.assert_close(
            getattr(parts, name), getattr(whole, name), atol=1e-5, rtol=1e-6
        )
    assert len(PCA.fit_batches([x]).components) == 6  # as many as the rows span
    with pytest.raises(ValueError, match=r"shape \(N, 6\), got \(5, 3\)"):
        PCA.fit_batches([x, torch.zeros(5, 3)])
    with pytest.raises(ValueError, match="at least two rows"):
        PCA.fit_batches([])


def test_whitened_coordinates_are_uncorrelated_with_unit_variance():
    x = stretched()
    white = PCA.fit(x, 6, whiten=True).transform(x)
    torch.testing.assert_close(white.T.cov(), torch.eye(6), atol=1e-4, rtol=0)
    torch.testing.assert_close(white.mean(0), torch.zeros(6), atol=1e-4, rtol=0)


def test_all_components_keep_distances():
    x = stretched()
    coordinates = PCA.fit(x, 6).transform(x.view(3, 100, 6))
    assert coordinates.shape == (3, 100, 6)
    torch.testing.assert_close(
        torch.pdist(coordinates.flatten(0, 1)), torch.pdist(x), atol=1e-3, rtol=1e-4
    )


def test_pca_refuses_more_components_than_the_rows_span():
    x = stretched()
    flat = torch.cat([x[:, :4], x[:, :1]], 1)
    assert len(PCA.fit(flat, 4).components) == 4
    with pytest.raises(ValueError, match=r"span 4; choose 1\.\.4"):
        PCA.fit(flat, 5)
    with pytest.raises(ValueError, match="asked for 0 components"):
        PCA.fit(x, 0)
    with pytest.raises(ValueError, match="span 2"):
        PCA.fit(x[:3], 3)
    with pytest.raises(ValueError, match="at least two rows"):
        PCA.fit(x[:1], 1)
