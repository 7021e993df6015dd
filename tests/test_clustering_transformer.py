"""One clustering transformer: what it is invariant to, and its corner cases."""

import pytest
import torch

from uss_utils.clustering_transformer import ClusteringTransformer, start_statistics
from uss_utils.environment import generator

B, C, M, K = 3, 8, 7, 4


def transformer(**options) -> ClusteringTransformer:
    """Small; its statistics are not those of the start."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        own = ClusteringTransformer(C, K, 2, 2, 12, **options)
        for name, value in own.state_dict().items():
            if "running" in name:
                value.copy_(torch.rand(value.shape) + 0.5)
    return own.eval()


def nodes(seed=0, m=M, n=B):
    draw = generator(seed)
    x, pos = (torch.randn(n, C, m, generator=draw) for _ in range(2))
    padding = torch.arange(m) >= torch.tensor([m, m - 2, 1])[:n, None]
    return x, padding, pos


def test_shapes_order_and_logits():
    x, padding, pos = nodes()
    found = transformer()(x, padding, pos=pos)
    assert found.centroids.shape == found.features.shape == (B, C, K)
    assert found.memory.shape == (B, C, M)
    expected = found.centroids.mT @ found.memory / C**0.5
    torch.testing.assert_close(found.logits, expected)
    peaks = found.logits.amax(2)
    assert torch.equal(peaks, peaks.sort(1, descending=True).values)


def test_size_is_the_papers():
    own = ClusteringTransformer(128, 8)
    n = sum(p.numel() for p in own.parameters())
    assert n == pytest.approx(0.80e6, rel=0.01)
    # Xavier's uniform distribution over one matrix of queries, keys and values.
    largest = float(own.encoder[0].attention.in_proj_weight.detach().abs().max())
    assert largest == pytest.approx((6 / (128 + 384)) ** 0.5, rel=0.01)


@torch.no_grad()
def test_order_of_the_nodes_plays_no_part():
    own, (x, padding, pos) = transformer(), nodes()
    order = torch.randperm(M, generator=generator(1))
    found = own(x, padding, pos=pos)
    other = own(x[..., order], padding[:, order], pos=pos[..., order])
    torch.testing.assert_close(other.centroids, found.centroids, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(
        other.logits, found.logits[..., order], atol=1e-5, rtol=1e-4
    )


@torch.no_grad()
def test_what_stands_in_padded_slots_is_not_seen():
    own, (x, padding, pos) = transformer(), nodes()
    hidden = padding[:, None]
    found = own(x, padding, pos=pos)
    other = own(x.masked_fill(hidden, 9.0), padding, pos=pos.masked_fill(hidden, -9.0))
    for one, two in zip(found[:2], other[:2], strict=True):
        # Only the order may differ: padded slots have peaks as well.
        torch.testing.assert_close(one.sort(2).values, two.sort(2).values)
    kept = (~padding)[:, None].expand_as(found.memory)
    torch.testing.assert_close(other.memory[kept], found.memory[kept])


@torch.no_grad()
def test_queries_and_places_matter():
    own, (x, padding, pos) = transformer(), nodes()
    found = own(x, padding, pos=pos)
    assert torch.equal(own(x, padding, own.queries, pos).logits, found.logits)
    others = torch.randn(K + 1, C, generator=generator(2))
    assert own(x, padding, others, pos).logits.shape == (B, K + 1, M)
    assert not torch.allclose(own(x, padding).memory, found.memory)
    zero = own(x, padding, pos=torch.zeros_like(pos))
    torch.testing.assert_close(own(x, padding).logits, zero.logits)


@torch.no_grad()
def test_statistics_of_the_start():
    x, padding, _ = nodes()
    mean, spread = start_statistics(x, padding).chunk(2, 1)
    for row, count in enumerate([M, M - 2, 1]):
        valid = x[row, :, :count]
        torch.testing.assert_close(mean[row], valid.mean(1))
        squares = (valid - valid.mean(1, keepdim=True)).square().sum(1)
        squares += (M - count) * valid.mean(1).square()
        torch.testing.assert_close(spread[row], (squares / (count + 1)).sqrt())
    whole = start_statistics(x)
    torch.testing.assert_close(whole, torch.cat([x.mean(2), x.std(2)], 1))


@pytest.mark.parametrize("training", [False, True])
def test_image_without_nodes_and_single_nodes(training):
    """Nothing is NaN, forward or backward, and other images do not notice."""
    own = transformer(dropout=0.0).train(training)
    x, padding, pos = nodes()
    padding[2] = True
    x = x.masked_fill(padding[:, None], 0).requires_grad_()
    found = own(x, padding, pos=pos)
    sum(part.square().sum() for part in found).backward()
    assert x.grad.isfinite().all()
    assert all(p.grad.isfinite().all() for p in own.parameters())
    lonely = torch.randn(2, C, 1, requires_grad=True)
    alone = own(lonely, torch.zeros(2, 1, dtype=torch.bool))
    alone.logits.square().sum().backward()
    assert lonely.grad.isfinite().all()
    full = own(lonely).logits
    assert full.isfinite().all()
    if not training:
        rest = own(x[:2], padding[:2], pos=pos[:2])
        torch.testing.assert_close(found.logits[:2], rest.logits)


def test_dropout_only_while_training():
    own, (x, padding, _) = transformer(dropout=0.5), nodes()
    assert torch.equal(own(x, padding).logits, own(x, padding).logits)
    own.train()
    assert not torch.equal(own(x, padding).logits, own(x, padding).logits)


def test_autocast_changes_nothing():
    own, (x, padding, pos) = transformer(), nodes()
    expected = own(x, padding, pos=pos)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = own(x, padding, pos=pos)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_bad_input():
    own, (x, padding, pos) = transformer(), nodes()
    with pytest.raises(ValueError, match="3 heads do not divide 8 channels"):
        ClusteringTransformer(8, 4, heads=3)
    with pytest.raises(ValueError, match=r"shape \(B, 8, M\) with M > 0, got \(3, 7"):
        own(x[:, 1:])
    with pytest.raises(ValueError, match=r"must have shape \(3, 7\), got \(3, 6\)"):
        own(x, padding[:, 1:])
    own(x[:1], padding[:1], pos=pos[:1])
    with pytest.raises(ValueError, match="trained on a batch of one image"):
        own.train()(x[:1], padding[:1], pos=pos[:1])
