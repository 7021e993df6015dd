"""Both ways of fitting the probes."""

import pytest
import torch

from uss_utils.environment import generator
from uss_utils.readout import Readout, fit_clusters, fit_linear


def blobs(n=200, seed=0):
    """Codes (n, 3) around three directions, and which of them."""
    draw = generator(seed)
    which = torch.arange(n) % 3
    noise = 0.1 * torch.randn(n, 3, generator=draw)
    return torch.eye(3)[which] + noise, which


def test_alongside_learns_and_leaves_the_code_alone():
    rows, which = blobs()
    code = rows.T.reshape(1, 3, 10, 20).requires_grad_()
    label = which.reshape(1, 10, 20)
    readout = Readout(3, 3, 3, generator(0))
    optimisers = readout.optimisers(linear_lr=0.05, cluster_lr=0.05)
    assert set(optimisers) == {"cluster", "linear"}
    first = readout.losses(code, label)
    for _ in range(100):
        losses = readout.losses(code, label)
        for optimiser in optimisers.values():
            optimiser.zero_grad()
        sum(losses.values()).backward()
        for optimiser in optimisers.values():
            optimiser.step()
    assert code.grad is None
    assert losses["linear"] < 0.3 * first["linear"]
    assert losses["cluster"] < first["cluster"]


def test_without_classes_there_is_no_linear_probe():
    readout = Readout(4, 5, 0)
    assert readout.linear is None and set(readout.optimisers()) == {"cluster"}
    assert set(readout.losses(torch.randn(1, 4, 2, 2), None)) == {"cluster"}


def test_clusters_of_k_means():
    rows, which = blobs()
    probe = fit_clusters(rows, 3, restarts=3, generator=generator(0))
    found = probe.scores(rows.T.reshape(1, 3, 10, 20)).argmax(1).flatten()
    table = torch.stack([found[which == k].mode().values for k in range(3)])
    assert sorted(table.tolist()) == [0, 1, 2]
    assert torch.equal(found, table[which])


def test_linear_probe_fitted_after():
    rows, which = blobs(600)
    # Far from centred and badly scaled: descent alone would crawl.
    rows = rows * torch.tensor([1.0, 30.0, 0.05]) + 100
    code, label = rows.T.reshape(1, 3, 20, 30), which.reshape(1, 20, 30)
    probe = fit_linear([(code, label)], 3, steps=300, generator=generator(0))
    assert (probe(code).argmax(1) == label).float().mean() > 0.95


def test_nothing_labelled_is_refused():
    code, label = torch.randn(2, 3, 4, 4), torch.full((2, 8, 8), -1)
    with pytest.raises(ValueError, match="none of 256 random pixels .* has a label"):
        fit_linear([(code, label)], 2, generator=generator(0))
