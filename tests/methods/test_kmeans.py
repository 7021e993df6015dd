"""k-means on features: presets, fitting, names, labels untouched, the ladder's rows."""

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from tests.models import Stripes
from uss_utils import crf, datasets, methods
from uss_utils.backbones import tiny_vit
from uss_utils.boards import title
from uss_utils.evaluation import evaluate, read_records, write_record
from uss_utils.features import extract
from uss_utils.methods import kmeans
from uss_utils.methods.kmeans import Config
from uss_utils.records import summarise
from uss_utils.sampling import labels
from uss_utils.segmenter import Segmenter


def smoke(**changes) -> Config:
    """The smoke preset on an untrained backbone, smaller still."""
    small = {"n_train": 6, "n_val": 4, "tokens": 600, "steps": 40}
    return Config.preset("smoke", **{"backbone": "vit_tiny_random"} | small | changes)


@pytest.fixture(scope="module")
def sets():
    return kmeans.data(smoke())


@pytest.fixture(scope="module")
def trained(sets):
    return kmeans.train(smoke(), sets[0])


def grey_set(n, labelled=True):
    """Stripes large enough for patches of eight."""
    return Stripes(n=n, labels=labelled, size=(64, 96), ignore=False)


# ------------------------------------------------------------------------ presets


def test_presets_are_those_of_the_course():
    assert list(kmeans.PRESETS) == [
        *("smoke", "scenes", "scenes-aerial", "camvid-tiny", "camvid-vits16")
    ]
    for name, preset in kmeans.PRESETS.items():
        assert preset.name == name
        assert preset.dataset in datasets.names()
    assert Config.preset("camvid-tiny").size == (240, 320)
    assert Config.preset("camvid-vits16").size == (320, 416)


def test_unknown_names_list_the_known_ones():
    with pytest.raises(ValueError, match="unknown preset 'nope', known are: smoke, sc"):
        Config.preset("nope")
    with pytest.raises(ValueError, match="unknown backbone 'vit_tny'.*vit_tiny_scenes"):
        kmeans.train(smoke(backbone="vit_tny"), grey_set(2))
    with pytest.raises(ValueError, match="unknown data set 'scens'; known: scenes"):
        kmeans.data(smoke(dataset="scens"))


def test_a_stored_set_without_its_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match=str(tmp_path / "absent")):
        kmeans.data(Config.preset("camvid-tiny", root=tmp_path / "absent"))


# ------------------------------------------------------------------------ training


def test_a_trained_model_names_its_clusters_and_segments(sets, trained):
    assert sorted(trained.cluster_to_class.tolist()) == list(range(7))
    assert trained.meta["map"]["split"] == "train"
    found = trained.segment(sets[1].read(0)[0])
    assert found.shape == (128, 128)
    record = evaluate(trained, sets[1])
    assert record["method"] == "kmeans"
    assert record["preset"] == "smoke"
    assert record["untrained"] is True
    assert record["headline"]["linear_acc"] > record["headline"]["cluster_acc"]


def test_training_is_repeatable_and_depends_on_the_seed(sets, trained):
    again = kmeans.train(smoke(), sets[0])
    for name, part in trained.parts().items():
        for key, value in part.state_dict().items():
            assert torch.equal(value, again.parts()[name].state_dict()[key])
    other = kmeans.train(smoke(seed=1), sets[0])
    assert other.backbone.fingerprint != trained.backbone.fingerprint
    assert not torch.equal(other.cluster_probe.clusters, trained.cluster_probe.clusters)


def test_labels_touch_neither_head_nor_centroids(sets, trained):
    blind = sets[0].subset(range(len(sets[0])))
    blind.has_labels = False
    blind.read = lambda i: (sets[0].read(i)[0], None)
    found = kmeans.train(smoke(), blind)
    assert found.linear_probe is None
    assert found.cluster_to_class is None
    assert torch.equal(found.cluster_probe.clusters, trained.cluster_probe.clusters)
    assert torch.equal(found.head.mean, trained.head.mean)


def test_round_trip_through_a_file(tmp_path, sets, trained):
    again = Segmenter.load(trained.save(tmp_path / "kmeans"))
    pixels = sets[1].read(1)[0]
    assert torch.equal(again.segment(pixels), trained.segment(pixels))
    first, second = evaluate(trained, sets[1]), evaluate(again, sets[1])
    first.pop("run"), second.pop("run")
    assert first == second


