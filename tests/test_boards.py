"""Tables of scores: what stands in a column, above the table and beneath it."""

import pytest

from uss_utils.boards import LETTERS, board, difference, markdown_table, title
from uss_utils.methods import METHODS

USUAL = "map fitted on train labels, flip average, no CRF"
SINGLE = "map fitted on train labels, single pass, no CRF"


def row(name="grey", seeds=(0, 1, 2), **changes):
    facts = {
        **{"method": "grey", "name": name, "preset": "scenes", "overrides": {}},
        **{"dataset": "scenes", "split": "val", "backbone": "vit"},
        **{"protocol": USUAL, "seeds": list(seeds)},
    }
    spread = 0.54 if len(seeds) > 1 else None
    scores = {"cluster.train.acc": 61.2, "cluster.train.miou": 41.3}
    for score in scores:
        facts |= {score: scores[score], f"{score}.sd": spread}
    return facts | changes


def linear(**changes):
    return row(**{"linear.miou": 55.64, "linear.miou.sd": None}, **changes)


def lines_of(table):
    return [line for line in table.splitlines() if line.startswith("|")]


def test_what_all_rows_share_stands_above():
    found = board([row(), row("grey, untrained")])
    first = found.splitlines()[0]
    assert first == ("**scenes** · split val · preset scenes · backbone vit · 3 seeds")
    assert lines_of(found) == [
        "| method | accuracy | mIoU |",
        "| --- | --- | --- |",
        "| grey | 61.2 ± 0.5 | 41.3 ± 0.5 |",
        "| grey, untrained | 61.2 ± 0.5 | 41.3 ± 0.5 |",
    ]
    assert f"Protocol: {USUAL}." in found


def test_what_tells_rows_apart_gets_a_column():
    found = lines_of(board([row(), row(seeds=[0], overrides={"steps": 3})]))
    assert found[0] == "| method | overrides | accuracy | mIoU | seeds |"
    assert found[2:] == [
        "| grey | – | 61.2 ± 0.5 | 41.3 ± 0.5 | 3 |",
        "| grey | steps=3 | 61.2 | 41.3 | 1 |",
    ]
    found = lines_of(board([row(), row(preset="camvid-tiny")]))
    assert found[0] == "| method | preset | accuracy | mIoU |"
    found = lines_of(board([row(), row(backbone="other")]))
    assert found[0] == "| method | backbone | accuracy | mIoU |"


def test_backbones_that_names_tell_apart_stand_beneath():
    rows = [row("a"), row("b"), row("c", backbone="pixels"), row("d", backbone="row")]
    found = board(rows)
    assert "- backbone: `vit`, but `pixels` of grey: c\n" in found
    assert lines_of(found)[0] == "| method | accuracy | mIoU |"
    assert "backbone" not in board([row(backbone="row"), row("b", backbone="colour")])
    found = board([row(), row("b", backbone="colour")])
    assert " · backbone vit · " in found and "- backbone" not in found


def test_every_data_set_and_split_has_a_table():
    rows = [row(), row(dataset="aerial"), row(split="test"), row("late")]
    found = board(rows)
    assert [line.split(" · ")[:2] for line in found.splitlines() if "**" in line] == [
        ["**scenes**", "split val"],
        ["**aerial**", "split val"],
        ["**scenes**", "split test"],
    ]
    assert found.index("grey: late") < found.index("**aerial**")
    assert found.count("Protocol:") == 1


def test_only_scores_that_exist_get_a_column():
    found = board([linear(), linear(name="other"), row("no probe")])
    assert lines_of(found)[0] == "| method | accuracy | mIoU | linear probe mIoU |"
    assert "| grey: no probe | 61.2 ± 0.5 | 41.3 ± 0.5 | – |" in found
    assert "The linear probe trains on labels" in found
    assert "linear probe" not in board([row()])


def test_a_score_that_few_rows_have_stands_beneath():
    found = board([linear(), row("b"), row("c"), row("d")])
    assert lines_of(found)[0] == "| method | accuracy | mIoU |"
    assert "- linear probe mIoU: grey 55.6\n" in found
    alone = board([linear()])
    assert "linear probe mIoU |" in alone, "one row, one table: it has its column"


def test_names_from_the_scored_images_are_explained():
    scores = {"cluster.eval.miou": 44.0, "cluster.eval.miou.sd": None}
    found = board([row(**scores)])
    assert "| mIoU, named on val |" in found and "the field's habit" in found
    assert "habit" not in board([row()])


def test_other_protocols_carry_a_letter_and_say_what_differs():
    found = board([row(), row("b", protocol=SINGLE), row("c", protocol="all new")])
    assert "| grey: b ᵃ |" in found and "| grey: c ᵇ |" in found
    assert "\nᵃ Single pass instead of flip average.\n" in found
    assert found.endswith("ᵇ Protocol: all new.")
    assert difference(USUAL, USUAL) == f"Protocol: {USUAL}"


def test_more_protocols_than_letters():
    rows = [row(str(n), protocol=f"p{n}") for n in range(len(LETTERS) + 3)]
    found = board(rows)
    for n in range(len(rows)):
        assert f"| grey: {n} " in found
    assert f"({len(rows) - 1}) " in found


def test_without_rows():
    assert board([]) == "no records yet"


def test_titles_for_newcomers():
    def named(method, name):
        return title({"method": method, "name": name})

    assert named("kmeans", "colour") == "k-means of colours"
    assert named("kmeans", "mine") == "k-means: mine"
    assert named("primaps", "primaps on stego") == "PriMaPs-EM on STEGO"
    assert named("hsg", "hsg, untrained") == "HSG, untrained"
    assert named("grey", "grey") == "grey", "a method of one's own keeps its name"


@pytest.mark.parametrize("method", METHODS)
def test_every_method_has_a_title(method):
    assert title({"method": method, "name": method}) != method


def test_markdown_table():
    assert markdown_table(["a", "b"], [["1", "2"]]) == [
        "| a | b |",
        "| --- | --- |",
        "| 1 | 2 |",
    ]


def test_crf_scores_of_some_images_are_told_beneath():
    score = {"crf.cluster.train.miou": 50.0, "crf.cluster.train.miou.sd": None}
    rows = [row("a", **score), row("b", **score)]
    assert lines_of(board(rows))[0] == "| method | accuracy | mIoU | mIoU + CRF |"
    found = board([each | {"crf_images": 24} for each in rows])
    assert lines_of(found)[0] == "| method | accuracy | mIoU |"
    assert "- mIoU + CRF (of 24 images alone): grey: a 50.0" in found
