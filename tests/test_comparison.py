"""One table of all methods, and what its numbers mean."""

import math

import numpy as np
import pytest

from uss_utils import comparison, comparison_classes

LINE = "map fitted on train labels by hungarian, single pass"


def record(name, miou, seed=0, **more):
    """A record of three clusters and two classes; ``miou`` counts for all scores."""
    part = {"acc": miou + 10, "miou": miou, "iou": [miou, None], "map": [1, 0, -1]}
    found = {
        "method": name.partition(",")[0],
        "name": name,
        "preset": "scenes",
        "overrides": {},
        "seed": seed,
        "dataset": "scenes",
        "split": "val",
        "images": 5,
        "fit_images": 7,
        "backbone": "vit_tiny_scenes",
        "classes": ["sky", "road"],
        "protocol": {"line": LINE, "short": ""},
        "cluster": {"train": part, "eval": part | {"miou": miou + 1}},
        "linear": part | {"miou": miou + 20},
        "confusion": {"cluster": [[1, 8], [5, 0], [4, 1]]},
        "run": {},
    }
    return found | more


def sharp(before, after):
    def part(value):
        scores = {"acc": value, "miou": value, "iou": [value, value]}
        return {"cluster": {"train": scores, "eval": scores}, "linear": scores}

    return {"crf": {"images": 3, **part(after), "without": part(before)}}


SIZES = {"backbone": 100, "head": 1000, "cluster_probe": 234, "linear_probe": 9}
FULL = [
    record("kmeans", 30.0, 0, parameters=SIZES, **sharp(30, 31)),
    record("kmeans", 32.0, 1, parameters=SIZES, **sharp(30, 33)),
    record("hsg", 20.0, 0, backbone="pixels", run={"training_seconds": 2.0}),
    record("hsg", 20.0, 1, backbone="pixels", run={"training_seconds": 4.0}),
]


def test_a_row_holds_means_costs_and_gains():
    kmeans, hsg = comparison.rows(FULL)
    assert (kmeans["title"], hsg["title"]) == ("k-means", "HSG †")
    assert kmeans["cluster.train.miou"] == 31
    assert kmeans["cluster.train.miou.sd"] == pytest.approx(math.sqrt(2))
    assert (kmeans["parameters"], kmeans["seconds"]) == (1234, None)
    assert (hsg["parameters"], hsg["seconds"]) == (None, 3.0)
    assert (kmeans["own_network"], hsg["own_network"]) == (False, True)
    assert kmeans["crf.gain.cluster.train.miou"] == 2
    assert kmeans["crf.gain.linear.miou.sd"] == pytest.approx(math.sqrt(2))
    assert "crf.gain.linear.miou" not in hsg


def test_the_table_shows_every_score_and_says_whose_labels_were_used():
    text = comparison.table(comparison.rows(FULL))
    kmeans = "| k-means | 1,234 | – | 41.0 ± 1.4 | 31.0 ± 1.4 | 32.0 ± 1.4 | 51.0 ± 1.4"
    assert kmeans + " | +2.0 ± 1.4 | +2.0 ± 1.4 |" in text
    assert "| HSG † | – | 3.0 | 30.0 ± 0.0 |" in text
    assert "7 labelled training images" in text and "mean ± sd over 2 seeds" in text
    assert "† trains a whole network" in text and "`vit_tiny_scenes`" in text
    assert "the same 3 images" in text and LINE in text
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert len({line.count("|") for line in lines}) == 1


def test_one_seed_has_no_spread():
    text = comparison.table(comparison.rows(FULL[:1]))
    assert "± " not in text.partition("percent")[0]
    assert "percent, 1 seed" in text and "†" not in text


def test_no_records_no_table():
    assert comparison.rows([]) == []
    assert comparison.table([]) == "no records yet"


