"""PriMaPs-EM's prototypes, votes and losses: properties, edges, bad input."""

import copy

import pytest
import torch

from uss_utils import upsampling
from uss_utils.environment import generator
from uss_utils.methods import _primaps_em as em
from uss_utils.methods._primaps_em import EMStep, PrototypeHead
from uss_utils.probes import ClusterProbe, LinearProbe, linear_probe_loss, upsample
from uss_utils.schedules import EMA


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=generator(seed))


def whole_numbers(low, high, shape, seed=0):
    return torch.randint(low, high, shape, generator=generator(seed))


# ------------------------------------------------------------------------- prototypes


def test_prototypes_have_a_length_and_a_direction():
    head = PrototypeHead(normal(5, 8), torch.arange(1.0, 6))
    torch.testing.assert_close(head.effective().norm(dim=1), head.gain)
    longer = PrototypeHead(7 * head.direction, head.gain)
    torch.testing.assert_close(longer.effective(), head.effective())
    unit = PrototypeHead(normal(5, 8)).effective()
    torch.testing.assert_close(unit.norm(dim=1), torch.ones(5))
    x = normal(2, 8, 3, 4, seed=1)
    expected = torch.einsum("bchw,kc->bkhw", x, head.effective())
    torch.testing.assert_close(head(x), expected)
    probe = ClusterProbe.from_centroids(head.effective(), "dot")
    torch.testing.assert_close(probe.scores(x), head(x))
    zero = PrototypeHead(torch.zeros(2, 8))
    zero(x).sum().backward()
    assert zero.gain.grad.eq(0).all() and zero.direction.grad.isfinite().all()


def test_a_longer_direction_turns_more_slowly():
    turned = []
    for length in (1.0, 10.0):
        head = PrototypeHead(length * torch.eye(4)[:1])
        optimiser = torch.optim.Adam(head.parameters(), lr=0.1)
        head(normal(1, 4, 2, 2)).sum().backward()
        optimiser.step()
        turned.append(1 - (head.effective()[0, 0] / head.gain).item())
    assert turned[0] > 20 * turned[1] > 0


def test_classifying_and_upsampling_commute():
    head, x = PrototypeHead(normal(5, 8)), normal(2, 8, 3, 4, seed=1)
    torch.testing.assert_close(
        upsample(head(x), (12, 16)), head(upsample(x, (12, 16))), atol=1e-5, rtol=1e-5
    )


def test_prototypes_that_do_not_fit():
    with pytest.raises(ValueError, match=r"got \(3, 4\) and \(2,\)"):
        PrototypeHead(torch.zeros(3, 4), torch.zeros(2))
    with pytest.raises(ValueError, match=r"\(B, 4, h, w\), got \(1, 5, 2, 2\)"):
        PrototypeHead(normal(3, 4))(normal(1, 5, 2, 2))


# ------------------------------------------------------------------------------ start


def test_start_is_ordered_orthonormal_and_points_forwards():
    scale = torch.tensor([5.0, 3, 2, 1, 0.5, 0.2])[:, None, None]
    feats = normal(4, 6, 5, 5) * scale + 2 * normal(6, 1, 1, seed=1)
    found = em.pca_centers(iter(feats.split(3)), 6)
    torch.testing.assert_close(found @ found.T, torch.eye(6), atol=1e-5, rtol=0)
    rows = feats.movedim(1, -1).flatten(0, -2)
    spread = ((rows - rows.mean(0)) @ found.T).std(0)
    assert (spread[:-1] >= spread[1:]).all()
    assert ((rows @ found.T).mean(0) > 0).all()
    torch.testing.assert_close(em.pca_centers([feats], 6), found, atol=1e-4, rtol=0)
    assert em.pca_centers([feats.double()], 2).dtype == torch.float64


