"""Presets, overrides and their messages."""

from dataclasses import FrozenInstanceError, dataclass
from typing import Literal

import pytest

from uss_utils.presets import PresetConfig, presets


@dataclass(frozen=True)
class Config(PresetConfig):
    steps: int = 300
    rate: float = 0.1
    size: int | tuple[int, int] = 128
    kind: Literal["plain", "fancy"] = "plain"
    betas: tuple[float, ...] = (1.0, 2.0)


PRESETS = presets(
    smoke=Config(steps=3), scenes=Config(), camvid_tiny=Config(size=(240, 320))
)


def test_preset_knows_its_name_and_values():
    assert Config.preset("smoke") == Config(name="smoke", steps=3)
    assert Config.preset("camvid-tiny").size == (240, 320)


def test_override_replaces_and_ignores_none():
    config = Config.preset("scenes", steps=7, seed=2).override(steps=None, rate=1)
    assert (config.steps, config.seed, config.rate) == (7, 2, 1)
    assert config.name == "scenes"
    assert Config.preset("scenes").steps == 300


def test_overrides_lists_what_differs_from_the_preset_but_not_the_seed():
    config = Config.preset("scenes", steps=7, seed=2)
    assert config.overrides() == {"steps": 7}
    assert Config.preset("scenes").overrides() == {}
    assert Config(steps=9).overrides() == {}


def test_overrides_tells_no_folder():
    config = Config.preset("scenes", root="/somewhere/data", weights="/else/mine.st")
    assert config.overrides() == {"weights": "mine.st"}


def test_a_subclass_elsewhere_uses_its_parents_presets():
    elsewhere = type("Mine", (Config,), {"__module__": "nowhere"})
    assert elsewhere.preset("smoke").steps == 3


def test_lists_become_tuples():
    assert Config(size=[64, 96]).size == (64, 96)
    assert hash(Config(betas=[1, 2])) == hash(Config(betas=(1, 2)))


def test_frozen():
    with pytest.raises(FrozenInstanceError):
        Config().steps = 1


def test_unknown_preset_names_the_known_ones():
    with pytest.raises(ValueError, match="'nope', known are: smoke, scenes, camvid-t"):
        Config.preset("nope")
    with pytest.raises(ValueError, match="did you mean 'scenes'"):
        Config.preset("scene")


def test_unknown_setting_names_the_known_ones():
    with pytest.raises(ValueError, match="unknown setting 'step'.*did you mean 'steps"):
        Config().override(step=3)
    with pytest.raises(ValueError, match="unknown setting 'name'"):
        Config().override(name="x")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": "many"}, "steps='many' does not fit: expected int"),
        ({"steps": 1.5}, "expected int"),
        ({"steps": True}, "expected int"),
        ({"rate": "x"}, "expected float"),
        ({"kind": "odd"}, "kind='odd' does not fit: expected 'plain' or 'fancy'"),
        ({"size": (1, 2, 3)}, "expected int or tuple"),
        ({"betas": (1, "a")}, "betas"),
    ],
)
def test_values_that_do_not_fit(change, message):
    with pytest.raises(ValueError, match=message):
        Config().override(**change)
