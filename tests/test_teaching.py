import math
import re

import nbformat
import numpy as np
import pytest
import torch
from nbformat.v4 import new_code_cell, new_notebook, new_output

from uss_utils import exercises, notebooks, teaching
from uss_utils.methods import kmeans
from uss_utils.metrics import Confusion
from uss_utils.recipe import LearnedRecipe


def outer(x):
    """Doc."""

    def inner(y):
        return x + y

    return inner


class TestShowSource:
    def test_is_the_function_and_nothing_else(self):
        shown = teaching.show_source(outer)
        assert shown.text.startswith("def outer(x):")
        assert shown.text.endswith("return inner")
        assert "import" not in shown.text

    def test_methods_are_dedented(self):
        text = teaching.show_source(teaching.Source._html).text
        assert text.startswith("def _html(self)")

    def test_html_is_highlighted_without_style_sheet_or_machine_path(self):
        bundle = teaching.show_source(teaching.check)._repr_mimebundle_()
        assert "<style" not in bundle["text/html"]
        assert 'style="' in bundle["text/html"]
        assert ">uss_utils/teaching.py, line " in bundle["text/html"]
        assert bundle["text/plain"].startswith("def check(")

    @pytest.mark.parametrize("thing", [3, len, np.zeros(2)])
    def test_without_source(self, thing):
        with pytest.raises(ValueError, match="no Python source"):
            teaching.show_source(thing)


def notebook_with(*records):
    outputs = [
        new_output(
            "display_data", {"application/json": r}, metadata={"uss_record": True}
        )
        for r in records
    ]
    return new_notebook(cells=[new_code_cell("record()", outputs=outputs)])


class TestShowTable:
    @pytest.fixture
    def shown(self, monkeypatch):
        calls = []
        monkeypatch.setattr(teaching, "display", lambda made: calls.append(made.data))
        return calls

    def test_columns_are_the_union_in_order(self, shown):
        rows = {"a": {"acc": 51.234, "n": 3}, "b": {"miou": np.float32(7.06)}}
        teaching.show_table(rows, "no CRF", corner="guess")
        assert shown[0].splitlines() == [
            "| guess | acc | n | miou |",
            "| --- | --- | --- | --- |",
            "| a | 51.2 | 3 | – |",
            "| b | – | – | 7.1 |",
            "",
            "*no CRF*",
        ]

    def test_scores_show_accuracy_and_miou(self, shown):
        pred = torch.tensor([0, 1, 1, 1])
        scores = Confusion.of(pred, torch.tensor([0, 0, 1, 1]), 2).scores("identity")
        teaching.show_table({"guess": scores})
        assert shown[0].splitlines()[0] == "|  | accuracy | mIoU |"
        assert shown[0].splitlines()[2] == "| guess | 75.0 | 58.3 |"

    def test_without_rows(self):
        with pytest.raises(ValueError, match="at least one row"):
            teaching.show_table({})

    def test_settings_that_differ(self, shown):
        here = kmeans.Config(size=(64, 96), seed=3, root="somewhere")
        there = kmeans.Config(steps=20)
        teaching.show_settings({"paper": there, "here": here}, "mind the size")
        assert shown[0].splitlines() == [
            "| setting | paper | here |",
            "| --- | --- | --- |",
            "| size | – | (64, 96) |",
            "| steps | 20 | 500 |",
            "",
            "*mind the size*",
        ]

    def test_settings_of_one_method_only(self):
        other = LearnedRecipe()
        with pytest.raises(ValueError, match="two Configs of one method"):
            teaching.show_settings({"a": kmeans.Config(), "b": other})


class TestRecord:
    @pytest.fixture
    def shown(self, monkeypatch):
        calls = []
        monkeypatch.setattr(
            teaching, "display", lambda data, **kw: calls.append((data, kw))
        )
        return calls

    def test_scalars_and_arrays_become_json(self, shown):
        teaching.record(
            miou=torch.tensor(24.5),
            acc=np.float32(0.5),
            n=np.int64(3),
            iou=np.array([0.5, np.nan]),
            name="a",
            crf=float("inf"),
        )
        ((data, options),) = shown
        assert data["application/json"] == {
            "miou": 24.5,
            "acc": 0.5,
            "n": 3,
            "iou": [0.5, None],
            "name": "a",
            "crf": None,
        }
        assert "miou  24.5" in data["text/plain"]
        assert options["metadata"] == {"uss_record": True}

    def test_nothing_or_an_object_is_refused(self, shown):
        with pytest.raises(ValueError, match="at least one"):
            teaching.record()
        with pytest.raises(ValueError, match="cannot record"):
            teaching.record(x=object())
        assert not shown

    def test_read_back_from_a_file(self, tmp_path):
        path = tmp_path / "a.ipynb"
        nbformat.write(notebook_with({"miou": 3}), path)
        assert notebooks.read_record(path) == {"miou": 3}

    @pytest.mark.parametrize("n", [0, 2])
    def test_not_exactly_one(self, n):
        with pytest.raises(ValueError, match=f"holds {n} records"):
            notebooks.read_record(notebook_with(*[{"a": 1}] * n))


