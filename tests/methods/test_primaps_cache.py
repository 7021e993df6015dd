"""PriMaPs' masks on disk: made once, by one process, whatever ends it."""

import json
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event

import pytest
import torch
from PIL import Image

from tests.models import Stripes
from uss_utils import backbones, crf
from uss_utils.methods import _primaps_cache
from uss_utils.methods._primaps_masks import propose_masks
from uss_utils.methods.primaps import MaskCache

needs_crf = pytest.mark.skipif(not crf.available(), reason="pydensecrf2 is missing")


def stripes(n=5):
    return Stripes(n=n, size=(32, 48), ignore=False)


def build(folder, n=5, **options):
    backbone = backbones.load("vit_tiny_random")
    return MaskCache.build(
        backbone, stripes(n), folder=folder, **{"batch_size": 2, "workers": 1} | options
    )


def test_maps_on_disk(tmp_path):
    cache = build(tmp_path)
    assert len(cache) == 5 and cache.size == (32, 48)
    batch = cache.batch([3, 0])
    assert batch.dtype == torch.uint8 and batch.shape == (2, 32, 48)
    assert torch.equal(batch[1], cache[0]) and torch.equal(cache[-1], cache[4])
    names = sorted(path.name for path in (tmp_path / "pseudos").iterdir())
    assert names == [f"{i:06d}.png" for i in range(5)]
    counts = cache.counts()
    assert (counts >= 1).all() and counts[3] == len(
        set(batch[0].unique().tolist()) - {255}
    )
    with Image.open(cache.path(0)) as image:
        assert image.mode == "L"


def test_what_is_there_is_not_made_again(tmp_path, monkeypatch):
    build(tmp_path)

    def refuse(*_, **__):
        raise AssertionError("masks were made again")

    monkeypatch.setattr(_primaps_cache, "propose_masks", refuse)
    build(tmp_path, features=())


def test_missing_maps_are_made_as_they_were(tmp_path):
    before = build(tmp_path).batch(range(5))
    for index in (1, 4):
        (tmp_path / "pseudos" / f"{index:06d}.png").unlink()
    stamp = (tmp_path / "pseudos" / "000000.png").stat().st_mtime_ns
    assert torch.equal(build(tmp_path).batch(range(5)), before)
    assert (tmp_path / "pseudos" / "000000.png").stat().st_mtime_ns == stamp


def test_known_features_give_the_same(tmp_path):
    backbone = backbones.load("vit_tiny_random")
    feat = backbone.features(stripes().batch(range(5))[0])
    known = [(range(i, min(i + 2, 5)), feat[i : i + 2]) for i in (0, 2, 4)]
    a = build(tmp_path / "a", features=known)
    assert torch.equal(a.batch(range(5)), build(tmp_path / "b").batch(range(5)))


def test_resuming_passes_over_what_is_there(tmp_path, monkeypatch):
    build(tmp_path).path(3).unlink()
    seen, real = [], _primaps_cache.feature_batches

    def features(*arguments, **options):
        for rows, feat in real(*arguments, **options):
            seen.append(rows)
            yield rows, feat

    monkeypatch.setattr(_primaps_cache, "feature_batches", features)
    build(tmp_path)
    assert seen == [range(2, 4), range(4, 5)]


def test_empty_files_are_made_again(tmp_path):
    before = build(tmp_path)[2]
    (tmp_path / "pseudos" / "000002.png").write_bytes(b"")
    assert torch.equal(build(tmp_path)[2], before)


def test_features_that_leave_images_out(tmp_path):
    feat = backbones.load("vit_tiny_random").features(stripes().batch([0, 1])[0])
    with pytest.raises(ValueError, match="leave out 3 of 5 images, the first of.* 2"):
        build(tmp_path, features=[(range(2), feat)])
    assert len(list((tmp_path / "pseudos").iterdir())) == 2


def test_features_that_are_not_finite_end_the_work(tmp_path):
    feat = backbones.load("vit_tiny_random").features(stripes().batch([0, 1])[0])
    broken = [(range(2), feat), (range(2, 4), feat * torch.nan)]
    with pytest.raises(ValueError, match="hold NaN or infinite"):
        build(tmp_path, features=broken)
    names = sorted(path.name for path in (tmp_path / "pseudos").iterdir())
    assert names == ["000000.png", "000001.png"]


