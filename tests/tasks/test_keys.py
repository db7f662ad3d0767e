"""What is in the key of a training and of an evaluation, and what is not."""

import ast
import hashlib
import inspect
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import eval.suites.suites
from flows.run_config import compose
from tasks import budget, evaluate
from tasks.store import source_digest
from tasks.store.context import open_context
from tasks.store.source_digest import NOT_TRAINING, code_without_comments, model_source_digest
from tasks.store.stage import Stage
from tests.flows.test_settings import FINISHED, Made, stage_of

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = {path.parent.name for path in ROOT.glob("*/__init__.py")}

HARD = '''"""Of the module: # no comment

and a blank line."""
# -*- a comment: é ü -*-
from os import path  # é


class A:
    """Of the class."""

    field: int = 1
    """Of an attribute, with 'quotes' and a \\\\n."""

    def f(self, x: int = 5) -> str:  # why
        'on one line'
        text = """kept # whole

  with its blank line and the spaces after it   
"""  # after a text
        other = f"{x:#x} # {'#'} é {x!r:>{10}}"  # after é
        multi = f"""a {
            x
        } # kept

        b"""
        joined = ("a"  # first
                  # between
                  "b")
        return text + other + multi + joined + rb"\\x00#".hex()


x = {
    # in brackets

    "k": [1,  # one
          2],
}
"a text alone"; y = 2
'''


def files(package: Path) -> dict[str, Path]:
    return {path.relative_to(package).as_posix(): path for path in package.rglob("*.py")}


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A copy of model/ with a folder in it."""
    copy = tmp_path / "model"
    shutil.copytree(ROOT / "model", copy, ignore=shutil.ignore_patterns("__pycache__"))
    (copy / "kernels_of").mkdir()
    (copy / "kernels_of" / "deep.py").write_text("SCALE = 2.0\n")
    return copy


def edited(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def test_words_and_prices_are_in_no_key_and_code_is(package: Path):
    before = model_source_digest(package=package)
    for path in files(package).values():
        text = path.read_bytes()
        text = text.replace(b'"""', b'"""\nAnother sentence.\n\n', text.startswith(b'"""'))
        path.write_bytes(b"# A comment: \xc3\xa9.\n\n" + text + b"\n\n    # at the end\n")
    (package / "network" / "gpt.py").write_bytes((package / "network" / "gpt.py").read_bytes().replace(b"\n", b"\r\n"))
    edited(package / "machine" / "hardware.py", "3.00", "4.00")
    assert model_source_digest(package=package) == before
    digests = {model_source_digest(name, package=package) for name in ("machine/hardware.py", "planning/plan.py")}
    assert len(digests) == 2
    edited(package / "kernels_of" / "deep.py", "2.0", "3.0")
    assert model_source_digest(package=package) != before


def test_a_name_that_no_file_has_is_refused(package: Path):
    """A file that moves would otherwise leave the key, or come into it, without a word."""
    with pytest.raises(ValueError, match=r"no files \['budget\.py'\]"):
        model_source_digest("budget.py", package=package)
    (package / "machine" / "hardware.py").rename(package / "hardware.py")
    with pytest.raises(ValueError, match=r"no files \['machine/hardware\.py'\]"):
        model_source_digest(package=package)


def test_each_file_of_a_training_is_in_the_key(package: Path):
    seen = {model_source_digest(package=package)}
    for name, path in files(package).items():
        path.write_bytes(path.read_bytes() + b"ADDED = 1\n")
        digest = model_source_digest(package=package)
        assert (digest in seen) is (name in NOT_TRAINING), name
        seen.add(digest)


