"""MaskContrast's step: order, key network, queue, edge cases."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.methods.test_maskcontrast_loss import plain_loss
from uss_utils.environment import generator
from uss_utils.methods import _maskcontrast_network as network
from uss_utils.methods._maskcontrast_loss import object_prototypes
from uss_utils.methods._maskcontrast_network import MaskContrast
from uss_utils.pixel_embedder import PixelEmbedder
from uss_utils.resnets import DilatedResNet

B, D, K, SIDE = 3, 4, 8, 16


def embedder(norm=True, upsample=True, head="linear", seed=0) -> PixelEmbedder:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        layers = [nn.Conv2d(3, 6, 3, stride=2, padding=1)]
        layers += [nn.BatchNorm2d(6)] if norm else []
        backbone = nn.Sequential(*layers, nn.ReLU())
        return PixelEmbedder(backbone, 6, D, 5, head, upsample)


def model(size=K, momentum=0.9, **options) -> MaskContrast:
    parts = (embedder(**options), size, 0.5, momentum, generator(1))
    return MaskContrast(*parts).train()


def batch(seed=0, n=1, images=B):
    """Two views and their masks."""
    draw = generator(seed)
    views = [torch.randn(images, 3, SIDE, SIDE, generator=draw) for _ in range(2)]
    size = (images, SIDE, SIDE)
    masks = [torch.randint(0, n + 1, size, generator=draw) for _ in range(2)]
    return *views, *masks


def sgd(of: MaskContrast):
    return torch.optim.SGD(of.query.parameters(), 0.1, momentum=0.9, weight_decay=1e-3)


def descend(of: MaskContrast, optimiser, *given) -> dict:
    losses = of(*given)
    optimiser.zero_grad()
    losses["loss"].backward()
    optimiser.step()
    return {name: value.detach() for name, value in losses.items()}


def same_state(one: nn.Module, other: nn.Module) -> bool:
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


# ----------------------------------------------------------------------------- steps


def written_out(query, key, queue, momentum, optimiser, given):
    """One step as the paper tells it; ``queue`` is a list of rows, the oldest first."""
    view_q, view_k, mask_q, mask_k = given
    embedding, logits = query(view_q)
    target = (mask_q > 0).float()
    weights = torch.where(target > 0, 1 - target.mean(), target.mean())
    saliency = F.binary_cross_entropy_with_logits(logits, target, weights)
    with torch.no_grad():
        for slow, fast in zip(key.parameters(), query.parameters(), strict=True):
            slow.copy_(momentum * slow + (1 - momentum) * fast)
        prototypes = object_prototypes(key(view_k)[0], mask_k)
    negatives = torch.stack(queue, 1)
    contrastive = plain_loss(embedding, mask_q, prototypes, negatives, 0.5)
    queue[:] = [*queue, *prototypes][len(prototypes) :]
    optimiser.zero_grad()
    (contrastive + saliency).backward()
    optimiser.step()
    return {"contrastive": contrastive.detach(), "saliency": saliency.detach()}


@pytest.mark.parametrize("norm", [True, False])
@pytest.mark.parametrize("n", [1, 2])
def test_steps_equal_the_written_out_ones(norm, n):
    own = model(norm=norm)
    query, key = copy.deepcopy(own.query), copy.deepcopy(own.key)
    queue = list(own.queue.negatives.T.clone())
    optimiser = torch.optim.SGD(
        query.parameters(), 0.1, momentum=0.9, weight_decay=1e-3
    )
    mine = sgd(own)
    for step in range(4):
        given = batch(step, n)
        expected = written_out(query, key, queue, 0.9, optimiser, given)
        found = descend(own, mine, *given)
        for name, value in expected.items():
            torch.testing.assert_close(found[name], value)
        torch.testing.assert_close(found["loss"], sum(expected.values()))
    for a, b in ((own.query, query), (own.key, key)):
        torch.testing.assert_close(a.state_dict(), b.state_dict())
    turn = int(own.queue.pointer)
    ordered = own.queue.negatives.roll(-turn, 1)
    torch.testing.assert_close(ordered, torch.stack(queue, 1))


def test_key_follows_the_weights_before_the_step_but_not_the_statistics():
    own = model(momentum=0.75)
    optimiser = sgd(own)
    descend(own, optimiser, *batch(0))
    before = {
        name: [p.clone() for p in getattr(own, name).parameters()]
        for name in ("query", "key")
    }
    descend(own, optimiser, *batch(1))
    for old, fast, slow in zip(*before.values(), own.key.parameters(), strict=True):
        torch.testing.assert_close(slow, 0.75 * fast + 0.25 * old)
        assert slow.grad is None and not slow.requires_grad
    statistics = [m.backbone[1].running_mean for m in (own.query, own.key)]
    assert not torch.allclose(*statistics)


def test_the_key_moves_once_where_a_batch_comes_in_parts():
    own = model()
    descend(own, sgd(own), *batch(0))  # from then on the two networks differ
    before = [p.clone() for p in own.key.parameters()]
    pushed = int(own.queue.pointer)
    own(*batch(1), move_key=False)
    pairs = zip(before, own.key.parameters(), strict=True)
    assert all(torch.equal(*pair) for pair in pairs)
    assert own.queue.pointer == (pushed + B) % K
    own(*batch(1))
    assert not torch.equal(before[0], next(own.key.parameters()))


def test_without_training_nothing_moves_on():
    own = model().eval()
    before = copy.deepcopy(own)
    losses = own(*batch())
    assert same_state(own, before)
    assert set(losses) == {"loss", "contrastive", "saliency", "accuracy"}


def test_state_dict_brings_everything_back():
    own = model()
    optimiser = sgd(own)
    descend(own, optimiser, *batch(0))
    again = model(norm=True)
    again.load_state_dict(own.state_dict())
    assert same_state(own, again)
    for a, b in zip(own(*batch(1)).values(), again(*batch(1)).values(), strict=True):
        assert torch.equal(a, b)
    assert same_state(own, again)


def test_training_tells_objects_apart():
    # The same images every time: in a queue they would be their own negatives.
    start = embedder(head="conv", seed=2)
    own = MaskContrast(start, 0, key_momentum=0.9).train()
    optimiser = torch.optim.SGD(own.query.parameters(), 0.1, momentum=0.9)
    draw = generator(0)
    colours = torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 1]])
    mask = torch.zeros(4, SIDE, SIDE, dtype=torch.bool)
    mask[:, 4:12, 4:12] = True
    rows = []
    for _ in range(100):
        noise = torch.randn(2, 4, 3, SIDE, SIDE, generator=draw)
        views = 0.3 * noise + (colours[..., None, None] - 0.5) * mask[:, None]
        rows.append(descend(own, optimiser, *views, mask, mask))
    first, last = rows[0], rows[-1]
    assert first["accuracy"] < 0.7 and last["accuracy"] > 0.9
    assert last["contrastive"] < 0.5 * first["contrastive"]
    assert last["saliency"] < 0.5 * first["saliency"]


# ------------------------------------------------------------------------ edge cases


def test_no_salient_pixel():
    own = model()
    before = own.queue.negatives.clone()
    view_q, view_k, mask_q, _ = batch()
    nothing = torch.zeros_like(mask_q)
    losses = own(view_q, view_k, nothing, nothing)
    assert losses["loss"] == losses["contrastive"] == losses["saliency"] == 0
    assert losses["accuracy"] == 0
    losses["loss"].backward()
    assert all((p.grad == 0).all() for p in own.query.parameters())
    assert torch.equal(own.queue.negatives, before) and own.queue.pointer == 0


def test_whole_image_salient():
    own = model()
    views = batch()[:2]
    everything = torch.ones(B, SIDE, SIDE, dtype=torch.bool)
    losses = own(*views, everything, everything)
    assert losses["saliency"] == 0 and losses["contrastive"] > 0
    assert losses["loss"].isfinite() and own.queue.pointer == B


def test_one_empty_key_mask_keeps_its_image_out():
    own = model()
    view_q, view_k, mask_q, mask_k = batch()
    mask_k[1] = 0
    others = [0, 2]
    expected = copy.deepcopy(own)
    # Statistics of the batch norms are to be the same.
    for network_ in (own.query, own.key, expected.query, expected.key):
        network_.backbone[1].eval()
    found = own(view_q, view_k, mask_q, mask_k)
    fewer = expected(*(x[others] for x in (view_q, view_k, mask_q, mask_k)))
    torch.testing.assert_close(found["contrastive"], fewer["contrastive"])
    torch.testing.assert_close(own.queue.negatives, expected.queue.negatives)
    assert own.queue.pointer == 2


def test_batch_of_one_and_no_queue():
    own = model(size=0)
    losses = own(*batch(images=1))
    assert losses["contrastive"].abs() < 1e-6  # no negative at all
    losses = model()(*batch(images=1))
    assert losses["contrastive"] > 0.1


def test_queue_longer_than_the_data():
    own = model(size=100)
    for step in range(3):
        assert own(*batch(step))["loss"].isfinite()
    assert own.queue.pointer == 3 * B


def test_coarse_maps_take_coarse_masks():
    own = model(upsample=False)
    fine = batch(n=2)
    coarse = [network.shrink_masks(m, (SIDE // 2, SIDE // 2)) for m in fine[2:]]
    assert not torch.equal(fine[2][:, ::2, ::2], coarse[0])
    again = copy.deepcopy(own)
    found, expected = own(*fine), again(*fine[:2], *coarse)
    for name, value in found.items():
        assert torch.equal(value, expected[name])


def test_given_features_with_masks_of_pixels():
    decoder = PixelEmbedder(nn.Identity(), 12, D, 5, "conv")
    own = MaskContrast(decoder, K).train()
    views = torch.randn(2, B, 12, 4, 4, generator=generator(0))
    losses = own(*views, *batch()[2:])
    assert losses["loss"].isfinite() and own.queue.pointer > 0


def test_gradients_under_autocast_are_finite():
    own = model()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = own(*batch())
    losses["loss"].backward()
    assert losses["loss"].dtype == own.queue.negatives.dtype == torch.float32
    assert all(p.grad.isfinite().all() for p in own.query.parameters())


def test_frozen_stages_of_both_networks():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        own = MaskContrast(
            PixelEmbedder(DilatedResNet("resnet18"), 512, D, 8, "conv", False), K
        )
    own.freeze_backbone_stages(2)
    own.train()
    before = copy.deepcopy(own)
    draw = generator(0)
    views = torch.randn(2, B, 3, 32, 32, generator=draw)
    masks = torch.zeros(B, 32, 32, dtype=torch.bool)
    masks[:, :16] = True
    optimiser = sgd(own)
    for _ in range(2):  # the first update of the key finds equal weights
        descend(own, optimiser, *views, masks, masks)
    for name in ("query", "key"):
        now, then = (getattr(m, name).backbone for m in (own, before))
        for part in ("conv1", "bn1", "layer1", "layer2"):
            assert same_state(getattr(now, part), getattr(then, part)), (name, part)
        for part in ("layer3", "layer4"):
            assert not same_state(getattr(now, part), getattr(then, part))
    assert not any(p.requires_grad for p in own.key.parameters())


def test_bad_settings():
    with pytest.raises(ValueError, match="temperature has to be above 0"):
        MaskContrast(embedder(), temperature=0)
    with pytest.raises(ValueError, match=r"key momentum lies in \[0, 1\], got 1.5"):
        MaskContrast(embedder(), key_momentum=1.5)
    with pytest.raises(ValueError, match="size >= 0"):
        MaskContrast(embedder(), -1)
    view_q, view_k, mask_q, mask_k = batch()
    with pytest.raises(ValueError, match=r"masks must have shape \(3, H, W\)"):
        model()(view_q, view_k, mask_q, mask_k[:2])
    with pytest.raises(ValueError, match=r"masks must have shape \(3, H, W\)"):
        model()(view_q, view_k, mask_q[:, None], mask_k)
