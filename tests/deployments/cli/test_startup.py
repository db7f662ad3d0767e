"""The command line answers at once, and suggests the nearest of what it knows in place of a name that it does not."""

import json
import os
import resource
import subprocess
import sys
from contextlib import nullcontext, suppress
from pathlib import Path

import pytest

from deployments.cli.commands import main
from flows.daily import daily_train
from flows.run_config import STUDY_SECTIONS, RunConfig
from flows.study import contamination_study
from model.parsing import field_types
from tests.tasks.store.test_ledger import ROW

ROOT = Path(__file__).resolve().parents[3]
HEAVY = {
    *("prefect", "datasets", "pyarrow", "matplotlib", "pandas", "numba", "torch", "scipy", "lm_eval", "tokenizers"),
    *("boto3", "transformers", "huggingface_hub", "httpx", "httpx2", "apprise", "uvicorn", "fastapi", "pydantic"),
}
LIMIT = 1.0
"""CPU seconds of both processes of a command that starts nothing; 0.2 on a machine that has nothing else to do."""


def program(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    "code",
    [
        "from deployments.cli import commands; commands.command_parser().format_help()",
        "from deployments.cli import commands; commands.main(['run', '--set', 'train.lerning_rate=1'])",
        "from flows.run_config import compose; compose('smoke', {'train': {'seed': 7}})",
        "import deployments.cli.chat, deployments.temporary_server",
        "import tasks.store.ledger, eval.reporting.ledger",
    ],
)
def test_what_parses_checks_and_reads_the_ledger_imports_no_large_library(code: str):
    done = program(f"import sys\n{code}\nsys.exit(' '.join({HEAVY!r} & set(sys.modules)) or None)")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("arguments", [("--help",), ("run", "--help"), ("evaluate", "x", "--suites", "arc_esay")])
def test_help_and_mistakes_take_little(arguments: tuple[str, ...]):
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, "-m", "deployments.cli.commands", *arguments]
    subprocess.run(command, cwd=ROOT, capture_output=True, check=False, env={**os.environ, "PYTHONPATH": str(ROOT)})
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < LIMIT


def test_without_a_command_it_says_what_to_do_first(capsys: pytest.CaptureFixture):
    assert main([]) == 2
    told = capsys.readouterr().err
    assert "daily-train run --preset smoke" in told and "daily-train up" in told and len(told.splitlines()) == 4


@pytest.mark.parametrize(
    ("arguments", "nearest"),
    [
        ("rnu", "run"),
        ("run --workrs 2", "--workers"),
        ("leaderboard --stroe x", "--store"),
        ("run --preset smok", "smoke"),
        ("study --preset Studdy", "study"),
        ("run --set trian.seed=1", "train"),
        ("run --set train.lerning_rate=1", "learning_rate"),
        ("run --set train.depth=1", "model.depth"),
        ("run --set lerning_rate=1", "train.learning_rate"),
        ("run --set train.optimizer=moun", "muon"),
        ("run --set data.source.kind=file", "files"),
        ("run --set data.source.kind=files --set data.source.pth=x", "path"),
        ('run --set evaluation.suites=["hellaswga"]', "hellaswag"),
        ("run --tracker wandbb", "wandb"),
        ("study --set trian.seed=1", "train"),
        ("study --suite arc_esay", "arc_easy"),
        ("evaluate x --suites arc_easy winogrand", "winogrande"),
        ("evaluate x --precision bf61", "bf16"),
        ("evaluate x --num-fewshot arc_esay=3", "arc_easy"),
        ("explain hellaswga:1", "hellaswag"),
        ("explain arc_easy:1 --run LATEST --store {store}", "latest"),
        ("export lastest {store}/new --store {store}", "latest"),
        ("export abcdef012346 {store}/new --store {store}", "abcdef012345"),
        ("chat --run smoke --store {store}", "abcdef012345"),
        ("leaderboard --store {store}/../stroe", "{store}"),
        ("leaderboard --store {store}/..", "{store}"),
        ("leaderboard --store {store}/ledger", "{store}"),
    ],
)
def test_the_nearest_name_is_suggested(arguments: str, nearest: str, tmp_path: Path, capsys: pytest.CaptureFixture):
    store = tmp_path.resolve() / "store"
    (store / "ledger").mkdir(parents=True)
    run = "abcdef012345" + 52 * "0"
    (store / "ledger" / f"{run}.json").write_text(json.dumps(ROW | {"run": run}))
    with suppress(SystemExit):  # of argparse
        assert main(arguments.format(store=store).split()) == 1
    told = capsys.readouterr().err
    assert f"(did you mean '{nearest.format(store=store)}'" in told, told


@pytest.mark.parametrize("arguments", ["zzzzzz", "run --preset zzzz", "run --set zz.zz=1", "explain zzzz:1"])
def test_nothing_is_suggested_where_nothing_is_near(arguments: str, capsys: pytest.CaptureFixture):
    with pytest.raises(SystemExit) if arguments == "zzzzzz" else nullcontext():
        assert main(arguments.split()) == 1
    assert "did you mean" not in capsys.readouterr().err


def test_the_sections_of_a_study_and_of_a_run_are_those_of_their_flows():
    assert set(STUDY_SECTIONS) == field_types(RunConfig).keys() & contamination_study.parameters.properties.keys()
    assert field_types(RunConfig).keys() <= daily_train.parameters.properties.keys()
