"""Settings of every kind: refused in one line, or a method works with them."""

import json
import math
import re
import warnings
from dataclasses import fields, replace
from pathlib import Path
from typing import Literal, get_args, get_origin, get_type_hints

import numpy as np
import pytest
import torch
from hypothesis import assume, example, given, reject
from hypothesis import strategies as st
from PIL import Image
from typer.testing import CliRunner

from tests.fuzz.cases import documented, fewer
from tests.models import grey_model
from uss_utils import __main__ as command_line
from uss_utils import (
    course,
    environment,
    methods,
    photo_training,
    preparation,
    pretraining,
    runs,
    unlabelled,
)
from uss_utils.datasets import camvid_download, coco_download, voc_download
from uss_utils.methods import kmeans

pytestmark = pytest.mark.fuzz

METHODS = {name: methods.load(name) for name in methods.METHODS}
ODD_NUMBERS = st.one_of(
    st.sampled_from([0, -1, 1, 2, 3, 7, 2**31, 2**63 - 1, 2**63, 10**400, -(10**5000)]),
    st.sampled_from([0.0, -0.0, 0.5, 1.0, -1.5, 1e-300, 1e308, math.nan, math.inf]),
    st.integers(),
    st.floats(),
)
ODD = st.one_of(
    ODD_NUMBERS,
    st.booleans(),
    st.none(),
    st.text(),
    st.text(min_size=5000, max_size=5001),
    st.binary(max_size=4),
    st.lists(ODD_NUMBERS, max_size=4),
    st.lists(ODD_NUMBERS, max_size=4).map(tuple),
    st.tuples(st.lists(st.integers(), max_size=2), st.booleans()),
    st.dictionaries(st.text(max_size=3), st.integers(), max_size=2),
    st.sampled_from([np.float64(0.1), np.int64(3), np.array([1, 2]), np.bool_(True)]),
    st.builds(lambda: torch.ones(2, 2)),
    st.sampled_from([object(), int, len, Path("x"), Path(), {1}, 1j, ...]),
)


def field_names(method: str) -> list[str]:
    return [field.name for field in fields(METHODS[method].Config)]


# ------------------------------------------------------------------ when they are made


@pytest.mark.parametrize("method", METHODS)
@given(data=st.data())
def test_any_value_of_any_field_is_refused_in_one_line_or_taken(method, data):
    preset = data.draw(st.sampled_from([*METHODS[method].PRESETS]))
    names = data.draw(st.lists(st.sampled_from(field_names(method)), min_size=1))
    cfg = METHODS[method].Config.preset(preset)
    with documented(ValueError):
        made = replace(cfg, **{name: data.draw(ODD) for name in names})
        assert hash(made) is not None
        json.dumps(made.portable(), allow_nan=False, default=str)
        made.overrides(), made.protocol(), made.story()


@given(data=st.data(), value=ODD)
def test_every_field_refuses_what_is_not_of_its_type(data, value):
    """What is neither text nor number nor a tuple of these fits no field."""
    assume(not isinstance(value, str | int | float | list | tuple | Path | None))
    method = data.draw(st.sampled_from([*METHODS]))
    name = data.draw(st.sampled_from(field_names(method)))
    with pytest.raises(ValueError, match=f"^{name}=.* does not fit: expected"):
        replace(METHODS[method].Config(), **{name: value})


@pytest.mark.parametrize("method", METHODS)
def test_no_field_takes_numbers_that_are_not_finite(method, record_property):
    config = METHODS[method].Config()
    cases = [(name, v) for name in field_names(method) for v in (math.nan, -math.inf)]
    for name, value in cases:
        with pytest.raises(ValueError, match=f"^{name}="):
            replace(config, **{name: value})
        if isinstance(getattr(config, name), tuple):
            values = (value, *getattr(config, name)[1:])
            with pytest.raises(ValueError, match=f"^{name}="):
                replace(config, **{name: values})
    record_property("cases", len(cases))


@given(name=st.one_of(st.text(), ODD), value=ODD)
@example(name="scenes\n", value=0)
@example(name=["scenes"], value=0)
def test_unknown_presets_and_fields_are_refused(name, value):
    with documented(ValueError):
        METHODS["stego"].Config.preset(name)
    if isinstance(name, str):
        with documented(ValueError):
            METHODS["stego"].Config.preset("smoke", **{name: value})
    with documented(ValueError):
        methods.load(name)


# ------------------------------------------------------------------ and then they work

