"""Results, notes and journals on disk: read, skipped, or refused in one line."""

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from tests.fuzz.cases import documented
from tests.fuzz.nested_json import JUNK, changed_json
from tests.models import Stripes, grey_model
from uss_utils import (
    backbones,
    comparison,
    methods,
    naming,
    neighbour_index,
    published,
    records,
    runs,
)
from uss_utils.evaluation import evaluate
from uss_utils.feature_cache import FeatureCache
from uss_utils.hierarchy import Hierarchy
from uss_utils.json_files import read_object
from uss_utils.map_files import to_be_made
from uss_utils.resumable import ArrayWriter
from uss_utils.study import Study

pytestmark = pytest.mark.fuzz

TEXTS = st.one_of(
    st.sampled_from(
        [
            "",
            "{",
            "[]",
            "null",
            "3",
            '"x"',
            "{}",
            '{"a": NaN}',
            '{"a": 1e999}',
            "\ufeff{}",
        ]
    ),
    st.sampled_from(["[" * 100_000, '{"a":' * 50_000, '{"a": ' + "1" * 6000 + "}"]),
    st.text(),
    st.recursive(JUNK, lambda x: st.lists(x, max_size=2)).map(json.dumps),
)
# What is no UTF-8 stays so.
CONTENTS = st.one_of(TEXTS.map(str.encode), st.binary(), st.just(b"\xff\xfe{\x00}\x00"))


@st.composite
def damaged(draw, content: bytes) -> bytes:
    """A file that is half written, in which bytes were changed, or another one."""
    kind = draw(st.sampled_from(["cut", "flip", "other", "twice"]))
    at = draw(st.integers(0, max(0, len(content) - 1)))
    if kind == "cut":
        return content[:at]
    if kind == "flip":
        return (
            content[:at]
            + bytes([content[at] ^ draw(st.integers(1, 255))])
            + (content[at + 1 :])
        )
    return draw(CONTENTS) if kind == "other" else content + content


@given(content=CONTENTS)
@example(content=b'{"a": 1, "a": 2}')
def test_any_file_is_an_object_or_none(content, tmp_path):
    path = tmp_path / "a.json"
    path.write_bytes(content)
    with documented(ValueError):
        assert isinstance(read_object(path), dict)
    assert path.read_bytes() == content


# ------------------------------------------------------------------------------ records


@pytest.fixture(scope="module")
def good(tmp_path_factory) -> dict[str, Any]:
    record = evaluate(grey_model(), Stripes(split="val"), Stripes(), seed=0, steps=5)
    record["crf"] = {"images": 3, "without": copy.deepcopy(record)} | {
        name: record[name] for name in ("cluster", "linear")
    }
    return records.jsonable(record)


def use(folder: Path) -> None:
    """Everything that is made of records."""
    found = records.read_records(folder)
    tables = records.leaderboard(found)
    assert tables.count("|") or not found
    rows = comparison.rows(found)
    comparison.table(rows)
    for record in found:
        name = records.file_name(record)
        assert name.endswith(".json") and "/" not in name and len(name) < 256
        assert all(0 <= v <= 100 for v in records.scores(record).values())
    for name in {record["name"] for record in found}:
        with documented(ValueError):
            records.versus(found, name)
        comparison.paired(found, name, name, "cluster.train.miou")


@given(data=st.data())
def test_records_of_any_shape(data, good, tmp_path):
    """Beside a good record: an error names the file, or all tables can be made."""
    records.write_record(good, tmp_path)
    path = tmp_path / "other.json"
    record = data.draw(changed_json(good))
    path.write_text(json.dumps(record), encoding="utf-8")
    with documented(ValueError, path=path):
        use(tmp_path)


@given(data=st.data())
def test_damaged_records(data, good, tmp_path):
    path = records.write_record(good, tmp_path)
    content = data.draw(damaged(path.read_bytes()))
    path.write_bytes(content)
    with documented(ValueError, path=path):
        use(tmp_path)
    assert path.read_bytes() == content


@pytest.mark.parametrize("name", ["images", "seed", "protocol", "backbone"])
def test_records_without_what_tables_need(name, good, tmp_path):
    record = {key: value for key, value in good.items() if key != name}
    (tmp_path / "a.json").write_text(json.dumps(record), encoding="utf-8")
    with pytest.raises(ValueError, match=f"a.json is not a record .*: {name} missing"):
        use(tmp_path)


@given(value=st.one_of(st.floats(), st.integers(), JUNK), data=st.data())
def test_scores_that_are_no_scores_are_left_out(value, data, good, tmp_path):
    record = copy.deepcopy(good)
    node, *rest = data.draw(st.sampled_from(records.PATHS[:3])).split(".")
    place = record[node][rest[0]] if rest else record[node]
    place[data.draw(st.sampled_from(["acc", "miou"]))] = value
    (tmp_path / "a.json").write_text(json.dumps(record), encoding="utf-8")
    use(tmp_path)


@given(data=st.data())
def test_a_study_takes_only_models_that_it_can_read(data, good, tmp_path):
    """The JSON beside a model is damaged: that model counts as absent."""
    cfg = methods.load("kmeans").Config.preset("smoke")
    model = grey_model([2, 0, 1], meta={"seed": 0, "overrides": {}})
    model.method, model.preset = "kmeans", cfg.name
    path = model.save(runs.model_path(tmp_path, "kmeans", 0)).with_suffix(".json")
    told = json.loads(path.read_text())
    if data.draw(st.booleans()):
        path.write_text(json.dumps(data.draw(changed_json(told))))
    else:
        path.write_bytes(data.draw(damaged(path.read_bytes())))
    study = Study(tmp_path, {"kmeans": methods.load("kmeans")}, "smoke", (0,))
    assert [gap.method for gap in study.missing()] == ["kmeans"]  # has no record yet
    assert study.records() == []


