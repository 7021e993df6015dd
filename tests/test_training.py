import json
import resource
import signal
import subprocess
import sys

import pytest
import torch
from torch import nn

from tests.processes import ROOT, run_together
from tests.training_run import (
    EVERY,
    STEPS,
    Pairs,
    linear_run,
    loss_fn,
    run,
    shared_run,
    stop_at,
    update_teacher,
)
from uss_utils.checkpoints import load_tensors, save_tensors
from uss_utils.environment import generator
from uss_utils.training import EMA, History, batch_indices, constant, fit


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as the killed processes do: sums depend on it
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def uninterrupted():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    result = run()
    torch.set_num_threads(threads)
    return result


def assert_same(one, other):
    for a, b in zip(one[:2], other[:2], strict=True):
        for name, value in a.state_dict().items():
            assert torch.equal(value, b.state_dict()[name]), name
    assert one[2].rows == other[2].rows


# ------------------------------------------------------------------------- the loop


def test_one_step_equals_the_formula():
    data = Pairs()
    model, history = linear_run(steps=1, batch_size=40, data=data)
    # From zero weights: gradient of mean((Wx + b - y)^2) is -2 mean(y x^T) / 2 outputs.
    torch.testing.assert_close(model.weight, 0.1 * data.y.T @ data.x / 40)
    assert history.rows[0]["loss"] == pytest.approx(data.y.square().mean().item())


def test_loss_falls_and_rows_hold_every_figure(uninterrupted):
    history = uninterrupted[2]
    assert history.names() == [
        "step",
        "loss",
        "fit",
        "pull",
        "n",
        "grad_norm/body",
        "lr/body",
        "lr/head",
        "teacher",
    ]
    # Every third step, the last one, and those to which the hook added a figure.
    steps = [row["step"] for row in history.rows]
    assert steps == [2, 5, 6, 8, 11, 13, 14, 17, 19]
    assert history.rows[0]["n"] == 12
    assert min(row["n"] for row in history.rows) == 4  # the last batch of an epoch
    _, long = linear_run(steps=200)
    assert long.series("loss")[-20:].mean() < 0.5 * long.series("loss")[:20].mean()
    json.dumps(long.to_json(), allow_nan=False)


def test_same_seed_same_run_and_global_generators_untouched(uninterrupted):
    torch.manual_seed(123)  # must not matter
    before = torch.get_rng_state()
    assert_same(run(), uninterrupted)
    assert torch.equal(torch.get_rng_state(), before)
    other = run(seed=6)
    assert other[2].rows != uninterrupted[2].rows


@pytest.mark.parametrize("prefetch", [1, 3])
def test_prefetching_changes_nothing(prefetch, uninterrupted):
    assert_same(run(prefetch=prefetch), uninterrupted)


def test_prefetching_passes_errors_on():
    class Broken(Pairs):
        def batch(self, indices):
            raise OSError("image 3 is unreadable")

    with pytest.raises(OSError, match="image 3"):
        linear_run(data=Broken(), prefetch=2)


def test_data_may_be_a_function_with_a_length():
    class Called:
        pairs = Pairs()

        def __len__(self):
            return len(self.pairs)

        def __call__(self, indices):
            return self.pairs.batch(indices)

    assert linear_run(data=Called())[1].rows == linear_run()[1].rows


class Drawn(Pairs):
    """Each item comes with a random number, drawn while it is fetched."""

    def draw(self, indices, generator):
        x, y = self.batch(indices)
        return x, y + torch.rand(y.shape, generator=generator)


def test_data_may_draw_while_fetching(tmp_path):
    plain = linear_run(data=Drawn())
    assert plain[1].rows == linear_run(data=Drawn(), prefetch=3)[1].rows
    assert plain[1].rows != linear_run(data=Drawn(), seed=1)[1].rows
    assert plain[1].rows != linear_run()[1].rows
    seen = []

    class Watched(Drawn):
        def draw(self, indices, generator):
            seen.append(float(torch.rand(1, generator=generator)))
            return self.batch(indices)

    linear_run(data=Watched(), steps=4)
    assert len(set(seen)) == 4  # a step's draws are its own


def test_data_that_draws_resumes_equal(tmp_path):
    class Stops(Drawn):
        calls = 0

        def draw(self, indices, generator):
            Stops.calls += 1
            if Stops.calls == 7:
                raise OSError("the disk is gone")
            return super().draw(indices, generator)

    options = {"steps": 12, "checkpoint": tmp_path / "c.safetensors"}
    with pytest.raises(OSError, match="gone"):
        linear_run(data=Stops(), checkpoint_every=3, **options)
    resumed = linear_run(data=Drawn(), checkpoint_every=3, **options)
    whole = linear_run(data=Drawn(), steps=12)
    assert resumed[1].rows == whole[1].rows
    assert torch.equal(resumed[0].weight, whole[0].weight)