SMALL = {"n_train": 10, "n_val": 2, "size": 64}
# Where ranges are given elsewhere: values that this data set knows.
KNOWN = {
    "size": st.sampled_from([64, 65, 72, 128, (64, 64), (64, 72), (64, 64, 64)]),
    "eval_size": st.sampled_from([None, 64, 100, (72, 72)]),
    "train_split": st.sampled_from(["train", "val", "pretrain", "nowhere"]),
    "batch_size": st.integers(1, 12),
    "weights": st.none(),
}
FEW = {"kmeans": {"steps": 5, "restarts": 1, "iterations": 3, "tokens": 300}}
COUNTS = [1, 2, 3, 5, 8, 13, 40, 64, 65]
FACTORS = [0.0, 1e-30, 1e-3, 0.03, 0.1, 0.2, 0.5, 0.97, 1.0, 2.0, 32.0, 1e4, 1e30]
# Names that would go to the network, which is a matter of other tests.
FETCHED = ("backbone", "mask_backbone", "dataset", "images", "start", "network")


def plausible(hint: object) -> st.SearchStrategy:
    """Values of a field's type, in a size that a smoke test can bear."""
    options, origin = get_args(hint), get_origin(hint)
    if origin is Literal:
        return st.sampled_from(options)
    if origin is tuple:
        return st.tuples(*map(plausible, options))
    if options:
        return st.one_of(map(plausible, options))
    return {
        int: st.sampled_from(COUNTS),
        float: st.sampled_from(FACTORS),
        bool: st.booleans(),
        str: st.sampled_from(["", "train", "val", "nowhere"]),
        Path: st.just(Path("nowhere")),
        type(None): st.none(),
    }[hint]


@pytest.mark.parametrize("method", METHODS)
@fewer(20)
@given(data=st.data())
def test_settings_that_are_taken_train_a_model(method, data, tmp_path_factory):
    """Up to three fields at once; nothing but the documented errors comes of it."""
    module = METHODS[method]
    hints = get_type_hints(module.Config)
    names = [n for n in field_names(method) if n not in ("name", "root", *FETCHED)]
    chosen = data.draw(st.lists(st.sampled_from(names), max_size=3, unique=True))
    changes = {
        name: data.draw(KNOWN.get(name, plausible(hints[name]))) for name in chosen
    }
    base = module.Config.preset("smoke", **SMALL, **FEW.get(method, {}))
    with documented(ValueError, OSError, FloatingPointError), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            cfg = replace(base, **changes)
        except ValueError:
            reject()
        cfg = replace(cfg, steps=min(cfg.steps, 3)) if method != "kmeans" else cfg
        if hasattr(module, "prepare"):
            trained = module.train(cfg, module.prepare(cfg)).segmenter
        else:
            trained = module.train(cfg)
        images, _ = cfg.open("val").batch([0])
        assert trained.code(images).isfinite().all()


# -------------------------------------------------------------------- the command line

# No line breaks, no pages: messages repeat words as they were typed.
VALUES = st.one_of(
    st.sampled_from(
        ["", "0", "-1", "1", "3", "2.5", "nan", "1e999", "9" * 300, "None", "[]", "x"]
    ),
    st.sampled_from(["smoke", "scenes", "camvid-tiny", "train", "eval", "auto", "cpu"]),
    st.sampled_from(["cuda:99", "meta", "224", "64x96", "0x0", "bilinear", "¹", " "]),
    st.sampled_from(["nowhere", ".", "FILE", "FOLDER", "MODEL", "PICTURES", "NAMES"]),
    st.text(
        alphabet=st.characters(exclude_categories=["Cs", "Cc", "Zl", "Zp"]), max_size=8
    ),
)
FIELDS = st.sampled_from(
    ["steps", "n_train", "dim", "lr", "base", "start", "size", "seed", "name", "root"]
)
LITERALS = st.one_of(
    VALUES, st.sampled_from(["(1, 2)", "{}", "{1: 2}", "True", "1j", "'a'", "...", "["])
)
PAIRS = st.one_of(
    st.builds("{}={}".format, FIELDS, LITERALS),
    VALUES,
    st.builds("{}={}".format, st.one_of(FIELDS, VALUES), LITERALS),
)
# What most command lines say, so that they get far.
USUAL = {
    "preset": "smoke",
    "seeds": "1",
    "steps": "3",
    "device": "cpu",
    "model": "MODEL",
    "method": "kmeans",
    "out": "results",
    "images": "2",
    "precision": "no",
    "names": "NAMES",
    "split": "train",
    "size": "64",
}
METHOD = st.one_of(st.sampled_from([*METHODS]), st.sampled_from([*METHODS]), VALUES)
PLACE = st.one_of(st.sampled_from(["MODEL", "PICTURES", "FOLDER"]), VALUES)
SET = st.one_of(st.sampled_from(["scenes", "camvid", "voc"]), VALUES)
# Command -> strategies of its arguments, and its options.
COMMANDS = {
    "course": ([VALUES], {"preset", "out", "timeout", "jobs", "parameter"}),
    "ladder": ([], {"preset", "data-root", "seeds", "weights", "out"}),
    "train": (
        [METHOD],
        {"preset", "data-root", "seeds", "steps", "weights", "set", "device", "out"},
    ),
    "evaluate": (
        [PLACE],
        {"data-root", "weights", "fit-map-on", "limit-crf", "classifier-epochs"}
        | {"device", "out"},
    ),
    "segment": (
        [PLACE],
        {"out", "model", "method", "preset", "clusters", "steps", "set", "seed"}
        | {"weights", "names", "max-side", "device"},
    ),
    "hierarchy": ([PLACE, PLACE], {"out", "max-side", "device"}),
    "pretrain": (
        [],
        {"out", "dataset", "data-root", "images", "image-size", "vicreg-steps", "work"}
        | {"distil-steps", "batch-size", "precision", "seed", "device"},
    ),
    "data check": ([SET], {"data-root"}),
    "data download": ([SET], {"data-root", "split"}),
    "data prepare": (
        [SET],
        {"data-root", "split", "backbone", "weights", "size", "resample", "k", "device"}
        | {"processes"},
    ),
}