def test_the_next_masks_are_extracted_while_these_are_sharpened(tmp_path, monkeypatch):
    extracted, calls = Event(), []

    def extract(*arguments):
        calls.append(arguments)
        if len(calls) == 2:
            extracted.set()
        return propose_masks(*arguments)

    def sharpen(ids, size):
        assert extracted.wait(20), "nothing was extracted meanwhile"
        return torch.ones(len(ids), *size, dtype=torch.uint8)

    monkeypatch.setattr(_primaps_cache, "propose_masks", extract)
    monkeypatch.setattr(_primaps_cache, "enlarge_ids", sharpen)
    build(tmp_path, n=4, refine=False)


def test_two_at_once_make_them_once(tmp_path, monkeypatch):
    calls = []

    def extract(*arguments):
        calls.append(arguments)
        return propose_masks(*arguments)

    monkeypatch.setattr(_primaps_cache, "propose_masks", extract)
    backbone = backbones.load("vit_tiny_random")
    options = {"folder": tmp_path, "batch_size": 2, "workers": 1}

    def one(_):
        return MaskCache.build(backbone, stripes(), **options)

    with ThreadPoolExecutor(2) as both:
        a, b = both.map(one, range(2))
    assert len(calls) == 3 and torch.equal(a.batch(range(5)), b.batch(range(5)))


def test_killed_in_the_middle(tmp_path):
    """SIGKILL while the third map is being written."""
    program = f"""
import os, signal
from uss_utils.methods import _primaps_cache as cache
from tests.methods.test_primaps_cache import build
real, done = cache.MaskCache._write, []
def write(self, index, ids):
    if len(done) == 2:
        with cache.atomic_file(self.path(index), bulk=True) as temporary:
            temporary.write_bytes(b"half a file")
            os.kill(os.getpid(), signal.SIGKILL)
    done.append(index)
    real(self, index, ids)
cache.MaskCache._write = write
build({str(tmp_path / "killed")!r})
"""
    root = Path(__file__).resolve().parents[2]
    ended = subprocess.run([sys.executable, "-c", program], cwd=root, check=False)
    assert ended.returncode == -signal.SIGKILL
    folder = tmp_path / "killed" / "pseudos"
    assert len(list(folder.glob("*.png"))) == 2 + len(list(folder.glob(".tmp-*")))
    cache = build(tmp_path / "killed")
    assert sorted(p.name for p in folder.iterdir()) == [
        f"{i:06d}.png" for i in range(5)
    ]
    whole = build(tmp_path / "whole")
    assert torch.equal(cache.batch(range(5)), whole.batch(range(5)))


def test_masks_of_something_else_are_refused(tmp_path):
    build(tmp_path)
    with pytest.raises(ValueError, match=r"differ in threshold\); delete the folder"):
        build(tmp_path, threshold=0.6)
    with pytest.raises(ValueError, match="differ in dataset, shape"):
        build(tmp_path, n=4)
    (tmp_path / "options.json").write_text("{")
    with pytest.raises(ValueError, match=r"options.json is damaged.*delete the folder"):
        build(tmp_path)
    (tmp_path / "options.json").unlink()
    with pytest.raises(ValueError, match=r"holds masks without options.json"):
        build(tmp_path)


def test_damaged_maps_are_named(tmp_path):
    build(tmp_path).path(2).write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"000002.png is no readable map .* delete it"):
        build(tmp_path)[2]
    Image.new("L", (3, 3)).save(tmp_path / "pseudos" / "000002.png")
    with pytest.raises(ValueError, match=r"uint8 of shape \(3, 3\) instead of bytes"):
        build(tmp_path)[2]


def test_default_place_tells_settings_apart(tmp_path, monkeypatch):
    monkeypatch.setenv("USS_DATA", str(tmp_path))
    a, b = build(None), build(None, threshold=0.6)
    assert a.folder != b.folder and a.folder.parent == b.folder.parent
    assert json.loads((a.folder / "options.json").read_text())["threshold"] == 0.4


@needs_crf
def test_unrefined_maps_are_blocks_of_patches(tmp_path):
    plain = build(tmp_path / "plain", refine=False)
    blocks = plain[0].reshape(4, 8, 6, 8).permute(0, 2, 1, 3).flatten(2)
    assert (blocks == blocks[..., :1]).all()
    assert plain.options["crf"] is None
    assert build(tmp_path / "sharp").options["crf"]["iterations"] == 10


def test_without_the_library_maps_are_those_unrefined(tmp_path, monkeypatch):
    monkeypatch.setattr(crf, "available", lambda: False)
    cache = build(tmp_path / "without")
    assert cache.options["crf"] is None
    plain = build(tmp_path / "plain", refine=False)
    assert torch.equal(cache.batch(range(5)), plain.batch(range(5)))
