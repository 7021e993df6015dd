"""Saliency masks and their loss against the recorded pairs."""

import numpy as np
import pytest
import torch

from tests.golden.golden import assert_close, golden_files, load
from uss_utils.saliency import (
    affinity,
    balanced_bce,
    clean_mask,
    ncut_eigenvector,
    ncut_mask,
    ncut_saliency,
)

pytestmark = pytest.mark.golden
CUTS = golden_files("maskcontrast", "saliency_ncut*.npz")


@pytest.mark.parametrize("path", CUTS)
def test_degrees(path):
    pair = load(path)
    graph = affinity(pair["in_features"], pair["param_tau"], pair["param_eps"])
    assert_close(graph.sum(-1), pair["out_degree"], 1e-4)


@pytest.mark.parametrize("method", ["auto", "power", "eigh"])
@pytest.mark.parametrize("path", CUTS)
def test_eigenpair(path, method):
    pair = load(path)
    graph = affinity(pair["in_features"], pair["param_tau"], pair["param_eps"])
    y, value = ncut_eigenvector(graph, method)
    assert_close(value, pair["out_eigenvalue"], 1e-5)
    assert_close(y, pair["out_eigenvector"], 1e-3)


@pytest.mark.parametrize("path", CUTS)
def test_masks(path):
    pair = load(path)
    grid = pair["param_grid"].tolist()
    cut = ncut_saliency(
        pair["in_features"],
        grid,
        pair["param_tau"],
        eps=pair["param_eps"],
        guard=False,
    )
    assert torch.equal(cut.partition, pair["out_partition"])
    assert torch.equal(cut.mask, pair["out_mask"])
    exact = pair["out_eigenvector"]
    assert exact[pair["out_seed"]] == exact.max()
    assert torch.equal(ncut_mask(exact, grid, "seed"), pair["out_mask"])


@pytest.mark.parametrize("path", golden_files("maskcontrast", "saliency_postp*.npz"))
def test_cleaned_masks(path):
    pair = load(path)
    for saliency, mask, rejected in zip(
        pair["in_saliency"], pair["out_mask"], pair["out_rejected"], strict=True
    ):
        found = clean_mask(saliency, pair["param_min_area"])
        assert (found is None) == bool(rejected)
        found = np.zeros(mask.shape) if found is None else found
        assert np.array_equal(found, mask.numpy())


@pytest.mark.parametrize("path", golden_files("maskcontrast", "balanced_bce*.npz"))
def test_balanced_cross_entropy(path):
    pair = load(path)
    logits = pair["in_logit"].requires_grad_()
    loss = balanced_bce(logits, pair["in_mask"])
    loss.backward()
    assert_close(loss.detach(), pair["out_loss"], 1e-6)
    assert_close(logits.grad, pair["out_grad_logit"], 1e-7)