def test_wins_count_pairs_of_seeds():
    names, share = comparison.wins(
        [record("kmeans", v, s) for s, v in enumerate((1, 4))]
        + [record("stego", v, s) for s, v in enumerate((2, 3, 4))]
    )
    assert names == ["k-means", "STEGO"]
    assert share[0, 1] == pytest.approx((2 + 0.5) / 6)
    assert share[0, 1] + share[1, 0] == 1
    assert np.isnan(np.diag(share)).all()


def test_gains_are_paired_by_seed_and_protocol():
    start = [record("hsg, untrained", v, s) for s, v in enumerate((10, 11))]
    other = {"line": "another", "short": "x"}
    end = [record("hsg", 15, 0), record("hsg", 20, 2), record("hsg", 30, 1)]
    end.append(record("hsg", 90, 0, protocol=other))
    score = "cluster.train.miou"
    found = comparison.paired(start + end, "hsg, untrained", "hsg", score)
    assert found == {0: (10, 15), 1: (11, 30)}
    assert comparison.paired(end, "hsg, untrained", "hsg", score) == {}


def test_pairs_as_a_table():
    start = [record("hsg, untrained", v, s) for s, v in enumerate((10, 12))]
    end = [record("hsg", 15, 0), record("hsg", 20, 1), record("hsg", 90, 2)]
    pairs = {"hsg, untrained": "hsg", "stego": "primaps on stego"}
    found = comparison.gains(start + end, pairs, [0, 1, 2])
    assert found == {
        "HSG, untrained → HSG": {
            "before": "11.0 ± 1.4",
            "after": "17.5 ± 3.5",
            "gain": "+6.5 ± 2.1",
            "seeds": 2,
            "gains above 0": 2,
        }
    }
    one = comparison.gains(start + end, pairs, [0])["HSG, untrained → HSG"]
    assert one["gain"] == "+5.0"


def test_kinds_are_not_compared():
    names, share = comparison.wins(FULL)
    assert names == ["k-means", "HSG †"] and np.isnan(share).all()
    titled = {"k-means": 1, "STEGO": 2, "HSG †": 3}
    assert comparison.same_kind(titled, "STEGO") == {"k-means": 1, "STEGO": 2}
    assert comparison.same_kind(titled, "HSG †") == {"HSG †": 3}
    share = np.array([[np.nan, 0, 0.5], [1, np.nan, np.nan], [0.5, np.nan, np.nan]])
    assert comparison.clear_wins(share) == (1, 2)


def test_names_that_differ_and_the_split_of_the_largest_class():
    part = FULL[0]["cluster"]["train"]
    other = {"train": part, "eval": part | {"map": [1, -1, 0]}}
    found = comparison_classes.renamed([FULL[0], FULL[1] | {"cluster": other}])
    assert found == {
        "k-means": {
            "renamed in": "1 of 2 seeds",
            "classes": "sky",
            "sky in its two largest clusters": "50 + 40",
        }
    }
    assert comparison_classes.renamed(FULL[2:])["HSG †"]["classes"] == "–"


def test_classes_bear_their_size():
    assert comparison_classes.sized_classes(FULL) == ["sky 53%", "road 47%"]
    with pytest.raises(ValueError, match="no record holds a confusion"):
        comparison_classes.sized_classes([])


def test_class_scores_are_means_over_the_seeds():
    found = comparison_classes.class_scores(FULL)
    assert list(found) == ["k-means", "HSG †"]
    assert found["k-means"][0] == 31 and np.isnan(found["k-means"][1])
    assert comparison_classes.class_scores(FULL, "linear")["HSG †"][0] == 20
    assert comparison_classes.class_scores(FULL, "segments.kmeans") == {}


def test_failures_name_the_worst_class_and_what_it_is_taken_for():
    (found,) = comparison_classes.failures(FULL[:2]).values()
    # Cluster 0 is called road, cluster 1 sky, cluster 2 nothing.
    assert found == {
        "worst class": "sky",
        "IoU": 31,
        "taken for": "nothing",
        "share": 40,
    }
    assert comparison_classes.failures([]) == {}
