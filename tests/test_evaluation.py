"""One protocol, one evaluation: scores, maps, CRF, sets without labels, bad input."""

import json
from dataclasses import asdict

import numpy as np
import pytest
import torch

from tests.models import CLASSES, Stripes, grey_model
from uss_utils import crf
from uss_utils.crf import CRFParams
from uss_utils.datasets.transforms import Transform
from uss_utils.evaluation import EvalProtocol, evaluate, evaluate_together, fit_map
from uss_utils.metrics import Confusion
from uss_utils.probes import ClusterProbe
from uss_utils.records import jsonable

TABLE = [2, 0, 1]  # the right map of grey_model()
HABIT = EvalProtocol(fit_map_on="eval")
needs_crf = pytest.mark.skipif(not crf.available(), reason="pydensecrf is missing")


def without_run(record):
    return {key: value for key, value in record.items() if key != "run"}


# ---------------------------------------------------------------------- scores


def test_a_perfect_model_scores_100_under_both_maps():
    record = evaluate(grey_model(), Stripes(split="val"), Stripes())
    for scores in (record["cluster"]["train"], record["cluster"]["eval"]):
        assert (scores["acc"], scores["miou"]) == (100, 100)
        assert scores["map"] == TABLE
    assert record["linear"]["iou"] == [100, 100, 100]
    assert "map" not in record["linear"]
    assert record["headline"] == {
        "cluster_acc": 100,
        "cluster_miou": 100,
        "linear_acc": 100,
        "linear_miou": 100,
    }


def test_the_maps_differ_where_the_splits_do():
    # On the training images the brightness means something else.
    swapped = Stripes()
    swapped.read = lambda i: (Stripes().read(i)[0], (Stripes().read(i)[1] + 1) % 3)
    record = evaluate(grey_model(), Stripes(split="val", ignore=False), swapped)
    assert record["cluster"]["eval"]["acc"] == 100
    assert record["cluster"]["train"]["acc"] == 0
    assert record["cluster"]["train"]["map"] == [0, 1, 2]
    assert record["headline"]["cluster_acc"] == 0
    habit = evaluate(grey_model(), Stripes(ignore=False), swapped, HABIT)
    assert habit["headline"]["cluster_acc"] == 100


@pytest.mark.parametrize("batch_size", [1, 4, 100])
def test_batches_do_not_matter(batch_size):
    data = Stripes(n=7)
    expected = evaluate(grey_model(), data, data)
    found = evaluate(grey_model(), data, data, batch_size=batch_size)
    assert without_run(found) == without_run(expected)


def test_scores_are_those_of_one_confusion_over_the_set():
    model = grey_model()
    model.cluster_probe = ClusterProbe.from_centroids(
        torch.rand(3, 3, generator=torch.Generator().manual_seed(2)), "euclidean"
    )
    data = Stripes(n=5)
    image, label = data.batch(range(5))
    confusion = Confusion(3)
    confusion.update(model.log_probs(image, label.shape[-2:]).argmax(1), label)
    scores = confusion.scores()
    record = evaluate(model, data, protocol=HABIT)
    found = record["cluster"]["eval"]
    assert found["miou"] == pytest.approx(scores.miou, abs=1e-4)
    assert found["acc"] == pytest.approx(scores.acc, abs=1e-4)
    assert record["confusion"]["cluster"] == confusion.matrix.tolist()
    assert found["iou"] == jsonable([round(v, 4) for v in scores.iou.tolist()])


def test_absent_classes_are_null_and_left_out_of_the_mean():
    data = Stripes(n=1, size=(16, 24))
    full = data.read

    def two_classes(index):
        image, label = full(index)
        label[label == 2] = -1
        return np.where(image > 200, 20, image).astype(np.uint8), label

    data.read = two_classes
    record = evaluate(grey_model(), data, data)
    assert record["cluster"]["eval"]["iou"] == [100, 100, None]
    assert record["cluster"]["eval"]["miou"] == 100
    json.dumps(record, allow_nan=False)


