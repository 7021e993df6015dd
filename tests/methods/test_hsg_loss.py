"""HSG's objective: what each term moves, corner cases."""

import pytest
import torch
import torch.nn.functional as F

from uss_utils.environment import generator
from uss_utils.grouping import Grouping, Levels
from uss_utils.hierarchy_network import HSGNet
from uss_utils.methods._hsg_loss import LEVELS, HSGLoss
from uss_utils.methods._hsg_segments import segment_nodes, segment_views

B, C, SIDE, K1, K2 = 2, 8, 8, 5, 3
SMALL = HSGLoss(grid=(2, 2), iterations=3)
TERMS = ["fine", "coarse"]
TERMS += [f"{x}_{y}" for y in LEVELS for x in ("modularity", "balance", "centroid")]


def grouping(seed=0, dim=C) -> Grouping:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        options = {"heads": 2, "layers": 1, "hidden": 12, "dropout": 0.0}
        return Grouping(dim, K1, K2, **options)


def batch(images=B, seed=0, views=2, side=SIDE):
    """Embeddings of views whose regions are stripes, each with a direction."""
    draw = generator(seed)
    n = images * views
    regions = torch.arange(side)[:, None] // 3 + torch.arange(side) // 4 * 3
    regions = regions.expand(n, side, side).clone()
    kinds = torch.randn(images, int(regions.max()) + 1, C, generator=draw)
    image = torch.arange(images).repeat_interleave(views)
    emb = kinds[image[:, None, None], regions].movedim(3, 1)
    emb = emb + 0.3 * torch.randn(n, C, side, side, generator=draw)
    valid = torch.ones(n, side, side, dtype=torch.bool)
    return emb.requires_grad_(), regions, valid, image


def test_first_stage_has_regions_alone():
    loss = HSGLoss(region=2.0, grid=(1, 1), iterations=1)
    given = batch()
    terms = loss(*given)
    assert list(terms) == ["total", "region", "top5"]
    torch.testing.assert_close(terms["total"], 2 * terms["region"])
    # Segments are the regions of each view.
    found = segment_views(*given[:3], (1, 1), 1)
    assert len(found.prototypes) == 2 * B * len(given[1].unique())
    e = F.normalize(found.pixels, dim=1) @ found.prototypes.T * 16.0
    group = found.segment_region + 100 * given[3][found.segment_view]
    own = F.one_hot(found.pixel_segment, len(group)).bool()
    same = group[found.pixel_segment][:, None] == group
    positive = e.masked_fill(~same | own, -torch.inf).logsumexp(1)
    expected = (e.masked_fill(own, -torch.inf).logsumexp(1) - positive).mean()
    torch.testing.assert_close(terms["region"], expected)


def test_total_is_the_weighted_sum():
    weights = {"region": 0.5, "fine": 0.2, "coarse": 0.3, "modularity": 0.7}
    loss = HSGLoss(**weights, balance=1.1, centroid=1.3, grid=(2, 2), iterations=3)
    terms = loss(*batch(), grouping())
    assert list(terms) == ["total", "region", *TERMS, "top5"]
    weights |= {"balance": 1.1, "centroid": 1.3}
    expected = sum(weights[x.split("_")[0]] * terms[x] for x in ("region", *TERMS))
    torch.testing.assert_close(terms["total"], expected)
    alike = HSGLoss(modularity=0.7)._weights()
    assert alike["balance_fine"] == alike["modularity_coarse"] == 0.7


def test_gradients_reach_the_whole_network():
    net = HSGNet(
        C, "resnet18", hierarchy=grouping(), n_stages=2, mid_channels=16
    ).train()
    views = torch.randn(2 * B, 3, 64, 64, generator=generator(0))
    _, regions, valid, image = batch(side=64)
    terms = SMALL(net(views), regions, valid, image, net.grouping)
    terms["total"].backward()
    for name, parameter in net.named_parameters():
        if not name.startswith("grouping.coarse.feature."):
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all() and parameter.grad.any(), name


def test_contrasts_do_not_train_the_transformers():
    """Labels are constants: what moves the transformers is how good groups are."""
    own = grouping()
    loss = HSGLoss(modularity=0.0, centroid=0.0, grid=(2, 2), iterations=3)
    given = batch()
    loss(*given, own)["total"].backward()
    grads = [p.grad for p in own.parameters() if p.grad is not None]
    assert not any(g.any() for g in grads)
    assert given[0].grad.any()


def test_names_of_regions_play_no_part():
    emb, regions, valid, image = batch()
    expected = SMALL(emb, regions, valid, image, grouping())
    names = torch.randperm(1 << 16, generator=generator(1))[: int(regions.max()) + 1]
    # The order of segments follows the names: nodes are then numbered differently.
    found = SMALL(emb, names.sort().values[regions], valid, image + 7, grouping())
    for name, term in expected.items():
        torch.testing.assert_close(found[name], term)


