"""MaskContrast's evaluations against the recorded pairs."""

import pytest
import torch

from tests.golden.golden import assert_close, golden_files, load
from uss_utils import crf
from uss_utils.clustering import kmeans
from uss_utils.environment import generator
from uss_utils.linear_classifier import ClassifierRecipe
from uss_utils.metrics import Confusion, mutual_information, rand_index
from uss_utils.pca import PCA
from uss_utils.probes import LinearProbe, linear_prediction_upsampled, linear_probe_loss
from uss_utils.scored_batches import resized
from uss_utils.segments import (
    SegmentMemory,
    class_maps,
    cluster_segments,
    label_maps,
    segment_prototypes,
)
from uss_utils.upsampling import upsample

pytestmark = pytest.mark.golden


def ignored(label):
    """Labels as the package has them: -1 where nothing is known."""
    return label.long().where(label != 255, torch.tensor(-1))


# ------------------------------------------------------------------------- k-means


@pytest.mark.parametrize("path", golden_files("maskcontrast", "kmeans_prototypes*.npz"))
def test_prototypes_and_label_maps(path):
    pair = load(path)
    prototypes, masks = segment_prototypes(
        pair["in_embedding"], pair["in_saliency_logit"], pair["param_threshold"]
    )
    assert_close(prototypes, pair["out_prototypes"], 1e-5)
    maps = label_maps(masks, pair["in_assignment"].long())
    assert torch.equal(maps, pair["out_label_map"].long())


@pytest.mark.parametrize("path", golden_files("maskcontrast", "kmeans_prototypes*.npz"))
def test_whitening(path):
    pair = load(path)
    prototypes, expected = pair["out_prototypes"], pair["out_whitened"]
    pca = PCA.fit(prototypes, expected.shape[1], whiten=True)
    assert_close(pca.mean, pair["out_pca_mean"], 1e-5)
    assert_close(pca.scale.square(), pair["out_pca_variance"], 1e-5)
    found = pca.transform(prototypes)
    signs = (found * expected).sum(0).sign()
    assert_close(found * signs, expected, 5e-3)


@pytest.mark.parametrize("path", golden_files("maskcontrast", "kmeans_prototypes*.npz"))
def test_clustering_is_as_tight(path):
    pair = load(path)
    k = pair["param_n_clusters"] - 1
    found = kmeans(
        pair["out_whitened"],
        k,
        metric="euclidean",
        restarts=10,
        iterations=100,
        generator=generator(0),
    )
    assert found.inertia <= 1.03 * pair["out_inertia_reference"]
    ours = cluster_segments(
        pair["out_prototypes"], k, num_components=pair["out_whitened"].shape[1]
    )
    assert ours.inertia <= 1.03 * pair["out_inertia_reference"]


@pytest.mark.parametrize("path", golden_files("maskcontrast", "kmeans_matching*.npz"))
def test_matching_by_iou(path):
    pair = load(path)
    n_classes, n_clusters = pair["param_n_classes"], pair["param_n_clusters"]
    confusion = Confusion(n_classes, n_clusters - n_classes)
    for i in range(pair["param_n_images"]):
        label = ignored(pair[f"in_gt_{i}"])
        pred = resized(pair[f"in_pred_{i}"][None].long(), tuple(label.shape))[0]
        confusion.update(pred, label)
    matching = confusion.match("iou" if n_clusters > n_classes else "hungarian-iou")
    scores = confusion.scores(matching, absent=0)
    # A cluster without pixels has no class of its own; which one it is given is moot.
    seen = confusion.matrix.sum(1)[pair["out_match"][:, 0]] > 0
    cluster, known = pair["out_match"][seen].unbind(1)
    assert torch.equal(matching.cluster_to_class[cluster], known)
    assert_close(scores.iou / 100, pair["out_iou"], 1e-9)
    assert scores.miou_classes / 100 == pytest.approx(pair["out_miou"], abs=1e-9)
    assert scores.acc / 100 == pytest.approx(pair["out_accuracy"], abs=1e-9)
    nmi, ari = mutual_information(scores.histogram), rand_index(scores.histogram)
    assert nmi == pytest.approx(pair["out_nmi"], abs=1e-9)
    assert ari == pytest.approx(pair["out_ari"], abs=1e-9)


@pytest.mark.parametrize("path", golden_files("maskcontrast", "iou_meter*.npz"))
def test_iou_meter(path):
    pair = load(path)
    confusion = Confusion(pair["param_n_classes"])
    for pred, label in zip(pair["in_pred"], pair["in_gt"], strict=True):
        confusion.update(pred, ignored(label))
    counts = confusion.matrix
    hits = counts.diagonal()
    assert torch.equal(hits, pair["out_tp"])
    assert torch.equal(counts.sum(1) - hits, pair["out_fp"])
    assert torch.equal(counts.sum(0) - hits, pair["out_fn"])
    scores = confusion.scores("identity", absent=0)
    assert_close(scores.iou / 100, pair["out_iou"], 1e-12)
    assert scores.miou / 100 == pytest.approx(pair["out_miou"], abs=1e-12)


