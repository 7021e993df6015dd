"""Prototypes, queue and the pixel-to-object loss."""

import math

import pytest
import torch
import torch.nn.functional as F

from uss_utils.environment import generator
from uss_utils.methods._maskcontrast_loss import (
    contrast_and_accuracy,
    inverse_log_weights,
    mask_contrastive_loss,
    object_prototypes,
    pixel_object_logits,
    shrink_masks,
)
from uss_utils.methods._maskcontrast_queue import PrototypeQueue

B, D, H, W, K = 3, 6, 5, 7, 11


def plain_loss(query, masks, prototypes, queue, temperature):
    """The loss from its whole matrix, differentiated by autograd."""
    parts = (query, masks, prototypes, queue, temperature)
    logits, labels = pixel_object_logits(*parts)
    weights = inverse_log_weights(labels, logits.shape[1]).to(logits)
    return F.cross_entropy(logits, labels, weights)


def batch(n=1, seed=0, dtype=torch.float64):
    """Embeddings of two views, masks of ids 0..n, queue."""
    draw = generator(seed)
    query, key = (
        torch.randn(B, D, H, W, generator=draw, dtype=dtype) for _ in range(2)
    )
    masks = [torch.randint(0, n + 1, (B, H, W), generator=draw) for _ in range(2)]
    queue = F.normalize(torch.randn(D, K, generator=draw, dtype=dtype), dim=0)
    return query.requires_grad_(), key, *masks, queue


def value_and_grad(loss, query):
    (grad,) = torch.autograd.grad(loss, query)
    return loss.detach(), grad


# ------------------------------------------------------------------------ prototypes


def test_prototypes_are_directions_of_mean_unit_embeddings():
    _, key, _, masks, _ = batch(n=2)
    rows = object_prototypes(key, masks)
    assert rows.shape == (B * 2, D)
    unit = F.normalize(key, dim=1)
    for image in range(B):
        for number in (1, 2):
            mean = unit[image][:, masks[image] == number].mean(1)
            expected = mean / mean.norm()
            torch.testing.assert_close(rows[2 * image + number - 1], expected)


def test_length_of_an_embedding_does_not_count():
    _, key, _, masks, _ = batch()
    scale = torch.rand(B, 1, H, W, generator=generator(1)) + 0.1
    torch.testing.assert_close(
        object_prototypes(key * scale, masks), object_prototypes(key, masks)
    )


def test_objects_without_pixels_have_a_zero_row():
    _, key, *_ = batch()
    masks = torch.zeros(B, H, W, dtype=torch.bool)
    assert (object_prototypes(key, masks) == 0).all()
    masks[1, 0, 0] = True
    rows = object_prototypes(key, masks, n_objects=2)
    assert rows.norm(dim=1).tolist() == pytest.approx([0, 0, 1, 0, 0, 0])