def test_the_model_before_fitting_segments_too(sets):
    model = kmeans.build(smoke(), sets[0])
    assert model.segment(sets[0].read(0)[0]).shape == (128, 128)
    assert model.linear_probe is None


def test_a_folder_without_class_names_needs_a_number_of_clusters():
    data = grey_set(4, labelled=False)
    data.classes, data.palette = (), np.zeros((0, 3), np.uint8)
    with pytest.raises(ValueError, match="number of clusters must be given: clusters="):
        kmeans.train(smoke(), data)
    model = kmeans.train(smoke(clusters=4), data)
    assert model.n_clusters == 4
    assert model.segment(data.read(0)[0]).max() <= 3
    assert "cluster" not in evaluate(model, data)


def test_one_folder_of_pictures_is_enough(tmp_path, recwarn):
    noise = np.random.default_rng(0).integers(0, 256, (3, 64, 96, 3), dtype=np.uint8)
    for i, pixels in enumerate(noise):
        Image.fromarray(pixels).save(tmp_path / f"{i}.png")
    mine = smoke(dataset="folder", root=tmp_path, size=(32, 48), clusters=4)
    found = kmeans.train(mine).segment(tmp_path)
    assert {name: tuple(label.shape) for name, label in found.items()} == {
        f"{i}.png": (64, 96) for i in range(3)
    }
    # Without a "val" folder nothing is said about it: training does not open it.
    assert not [w for w in recwarn if "no split folders" in str(w.message)]


def test_fewer_patches_than_clusters():
    with pytest.raises(ValueError, match="500 clusters .* only 192 rows"):
        kmeans.train(smoke(clusters=500), grey_set(2))


def test_over_clustering():
    model = kmeans.train(smoke(clusters=5), grey_set(4))
    assert len(model.cluster_to_class) == 5
    assert (model.cluster_to_class < 0).sum() == 2


@pytest.mark.parametrize("labelled", [0, 1])
def test_labels_that_are_ignored_nearly_everywhere(labelled):
    data = grey_set(3)
    image, label = data.read(0)
    label = np.where(np.arange(label.size).reshape(label.shape) < labelled, 0, -1)
    data.read = lambda i: (image, label)
    with pytest.raises(ValueError, match="none of 16 random pixels .* Check the label"):
        kmeans.train(smoke(probe_pixels=16), data)
    if not labelled:
        with pytest.raises(ValueError, match="stripes train: .*all pixels are ignored"):
            kmeans.train(smoke(steps=0), data)


def test_features_that_are_not_finite(sets):
    model = kmeans.build(smoke(), sets[0])
    feat = torch.randn(2, 192, 4, 4)
    feat[1, 3, 0, 0] = float("nan")
    with pytest.raises(ValueError, match="NaN"):
        kmeans.fit(model, smoke(), feat, None)


def test_linear_probe_reads_what_is_linear_in_the_code():
    data = grey_set(6)
    cfg = smoke(backbone="colour", standardise="none", metric="euclidean", steps=200)
    model = kmeans.train(cfg, data)
    # Three brightness levels on a line: a linear cut separates them.
    assert evaluate(model, data)["linear"]["acc"] > 99


# -------------------------------------------------------------------------- ladder


def test_ladder_has_every_rung_and_seed():
    records = kmeans.ladder(smoke(), seeds=(0, 3))
    assert [(r["name"], r["seed"]) for r in records] == [
        (name, seed) for name in kmeans.ROWS for seed in (0, 3)
    ]
    by_name = {r["name"]: r for r in records if r["seed"] == 0}
    assert by_name["row index"]["backbone"] == "row"
    assert by_name["colour"]["backbone"] == "colour"
    probed = {name for name, record in by_name.items() if "linear" in record}
    assert probed == {"colour", "random init", "pretrained"}
    for record in records:
        assert {"train", "eval"} == set(record["cluster"])
        assert record["overrides"] == smoke().overrides()
    board = kmeans.table(records)
    titles = {title(row) for row in summarise(records)}
    assert len(titles) == len(kmeans.ROWS)
    assert all(board.count(f"| {each} |") == 1 for each in titles)


