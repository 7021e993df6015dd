"""Records on disk and the tables made from them."""

import copy
import json
import math

import numpy as np
import pytest
import torch

from tests.folders import read_only_folder
from tests.models import Stripes, grey_model
from uss_utils.boards import board
from uss_utils.evaluation import EvalProtocol, evaluate
from uss_utils.records import (
    file_name,
    jsonable,
    leaderboard,
    per_seed,
    read_records,
    scores,
    summarise,
    versus,
    write_record,
)


@pytest.fixture(scope="module")
def base():
    return evaluate(grey_model(), Stripes(split="val"), Stripes(), seed=0, steps=5)


def changed(record, seed=0, miou=None, **changes):
    record = copy.deepcopy(record) | {"seed": seed} | changes
    if miou is not None:
        record["cluster"]["train"]["miou"] = miou
    return record


def test_round_trip(tmp_path, base):
    path = write_record(base, tmp_path / "records")
    assert read_records(tmp_path / "records") == [jsonable(base)]
    assert path.name == "grey_test_stripes_val_colour_seed0.json"
    (row,) = [line for line in path.read_text().splitlines() if '"map"' in line][:1]
    assert row.strip() == '"map": [ 2, 0, 1 ]'


def test_many_changed_settings_make_no_endless_name(tmp_path, base):
    many = {f"setting_{i}": "value" * 3 for i in range(40)}
    paths = {
        write_record(changed(base, overrides=many | {"last": i}), tmp_path)
        for i in (0, 1, 1)
    }
    assert len(paths) == 2
    assert all("_41-changes-" in p.name and len(p.name) < 200 for p in paths)


def test_writing_again_replaces_and_other_runs_do_not(tmp_path, base):
    write_record(base, tmp_path)
    write_record(changed(base, steps=6), tmp_path)
    assert [record["steps"] for record in read_records(tmp_path)] == [6]
    write_record(changed(base, seed=1), tmp_path)
    write_record(changed(base, name="other one"), tmp_path)
    write_record(changed(base, overrides={"steps": 3}), tmp_path)
    habit = base["protocol"] | {"short": EvalProtocol("eval").short()}
    write_record(changed(base, protocol=habit), tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "grey_test_steps=3_stripes_val_colour_seed0.json",
        "grey_test_stripes_val_colour_eval-map_seed0.json",
        "grey_test_stripes_val_colour_other-one_seed0.json",
        "grey_test_stripes_val_colour_seed0.json",
        "grey_test_stripes_val_colour_seed1.json",
    ]


def test_file_names_hold_no_odd_characters(base):
    odd = changed(base, name="a/b: ç, (d)", overrides={"size": [24, 32]})
    name = file_name(odd)
    assert name == "grey_test_size=-24-32_stripes_val_colour_a-b-d_seed0.json"


def test_nan_becomes_null():
    given = {
        "a": float("nan"),
        "b": [np.float32(1.5), math.inf],
        "c": torch.tensor([1.0, float("nan")]),
        3: (np.int64(2), "text", None, True),
    }
    found = jsonable(given)
    assert found == {
        "a": None,
        "b": [1.5, None],
        "c": [1.0, None],
        "3": [2, "text", None, True],
    }
    json.dumps(found, allow_nan=False)


