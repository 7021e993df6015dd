"""MaskContrast and HSG trained by two processes, against one with the same batches."""

import pytest
import torch

from tests.processes import run_together
from tests.shared_training import CASES, STEPS, train, uneven
from uss_utils.checkpoints import load_tensors
from uss_utils.history import History

RESUMED = ("maskcontrast", "hsg")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Checkpoints of one process, of two, and of runs that changed their number."""
    root = tmp_path_factory.mktemp("shared")
    made = {name: root / name for name in ("one", "two", "one-two", "two-one")}
    for folder in made.values():
        folder.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("USS_DATA", str(root / "data"))  # masks and regions, made once
        for name in CASES:
            train(name, made["one"])
        for name in RESUMED:
            train(name, made["one-two"], 1)
        jobs = [f"{name},{made['two']},{STEPS}" for name in CASES]
        jobs += [f"{name},{made['one-two']},{STEPS}" for name in RESUMED]
        jobs += [f"{name},{made['two-one']},1" for name in RESUMED]
        run_together(2, "-m", "tests.shared_training", str(root / "uneven"), *jobs)
        for name in RESUMED:
            train(name, made["two-one"])
    return made | {"uneven": root / "uneven"}


def assert_same(one, other):
    """Same draws; weights, optimisers, queue, statistics, losses but for rounding."""
    expected, meta = load_tensors(one)
    found, other_meta = load_tensors(other)
    assert meta["step"] == other_meta["step"] == STEPS
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        if name.startswith("draws/"):
            assert torch.equal(found[name], tensor), name
        else:
            torch.testing.assert_close(
                found[name], tensor, rtol=1e-6, atol=1e-6, msg=name
            )
    rows, other_rows = (
        History.from_json(m["history"]).rows for m in (meta, other_meta)
    )
    assert len(rows) == len(other_rows) == STEPS
    for row, other_row in zip(rows, other_rows, strict=True):
        assert other_row == pytest.approx(row, rel=1e-6, abs=1e-6)


@pytest.mark.parametrize("name", CASES)
def test_two_processes_are_one_with_the_same_batches(folders, name):
    paths = [folders[each] / f"{name}.safetensors" for each in ("one", "two")]
    assert_same(*paths)


@pytest.mark.parametrize("name", RESUMED)
@pytest.mark.parametrize("order", ["one-two", "two-one"])
def test_another_number_of_processes_goes_on(folders, name, order):
    paths = [folders[each] / f"{name}.safetensors" for each in ("one", order)]
    assert_same(*paths)


def test_no_share_is_too_uneven(folders):
    """Objects, pixels or nodes that only some processes have, or none."""
    expected = uneven()
    for rank in range(2):
        found = torch.load(f"{folders['uneven']}{rank}", weights_only=True)
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            torch.testing.assert_close(
                found[name], value, rtol=1e-6, atol=1e-9, msg=name
            )
    assert expected["maskcontrast, one share empty, contrastive"] > 0
    assert not expected["maskcontrast, all empty, contrastive"]
    assert expected["hsg, one share empty, fine"] > 0
    assert not expected["hsg, all empty, total"]
