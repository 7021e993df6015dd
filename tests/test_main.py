import json
import os
import sys

import numpy as np
import pytest
from PIL import Image

from uss_utils import __main__ as command_line
from uss_utils.hierarchy import Hierarchy
from uss_utils.records import read_records


@pytest.fixture
def run(monkeypatch, tmp_path, capsys):
    """Run a command line in this process; gives (exit status, output)."""
    monkeypatch.setenv("USS_RUNS", str(tmp_path / "runs"))

    def call(*words: str) -> tuple[int | str, str]:
        monkeypatch.setattr(sys, "argv", ["uss_utils", *map(str, words)])
        with pytest.raises(SystemExit) as stop:
            command_line.main()
        captured = capsys.readouterr()
        return stop.value.code or 0, captured.out + captured.err

    return call


def test_unknown_preset_is_one_line_that_names_the_known(run):
    status, _ = run("ladder", "--preset", "scense")
    assert status.startswith("error: unknown preset 'scense'")
    assert "camvid-tiny" in status and "\n" not in status


def test_debug_shows_the_traceback(run, monkeypatch):
    monkeypatch.setenv("USS_DEBUG", "1")
    monkeypatch.setattr(sys, "argv", ["uss_utils", "ladder", "--preset", "nope"])
    with pytest.raises(ValueError, match="unknown preset"):
        command_line.main()


def test_missing_data_root(run, tmp_path):
    status, _ = run("ladder", "--preset", "camvid-tiny", "--data-root", tmp_path / "no")
    assert status.startswith("error: ") and "--data-root" in status


def test_data_list_and_check(run, tmp_path):
    status, output = run("data", "list")
    assert status == 0 and "camvid" in output and "scenes-aerial" in output
    status, output = run("data", "check", "scenes")
    assert status == 0
    status, output = run("data", "check", "camvid", "--root", tmp_path)
    assert status == 1 and "data download camvid" in output


def test_download_of_a_set_that_is_not_downloaded(run):
    status, _ = run("data", "download", "scenes")
    assert "data check scenes" in status


def test_environment_says_what_is_there(run):
    status, output = run("environment")
    assert status == 0 and "[OK]   torch" in output and "CRF" in output


def test_environment_fails_where_something_is_missing(run, monkeypatch):
    lines = ["[FAIL] timm is missing, run: pip", "1 thing to mend"]
    monkeypatch.setattr("uss_utils.installation.check_environment", lambda: lines)
    status, output = run("environment")
    assert status == 1 and output.splitlines() == lines


def test_misspelt_parameter_stops_before_any_notebook_runs(run, tmp_path):
    status, output = run("course", "00", "-p", "SEEED=3")
    assert status.startswith("error: unknown parameter SEEED; the notebooks know\n")
    assert "PRESET, SEED" in status and output == ""
    assert not (tmp_path / "runs").exists()


def test_unknown_preset_stops_the_course_before_any_notebook_runs(run, tmp_path):
    status, output = run("course", "--preset", "nope")
    assert status.startswith("error: unknown preset 'nope', known are: smoke, scenes,")
    assert "camvid-tiny" in status and "\n" not in status and output == ""
    assert not (tmp_path / "runs").exists()


def test_presets_of_any_method_are_known_to_the_course(run, monkeypatch):
    asked = []
    monkeypatch.setattr(
        "uss_utils.course.run", lambda *_, preset, **__: asked.append(preset) or []
    )
    for preset in ("smoke", "scenes", "camvid-tiny", "cocostuff27-vits8"):
        assert run("course", "--preset", preset)[0] == 0
    assert asked == ["smoke", "scenes", "camvid-tiny", "cocostuff27-vits8"]


def test_absent_gpu(run, monkeypatch, tmp_path):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    status, _ = run("pretrain", "--out", tmp_path / "a.safetensors", "--device", "cuda")
    assert status.startswith("error: device 'cuda' was asked for")


def test_ladder_writes_records_and_prints_a_table(run, tmp_path):
    status, output = run("ladder", "--preset", "smoke", "--seeds", 1)
    assert status == 0
    records = read_records(tmp_path / "runs" / "smoke" / "records")
    assert {record["name"] for record in records} >= {"row index", "colour"}
    assert "row index" in output and "protocol" in output.lower()


def test_pretrain_writes_weights_and_a_card_that_names_no_folder(run, tmp_path):
    out = tmp_path / "tiny.safetensors"
    words = ["pretrain", "--out", out, "--dataset", "scenes", "--images", 2]
    words += ["--vicreg-steps", 2, "--distil-steps", 1, "--batch-size", 2]
    status, _ = run(*words, "--device", "cpu", "--precision", "no")
    assert status == 0
    card = json.loads(out.with_suffix(".json").read_text())
    assert card["config"]["vicreg_steps"] == 2 and card["versions"]["torch"]
    assert card["config"]["precision"] == "no"
    assert str(tmp_path) not in json.dumps(card)


def test_unknown_precision_stops_before_any_image_is_made(run, tmp_path):
    words = ["--out", tmp_path / "a.safetensors", "--precision", "half"]
    status, _ = run("pretrain", *words)
    assert status == (
        "error: precision='half' does not fit: expected 'bf16' or 'fp16' or 'no'"
    )


def test_commands_leave_waiting_threads_no_core(monkeypatch):
    monkeypatch.setattr(command_line, "app", lambda: None)
    monkeypatch.delenv("GOMP_SPINCOUNT", raising=False)
    command_line.main()
    assert os.environ["GOMP_SPINCOUNT"] == "1000"
    monkeypatch.setenv("GOMP_SPINCOUNT", "5")
    command_line.main()
    assert os.environ["GOMP_SPINCOUNT"] == "5", "a user's own choice"