def imported(path: Path) -> set[Path]:
    """Files of the project that a file imports, wherever in it, by statement or by `import_module`."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: a relative import"
            assert node.module is not None
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.split(".")[0] in PACKAGES:
            names.add(node.value)  # of import_module
    return {file for name in names for file in (ROOT / f"{name.replace('.', '/')}.py",) if file.is_file()}


def test_all_that_a_training_imports_is_in_the_digest_or_on_the_list_of_exclusions(monkeypatch: pytest.MonkeyPatch):
    needed, waiting = set(), {ROOT / "model" / "train.py"}
    while waiting:
        needed |= waiting
        waiting = set().union(*map(imported, waiting)) - needed
    assert {path.name for path in needed} > {"gpt.py", "optimizer.py", "joint_graph.py"}
    digested: list[str] = []
    monkeypatch.setattr(source_digest, "sha256_json", lambda rows: digested.extend(name for name, _ in rows))
    model_source_digest()
    named = set(digested) | set(NOT_TRAINING)
    assert {path.relative_to(ROOT).as_posix() for path in needed} <= {f"model/{name}" for name in named}
    core = "network/attention network/choices network/config network/fp8 network/gpt network/head_loss network/mlp"
    core += (
        " network/experts network/sparse_attention kernels/attention_kernels data/loader data/packing data/shards train"
    )
    core += " optimizers/muon optimizers/optimizer optimizers/psgd optimizers/schedule training/config training/steps"
    core += " training/checkpoint training/trainer training/validation"
    assert {f"{name}.py" for name in core.split()} <= set(digested)
    assert not set(digested) & set(NOT_TRAINING) and named == files(ROOT / "model").keys()
    assert all(len(reason.split()) > 3 for reason in NOT_TRAINING.values())


def test_every_python_cuts_the_same_bytes():
    """A golden digest, which any Python that runs the tests must give, and the other ones that are installed."""
    cut = code_without_comments(HARD.encode())
    text = cut.decode()
    assert "whole\n\n  with its blank line and the spaces after it   \n" in text and 'rb"\\x00#"' in text
    assert not any(word in text for word in ("Of the", "why", "first", "between", "one line", "alone", "comment"))
    assert hashlib.sha256(cut).hexdigest() == "0a98eb7c360d368b4d5d4e32072db54904ebf85641a1b241e9c065e35fc5015b"
    program = (
        f"import ast, io, sys, tokenize\nfrom functools import cache\n{inspect.getsource(code_without_comments)}\n"
    )
    program += "sys.stdout.buffer.write(code_without_comments(sys.stdin.buffer.read()))"
    for minor in {11, 12, 13, 14} - {sys.version_info.minor}:
        python = shutil.which(f"python3.{minor}")
        if python is None or subprocess.run([python, "-c", ""], capture_output=True, check=False).returncode:
            continue
        for content in (HARD.encode(), (ROOT / "model" / "network" / "gpt.py").read_bytes()):
            done = subprocess.run([python, "-c", program], input=content, capture_output=True, check=True)
            assert done.stdout == code_without_comments(content), python


def test_what_is_cut_out_changes_no_program():
    """The syntax tree of what is left is that of the file without its docstrings."""
    for path in files(ROOT / "model").values():
        tree = ast.parse(path.read_text())
        for node in ast.walk(tree):
            if isinstance(body := getattr(node, "body", None), list):
                node.body = [
                    part
                    for part in body
                    if not (
                        isinstance(part, ast.Expr)
                        and isinstance(part.value, ast.Constant)
                        and isinstance(part.value.value, str)
                    )
                ]
        if all(getattr(node, "body", True) for node in ast.walk(tree)):  # a class may have had nothing else
            assert ast.dump(ast.parse(code_without_comments(path.read_bytes()))) == ast.dump(tree), path


def key_of(section: str, monkeypatch: pytest.MonkeyPatch, folder: Path) -> str:
    with monkeypatch.context() as changed:
        return stage_of(section, compose("smoke", {}), changed, folder).key


def test_the_versions_that_define_a_score_are_in_its_key(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    keys = [key_of("evaluation", monkeypatch, tmp_path)]
    with monkeypatch.context() as changed:
        changed.setattr(evaluate, "version", lambda name: {"lm_eval": "0.4.14"}[name])
        keys.append(key_of("evaluation", monkeypatch, tmp_path))
    with monkeypatch.context() as changed:
        changed.setitem(eval.suites.suites.METRIC_VERSIONS, "acc", 2)
        keys.append(key_of("evaluation", monkeypatch, tmp_path))
    assert len({*keys, key_of("evaluation", monkeypatch, tmp_path)}) == 3 and keys[0] not in keys[1:]


def test_the_source_is_in_the_key_of_a_training_and_prices_in_that_of_a_budget_in_dollars(monkeypatch, tmp_path):
    keys = [key_of("train", monkeypatch, tmp_path)]
    with monkeypatch.context() as changed:
        changed.setitem(NOT_TRAINING, "network/gpt.py", "a reason")
        keys.append(key_of("train", monkeypatch, tmp_path))
    assert keys[0] != keys[1]

    def made(stage: Stage, *_: object) -> None:
        raise Made(stage)

    def timed(**amount: float) -> str:
        run = compose("smoke", {"train": amount})
        with pytest.raises(Made) as caught:
            budget.budget_in_tokens(run.model, run.train, FINISHED, {}, 1, context)
        return caught.value.args[0].inputs["model_source"]

    monkeypatch.setattr(budget, "build_or_skip", made)
    context = open_context(str(tmp_path), None, 1, None, None, 1.0)
    assert timed(usd=1.0) == model_source_digest("planning/budget.py", "machine/hardware.py")
    assert timed(gpu_hours=1.0) == model_source_digest("planning/budget.py") != model_source_digest()