@pytest.fixture
def double(monkeypatch):
    def cases():
        yield (torch.tensor([1.0, 2.0]),), [2, 4]
        yield (torch.tensor([5.0]),), [10]

    monkeypatch.setitem(exercises._CHECKS, "double", cases)
    cases.__module__ = "tests"
    return "double"


class TestOutcome:
    @pytest.mark.parametrize(
        ("attempt", "state", "message"),
        [
            (lambda x: None, "unattempted", "not attempted yet"),
            (lambda x: 2 * x, "correct", "correct"),
            (lambda x: (2 * x).tolist(), "correct", "correct"),
            (lambda x: (2 * x).numpy() + 1e-6, "correct", "correct"),
            (lambda x: x, "wrong", r"for \(\[1.0, 2.0\]\) got \[1.0, 2.0\], expected"),
            (lambda x: x[:1], "wrong", r"got shape \(1,\), expected shape \(2,\)"),
            (lambda x: map(float, x), "wrong", "got <map object"),
            (lambda x: None if len(x) == 1 else 2 * x, "wrong", "got None, expected"),
            (lambda x: x.mul_(2) if len(x) == 2 else x, "wrong", r"for \(\[5.0\]\)"),
            (lambda x: exit(), "wrong", "raised SystemExit"),
            (lambda: 1, "wrong", "raised TypeError"),
        ],
    )
    def test_states(self, double, attempt, state, message):
        found = teaching.outcome(double, attempt)
        assert found.state == state

        assert re.search(message, found.message)

    def test_error_names_type_and_line_in_one_line(self, double):
        def attempt(x):
            y = x
            return y[7]

        text = str(teaching.outcome(double, attempt))
        assert "\n" not in text
        line = attempt.__code__.co_firstlineno + 2
        assert text.startswith("double: not yet – your code raised IndexError")
        assert f"in line {line} of the cell" in text

    def test_check_prints_and_returns_nothing(self, double, capsys):
        assert teaching.check(double, lambda x: None) is None
        assert capsys.readouterr().out == "double: not attempted yet\n"

    def test_unknown_name_lists_the_known(self):
        found = teaching.outcome("no_such_exercise", lambda x: x)
        assert found.state == "unknown"
        assert "match" in found.message

    def test_custom_comparison(self, monkeypatch):
        def cases():
            yield (3,), lambda got: "" if got > 3 else f"{got} is not larger than 3"

        monkeypatch.setitem(exercises._CHECKS, "larger", cases)
        assert teaching.outcome("larger", lambda x: x + 1).state == "correct"
        assert "2 is not larger" in teaching.outcome("larger", lambda x: 2).message

    def test_a_name_belongs_to_one_module(self):
        teaching.exercises.registry()

        def other():
            yield (), 0

        with pytest.raises(ValueError, match="registered in"):
            exercises.register("match")(other)


def greedy(matrix):
    taken, result = set(), []
    for row in matrix.tolist():
        best = max((c for c in range(len(row)) if c not in taken), key=row.__getitem__)
        taken.add(best)
        result.append(best)
    return result


def hungarian(matrix):
    from scipy.optimize import linear_sum_assignment

    return linear_sum_assignment(matrix.numpy(), maximize=True)[1]


def colour_in(label, palette):
    return np.where(label[..., None] < 0, 128, palette[label])


def remap(ids, table):
    known = ids < len(table)
    return np.where(known, table[np.where(known, ids, 0)], -1)


def class_shares(label, n):
    valid = label[label >= 0]
    return np.bincount(valid, minlength=n) / valid.size


def centre_crop(image, size):
    top, left = (round((n - size) / 2) for n in image.shape[:2])
    return image[top : top + size, left : left + size]