def test_start_needs_as_many_directions_as_prototypes():
    feats = normal(2, 6, 4, 4)
    with pytest.raises(ValueError, match=r"7 prototypes .* 6 channels span 6; use 1"):
        em.pca_centers([feats], 7)
    flat = torch.cat([feats[:, :3], feats[:, :2]], 1)
    with pytest.raises(ValueError, match="4 prototypes .* 5 channels span 3"):
        em.pca_centers([flat], 4)
    assert em.pca_centers([flat], 3).shape == (3, 5)
    with pytest.raises(ValueError, match="at least two rows"):
        em.pca_centers([], 2)
    feats[0, 0, 0, 0] = torch.nan
    with pytest.raises(ValueError, match="NaN or infinite"):
        em.pca_centers([feats], 2)


def test_kmeans_loss_is_that_of_the_cluster_probe():
    x, centers = normal(2, 8, 3, 4), normal(5, 8, seed=1).requires_grad_()
    loss, names = em.cosine_kmeans_loss(x, centers)
    probe = ClusterProbe.from_centroids(centers)
    expected, chosen = probe(x)
    torch.testing.assert_close(loss, expected)
    assert torch.equal(names, chosen.argmax(1))
    loss.backward()
    expected.backward()
    torch.testing.assert_close(centers.grad, probe.clusters.grad)
    unused = [k for k in range(5) if not (names == k).any()]
    assert centers.grad[unused].eq(0).all()


# ----------------------------------------------------------------------------- E-step


def by_hand(class_map, masks, n_classes):
    found = torch.full(masks.shape, 255)
    for b in range(len(masks)):
        for i in set(masks[b].flatten().tolist()) - {255}:
            inside = masks[b] == i
            votes = class_map[b][inside].bincount(minlength=n_classes).tolist()
            found[b][inside] = votes.index(max(votes))
    return found


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64])
@pytest.mark.parametrize("n_images", [1, 3])
def test_votes_are_those_of_a_loop(dtype, n_images):
    shape = (n_images, 17, 13)
    masks = whole_numbers(-1, 40, shape, seed=1)  # about five pixels each: many ties
    masks = torch.where(masks < 0, 255, masks).to(dtype)
    class_map = whole_numbers(0, 4, shape).to(dtype)
    found = em.assign_masks(class_map, masks, 4)
    assert found.dtype == torch.int64
    assert torch.equal(found, by_hand(class_map.long(), masks, 4))


def test_the_smallest_class_wins_a_tie():
    class_map = torch.tensor([[[3, 1, 1, 3], [2, 0, 2, 0]]])
    masks = torch.tensor([[[1, 1, 1, 1], [9, 9, 9, 9]]])
    assert em.assign_masks(class_map, masks, 5).tolist() == [[[1] * 4, [0] * 4]]


def test_one_mask_and_more_classes_than_masks():
    class_map = whole_numbers(0, 27, (1, 8, 8))
    class_map[0, :5] = 26
    whole = em.assign_masks(class_map, torch.ones(1, 8, 8, dtype=torch.uint8), 27)
    assert whole.eq(26).all()


def test_images_vote_by_themselves():
    masks = torch.full((2, 4, 4), 7)
    class_map = torch.stack([torch.zeros(4, 4), torch.ones(4, 4)]).long()
    assert torch.equal(em.assign_masks(class_map, masks, 2), class_map)


def test_pixels_without_mask_stay_without_class():
    class_map, masks = whole_numbers(0, 3, (2, 6, 6)), torch.full((2, 6, 6), 255)
    assert em.assign_masks(class_map, masks, 3).eq(255).all()
    masks[0, 0, 0] = 0
    assert em.assign_masks(class_map, masks, 3, ignore=0)[0, 0, 0] == 0
    assert em.assign_masks(class_map, masks, 3, ignore=0)[1].unique().numel() == 1


def test_votes_that_make_no_sense():
    maps = torch.zeros(1, 4, 4).long()
    with pytest.raises(ValueError, match=r"\(1, 4, 4\) and masks \(1, 4, 5\)"):
        em.assign_masks(maps, torch.zeros(1, 4, 5).long(), 3)
    with pytest.raises(ValueError, match=r"same shape \(B, H, W\)"):
        em.assign_masks(maps[0], maps[0], 3)
    with pytest.raises(ValueError, match=r"a class lies in 0\.\.2, got 0\.\.0|3\.\.3"):
        em.assign_masks(maps + 3, maps, 3)
    with pytest.raises(ValueError, match=r"a mask id lies in 0\.\.255, got -1\.\.-1"):
        em.assign_masks(maps, maps - 1, 3)


