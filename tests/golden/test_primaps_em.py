"""PriMaPs-EM's start, votes, losses and whole steps against the recorded pairs."""

import re

import numpy as np
import pytest
import torch

from tests.golden.golden import assert_close, golden_files, load
from uss_utils import crf
from uss_utils.datasets.labels import LABEL_MAPS, remap
from uss_utils.datasets.transforms import Transform, denormalise
from uss_utils.methods._primaps_em import (
    EMStep,
    PrototypeHead,
    assign_masks,
    class_weights,
    cosine_kmeans_loss,
    ema_update,
    momentum_ramp,
    pca_centers,
    prototype_focal_loss,
)
from uss_utils.metrics import Confusion
from uss_utils.probes import (
    ClusterProbe,
    LinearProbe,
    cluster_log_probs_upsampled,
    cluster_prediction_upsampled,
    linear_prediction_upsampled,
    linear_probe_loss,
)
from uss_utils.schedules import EMA

pytestmark = pytest.mark.golden


def linear_of(pair: dict) -> LinearProbe:
    probe = LinearProbe(*pair["in_linear_w"].shape[::-1])
    probe.weight.data = pair["in_linear_w"][:, :, None, None].clone()
    probe.bias.data = pair["in_linear_b"].clone()
    return probe


def prototypes(pair: dict, prefix: str = "in_") -> PrototypeHead:
    return PrototypeHead(pair[f"{prefix}direction"], pair[f"{prefix}gain"])


def differing(actual: torch.Tensor, expected: torch.Tensor) -> float:
    return float((actual != expected.long()).float().mean())


# ------------------------------------------------------------------------------ start


@pytest.mark.parametrize("path", golden_files("primaps", "pca_init*.npz"))
def test_start_at_the_principal_directions(path):
    pair = load(path)
    feats = pair["in_feats"]
    for size in (len(feats), 1):  # all at once, image by image
        found = pca_centers(feats.split(size), pair["param_n_classes"])
        expected = pair["out_centers_upto_sign"]
        signs = (found * expected).sum(1, keepdim=True).sign()
        assert_close(found * signs, expected, 1e-3)
        rows = feats.movedim(1, -1).flatten(0, -2)
        assert ((rows @ found.T).mean(0) > 0).all()
        spread = (rows - rows.mean(0)) @ found.T
        assert_close(spread.norm(dim=0), pair["out_singular_values"], 1e-3)


@pytest.mark.parametrize("path", golden_files("primaps", "kmeans_steps*.npz"))
def test_steps_of_cosine_kmeans(path):
    pair = load(path)
    centers = pair["in_centers"].clone().requires_grad_()
    linear = linear_of(pair)
    optimisers = [
        torch.optim.Adam([centers], lr=pair["param_lr"]),
        torch.optim.Adam(linear.parameters(), lr=pair["param_linear_lr"]),
    ]
    similarity = ClusterProbe.from_centroids(centers).scores(pair["in_feats"][0])
    assert_close(similarity.detach(), pair["out_similarity_first"], 1e-5)
    for s, (x, label) in enumerate(
        zip(pair["in_feats"], pair["in_labels"].long(), strict=True)
    ):
        label[label == pair["param_ignore"]] = -1
        loss, names = cosine_kmeans_loss(x, centers)
        probed = linear_probe_loss(linear(x), label, len(centers), over="all")
        for optimiser in optimisers:
            optimiser.zero_grad()
        (loss + probed).backward()
        assert torch.equal(names, pair["out_assign"][s].long())
        assert_close(loss.detach(), pair["out_loss"][s], 1e-5)
        assert_close(probed.detach(), pair["out_linear_loss"][s], 1e-5)
        assert_close(centers.grad, pair["out_grad_centers"][s], 1e-5)
        for optimiser in optimisers:
            optimiser.step()
        assert_close(centers.detach(), pair["out_centers"][s], 1e-4)
        assert_close(linear.weight[..., 0, 0].detach(), pair["out_linear_w"][s], 1e-4)
        assert_close(linear.bias.detach(), pair["out_linear_b"][s], 1e-4)


