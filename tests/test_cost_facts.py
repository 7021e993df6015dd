"""What settings say about a run: every method, every preset, and against the truth."""

import pytest

from uss_utils import cost_facts, learning, methods
from uss_utils.cost_facts import KNOWN, facts
from uss_utils.datasets import DATASETS
from uss_utils.datasets.crops import PER_IMAGE

PAIRS = [
    (name, preset) for name in methods.METHODS for preset in methods.load(name).PRESETS
]


@pytest.mark.parametrize(("name", "preset"), PAIRS)
def test_every_preset_has_its_sizes(name, preset):
    method = methods.load(name)
    cfg = method.Config.preset(preset)
    found = facts(method, cfg, look=False)
    number = cfg.n_train or KNOWN[cfg.dataset].splits[cfg.train_split]
    assert found.train.number == number * (PER_IMAGE if cfg.crops else 1)
    assert found.val.number == (cfg.n_val or KNOWN[cfg.dataset].splits["val"])
    assert found.shape[0] == found.train.number
    assert min(found.shape) > 0 and found.place in ("memory", "disk", "images")
    assert (found.steps > 0) == (name != "kmeans")
    assert all(made.number > 0 for made in found.files)
    assert not found.present


def test_sets_are_counted_as_they_are_described():
    for name, known in KNOWN.items():
        assert set(known.splits) <= set(DATASETS[name].splits)


def test_sets_that_are_here_are_counted():
    stego = methods.load("stego")
    found = facts(stego, stego.Config.preset("smoke"))
    assert found.present and found.train.found is not None
    assert (found.train.number, found.val.number) == (16, 8)
    assert found.epochs == found.steps * found.batch_size / 16


@pytest.mark.parametrize("name", ["stego", "hp", "ppap"])
def test_features_have_the_shape_that_training_keeps(name, monkeypatch):
    method = methods.load(name)
    cfg = method.Config.preset("smoke", n_train=4)
    kept = []

    class Stop(Exception):
        pass

    def prepared(*args, **options):
        kept.append(material(*args, **options))
        raise Stop

    material = learning.prepare
    monkeypatch.setattr(learning, "prepare", prepared)
    with pytest.raises(Stop):
        method.prepare(cfg)
    assert facts(method, cfg).shape == kept[0].source.shape


def test_five_crops_are_images_of_a_quarter_and_files_of_their_own():
    stego = methods.load("stego")
    cfg = stego.Config.preset("cityscapes27-vitb8")
    found = facts(stego, cfg, look=False)
    assert found.train.number == 14_875 and found.train.size == (512, 1024)
    (crops,) = [made for made in found.files if "crops" in made.what]
    assert crops.number == 2 * 14_875
    assert crops.size == round(cost_facts.CROP_BYTES * 512 * 1024 * 14_875)


def test_where_features_go_decides_what_is_written():
    stego = methods.load("stego")
    cfg = stego.Config.preset("potsdam3-vits8")
    on_disk = facts(stego, cfg.override(cache="disk"), look=False)
    assert on_disk.cache_bytes == 4545 * 384 * 28 * 28 * 2
    assert any(made.what == "feature cache" for made in on_disk.files)
    again = facts(stego, cfg.override(cache="images"), look=False)
    assert again.cache_bytes == 0
    assert not any(made.what == "feature cache" for made in again.files)


def test_masks_and_regions_are_counted_where_they_are_made():
    def made(name, preset):
        method = methods.load(name)
        found = facts(method, method.Config.preset(preset), look=False)
        return {one.what: one.number for one in found.files}

    assert made("primaps", "cityscapes27-vits8")["masks"] == 2975
    assert "masks" not in made("maskcontrast", "voc-resnet50")  # released
    assert made("maskcontrast", "voc-resnet50-ncut")["masks"] == 10_582
    assert made("hsg", "voc-resnet50")["maps of regions"] == 118_287


def test_a_named_folder_that_is_absent_is_a_mistake(tmp_path):
    stego = methods.load("stego")
    cfg = stego.Config.preset("camvid-tiny", root=tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="nowhere"):
        facts(stego, cfg)