@st.composite
def command_lines(draw, command: str) -> list[str]:
    """A command with words of any kind."""
    arguments, options = COMMANDS[command]
    words = command.split()
    given = draw(st.lists(st.sampled_from(sorted(options)), max_size=4))
    if draw(st.booleans()) and "out" in options:
        given.append("out")
    for name in given:
        odd = PAIRS if name in ("set", "parameter") else VALUES
        usual = st.just(USUAL[name]) if name in USUAL else odd
        value = draw(st.one_of(usual, usual, odd))
        words.append(f"--{name}={value}")
    return [*words, "--", *map(draw, arguments)]


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, str]:
    """Places that a command line may name."""
    folder = tmp_path_factory.mktemp("places")
    (folder / "empty").mkdir()
    (folder / "pictures").mkdir()
    Image.new("RGB", (30, 20), "red").save(folder / "pictures" / "a.png")
    (folder / "text.txt").write_text("no model, no picture")
    (folder / "names.json").write_text('{"names": {"0": "sky", "7": 3}}')
    return {
        "FILE": str(folder / "text.txt"),
        "FOLDER": str(folder / "empty"),
        "PICTURES": str(folder / "pictures"),
        "NAMES": str(folder / "names.json"),
        "MODEL": str(grey_model([2, 0, 1]).save(folder / "model.safetensors")),
    }


class Begun(Exception):
    """What takes long was about to begin: the command line was taken."""


@pytest.fixture
def nothing_long(monkeypatch, tmp_path):
    """Commands end where training, downloads and notebooks would begin."""

    def begin(*args, **options):
        raise Begun

    def train(method, cfg, seeds, folder, *, device):
        environment.pick_device(device)
        begin(cfg.open("val"), [*seeds])

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("USS_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("USS_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(runs, "train", train)
    monkeypatch.setattr(course, "_one_by_one", begin)
    monkeypatch.setattr(course, "_side_by_side", begin)
    monkeypatch.setattr(kmeans, "ladder", lambda cfg, **_: begin(cfg.open("val")))
    monkeypatch.setattr(photo_training, "_train", begin)
    monkeypatch.setattr(pretraining, "pretrain", begin)
    monkeypatch.setattr(unlabelled, "_renders", lambda *_: [])
    monkeypatch.setattr(preparation, "_neighbours", begin)
    monkeypatch.setattr(camvid_download, "download_camvid", begin)
    monkeypatch.setattr(coco_download, "download_coco", begin)
    monkeypatch.setattr(coco_download, "download_cocostuff", begin)
    monkeypatch.setattr(voc_download, "download_voc", begin)


@pytest.mark.parametrize(
    "words",
    [
        ["train", "stego", "--preset=smoke", "--steps=3", "-s", "steps=4"],
        ["train", "stego", "--preset=smoke", "-s", "name=x"],
        ["train", "stego", "--preset=smoke", "-s", "dim={[]: 1}"],
        ["train", "stego", "--preset=smoke", "-s", "dim=" + "-" * 20_000 + "1"],
        ["train", "stego", "--preset=smoke", "-s", "dim=" + "(" * 300],
        ["train", "stego", "--preset=smoke", "-s", "size=(64, 72)"],
        ["train", "stego", "--preset=smoke", "-s", "lr=1e999"],
        ["course", "00", "--preset=smoke", "--jobs=0"],
    ],
)
def test_command_lines_that_once_ended_in_a_traceback(words, nothing_long):
    error = CliRunner().invoke(command_line.app, words).exception
    assert isinstance(error, ValueError)
    with documented(ValueError):
        raise error


@pytest.mark.parametrize("command", COMMANDS)
@given(data=st.data())
def test_commands_with_words_of_any_kind(command, data, files, nothing_long):
    words = data.draw(command_lines(command))
    for name, place in files.items():
        words = [re.sub(f"^(--.*=)?{name}$", rf"\g<1>{place}", word) for word in words]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        result = CliRunner().invoke(command_line.app, words)
    error = result.exception
    if isinstance(error, SystemExit | Begun | None):
        return
    if str(error).startswith("unknown parameter"):
        return  # several lines: the parameters of every notebook
    with documented(ValueError, OSError):
        raise error