def test_published_results_are_whole():
    """The file that ships; every row shows in the table."""
    assert published.table().count("\n| ") >= len(published.published())


# -------------------------------------------------------------------- names of clusters


@pytest.fixture(scope="module")
def model():
    return grey_model([2, 0, 1])


@given(data=st.data())
def test_names_of_clusters(data, model, tmp_path):
    path = naming.write({0: "sky", 2: "road"}, tmp_path / "names.json", model)
    stored = json.loads(path.read_text())
    if data.draw(st.booleans()):
        changed = data.draw(changed_json(stored))
        if isinstance(changed, dict) and data.draw(st.booleans()):
            changed.pop("model", None)
        path.write_text(json.dumps(changed))
    else:
        path.write_bytes(data.draw(damaged(path.read_bytes())))
    before = path.read_bytes()
    with documented(ValueError):
        named = naming.read(path, model)
        assert all(0 <= k < 3 and name.strip() for k, name in named.items())
        if named:
            naming.apply(model, path)
    assert path.read_bytes() == before


@given(names=st.dictionaries(st.one_of(st.integers(), st.text(), st.none()), JUNK))
def test_names_given_as_a_mapping(names, model):
    with documented(ValueError):
        naming.apply(model, names)


# ----------------------------------------------------- caches, indices, half-made files


@pytest.fixture(scope="module")
def images():
    return Stripes(n=4, size=(8, 8), ignore=False), backbones.load("colour")


@pytest.fixture(scope="module")
def made(images, tmp_path_factory) -> Path:
    """A feature cache and a neighbour index."""
    folder = tmp_path_factory.mktemp("made")
    dataset, backbone = images
    FeatureCache.build(backbone, dataset, folder / "features")
    neighbour_index.neighbour_index(backbone, dataset, 2, folder / "neighbours")
    return folder


def put(made: Path, kind: str, folder: Path) -> Path:
    """A fresh copy of a cache, without its lock."""
    target = folder / kind
    target.mkdir(exist_ok=True)
    for path in target.iterdir():
        path.unlink()
    for path in (made / kind).iterdir():
        (target / path.name).write_bytes(path.read_bytes())
    return target


@pytest.mark.parametrize("kind", ["features", "neighbours"])
@given(data=st.data())
def test_caches_beside_a_damaged_record(kind, data, made, images, tmp_path):
    """The same content, or an error that names the folder; never other content."""
    dataset, backbone = images
    folder = put(made, kind, tmp_path)
    name = data.draw(st.sampled_from([f"{kind}.json", f"{kind}.npy"]))
    path = folder / name
    if name.endswith(".json") and data.draw(st.booleans()):
        changed = data.draw(changed_json(json.loads(path.read_text())))
        path.write_text(json.dumps(changed))
    else:
        path.write_bytes(data.draw(damaged(path.read_bytes())))
    with documented(ValueError, OSError, path=folder):
        if kind == "features":
            cache = FeatureCache.open(folder, backbone=backbone, dataset=dataset)
            good = FeatureCache.open(
                made / kind, backbone=backbone, dataset=dataset
            ).batch(range(4))
            assert torch.equal(cache.batch(range(4)), good)
        else:
            lists = neighbour_index.neighbour_index(backbone, dataset, 2, folder)
            assert lists.shape == (4, 2) and lists[:, 0].tolist() == [0, 1, 2, 3]


@given(data=st.data())
def test_half_made_files_with_any_journal(data, tmp_path):
    """A journal that cannot be right starts the file anew; the result is whole."""
    path = tmp_path / "a.npy"
    rows = np.arange(24, dtype="<f2").reshape(6, 4)
    first = ArrayWriter(path, rows.shape, {"of": "test"})
    first.done = 0
    first.append([rows[:2]])
    journal = json.loads(first.journal.read_text())
    if data.draw(st.booleans()):
        first.journal.write_text(json.dumps(data.draw(changed_json(journal))))
    else:
        first.journal.write_bytes(data.draw(damaged(first.journal.read_bytes())))
    again = ArrayWriter(path, rows.shape, {"of": "test"})
    assert type(again.done) is int and 0 <= again.done <= 6
    again.append([rows[again.done :]])
    again.finish()
    assert np.load(path, allow_pickle=False).shape == rows.shape
    for leftover in tmp_path.iterdir():
        leftover.unlink()


@given(data=st.data())
def test_folders_of_maps_with_any_options(data, tmp_path):
    options = {"format": 1, "images": 2, "dataset": "abc", "tau": 0.5}
    path = tmp_path / "maps" / "options.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(options))
    if data.draw(st.booleans()):
        path.write_text(json.dumps(data.draw(changed_json(options))))
    else:
        path.write_bytes(data.draw(damaged(path.read_bytes())))
    before = path.read_bytes()
    with documented(ValueError, path=path.parent):
        with to_be_made(path.parent, 2, options, "maps") as (files, missing):
            assert len(files) == 2 and missing == {0, 1}
        assert options.items() <= json.loads(before).items()
    assert path.read_bytes() == before


@given(data=st.data())
def test_hierarchies(data, tmp_path):
    fine = np.repeat(np.arange(4), 4).reshape(4, 4)
    folder = tmp_path / "tree"
    Hierarchy.of([fine, fine // 2]).save(folder)
    path = folder / "hierarchy.json"
    path = path if path.is_file() else next(folder.glob("*.json"))
    tree = json.loads(path.read_text())
    if data.draw(st.booleans()):
        path.write_text(json.dumps(data.draw(changed_json(tree))))
    else:
        path.write_bytes(data.draw(damaged(path.read_bytes())))
    with documented(ValueError, OSError):
        assert Hierarchy.load(folder).tree() == tree
