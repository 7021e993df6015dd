"""The balanced cross-entropy, and heads that learn to predict masks."""

import pytest
import torch
import torch.nn.functional as F

from uss_utils.environment import generator, seed_all
from uss_utils.saliency_head import SaliencyHead, balanced_bce, distil_saliency


def pairs(*shape, seed=0):
    rng = generator(seed)
    logits = torch.randn(*shape, generator=rng, dtype=torch.float64)
    return logits, torch.rand(*shape, generator=rng) < 0.3


# ------------------------------------------------------------------------------- loss


def test_loss_is_the_weighted_cross_entropy():
    logits, masks = pairs(3, 5, 7)
    share = (~masks).double().mean()
    weight = torch.where(masks, share, 1 - share)
    expected = F.binary_cross_entropy_with_logits(logits, masks.double(), weight)
    assert torch.allclose(balanced_bce(logits, masks), expected)
    assert torch.allclose(balanced_bce(logits, 4 * masks.long()), expected)


def test_at_zero_the_gradients_of_both_classes_cancel():
    _, masks = pairs(2, 6, 6)
    logits = torch.zeros(2, 6, 6, dtype=torch.float64, requires_grad=True)
    balanced_bce(logits, masks).backward()
    share = (~masks).double().mean()
    for sign, part in ((-1, masks), (1, ~masks)):
        assert torch.isclose(logits.grad[part].sum(), sign * share * (1 - share) / 2)


@pytest.mark.parametrize("value", [False, True])
def test_one_class_alone_costs_nothing(value):
    logits = torch.randn(2, 4, 4, generator=generator(0)).requires_grad_()
    loss = balanced_bce(logits, torch.full((2, 4, 4), value))
    loss.backward()
    assert loss == 0 and (logits.grad == 0).all()


def test_large_logits_stay_finite():
    logits = torch.tensor([1e4, -1e4, 1e4, -1e4]).requires_grad_()
    loss = balanced_bce(logits, torch.tensor([True, True, False, False]))
    loss.backward()
    assert loss == 2 * 1e4 * 0.5 / 4 and logits.grad.isfinite().all()


def test_half_precision_is_computed_in_single():
    logits, masks = pairs(2, 8, 8)
    loss = balanced_bce(logits.half(), masks)
    assert loss.dtype == torch.float32
    assert torch.isclose(loss, balanced_bce(logits.half().float(), masks))


def test_wrong_shapes():
    with pytest.raises(ValueError, match=r"\(2, 3\) and masks \(3, 2\) must have"):
        balanced_bce(torch.ones(2, 3), torch.ones(3, 2))
    with pytest.raises(ValueError, match="at least one pixel"):
        balanced_bce(torch.ones(0, 3), torch.ones(0, 3))


# ------------------------------------------------------------------------------- heads


def material(n=64, size=8):
    """Features in which a direction tells objects; masks wrong at one place in five."""
    rng = generator(3)
    truth = torch.zeros(n, size, size, dtype=torch.bool)
    truth[:, 2:6, 3:7] = True
    feat = torch.randn(n, 12, size, size, generator=rng)
    feat[:, 0] += torch.where(truth, 2.0, -2.0)
    wrong = torch.rand(n, size, size, generator=rng) < 0.2
    return feat, truth, truth ^ wrong


@pytest.mark.parametrize(("kind", "epochs"), [("linear", 20), ("conv", 3)])
def test_a_head_is_better_than_the_masks_it_learned_from(kind, epochs):
    feat, truth, noisy = material()
    seed_all(0)
    head = SaliencyHead(12, kind)
    losses = distil_saliency(head, feat, noisy, epochs=epochs, lr=1e-2, batch_size=8)
    assert len(losses) == epochs and losses[-1] < 0.9 * losses[0]
    with torch.no_grad():
        right = ((head(feat) > 0) == truth).float().mean()
    assert right > 0.9 > 0.85 > (noisy == truth).float().mean()


def test_masks_may_be_larger_than_the_grid():
    feat, truth, _ = material()
    large = truth.repeat_interleave(4, 1).repeat_interleave(4, 2)
    head = SaliencyHead(12)
    distil_saliency(head, feat, large.long() * 3, epochs=15, lr=3e-2)
    with torch.no_grad():
        assert ((head(feat) > 0) == truth).float().mean() > 0.9


def test_features_may_lie_on_disk():
    class Stored:
        def __len__(self):
            return len(feat)

        def batch(self, indices):
            return feat[indices]

    feat, truth, _ = material()
    heads = []
    for features in (feat, Stored()):
        seed_all(0)
        heads.append(SaliencyHead(12))
        distil_saliency(heads[-1], features, truth)
    for a, b in zip(*(head.parameters() for head in heads), strict=True):
        assert torch.equal(a, b)


def test_wrong_material():
    feat, truth, _ = material()
    with pytest.raises(ValueError, match="64 images of features, but 63 masks"):
        distil_saliency(SaliencyHead(12), feat, truth[1:])
    with pytest.raises(ValueError, match="hold background only"):
        distil_saliency(SaliencyHead(12), feat, torch.zeros_like(truth))
    with pytest.raises(ValueError, match="hold object only"):
        distil_saliency(SaliencyHead(12), feat, torch.ones_like(truth))
    with pytest.raises(ValueError, match="unknown kind 'mlp'; known: linear, conv"):
        SaliencyHead(12, "mlp")