def test_more_clusters_than_classes():
    model = grey_model()
    # Dark pixels have two clusters: only one of them can be matched.
    levels = torch.tensor([240, 20, 128, 21]) / 255
    model.cluster_probe = ClusterProbe.from_centroids(
        levels[:, None].expand(4, 3), "euclidean"
    )
    data = Stripes()
    shade = data.read

    def two_shades(index):
        image, label = shade(index)
        image[:, 12:][image[:, 12:] == 20] = 21
        return image, label

    data.read = two_shades
    hungarian = evaluate(model, data, data)["cluster"]["train"]
    assert sorted(hungarian["map"]) == [-1, 0, 1, 2]
    assert hungarian["acc"] < 100
    assert hungarian["miou_classes"] > hungarian["miou"]
    majority = evaluate(model, data, data, EvalProtocol(matching="majority"))
    assert majority["cluster"]["train"]["map"] == [2, 0, 1, 0]
    assert majority["cluster"]["train"]["acc"] == 100
    assert majority["clusters"] == 4


def test_fewer_clusters_than_classes():
    model = grey_model()
    model.cluster_probe = ClusterProbe.from_centroids(
        torch.tensor([[0.9] * 3, [0.2] * 3]), "euclidean"
    )
    record = evaluate(model, Stripes(), Stripes())
    assert len(record["cluster"]["train"]["map"]) == 2
    assert 0 < record["cluster"]["train"]["acc"] < 100


def test_models_on_one_backbone_are_scored_as_if_alone():
    first = grey_model()
    second = grey_model()
    second.backbone = first.backbone
    second.cluster_probe = ClusterProbe.from_centroids(
        torch.tensor([[0.2] * 3, [0.9] * 3, [0.8] * 3]), "euclidean"
    )
    data, fit_set = Stripes(split="val"), Stripes()
    feat = first.backbone.features(fit_set.batch(range(len(fit_set)))[0])
    together = evaluate_together([first, second], data, fit_set, fit_feat=feat)
    for model, record in zip((first, second), together, strict=True):
        assert without_run(record) == without_run(evaluate(model, data, fit_set))
    with pytest.raises(ValueError, match="share one backbone"):
        evaluate_together([first, grey_model()], data, fit_set)


def test_images_are_not_read_where_features_and_labels_are_enough():
    data, fit_set = Stripes(split="val"), Stripes()
    feat = grey_model().backbone.features(fit_set.batch(range(len(fit_set)))[0])
    single = EvalProtocol(flip=False)
    expected = evaluate(grey_model(), data, fit_set, single)
    read, labels = fit_set.read, []
    fit_set.read_label = lambda i: labels.append(i) or read(i)[1]
    fit_set.read = None  # a call would fail
    options = {"protocol": single, "fit_feat": feat}
    (found,) = evaluate_together([grey_model()], data, fit_set, **options)
    assert without_run(found) == without_run(expected)
    assert sorted(labels) == list(range(len(fit_set)))


def test_flip_average_is_used_when_asked_for():
    model = grey_model()
    seen = []
    features = model.backbone.features
    model.backbone.features = lambda x: seen.append(len(x)) or features(x)
    data = Stripes(n=4)
    evaluate(model, data, protocol=EvalProtocol(fit_map_on="eval", flip=False))
    assert seen == [4]
    evaluate(model, data, protocol=HABIT)
    assert seen == [4, 4, 4]


# ------------------------------------------------------------------ stored map


def test_fit_map_names_the_clusters_and_evaluation_uses_the_names():
    model = grey_model()
    matching = fit_map(model, Stripes(n=3))
    assert matching.cluster_to_class.tolist() == TABLE
    assert model.cluster_to_class.tolist() == TABLE
    stored = evaluate(model, Stripes(split="val"))
    assert stored["fit_split"] == "train"
    assert stored["fit_images"] == 3
    fitted = evaluate(model, Stripes(split="val"), Stripes(n=3))
    assert without_run(stored) == without_run(fitted)