def test_known_features_are_not_computed_again(sets, monkeypatch):
    cfg = smoke(backbone="vit_tiny_scenes")
    rungs = ("pretrained", "colour")
    expected = kmeans.ladder(cfg, (0,), rows=rungs)
    backbone = cfg.load_backbone()
    feat = {part.split: extract(backbone, part) for part in sets}
    asked = []

    def noted(own, *args, **options):
        asked.append(own.name)
        return extract(own, *args, **options)

    monkeypatch.setattr(kmeans, "extract", noted)
    found = kmeans.ladder(cfg, (0,), rows=rungs, feat=feat)
    assert asked == ["colour"]
    for one, other in zip(found, expected, strict=True):
        assert one["headline"] == pytest.approx(other["headline"], abs=0.1)
    with pytest.raises(ValueError, match="feat holds 4 images of 'train', .* for 6"):
        kmeans.ladder(cfg, (0,), rows=rungs, feat={"train": feat["val"]})


def test_rungs_read_from_disk_stand_in_ladder_order_and_before_later_methods(tmp_path):
    rungs = ("pretrained", "row index", "colour", "pretrained, whitened")
    for record in kmeans.ladder(smoke(), seeds=(0,), rows=rungs):
        write_record(record, tmp_path)
    last = record | {"method": "later", "name": "later", "order": [4]}
    write_record(last, tmp_path)
    found = [record["name"] for record in read_records(tmp_path)]
    assert found == [name for name in kmeans.ROWS if name in rungs] + ["later"]


def test_every_method_says_which_chapter_it_is():
    chapters = [methods.load(name).Config.chapter for name in methods.METHODS]
    assert chapters == sorted(set(chapters)) and chapters[-1] < 12


def test_chosen_rungs_only_in_the_order_asked_for():
    rows = ("row index", "colour")[::-1]
    records = kmeans.ladder(smoke(), seeds=(1,), rows=rows)
    assert [r["name"] for r in records] == ["colour", "row index"]
    with pytest.raises(ValueError, match="unknown rung 'color'.*did you mean 'colour'"):
        kmeans.ladder(smoke(), rows=["color"])


def test_a_rung_is_the_model_trained_alone(sets):
    records = {r["name"]: r for r in kmeans.ladder(smoke(), seeds=(2,))}
    alone = evaluate(kmeans.train(smoke(seed=2), sets[0]), sets[1])
    for key in ("cluster", "linear", "usage"):
        assert records["random init"][key] == alone[key]


def test_labels_are_as_stored(sets):
    found = labels(sets[0])
    assert np.array_equal(found[2].numpy(), sets[0].read(2)[1])


def test_ladder_on_the_crf_says_on_how_many_images(monkeypatch):
    if not crf.available():
        pytest.skip("pydensecrf is missing")
    cfg = smoke(crf=True, limit_crf=1, n_train=2, n_val=2, steps=2)
    monkeypatch.setattr(kmeans, "ROWS", {"pretrained": {}})
    (record,) = kmeans.ladder(cfg, seeds=(0,))
    assert record["crf"]["images"] == 1
    assert "crf" not in record["overrides"]
    assert record["protocol"]["crf"] is True


def test_your_own_weights_are_not_called_the_shipped_ones(tmp_path):
    path = tmp_path / "mine.safetensors"
    save_file(tiny_vit(7).state_dict(), path)
    cfg = smoke(backbone="vit_tiny_scenes", weights=path, steps=2)
    model = kmeans.train(cfg, grey_set(3))
    assert model.backbone.name == "vit_tiny"
    assert model.meta["overrides"]["weights"] == "mine.safetensors"
    saved = model.save(tmp_path / "model")
    assert str(tmp_path) not in saved.with_suffix(".json").read_text()
    with pytest.raises(ValueError, match="needs weights="):
        Segmenter.load(saved)
    again = Segmenter.load(saved, weights=path)
    pixels = grey_set(1).read(0)[0]
    assert torch.equal(again.segment(pixels), model.segment(pixels))
    save_file(tiny_vit(8).state_dict(), path)
    with pytest.raises(ValueError, match="'vit_tiny' with other weights"):
        Segmenter.load(saved, weights=path)
