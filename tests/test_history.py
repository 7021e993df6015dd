import json
import math

import numpy as np
import pytest

from uss_utils.history import History, figure

ROWS = [
    {"step": 0, "loss": 2.0, "lr": 0.1},
    {"step": 1, "loss": None, "lr": 0.1, "val": 7},
]


def test_series_of_each_figure():
    history = History(ROWS)
    assert history.names() == ["step", "loss", "lr", "val"]
    assert len(history) == 2
    np.testing.assert_array_equal(history.series("loss"), [2.0, np.nan])
    np.testing.assert_array_equal(history.series("val"), [7])


def test_unknown_figure_names_the_known():
    with pytest.raises(ValueError, match=r"no figure 'miou'.*\['step', 'loss'"):
        History(ROWS).series("miou")


def test_json_round_trip_and_time_is_not_compared():
    history = History(ROWS, seconds=1.5)
    back = History.from_json(json.loads(json.dumps(history.to_json())))
    assert back == history
    assert back.seconds == 1.5
    assert History(ROWS, seconds=9.0) == history
    assert History(ROWS[:1]) != history


def test_figures_are_json_numbers():
    assert figure(3) == 3 and isinstance(figure(3), int)
    assert figure(np.float32(0.5)) == 0.5 and type(figure(np.float32(0.5))) is float
    assert figure(math.nan) is None
    assert figure(-math.inf) is None
