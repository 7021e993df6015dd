"""Two levels of groups: how they compose, and where positions come from."""

import pytest
import torch

from uss_utils.environment import generator
from uss_utils.grouping import (
    Grouping,
    PositionTable,
    compose_levels,
    group_positions,
    position_map,
)

B, C, M, K1, K2 = 3, 8, 9, 5, 2


def grouping() -> Grouping:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Grouping(C, K1, K2, heads=2, layers=1, hidden=12)


def nodes():
    draw = generator(0)
    x, place = (torch.randn(B, C, M, generator=draw) for _ in range(2))
    padding = torch.arange(M) >= torch.tensor([[M], [M - 3], [2]])
    return x, padding, place


def test_map_of_positions():
    table = PositionTable(6, side=5)
    maps = table((3, 4))
    assert maps.shape == (6, 3, 4)
    for y in range(3):
        for x in range(4):
            expected = torch.cat([table.columns[x], table.rows[y]])
            assert torch.equal(maps[:, y, x], expected)
    assert torch.equal(position_map(table.columns, table.rows, (3, 4)), maps)
    values = torch.cat([p.detach().flatten() for p in PositionTable(64).parameters()])
    assert len(values) == 50 * 64
    assert 0 <= values.min() < 0.01 and 0.99 < values.max() < 1


def test_map_that_is_too_large_and_odd_channels():
    with pytest.raises(ValueError, match="51 x 3 places is larger .* enlarge it bili"):
        PositionTable(4)((51, 3))
    with pytest.raises(ValueError, match="needs an even dim, got 5"):
        PositionTable(5)


def test_levels_compose_as_probabilities():
    draw = generator(1)
    fine, coarse = (
        torch.randn(shape, generator=draw) for shape in [(B, K1, M), (B, K2, K1)]
    )
    found = compose_levels(fine, coarse)
    for probs in found[:2]:
        torch.testing.assert_close(probs.sum(1), torch.ones(B, M))
    b, i = 1, 4
    expected = sum(
        coarse[b].softmax(0)[:, k] * fine[b].softmax(0)[k, i] for k in range(K1)
    )
    torch.testing.assert_close(found.coarse_probs[b, :, i], expected)
    assert torch.equal(found.fine, fine.argmax(1))
    assert torch.equal(found.coarse, found.coarse_probs.argmax(1))


def test_sure_levels_nest():
    """Where both assignments are sure, a fine group lies in one coarse group."""
    draw = generator(2)
    parent = torch.randint(K2, (B, K1), generator=draw)
    label = torch.randint(K1, (B, M), generator=draw)
    fine = torch.nn.functional.one_hot(label, K1).mT * 50.0
    coarse = torch.nn.functional.one_hot(parent, K2).mT * 50.0
    found = compose_levels(fine, coarse)
    assert torch.equal(found.coarse, parent.gather(1, found.fine))


def test_positions_of_groups():
    _, padding, place = nodes()
    label = torch.randint(K1 - 1, (B, M), generator=generator(3))
    found = group_positions(place, label, padding, K1)
    for b in range(B):
        for k in range(K1):
            members = place[b, :, (label[b] == k) & ~padding[b]]
            expected = members.mean(1) if members.shape[1] else torch.zeros(C)
            torch.testing.assert_close(found[b, :, k], expected)
    assert not found[..., K1 - 1].any()


def test_second_level_groups_the_first():
    own, (x, padding, place) = grouping().eval(), nodes()
    found = own(x, padding, place)
    assert found.fine_logits.shape == (B, K1, M)
    assert found.coarse_logits.shape == (B, K2, K1)
    assert found.fine_centroids.shape == (B, C, K1)
    assert found.coarse_centroids.shape == (B, C, K2)
    fine = own.fine(x, padding, pos=place)
    label = fine.logits.argmax(1)
    middle = group_positions(place, label, padding, K1)
    coarse = own.coarse(fine.features, pos=middle)
    assert torch.equal(found.coarse_logits, coarse.logits)


def test_gradients_reach_everything():
    own, (x, padding, _) = grouping().train(), nodes()
    place = own.positions((3, 3)).flatten(1).expand(B, -1, -1)
    sum(part.square().sum() for part in own(x, padding, place)).backward()
    for name, parameter in own.named_parameters():
        if name.startswith("coarse.feature."):  # there is no third level
            continue
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name
