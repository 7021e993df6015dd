"""Estimates: extrapolation by hand, a short measured run, and what is said about it."""

import math
import tempfile

import pytest
import torch

from uss_utils import cost, methods
from uss_utils.cost import line, parabola
from uss_utils.cost_facts import facts
from uss_utils.cost_passes import Measured, Pass, Runner
from uss_utils.cost_stand_ins import Networks, stand_in
from uss_utils.cost_words import size_words, time_words


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


def test_a_short_run_on_stand_ins_leaves_nothing_behind(tmp_path, monkeypatch):
    monkeypatch.setenv("USS_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("USS_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.chdir(tmp_path)
    stego = methods.load("stego")
    cfg = stego.Config.preset("potsdam3-vits8", size=64, eval_size=64, steps=40)
    found = cost.estimate(stego, cfg, seconds=1)
    assert set(found.seconds) == set(cost.PARTS)
    assert all(math.isfinite(s) and s >= 0 for s in found.seconds.values())
    assert found.seconds["train"] == pytest.approx(40 * found.step)
    assert found.hours == pytest.approx(sum(found.seconds.values()) / 3600)
    assert 1e8 < found.memory < 1e10
    assert all(made.size for made in found.files) and found.disk > 0
    text = str(found)
    assert "potsdam3: not here" in text and "on generated pictures" in text
    assert "random weights of dino_vits8" in text and "images prepared" in text
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_a_mistake_is_told_before_anything_is_measured():
    stego = methods.load("stego")
    with pytest.raises(ValueError, match="60 x 60 .* does not divide into patches"):
        cost.estimate(stego, stego.Config.preset("potsdam3-vits8", size=60))


def test_parts_that_were_not_reached_are_told(monkeypatch):
    """Here the run stopped in the middle of its first steps."""
    part = Pass(4, 2, 2, 1, {"prepare": 2.0}, {"prepare": 1.0})
    found = Measured([part], complaint="there was not enough time", seconds=60.0)
    monkeypatch.setattr(cost, "measure", lambda *args, **options: found)
    stego = methods.load("stego")
    told = cost.estimate(stego, stego.Config.preset("smoke"))
    assert told.seconds == {"prepare": pytest.approx(8.0)}
    assert told.hours is None and told.memory is None
    text = str(told)
    assert text.count("not measured") == 6  # three parts, memory, sizes of two files
    assert "incomplete: there was not enough time" in text
    assert "together" not in text


@pytest.mark.parametrize("name", ["stego", "hsg"])
def test_a_pass_goes_through_all_of_a_training(name, tmp_path, monkeypatch):
    monkeypatch.setenv("USS_DATA", str(tmp_path))
    method = methods.load(name)
    cfg = method.Config.preset("smoke")
    sent, found = [], Measured(per_image=0.01)
    place = torch.device("cpu")
    known = facts(method, cfg)
    runner = Runner(method, cfg, known, place, found, tmp_path, sent.append)
    runner.run(Pass(4, 2, 2, 2))
    (part,) = found.passes
    assert set(part.seconds) == {"prepare", "step", "finish", "score"}
    assert min(part.seconds.values()) > 0 and part.memory > 0
    maps = {"maps"} if name == "hsg" else set()
    assert set(part.files) == {"models", "checkpoints"} | maps
    assert len(sent) >= 4  # after every part: an unfinished pass is told too
    # Pixels go through no frozen network; STEGO's images once, and mirrored to score.
    images = 0 if name == "hsg" else 4
    assert part.network["prepare"] == pytest.approx(0.01 * images)
    assert part.network["step"] == 0


def test_what_a_cut_network_leaves_out_is_added(tmp_path, monkeypatch):
    monkeypatch.setenv("USS_DATA", str(tmp_path))
    stego = methods.load("stego")
    cfg = stego.Config.preset("smoke")
    # A frozen network that takes a minute per image, half of which is cut off.
    found = Measured(per_image=60.0, cut=True)
    runner = Runner(
        *(stego, cfg, facts(stego, cfg), torch.device("cpu"), found, tmp_path),
        lambda _: None,
    )
    runner.run(Pass(4, 2, 2, 1))
    (part,) = found.passes
    assert part.network["prepare"] == pytest.approx(4 * 60)
    assert part.seconds["prepare"] == pytest.approx(4 * 30, abs=10)
    assert part.network["score"] == pytest.approx(2 * 2 * 60)  # and mirrored
    assert part.seconds["step"] < 10  # features are in memory


def test_stand_ins_have_the_size_and_the_classes_of_the_set():
    stego = methods.load("stego")
    cfg = stego.Config.preset("cityscapes27-vitb8", size=64)
    known = facts(stego, cfg, look=False)
    few = stand_in(cfg, known, Networks(cfg), 3, 2)
    train, val = few.open("train"), few.open("val")
    assert (len(train), len(val)) == (3, 2) and train.n_classes == 27
    assert train.read_size(0) == (512, 1024)  # a crop
    assert val.read_size(0) == (1024, 2048)
    images, labels = train.batch([0, 1])
    assert images.shape == (2, 3, 64, 64) and 0 <= labels.min() <= labels.max() < 27
    assert few.neighbours == 2 and few.batch_size == 3 and few.cache == known.place


def test_more_processes_share_the_frozen_network_alone():
    stego, hsg = methods.load("stego"), methods.load("hsg")
    for method, least in ((stego, 1 / 4), (hsg, 0.0)):
        cfg = method.Config.preset("smoke")
        known = facts(method, cfg)
        part = Pass(16, 8, known.batch_size, 4)
        part.seconds = {"prepare": 4.0, "step": 2.0, "finish": 1.0, "score": 1.0}
        part.network = {"prepare": 4.0, "step": 1.0, "finish": 0.0, "score": 0.5}
        found = Measured([part])
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
