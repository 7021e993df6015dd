"""Whether everything the course needs is installed, told line by line.

Needs nothing but Python itself, so that it still speaks where all else is missing.
"""

import importlib
import importlib.metadata
import platform
import shlex
import sys

from uss_utils.paths import repo_root, weights_dir

PROJECT = "uss-utils"
WEIGHTS = "vit_tiny_scenes.safetensors"
COURSE = f"-e {shlex.quote(str(repo_root()))}"
LOST_WITHOUT_CRF = "results come without CRF sharpening, nothing else changes"
LOST_WITHOUT_GPU = "all default presets run on the CPU; long training wants one"


def check_environment() -> list[str]:
    """One line per needed package, then the optional parts, then the verdict.

    Which packages in which versions is read from the installed project itself. Lines
    start with ``[OK]``, with ``[FAIL]`` and then end with the command that helps, or
    with ``[--]``: an optional part that is absent, and what is lost.
    """
    try:
        wanted = importlib.metadata.requires(PROJECT) or []
        python = importlib.metadata.metadata(PROJECT)["Requires-Python"]
        from packaging.requirements import Requirement
    except importlib.metadata.PackageNotFoundError:
        line = f"[FAIL] the course's package is not installed, run: {_pip(COURSE)}"
        return [line, "1 thing to mend before you go on"]
    except ImportError:
        line = f"[FAIL] packaging is missing, run: {_pip('packaging')}"
        return [line, "1 thing to mend before you go on"]
    lines = [_python(Requirement(f"python{python or ''}"))]
    lines += [
        _package(requirement)
        for requirement in map(Requirement, wanted)
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""})
    ]
    lines += [_weights(), _crf(), _gpu()]
    failures = sum(line.startswith("[FAIL]") for line in lines)
    things = "thing" if failures == 1 else "things"
    return [
        *lines,
        f"{failures} {things} to mend before you go on"
        if failures
        else "all that is needed is here",
    ]


def _python(requirement) -> str:
    version = platform.python_version()
    if requirement.specifier.contains(version, prereleases=True):
        return f"[OK]   python {version}"
    return (
        f"[FAIL] python is {version}, needed is {requirement.specifier}, run: "
        "make clean VENV=1, then make lab PYTHON=<a newer python>"
    )


def _package(requirement) -> str:
    name, wanted = requirement.name, requirement.specifier
    help_ = f"run: {_pip(shlex.quote(f'{name}{wanted}'))}"
    try:
        version = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return f"[FAIL] {name} is missing, {help_}"
    if wanted.contains(version, prereleases=True):
        return f"[OK]   {name} {version}"
    return f"[FAIL] {name} is {version}, needed is {wanted}, {help_}"


def _weights() -> str:
    if (weights_dir() / WEIGHTS).is_file():
        return "[OK]   weights of the tiny ViT"
    return f"[FAIL] data/{WEIGHTS} is missing, run: git checkout -- data/{WEIGHTS}"


def _crf() -> str:
    try:
        importlib.import_module("pydensecrf.densecrf")
    except (ImportError, ValueError):  # ValueError: built for another numpy
        help_ = f"to have it (needs a C++ compiler) run: {_pip(COURSE + '[crf]')}"
        return f"[--]   no pydensecrf2: {LOST_WITHOUT_CRF}; {help_}"
    return "[OK]   pydensecrf2, optional: CRF sharpening"


def _gpu() -> str:
    try:
        torch = importlib.import_module("torch")
        found = torch.cuda.is_available() or torch.backends.mps.is_available()
    except (ImportError, OSError) as error:  # OSError: a library it links is missing
        return f"[FAIL] torch cannot be imported ({error}), run: {_pip(COURSE)}"
    if found:
        return "[OK]   a GPU, optional: faster training"
    return f"[--]   no GPU: {LOST_WITHOUT_GPU}"


def _pip(what: str) -> str:
    """The installing command of this very Python: another one would not help."""
    return f"{shlex.quote(sys.executable)} -m pip install {what}"
