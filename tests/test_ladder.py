"""The ladder with the shipped weights: colour fails, features help, nothing is trivial.

Figures are mIoU in percent, mean over three seeds, on held-out scenes.
"""

import pytest

from uss_utils.methods import kmeans
from uss_utils.records import summarise

pytestmark = pytest.mark.slow
TOLERANCE = 0.5  # figures move a little between machines


def climb(preset: str) -> dict:
    records = kmeans.ladder(kmeans.Config.preset(preset))
    return {row["name"]: row for row in summarise(records)}


@pytest.fixture(scope="module")
def street():
    return climb("scenes")


@pytest.fixture(scope="module")
def aerial():
    return climb("scenes-aerial")


# Both ways of naming the clusters must show the same ladder.
MAPS = pytest.mark.parametrize("fitted_on", ["train", "eval"])


def cluster(rows: dict, name: str, fitted_on: str) -> float:
    return rows[name][f"cluster.{fitted_on}.miou"]


def linear(rows: dict, name: str) -> float:
    return rows[name]["linear.miou"]


@MAPS
def test_street_controls_fail(street, fitted_on):
    assert cluster(street, "row index", fitted_on) <= 20 + TOLERANCE
    assert cluster(street, "colour", fitted_on) <= 20 + TOLERANCE


@MAPS
def test_street_features_help(street, fitted_on):
    pretrained = cluster(street, "pretrained", fitted_on)
    assert pretrained >= 24 - TOLERANCE
    assert pretrained >= cluster(street, "row index", fitted_on) + 6 - TOLERANCE
    assert pretrained > cluster(street, "random init", fitted_on) + 6
    assert cluster(street, "pretrained, whitened", fitted_on) >= 28 - TOLERANCE


def test_street_linear_probe(street):
    pretrained = linear(street, "pretrained")
    assert pretrained >= 52 - TOLERANCE
    assert pretrained >= linear(street, "random init") + 20 - TOLERANCE
    assert linear(street, "random init") > linear(street, "colour")


@MAPS
def test_aerial_features_help(aerial, fitted_on):
    colour = cluster(aerial, "colour", fitted_on)
    row_index = cluster(aerial, "row index", fitted_on)
    for name in ("pretrained", "pretrained, whitened"):
        assert cluster(aerial, name, fitted_on) >= row_index + 6 - TOLERANCE
        assert cluster(aerial, name, fitted_on) >= colour + 3 - TOLERANCE


def test_aerial_linear_probe(aerial):
    assert linear(aerial, "pretrained") >= 34 - TOLERANCE
    assert linear(aerial, "pretrained") > linear(aerial, "random init")


@pytest.mark.parametrize("rows", ["street", "aerial"])
def test_nothing_is_trivial(rows, request):
    for row in request.getfixturevalue(rows).values():
        assert row["cluster.train.acc"] <= 80
        assert row["cluster.eval.acc"] <= 80
