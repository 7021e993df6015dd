"""The graph of patches and its second eigenvector."""

import numpy as np
import pytest
import scipy.linalg
import torch

from uss_utils.environment import generator
from uss_utils.normalised_cut import affinity, ncut_eigenvector


def noisy(b=3, n=60, objects=(9, 14), seed=0):
    """Features of patches that belong to objects or to what surrounds them."""
    rng = generator(seed)
    centres = torch.randn(len(objects) + 1, 24, generator=rng)
    kind = torch.zeros(n, dtype=torch.int64)
    start = 5
    for number, size in enumerate(objects, 1):
        kind[start : start + size] = number
        start += size + 3
    return centres[kind] + 0.7 * torch.randn(b, n, 24, generator=rng)


def solved(graph):
    """The definition itself, by a generalised solver in float64."""
    w = graph.double().numpy()
    values, vectors = scipy.linalg.eigh(np.diag(w.sum(1)) - w, np.diag(w.sum(1)))
    y = vectors[:, 1] / np.linalg.norm(vectors[:, 1])
    return torch.from_numpy(y * np.sign(y[np.abs(y).argmax()])), values[1]


# ------------------------------------------------------------------------- the graph


def test_edges_are_strong_above_tau():
    features = torch.tensor([[2.0, 0.0], [0.0, 3.0], [1.0, 1.0], [-1.0, 0.0]])
    found = affinity(features, 0.5, 1e-3)
    alike = torch.tensor([[1, 0, 1, 0], [0, 1, 1, 0], [1, 1, 1, 0], [0, 0, 0, 1]])
    assert torch.equal(found, alike.float().clamp(min=1e-3))
    assert torch.equal(affinity(7 * features[None], 0.5, 1e-3)[0], found)


def test_a_patch_without_direction_is_joined_to_itself_alone():
    features = torch.tensor([[0.0, 0.0], [1.0, 0.0]])
    assert torch.equal(affinity(features, 0.2, 0.1), torch.eye(2).clamp(min=0.1))


@pytest.mark.parametrize(
    ("features", "options", "message"),
    [
        (torch.ones(3), {}, r"shape \(N, C\) or \(B, N, C\).* got \(3,\)"),
        (torch.ones(2, 0, 3), {}, "none of them 0"),
        (torch.ones(2, 3), {"tau": 1.0}, r"tau=1.0 has to lie in \[-1, 1\)"),
        (torch.ones(2, 3), {"eps": 0.0}, r"eps=0.0 in \(0, 1\)"),
        (torch.full((2, 3), torch.nan), {}, "NaN or infinite"),
    ],
)
def test_graphs_of_wrong_input(features, options, message):
    with pytest.raises(ValueError, match=message):
        affinity(features, **options)


# -------------------------------------------------------------------- the eigenvector


@pytest.mark.parametrize("method", ["auto", "power", "eigh"])
@pytest.mark.parametrize("tau", [0.0, 0.2, 0.4])
def test_eigenpairs_solve_the_definition(method, tau):
    graph = affinity(noisy(), tau)
    for precise in (False, True):
        used = graph.double() if precise else graph
        y, value = ncut_eigenvector(used, method)
        assert y.shape == (3, 60) and value.shape == (3,) and y.dtype == used.dtype
        # Many pieces at tau 0.4: single precision cannot tell their vectors apart.
        hopeless = method == "power" and tau == 0.4 and not precise
        for own, found, eigenvalue in zip(graph, y, value, strict=True):
            expected, smallest = solved(own)
            assert hopeless or torch.allclose(found.double(), expected, atol=1e-4)
            assert abs(float(eigenvalue) - smallest) < 1e-5


def test_eigenvalues_that_are_nearly_equal():
    """Pieces that only weak edges join: the gap is as small as these."""
    kind = torch.tensor([0] * 30 + [1] * 7 + [2] * 12 + [3] * 20)
    graph = affinity(torch.eye(4)[kind])
    expected, _ = solved(graph)
    for method in ("auto", "eigh"):
        y, _ = ncut_eigenvector(graph, method)
        assert torch.allclose(y.double(), expected, atol=1e-6)
    y, _ = ncut_eigenvector(graph.double(), "power")
    assert torch.allclose(y, expected, atol=1e-6)


