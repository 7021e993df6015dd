"""The graph of nodes, its modularity, the balance of groups."""

import math

import pytest
import torch
import torch.nn.functional as F

from uss_utils.environment import generator
from uss_utils.methods._hsg_graph import balance_loss, knn_graph, modularity_loss

B, C, M, K = 3, 5, 12, 4


def nodes(seed=0, width=M, counts=(12, 7, 3)):
    """Nodes, padding, and the view of each."""
    draw = generator(seed)
    x = torch.randn(B, C, width, generator=draw, dtype=torch.float64)
    padding = torch.arange(width) >= torch.tensor(counts)[:, None]
    views = torch.randint(0, 2, (B, width), generator=draw) * 5 + 40
    return x.masked_fill(padding[:, None], 0), padding, views.masked_fill(padding, -1)


def plain_graph(x, padding, k, groups=None):
    graph = torch.zeros(len(x), x.shape[2], x.shape[2], dtype=torch.float64)
    for b in range(len(x)):
        unit = F.normalize(x[b], dim=0)
        valid = (~padding[b]).nonzero()[:, 0].tolist()
        for i in valid:
            for kind in {0 if groups is None else int(groups[b, j]) for j in valid}:
                others = [
                    j
                    for j in valid
                    if j != i and (groups is None or groups[b, j] == kind)
                ]
                others.sort(key=lambda j: -float(unit[:, i] @ unit[:, j]))
                graph[b, i, others[:k]] = 1
        if len(valid) == 1:
            graph[b, valid[0], valid[0]] = 1
    return graph


@pytest.mark.parametrize("k", [1, 2, 4, 50])
@pytest.mark.parametrize("grouped", [False, True])
def test_edges_lead_to_the_most_similar_nodes(k, grouped):
    for seed, counts in enumerate([(12, 7, 3), (1, 2, 12)]):
        x, padding, views = nodes(seed, counts=counts)
        groups = views if grouped else None
        graph = knn_graph(x, padding, k, groups)
        assert torch.equal(graph, plain_graph(x, padding, k, groups))


def test_length_of_a_node_and_names_of_groups_do_not_matter():
    x, padding, views = nodes()
    graph = knn_graph(x, padding, 2, views)
    longer = x * (1 + torch.arange(M))
    assert torch.equal(knn_graph(longer, padding, 2, views), graph)
    assert torch.equal(knn_graph(x, padding, 2, -7 * views), graph)
    noise = x + padding[:, None] * torch.randn(B, C, M)
    assert torch.equal(knn_graph(noise, padding, 2, views), graph)


def test_padding_may_stand_first_and_carry_any_group():
    x, padding, views = nodes()
    graph = knn_graph(x, padding, 2, views)
    named = views.masked_fill(padding, int(views.max()))
    turned = knn_graph(x.flip(2), padding.flip(1), 2, named.flip(1))
    assert torch.equal(turned.flip(1, 2), graph)


def test_graph_has_no_gradient_and_is_made_in_float32_under_autocast():
    x, padding, views = nodes()
    x = x.float().requires_grad_()
    graph = knn_graph(x, padding, 2, views)
    assert not graph.requires_grad and graph.dtype == torch.float32
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(knn_graph(x, padding, 2, views), graph)


def test_graph_of_many_nodes_and_of_none():
    x, padding, views = nodes(width=600, counts=(600, 300, 0))
    graph = knn_graph(x, padding, 2, views)
    degrees = graph.sum(2)
    assert (degrees[0] == 4).all() and (degrees[1, :300] == 4).all()
    assert (graph[2] == 0).all() and (graph[1, :, 300:] == 0).all()
    assert knn_graph(x[..., :0], padding[:, :0], 2).shape == (B, 0, 0)


def test_a_view_of_one_node_gives_it_edges_to_the_other_view_only():
    x, padding, _ = nodes(counts=(3, 3, 3))
    views = torch.tensor([0, 0, 1] + [-1] * (M - 3)).expand(B, -1)
    graph = knn_graph(x, padding, 2, views)
    assert graph[0, 2].tolist()[:3] == [1, 1, 0]
    assert graph.diagonal(dim1=1, dim2=2).eq(0).all()


# ------------------------------------------------------------------------- modularity


def groups_of(labels, k=K):
    """Hard assignment (B, k, M) in float64."""
    return F.one_hot(labels, k).movedim(-1, 1).double()


@pytest.mark.parametrize("standard", [False, True])
def test_modularity_is_that_of_the_plain_sum(standard):
    x, padding, views = nodes()
    graph = knn_graph(x, padding, 2, views)
    draw = generator(4)
    probs = torch.randn(B, K, M, generator=draw, dtype=torch.float64).softmax(1)
    expected = []
    for b in range(B):
        degree = graph[b].sum(1)
        w = degree.sum() * (1 if standard else 2)
        s = (probs[b] * ~padding[b]).T
        null = degree[:, None] * degree / w
        expected.append(1 - ((graph[b] - null) * (s @ s.T)).sum() / w)
    loss = modularity_loss(probs, graph, padding, standard)
    torch.testing.assert_close(loss, torch.stack(expected).mean())