def test_what_a_command_does_not_know_ends_in_its_usage(run):
    """One line of an error, the way to the help, and an exit status of its own."""
    cases = {
        ("trains",): "No such command 'trains'. Did you mean 'train'",
        ("train",): "Missing argument 'method'",
        ("train", "stego", "--sead", 3): "No such option: --sead",
        ("ladder", "--seeds", 0): "Invalid value for '--seeds'",
        ("pretrain",): "Missing option '--out'",
    }
    for words, message in cases.items():
        status, output = run(*words)
        assert status == 2, words
        *_, last = output.strip().splitlines()
        assert last.startswith(f"Error: {message}"), output
        assert "--help' for help" in output


@pytest.mark.parametrize(
    ("words", "known"),
    [
        (("train", "stegoo"), "kmeans, stego, hp"),
        (("train", "stego", "--preset", "nope"), "smoke, scenes"),
        (("train", "stego", "-s", "shifft=1"), "did you mean 'shift"),
        (("train", "stego", "--device", "cudo"), "'auto', 'cpu', 'cuda'"),
        (("course", "99"), "00_start_here, 01_datasets"),
        (("notebooks", "99"), "00_start_here, 01_datasets"),
        (("data", "check", "nope"), "scenes, scenes-aerial, camvid"),
        (("data", "download", "nope"), "scenes, scenes-aerial, camvid"),
        (("data", "prepare", "nope"), "scenes, scenes-aerial, camvid"),
        (("data", "prepare", "scenes", "--split", "nope"), "train, val, pretrain"),
        (("pretrain", "--out", "a", "--dataset", "nope"), "scenes, scenes-aerial"),
    ],
)
def test_unknown_names_list_the_known_in_one_line(run, words, known):
    status, output = run(*words)
    assert str(status).startswith("error: ") and known in status
    assert "\n" not in status and output == ""


# ------------------------------------------------------------- train and evaluate


def test_train_and_evaluate(run, tmp_path):
    out = tmp_path / "out"
    small = ("-s", "n_train=6", "-s", "n_val=4", "--steps", "20", "--out", out)
    status, output = run("train", "kmeans", "--preset", "smoke", *small)
    assert status == 0 and "| k-means |" in output and "Protocol:" in output
    (record,) = read_records(out / "records")
    assert record["images"] == 4 and record["overrides"]["n_train"] == 6
    model = out / "models" / "kmeans-seed0.safetensors"
    status, output = run("evaluate", model, "--out", tmp_path / "again")
    assert status == 0
    (again,) = read_records(tmp_path / "again")
    assert again["headline"] == record["headline"]
    status, _ = run(
        *("evaluate", model, "--out", tmp_path / "eval", "--fit-map-on", "eval"),
        "--no-flip",
    )
    (other,) = read_records(tmp_path / "eval")
    assert "single pass" in other["protocol"]["line"]
    assert other["headline"]["cluster_miou"] == other["cluster"]["eval"]["miou"]


def test_evaluate_trains_a_linear_classifier(run, tmp_path):
    out = tmp_path / "out"
    small = ("-s", "n_train=20", "-s", "n_val=4", "--steps", "5", "--out", out)
    run("train", "kmeans", "--preset", "smoke", *small)
    model = out / "models" / "kmeans-seed0.safetensors"
    words = ("--out", tmp_path / "again", "--classifier-epochs")
    status, output = run("evaluate", model, *words, 3)
    assert status == 0
    (record,) = read_records(tmp_path / "again")
    found = record["classifier"]
    assert f"linear classifier: mIoU {found['miou']:.1f}" in output
    assert found["recipe"]["epochs"] == 3 and not found["crf"]
    assert found["acc"] > 100 / len(found["iou"]), "no better than chance"


def test_train_refuses_what_it_does_not_know(run, tmp_path):
    status, _ = run("train", "stegoo")
    assert status.startswith("error: unknown method 'stegoo'") and "stego" in status
    status, _ = run("train", "kmeans", "-s", "dimension=3")
    assert status.startswith("error: unknown setting 'dimension'")
    status, _ = run("evaluate", tmp_path / "none.safetensors")
    assert status.startswith("error: ") and "none.safetensors" in status


def test_hierarchy_of_a_folder_of_pictures(run, tmp_path):
    pictures, out = tmp_path / "pictures", tmp_path / "out"
    pictures.mkdir()
    rng = np.random.default_rng(0)
    for name, size in {"tall.png": (90, 60), "wide.jpg": (50, 110)}.items():
        blocks = rng.integers(0, 256, (size[0] // 10, size[1] // 10, 3), np.uint8)
        Image.fromarray(blocks.repeat(10, 0).repeat(10, 1)).save(pictures / name)
    (pictures / "broken.png").write_bytes(b"no picture")
    small = ("-s", "n_train=8", "-s", "n_val=4", "--steps", 2, "-s", "stages=1")
    status, _ = run("train", "hsg", "--preset", "smoke", *small, "--out", tmp_path)
    assert status == 0
    (record,) = read_records(tmp_path / "records")
    assert "labels" in record["segments"]["note"]
    model = tmp_path / "models" / "hsg-seed0.safetensors"
    status, output = run("hierarchy", model, pictures, "--out", out)
    assert status == 0 and "2 pictures" in output and "broken.png" in output
    found = Hierarchy.load(out / "tall")
    assert found.size == (90, 60) and len(found) == 3
    with Image.open(out / "wide" / "overview.png") as overview:
        assert overview.size == (4 * 110, 50)
    status, _ = run("hierarchy", model, pictures / "broken.png", "--out", out)
    assert str(status).startswith("error: ") and "broken.png" in status
    status, _ = run("hierarchy", model, tmp_path / "none", "--out", out)
    assert str(status).startswith("error: ")
