"""The harness of the benchmarks: rows, table, comparison, failures."""

import json
import tempfile
from pathlib import Path

import pytest

from tests import fake_benchmarks
from tests.benchmarks import __main__, running, tables
from tests.benchmarks.cases import Case, Released, measure, row

FAKE = {"fake": fake_benchmarks.__name__}


def measured(figure=0.5, peak=0.1, error=None, unit="s", **options):
    case = Case("step", "B 2", lambda: None, unit=unit, **options)
    return row("toy", case) | {"figure": figure, "memory": peak, "error": error}


def columns(line):
    return [part.strip() for part in line.split("  ") if part.strip()]


@pytest.mark.parametrize("group", running.groups())
def test_every_module_names_its_cases(group):
    cases = running.cases_of(running.module_of(group))
    assert cases
    for case in cases:
        assert case.name and case.size and case.repeats >= 1
        assert case.memory in ("added", "in all")
        if case.released:
            assert ", section " in case.released.source
            assert case.released.figure or case.released.memory


def test_a_case_is_timed_and_its_memory_watched():
    calls = []
    case = Case("calls", "one", lambda n: lambda: calls.append(n), (3,), repeats=4)
    found = measure(case)
    assert calls == [3] * 6
    assert 0 <= found["figure"] < 1 and 0 <= found["memory"] < 1


def test_one_repeat_is_one_call():
    calls = []
    measure(Case("calls", "one", lambda: lambda: calls.append(1), repeats=1))
    assert calls == [1]


def test_a_rate_is_in_pieces_per_second():
    def spin():
        return lambda: sum(range(20_000))

    slow = measure(Case("spin", "one", spin, unit="s", items=10))
    fast = measure(Case("spin", "one", spin, unit="pieces/s", items=10))
    assert slow["figure"] * fast["figure"] == pytest.approx(1, rel=0.9)


def test_memory_in_all_counts_what_was_there():
    found = measure(Case("nothing", "one", lambda: lambda: None, memory="in all"))
    assert found["memory"] > 0.02


def test_a_case_may_measure_by_itself():
    assert measure(Case("own", "one", lambda: 7)) == {"figure": 7.0, "memory": None}


def test_gain_and_targets_follow_the_unit():
    seconds = measured(0.5, target=1.0, released=Released("toy, section 1", 2.0))
    rate = measured(50.0, unit="images/s", target=80, released=Released("toy", 10.0))
    assert tables.gain(seconds) == 4 and tables.met(seconds) is True
    assert tables.gain(rate) == 5 and tables.met(rate) is False
    assert tables.gain(measured()) is None and tables.met(measured()) is None


def test_memory_has_a_target_of_its_own():
    assert tables.met(measured(0.5, 0.2, memory_target=0.3)) is True
    assert tables.met(measured(0.5, 0.4, memory_target=0.3, target=1)) is False


def test_what_failed_misses_its_target():
    failed = measured(None, None, "gone", target=1)
    assert tables.met(failed) is False and tables.gain(failed) is None
    assert "failed: gone" in tables.table([failed])
    assert tables.met(measured(None, None, "gone")) is None


def test_the_table_shows_dashes_where_nothing_is_known():
    bare = columns(tables.table([measured()]).splitlines()[-1])
    assert bare == ["step", "B 2", "0.5 s", "+0.10 GB", *"------"]
    full = measured(
        0.05,
        1.5,
        memory="in all",
        target=0.04,
        memory_target=2,
        released=Released("toy, section 1", 6, 3),
    )
    assert columns(tables.table([full]).splitlines()[-1]) == [
        *("step", "B 2", "50 ms", "1.50 GB", "6 s", "3.00 GB", "toy, section 1"),
        *("120 x", "<= 40 ms, <= 2 GB", "NO"),
    ]


def test_columns_stand_below_each_other_and_groups_apart():
    rows = [measured(), measured() | {"group": "other", "name": "a longer step"}]
    lines = tables.table(rows).splitlines()
    assert lines[1:3] == ["", "toy"] and lines[4:6] == ["", "other"]
    assert lines[0].index("size") == lines[3].index("B 2") == lines[6].index("B 2")


@pytest.mark.parametrize(
    ("unit", "now", "before", "text"),
    [
        ("s", 1.1, 1.0, "+10 %"),
        ("s", 0.5, 1.0, "-50 %"),
        ("images/s", 50.0, 100.0, "+100 %"),  # twice the time
    ],
)
def test_the_change_is_that_of_time(unit, now, before, text):
    new, old = measured(now, unit=unit), measured(before, unit=unit)
    assert tables.change(new, old) == text


