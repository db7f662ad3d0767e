"""What would fail after training is found before it."""

import json
import locale
import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pyarrow as pa
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from eval.scoring.harness import HarnessError
from eval.scoring.rehearsal import RehearsalConfig, rehearse
from eval.suites.items import write_rows
from eval.suites.suites import SUITES, SuiteError
from flows.run_config import compose, require_encodable
from model.parsing import ConfigError
from tasks import benchmarks
from tasks.benchmarks import find_items
from tasks.config import EvaluationConfig
from tasks.feasibility import FeasibilityError, require_space
from tasks.preflight import rehearse_evaluation, require_machine, require_ready
from tasks.runtime.child_process import ProcessError
from tasks.runtime.tracking import Tracker, check_tracker
from tasks.store import provenance
from tasks.store.context import Execution, RunContext, open_context
from tasks.store.stage import Stage, build_or_skip

NASTY = "e 😀#x: \"q'%20{y}\n[z]*::$HOME \udcff"
"""No JSON or YAML without quotes, a pattern and a chain of `datasets`, and no UTF-8."""
LONG = 70
"""The item whose second answer is long."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """winogrande-validation.parquet, with one long answer, and a byte-level tokenizer."""
    made = tmp_path_factory.mktemp("preflight") / NASTY
    made.mkdir()
    rows = [
        {"sentence": f"the {n} runs if _ sees it.", "option1": "cat", "option2": "dog", "answer": str(1 + n % 2)}
        for n in range(SUITES["winogrande"].rows)
    ]
    rows[LONG]["sentence"] += " and" * 20
    table = pa.Table.from_pylist(rows, schema=SUITES["winogrande"].schema)
    write_rows(table, made.parent / "plain.parquet")
    for name in ("winogrande-validation.parquet", "winogrande.parquet"):
        os.link(made.parent / "plain.parquet", made / name)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<|endoftext|>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator([" and the cat runs"] * 9, trainer)
    (made / "tokenizer.json").write_text(tokenizer.to_str())
    return made


def test_any_path_is_evaluated_and_the_longest_answer_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    config = RehearsalConfig(
        benchmarks=folder,
        suites=("winogrande",),
        items_per_suite=None,
        seed=0,
        out=folder / "out",
        tokenizer=folder / "tokenizer.json",
        sequence_length=200,
    )
    assert rehearse(config) == {"cut": {"winogrande": [0, 1267]}}
    scores = json.loads((folder / "out" / "scores.json").read_text())["scores"]
    assert [score["n"] for score in scores] == [1267]
    (folder / "taken").touch()
    with pytest.raises(HarnessError, match="taken: scores cannot be written there"):
        rehearse(replace(config, out=folder / "taken"))
    full, nowhere = (partial(os.symlink, target) for target in ("/dev/full", "none"))
    ways: tuple[Callable[[Path], None], ...] = (os.mkdir, os.mkfifo, full, nowhere)
    for number, make in enumerate(ways):
        scores = folder / f"scores {number}" / "scores.json"
        scores.parent.mkdir()
        make(scores)
        with pytest.raises(HarnessError, match=r"scores\.json: scores cannot be written there"):
            rehearse(replace(config, out=scores.parent))
    with pytest.raises(HarnessError, match=rf"winogrande, item {LONG}, has \d\d tokens: .* sequence_length 9"):
        rehearse(replace(config, sequence_length=9))


def test_a_model_that_cannot_hold_an_answer_is_refused_before_it_is_trained(folder: Path, tmp_path: Path):
    benchmarks_dir = tmp_path / "benchmarks"
    benchmarks_dir.symlink_to(folder)
    context = open_context(str(tmp_path / "store"), None, 1, "cpu", str(benchmarks_dir), 0.0)
    run = compose("smoke", {})
    config = EvaluationConfig(suites=("winogrande",), seed=0)
    items = find_items(config.suites, context, config.num_fewshot)
    stage = Stage(name="tokenizer", version=1, config={}, inputs={})

    def copy_tokenizer(work: Path, out: Path) -> None:
        shutil.copy(folder / "tokenizer.json", out)

    tokenizer = build_or_skip(
        stage,
        context,
        copy_tokenizer,
    )

    def ask(length: int, context: RunContext = context) -> None:
        training = replace(run.model, sequence_length=length), run.train
        rehearse_evaluation.fn(config, [training], tokenizer, items, context)

    ask(256)  # far from it: no process is started
    assert not list(context.cache.glob("plans/*"))
    with pytest.raises(ProcessError, match=f"winogrande, item {LONG}, has .* sequence_length 16 must hold it"):
        ask(16)


def test_a_machine_that_could_not_write_what_follows_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    context = open_context(str(tmp_path / "store"), None, 1, "cpu", None, 0.0)
    require_machine(context)
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"cache: a run cannot write there: Not a directory; set execution.cache"):
        require_machine(replace(context, cache=tmp_path / "file" / "cache"))
    monkeypatch.setattr(locale, "getpreferredencoding", lambda _: "ANSI_X3.4-1968")
    with pytest.raises(ConfigError, match=r"text as ANSI_X3.4-1968 here; set PYTHONUTF8=1"):
        require_machine(context)


def test_a_folder_that_somebody_else_laid_out_for_torch_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    context = open_context(str(tmp_path / "store"), None, 1, "cpu", None, 0.0)
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr("getpass.getuser", lambda: "DOMAIN\\me")
    folder = tmp_path / "torchinductor_DOMAIN_me"
    monkeypatch.setattr(provenance, "hardware", lambda: {"gpus": ["H100"]})
    require_machine(context)
    assert folder.stat().st_mode & 0o777 == 0o700, "taken before others can"
    folder.chmod(0o777)
    require_machine(context)
    assert not folder.stat().st_mode & 0o022
    folder.rmdir()
    folder.symlink_to(tmp_path)
    with pytest.raises(ConfigError, match="is another user's or a link, and torch would run the code it finds there"):
        require_machine(context)
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    require_machine(context)


def test_a_disk_that_cannot_hold_the_checkpoints_is_refused_at_the_first_event(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=3 * 10**9))
    require_space(tmp_path, 15 * 10**8)
    with pytest.raises(FeasibilityError, match=r"3\.0 GB are free, but a training keeps two checkpoints of 2\.0 GB"):
        require_space(tmp_path, 2 * 10**9)


def test_more_examples_than_there_are_and_a_tracker_nobody_is_logged_in_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    with pytest.raises(ConfigError, match=r"num_fewshot.arc_easy is 2252, but its train split has 2251 examples"):
        compose("smoke", {"evaluation": {"num_fewshot": {"arc_easy": 2252}}})
    monkeypatch.setitem(sys.modules, "wandb", ModuleType("wandb"))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:1")
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    with pytest.raises(ConfigError, match=r"nobody is logged in at 127.0.0.1; set WANDB_API_KEY"):
        check_tracker(Tracker.WANDB)
    monkeypatch.setenv("WANDB_API_KEY", "k")
    with pytest.raises(ConfigError, match=r"127.0.0.1 does not answer .* set WANDB_MODE=offline"):
        check_tracker(Tracker.WANDB)
    monkeypatch.setenv("WANDB_MODE", "offline")
    check_tracker(Tracker.WANDB)


def test_a_run_with_nothing_to_score_is_refused_and_a_busy_hub_is_asked_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    context = open_context(str(tmp_path / "store"), None, 1, "cpu", None, 0.0)

    def answering(cause: Exception | None) -> None:
        def from_hub(*_: object) -> None:
            raise SuiteError("no answer") from cause

        monkeypatch.setattr(benchmarks, "from_hub", from_hub)

    answering(None)
    with pytest.raises(SuiteError, match=r"nothing to score: no answer\. Remedy: put truthfulqa-mc-validation"):
        find_items(("truthfulqa",), context, compose("smoke", {}).evaluation.num_fewshot)
    answering(ConnectionError("reset"))
    with pytest.raises(SuiteError, match=r"\Ano answer\Z"):  # not taken for missing, so that Prefect retries
        find_items(("truthfulqa",), context, compose("smoke", {}).evaluation.num_fewshot)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"train": {"tokens": 2047}}, "train.tokens 2047 is less than one step, train.tokens_per_step 2048"),
        ({"train": {"flops": 1e6}}, "budget of 1000000.0 flops is less than one step"),
        (
            {"train": {"tokens_per_step": 2049}},
            "tokens_per_step 2049 must be a multiple of train.micro_batch_sequences 8",
        ),
        ({"train": {"sample_tokens": 10**9}}, "train.sample_tokens is 1000000000, expected at most 10,000"),
        ({"model": {"vocab_size": 1000}}, "model.vocab_size is 1000, but that of the tokenizer is 1024"),
        ({"model": {"eot_token": 5}}, "model.eot_token is 5, but that of the tokenizer is 0"),
        ({"model": {"eot_token": 5}, "tokenizer": {"kind": "gpt2"}}, "is 5, but that of the tokenizer is 50256"),
    ],
)
def test_a_training_that_contradicts_itself_or_its_tokenizer_is_refused(
    changes: dict, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def child(*_: object, **__: object) -> None:
        raise ProcessError("the budget of 1000000.0 flops is less than one step of 2.8e+09")

    monkeypatch.setattr("tasks.feasibility.run_module", child)
    run = compose("smoke", changes)
    context = open_context(str(tmp_path / "store"), None, 1, "cpu", None, 0.0)
    with pytest.raises((ConfigError, ProcessError), match=said):
        require_ready([(run.model, run.train)], run.tokenizer, None, context)


def test_a_text_that_is_no_utf8_is_refused_before_a_server_is_started():
    with pytest.raises(ConfigError, match=r"execution.store is '/tmp/\\udcff', which is not valid UTF-8"):
        require_encodable(execution=Execution(store="/tmp/\udcff"))
