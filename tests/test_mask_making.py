"""Masks made from features: every way, restartable, at the size of the image."""

import json
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage

from tests.models import Stripes
from uss_utils import backbones, crf, mask_making, saliency
from uss_utils.datasets.scenes import Scenes
from uss_utils.mask_making import MaskRecipe, make_masks

PLAIN = MaskRecipe(features="feat", refine=False)
needs_crf = pytest.mark.skipif(not crf.available(), reason="pydensecrf2 is missing")


def stripes(n=5, size=(32, 48)):
    return Stripes(n=n, size=size, ignore=False)


def made(folder, recipe=PLAIN, n=5, **options):
    backbone = backbones.load("vit_tiny_random")
    dataset = options.pop("dataset", None) or stripes(n)
    files = make_masks(dataset, backbone, recipe, folder=folder, workers=1, **options)
    return [np.array(Image.open(file)) for file in files]


@pytest.mark.parametrize("method", ["ncut", "attention", "degree"])
@pytest.mark.parametrize("fixed", ["none", "centre", "whiten"])
def test_every_way_gives_pictures_of_0_and_255(tmp_path, method, fixed):
    masks = made(tmp_path, replace(PLAIN, method=method, fixed=fixed))
    assert len(masks) == 5
    for mask in masks:
        assert mask.dtype == np.uint8 and mask.shape == (32, 48)
        assert set(np.unique(mask)) <= {0, 255}


def test_masks_are_those_of_the_cut(tmp_path):
    masks = made(tmp_path, n=2)
    backbone = backbones.load("vit_tiny_random")
    feat = backbone.features(stripes(2).batch(range(2))[0])
    cut = saliency.ncut_saliency(feat.flatten(2).mT, feat.shape[-2:], 0.2)
    for mask, kept in zip(masks, cut.mask, strict=True):
        # Upsampled and cleaned, but the same object where a patch's middle lies.
        assert (mask[4::8, 4::8] > 0)[kept.numpy()].mean() > 0.9
        assert not (mask[4::8, 4::8] > 0)[~kept.numpy()].mean() > 0.35


def test_several_objects_are_numbered(tmp_path):
    recipe = replace(PLAIN, objects=3, fixed="whiten")
    masks = made(tmp_path, recipe)
    assert max(mask.max() for mask in masks) in (2, 3)
    for mask in masks:
        assert set(np.unique(mask)) == set(range(mask.max() + 1))


@pytest.mark.parametrize("recipe", [{"method": "degree"}, {"distil": "linear"}])
def test_several_objects_may_be_the_pieces_of_one_mask(tmp_path, recipe):
    class Pieces(Stripes):
        def read(self, index):
            image = np.full((32, 48, 3), 60, np.uint8)
            image[4:28, 4:16] = image[8:24, 28:44] = (240, 40, 60)
            return image, np.zeros((32, 48), np.int64)

    recipe = replace(PLAIN, **recipe)
    one = made(tmp_path / "one", recipe, dataset=Pieces(n=2))
    several = made(tmp_path / "two", replace(recipe, objects=2), dataset=Pieces(n=2))
    for mask, ids in zip(one, several, strict=True):
        pieces, count = ndimage.label(mask, np.ones((3, 3)))
        area = sorted(np.bincount(pieces.ravel())[1:], reverse=True)[:2]
        assert [(ids == k + 1).sum() for k in range(min(2, count))] == area
        assert not (ids[mask == 0]).any()


@pytest.mark.parametrize("method", ["ncut", "attention", "degree"])
@pytest.mark.parametrize("kind", ["linear", "conv"])
def test_distilled_masks_do_not_depend_on_where_the_work_began(tmp_path, method, kind):
    recipe = replace(PLAIN, method=method, fixed="centre", distil=kind)
    before = made(tmp_path, recipe)
    assert {value for mask in before for value in np.unique(mask)} == {0, 255}
    for index in (0, 3):
        (tmp_path / f"{index:06d}.png").unlink()
    torch.manual_seed(7)
    state = torch.get_rng_state()
    assert all(map(np.array_equal, made(tmp_path, recipe), before))
    assert torch.equal(torch.get_rng_state(), state)


