"""MaskContrast's loss, saliency loss and queue against the recorded pairs."""

import pytest
import torch

from tests.golden.golden import assert_close, golden_files, load
from uss_utils.methods._maskcontrast_loss import (
    inverse_log_weights,
    mask_contrastive_loss,
    object_prototypes,
    pixel_object_logits,
)
from uss_utils.methods._maskcontrast_queue import PrototypeQueue
from uss_utils.saliency_head import balanced_bce
from uss_utils.schedules import poly_schedule, step_schedule

pytestmark = pytest.mark.golden


def queue_of(pair: dict, pointer: int) -> PrototypeQueue:
    dim, size = pair["in_queue"].shape
    queue = PrototypeQueue(dim, size)
    queue.negatives.copy_(pair["in_queue"])
    queue.pointer.fill_(pointer)
    return queue


@pytest.mark.parametrize("path", golden_files("maskcontrast", "contrastive_step*.npz"))
def test_parts_of_a_step(path):
    pair = load(path)
    prototypes = object_prototypes(pair["in_key_embedding"], pair["in_key_mask"])
    assert_close(prototypes, pair["out_prototypes"], 1e-5)
    logits, labels = pixel_object_logits(
        pair["in_query_embedding"],
        pair["in_query_mask"],
        prototypes,
        pair["in_queue"],
        pair["param_temperature"],
    )
    assert_close(logits, pair["out_logits"], 1e-5)
    assert torch.equal(labels, pair["out_labels"])
    weights = inverse_log_weights(labels, logits.shape[1])
    assert_close(weights, pair["out_class_weight"], 1e-4)
    queue = queue_of(pair, pair["in_queue_ptr"])
    queue.push(prototypes)
    assert_close(queue.negatives, pair["out_queue_after"], 1e-5)
    assert int(queue.pointer) == pair["out_queue_ptr_after"]


@pytest.mark.parametrize("path", golden_files("maskcontrast", "contrastive_step*.npz"))
@pytest.mark.parametrize("chunk", [7, 4096])
def test_losses_and_gradients_of_a_step(path, chunk):
    pair = load(path)
    query = pair["in_query_embedding"].clone().requires_grad_()
    logit = pair["in_saliency_logit"].clone().requires_grad_()
    prototypes = object_prototypes(pair["in_key_embedding"], pair["in_key_mask"])
    contrastive = mask_contrastive_loss(
        query,
        pair["in_query_mask"],
        prototypes,
        pair["in_queue"],
        pair["param_temperature"],
        chunk,
    )
    saliency = balanced_bce(logit, pair["in_query_mask"])
    (contrastive + saliency).backward()
    assert_close(contrastive.detach(), pair["out_contrastive_loss"], 1e-5)
    assert_close(saliency.detach(), pair["out_saliency_loss"], 1e-5)
    total = (contrastive + saliency).detach()
    assert_close(total, pair["out_total_loss"], 1e-5)
    assert_close(query.grad, pair["out_grad_query_embedding"], 1e-6)
    assert_close(logit.grad, pair["out_grad_saliency_logit"], 1e-6)


@pytest.mark.parametrize("path", golden_files("maskcontrast", "queue_update*.npz"))
def test_queue(path):
    pair = load(path)
    queue = queue_of(pair, 0)
    for keys, after, pointer in zip(
        pair["in_keys"], pair["out_queue"], pair["out_ptr"], strict=True
    ):
        queue.push(keys)
        assert torch.equal(queue.negatives, after)
        assert queue.pointer == pointer


@pytest.mark.parametrize("path", golden_files("maskcontrast", "lr_schedules*.npz"))
@pytest.mark.parametrize("per_epoch", [1, 3])
def test_schedules(path, per_epoch):
    pair = load(path)
    milestones = pair["param_step_milestones"].tolist()
    for name, schedule in (
        ("poly", poly_schedule(every=per_epoch)),
        ("step", step_schedule(milestones, pair["param_step_decay"], per_epoch)),
    ):
        expected = pair[f"out_{name}_lr"]
        total = pair[f"param_{name}_epochs"] * per_epoch
        assert total == len(expected) * per_epoch
        base = pair[f"param_{name}_base_lr"]
        rates = [base * schedule(step, total) for step in range(total)]
        assert_close(
            torch.tensor(rates, dtype=torch.float64),
            expected.repeat_interleave(per_epoch),
            1e-12,
        )