# ----------------------------------------------------------------------------- M-step


def test_frequent_classes_count_less():
    logits = torch.zeros(1, 3, 4, 4)
    logits[:, 0] = 20.0  # every pixel is class 0
    weights = em.class_weights(logits, (8, 8), 2.0)
    torch.testing.assert_close(weights, torch.tensor([0.0, 1, 1]), atol=1e-6, rtol=0)
    even = em.class_weights(torch.zeros(2, 4, 3, 3), (6, 6), 2.0)
    torch.testing.assert_close(even, torch.full((4,), 0.75**2))


def test_without_gamma_the_focal_loss_is_a_cross_entropy():
    logits, target = normal(2, 5, 3, 4), whole_numbers(0, 7, (2, 12, 16))
    target[target == 6] = 255
    plain = em.prototype_focal_loss(logits, target, gamma=0.0)
    torch.testing.assert_close(plain, linear_probe_loss(logits, target, 5, over="all"))
    focal = em.prototype_focal_loss(logits, target)
    assert focal < plain
    large = em.prototype_focal_loss(upsample(logits, (12, 16)), target)
    torch.testing.assert_close(focal, large)
    assert torch.equal(em.prototype_focal_loss(logits, target.to(torch.uint8)), focal)
    assert em.prototype_focal_loss(logits, target, ignore=1) < focal


def test_focal_loss_does_not_depend_on_how_much_is_done_at_once(monkeypatch):
    target = whole_numbers(0, 5, (5, 12, 12))

    def loss_and_gradient():
        logits = normal(5, 4, 3, 3).requires_grad_()
        loss = em.prototype_focal_loss(logits, target)
        loss.backward()
        return loss.detach(), logits.grad

    whole = loss_and_gradient()
    monkeypatch.setattr(upsampling, "CACHED", 2 * 4 * 144)  # two images of five
    torch.testing.assert_close(loss_and_gradient(), whole)


def test_focal_loss_of_nothing_is_zero_with_zero_gradient():
    logits = normal(1, 4, 3, 3).requires_grad_()
    loss = em.prototype_focal_loss(logits, torch.full((1, 6, 6), 255))
    loss.backward()
    assert loss == 0 and logits.grad.eq(0).all()


# --------------------------------------------------------------------------- momentum


def test_ramp_is_a_mean_of_the_snapshots():
    weights = torch.zeros(51)
    for n in range(1, 51):
        decay = em.momentum_decay(n)
        weights *= decay
        weights[n] += 1 - decay
    expected = torch.full((51,), 1 / 50)
    expected[:3] = torch.tensor([0, 0, 2 / 50])
    torch.testing.assert_close(weights, expected)
    assert em.momentum_decay(50) == em.momentum_decay(1000) == 0.98
    assert em.momentum_decay(1, 0.9, warmup=False) == 0.9


def test_slow_prototypes_move_only_at_their_steps():
    running = PrototypeHead(normal(3, 4))
    slow = PrototypeHead(torch.zeros(3, 4))
    average = EMA(running, em.momentum_ramp(10), target=slow, start=10, every=10)
    for step in range(10):
        average.update(step, 100)
    assert slow.direction.eq(0).all()
    average.update(10, 100)
    assert torch.equal(slow.direction, running.direction)
    fixed = em.momentum_ramp(10, 0.7, warmup=False)
    assert fixed(10, 100) == fixed(90, 100) == 0.7


def test_update_moves_raw_directions_not_prototypes():
    student = PrototypeHead(torch.tensor([[10.0, 0.0]]))
    teacher = PrototypeHead(torch.tensor([[0.0, 1.0]]))
    assert em.ema_update(teacher, student, 5) == pytest.approx(0.8)
    torch.testing.assert_close(teacher.direction.data, torch.tensor([[2.0, 0.8]]))


