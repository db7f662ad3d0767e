"""Scores follow from the samples, are the same in any process and batch, and bad inputs end in one sentence."""

import hashlib
import json
import math
import re
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from tokenizers import Tokenizer

from eval.command import run
from eval.scoring.harness import HarnessConfig, HarnessError, ScoringExecution, evaluate_checkpoint, load_model
from eval.scoring.precision import Precision
from eval.suites.items import chosen_items, write_rows
from eval.suites.suites import SUITES, Shots, SuiteError
from model.network.gpt import GPT, initialise
from model.parsing import ConfigError, parse
from model.training.checkpoint import load_final, publish_final
from tasks.runtime.child_process import run_module
from tests.eval.scoring.invented import NETWORK, QUICK, command_values


def _samples(directory: Path, suites: tuple[str, ...]) -> list[dict]:
    return [row for row in pq.read_table(directory / "samples.parquet").to_pylist() if row["suite"] in suites]


def test_scores_follow_from_the_samples(inputs, scored):
    report = json.loads((scored / "scores.json").read_text())
    samples = pq.read_table(scored / "samples.parquet").to_pylist()
    scores = {(row["task"], row["metric"]): row for row in report["scores"]}
    assert list(scores) == [
        ("arc_easy", "acc"),
        ("arc_easy", "acc_norm"),
        ("arc_challenge", "acc"),
        ("arc_challenge", "acc_norm"),
        ("hellaswag", "acc"),
        ("hellaswag", "acc_norm"),
        ("winogrande", "acc"),
        ("truthfulqa_mc1", "mc1"),
        ("truthfulqa_mc2", "mc2"),
    ]
    for (task, metric), row in scores.items():
        chosen = [sample for sample in samples if sample["task"] == task]
        assert row["value"] == pytest.approx(np.mean([sample[metric] for sample in chosen]))
        assert (row["n"], row["n_total"], row["subset"]) == (12, SUITES[row["suite"]].rows, True)
        bits = sum(-sample["gold_logprob"] for sample in chosen) / math.log(2)
        assert row["gold_bits_per_byte"] == pytest.approx(bits / sum(sample["gold_bytes"] for sample in chosen))
    assert scores["arc_easy", "acc"]["chance"] == 0.25 and scores["winogrande", "acc"]["chance"] == 0.5
    assert scores["truthfulqa_mc1", "mc1"]["chance"] == pytest.approx(1 / 3)
    many = [len(sample["gold"]) / 4 for sample in samples if sample["task"] == "truthfulqa_mc2"]
    assert scores["truthfulqa_mc2", "mc2"]["chance"] == pytest.approx(np.mean(many))
    # the few examples that TruthfulQA puts before every question are longer than this model's 200 tokens
    assert scores["truthfulqa_mc1", "mc1"]["truncated"] == 12 and scores["arc_easy", "acc"]["truncated"] == 0
    assert report["lm_eval"] == "0.4.13" and report["task_versions"]["truthfulqa_mc2"] == 3.0


def test_right_choices_score(inputs, scored):
    """Single-answer metrics agree with the gold we stored: lm-eval and we mean the same choice."""
    for sample in pq.read_table(scored / "samples.parquet").to_pylist():
        value = sample["acc"] if sample["acc"] is not None else sample["mc1"]
        if value is not None:
            assert value == float(int(np.argmax(sample["choice_logprobs"])) in sample["gold"])


def test_two_processes_give_the_scores_of_one(inputs, scored, tmp_path):
    events: list[dict] = []
    values = command_values(inputs, tmp_path) | {"suites": list(QUICK)}
    run_module("eval.scoring.harness", values, tmp_path, events.append, tmp_path / "lock", processes=2)
    assert events[-2]["done"] == events[-2]["total"] > 0
    assert [event["event"] for event in events].count("done") == 1 and events[-1]["tokens"] > 0
    one, two = (json.loads((path / "scores.json").read_text())["scores"] for path in (scored, tmp_path / "out"))
    assert [[score["task"], score["metric"], score["value"]] for score in one if score["suite"] in QUICK] == [
        [score["task"], score["metric"], pytest.approx(score["value"], abs=1e-6)] for score in two
    ]
    before, after = (_samples(path, QUICK) for path in (scored, tmp_path / "out"))
    assert len(before) == len(after) == 5 * 12
    for one, two in zip(before, after, strict=True):
        assert one["choice_logprobs"] == pytest.approx(two["choice_logprobs"], abs=1e-4)


def test_batches_do_not_change_scores(inputs, scored, tmp_path):
    other = replace(inputs, suites=QUICK, out=tmp_path, execution=replace(inputs.execution, batch_tokens=1))
    evaluate_checkpoint(other)
    before, after = (_samples(path, QUICK) for path in (scored, tmp_path))
    for one, two in zip(before, after, strict=True):
        assert one["choice_logprobs"] == pytest.approx(two["choice_logprobs"], abs=1e-4)


def test_tf32_is_fp32_where_there_is_none_and_says_so(inputs, scored, tmp_path):
    done = evaluate_checkpoint(replace(inputs, precision=Precision.TF32, suites=("winogrande",), out=tmp_path))
    assert (done["device"], done["computed_in"]) == ("cpu", "fp32")
    report, fp32 = (json.loads((path / "scores.json").read_text()) for path in (tmp_path, scored))
    assert report["precision"] == "tf32" and "precision" not in fp32
    assert report["scores"] == [score for score in fp32["scores"] if score["suite"] == "winogrande"]