def test_a_map_of_unknown_origin_is_not_a_map_of_train():
    with pytest.raises(ValueError, match="needs the training split: give fit_set"):
        evaluate(grey_model(TABLE), Stripes())
    model = grey_model()
    fit_map(model, Stripes())
    with pytest.raises(ValueError, match="holds no map fitted by majority"):
        evaluate(model, Stripes(), protocol=EvalProtocol(matching="majority"))


def test_without_a_training_split_only_the_habit_is_reported():
    record = evaluate(grey_model(), Stripes(), protocol=HABIT)
    assert list(record["cluster"]) == ["eval"]
    assert "fit_split" not in record


# --------------------------------------------------------------------- no labels


def test_a_set_without_labels_gives_no_scores_at_all():
    record = evaluate(grey_model(), Stripes(labels=False))
    scored = {"cluster", "linear", "headline", "confusion", "crf", "fit_split"}
    assert not scored & set(record)
    assert record["usage"] == [0.25, 0.5, 0.25]
    assert record["usage_entropy"] == pytest.approx(1.5 / np.log2(3), abs=1e-6)
    assert "NaN" not in json.dumps(record)


def test_usage_counts_every_pixel_and_needs_no_labels():
    model = grey_model()
    model.cluster_probe = ClusterProbe.from_centroids(
        torch.tensor([[0.5] * 3, [9.0] * 3, [8.0] * 3]), "euclidean"
    )
    record = evaluate(model, Stripes(labels=False))
    assert record["usage"] == [1, 0, 0]
    assert record["usage_entropy"] == 0


# --------------------------------------------------------------------------- CRF


@needs_crf
def test_scores_with_crf_stand_beside_those_without():
    data = Stripes(n=5)
    record = evaluate(
        grey_model(), data, data, EvalProtocol(crf=True, alpha=50), limit_crf=3
    )
    assert record["crf"]["images"] == 3
    without = evaluate(grey_model(), data.subset([0, 2, 4]), data)
    assert record["crf"]["without"]["cluster"] == without["cluster"]
    assert record["crf"]["without"]["linear"] == without["linear"]
    image, label = data.batch([0, 2, 4])
    confusion = Confusion(3)
    logits = grey_model().log_probs(image, alpha=50)
    for each, log_probs, truth in zip(image, logits, label, strict=True):
        confusion.update(crf.dense_crf(each, log_probs).argmax(0), truth)
    expected = confusion.scores("hungarian")
    found = record["crf"]["cluster"]["eval"]
    assert found["acc"] == pytest.approx(expected.acc, abs=1e-3)
    assert {"train", "eval"} == set(record["crf"]["cluster"])
    assert 0 < record["crf"]["linear"]["acc"] <= 100


@needs_crf
def test_crf_only_when_asked_for():
    assert "crf" not in evaluate(grey_model(), Stripes(), protocol=HABIT)


def test_without_the_library_there_are_no_crf_rows_and_a_note(monkeypatch):
    monkeypatch.setattr(crf, "available", lambda: False)
    protocol = EvalProtocol(fit_map_on="eval", crf=True)
    record = evaluate(grey_model(), Stripes(), protocol=protocol)
    assert "crf" not in record
    assert record["run"]["notes"] == ["pydensecrf2 is missing: no scores with CRF"]
    assert record["headline"]["cluster_acc"] == 100


# ----------------------------------------------------------------------- protocol


def test_protocol_prints_its_switches():
    line = EvalProtocol().describe()
    assert "map fitted on train labels by hungarian" in line
    assert "flip average" in line and "no CRF" in line and "ignore -1" in line
    line = EvalProtocol("eval", "majority", flip=False, crf=True).describe(Stripes())
    assert "eval labels by majority" in line and "single pass" in line
    assert "alpha 2" in line and Transform().describe() in line


def test_protocol_short_form_tells_differences_only():
    assert EvalProtocol().short() == ""
    odd = EvalProtocol("eval", "majority", False, 3.0, True, CRFParams(iterations=5))
    assert odd.short() == "eval-map-majority-noflip-alpha3-crf-own-crf"


def test_protocol_survives_json():
    odd = EvalProtocol("eval", crf=True, crf_params=CRFParams(iterations=5))
    assert EvalProtocol.from_dict(json.loads(json.dumps(asdict(odd)))) == odd


