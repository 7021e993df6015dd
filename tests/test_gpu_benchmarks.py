"""The table of a GPU, tried on the CPU: all but the GPU's own clocks."""

import time

import pytest
import torch
from torch import nn

from tests.benchmarks import gpu, running, steps, tables, trainings
from uss_utils import methods

LIMITS = {"fp32": 1e12, "bf16": 1e12, "copy": 1e11}
TRIAL = ["--device", "cpu", "--tiny", "--no-search", "--precision", "fp32"]


def toy(**options) -> trainings.Training:
    """A linear layer that is trained on rows."""

    class Rows:
        def __len__(self):
            return 6

        def batch(self, indices):
            return {"x": torch.ones(len(indices), 5), "y": indices.float()}

    model = nn.Linear(5, 3)
    fixed = {
        "batch_size": 4,
        "optimisers": torch.optim.SGD(model.parameters(), lr=1e-3),
        "device": "cpu",
    }
    return trainings.Training(
        model,
        lambda model, batch, step: {"loss": model(batch["x"]).square().mean()},
        trainings.Repeated(Rows(), 8),
        fixed | options,
        torch.device("cpu"),
        nn.Identity(),
    )


@pytest.mark.parametrize("method", gpu.PAPERS)
def test_the_papers_presets_exist(method):
    assert method in gpu.TINY
    for preset in gpu.PAPERS[method]:
        cfg = methods.load(method).Config.preset(preset)
        assert cfg.batch_size >= 16


def test_all_but_the_zeroth_method_are_measured():
    assert {"kmeans", *gpu.PAPERS} == set(methods.METHODS)


# A method's step from images or from a cache: its own training, one precision.
@pytest.mark.parametrize(
    ("method", "place"),
    [
        ("stego", "disk"),
        ("hp", "images"),
        ("ppap", "disk"),
        ("primaps", "images"),
        ("maskcontrast", "images"),
        ("hsg", "images"),
    ],
)
def test_a_step_of_every_method_is_measured(method, place):
    (row,) = gpu.measure(
        *(method, "smoke", place, "cpu", True, ["fp32"], LIMITS), search=False
    )
    word = {"disk": "cache"}.get(place, place)
    assert row["name"] == f"smoke, {word}, fp32" and row["size"] == "B 4"
    assert row["images_per_second"] == pytest.approx(4 / row["figure"])
    assert row["flops"] > 0 and row["bytes"] > 0 and row["memory"] > 0
    assert 0 < row["of_matmul"] < 1 and 0 < row["of_copy"] < 1
    assert 0 < row["busy"] <= 1 and len(row["kernels"]) == steps.TOP
    shares = row["parts"]
    assert set(shares) == {*steps.PARTS, "rest"}
    assert sum(shares.values()) == pytest.approx(1, abs=1e-6)
    frozen_and_kept = method in ("stego", "ppap") and place == "disk"
    assert (shares["backbone"] > 0) != frozen_and_kept
    for part in ("data", "head", "loss", "backward", "optimiser"):
        assert shares[part] > 0, part
    assert f"{method} smoke, {word}, fp32" in gpu.table([row])


def test_a_trial_prints_and_continues_its_file(tmp_path, capsys, monkeypatch):
    asked = []

    def apart(limit, function, *args):
        """In this process, and no second time in full."""
        if function is gpu.ceilings:
            return LIMITS
        asked.append(args[:3])
        if len(asked) == 1:
            raise RuntimeError("too large")
        row = {"group": args[0], "name": "smoke, images, fp32", "size": "B 4"}
        row |= {"unit": "s", "figure": 0.5, "images_per_second": 8.0, "memory": 1.0}
        row |= {"flops": 1e12, "of_matmul": 0.5, "of_copy": 0.1, "busy": 0.9}
        row |= {"parts": dict.fromkeys((*steps.PARTS, "rest"), 1 / 7), "error": None}
        return [row | {"kernels": [["mm", 1.0]], "largest": 64, "largest_ends": True}]

    monkeypatch.setattr(running, "apart", apart)
    path = tmp_path / "gpu.json"
    arguments = [*TRIAL, "--out", str(path), "--only"]
    assert gpu.main([*arguments, "maskcontrast"]) == 1
    assert "maskcontrast smoke, images: failed: too large" in capsys.readouterr().out
    assert gpu.main([*arguments, "hsg smoke"]) == 1  # the failed row is still there
    assert gpu.main([*arguments, "maskcontrast"]) == 0
    printed = capsys.readouterr().out
    assert "hsg smoke, images, fp32" in printed and "100 % mm" in printed
    assert "failed" not in printed.split("ceiling")[-1]
    assert "ceiling, fp32: 1 TFLOP/s" in printed
    kept = tables.read(path)
    assert [row["group"] for row in kept["rows"]] == ["hsg", "maskcontrast"]
    assert kept["about"]["ceilings"] == LIMITS
    # Rows of another commit are not mixed with those of this one.
    tables.write(kept["rows"], kept["about"] | {"commit": "other"}, path)
    gpu.main([*arguments, "hsg"])
    assert [row["group"] for row in tables.read(path)["rows"]] == ["hsg"]


def test_the_ceilings_are_measured():
    found = gpu.ceilings("cpu", 256, 10**6, ["fp32", "bf16"])
    assert set(found) == {"fp32", "bf16", "copy"} and min(found.values()) > 1e7


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_one_line_says_so(capsys):
    assert gpu.main([]) == 2
    said = capsys.readouterr().err
    assert said.startswith("torch sees no CUDA GPU here") and said.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--device", "cpu"], "the papers' sizes take a GPU"),
        ([*TRIAL, "--only", "stegos"], "nothing is called 'stegos'; known: stego,"),
    ],
)
def test_what_cannot_be_measured_is_refused(arguments, message, capsys):
    assert gpu.main(arguments) == 2
    assert message in capsys.readouterr().err


