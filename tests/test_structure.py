"""How the package hangs together: arrows point one way, imports do nothing."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import uss_utils

ROOT = Path(uss_utils.__file__).parent
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts): path
    for path in ROOT.glob("**/*.py")
}
# What draws, listens or teaches; notebooks bring it in, programs never do.
FIGURES = {"charts", "colours", "diagrams", "distributions", "figures", "plots"}
FIGURES |= {"groups_shown", "hierarchy_shown", "masks_shown", "objects_shown"}
FIGURES |= {"comparison_shown", "proxies", "regions_shown", "scaling_shown"}
FIGURES |= {"segments_shown"}
NOTEBOOKS_ONLY = FIGURES | {"naming_widget", "teaching", "widgets"}


def imported(path: Path) -> set[str]:
    """Modules of the package that a file imports, wherever the statement stands."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        parts = [name.split(".")[1:] for name in names if name.startswith("uss_utils.")]
        found |= {".".join(p[:n]) for p in parts for n in range(1, len(p) + 1)}
    return found & MODULES.keys() | {name for name in found if name == "methods"}


def test_the_reader_of_imports_finds_them():
    assert {"segmenter", "heads", "presets"} <= imported(MODULES["methods.kmeans"])
    assert "methods.kmeans" in imported(MODULES["__main__"])


def test_shared_rooms_know_no_method():
    for name in MODULES:
        commands = ("__main__", "cost_commands", "segment_commands", "paper_recipes")
        if not name.startswith(("methods.", *commands)):
            assert not {n for n in imported(MODULES[name]) if "methods" in n}, name


def test_methods_do_not_know_each_other():
    methods = {n for n in MODULES if n.startswith("methods.")}
    for name in methods:
        # A method's private modules begin with its own name.
        own = f"methods._{name.partition('.')[2].strip('_').split('_')[0]}_"
        others = {n for n in methods - {name} if not n.startswith(own)}
        assert not imported(MODULES[name]) & others, name


def test_programs_neither_draw_nor_teach():
    for name in MODULES.keys() - NOTEBOOKS_ONLY:
        assert not imported(MODULES[name]) & NOTEBOOKS_ONLY, name


IMPORT_ALL = """
import importlib, os, random, socket, sys
import numpy, torch

def refused(*args, **options):
    raise AssertionError("an import opened a connection")

socket.socket.connect = refused
random.seed(1), numpy.random.seed(1), torch.manual_seed(1)
for name in sys.argv[1:]:
    importlib.import_module(name)
drawn = random.random(), numpy.random.rand(), torch.rand(1).item()
random.seed(1), numpy.random.seed(1), torch.manual_seed(1)
assert drawn == (random.random(), numpy.random.rand(), torch.rand(1).item())
assert not torch.cuda.is_initialized()
assert os.listdir() == [], os.listdir()
"""


def test_imports_do_no_work(tmp_path):
    """No draw, no seed, no device, no download, no file, nothing printed."""
    names = ["uss_utils." + name.removesuffix(".__init__") for name in MODULES]
    names = [name for name in names if not name.endswith(("__main__", "__init__"))]
    done = subprocess.run(
        [sys.executable, "-c", IMPORT_ALL, *names],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""


# What can run code that a file holds; the CRF's processes pickle over their own pipes.
UNPICKLERS = {"cloudpickle", "dill", "joblib", "jsonpickle", "marshal", "pickle"}
UNPICKLERS |= {"_pickle", "shelve", "yaml"}
PIPES = {"crf", "_crf_worker"}
# Readers that unpickle unless they are told not to.
TOLD = {"torch": ("weights_only", True), "np": ("allow_pickle", False)}
TOLD["numpy"] = TOLD["np"]


def unpickling(tree: ast.AST) -> set[str]:
    """Statements of a module that could run code from a file."""
    found = set()
    for node in ast.walk(tree):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level:
            # A bare "load" would hide whose it is.
            hidden = node.module in TOLD and "load" in {a.name for a in node.names}
            names = ["pickle"] if hidden else [node.module]
        elif isinstance(node, ast.Attribute) and node.attr in ("read_pickle", "hub"):
            found.add(ast.unparse(node))
        elif isinstance(node, ast.Call):
            owner, _, name = ast.unparse(node.func).rpartition(".")
            told = {k.arg: getattr(k.value, "value", None) for k in node.keywords}
            option, value = TOLD.get(owner, ("", None))
            if name == "load" and option and told.get(option) is not value:
                found.add(ast.unparse(node))
            if told.get("allow_pickle"):
                found.add(ast.unparse(node))
        found |= {n for n in names if n.split(".")[0] in UNPICKLERS}
    return found


def test_nothing_unpickles():
    for name, path in MODULES.items():
        found = unpickling(ast.parse(path.read_text(encoding="utf-8")))
        assert found <= ({"pickle"} if name in PIPES else set()), name


def test_the_search_for_unpicklers_finds_them():
    for line in (
        "import dill",
        "import a, joblib as b",
        "from yaml import load",
        "from torch import load",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "np.load(path, mmap_mode='r')",
        "np.load(path, allow_pickle=True)",
        "np.lib.format.read_array(file, allow_pickle=True)",
        "pd.read_pickle(path)",
    ):
        assert unpickling(ast.parse(line)), line
    assert not unpickling(ast.parse("torch.load(path, weights_only=True)"))


def test_the_map_of_the_package_names_every_module():
    named = set(re.findall(r"\w+", uss_utils.__doc__))
    for name in MODULES:
        folder, _, short = name.rpartition(".")
        one_of_many = folder in ("exercises", "methods")
        behind_scenes = folder == "datasets" and short.startswith("_")
        if not (one_of_many or behind_scenes or short.startswith("__")):
            assert short in named, f"{name} is missing in uss_utils/__init__.py"