def test_regions_of_another_size_are_brought_to_the_map():
    emb, regions, valid, image = batch()
    larger = [
        x.repeat_interleave(4, 1).repeat_interleave(4, 2) for x in (regions, valid)
    ]
    found, expected = SMALL(emb, *larger, image), SMALL(emb, regions, valid, image)
    assert torch.equal(found["total"], expected["total"])


def test_more_slots_change_the_balance_alone():
    """Explicit logits, so that no batch norm sees the padding."""
    given = batch()
    nodes = segment_nodes(segment_views(*given[:3], (2, 2), 3), given[3])
    m = nodes.padding.shape[1]
    draw = generator(3)
    shapes = [(B, K1, m), (B, K2, K1), (B, C, K1), (B, C, K2)]
    levels = Levels(*(torch.randn(s, generator=draw) for s in shapes))
    wide = levels._replace(fine_logits=F.pad(levels.fine_logits, (0, m)))
    loss = HSGLoss(grid=(2, 2), iterations=3, slots=2 * m)
    found, expected = loss(*given, wide), SMALL(*given, levels)
    for name in ("region", *TERMS):
        factor = 0.5 if name.startswith("balance") else 1.0
        torch.testing.assert_close(found[name], factor * expected[name])
    with pytest.raises(ValueError, match=f"{m} slots, the nodes of 2 with {2 * m}"):
        loss(*given, levels)


# ------------------------------------------------------------------------ corner cases


def finite(terms, emb):
    terms["total"].backward()
    assert all(term.isfinite() for term in terms.values())
    assert emb.grad.isfinite().all()


@pytest.mark.parametrize("levels", [False, True])
def test_no_valid_pixel(levels):
    emb, regions, valid, image = batch()
    terms = SMALL(emb, regions, ~valid, image, grouping() if levels else None)
    finite(terms, emb)
    assert not any(terms.values()) and not emb.grad.any()


def test_image_without_a_valid_pixel_beside_others():
    emb, regions, valid, image = batch(3)
    valid[:2] = False
    terms = SMALL(emb, regions, valid, image, grouping())
    finite(terms, emb)
    assert not emb.grad[:2].any() and emb.grad[2:].any()


def test_images_of_one_segment():
    emb, regions, valid, image = batch(views=1)
    loss = HSGLoss(grid=(1, 1), iterations=1)
    finite(loss(emb, torch.zeros_like(regions), valid, image, grouping()), emb)


def test_single_views_and_views_without_a_common_region():
    emb, regions, valid, image = batch(views=1)
    finite(SMALL(emb, regions, valid, image, grouping()), emb)
    emb, regions, valid, image = batch()
    regions[::2] += 100
    finite(SMALL(emb, regions, valid, image, grouping()), emb)


def test_region_cut_away_by_a_crop():
    emb, regions, valid, image = batch()
    valid[0][regions[0] == 2] = False
    finite(SMALL(emb, regions, valid, image, grouping()), emb)
    assert not emb.grad[0][:, regions[0] == 2].any()


def test_more_than_256_nodes():
    emb, regions, valid, image = batch(side=16)
    regions = torch.arange(256).view(1, 16, 16).expand(4, -1, -1)
    finite(SMALL(emb, regions, valid, image, grouping()), emb)
    with pytest.raises(ValueError, match="512 segments but only 256 slots"):
        HSGLoss(slots=256)(emb, regions, valid, image)


def test_one_image():
    emb, regions, valid, image = batch(1)
    with pytest.raises(ValueError, match="trained on a batch of one image"):
        SMALL(emb, regions, valid, image, grouping())
    finite(SMALL(emb, regions, valid, image, grouping().eval()), emb)
    emb.grad = None
    finite(SMALL(emb, regions, valid, image), emb)


def test_autocast_and_float64():
    given = batch()
    expected = SMALL(*given, grouping())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = SMALL(*given, grouping())
    for name, term in expected.items():
        assert torch.equal(found[name], term), name
    precise = SMALL(given[0].double(), *given[1:], grouping().double())
    for name, term in expected.items():
        torch.testing.assert_close(precise[name].float(), term, rtol=1e-4, atol=1e-5)


def test_training_on_given_embeddings():
    """Free embeddings learn to tell regions apart; groups become better."""
    emb, regions, valid, image = batch(seed=5)
    with torch.no_grad():
        emb.normal_(generator=generator(6))
    own = grouping()
    optimiser = torch.optim.Adam([emb, *own.parameters()], 0.02)
    rows = []
    for _ in range(100):
        terms = SMALL(emb, regions, valid, image, own)
        optimiser.zero_grad()
        terms["total"].backward()
        optimiser.step()
        rows.append({name: float(term.detach()) for name, term in terms.items()})
    first, last = rows[0], rows[-1]
    assert last["total"] < 0.7 * first["total"]
    assert last["region"] < 0.5 * first["region"]
    assert last["top5"] > first["top5"]
    assert last["modularity_fine"] < first["modularity_fine"] - 0.05
    # All nodes in one group would cost the root of the number of groups.
    assert last["balance_fine"] < 1.3 and last["centroid_fine"] < 0.1