# --------------------------------------------------------------------- votes and loss


@pytest.mark.parametrize("path", golden_files("primaps", "assign*.npz"))
def test_masks_vote(path):
    pair = load(path)
    found = assign_masks(
        pair["in_class_map"],
        pair["in_masks"],
        pair["param_n_classes"],
        pair["param_ignore"],
    )
    assert torch.equal(found, pair["out_pseudo"].long())


@pytest.mark.parametrize("path", golden_files("primaps", "focal*.npz"))
def test_focal_loss(path):
    pair = load(path)
    logits, target = pair["in_logits"].requires_grad_(), pair["in_target"]
    gamma = pair["param_gamma"]
    weights = class_weights(logits, tuple(target.shape[-2:]), gamma)
    assert_close(weights, pair["out_class_weight"], 1e-6)
    loss = prototype_focal_loss(logits, target, gamma, pair["param_ignore"])
    loss.backward()
    assert_close(loss.detach(), pair["out_loss"], 1e-6)
    assert_close(logits.grad, pair["out_grad_logits"], 1e-7)


# --------------------------------------------------------------------------- momentum


@pytest.mark.parametrize("path", golden_files("primaps", "ema*.npz"))
@pytest.mark.parametrize("every", [None, 10])  # by hand, or as training does it
def test_slow_prototypes(path, every):
    pair = load(path)
    directions, gains = pair["in_student_direction"], pair["in_student_gain"]
    student, teacher = (PrototypeHead(directions[0], gains[0]) for _ in range(2))
    ramp = momentum_ramp(every or 1, pair["param_decay"])
    average = EMA(student, ramp, target=teacher, start=every or 1, every=every or 1)
    for call, decay in enumerate(pair["out_decay"], start=1):
        student.direction.data, student.gain.data = directions[call], gains[call]
        if every is None:
            used = ema_update(teacher, student, call, pair["param_decay"])
        else:
            steps = range(every * call, every * (call + 1))
            for step in steps:
                average.update(step, 1000)
            used = ramp(steps[0], 1000)
        assert_close(used, decay, 1e-5)
        assert_close(teacher.direction.data, pair["out_ema_direction"][call - 1], 1e-5)
        assert_close(teacher.gain.data, pair["out_ema_gain"][call - 1], 1e-5)


# ------------------------------------------------------------------------ whole steps


@pytest.mark.parametrize("path", golden_files("primaps", "em_steps*.npz"))
def test_whole_steps(path):
    pair = load(path)
    model = EMStep(prototypes(pair), linear_of(pair), gamma=pair["param_gamma"])
    optimisers = model.optimisers(pair["param_lr"], pair["param_linear_lr"]).values()
    every = pair["param_ema_every"]
    ramp = momentum_ramp(every, pair["param_ema_decay"])
    average = EMA(model.running, ramp, target=model.slow, start=every, every=every)
    masks, labels = pair["in_masks"], pair["in_labels"].long()
    labels[labels == pair["param_ignore"]] = -1
    for s, views in enumerate(
        zip(pair["in_teacher_feats"], pair["in_student_feats"], strict=True)
    ):
        class_map, pseudo = model.vote(views[0], masks[s])
        assert differing(class_map, pair["out_class_map"][s]) <= 1e-3
        assert torch.equal(pseudo, pair["out_pseudo"][s].long())
        found = model.losses(*views, masks[s], labels[s])
        for optimiser in optimisers:
            optimiser.zero_grad()
        found["loss"].backward()
        assert_close(found["focal"].detach(), pair["out_loss"][s], 1e-5)
        assert_close(found["linear"].detach(), pair["out_linear_loss"][s], 1e-5)
        for optimiser in optimisers:
            optimiser.step()
        average.update(s, len(masks))
        for name in ("gain", "direction"):
            running, slow = (getattr(m, name) for m in (model.running, model.slow))
            assert_close(running.grad, pair[f"out_grad_{name}"][s], 1e-5)
            assert_close(running.detach(), pair[f"out_{name}"][s], 1e-4)
            assert_close(slow, pair[f"out_ema_{name}"][s], 1e-4)