@pytest.mark.parametrize(
    ("switch", "message"),
    [
        ({"fit_map_on": "test"}, "fit_map_on='test' does not fit: expected 'train' or"),
        (
            {"matching": "greedy"},
            "matching='greedy' does not fit: expected 'hungarian'",
        ),
        ({"alpha": 0}, "alpha=0 has to be above 0"),
    ],
)
def test_impossible_protocols(switch, message):
    with pytest.raises(ValueError, match=message):
        EvalProtocol(**switch)


# -------------------------------------------------------------------------- record


def test_the_record_says_what_was_evaluated():
    model = grey_model()
    model.meta |= {"seed": 4, "steps": 9, "name": "grey levels", "overrides": {"a": 1}}
    record = evaluate(model, Stripes(n=4, split="val"), Stripes())
    assert record["method"] == "grey"
    assert record["name"] == "grey levels"
    assert record["preset"] == "test"
    assert record["overrides"] == {"a": 1}
    assert (record["seed"], record["steps"]) == (4, 9)
    assert (record["dataset"], record["split"], record["images"]) == (
        "stripes",
        "val",
        4,
    )
    assert record["backbone"] == "colour"
    assert record["backbone_fingerprint"] == model.backbone.fingerprint
    assert record["classes"] == list(CLASSES)
    assert record["protocol"]["matching"] == "hungarian"
    assert record["protocol"]["line"] == EvalProtocol().describe(Stripes())
    given = evaluate(model, Stripes(), Stripes(), seed=7, steps=11)
    assert (given["seed"], given["steps"]) == (7, 11)


def test_only_run_differs_between_two_runs():
    first, second = (evaluate(grey_model(), Stripes(), Stripes()) for _ in range(2))
    assert without_run(first) == without_run(second)
    assert first["run"]["seconds"] > 0
    assert first["run"]["peak_memory_mb"] > 0
    assert first["run"]["versions"]["torch"].startswith(torch.__version__[:3])


# ----------------------------------------------------------------------- bad input


def test_all_pixels_ignored():
    blank = Stripes(split="val")
    blank.read = lambda i: (Stripes().read(i)[0], np.full((16, 24), -1))
    with pytest.raises(ValueError, match="stripes val: .*all pixels are ignored"):
        evaluate(grey_model(), blank, Stripes())
    with pytest.raises(ValueError, match="stripes val: .*all pixels are ignored"):
        evaluate(grey_model(), Stripes(), blank)


def test_sets_that_cannot_be_used():
    with pytest.raises(ValueError, match="stripes train holds no image"):
        evaluate(grey_model(), Stripes(n=0), protocol=HABIT)
    with pytest.raises(ValueError, match="has no labels, so clusters cannot be named"):
        evaluate(grey_model(), Stripes(), Stripes(labels=False))
    with pytest.raises(ValueError, match="has no labels, so clusters cannot be named"):
        fit_map(grey_model(), Stripes(labels=False))
    other = grey_model(classes=("a", "b", "c"))
    with pytest.raises(
        ValueError, match="classes dark, middle, bright, the model a, b"
    ):
        evaluate(other, Stripes(), Stripes())
    with pytest.raises(ValueError, match="limit_crf 0 leaves no image"):
        evaluate(grey_model(), Stripes(), Stripes(), limit_crf=0)
    with pytest.raises(ValueError, match="batch_size must be at least 1"):
        evaluate(grey_model(), Stripes(), Stripes(), batch_size=0)


def test_images_of_different_sizes():
    data = Stripes(n=2)
    data.read = lambda i: Stripes(size=(16, 24 + 8 * i)).read(i)
    with pytest.raises(ValueError, match="different sizes cannot form one batch"):
        evaluate(grey_model(), data, protocol=HABIT)


def test_codes_that_are_not_finite():
    model = grey_model()
    model.head.mean[1] = float("nan")
    with pytest.raises(ValueError, match="grey on colour gives NaN .* images 0..5"):
        evaluate(model, Stripes(), protocol=HABIT)