def test_precisions_set_both_switches_and_put_them_back():
    matmul, convolutions = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, convolutions.allow_tf32
    for name, word, allowed in (
        ("fp32", "no", False),
        ("tf32", "no", True),
        ("bf16", "bf16", False),
    ):
        with gpu.precision_of(name) as found:
            assert found == word
            assert (matmul.allow_tf32, convolutions.allow_tf32) == (allowed,) * 2
    assert (matmul.allow_tf32, convolutions.allow_tf32) == before


@pytest.mark.parametrize("capacity", [1, 5, 16, 23, 100])
def test_the_largest_batch_is_found_to_an_eighth(capacity):
    tried = []

    def fits(batch):
        tried.append(batch)
        return batch <= capacity

    found, ends = trainings.largest_batch(fits, 1, 4096)
    assert ends and found <= capacity < found + max(1, found // 8) + 1
    assert len(tried) == len(set(tried)) < 20


def test_the_search_begins_below_where_the_first_does_not_fit():
    assert trainings.largest_batch(lambda b: b <= 3, 16, 64) == (3, True)
    assert trainings.largest_batch(lambda b: False, 16, 64) == (0, True)


def test_the_search_ends_where_it_may_not_or_takes_too_long():
    assert trainings.largest_batch(lambda b: True, 4, 24) == (24, False)
    slow = {4: True, 8: True, 16: None}
    assert trainings.largest_batch(slow.get, 4, 64) == (16, False)


def test_a_batch_too_large_for_the_memory_is_not_the_end():
    work = toy()
    plain = work.loss

    def loss(model, batch, step):
        if len(batch["x"]) > 11:
            raise torch.cuda.OutOfMemoryError("no memory")
        return plain(model, batch, step)

    work.loss = loss
    assert trainings.batch_that_fits(work, 64, 10.0) == (11, True)
    assert all(p.grad is None for p in work.model.parameters())
    assert trainings.batch_that_fits(work, 64, 0.0) == (
        4,
        False,
    )  # every step is too slow


def test_what_libraries_say_of_too_large_a_batch_is_understood():
    work = toy()
    plain, capacity = work.loss, 8

    def loss(model, batch, step):
        if len(batch["x"]) > capacity:
            raise RuntimeError("CUBLAS_STATUS_ALLOC_FAILED")
        return plain(model, batch, step)

    work.loss = loss
    assert trainings.batch_that_fits(work, 16, 10.0) == (8, True)
    capacity = 3
    with pytest.raises(RuntimeError, match="ALLOC_FAILED"):
        trainings.batch_that_fits(work, 16, 10.0)


def test_other_errors_are_told():
    work = toy()
    work.loss = lambda model, batch, step: {"loss": torch.tensor(1.0)}
    with pytest.raises(ValueError, match="depends on no parameter"):
        trainings.batch_that_fits(work, 64, 10.0)


def test_data_are_repeated_and_tiled():
    data = toy().data
    rows = torch.tensor([1, 7, 6])
    assert data.draw(rows, None)["y"].tolist() == [1, 1, 0]
    tiled = trainings.Tiled(data, 9)
    assert len(tiled) == 9
    found = tiled.draw(torch.arange(9), None)
    assert found["y"].tolist() == [0, 1, 2, 3, 0, 1, 2, 3, 0]
    # Two views of every item stay together.
    tiled.small = {"views": torch.arange(8)}
    views = tiled.draw(torch.arange(5), None)["views"]
    assert views.tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 0, 1]


def test_operations_and_bytes_of_a_step_are_counted():
    flops, moved = steps.work_of_a_step(toy())
    assert flops == 2 * (2 * 4 * 5 * 3)  # forward, and the gradient of the weights
    assert moved > 4 * (4 * 5 + 5 * 3 + 4 * 3)


def test_views_move_nothing():
    a = torch.ones(10, 10)
    with steps.Traffic(torch.device("cpu")) as traffic:
        a.t().reshape(100).view(10, 10)
        assert traffic.bytes == 2 * a.nbytes  # reshape of the transposed one copies
        a.view(100)[:50]
        assert traffic.bytes == 2 * a.nbytes
        a + a
    assert traffic.bytes == 5 * a.nbytes


def test_the_stopwatch_counts_for_the_innermost_part():
    waits = []
    watch = steps.Stopwatch(lambda: waits.append(1))

    def inner():
        time.sleep(0.02)

    def outer():
        watch.around("backbone", inner)()
        time.sleep(0.01)

    watch.around("loss", outer)()
    time.sleep(0.01)
    watch.around("data", inner)()
    assert watch.spent["backbone"] >= 0.02 and watch.spent["loss"] >= 0.01
    assert watch.spent["loss"] < watch.spent["backbone"] + 0.01
    assert sum(watch.shares().values()) == pytest.approx(1)
    assert watch.shares()["rest"] > 0 and len(waits) == 6


def test_a_part_that_fails_is_closed():
    watch = steps.Stopwatch(lambda: None)
    with pytest.raises(ZeroDivisionError):
        watch.around("loss", lambda: 1 / 0)()
    assert not watch.open


def test_steps_are_timed_after_the_first_ones():
    seen = []
    work = toy()
    plain = work.loss

    def loss(model, batch, step):
        seen.append(step.index)
        time.sleep(0.1 if step.index < 2 else 0.001)
        return plain(model, batch, step)

    work.loss = loss
    assert 0.001 <= steps.step_seconds(work, 2, 3) < 0.09
    assert seen == list(range(5))
