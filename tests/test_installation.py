import importlib.metadata
import subprocess
import sys

import pytest

from uss_utils import installation
from uss_utils.installation import check_environment
from uss_utils.paths import repo_root


def line_about(name):
    (line,) = [line for line in check_environment() if f" {name}" in line]
    return line


def forget(monkeypatch, missing):
    """Let Python believe that modules cannot be imported."""
    found = importlib.import_module

    def import_module(name):
        if name in missing:
            raise ImportError(f"No module named {name!r}")
        return found(name)

    monkeypatch.setattr(installation.importlib, "import_module", import_module)


def test_this_environment_is_complete():
    *lines, verdict = check_environment()
    assert verdict == "all that is needed is here"
    assert all(line.startswith(("[OK]   ", "[--]   ")) for line in lines)
    for name in ("python 3.", "torch 2.", "timm 1.", "jupyterlab ", "weights"):
        assert any(line.startswith(f"[OK]   {name}") for line in lines)
    assert not any("pytest" in line for line in lines)  # only what learners need


def test_versions_of_this_machine_hold_no_path():
    assert sys.executable not in "\n".join(check_environment())


def test_a_missing_package_names_the_command(monkeypatch):
    installed = importlib.metadata.version

    def version(name):
        if name == "timm":
            raise importlib.metadata.PackageNotFoundError(name)
        return installed(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    line = line_about("timm")
    assert line.startswith("[FAIL] timm is missing, run: ")
    assert sys.executable in line and "pip install 'timm<" in line
    assert check_environment()[-1] == "1 thing to mend before you go on"


def test_a_wrong_version_names_both(monkeypatch):
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "0.1")
    line = line_about("torchvision")
    assert line.startswith("[FAIL] torchvision is 0.1, needed is ==0.26.*, run: ")
    assert check_environment()[-1].endswith("things to mend before you go on")


def test_a_build_for_cpu_is_no_other_version(monkeypatch):
    monkeypatch.setattr(importlib.metadata, "requires", lambda name: ["torch==2.11.*"])
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "2.11.3+cpu")
    assert "[OK]   torch 2.11.3+cpu" in check_environment()


def test_an_old_python(monkeypatch):
    monkeypatch.setattr(installation.platform, "python_version", lambda: "3.8.1")
    line = line_about("python is")
    assert line.startswith("[FAIL] python is 3.8.1, needed is >=3.10, run: ")


def test_the_course_itself_is_not_installed(monkeypatch):
    def requires(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "requires", requires)
    first, verdict = check_environment()
    assert first.startswith("[FAIL] the course's package is not installed, run: ")
    assert first.endswith(f"-m pip install -e {repo_root()}") and verdict.startswith(
        "1 thing"
    )


def test_packaging_itself_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "packaging.requirements", None)
    assert check_environment()[0].startswith("[FAIL] packaging is missing, run: ")


def test_without_weights(monkeypatch, tmp_path):
    monkeypatch.setattr(installation, "weights_dir", lambda: tmp_path)
    line = line_about(f"data/{installation.WEIGHTS}")
    assert line.startswith("[FAIL] data/vit_tiny_scenes.safetensors is missing, run: ")


def test_without_crf_says_what_is_lost(monkeypatch):
    forget(monkeypatch, ["pydensecrf.densecrf"])
    line = line_about("pydensecrf2")
    assert line.startswith("[--]   no pydensecrf2: results come without CRF")
    assert line.endswith(f"-m pip install -e {repo_root()}[crf]")
    assert check_environment()[-1] == "all that is needed is here"


@pytest.mark.parametrize(("cuda", "start"), [(True, "[OK]   a"), (False, "[--]   no")])
def test_gpu_is_optional(monkeypatch, cuda, start):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert line_about("GPU").startswith(start)
    assert check_environment()[-1] == "all that is needed is here"


def test_a_torch_that_cannot_be_imported(monkeypatch):
    forget(monkeypatch, ["torch"])
    assert line_about("torch cannot").startswith("[FAIL] torch cannot be imported (No")


def test_speaks_where_nothing_else_can_be_imported():
    code = (
        "import sys\n"
        "for name in ('torch', 'numpy', 'timm', 'IPython'): sys.modules[name] = None\n"
        "from uss_utils.installation import check_environment\n"
        "print(*check_environment(), sep='\\n')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=repo_root()
    )
    assert "[FAIL] torch cannot be imported" in done.stdout, done.stderr