def _command(inputs: HarnessConfig, directory: Path, **changes: object) -> subprocess.CompletedProcess:
    (directory / "config.json").write_text(json.dumps(command_values(inputs, directory) | changes))
    arguments = [sys.executable, "-m", "eval.scoring.harness", str(directory / "config.json")]
    return subprocess.run(arguments, capture_output=True, text=True, check=False)


def test_another_process_writes_the_same_bytes(inputs, tmp_path):
    evaluate_checkpoint(replace(inputs, suites=QUICK, out=tmp_path / "here"))
    done = _command(inputs, tmp_path, suites=list(QUICK))
    assert done.returncode == 0, done.stderr
    events = [json.loads(line) for line in done.stdout.splitlines()]
    assert events[-2]["done"] == events[-2]["total"] > 0 and events[-1]["event"] == "done"
    for name in ("samples.parquet", "scores.json"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "here" / name).read_bytes()


def test_errors_are_one_line(inputs, tmp_path, capsys):
    (tmp_path / "config.json").write_text(json.dumps(command_values(inputs, tmp_path) | {"batch": 3}))
    handler = signal.getsignal(signal.SIGTERM)
    try:
        assert run([str(tmp_path / "config.json")], HarnessConfig, evaluate_checkpoint) == 1
    finally:
        signal.signal(signal.SIGTERM, handler)
    error = capsys.readouterr().err
    assert "config.json: the configuration has the unknown key 'batch'; known are" in error and error.count("\n") == 1
    with pytest.raises(ConfigError, match=r"^c\.precision must be one of fp32, tf32, bf16, but it is 'fp64'$"):
        parse(
            HarnessConfig,
            {
                "checkpoint": "a",
                "tokenizer": "b",
                "benchmarks": "c",
                "suites": [],
                "seed": 0,
                "items_per_suite": None,
                "precision": "fp64",
                "out": "d",
            },
            "c",
        )


def test_what_cannot_be_scored_is_refused(inputs, tmp_path):
    with pytest.raises(HarnessError, match="at least one, found"):
        evaluate_checkpoint(replace(inputs, suites=()))
    with pytest.raises(SuiteError, match="unknown suite 'mmlu'"):
        evaluate_checkpoint(replace(inputs, suites=("mmlu",)))
    with pytest.raises(SuiteError, match=r"nowhere/arc_easy\.parquet"):
        evaluate_checkpoint(replace(inputs, benchmarks=tmp_path / "nowhere"))
    (tmp_path / "empty").mkdir()
    write_rows(pa.Table.from_pylist([], schema=SUITES["arc_easy"].schema), tmp_path / "empty" / "arc_easy.parquet")
    with pytest.raises(SuiteError, match=r"empty/arc_easy\.parquet: 0 rows found, 2376 expected for arc_easy"):
        evaluate_checkpoint(replace(inputs, benchmarks=tmp_path / "empty"))
    with pytest.raises(ConfigError, match=r"num_fewshot\.arc_easy must be at least 0, but it is -1"):
        parse(Shots, {"arc_easy": -1}, "num_fewshot")
    with pytest.raises(HarnessError, match="nowhere"):
        load_model(replace(inputs, checkpoint=tmp_path / "nowhere"))
    tokenizer = tmp_path / "tokenizer.json"
    tokenizer.write_text(inputs.tokenizer.read_text() + " ")
    with pytest.raises(HarnessError, match=r"tokenizer\.json: SHA-256 is .* trained with"):
        load_model(replace(inputs, tokenizer=tokenizer))
    with pytest.raises(HarnessError, match=r"execution\.device is 'tpu'"):
        load_model(replace(inputs, execution=ScoringExecution(device="tpu")))


def test_weights_that_are_not_finite_are_refused(inputs, tmp_path):
    network = load_final(inputs.checkpoint).model
    with torch.no_grad():
        network.blocks[1].mlp.expand.weight[0, 0] = math.nan
    digest = hashlib.sha256(inputs.tokenizer.read_bytes()).hexdigest()
    publish_final(tmp_path / "broken", network, 0, digest, {})
    with pytest.raises(HarnessError, match=r"blocks\.1\.mlp\.expand\.weight holds values that are not finite"):
        load_model(replace(inputs, checkpoint=tmp_path / "broken"))


def test_a_tokenizer_with_dropout_is_refused(inputs, tmp_path):
    tokenizer = Tokenizer.from_file(str(inputs.tokenizer))
    tokenizer.model.dropout = 0.5
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    digest = hashlib.sha256((tmp_path / "tokenizer.json").read_bytes()).hexdigest()
    publish_final(tmp_path / "random", load_final(inputs.checkpoint).model, 0, digest, {})
    with pytest.raises(HarnessError, match=r"tokenizer\.json: its tokenizer has a BPE dropout of 0\.5"):
        load_model(replace(inputs, checkpoint=tmp_path / "random", tokenizer=tmp_path / "tokenizer.json"))


def test_a_model_too_short_for_an_answer_is_refused(inputs, tmp_path):
    network = GPT(replace(NETWORK, sequence_length=2))
    initialise(network, 0)
    digest = hashlib.sha256(inputs.tokenizer.read_bytes()).hexdigest()
    publish_final(tmp_path / "short", network, 0, digest, {})
    config = replace(inputs, checkpoint=tmp_path / "short", suites=("arc_easy",), out=tmp_path)
    with pytest.raises(HarnessError, match=r"an answer of arc_easy, item \d+, .* sequence_length 2") as error:
        evaluate_checkpoint(config)
    item = int(re.search(r"item (\d+)", str(error.value))[1])
    choices = pq.read_table(inputs.benchmarks / "arc_easy.parquet").to_pylist()[item]["choices"]["text"]
    assert item in chosen_items(SUITES["arc_easy"], 12, 3)
    assert max(len(choice.split()) for choice in choices) > 2
