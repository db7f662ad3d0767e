"""Who may import whom, and that model/ runs on a bare machine."""

import ast
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
OURS = ("flows", "tasks", "model", "eval", "deployments")
MAY_IMPORT = {
    "model": {"model"},
    "eval": {"eval", "model"},
    "tasks": {"tasks", "eval", "model"},
    "flows": {"flows", "tasks", "eval", "model"},
    "deployments": set(OURS),
}
ROOMS = {
    "model/network": {"model", "model/network"},
    "model/kernels": {"model", "model/network", "model/kernels"},
    "model/data": {"model", "model/network", "model/data"},
    "model/machine": {"model", "model/machine"},
    "model/optimizers": {"model", "model/network", "model/machine", "model/training", "model/optimizers"},
    "tasks/sources": {"tasks", "tasks/store", "tasks/runtime", "tasks/sources"},
    "eval/suites": {"eval", "eval/suites"},
    "eval/scoring": {"eval", "eval/suites", "eval/scoring", "eval/reporting"},
}
"""Which rooms of its own package a room may import, where that is fewer than all."""
LONG = {"_scan"}
"""The compiled inner loop of eval/contamination/ngram_scan.py: 2 to 3 % slower when it was cut in parts."""
FILES = [path.relative_to(ROOT) for package in OURS for path in sorted((ROOT / package).rglob("*.py"))]


def imported(path: Path) -> set[str]:
    """Top-level names of everything a file imports, wherever in the file."""
    names: set[str] = set()
    for node in ast.walk(ast.parse((ROOT / path).read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module.split(".")[0])
    return names


@pytest.mark.parametrize("path", FILES, ids=str)
def test_imports_keep_to_the_rules(path: Path):
    package, names = path.parts[0], imported(path)
    assert names & set(OURS) <= MAY_IMPORT[package]
    if package not in ("flows", "tasks", "deployments"):
        assert "prefect" not in names
    if path not in (Path("tasks/store/s3.py"), Path("tasks/store/s3_errors.py")):
        assert not names & {"boto3", "botocore"}
    if path != Path("eval/scoring/harness.py"):
        assert "lm_eval" not in names
    if package == "model":
        assert names <= {"model", "torch", "numpy", "safetensors"} | set(sys.stdlib_module_names)
    if package in ("flows", "tasks"):
        assert "torch" not in names  # the UI's process starts fast and never holds a GPU


@pytest.mark.parametrize("path", [path for path in FILES if path.parent.as_posix() in ROOMS], ids=str)
def test_rooms_keep_to_the_rules(path: Path):
    """A room of `ROOMS` imports no other of its package."""
    for node in ast.walk(ast.parse((ROOT / path).read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == path.parts[0]:
            module = Path(*node.module.split("."))
            room = module if (ROOT / module).is_dir() else module.parent
            assert room.as_posix() in ROOMS[path.parent.as_posix()], f"{path} imports {node.module}"


def test_files_are_short_and_named_after_what_is_in_them():
    for path in FILES:
        assert path.stem not in {"utils", "helpers", "common", "misc"} | (set(sys.stdlib_module_names) - {"__init__"})
    everything = [path for top in (*OURS, "benchmarks", "tests") for path in (ROOT / top).rglob("*.py")]
    for path in everything:
        assert sum(1 for _ in path.open()) <= 500, path
    modules = Counter(path.parent for path in everything if path.stem != "__init__")
    assert [folder for folder, count in modules.items() if count > 16] == []


def test_every_package_says_what_is_in_it():
    for path in FILES:
        if path.stem == "__init__":
            assert ast.get_docstring(ast.parse((ROOT / path).read_text())), path


def test_functions_fit_on_a_screen():
    for path in FILES:
        for node in ast.walk(ast.parse((ROOT / path).read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name not in LONG:
                assert node.end_lineno - node.lineno < 60, f"{path}: {node.name}"


def test_model_and_its_gpu_benchmark_import_with_torch_numpy_and_safetensors_alone():
    """Every other installed package is hidden from the import."""
    program = """
import sys

class OnlyThese:
    allowed = {"model", "benchmarks", "eval", "flows", "torch", "torchgen", "functorch", "numpy", "safetensors",
               "typing_extensions", "sympy", "mpmath", "filelock", "fsspec", "jinja2", "markupsafe", "networkx",
               "setuptools"}  # torch's own needs

    def find_spec(self, name, path=None, target=None):
        top = name.split(".")[0]
        if top not in self.allowed and top not in sys.stdlib_module_names and not top.startswith("_"):
            raise ModuleNotFoundError(f"{name} is not on a bare GPU machine", name=name)

sys.meta_path.insert(0, OnlyThese())
import model.train, model.network.generate, benchmarks.gpu.__main__, eval.scoring.trained_model
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_supervisor_beside_every_training_is_small():
    program = "import sys, tasks.runtime.supervise; sys.exit(bool({'prefect', 'torch', 'numpy'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=False).returncode == 0