def test_a_failed_write_leaves_nothing(tmp_path, base, monkeypatch):
    def full(*args, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.write_text", full)
    message = "could not write .*grey_test.*json .No space left.*USS_RUNS"
    with pytest.raises(OSError, match=message):
        write_record(base, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_read_only_folder(base):
    with read_only_folder() as folder:
        for place in (folder, folder / "records"):
            with pytest.raises(OSError, match="could not write .*Permission denied"):
                write_record(base, place)
        assert not list(folder.iterdir())


def test_records_are_read_in_the_order_of_tables(tmp_path, base):
    """From the first rung to the last chapter, whatever the files are called."""
    chapters = {
        "whitened": [3, 4],
        "row index": [3, 0],
        "latest": [11],
        "colour": [3, 1],
        "alone": [3],
        "imported": None,
        "a learned one": [4],
    }
    for name, order in chapters.items():
        for dataset in ("stripes", "later stripes"):
            write_record(
                changed(base, name=name, order=order, dataset=dataset), tmp_path
            )
    expected = ["alone", "row index", "colour", "whitened", "a learned one", "latest"]
    expected = [*expected, "imported"]
    found = [(record["dataset"], record["name"]) for record in read_records(tmp_path)]
    assert found == [
        (dataset, name) for dataset in ("later stripes", "stripes") for name in expected
    ]


def test_unreadable_records_are_named(tmp_path, base):
    with pytest.raises(FileNotFoundError, match="no folder of records at .*absent"):
        read_records(tmp_path / "absent")
    assert read_records(tmp_path) == []
    path = write_record(base, tmp_path)
    path.write_text(path.read_text()[:50])
    with pytest.raises(ValueError, match=f"{path.name} is not readable JSON"):
        read_records(tmp_path)
    path.write_text('{"method": "grey"}')
    with pytest.raises(ValueError, match="not a record of an evaluation: backbone, da"):
        read_records(tmp_path)
    path.write_text("[1, 2]")
    with pytest.raises(ValueError, match="holds a list instead of a JSON object"):
        read_records(tmp_path)


def test_scores_have_dotted_names(base):
    found = scores(base)
    assert found["cluster.train.miou"] == 100
    assert found["linear.acc"] == 100
    assert len(found) == 6
    assert scores(evaluate(grey_model(), Stripes(labels=False))) == {}


def test_one_score_per_seed_by_name(base):
    runs = [changed(base, 0, 10.0), changed(base, 1, 12.0)]
    runs.append(changed(base, 0, 7.0, name="other"))
    assert per_seed(runs, "cluster.train.miou") == {
        base["name"]: [10.0, 12.0],
        "other": [7.0],
    }
    del runs[0]["linear"]
    assert per_seed(runs[:2], "linear.miou") == {base["name"]: [100.0]}
    assert per_seed(runs, "crf.linear.miou") == {}


def test_a_model_against_the_best_other(base):
    mious = {"old": (20, 22), "better": (30, 31), "new": (34, 37)}
    records = [
        changed(base, seed=seed, miou=miou, name=name)
        for name, each in mious.items()
        for seed, miou in enumerate(each)
    ]
    assert versus(records, "new") == (
        "new against better: +5.0 points of cluster.train.miou; seeds alone move them "
        "by 3.0 and 1.0"
    )
    assert versus(records, "new", paired=True).endswith("seed by seed +4.0 to +6.0")
    assert "seed by seed" not in versus(records[::2], "new", paired=True)
    assert versus(records[::2], "old").startswith("old against new: -14.0 points")
    assert "seeds" not in versus(records[::2], "old")
    with pytest.raises(ValueError, match="comparing 'newest'.*there are: old, better"):
        versus(records, "newest")
    with pytest.raises(ValueError, match="there are: new"):
        versus(records[-1:], "new")


def test_mean_and_sample_deviation_over_seeds(base):
    records = [changed(base, seed, miou) for seed, miou in enumerate((20, 30, 40))]
    (row,) = summarise(records)
    assert row["seeds"] == [0, 1, 2]
    assert row["cluster.train.miou"] == 30
    assert row["cluster.train.miou.sd"] == 10
    assert row["cluster.eval.miou"] == 100
    (single,) = summarise(records[:1])
    assert single["cluster.train.miou.sd"] is None


def test_the_same_seed_twice_is_one_sample(base):
    records = [changed(base, 0, 20), changed(base, 1, 30), changed(base, 0, 40)]
    (row,) = summarise(records)
    assert row["seeds"] == [0, 1]
    assert row["cluster.train.miou"] == 35


def test_different_runs_are_different_rows(base):
    habit = base["protocol"] | {"line": "another protocol"}
    others = [
        changed(base, **{key: "other"})
        for key in ("method", "name", "preset", "dataset", "split", "backbone")
    ]
    others += [changed(base, overrides={"a": 1}), changed(base, protocol=habit)]
    assert len(summarise([base, *others])) == 9


def test_leaderboard_is_the_board_of_the_rows(base):
    records = [changed(base, seed, miou) for seed, miou in enumerate((20, 30, 40))]
    found = leaderboard(records)
    assert found == board(summarise(records))
    assert "| grey | 100.0 ± 0.0 | 30.0 ± 10.0 |" in found
    assert leaderboard([]) == "no records yet"