def test_step_tells_where_the_run_is():
    seen = []

    def loss(model, batch, step):
        seen.append((step.index, step.total, step.epoch, step.indices))
        return {"loss": model(batch[0]).sum() * 0}

    linear_run(loss_fn=loss, steps=4, batch_size=20, seed=9)
    assert [s[:3] for s in seen] == [(0, 4, 0), (1, 4, 0), (2, 4, 1), (3, 4, 1)]
    assert torch.equal(seen[2][3], batch_indices(2, 40, 20, 9))


def test_schedule_scales_each_groups_rate_and_is_undone():
    model = nn.Linear(6, 2)
    optimiser = torch.optim.SGD(
        [
            {"params": [model.weight], "lr": 0.1},
            {"params": [model.bias], "lr": 0.2},
        ]
    )
    used = []

    def hook(index, model, row):
        used.append([group["lr"] for group in optimiser.param_groups] + [row["lr"]])

    fit(
        model,
        lambda m, b, s: {"loss": m(b[0]).square().mean()},
        Pairs(),
        steps=2,
        batch_size=4,
        optimisers=optimiser,
        schedule=lambda step, total: 1 / (step + total),
        on_step=hook,
        device="cpu",
        progress=None,
    )
    assert used == [[0.05, 0.1, 0.05], pytest.approx([0.1 / 3, 0.2 / 3, 0.1 / 3])]
    assert [group["lr"] for group in optimiser.param_groups] == [0.1, 0.2]


def test_clipping_bounds_the_update_of_the_named_optimiser_only():
    def step_of(**clip):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = nn.ModuleDict({"a": nn.Linear(6, 2), "b": nn.Linear(6, 2)})
        before = [p.detach().clone() for p in model.parameters()]
        _, history = fit_two(model, **clip)
        moved = [
            (p.detach() - q).flatten()
            for p, q in zip(model.parameters(), before, strict=True)
        ]
        return torch.cat(moved[:2]).norm(), torch.cat(moved[2:]).norm(), history

    def fit_two(model, **clip):
        return model, fit(
            model,
            lambda m, b, s: {"loss": 50 * (m["a"](b[0]) + m["b"](b[0])).square().sum()},
            Pairs(),
            steps=1,
            batch_size=8,
            optimisers={
                key: torch.optim.SGD(model[key].parameters(), lr=1.0) for key in "ab"
            },
            device="cpu",
            progress=None,
            **clip,
        )

    a_free, b_free, _ = step_of()
    a, b, history = step_of(clip_norm={"a": 2.0})
    assert a == pytest.approx(2.0, rel=1e-4)
    assert b == b_free > 100
    assert history.rows[0]["grad_norm/a"] == pytest.approx(a_free.item(), rel=1e-4)
    a, b, history = step_of(clip_norm=2.0)
    assert (a**2 + b**2).sqrt() == pytest.approx(2.0, rel=1e-4)
    assert history.rows[0]["grad_norm"] > 100


def test_training_mode_is_used_and_put_back():
    modes = []

    def loss(model, batch, step):
        modes.append(model.training)
        return {"loss": model(batch[0]).square().mean()}

    model = nn.Linear(6, 2).eval()
    fit(
        model,
        loss,
        Pairs(),
        steps=1,
        batch_size=4,
        optimisers=torch.optim.SGD(model.parameters(), lr=0.1),
        device="cpu",
        progress=None,
    )
    assert modes == [True]
    assert not model.training


def test_precisions_follow_and_nest_in_one_process():
    dtypes = []

    def loss(model, batch, step):
        out = model(batch[0])
        dtypes.append(out.dtype)
        return {"loss": out.float().square().mean()}

    def nested(index, model, row):
        linear_run(loss_fn=loss, steps=1, precision="no")

    linear_run(loss_fn=loss, steps=1, precision="no")
    linear_run(loss_fn=loss, steps=2, precision="bf16", on_step=nested)
    linear_run(loss_fn=loss, steps=1, precision="no")
    full, half = torch.float32, torch.bfloat16
    assert dtypes == [full, half, full, half, full, full]


def test_precision_of_an_accelerator_made_elsewhere_survives():
    from accelerate import Accelerator

    outside = Accelerator(cpu=True, mixed_precision="bf16")
    linear_run(steps=1, precision="no")
    assert outside.mixed_precision == "bf16"
    with outside.autocast():
        assert nn.Linear(2, 2)(torch.ones(1, 2)).dtype == torch.bfloat16
    outside.state._reset_state(reset_partial_state=True)