def test_one_group_costs_three_quarters_on_any_graph():
    for seed in range(3):
        x, padding, views = nodes(seed)
        one = groups_of(torch.zeros(B, M, dtype=torch.int64))
        for groups in (None, views):
            graph = knn_graph(x, padding, 3, groups)
            assert float(modularity_loss(one, graph, padding)) == pytest.approx(0.75)
            textbook = modularity_loss(one, graph, padding, standard=True)
            assert float(textbook) == pytest.approx(1)


@pytest.mark.parametrize("k", [2, 3, 4])
def test_equal_components_perfectly_told_apart(k):
    size = 5
    labels = torch.arange(k).repeat_interleave(size)[None]
    graph = (labels[0][:, None] == labels[0]).double()[None]
    graph -= torch.eye(k * size, dtype=torch.float64)
    padding = torch.zeros(1, k * size, dtype=torch.bool)
    probs = groups_of(labels, k)
    loss = modularity_loss(probs, graph, padding)
    assert float(loss) == pytest.approx(0.5 + 1 / (4 * k))
    textbook = modularity_loss(probs, graph, padding, standard=True)
    assert float(textbook) == pytest.approx(1 / k)
    # With the balance term, of n = M nodes.
    assert float(balance_loss(probs, padding)) == pytest.approx(1)
    one = groups_of(torch.zeros_like(labels), k)
    assert float(balance_loss(one, padding)) == pytest.approx(math.sqrt(k))
    if k == 4:
        total = modularity_loss(one, graph, padding) + balance_loss(one, padding)
        assert float(total) == pytest.approx(2.75)
        assert float(loss + balance_loss(probs, padding)) == pytest.approx(1.5625)


def test_balance_is_relative_to_the_slots():
    padding = torch.arange(M)[None] >= 8
    even = groups_of(torch.arange(M)[None] % K)
    assert float(balance_loss(even, padding)) == pytest.approx(8 / M)
    assert float(balance_loss(even, padding, slots=256)) == pytest.approx(8 / 256)
    with pytest.raises(ValueError, match="slots=0 has to be at least 1"):
        balance_loss(even, padding, slots=0)


def test_names_of_groups_and_order_of_nodes_do_not_matter():
    x, padding, views = nodes()
    graph = knn_graph(x, padding, 2, views)
    draw = generator(4)
    probs = torch.randn(B, K, M, generator=draw, dtype=torch.float64).softmax(1)
    order, names = (torch.randperm(n, generator=draw) for n in (M, K))
    turned = probs[:, names][:, :, order]
    for loss, args in (
        (modularity_loss, (graph, graph[:, order][:, :, order])),
        (balance_loss, (None, None)),
    ):
        before, after = ([a] if a is not None else [] for a in args)
        torch.testing.assert_close(
            loss(turned, *after, padding[:, order]), loss(probs, *before, padding)
        )


def test_gradients_of_modularity_and_balance():
    x, padding, views = nodes()
    graph = knn_graph(x, padding, 2, views)
    logits = torch.randn(B, K, M, dtype=torch.float64, requires_grad=True)

    def total(z, *others):
        probs = z.softmax(1)
        return modularity_loss(probs, graph, padding) + balance_loss(probs, padding)

    assert torch.autograd.gradcheck(total, (logits,))


def test_images_without_nodes_play_no_part():
    x, padding, views = nodes(counts=(12, 0, 3))
    probs = torch.randn(B, K, M, dtype=torch.float64).softmax(1)
    graph = knn_graph(x, padding, 2, views)
    some = torch.tensor([0, 2])
    for loss, graphs in ((modularity_loss, [graph]), (balance_loss, [])):
        part = [g[some] for g in graphs]
        torch.testing.assert_close(
            loss(probs, *graphs, padding), loss(probs[some], *part, padding[some])
        )
        probs.requires_grad_()
        nothing = loss(
            probs, *[torch.zeros_like(g) for g in graphs], torch.ones_like(padding)
        )
        (grad,) = torch.autograd.grad(nothing, probs)
        assert nothing == 0 and (grad == 0).all()


def test_losses_are_float32_under_autocast():
    x, padding, views = nodes()
    graph = knn_graph(x.float(), padding, 2, views)
    probs = torch.randn(B, K, M).softmax(1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = modularity_loss(probs, graph, padding), balance_loss(probs, padding)
    assert found[0] == modularity_loss(probs, graph, padding)
    assert found[1] == balance_loss(probs, padding)


def test_misfits_are_refused():
    x, padding, views = nodes()
    with pytest.raises(ValueError, match=r"nodes \(3, 5, 12\) and padding \(3, 11\)"):
        knn_graph(x, padding[:, 1:], 2)
    with pytest.raises(ValueError, match=r"\(2, 12\), expected \(3, 12\)"):
        knn_graph(x, padding, 2, views[1:])
    with pytest.raises(ValueError, match="k=0 neighbours"):
        knn_graph(x, padding, 0)
    probs = torch.zeros(B, K, M)
    with pytest.raises(ValueError, match=r"assignments \(3, 4, 12\)"):
        balance_loss(probs, padding[1:])
    with pytest.raises(ValueError, match=r"expected \(3, 12, 12\)"):
        modularity_loss(probs, torch.zeros(B, M, M + 1), padding)