def test_the_change_names_memory_only_where_it_matters():
    assert tables.change(measured(1, 0.52), measured(1, 0.5)) == "+0 %"
    assert tables.change(measured(1, 0.3), measured(1, 0.5)) == "+0 %, -0.20 GB"


def test_rows_without_a_kept_one_are_new():
    kept = {"rows": [measured() | {"size": "B 4"}]}
    assert tables.table([measured()], kept).splitlines()[-1].endswith("new")
    failed = measured(None, None, "gone")
    assert tables.change(measured(), failed) == "new"
    assert tables.change(failed, measured()) == "-"


def test_a_kept_table_comes_back(tmp_path):
    rows = [measured(float("nan")), measured(0.25) | {"name": "other"}]
    facts = tables.about()
    tables.write(rows, facts, tmp_path / "kept.json")
    kept = tables.read(tmp_path / "kept.json")
    assert kept["about"] == facts and kept["rows"][1] == rows[1]
    assert kept["rows"][0]["figure"] is None
    assert "+0 %" in tables.table(rows[1:], kept)


def test_about_names_neither_host_nor_folder():
    facts = tables.about()
    assert facts["cores"] >= 1 and facts["versions"]["torch"]
    text = json.dumps(facts)
    assert str(Path.home()) not in text and "/tmp" not in text
    assert tables.described(facts).startswith(facts["date"])


@pytest.mark.parametrize("text", ["", "{}", "[1]", '{"format": 9, "rows": []}'])
def test_a_foreign_file_is_refused(tmp_path, text):
    path = tmp_path / "kept.json"
    path.write_text(text)
    with pytest.raises(ValueError, match="is no kept table of benchmarks"):
        tables.read(path)


def test_an_absent_file_is_named(tmp_path, capsys):
    arguments = ["--compare", str(tmp_path / "none.json")]
    assert __main__.main(arguments, FAKE) == 2
    assert "no kept table at" in capsys.readouterr().err


def test_unknown_names_list_the_known(capsys):
    assert __main__.main(["--only", "fakes"], FAKE) == 2
    assert "no benchmark is called 'fakes'; groups: fake" in capsys.readouterr().err


def test_a_part_is_not_kept_for_the_whole(capsys):
    assert __main__.main(["--only", "fake", "--save"], FAKE) == 2
    assert "--save keeps a whole table" in capsys.readouterr().err


def test_listing_measures_nothing(capsys):
    assert __main__.main(["--list"], FAKE) == 0
    listed = capsys.readouterr().out.splitlines()
    assert "fake: fast, 10 numbers" in listed
    assert not any("endless" in line for line in listed)


def test_what_takes_minutes_is_left_out_unless_it_is_named():
    def names(*arguments):
        return [case.name for _, _, _, case in running.selected(FAKE, *arguments)]

    assert "endless" not in names() and "endless" not in names(["fake"])
    assert "endless" in names([], True) and "endless" in names(["fake"], True)
    assert names(["fake: endless", "fake: fast"]) == ["fast", "endless"]


def test_two_cases_of_one_name_are_refused(monkeypatch):
    monkeypatch.setattr(fake_benchmarks, "CASES", fake_benchmarks.CASES[:1] * 2)
    with pytest.raises(ValueError, match="has two cases"):
        running.selected(FAKE)


def test_a_run_survives_what_fails_and_keeps_its_table(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    path = tmp_path / "kept.json"
    arguments = ["--compare", str(path)]
    assert __main__.main([*arguments, "--save"], FAKE) == 1
    printed = capsys.readouterr().out
    assert "chatter" not in printed
    assert "failed: ValueError: no such thing\n" in printed
    assert "failed: its process ended with exit code -9" in printed
    assert "1 of 3 targets met; not met: fake: fast; fake: killed" in printed
    assert "2 of 5 rows failed" in printed
    assert not list(tmp_path.rglob(fake_benchmarks.MARK))
    kept = tables.read(path)
    assert [r["error"] is None for r in kept["rows"]] == [True] * 3 + [False] * 2
    # The next run shows the change.
    assert __main__.main([*arguments, "--only", "fake: by itself"], FAKE) == 0
    printed = capsys.readouterr().out
    assert "change: against" in printed
    assert columns(printed.splitlines()[-3])[-1] == "+0 %"


def test_what_takes_too_long_is_stopped():
    chosen = running.selected(FAKE, ["fake: endless"])
    (found,) = running.run(chosen, limit=0.5)
    assert found["error"] == "stopped after 0.5 s"