def test_progress_lines_and_silence(capsys):
    linear_run(steps=20, progress="lines")
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 10
    assert lines[0].startswith(" 10 %  step 2/20  loss ")
    assert lines[-1].endswith("done")
    linear_run(steps=3, progress="lines")
    assert len(capsys.readouterr().out.splitlines()) == 3
    linear_run(progress=None)
    linear_run(progress=False)
    streams = capsys.readouterr()
    assert streams.out == streams.err == ""
    linear_run(steps=20, progress="bar")
    assert "20/20" in capsys.readouterr().err


# -------------------------------------------------------------------- interruptions


@pytest.mark.parametrize(
    "where, moment, prefetch, kept",
    [
        ("forward", 3, 0, 0),  # before the first periodic checkpoint
        ("forward", 13, 2, 10),
        ("write", 1, 0, None),  # half of the very first checkpoint
        ("write", 4, 0, 10),  # half of the third periodic one
    ],
)
def test_killed_and_resumed_equals_uninterrupted(
    where, moment, prefetch, kept, tmp_path, uninterrupted
):
    path = tmp_path / "run" / "last.safetensors"
    command = [sys.executable, "-m", "tests.training_run", path]
    command += [str(moment), where, str(prefetch)]
    child = subprocess.run(
        list(map(str, command)), cwd=ROOT, capture_output=True, text=True
    )
    assert child.returncode == -signal.SIGKILL, child.stderr
    if kept is None:
        assert not path.exists()
    else:
        assert load_tensors(path)[1]["step"] == kept
    mine = {path.name, f".{path.name}.lock"}  # nobody holds it any more
    names = [file.name for file in path.parent.iterdir() if file.name not in mine]
    assert all(name.startswith(".tmp-") for name in names)
    assert len(names) == (where == "write")
    assert_same(run(path), uninterrupted)
    assert load_tensors(path)[1]["step"] == STEPS
    assert list(path.parent.iterdir()) == [path]


def test_finished_run_is_loaded_not_repeated(tmp_path, uninterrupted):
    path = tmp_path / "last.safetensors"
    run(path)

    def never(model, batch, step):
        raise AssertionError("a finished run must not train")

    assert_same(run(path, loss=never), uninterrupted)


def test_interrupted_by_an_error_resumes_equal(tmp_path, uninterrupted):
    path = tmp_path / "last.safetensors"

    def stops(model, batch, step):
        if step.index == 12:
            raise KeyboardInterrupt
        return loss_fn(model, batch, step)

    with pytest.raises(KeyboardInterrupt):
        run(path, loss=stops)
    assert load_tensors(path)[1]["step"] == 2 * EVERY
    assert_same(run(path), uninterrupted)


def test_teacher_inside_the_model_is_stored_once(tmp_path):
    model = nn.ModuleDict({"student": nn.Linear(6, 2), "teacher": nn.Linear(6, 2)})
    ema = EMA(model["student"], 0.5, target=model["teacher"])
    path = tmp_path / "last.safetensors"
    fit(
        model,
        lambda m, b, s: {"loss": m["student"](b[0]).square().mean()},
        Pairs(),
        steps=2,
        batch_size=4,
        optimisers=torch.optim.SGD(model["student"].parameters(), lr=0.1),
        ema=ema,
        device="cpu",
        checkpoint=path,
        progress=None,
    )
    names = [name for name in load_tensors(path)[0] if name.endswith("weight")]
    assert sorted(names) == ["parts/model/student.weight", "parts/model/teacher.weight"]


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"batch_size": 10}, "batch_size was 12, is 10"),
        ({"seed": 8, "steps": 30}, "seed was 5, is 8; steps was 20, is 30"),
        ({"clip_norm": None}, "clip_norm was absent, is None"),
        ({"precision": "bf16"}, "precision was 'no', is 'bf16'"),
        ({"config": {"temperature": 2}}, "config.temperature was absent, is 2"),
    ],
)
def test_checkpoint_of_other_settings_is_refused(changes, message, tmp_path):
    path = tmp_path / "last.safetensors"
    run(path)
    with pytest.raises(ValueError, match=message):
        run(path, **changes)


