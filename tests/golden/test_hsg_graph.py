"""HSG's graph of nodes, its modularity and the balance term, against recorded pairs."""

import pytest
import torch

from tests.golden.golden import golden_files, load
from tests.golden.test_hsg_contrast import assert_near
from uss_utils.methods._hsg_graph import balance_loss, knn_graph, modularity_loss

pytestmark = pytest.mark.golden


@pytest.mark.parametrize("path", golden_files("hsg", "09_knn_graph*.npz"))
def test_graph(path):
    pair = load(path)
    nodes, padding, k = pair["in_nodes"], pair["in_padding"], pair["param_knn"]
    per_view = knn_graph(nodes, padding, k, pair["in_node_view"])
    assert torch.equal(per_view, pair["out_adjacency_per_view"])
    assert torch.equal(knn_graph(nodes, padding, k), pair["out_adjacency_joint"])


@pytest.mark.parametrize("path", golden_files("hsg", "10_modularity*.npz"))
def test_modularity_and_balance(path):
    pair = load(path)
    padding = pair["in_padding"]
    groups = pair["in_node_view"] if pair["param_knn_per_view"] else None
    graph = knn_graph(pair["in_nodes"], padding, pair["param_knn"], groups)
    probs = pair["in_probs"].clone().requires_grad_()
    one = torch.zeros_like(pair["in_probs"])
    one[:, 0] = 1
    for name, loss in (
        ("modularity", lambda p: modularity_loss(p, graph, padding)),
        ("collapse", lambda p: balance_loss(p, padding)),
    ):
        value = loss(probs)
        assert_near(value, pair[f"out_{name}_loss"], 1e-4)
        (grad,) = torch.autograd.grad(value, probs)
        assert_near(grad, pair[f"out_grad_{name}"], 1e-3, 1e-4)
        assert_near(loss(one), pair[f"out_{name}_loss_one_cluster"], 1e-4)
