"""Settings of every kind: refused in one line when made, or a method works with them."""

import json
import math
import os
import warnings
from dataclasses import fields, replace
from pathlib import Path
from typing import Literal, get_args, get_origin, get_type_hints

import numpy as np
import pytest
import torch
from hypothesis import assume, example, given
from hypothesis import strategies as st
from typer.testing import CliRunner

from tests.fuzz.cases import documented, fewer
from uss_utils import __main__ as command_line
from uss_utils import course, methods, notebooks, paths, runs
from uss_utils.photo_folder import check_places

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


# -------------------------------------------------------------------- and then they work

SMALL = {"n_train": 6, "n_val": 2, "size": 64}
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
    changes = {name: data.draw(plausible(hints[name])) for name in chosen}
    base = module.Config.preset("smoke", **SMALL, **FEW.get(method, {}))
    with documented(ValueError, OSError, FloatingPointError), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            cfg = replace(base, **changes)
        except ValueError:
            assume(False)
        cfg = replace(cfg, steps=min(cfg.steps, 3)) if method != "kmeans" else cfg
        if hasattr(module, "prepare"):
            trained = module.train(cfg, module.prepare(cfg)).segmenter
        else:
            trained = module.train(cfg)
        images, _ = cfg.open("val").batch([0])
        assert trained.code(images).isfinite().all()