def test_prototypes_are_float32_under_autocast():
    _, key, masks, _, _ = batch(dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rows = object_prototypes(key, masks)
        half = object_prototypes(key.bfloat16(), masks)
    assert rows.dtype == half.dtype == torch.float32
    assert torch.equal(rows, object_prototypes(key, masks))


# ------------------------------------------------------------------------------ loss


@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("chunk", [1, 8, 4096])
@pytest.mark.parametrize("temperature", [0.05, 0.5, 1.0])
def test_value_and_gradient_equal_autograd(n, chunk, temperature):
    query, key, masks, key_masks, queue = batch(n)
    rest = (masks, object_prototypes(key, key_masks, n), queue, temperature)
    expected = value_and_grad(plain_loss(query, *rest), query)
    # The weights are made in float32.
    actual = value_and_grad(mask_contrastive_loss(query, *rest, chunk), query)
    torch.testing.assert_close(actual, expected, atol=1e-12, rtol=1e-12)


def test_gradcheck():
    query, key, masks, key_masks, queue = batch()
    prototypes = object_prototypes(key, key_masks)
    assert torch.autograd.gradcheck(
        lambda q: mask_contrastive_loss(3 * q, masks, prototypes, queue, chunk=13),
        (query,),
    )


def test_extreme_temperature_stays_finite():
    query, key, masks, key_masks, queue = batch(dtype=torch.float32)
    prototypes = object_prototypes(key, key_masks)
    loss, grad = value_and_grad(
        mask_contrastive_loss(query, masks, prototypes, queue, 1e-3), query
    )
    assert loss.isfinite() and grad.isfinite().all() and loss > 100


def test_second_derivatives_are_refused():
    query, key, masks, key_masks, queue = batch()
    loss = mask_contrastive_loss(query, masks, object_prototypes(key, key_masks), queue)
    (grad,) = torch.autograd.grad(loss.square(), query, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()


def test_order_of_images_does_not_matter():
    query, key, masks, key_masks, queue = batch(n=2)
    order = torch.tensor([2, 0, 1])
    prototypes = object_prototypes(key, key_masks, 2)
    loss, grad = value_and_grad(
        mask_contrastive_loss(query, masks, prototypes, queue), query
    )
    turned = query[order].detach().requires_grad_()
    rows = prototypes.unflatten(0, (B, 2))[order].flatten(0, 1)
    again, turned_grad = value_and_grad(
        mask_contrastive_loss(turned, masks[order], rows, queue), turned
    )
    torch.testing.assert_close(again, loss)
    torch.testing.assert_close(turned_grad, grad[order])


def test_names_of_objects_do_not_matter():
    query, key, masks, key_masks, queue = batch(n=3)
    names = torch.tensor([0, 3, 1, 2])
    losses = [
        mask_contrastive_loss(query, m, object_prototypes(key, k, 3), queue)
        for m, k in ((masks, key_masks), (names[masks], names[key_masks]))
    ]
    torch.testing.assert_close(*losses)


def test_order_of_pixels_and_queue_do_not_matter():
    query, key, masks, key_masks, queue = batch()
    prototypes = object_prototypes(key, key_masks)
    mirrored = mask_contrastive_loss(
        query.flip(3), masks.flip(2), prototypes, queue.flip(1)
    )
    torch.testing.assert_close(
        mirrored, mask_contrastive_loss(query, masks, prototypes, queue)
    )


def test_several_objects_are_images_of_one_object():
    """Each image with n objects equals n copies of it with a binary mask each."""
    n = 3
    query, key, masks, key_masks, queue = batch(n)
    several = mask_contrastive_loss(
        query, masks, object_prototypes(key, key_masks), queue
    )
    ids = torch.arange(1, n + 1).repeat(B)[:, None, None]
    binary, binary_key = (m.repeat_interleave(n, 0) == ids for m in (masks, key_masks))
    copies, key_copies = (x.repeat_interleave(n, 0) for x in (query, key))
    prototypes = object_prototypes(key_copies, binary_key)
    torch.testing.assert_close(prototypes, object_prototypes(key, key_masks))
    one_each = mask_contrastive_loss(copies, binary, prototypes, queue)
    torch.testing.assert_close(one_each, several)
    grads = [torch.autograd.grad(x, query)[0] for x in (several, one_each)]
    torch.testing.assert_close(*grads)


def test_gaps_in_the_ids_change_nothing_where_absent_objects_are_left_out():
    query, key, masks, key_masks, queue = batch()
    expected = mask_contrastive_loss(
        query, masks, object_prototypes(key, key_masks), queue
    )
    prototypes = object_prototypes(key, 3 * key_masks)
    found = mask_contrastive_loss(
        *(query, 3 * masks, prototypes, queue), valid=prototypes.ne(0).any(1)
    )
    torch.testing.assert_close(found, expected)


def test_an_object_missing_from_the_key_view_takes_no_part():
    query, key, masks, key_masks, queue = batch(n=2)
    key_masks[1][key_masks[1] == 2] = 0
    prototypes = object_prototypes(key, key_masks, 2)
    valid = prototypes.ne(0).any(1)
    assert valid.tolist() == [True] * 3 + [False] + [True] * 2
    loss, grad = value_and_grad(
        mask_contrastive_loss(query, masks, prototypes, queue, valid=valid), query
    )
    assert (grad[1][:, masks[1] == 2] == 0).all()
    assert (grad[1][:, masks[1] == 1] != 0).any()
    # The zero row is no negative either.
    without = masks.clone()
    without[1][masks[1] == 2] = 0
    more = prototypes.clone()
    more[3] = F.normalize(torch.ones(D, dtype=more.dtype), dim=0)
    again = mask_contrastive_loss(query, without, more, queue, valid=valid)
    torch.testing.assert_close(again, loss)


@pytest.mark.parametrize("left_out", [False, True])
def test_no_object_pixel(left_out):
    query, key, masks, key_masks, queue = batch()
    prototypes = object_prototypes(key, key_masks)
    valid = torch.zeros(B, dtype=torch.bool) if left_out else None
    masks = masks if left_out else torch.zeros_like(masks)
    loss, accuracy = contrast_and_accuracy(query, masks, prototypes, queue, valid=valid)
    loss, grad = value_and_grad(loss, query)
    assert loss == accuracy == 0 and (grad == 0).all()


def test_whole_image_and_batch_of_one():
    query, key, _, _, queue = batch()
    masks = torch.ones(B, H, W, dtype=torch.bool)
    prototypes = object_prototypes(key, masks)
    loss = mask_contrastive_loss(query, masks, prototypes, queue)
    torch.testing.assert_close(loss, plain_loss(query, masks, prototypes, queue, 0.5))
    one = (query[:1], masks[:1], prototypes[:1])
    alone = mask_contrastive_loss(*one, queue)
    torch.testing.assert_close(alone, plain_loss(*one, queue, 0.5))
    # With nothing to tell it from there is nothing to learn.
    assert mask_contrastive_loss(*one, queue[:, :0]).abs() < 1e-12


def test_landmarks_of_the_curve():
    """ln(B + K e^{-1/T}) with a random queue, ln(B + K) once all is the same."""
    images, size, dim = 32, 128, 512
    query = torch.ones(images, dim, 2, 2, dtype=torch.float64)
    masks = torch.ones(images, 2, 2, dtype=torch.bool)
    prototypes = object_prototypes(query, masks)
    across = torch.zeros(dim, size, dtype=torch.float64)
    across[0], across[1] = 0.5**0.5, -(0.5**0.5)
    loss = mask_contrastive_loss(query, masks, prototypes, across)
    assert float(loss) == pytest.approx(math.log(images + size * math.exp(-2)))
    same = prototypes[0][:, None].expand(dim, size)
    loss, accuracy = contrast_and_accuracy(query, masks, prototypes, same)
    assert float(loss) == pytest.approx(math.log(images + size))
    assert accuracy == 0  # nothing tells the objects apart


def test_accuracy_is_the_share_that_finds_its_object():
    query, key, masks, key_masks, queue = batch(n=2)
    parts = (query, masks, object_prototypes(key, key_masks, 2), queue)
    logits, labels = pixel_object_logits(*parts)
    expected = (logits.argmax(1) == labels).double().mean()
    accuracy = contrast_and_accuracy(*parts, chunk=10)[1]
    torch.testing.assert_close(accuracy, expected)
    assert 0 < accuracy < 1


def test_half_precision_embeddings_under_autocast():
    query, key, masks, key_masks, queue = batch(dtype=torch.float32)
    rest = (masks, object_prototypes(key, key_masks), queue)
    exact, grad = value_and_grad(mask_contrastive_loss(query, *rest), query)
    half = query.detach().bfloat16().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = mask_contrastive_loss(half, *rest)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss.detach(), exact, atol=2e-2, rtol=0)
    (half_grad,) = torch.autograd.grad(loss, half)
    assert half_grad.dtype == torch.bfloat16
    torch.testing.assert_close(half_grad.float(), grad, atol=1e-3, rtol=0.1)


def test_weights_of_columns():
    weights = inverse_log_weights(torch.tensor([0, 0, 0, 2]), 4)
    shares = [0.75, 0, 0.25, 0]
    expected = [1 / math.log(1.02 + share) for share in shares]
    assert weights.tolist() == pytest.approx(expected)
    assert inverse_log_weights(torch.zeros(0).long(), 2).tolist() == pytest.approx(
        [1 / math.log(1.02)] * 2
    )
    with pytest.raises(ValueError, match="c=1 has to be above 1"):
        inverse_log_weights(torch.zeros(1).long(), 1, c=1)


# ----------------------------------------------------------------------------- queue


def test_queue_starts_with_random_directions():
    queue = PrototypeQueue(D, K, generator(3))
    assert queue.negatives.shape == (D, K) and queue.pointer == 0
    norms = queue.negatives.norm(dim=0)
    torch.testing.assert_close(norms, torch.ones(K))
    assert torch.equal(PrototypeQueue(D, K, generator(3)).negatives, queue.negatives)


@pytest.mark.parametrize("at_once", [1, 3, K, K + 4, 2 * K + 1])
def test_queue_keeps_the_last_keys_however_they_come(at_once):
    n = 4 * K + 1
    keys = torch.arange(n * D).float().view(n, D)
    queue = PrototypeQueue(D, K)
    for part in keys.split(at_once):
        queue.push(part)
    expected = torch.empty(D, K)
    for i, key in enumerate(keys):
        expected[:, i % K] = key
    assert torch.equal(queue.negatives, expected)
    assert queue.pointer == n % K


def test_queue_longer_than_the_data_and_pushes_of_nothing():
    queue = PrototypeQueue(D, 100)
    start = queue.negatives.clone()
    queue.push(torch.zeros(4, D))
    queue.push(torch.zeros(0, D))
    assert queue.pointer == 4
    assert torch.equal(queue.negatives[:, 4:], start[:, 4:])
    assert (queue.negatives[:, :4] == 0).all()


def test_empty_queue():
    queue = PrototypeQueue(D, 0)
    queue.push(torch.zeros(4, D))
    assert queue.negatives.shape == (D, 0) and queue.pointer == 0


def test_queue_refuses():
    with pytest.raises(ValueError, match="dim >= 1 and size >= 0, got dim=6, size=-1"):
        PrototypeQueue(D, -1)
    with pytest.raises(ValueError, match=r"shape \(n, 6\), got \(2, 5\)"):
        PrototypeQueue(D, K).push(torch.zeros(2, 5))


# ----------------------------------------------------------------------------- masks


def test_shrunk_masks_take_the_largest_share():
    masks = torch.zeros(1, 4, 8, dtype=torch.int64)
    masks[0, :2, :2] = torch.tensor([[1, 1], [1, 0]])  # 3 of 4
    masks[0, :2, 2:4] = torch.tensor([[1, 1], [0, 0]])  # a half is not enough
    masks[0, :2, 4:6] = torch.tensor([[2, 1], [1, 2]])  # no background: the smaller
    masks[0, 2:, :2] = 2
    masks[0, 2:, 2:4] = torch.tensor([[0, 1], [2, 2]])
    small = shrink_masks(masks, (2, 4))
    assert small.tolist() == [[[1, 0, 1, 0], [2, 2, 0, 0]]]
    assert torch.equal(shrink_masks(masks, (4, 8)), masks)
    assert shrink_masks(masks > 0, (2, 4)).tolist() == [[[1, 0, 1, 0], [1, 1, 0, 0]]]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"temperature": 0}, "temperature has to be above 0"),
        ({"masks": torch.zeros(B, H, W)}, "bool or integer"),
        ({"masks": torch.zeros(B, H, W + 1).long()}, r"got torch.int64 \(3, 5, 8\)"),
        ({"masks": torch.full((B, H, W), 2)}, "name object 2, but only 1 per image"),
        ({"masks": torch.full((B, H, W), -1)}, "ids from 0 .* got -1"),
        ({"prototypes": torch.zeros(B + 1, D)}, r"must have shape \(3 n, 6\)"),
        ({"prototypes": torch.zeros(B, D - 1)}, r"got \(3, 5\) and \(6, 11\)"),
        ({"queue": torch.zeros(K, D)}, r"got \(3, 6\) and \(11, 6\)"),
    ],
)
def test_misfits_are_refused(change, message):
    query, _, masks, _, queue = batch()
    given = {"masks": masks, "prototypes": torch.zeros(B, D), "queue": queue}
    given = {**given, "temperature": 0.5, **change}
    with pytest.raises(ValueError, match=message):
        pixel_object_logits(query, *given.values())
    with pytest.raises(ValueError, match=message):
        mask_contrastive_loss(query, *given.values())
