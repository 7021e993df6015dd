"""Estimates: extrapolation by hand, a short measured run, and what is said about it."""

import math

import pytest

from uss_utils import cost, methods
from uss_utils.cost import line, parabola, size_words, time_words


def test_a_line_through_two_points_and_its_ends():
    assert line([(4, 3.0), (8, 5.0)], 100) == pytest.approx(1 + 50)
    assert line([(4, 3.0), (8, 5.0)], 8) == 5.0
    assert line([(8, 5.0)], 80) == pytest.approx(50)
    # A line that falls, or begins below zero, is noise.
    assert line([(4, 6.0), (8, 5.0)], 16) == pytest.approx(10)
    assert line([(4, 1.0), (8, 5.0)], 16) == pytest.approx(10)


def test_a_step_grows_with_the_batch_and_may_grow_with_its_square():
    assert parabola([(2, 2.0), (8, 8.0)], 64) == pytest.approx(64)
    exact = [(b, 0.5 * b + 0.1 * b**2) for b in (2, 8)]
    assert parabola(exact, 64) == pytest.approx(0.5 * 64 + 0.1 * 64**2)
    assert parabola([(16, 3.0)], 16) == 3.0
    # Points that lie close together say nothing of a square.
    assert parabola([(4, 4.0), (8, 10.0)], 16) == pytest.approx(20)


def test_words_for_sizes_and_times():
    assert [size_words(n) for n in (2_000, 3.8e9, 149e9, 2e12)] == [
        *("2 kB", "3.8 GB", "149 GB", "2.0 TB"),
    ]
    assert [time_words(s) for s in (3.21, 40, 600, 3 * 3600, 86_400 * 3)] == [
        *("3.2 s", "40 s", "10 min", "3.0 h", "3.0 days"),
    ]


def test_sizes_alone_take_no_time():
    hsg = methods.load("hsg")
    found = cost.estimate(hsg, hsg.Config.preset("cityscapes-resnet50"), seconds=0)
    assert found.hours is None and found.step is None and found.memory is None
    text = str(found)
    assert "cityscapes19: not here" in text and "not measured" in text
    assert "38000 of 32 images" in text


@pytest.mark.parametrize("name", ["stego", "primaps"])
def test_a_short_run_tells_times_memory_and_files(name, tmp_path, monkeypatch):
    monkeypatch.setenv("USS_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("USS_RUNS", str(tmp_path / "runs"))
    monkeypatch.chdir(tmp_path)
    method = methods.load(name)
    found = cost.estimate(method, method.Config.preset("smoke"), seconds=4)
    assert found.facts.present
    assert all(math.isfinite(s) and s >= 0 for s in found.seconds.values())
    assert found.seconds["train"] >= found.step * found.facts.steps > 0
    assert 1e8 < found.memory < 1e10
    assert all(made.size for made in found.files)
    assert str(found).endswith(str(found).strip()) and "images prepared" in str(found)
    # Nothing is left behind, and nothing was written where runs write.
    assert not any(tmp_path.rglob("*"))


def test_absent_data_and_weights_are_stood_in_for(monkeypatch, tmp_path):
    monkeypatch.setenv("USS_DATA", str(tmp_path))
    stego = methods.load("stego")
    cfg = stego.Config.preset("potsdam3-vits8", size=64, eval_size=64)
    found = cost.estimate(stego, cfg, seconds=4)
    text = str(found)
    assert "potsdam3: not here" in text
    assert "on generated pictures" in text
    assert "random weights of dino_vits8" in text


def test_more_processes_share_the_frozen_network_alone():
    stego, hsg = methods.load("stego"), methods.load("hsg")
    for method, least in ((stego, 1 / 4), (hsg, 0.0)):
        cfg = method.Config.preset("smoke")
        known = cost.facts(method, cfg)
        part = cost.Pass(16, 8, known.batch_size, 4)
        part.seconds = {"prepare": 4.0, "step": 2.0, "finish": 1.0, "score": 1.0}
        part.network = {"prepare": 4.0, "step": 1.0, "finish": 0.0, "score": 0.5}
        found = cost.Measured([part])
        alone, _ = cost._seconds(cfg, known, found, 1)
        four, step = cost._seconds(cfg, known, found, 4)
        assert four["prepare"] == pytest.approx(alone["prepare"] / 4)
        assert four["finish"] == alone["finish"]
        assert step == pytest.approx(1.25 if least else 0.5)


def test_arguments_that_make_no_sense():
    stego = methods.load("stego")
    cfg = stego.Config.preset("smoke")
    with pytest.raises(ValueError, match="processes=0"):
        cost.estimate(stego, cfg, processes=0)
    with pytest.raises(ValueError, match="device 'cuda:99'"):
        cost.estimate(stego, cfg, device="cuda:99")
    with pytest.raises(RuntimeError, match="nothing could be measured"):
        cost.estimate(stego, cfg.override(batch_size=1, neighbours=20), seconds=1)