def test_where_powers_do_not_settle_the_dense_solver_steps_in():
    graph = affinity(noisy())
    exact, _ = ncut_eigenvector(graph, "eigh")
    few, _ = ncut_eigenvector(graph, "power", steps=1, tol=1e-12)
    assert not torch.allclose(few, exact, atol=1e-5)
    auto, _ = ncut_eigenvector(graph, "auto", steps=1, tol=1e-12)
    assert torch.allclose(auto, exact, atol=1e-6)


def test_a_batch_is_its_images_one_by_one():
    graph = affinity(torch.cat([noisy(seed=s, objects=(4 + s,)) for s in range(4)]))
    y, value = ncut_eigenvector(graph)
    for own, vector, eigenvalue in zip(graph, y, value, strict=True):
        alone, single = ncut_eigenvector(own)
        assert alone.shape == (60,) and single.shape == ()
        assert torch.allclose(alone, vector, atol=1e-5)
        assert torch.allclose(single, eigenvalue, atol=1e-6)


def test_order_of_the_patches_does_not_matter():
    features, order = noisy(1)[0], torch.randperm(60, generator=generator(1))
    y, _ = ncut_eigenvector(affinity(features))
    shuffled, _ = ncut_eigenvector(affinity(features[order]))
    assert torch.allclose(shuffled, y[order], atol=1e-4)


def test_length_and_sign():
    y, _ = ncut_eigenvector(affinity(noisy(8)))
    assert torch.allclose(y.norm(dim=1), torch.ones(8))
    assert (y.gather(1, y.abs().argmax(1, keepdim=True)) > 0).all()


def test_the_first_of_equal_entries_is_positive():
    graph = affinity(torch.eye(2)[[0, 0, 0, 1, 1, 1]])
    for method in ("power", "eigh"):
        y, _ = ncut_eigenvector(graph, method)
        assert torch.equal(y.sign(), torch.tensor([1.0, 1, 1, -1, -1, -1]))


@pytest.mark.parametrize("method", ["auto", "power", "eigh"])
@pytest.mark.parametrize(
    "features",
    [torch.ones(40, 3), torch.eye(40), torch.ones(1, 3), torch.zeros(40, 3)],
    ids=["all alike", "none alike", "one patch", "no direction"],
)
def test_nothing_to_cut(features, method):
    y, value = ncut_eigenvector(affinity(features), method)
    assert torch.equal(y, torch.zeros(len(features)))
    assert 0 <= float(value) <= 2


def test_patches_that_left_the_graph():
    features = noisy(2)
    free = torch.ones(2, 60, dtype=torch.bool)
    free[0, 5:14], free[1, 40:] = False, False
    y, value = ncut_eigenvector(affinity(features), free=free)
    for i in range(2):
        alone, single = ncut_eigenvector(affinity(features[i, free[i]]))
        assert torch.allclose(y[i, free[i]], alone, atol=1e-5)
        assert torch.allclose(value[i], single, atol=1e-5)
    assert (y[~free] == 0).all()


@pytest.mark.parametrize("left", [0, 1, 38])
def test_alike_patches_that_are_left_are_not_cut(left):
    """Dense solvers may fail on eigenvalues that are exactly equal."""
    free = torch.arange(256) < left
    for method in ("auto", "power", "eigh"):
        y, _ = ncut_eigenvector(affinity(torch.ones(256, 2)), method, free=free)
        assert torch.equal(y, torch.zeros(256))


def test_wrong_input_of_the_solver():
    with pytest.raises(ValueError, match="unknown method 'qr'; known: auto, power"):
        ncut_eigenvector(torch.ones(3, 3), "qr")
    with pytest.raises(ValueError, match=r"shape \(N, N\) or .* got \(3, 4\)"):
        ncut_eigenvector(torch.ones(3, 4))
    with pytest.raises(ValueError, match=r"free be bool .* torch.bool \(4,\)"):
        ncut_eigenvector(torch.ones(3, 3), free=torch.ones(4, dtype=torch.bool))