def similarity_map(feat, row, column):
    unit = feat / feat.norm(dim=0)
    return (unit * unit[:, row, column, None, None]).sum(dim=0)


def centroids(x, assignment, k):
    total = torch.zeros(k, x.shape[1]).index_add(0, assignment, x)
    return torch.nn.functional.normalize(total, dim=1)


def silent(feat_corr, code_corr, shift):
    code_corr = code_corr.requires_grad_()
    (code_corr.clamp(min=0) * (shift - feat_corr)).sum().backward()
    return (code_corr.grad == 0).float().mean()


def gaps(code, weight, centroids, size, *, soft=True):
    def enlarge(x):
        return torch.nn.functional.interpolate(x, size, mode="bilinear")

    def scores(x, rows):
        return torch.einsum("bdhw,kd->bkhw", x, rows)

    unit = torch.nn.functional.normalize
    mu = unit(centroids, dim=1)
    first = scores(enlarge(code), weight) - enlarge(scores(code, weight))
    right = scores(unit(enlarge(code), dim=1), mu)
    same = enlarge(scores(code, mu)).argmax(1) != right.argmax(1)
    cheap = enlarge(scores(unit(code, dim=1) if soft else code, mu))
    third = (2 * right).softmax(1) - (2 * cheap).softmax(1)
    return first.abs().max(), same.float().mean(), third.abs().max()


def rand(a, b):
    pairs = ((x[:, None] == x).double() for x in (a, b))
    same = torch.eq(*pairs).double()
    return (same.sum() - len(a)) / (len(a) * (len(a) - 1))


# One right answer and one tempting wrong one per exercise of the course.
ANSWERS = {
    "count_patches": (lambda h, w, p: h // p * (w // p), lambda h, w, p: h * w // p),
    "pixel_accuracy": (
        lambda p, t: (p == t)[t >= 0].float().mean(),
        lambda p, t: (p == t).float().mean(),
    ),
    "remap": (remap, lambda ids, table: ids),
    "class_shares": (
        class_shares,
        lambda label, n: [(label == i).mean() for i in range(n)],
    ),
    "mask_iou": (
        lambda p, t: (p & t).sum() / (p | t).sum(),
        lambda p, t: (p & t).sum() / t.sum(),
    ),
    "colour_in": (colour_in, lambda label, palette: palette[label]),
    "centre_crop": (centre_crop, lambda image, size: image[:size, :size]),
    "similarity_map": (
        similarity_map,
        lambda feat, i, j: (feat * feat[:, i, j, None, None]).sum(dim=0),
    ),
    "patch_of_pixel": (
        lambda y, x, p: (y // p, x // p),
        lambda y, x, p: (x // p, y // p),
    ),
    "variance_term": (
        lambda x: torch.relu(1 - x.std(dim=0)).mean(),
        lambda x: (1 - x.std(dim=0)).mean(),
    ),
    "iou": (
        lambda m: m.diag() / (m.sum(0) + m.sum(1) - m.diag()),
        lambda m: m.diag() / m.sum(0),
    ),
    "match": (hungarian, greedy),
    "centroids": (
        centroids,
        lambda x, a, k: torch.stack([x[a == i].mean(dim=0) for i in range(k)]),
    ),
    "majority": (lambda m: m.argmax(dim=1), lambda m: m.argmax(dim=0)),
    "silent_share": (silent, lambda f, s, b: (f < b).float().mean()),
    "shift_for": (
        lambda f, share: f.quantile(1 - share),
        lambda f, share: f.quantile(share),
    ),
    "three_gaps": (gaps, lambda *args: gaps(*args, soft=False)),
    "usage_entropy": (
        lambda p: torch.special.entr(p).sum() / math.log(len(p)),
        lambda p: torch.special.entr(p).sum(),
    ),
    "rand_index": (rand, lambda a, b: (a == b).float().mean()),
}


@pytest.mark.parametrize("name", sorted(exercises.registry()))
def test_registered_exercise_tells_right_from_wrong(name):
    if name not in ANSWERS:
        pytest.skip("its solution is tested in the notebook")
    right, wrong = ANSWERS[name]
    assert teaching.outcome(name, right).state == "correct"
    assert teaching.outcome(name, wrong).state == "wrong"
    assert teaching.outcome(name, lambda *a: None).state == "unattempted"