# ----------------------------------------------------------------------- retrieval


@pytest.mark.parametrize("path", golden_files("maskcontrast", "retrieval_*.npz"))
def test_retrieval(path):
    pair = load(path)
    outside = pair["param_ignore_classes"].long()
    truth, given = {}, {}
    for split in ("train", "val"):
        label = ignored(pair[f"in_{split}_gt"])
        truth[split] = label.where(~torch.isin(label, outside), -1)
        given[split] = segment_prototypes(
            pair[f"in_{split}_embedding"],
            pair[f"in_{split}_saliency_logit"],
            pair["param_threshold"],
        )
    memory = SegmentMemory.build(*given["train"], truth["train"])
    assert_close(memory.prototypes, pair["out_memory_prototypes"], 1e-5)
    assert torch.equal(memory.labels, pair["out_memory_labels"].long())
    queries, masks = given["val"]
    found = class_maps(masks, memory.retrieve(queries)[0])
    assert torch.equal(found, pair["out_prediction"].long())
    alone = [memory.retrieve(row[None])[0] for row in queries]
    assert torch.equal(torch.cat(alone), memory.retrieve(queries)[0])
    confusion = Confusion.of(found, truth["val"], len(pair["out_iou"]))
    iou = confusion.scores("identity", absent=0).iou / 100
    assert_close(iou, pair["out_iou"], 1e-9)
    averaged = iou[pair["out_classes_averaged"].long()].mean()
    assert float(averaged) == pytest.approx(pair["out_miou"], abs=1e-9)


# --------------------------------------------------------------- linear classifier


@pytest.mark.parametrize("path", golden_files("maskcontrast", "linear_probe*.npz"))
def test_linear_classifier(path):
    pair = load(path)
    n_classes, dim = pair["in_weight"].shape
    probe = LinearProbe(dim, n_classes)
    probe.weight.data = pair["in_weight"][:, :, None, None].clone()
    probe.bias.data = pair["in_bias"].clone()
    recipe = ClassifierRecipe(
        lr=pair["param_lr"],
        momentum=pair["param_momentum"],
        weight_decay=pair["param_weight_decay"],
    )
    optimiser = recipe.optimiser(probe)
    running, losses = Confusion(n_classes), []
    truth = ignored(pair["in_gt"])
    size = tuple(truth.shape[-2:])
    for i, (feat, label) in enumerate(zip(pair["in_features"], truth, strict=True)):
        logits = probe(feat)
        loss = linear_probe_loss(logits, label, n_classes)
        optimiser.zero_grad()
        loss.backward()
        losses.append(float(loss.detach()))
        running.update(linear_prediction_upsampled(probe, feat, size), label)
        if i == 0:
            seen = upsample(logits.detach(), size)[..., ::3, ::3]
            assert_close(seen, pair["out_logits_first"], 1e-6)
            assert_close(loss.detach(), pair["out_loss_first"], 1e-5)
            grad = probe.weight.grad[:, :, 0, 0]
            assert_close(grad, pair["out_grad_weight_first"], 1e-6)
            assert_close(probe.bias.grad, pair["out_grad_bias_first"], 1e-6)
        optimiser.step()
    assert_close(torch.tensor(losses), pair["out_losses"], 1e-5)
    assert_close(probe.weight.detach()[:, :, 0, 0], pair["out_weight"], 1e-5)
    assert_close(probe.bias.detach(), pair["out_bias"], 1e-5)
    final = Confusion(n_classes)
    for feat, label in zip(pair["in_features"], truth, strict=True):
        final.update(linear_prediction_upsampled(probe, feat, size), label)
    for counted, name in ((running, "running"), (final, "eval")):
        iou = counted.scores("identity", absent=0).iou / 100
        assert_close(iou, pair[f"out_{name}_iou"], 1e-3)
    assert float(iou.mean()) == pytest.approx(pair["out_eval_miou"], abs=1e-3)


# ----------------------------------------------------------------------------- CRF


@pytest.mark.skipif(not crf.available(), reason="pydensecrf is not installed")
@pytest.mark.parametrize("path", golden_files("maskcontrast", "dense_crf*.npz"))
def test_dense_crf(path):
    pair = load(path)
    params = crf.CRFParams(
        **{
            name.removeprefix("param_"): value
            for name, value in pair.items()
            if name.startswith("param_")
        }
    )
    # The CRF itself hands the channels on in the recorded order, blue first.
    for image, tolerance in (
        (pair["in_image_rgb"], 1e-3),
        (pair["in_image_rgb"].flip(-1), 5e-2),
    ):
        found = crf.dense_crf(image.contiguous(), pair["in_logits"], params)
        assert_close(found, pair["out_probability"], tolerance)
        same = found.argmax(0) == pair["out_label"].long()
        assert same.float().mean() >= 0.995