# ------------------------------------------------------------------------ whole steps


def planted(n=8, seed=0):
    """Features around three directions, and the blocks they come in as masks."""
    centres = 3 * torch.eye(6)[:3]
    names = whole_numbers(0, 3, (n, 2, 2), seed)
    grid = names.repeat_interleave(2, 1).repeat_interleave(2, 2)
    x = centres[grid].movedim(-1, 1) + 0.5 * normal(n, 6, 4, 4, seed=seed)
    ids = torch.arange(1, 5).view(1, 2, 2).expand(n, -1, -1)
    masks = ids.repeat_interleave(8, 1).repeat_interleave(8, 2)
    return (
        x,
        masks.to(torch.uint8),
        names.repeat_interleave(8, 1).repeat_interleave(8, 2),
    )


def test_steps_pull_prototypes_to_what_the_masks_hold():
    x, masks, label = planted()
    start = torch.eye(6)[:3] + 0.4 * normal(3, 6, seed=5)
    model = EMStep(PrototypeHead(start), LinearProbe(6, 3, generator(1)))
    optimisers = model.optimisers(0.05, 0.05)
    ramp = em.momentum_ramp(2)
    average = EMA(model.running, ramp, target=model.slow, start=2, every=2)
    first = None
    for step in range(40):
        found = model.losses(x, x + 0.1 * normal(*x.shape, seed=step), masks, label)
        first = first or {name: value.detach() for name, value in found.items()}
        for optimiser in optimisers.values():
            optimiser.zero_grad()
        found["loss"].backward()
        for optimiser in optimisers.values():
            optimiser.step()
        average.update(step, 40)
    torch.testing.assert_close(found["loss"], found["focal"] + found["linear"])
    assert found["focal"] < first["focal"] and found["linear"] < first["linear"]
    class_map, pseudo = model.vote(x, masks)
    assert (class_map == label).float().mean() > 0.9
    assert (pseudo == label).all()  # the vote cleans the rest


def test_only_running_prototypes_and_probe_are_trained():
    x, masks, label = planted(1)  # a batch of one image
    model = EMStep(PrototypeHead(normal(5, 6)), LinearProbe(6, 5, generator(1)))
    assert model.slow is not model.running
    before = copy.deepcopy(model.state_dict())
    model.losses(x, x, masks, label)["loss"].backward()
    assert all(p.grad is None for p in model.slow.parameters())
    trained = (*model.running.parameters(), *model.linear.parameters())
    assert all(p.grad.abs().sum() > 0 for p in trained)
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    groups = model.optimisers(0.1, 0.2)
    assert [o.param_groups[0]["lr"] for o in groups.values()] == [0.1, 0.2]


def test_the_probe_learns_from_the_plain_view_without_touching_prototypes():
    x, masks, label = planted(2)
    other = normal(*x.shape, seed=9)
    grads = []
    for linear in (LinearProbe(6, 5, generator(1)), None):
        model = EMStep(PrototypeHead(normal(5, 6)), linear)
        found = model.losses(x, other, masks, label)
        assert ("linear" in found) == (linear is not None)
        found["loss"].backward()
        grads.append(model.running.direction.grad)
    torch.testing.assert_close(*grads)
    assert set(model.optimisers(0.1, 0.2)) == {"prototypes"}
    unlabelled = EMStep(PrototypeHead(normal(5, 6)), LinearProbe(6, 5, generator(1)))
    assert set(unlabelled.losses(x, other, masks)) == {"loss", "focal"}


def test_a_step_without_any_mask_or_label_changes_nothing():
    x, masks, label = planted(1)
    model = EMStep(PrototypeHead(normal(5, 6)), LinearProbe(6, 5, generator(1)))
    found = model.losses(x, x, torch.full_like(masks, 255), torch.full_like(label, -1))
    found["loss"].backward()
    assert found["loss"] == 0
    assert all(p.grad.eq(0).all() for p in model.running.parameters())
