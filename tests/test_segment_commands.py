import json
import sys

import pytest
from PIL import Image

from tests.models import grey_model
from tests.photo_kinds import street, write_kinds
from uss_utils import __main__ as command_line


@pytest.fixture
def run(monkeypatch, capsys):
    """Run `segment` in this process; gives (exit status, output)."""

    def call(*words) -> tuple[int | str, str]:
        monkeypatch.setattr(sys, "argv", ["uss_utils", "segment", *map(str, words)])
        with pytest.raises(SystemExit) as stop:
            command_line.main()
        return stop.value.code or 0, capsys.readouterr().out

    return call


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for k in range(3):
        Image.fromarray(street(k, 64)).save(folder / f"p{k}.png")
    (folder / "letter.txt").write_text("Dear reader")
    return folder


@pytest.fixture
def model(tmp_path):
    return grey_model(classes=()).save(tmp_path / "grey.safetensors")


def test_fifty_files_with_a_saved_model(run, tmp_path, model):
    _, bad = write_kinds(tmp_path / "mixed")
    words = (tmp_path / "mixed", "--model", model, "--out", tmp_path / "out")
    status, output = run(*words)
    assert status == 0
    for name in bad:
        assert f"skipped {name}: " in output
    assert "segmented 39 (" in output and f"skipped {len(bad)}\n" in output
    assert str(tmp_path / "out" / "index.html") in output
    status, output = run(*words)
    assert status == 0 and "segmented 0, finished before 39" in output


def test_train_on_the_folder_then_use_the_model(run, photos, tmp_path):
    out = tmp_path / "out"
    words = (photos, "--method", "kmeans", "--clusters", 3, "-s", "restarts=1")
    status, output = run(*words, "--out", out)
    assert status == 0 and "segmented 3" in output
    status, output = run(*words, "--out", out)
    assert status == 0 and "trained before" in output and "before 3" in output
    stored = out / "model.safetensors"
    status, output = run(
        photos / "p1.png", "--model", stored, "--out", tmp_path / "one"
    )
    assert status == 0 and "segmented 1" in output
    first, second = (place / "labels" / "p1.png" for place in (out, tmp_path / "one"))
    assert first.read_bytes() == second.read_bytes()


def test_names_of_clusters(run, photos, model, tmp_path):
    names = tmp_path / "names.json"
    names.write_text(json.dumps({"names": {"0": "sky", "1": "sky"}}))
    words = (photos, "--model", model, "--out", tmp_path / "out")
    assert run(*words, "--names", names)[0] == 0
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert [row["name"] for row in summary["legend"]] == ["sky", "cluster 2"]
    names.write_text("[]")
    status, _ = run(*words, "--names", names)
    assert status.startswith("error: ") and "holds no names" in status
    assert "no file with names" in run(*words, "--names", tmp_path / "no.json")[0]


def mistakes(tmp_path, photos, model):
    out = ("--out", tmp_path / "out")
    return {
        "give either --model FILE": (photos, *out),
        "or --method NAME": (photos, *out, "--model", model, "--method", "kmeans"),
        "are for --method": (photos, *out, "--model", model, "--clusters", 3),
        "no folder of photographs": (tmp_path / "no", *out, "--model", model),
        "there is no file": (photos, *out, "--model", tmp_path / "no.safetensors"),
        "p0.png": (photos, *out, "--model", photos / "p0.png"),
        "unknown method 'stegoo'": (photos, *out, "--method", "stegoo"),
        "unknown preset 'nope'": (photos, *out, "--method", "hp", "--preset", "nope"),
        "unknown setting 'stepz'": (photos, *out, "--method", "hp", "-s", "stepz=3"),
        "holds the photographs": (photos, "--out", photos, "--model", model),
        "none of the 1 files": (
            *(photos / "letter.txt", *out, "--model"),
            model,
        ),
    }


def test_mistakes_are_one_line(run, tmp_path, photos, model):
    for message, words in mistakes(tmp_path, photos, model).items():
        status, _ = run(*words)
        assert str(status).startswith("error: "), (message, status)
        assert message in status and "\n" not in status
    assert not (tmp_path / "out" / "labels").exists()


def test_scores_where_there_are_labels(run, tmp_path, model):
    (tmp_path / "in" / "imgs").mkdir(parents=True)
    (tmp_path / "in" / "labels").mkdir()
    for k in range(2):
        image = Image.fromarray(street(k, 64))
        image.save(tmp_path / "in" / "imgs" / f"p{k}.png")
        image.convert("L").point(lambda v: v // 128).save(
            tmp_path / "in" / "labels" / f"p{k}.png"
        )
    words = (tmp_path / "in", "--model", model, "--out", tmp_path / "out")
    assert "scores by the labels, in %: cluster_acc" in run(*words)[1]
