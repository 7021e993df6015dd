"""A study: which records are there, what is missing, and how it is made."""

import json
from pathlib import Path

import pytest
import torch

from uss_utils import crf, runs
from uss_utils.history import History
from uss_utils.learning import Trained
from uss_utils.methods import kmeans, stego
from uss_utils.records import read_records, write_record
from uss_utils.segmenter import Segmenter
from uss_utils.study import Study

SMALL = {"n_train": 8, "n_val": 3, "steps": 2}
needs_crf = pytest.mark.skipif(not crf.available(), reason="pydensecrf is missing")


def study(folder, modules=None, seeds=(0,), **overrides):
    modules = {"kmeans": kmeans} if modules is None else modules
    return Study(folder, modules, "smoke", seeds, SMALL | overrides, crf_images=2)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder in which k-means is complete for two seeds."""
    folder = tmp_path_factory.mktemp("study") / "smoke"
    study(folder, seeds=(0, 1)).complete("cpu")
    return folder


def forget(folder, tmp_path, **changes):
    """A copy of the folder whose records are changed; a value of None drops a key."""
    for record in read_records(folder / "records"):
        for key, value in changes.items():
            record[key] = value
            if value is None:
                del record[key]
        write_record(record, tmp_path / "records")
    for path in (folder / "models").iterdir():
        (tmp_path / "models").mkdir(exist_ok=True)
        (tmp_path / "models" / path.name).write_bytes(path.read_bytes())
    return tmp_path


def test_an_empty_folder_lacks_everything(tmp_path):
    (gap,) = study(tmp_path, seeds=(0, 1)).missing()
    assert gap[1:] == ((0, 1), (0, 1), (0, 1))
    assert str(gap) == "kmeans: train seed 0, 1; score seed 0, 1; with CRF seed 0, 1"
    assert study(tmp_path).records() == []


def test_what_was_completed_is_not_made_again(made, capsys, monkeypatch):
    monkeypatch.setattr(kmeans, "train", None)
    records = study(made, seeds=(0, 1)).complete("cpu")
    assert "all records are there" in capsys.readouterr().out
    assert [record["seed"] for record in records] == [0, 1]
    assert study(made).missing() == []


def test_records_tell_size_and_seconds(made):
    (record,) = study(made).records()
    clusters = len(record["classes"]) * 192
    assert record["parameters"]["cluster_probe"] == clusters
    assert record["parameters"]["head"] == 0  # fixed, not trained
    assert record["run"]["training_seconds"] > 0


@needs_crf
def test_the_crf_is_scored_on_some_images_without_and_with_it(made):
    (record,) = study(made).records()
    assert record["crf"]["images"] == 2 and record["images"] == 3
    assert record["crf"]["without"]["cluster"]["train"]["miou"] > 0


@needs_crf
def test_records_without_crf_are_amended_by_the_kept_models(made, tmp_path):
    folder = forget(made, tmp_path, crf=None, parameters=None)
    part = study(folder, seeds=(0, 1))
    (gap,) = part.missing()
    assert gap[1:] == ((), (), (0, 1))
    before = study(made, seeds=(0, 1)).records()
    for old, new in zip(before, part.complete("cpu"), strict=True):
        assert new["crf"] == old["crf"] and new["cluster"] == old["cluster"]
    assert len(list((folder / "records").iterdir())) == 2


def test_a_missing_record_is_made_from_the_kept_model(made, tmp_path, monkeypatch):
    folder = forget(made, tmp_path)
    next((folder / "records").glob("*seed1.json")).unlink()
    (gap,) = study(folder, seeds=(0, 1)).missing()
    assert gap[1:3] == ((), (1,))
    monkeypatch.setattr(kmeans, "train", None)
    found = study(folder, seeds=(0, 1)).complete("cpu")
    assert found[1]["cluster"] == study(made, seeds=(0, 1)).records()[1]["cluster"]


def test_a_model_of_another_training_is_not_taken(made, tmp_path):
    folder = forget(made, tmp_path)
    path = runs.model_path(folder, "kmeans", 0).with_suffix(".json")
    told = json.loads(path.read_text())
    for change in (
        {"cluster_to_class": told["cluster_to_class"][::-1]},
        {"preset": "scenes"},
        {"meta": told["meta"] | {"seed": 5}},
        {"meta": told["meta"] | {"overrides": {}}},
    ):
        path.write_text(json.dumps(told | change))
        assert study(folder).missing()[0].train == (0,)
    path.write_text("{")
    assert study(folder).missing()[0].train == (0,)


def test_a_record_that_no_training_leads_to_any_more_is_replaced(made, tmp_path):
    old = study(made).records()[0]["cluster"]
    swapped = {"train": old["train"] | {"map": old["train"]["map"][::-1]}}
    folder = forget(made, tmp_path, name="pretrained", cluster=old | swapped)
    assert study(folder).missing()[0].train == (0,)
    (record,) = study(folder).complete("cpu")
    assert record["cluster"] == old
    assert study(folder).missing() == []


def test_other_settings_protocols_and_variants_are_left_out(made, tmp_path):
    assert study(made, n_train=5).records() == []
    for change in (
        {"name": "colour"},
        {"split": "train"},
        {"preset": "scenes"},
        {"protocol": read_records(made / "records")[0]["protocol"] | {"short": "x"}},
    ):
        folder = tmp_path / next(iter(change))
        folder.mkdir()
        assert study(forget(made, folder, **change)).records() == []


def test_the_ladders_record_of_k_means_counts_as_its_own(made, tmp_path):
    folder = forget(made, tmp_path, name="pretrained")
    (record,) = study(folder).records()
    assert record["name"] == "kmeans"
    assert study(folder).missing() == []


def test_a_trained_method_goes_the_same_way(tmp_path):
    both = {"kmeans": kmeans, "stego": stego}
    part = study(tmp_path, both)
    assert [gap.method for gap in part.missing()] == ["kmeans", "stego"]
    records = part.complete("cpu")
    assert [record["name"] for record in records] == ["kmeans", "stego"]
    assert records[1]["parameters"]["head"] > 0
    images, _ = part.settings("kmeans").open("val").batch([0, 1])
    found = part.predictions(images)
    assert list(found) == list(both)
    assert found["stego"].shape == (2, 128, 128)
    model = part.model("stego", device="cpu")
    said = model.cluster_to_class[
        model.predict_of(model.code(images, model.protocol.flip), (128, 128))
    ]
    assert torch.equal(found["stego"], said)


def test_models_are_kept_with_the_seconds_of_their_training(made, tmp_path):
    model = study(made).model("kmeans", device="cpu")
    (path,) = runs.save([Trained(model, History(seconds=1.234))], tmp_path)
    assert path == runs.model_path(tmp_path, "kmeans", 0)
    assert Segmenter.load(path).meta["training_seconds"] == 1.23
    slow = study(made, seeds=(1,)).model("kmeans", device="cpu")
    slow.meta["name"] = "kmeans, slow start"
    found = runs.save([Trained(model, History(), {"slow": slow}), model], tmp_path)
    stems = ["kmeans-seed0", "kmeans-seed1-slow-start", "kmeans-seed0"]
    assert [path.stem for path in found] == stems


def test_scores_are_kept_beside_the_models_under_runs(made, tmp_path, monkeypatch):
    monkeypatch.setenv("USS_RUNS", str(tmp_path))
    model, record = study(made).model("kmeans", device="cpu"), study(made).records()[0]
    (path,) = runs.keep([model], "smoke", [record])
    assert path == runs.model_path(tmp_path / "smoke", "kmeans", 0)
    assert read_records(tmp_path / "smoke" / "records") == [record]


def test_a_relative_folder_is_that_of_the_user(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("USS_RUNS", str(tmp_path / "elsewhere"))
    cfg = kmeans.Config.preset("smoke", **SMALL)
    runs.train(kmeans, cfg, [0], Path("out"), device="cpu")
    assert runs.model_path(tmp_path / "out", "kmeans", 0).is_file()
    assert not (tmp_path / "elsewhere").exists()


def test_an_absent_model_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="kmeans-seed0"):
        study(tmp_path).model("kmeans")


def test_unknown_settings_are_refused(tmp_path):
    with pytest.raises(ValueError, match="unknown setting 'stepz'"):
        study(tmp_path, stepz=3).missing()
