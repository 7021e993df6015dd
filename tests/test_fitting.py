"""What lies between settings and the loop: options, moments, an untrained network."""

from dataclasses import dataclass

import pytest
import torch
from torch import nn

from tests.models import boxes
from uss_utils import fitting
from uss_utils.learning import prepare
from uss_utils.presets import presets
from uss_utils.recipe import LearnedRecipe


@dataclass(frozen=True)
class Config(LearnedRecipe):
    backbone: str = "pixels"
    standardise: str = "none"
    steps: int = 4
    batch_size: int = 3


PRESETS = presets(smoke=Config(size=64))


@pytest.fixture(scope="module")
def material():
    return prepare(Config.preset("smoke"), boxes())


class Numbers:
    """Indices as data."""

    def __len__(self):
        return 8

    def draw(self, rows, generator):
        return {"x": rows.float()}


def train(cfg, material, **options):
    model, batches = nn.Linear(1, 1), []

    def loss(model, batch, step):
        batches.append(len(batch["x"]))
        return {"loss": model(batch["x"][:, None]).square().mean()}

    optimisers = {"model": torch.optim.SGD(model.parameters(), 1e-3)}
    history = fitting.run(
        *(cfg, material, model, loss, Numbers()), optimisers=optimisers, **options
    )
    return history, batches


def test_settings_say_how_long_and_options_win(material):
    cfg = Config.preset("smoke")
    history, batches = train(cfg, material)
    assert len(history.rows) == 4 and batches == [3] * 4  # the last two are left out
    history, batches = train(cfg, material, steps=3, drop_last=False)
    assert len(history.rows) == 3 and batches == [3, 3, 2]


def test_the_model_is_watched_at_the_asked_steps(material):
    seen = []
    train(
        *(Config.preset("smoke"), material),
        current=lambda: "as it stands",
        watch=lambda n, model: seen.append((n, model)),
        watch_at=(0, 1, 3),
    )
    assert seen == [(n, "as it stands") for n in (0, 1, 3)]


def test_a_checkpoint_agrees_wherever_files_lie(material, tmp_path):
    cfg, place = Config.preset("smoke"), tmp_path / "run.safetensors"
    here = cfg.override(weights=tmp_path / "here" / "own.safetensors")
    there = cfg.override(weights=tmp_path / "there" / "own.safetensors")
    first, _ = train(here, material, checkpoint=place)
    again, batches = train(there, material, checkpoint=place)
    assert not batches and again.rows == first.rows
    with pytest.raises(ValueError, match="weights"):
        train(cfg, material, checkpoint=place)