def test_a_distilled_head_beats_the_cuts_it_learned_from(tmp_path):
    """What stands on the ground of generated streets, against sky and ground."""
    scenes = Scenes(n=40)
    backbone = backbones.load("vit_tiny_scenes")
    names = ("building", "vegetation", "car", "person")
    ids = [scenes.classes.index(name) for name in names]
    truth = np.isin([scenes.read_label(i) for i in range(40)], ids)
    scores = {}
    for kind in ("none", "linear"):
        recipe = MaskRecipe(fixed="centre", tau=0.1, distil=kind, refine=False)
        files = make_masks(scenes, backbone, recipe, folder=tmp_path / kind, workers=1)
        masks = np.stack([np.array(Image.open(file)) > 0 for file in files])
        scores[kind] = (masks & truth).sum() / (masks | truth).sum()
    assert scores["linear"] > scores["none"] + 0.1


@needs_crf
@pytest.mark.parametrize("objects", [1, 2])
def test_sharpened_masks(tmp_path, objects):
    recipe = replace(PLAIN, objects=objects, refine=True)
    masks = made(tmp_path, recipe, n=2)
    assert all(mask.shape == (32, 48) for mask in masks)
    options = json.loads((tmp_path / "options.json").read_text())
    assert options["refine"]["iterations"] == crf.DEFAULT.iterations


def test_images_of_one_colour_have_no_object_and_stop_nothing(tmp_path):
    class Flat(Stripes):
        def read(self, index):
            image, label = super().read(index)
            return np.full_like(image, 90), label

    dataset = Flat(n=2, size=(32, 48), ignore=False)
    for mask in made(tmp_path, dataset=dataset):
        assert mask.shape == (32, 48)


def test_images_of_several_sizes_and_odd_ones(tmp_path):
    class Odd(Stripes):
        def read(self, index):
            image, label = super().read(index)
            return image[: 32 - 3 * (index % 2)], label[: 32 - 3 * (index % 2)]

    dataset = Odd(n=3, size=(32, 45), ignore=False)
    masks = made(tmp_path, replace(PLAIN, side=64), dataset=dataset)
    assert [mask.shape for mask in masks] == [(32, 45), (29, 45), (32, 45)]


def test_what_is_there_is_not_made_again(tmp_path, monkeypatch):
    before = made(tmp_path)
    monkeypatch.setattr(mask_making, "_Maker", None)
    assert all(map(np.array_equal, made(tmp_path), before))


def test_missing_and_empty_files_are_made_as_they_were(tmp_path):
    before = made(tmp_path)
    (tmp_path / "000001.png").unlink()
    (tmp_path / "000003.png").write_bytes(b"")
    stamp = (tmp_path / "000000.png").stat().st_mtime_ns
    assert all(map(np.array_equal, made(tmp_path), before))
    assert (tmp_path / "000000.png").stat().st_mtime_ns == stamp


def test_a_folder_of_other_masks_is_refused(tmp_path):
    made(tmp_path)
    with pytest.raises(ValueError, match=r"something else \(they differ in tau\)"):
        made(tmp_path, replace(PLAIN, tau=0.5))
    (tmp_path / "options.json").unlink()
    with pytest.raises(ValueError, match="masks without options.json"):
        made(tmp_path)


def test_features_that_are_no_numbers(tmp_path, monkeypatch):
    backbone = backbones.load("vit_tiny_random")
    wrong = torch.full((1, 192, 4, 6), torch.nan)
    monkeypatch.setattr(mask_making._Maker, "_features", lambda *_: wrong)
    with pytest.raises(ValueError, match="finite|NaN"):
        make_masks(stripes(1), backbone, PLAIN, folder=tmp_path)


SLOW = """
import sys
from tests.test_mask_making import PLAIN, stripes
from uss_utils import backbones, mask_making
real = mask_making._write
def write(*args):
    real(*args)
    print("written", flush=True)
    sys.stdin.readline()
mask_making._write = write
backbone = backbones.load("vit_tiny_random")
mask_making.make_masks(stripes(), backbone, PLAIN, folder=sys.argv[1], workers=1)
"""


def test_killed_in_the_middle(tmp_path):
    root = Path(__file__).parents[1]
    command = [sys.executable, "-c", SLOW, str(tmp_path / "killed")]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=root, text=True
    ) as process:
        for _ in range(2):
            assert process.stdout.readline() == "written\n"
            process.stdin.write("\n")
            process.stdin.flush()
        time.sleep(0.1)
        process.send_signal(signal.SIGKILL)
    stored = list((tmp_path / "killed").glob("*.png"))
    assert 2 <= len(stored) < 5
    again, whole = made(tmp_path / "killed"), made(tmp_path / "whole")
    assert all(map(np.array_equal, again, whole))