def test_checkpoint_of_another_model_is_refused(tmp_path):
    path = tmp_path / "last.safetensors"
    linear_run(checkpoint=path)
    model = nn.Linear(6, 2, bias=True)
    model.register_buffer("queue", torch.zeros(3))
    with pytest.raises(ValueError, match="of another model.*queue"):
        fit(
            model,
            lambda m, b, s: {"loss": m(b[0]).sum()},
            Pairs(),
            steps=10,
            batch_size=8,
            optimisers=torch.optim.SGD(model.parameters(), lr=0.1),
            device="cpu",
            log_every=1,
            checkpoint=path,
            progress=None,
        )


def test_foreign_and_damaged_checkpoints_are_refused(tmp_path):
    path = tmp_path / "last.safetensors"
    linear_run(checkpoint=path)
    content = path.read_bytes()
    path.write_bytes(content[:-10])
    with pytest.raises(ValueError, match="cut off, damaged"):
        linear_run(checkpoint=path)
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 255]))
    with pytest.raises(ValueError, match="checksum"):
        linear_run(checkpoint=path)
    save_tensors(path, {}, {"kind": "segmenter"})
    with pytest.raises(ValueError, match="'segmenter', but a 'training checkpoint'"):
        linear_run(checkpoint=path)


def test_unwritable_place_is_known_before_training(tmp_path):
    (tmp_path / "file").write_text("in the way")

    def never(model, batch, step):
        raise AssertionError("trained before it was known that nothing can be kept")

    with pytest.raises(OSError, match="cannot write .*last.safetensors"):
        linear_run(checkpoint=tmp_path / "file" / "last.safetensors", loss_fn=never)


def test_full_disk_keeps_the_last_checkpoint(tmp_path, uninterrupted):
    path = tmp_path / "last.safetensors"
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill(index, model, row):
        update_teacher(index, model, row)
        if index == 7:
            resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))

    try:
        with pytest.raises(OSError, match="could not write .* free some space"):
            run(path, on_step=fill)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert load_tensors(path)[1]["step"] == EVERY
    assert list(tmp_path.iterdir()) == [path]
    assert_same(run(path), uninterrupted)


# --------------------------------------------------------------------------- guards


def test_non_finite_loss_stops_before_anything_is_applied(tmp_path):
    path = tmp_path / "last.safetensors"
    model_seen = []

    def breaks(model, batch, step):
        terms = loss_fn(model, batch, step)
        if step.index == 12:
            model_seen.append({k: v.clone() for k, v in model.state_dict().items()})
            terms["pull"] = terms["pull"] * float("inf")
            terms["loss"] = terms["fit"] + terms["pull"]
        model_seen.append(model)
        return terms

    message = (
        r"step 12: the loss is not finite \(loss = inf, pull = inf\).*"
        r"last.safetensors keeps the state after 10 steps"
    )
    with pytest.raises(FloatingPointError, match=message) as caught:
        run(path, loss=breaks)
    at_failure, model = model_seen[-2:]
    for name, value in model.named_parameters():
        assert torch.equal(value, at_failure[name])
    steps = [row["step"] for row in caught.value.history.rows]
    assert steps == [2, 5, 6, 8, 11]
    _, meta = load_tensors(path)
    assert meta["step"] == 10
    assert [row["step"] for row in meta["history"]["rows"]] == [2, 5, 6, 8]


def test_nan_in_a_logged_term_is_no_error():
    def loss(model, batch, step):
        value = model(batch[0]).square().mean()
        return {"loss": value, "share": torch.tensor(float("nan"))}

    _, history = linear_run(loss_fn=loss, steps=2)
    assert [row["share"] for row in history.rows] == [None, None]


class _NaNGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        return grad * float("nan")


def nan_gradient_at(bad):
    def loss(model, batch, step):
        out = model(batch[0])
        out = _NaNGradient.apply(out) if step.index == bad else out
        return {"loss": out.square().mean()}

    return loss


def test_non_finite_gradient_norm_stops():
    with pytest.raises(FloatingPointError, match="step 3: the gradients .*grad_norm"):
        linear_run(loss_fn=nan_gradient_at(3), clip_norm=1.0)


def test_non_finite_weights_never_reach_a_checkpoint(tmp_path):
    path = tmp_path / "last.safetensors"
    with pytest.raises(FloatingPointError, match="step 5: weights .*keeps.* 4 steps"):
        linear_run(
            loss_fn=nan_gradient_at(5), checkpoint=path, checkpoint_every=2, steps=8
        )
    assert load_tensors(path)[1]["step"] == 4
    with pytest.raises(FloatingPointError, match="step 9: weights are not finite"):
        linear_run(loss_fn=nan_gradient_at(9))


