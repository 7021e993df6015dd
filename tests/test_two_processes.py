"""Two processes train as one does, for every method, and continue each other's runs.

Everything the smoke settings train is compared: the loss of every step, the weights,
the scores. Features are recomputed from images, batches shared unevenly.
"""

import pytest
import torch

from tests.processes import run_together
from tests.together import config
from uss_utils.checkpoints import load_tensors
from uss_utils.history import History
from uss_utils.methods import METHODS
from uss_utils.records import read_records

LEARNED = [name for name in METHODS if name != "kmeans"]
RELATIVE = 2e-5  # of what is largest
CASES = {"two": "by two", "12": "begun by one, ended by two", "21": "the reverse"}

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Every method trained by one, by two, and by one after the other."""
    root = tmp_path_factory.mktemp("together")
    place = {"USS_DATA": str(root / "data"), "USS_RUNS": str(root / "runs")}

    def launch(n, *jobs):
        jobs = [f"{root / name}={case}" for name, case in jobs]
        options = ("-m", "tests.together", ",".join(LEARNED), *jobs)
        run_together(n, *options, timeout=500, **place)

    launch(1, ("one", "whole"), ("12", "first"))
    launch(2, ("two", "whole"), ("12", "rest"), ("21", "first"))
    launch(1, ("21", "rest"))
    return root


def test_all_methods_are_compared():
    assert len(LEARNED) == 6
    assert config("stego").batch_size % 2 == 1


@pytest.mark.parametrize("case", CASES, ids=CASES.values())
@pytest.mark.parametrize("method", LEARNED)
def test_same_losses_weights_and_scores(folder, method, case):
    files = sorted((folder / "one" / method).glob("*.safetensors"))
    assert len(files) == (2 if method == "primaps" else 1)
    for path in files:
        weights, meta = load_tensors(path)
        others, other = load_tensors(folder / case / method / path.name)
        history, found = (History.from_json(each["h"]) for each in (meta, other))
        assert len(history) == config(method).steps
        for name in history.names():
            torch.testing.assert_close(
                *(torch.tensor(each.series(name)) for each in (found, history)),
                rtol=RELATIVE,
                atol=1e-6,
                msg=lambda text, name=name: f"{name}: {text}",
            )
        assert weights.keys() == others.keys()
        for name, weight in weights.items():
            torch.testing.assert_close(
                *(others[name], weight),
                rtol=RELATIVE,
                atol=RELATIVE * float(weight.abs().max()) + 1e-7,
                msg=lambda text, name=name: f"{name}: {text}",
            )


@pytest.mark.parametrize("case", CASES, ids=CASES.values())
@pytest.mark.parametrize("method", LEARNED)
def test_same_scores(folder, method, case):
    before, after = (
        read_records(folder / each / method / "records") for each in ("one", case)
    )
    assert len(before) == len(after) >= 1
    for one, other in zip(before, after, strict=True):
        for name, value in one["headline"].items():
            assert other["headline"][name] == pytest.approx(value, abs=0.05), name
        pixels = [sum(map(sum, each["confusion"]["cluster"])) for each in (one, other)]
        assert pixels[0] == pixels[1]