# ------------------------------------------------------------------------- evaluation


@pytest.mark.parametrize("path", golden_files("primaps", "metrics*.npz"))
def test_metrics(path):
    pair = load(path)
    n_classes = pair["param_n_classes"]
    confusion = Confusion.of(pair["in_pred"], pair["in_label"].long(), n_classes)
    assert torch.equal(confusion.matrix, pair["out_confusion"].long())
    matching = confusion.match("hungarian" if pair["param_hungarian"] else "identity")
    table = pair["out_cluster_to_class"].long()
    assert torch.equal(matching.cluster_to_class, table)
    scores = confusion.scores(matching)
    assert scores.miou == pytest.approx(pair["out_miou"], abs=1e-3)
    assert scores.acc == pytest.approx(pair["out_accuracy"], abs=1e-3)
    expected = pair["out_class_iou"].double()
    torch.testing.assert_close(scores.iou, expected, atol=1e-3, rtol=0, equal_nan=True)


@pytest.mark.parametrize("path", golden_files("primaps", "test_step*.npz"))
@torch.no_grad()
def test_one_batch_of_the_evaluation(path):
    pair = load(path)
    x = (pair["in_feats"] + pair["in_feats_of_mirrored"].flip(-1)) / 2
    size = tuple(pair["in_labels"].shape[-2:])
    found = linear_prediction_upsampled(linear_of(pair), x, size)
    assert differing(found, pair["out_pred_linear"]) <= 1e-3
    for name in ("running", "momentum"):
        mu = prototypes(pair, f"in_{name}_").effective()
        probe = ClusterProbe.from_centroids(mu, "dot")
        if name == "momentum" and pair["param_normalise_features_for_momentum"]:
            probe = ClusterProbe.from_centroids(pair["in_momentum_direction"])
        found = cluster_prediction_upsampled(probe, x, size)
        assert differing(found, pair[f"out_pred_{name}"]) <= 1e-3
        if f"out_pred_{name}_crf" in pair and crf.available():
            logits = cluster_log_probs_upsampled(probe, x, size, alpha=1.0)
            sharp = [
                crf.dense_crf(image, each).argmax(0)
                for image, each in zip(pair["in_image_u8"], logits, strict=True)
            ]
            expected = pair[f"out_pred_{name}_crf"]
            assert differing(torch.stack(sharp), expected) <= 5e-3
    labels = pair["in_labels"].long()
    labels[labels >= pair["param_n_classes"]] = 255
    assert torch.equal(labels, pair["out_labels_used"].long())


@pytest.mark.parametrize("path", golden_files("primaps", "label_maps*.npz"))
def test_label_maps(path):
    pair = load(path)
    names = {"cityscapes": "cityscapes27", "potsdam": "potsdam3"}
    found = [re.fullmatch(r"out_(\w+)", key) for key in pair]
    for name in (match.group(1) for match in found if match):
        ids, expected = pair["in_id"].long(), pair[f"out_{name}"].long()
        expected[expected == 255] = -1
        if name == "cocostuff":
            # Ids that no file holds became class 0; here they are ignored.
            known = (ids < 182) | (ids == 255)
            ids, expected = ids[known], expected[known]
        table = LABEL_MAPS[names.get(name, "cocostuff27")]
        assert torch.equal(remap(ids, table), expected), name


@pytest.mark.parametrize("path", golden_files("primaps", "geometry*.npz"))
def test_geometry_of_training_and_of_evaluation(path):
    pair = load(path)
    image, label = pair["in_image_u8"].numpy(), pair["in_label"].numpy()
    size = pair["param_size"]
    training = Transform("center", size, "bilinear")
    expected = pair["out_train_image_u8"].movedim(0, -1).numpy()
    assert np.array_equal(training.apply_image(image), expected)
    assert np.array_equal(training.apply_label(label), pair["out_train_label"].numpy())
    found, ids = Transform("center", size, "tensor")(image, label.astype(np.int64))
    assert_close(denormalise(found), pair["out_val_image"], 1e-5)
    assert torch.equal(ids, pair["out_val_label"].long())
