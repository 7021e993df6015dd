"""Reported results: every number has a source, a protocol and a place in the table."""

import json

import pytest

from uss_utils import methods, published
from uss_utils.published import COLUMNS, FILE, SCORES


def test_every_result_says_where_it_was_read_and_how_it_was_scored():
    for row in published.published():
        assert row.source and row.protocol and row.scores, row
        assert row.method in methods.METHODS
        assert all(0 < value < 100 for value in row.scores.values()), row
        assert "http" not in row.source and "/work" not in row.source


def test_the_file_holds_nothing_that_is_not_read():
    content = json.loads(FILE.read_text(encoding="utf-8"))
    rest = {"method", "name", "benchmark", "backbone", "protocol", "source"}
    for row in content["results"]:
        assert set(row) <= rest | set(SCORES), row
    used = {row["protocol"] for row in content["results"]}
    assert used == set(content["protocols"])


def test_no_result_stands_there_twice():
    rows = [(r.name, r.benchmark, r.backbone, r.source) for r in published.published()]
    assert len(rows) == len(set(rows))


def test_results_come_in_the_order_of_the_chapters():
    order = [methods.METHODS.index(row.method) for row in published.published()]
    assert order == sorted(order)


def test_one_method_or_one_benchmark():
    assert {row.method for row in published.published("hp")} == {"hp"}
    potsdam = published.published(benchmark="Potsdam-3")
    assert {row.benchmark for row in potsdam} == {"Potsdam-3"}
    assert published.published("stego", "Cityscapes-27")[0].scores == {
        "cluster_acc": 73.2,
        "cluster_miou": 21.0,
    }


def test_a_method_without_a_number_has_none_and_says_why():
    assert published.published("ppap") == []
    assert "PPAP: " + published.not_found()["ppap"] in published.table()


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match="unknown method 'stegu'.*did you mean"):
        published.published("stegu")
    with pytest.raises(ValueError, match="unknown benchmark 'Potsdam'"):
        published.published(benchmark="Potsdam")


def test_the_table_shows_what_the_rows_have():
    rows = published.published("stego")
    text = published.table(rows)
    assert "| STEGO | COCO-Stuff-27 | DINO ViT-S/8 | – / 24.5 | – | R1 |" in text
    assert "nearest labelled segments" not in text and "PPAP" not in text
    assert rows[0].source in text
    assert rows[0].source not in published.table(rows, sources=False)
    assert published.table([]) == "no reported results"


def test_the_short_list_has_one_benchmark_per_method():
    rows = published.first()
    benchmarks = {(row.method, row.benchmark) for row in rows}
    assert len(benchmarks) == len({method for method, _ in benchmarks}) == 6
    assert len(rows) < len(published.published()) / 2
    keys = [(row.method, row.name, row.protocol) for row in rows]
    assert len(keys) == len(set(keys))


def test_a_protocol_bears_the_same_number_in_every_table():
    for row in published.published():
        alone = published.table([row]).splitlines()[-1]
        assert alone in published.table().splitlines()


def test_every_line_of_the_table_has_every_column():
    lines = [x for x in published.table().splitlines() if x.startswith("|")]
    assert len({line.count("|") for line in lines}) == 1
    assert all(column in lines[0] for column in COLUMNS)