# ------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"steps": 0}, "steps has to be an integer of at least 1, got 0"),
        ({"steps": None}, "steps has to be an integer of at least 1, got None"),
        ({"steps": 2.5}, "steps has to be an integer"),
        ({"batch_size": 41}, "batch_size is 41.*items, 40"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"data": Pairs(0)}, "no items"),
        ({"data": 3}, "data needs len.*int has not"),
        ({"seed": -1}, "seed has to be an integer of at least 0"),
        ({"log_every": 0}, "log_every has to be"),
        ({"prefetch": -1}, "prefetch has to be an integer of at least 0"),
        ({"precision": "half"}, "unknown precision 'half'; use 'no', 'bf16' or 'fp16'"),
        ({"precision": "fp16"}, "'fp16' does not work on cpu"),
        ({"device": "gpu"}, "unknown device"),
        ({"progress": "dots"}, "unknown progress 'dots'"),
        ({"schedule": {"head": constant()}}, r"unknown optimisers \['head'\]"),
        ({"clip_norm": {"head": 1.0}}, r"clip_norm is given for unknown"),
        ({"loss_fn": lambda m, b, s: m(b[0]).sum()}, "has to return a dict.*Tensor"),
        ({"loss_fn": lambda m, b, s: {"l": m(b[0]).sum()}}, r"got \['l'\]"),
        ({"loss_fn": lambda m, b, s: {"loss": m(b[0])}}, r"'loss'.*shape \(8, 2\)"),
        (
            {"loss_fn": lambda m, b, s: {"loss": m(b[0]).sum(), "a": "b"}},
            "the term 'a' is a str",
        ),
        ({"loss_fn": lambda m, b, s: {"loss": b[0].sum()}}, "depends on no parameter"),
    ],
)
def test_bad_arguments(changes, message):
    with pytest.raises(ValueError, match=message):
        linear_run(**changes)


def test_parameters_outside_the_model_are_refused():
    outside = torch.optim.SGD(nn.Linear(2, 2).parameters(), lr=0.1)
    with pytest.raises(ValueError, match="parameters that are not in the model"):
        linear_run(optimisers=outside)


# ------------------------------------------------------------------ several processes


def test_two_processes_equal_one_and_either_goes_on(tmp_path):
    """Each computes its rows of every batch; the first one writes."""
    code = (
        "import sys, torch; torch.set_num_threads(1)\n"
        "from tests.training_run import shared_run\n"
        "from uss_utils import ranks\n"
        "def rows(n): return len(range(n)[ranks.share(n)])\n"
        "shared_run(checkpoint=sys.argv[1], stop=int(sys.argv[2]))\n"
        "print(rows(9))"
    )
    model, history = shared_run()
    for first, second in ((2, 2), (2, 1), (1, 2)):
        path = tmp_path / f"{first}{second}.safetensors"
        for n, stop in ((first, 5), (second, 10)):
            printed = run_together(n, "-c", code, str(path), str(stop))
            assert sum(map(int, printed)) == 9
        tensors, meta = load_tensors(path)
        assert meta["step"] == 10
        torch.testing.assert_close(
            tensors["parts/model/weight"], model.weight.detach(), rtol=1e-5, atol=1e-6
        )
        losses = History.from_json(meta["history"]).series("loss")
        assert losses == pytest.approx(history.series("loss"), rel=1e-5)


def test_a_batch_in_parts_is_the_same_batch(tmp_path):
    whole, history = linear_run(batch_size=9)
    parts, other = linear_run(batch_size=9, accumulate=4)
    torch.testing.assert_close(parts.weight, whole.weight, rtol=1e-5, atol=1e-6)
    assert other.series("loss") == pytest.approx(history.series("loss"), rel=1e-5)
    path = tmp_path / "half.safetensors"
    with pytest.raises(KeyboardInterrupt):
        linear_run(
            batch_size=9,
            accumulate=4,
            checkpoint=path,
            checkpoint_every=1,
            on_step=stop_at(5),
        )
    assert load_tensors(path)[1]["step"] == 5
    resumed, _ = linear_run(batch_size=9, accumulate=2, checkpoint=path)
    torch.testing.assert_close(resumed.weight, whole.weight, rtol=1e-5, atol=1e-6)


def test_generators_of_a_run_are_its_own():
    draws = []

    def loss(model, batch, step):
        draws.append(torch.rand(1, generator=step.generator).item())
        return {"loss": model(batch[0]).sum() * 0}

    linear_run(loss_fn=loss, steps=2, seed=0)
    linear_run(loss_fn=loss, steps=2, seed=0)
    linear_run(loss_fn=loss, steps=2, seed=1)
    assert draws[:2] == draws[2:4] != draws[4:]
    assert torch.rand(1, generator=generator(0)).item() != draws[0]
