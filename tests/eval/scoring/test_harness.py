"""Scores equal an independent implementation, are the same on every run, and bad inputs end in one sentence."""

import copy
import hashlib
import json
import math
import random
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from eval.command import CommandError, parse, run
from eval.scoring.harness import (
    Execution,
    HarnessConfig,
    HarnessError,
    evaluate_checkpoint,
    load_model,
    write_tasks,
)
from eval.scoring.precision import Precision
from eval.scoring.scorer import Scorer
from eval.scoring.trained_model import Checkpoint
from eval.suites.suites import SUITES, Shots, SuiteError, chosen_items, write_rows
from model.network.config import Activation, GPTConfig, Norm, Position
from model.network.gpt import GPT, initialise
from model.training.checkpoint import FinalModel, load_final, publish_final
from tasks.runtime.child_process import run_module

WORDS = ["the", "a", "cat", "dog", "runs", "sees", "small", "old", "house", "tree", "and", "if", "river", "stone"]
QUICK = tuple(name for name in SUITES if name != "hellaswag")
"""Where all suites do not matter: lm-eval takes seconds to load the ten thousand items of HellaSwag."""
VOCAB = 400
NETWORK = GPTConfig(
    depth=2,
    width=32,
    heads=2,
    sequence_length=200,
    vocab_size=VOCAB,
    vocab_multiple=1,
    norm=Norm.LAYER,
    position=Position.LEARNED,
    activation=Activation.GELU,
    qk_norm=False,
    tied_head=True,
    bias=True,
    zero_init_projections=False,
    softcap=None,
)


def _rows(name: str, generator: np.random.Generator, count: int | None = None) -> list[dict]:
    def text(count: int) -> str:
        return " ".join(WORDS[number] for number in generator.integers(len(WORDS), size=count).tolist())

    rows: list[dict] = []
    for item in range(count or SUITES[name].rows):
        texts = [f"{text(1 + int(generator.integers(5)))} {end}" for end in WORDS[:4]]  # no two are the same
        if name.startswith("arc"):
            choices = {"text": texts, "label": list("ABCD")}
            rows.append({"id": str(item), "question": text(9), "choices": choices, "answerKey": "ABCD"[item % 4]})
        elif name == "hellaswag":
            asked = {"activity_label": text(1), "ctx_a": text(8), "ctx_b": "it"}
            rows.append(
                {"ind": item, **asked, "ctx": f"{asked['ctx_a']} it", "endings": texts}
                | {"source_id": str(item // 2), "split": "val", "split_type": "zeroshot", "label": str(item % 4)}
            )
        elif name == "winogrande":
            sentence = f"{text(6)} _ {text(4)}."
            rows.append({"sentence": sentence, "option1": "cat", "option2": "dog", "answer": str(1 + item % 2)})
        else:
            one = {"choices": texts[:3], "labels": [1, 0, 0]}
            many = {"choices": texts, "labels": [1, 0, 0, item % 2]}
            rows.append({"question": text(7) + "?", "mc1_targets": one, "mc2_targets": many})
    return rows


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> HarnessConfig:
    """Rows of all suites, a tokenizer and a random GPT-2, as a configuration."""
    directory = tmp_path_factory.mktemp("harness")
    generator = np.random.default_rng(0)
    for name, suite in SUITES.items():
        rows = _rows(name, generator)
        write_rows(pa.Table.from_pylist(rows, schema=suite.schema), directory / "benchmarks" / f"{name}.parquet")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([" ".join(generator.choice(WORDS, 2000)) + "\nQuestion: Answer:"], trainer)
    tokenizer.save(str(directory / "tokenizer.json"))
    model = GPT(NETWORK)
    initialise(model, seed=1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4.0)  # a sharper model: differences between choices that rounding cannot hide
    digest = hashlib.sha256((directory / "tokenizer.json").read_bytes()).hexdigest()
    publish_final(directory / "final", model, 0, digest, {})
    return HarnessConfig(
        checkpoint=directory / "final",
        tokenizer=directory / "tokenizer.json",
        benchmarks=directory / "benchmarks",
        suites=tuple(SUITES),
        items_per_suite=12,
        seed=3,
        out=directory / "out",
        execution=Execution(device="cpu", threads=1, batch_tokens=1000),
    )


@pytest.fixture(scope="module")
def scored(inputs) -> Path:
    evaluate_checkpoint(inputs)
    return inputs.out


@pytest.fixture(scope="module")
def gpt2(inputs) -> GPT2LMHeadModel:
    return _as_gpt2(inputs)


def _as_gpt2(inputs: HarnessConfig) -> GPT2LMHeadModel:
    """The same weights in transformers' GPT-2, which keeps its linear layers transposed."""
    network = load_final(inputs.checkpoint).model
    ours = network.state_dict()
    config = GPT2Config(
        vocab_size=VOCAB,
        n_positions=network.config.sequence_length,
        n_embd=NETWORK.width,
        n_layer=NETWORK.depth,
        n_head=NETWORK.heads,
        bos_token_id=0,
        eos_token_id=0,
    )
    theirs = {
        "transformer.wte.weight": ours["token_embedding.weight"],
        "transformer.wpe.weight": ours["position_embedding.weight"],
        "lm_head.weight": ours["token_embedding.weight"],
    }
    for kind in ("weight", "bias"):
        theirs[f"transformer.ln_f.{kind}"] = ours[f"final_norm.{kind}"]
        for layer in range(NETWORK.depth):
            block, target = f"blocks.{layer}", f"transformer.h.{layer}"
            theirs[f"{target}.ln_1.{kind}"] = ours[f"{block}.attention_norm.{kind}"]
            theirs[f"{target}.ln_2.{kind}"] = ours[f"{block}.mlp_norm.{kind}"]
            packed = [ours[f"{block}.attention.{name}.{kind}"] for name in ("query", "key", "value")]
            theirs[f"{target}.attn.c_attn.{kind}"] = torch.cat(packed).t()
            theirs[f"{target}.attn.c_proj.{kind}"] = ours[f"{block}.attention.project.{kind}"].t()
            theirs[f"{target}.mlp.c_fc.{kind}"] = ours[f"{block}.mlp.expand.{kind}"].t()
            theirs[f"{target}.mlp.c_proj.{kind}"] = ours[f"{block}.mlp.project.{kind}"].t()
    model = GPT2LMHeadModel(config)
    model.load_state_dict(theirs)
    return model.eval()


def _logprob(model: GPT2LMHeadModel, tokenizer: Tokenizer, context: str, continuation: str) -> float:
    """One sequence at a time, all positions projected, no padding."""
    start = len(tokenizer.encode(context).ids)
    ids = tokenizer.encode(context + continuation).ids
    kept = ids[-(model.config.n_positions + 1) :]
    with torch.no_grad():
        logprobs = model(torch.tensor([kept[:-1]])).logits[0].log_softmax(-1)
    return sum(logprobs[place - 1, kept[place]].item() for place in range(len(kept) - len(ids) + start, len(kept)))


def test_logprobs_and_accuracy_equal_transformers(inputs, scored, gpt2):
    tokenizer = Tokenizer.from_file(str(inputs.tokenizer))
    samples = pq.read_table(scored / "samples.parquet").to_pylist()

    def compare(task: str, pairs: Callable[[dict], list[tuple[str, str]]]) -> None:
        rows = pq.read_table(inputs.benchmarks / f"{task}.parquet").to_pylist()
        chosen = [sample for sample in samples if sample["task"] == task]
        assert [sample["item"] for sample in chosen] == chosen_items(SUITES[task], 12, 3)
        for sample in chosen:
            expected = [_logprob(gpt2, tokenizer, *pair) for pair in pairs(rows[sample["item"]])]
            assert sample["choice_logprobs"] == pytest.approx(expected, abs=1e-3)
            assert sample["acc"] == float(np.argmax(expected) == sample["gold"][0])
            right = pairs(rows[sample["item"]])[sample["gold"][0]][1]
            assert sample["gold_bytes"] == len(right.encode())
            assert sample["gold_logprob"] == sample["choice_logprobs"][sample["gold"][0]]

    compare(
        "arc_easy",
        lambda row: [(f"Question: {row['question']}\nAnswer:", f" {choice}") for choice in row["choices"]["text"]],
    )

    def filled(row: dict) -> list[tuple[str, str]]:
        before, _, after = row["sentence"].partition("_")
        return [(before + option, f" {after.strip()}") for option in (row["option1"], row["option2"])]

    compare("winogrande", filled)


def test_few_shot_prompts_are_those_lm_evals_sampler_makes(inputs, gpt2, tmp_path):
    """By hand: lm-eval's seed, examples of the train split item after item, its delimiters."""
    suite, train = SUITES["arc_easy"], _rows("arc_easy", np.random.default_rng(5), SUITES["arc_easy"].train_rows)
    folder = tmp_path / "benchmarks"
    folder.mkdir()
    (folder / "arc_easy.parquet").symlink_to(inputs.benchmarks / "arc_easy.parquet")
    config = replace(inputs, benchmarks=folder, suites=("arc_easy",), num_fewshot=Shots(arc_easy=3), out=tmp_path)
    with pytest.raises(SuiteError, match=r"arc_easy-shots\.parquet"):
        evaluate_checkpoint(config)
    write_rows(pa.Table.from_pylist(train, schema=suite.schema), folder / "arc_easy-shots.parquet")
    evaluate_checkpoint(config)
    assert json.loads((tmp_path / "scores.json").read_text())["scores"][0]["num_fewshot"] == 3
    tokenizer, draw = Tokenizer.from_file(str(inputs.tokenizer)), random.Random(1234)
    rows = pq.read_table(folder / "arc_easy.parquet").to_pylist()
    for sample in pq.read_table(tmp_path / "samples.parquet").to_pylist():
        shots = [
            f"Question: {shot['question']}\nAnswer: {shot['choices']['text']['ABCD'.index(shot['answerKey'])]}\n\n"
            for shot in draw.sample(train, 3)
        ]
        row = rows[sample["item"]]
        context = f"{''.join(shots)}Question: {row['question']}\nAnswer:"
        expected = [_logprob(gpt2, tokenizer, context, f" {choice}") for choice in row["choices"]["text"]]
        assert sample["choice_logprobs"] == pytest.approx(expected, abs=1e-3)


def test_two_processes_give_the_scores_of_one(inputs, scored, tmp_path):
    events: list[dict] = []
    values = _values(inputs, tmp_path) | {"suites": list(QUICK)}
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


def test_sparse_attention_is_scored_in_rows_of_its_own():
    """Its blocks are stretches of a row, so a shared row would be wrong; a plain network has equal scores both ways."""
    contexts = [tuple(range(start, start + 20)) for start in (1, 30)]
    requests = [(context, [50 + choice, 60, 61 + choice]) for context in contexts for choice in range(4)]
    for pattern, shared in (("N", False), ("S", True)):
        network = GPT(replace(NETWORK, window_pattern=pattern, sparse_block=4, sparse_blocks=1, short_window=7)).eval()
        initialise(network, seed=3)
        final = FinalModel(network, 0, "", {})
        scorer = Scorer(Checkpoint(final, torch.device("cpu")), torch.device("cpu"))
        inputs = [(*context, *answer[:-1]) for context, answer in requests]
        scores = scorer(inputs, [answer for _, answer in requests], lambda done: None)
        assert (scorer.tokens < sum(map(len, inputs))) is shared
        for (context, answer), (logprob, greedy) in zip(requests, scores, strict=True):
            with torch.no_grad():
                logits = network(torch.tensor([[*context, *answer[:-1]]]))[0, len(context) - 1 :]
            expected = logits.log_softmax(-1)[range(len(answer)), answer].sum().item()
            assert logprob == pytest.approx(expected, abs=1e-4)
            assert greedy == (logits.argmax(-1).tolist() == answer)


def test_of_equal_logits_the_first_is_greedy():
    network = GPT(NETWORK).eval()
    initialise(network, seed=0)
    torch.nn.init.zeros_(network.token_embedding.weight)
    scorer = Scorer(Checkpoint(FinalModel(network, 0, "", {}), torch.device("cpu")), torch.device("cpu"))
    scores = scorer([(5, 6), (5, 7)], [[0], [3]], lambda done: None)
    uniform = pytest.approx(-math.log(VOCAB))
    assert scores == [(uniform, True), (uniform, False)]


def test_contexts_too_long_are_cut_on_the_left(inputs, tmp_path):
    network = GPT(replace(NETWORK, sequence_length=9))
    initialise(network, seed=2)
    publish_final(tmp_path / "short", network, 0, load_final(inputs.checkpoint).tokenizer_sha256, {})
    config = replace(inputs, checkpoint=tmp_path / "short", suites=("arc_easy",), out=tmp_path)
    evaluate_checkpoint(config)
    assert json.loads((tmp_path / "scores.json").read_text())["scores"][0]["truncated"] == 12
    model, tokenizer = _as_gpt2(config), Tokenizer.from_file(str(inputs.tokenizer))
    rows = pq.read_table(inputs.benchmarks / "arc_easy.parquet").to_pylist()
    for sample in pq.read_table(tmp_path / "samples.parquet").to_pylist():
        row = rows[sample["item"]]
        context = f"Question: {row['question']}\nAnswer:"
        expected = [_logprob(model, tokenizer, context, f" {choice}") for choice in row["choices"]["text"]]
        assert sample["choice_logprobs"] == pytest.approx(expected, abs=1e-3)


def _hf_samples(inputs: HarnessConfig, model: GPT2LMHeadModel, directory: Path, **options: object) -> dict:
    """What lm-eval's hf backend logs for the same items, by task and item."""
    pytest.importorskip("accelerate", reason="lm-eval's hf backend needs accelerate")
    from lm_eval.evaluator import evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    tokenizer = PreTrainedTokenizerFast(
        tokenizer_file=str(inputs.tokenizer), eos_token="<|endoftext|>", pad_token="<|endoftext|>"
    )
    write_tasks(list(SUITES.values()), inputs.benchmarks, directory)
    loaded = TaskManager(include_path=directory, include_defaults=False).load(
        [task.name for suite in SUITES.values() for task in suite.tasks]
    )
    for task in loaded["tasks"].values():
        task.set_config(key="num_fewshot", value=0)
    results = evaluate(
        HFLM(pretrained=model, tokenizer=tokenizer, batch_size=3, **options),
        loaded,
        samples={task.name: chosen_items(suite, 12, 3) for suite in SUITES.values() for task in suite.tasks},
        bootstrap_iters=0,
    )
    return {(task, row["doc_id"]): row for task, rows in results["samples"].items() for row in rows}


def test_same_as_lm_evals_hf_backend_on_every_suite(inputs, scored, gpt2, tmp_path):
    theirs = _hf_samples(inputs, gpt2, tmp_path)
    ours = pq.read_table(scored / "samples.parquet").to_pylist()
    assert len(ours) == 6 * 12
    for sample in ours:
        row = theirs[sample["task"], sample["item"]]
        assert sample["choice_logprobs"] == pytest.approx([answer[0][0] for answer in row["resps"]], abs=1e-3)
        assert sample["doc_hash"] == row["doc_hash"]
        for metric in ("acc", "acc_norm", "mc1", "mc2"):
            if sample[metric] is not None:
                key = metric if metric.startswith("acc") else "acc"
                assert sample[metric] == pytest.approx(row[key], abs=1e-4)


def test_in_bf16_as_near_to_lm_evals_hf_backend_as_its_own_rounding(inputs, scored, gpt2, tmp_path):
    """Ours and hf's differ by less than bf16 costs hf: 0.022 against 0.043 nats, root mean square. Under autocast,
    which rounds in other places, it would be 0.053."""
    theirs = _hf_samples(inputs, copy.deepcopy(gpt2).to(torch.bfloat16), tmp_path, softmax_dtype="float32")
    evaluate_checkpoint(replace(inputs, precision=Precision.BF16, out=tmp_path / "out"))
    assert json.loads((tmp_path / "out" / "scores.json").read_text())["precision"] == "bf16"
    logprobs: dict[str, list[float]] = {"ours": [], "hf": [], "fp32": []}
    for name, path in (("fp32", scored), ("ours", tmp_path / "out")):
        for sample in pq.read_table(path / "samples.parquet").to_pylist():
            logprobs[name] += sample["choice_logprobs"]
            if name == "ours":
                row = theirs[sample["task"], sample["item"]]
                logprobs["hf"] += [answer[0][0] for answer in row["resps"]]
                right = np.argmax(logprobs["hf"][-len(row["resps"]) :]) == np.argmax(sample["choice_logprobs"])
                assert right, "no answer here is near enough to another for bf16 to change which is chosen"
    ours, hf, fp32 = (np.array(logprobs[name]) for name in ("ours", "hf", "fp32"))

    def rounding(differences: np.ndarray) -> float:
        return float(np.sqrt(np.mean(differences**2)))

    assert rounding(ours - hf) < 0.75 * rounding(hf - fp32)
    assert 0.8 < rounding(ours - fp32) / rounding(hf - fp32) < 1.25, "no more exact than hf, and no less"
    assert np.abs(ours - hf).max() <= np.abs(hf - fp32).max()


def test_tf32_is_fp32_where_there_is_none_and_says_so(inputs, scored, tmp_path):
    done = evaluate_checkpoint(replace(inputs, precision=Precision.TF32, suites=("winogrande",), out=tmp_path))
    assert (done["device"], done["computed_in"]) == ("cpu", "fp32")
    report, fp32 = (json.loads((path / "scores.json").read_text()) for path in (tmp_path, scored))
    assert report["precision"] == "tf32" and "precision" not in fp32
    assert report["scores"] == [score for score in fp32["scores"] if score["suite"] == "winogrande"]


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


def test_the_subset_is_fixed_by_seed_and_suite():
    easy = chosen_items(SUITES["arc_easy"], 50, 1)
    assert easy == sorted(set(easy)) == chosen_items(SUITES["arc_easy"], 50, 1) and len(easy) == 50
    assert easy != chosen_items(SUITES["arc_easy"], 50, 2) != chosen_items(SUITES["winogrande"], 50, 2)
    assert chosen_items(SUITES["winogrande"], None, 1) == list(range(1267))
    assert chosen_items(SUITES["winogrande"], 5000, 1) == list(range(1267))


def test_batches_do_not_change_scores(inputs, scored, tmp_path):
    other = replace(inputs, suites=QUICK, out=tmp_path, execution=replace(inputs.execution, batch_tokens=1))
    evaluate_checkpoint(other)
    before, after = (_samples(path, QUICK) for path in (scored, tmp_path))
    for one, two in zip(before, after, strict=True):
        assert one["choice_logprobs"] == pytest.approx(two["choice_logprobs"], abs=1e-4)


def _samples(directory: Path, suites: tuple[str, ...]) -> list[dict]:
    return [row for row in pq.read_table(directory / "samples.parquet").to_pylist() if row["suite"] in suites]


def _values(inputs: HarnessConfig, directory: Path) -> dict:
    return {
        "checkpoint": str(inputs.checkpoint),
        "tokenizer": str(inputs.tokenizer),
        "benchmarks": str(inputs.benchmarks),
        "suites": list(inputs.suites),
        "items_per_suite": 12,
        "seed": 3,
        "out": str(directory / "out"),
        "execution": {"device": "cpu", "threads": 1, "batch_tokens": 1000},
    }


def _command(inputs: HarnessConfig, directory: Path, **changes: object) -> subprocess.CompletedProcess:
    (directory / "config.json").write_text(json.dumps(_values(inputs, directory) | changes))
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
    (tmp_path / "config.json").write_text(json.dumps(_values(inputs, tmp_path) | {"batch": 3}))
    handler = signal.getsignal(signal.SIGTERM)
    try:
        assert run([str(tmp_path / "config.json")], HarnessConfig, evaluate_checkpoint) == 1
    finally:
        signal.signal(signal.SIGTERM, handler)
    error = capsys.readouterr().err
    assert error.startswith("error: config.json has the unknown key 'batch'") and error.count("\n") == 1
    with pytest.raises(CommandError, match=r"^c\.precision must be one of fp32, tf32, bf16, found 'fp64'$"):
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
    with pytest.raises(SuiteError, match=r"num_fewshot\.arc_easy must be at least 0, found -1"):
        Shots(arc_easy=-1)
    with pytest.raises(HarnessError, match="nowhere"):
        load_model(replace(inputs, checkpoint=tmp_path / "nowhere"))
    tokenizer = tmp_path / "tokenizer.json"
    tokenizer.write_text(inputs.tokenizer.read_text() + " ")
    with pytest.raises(HarnessError, match=r"tokenizer\.json: SHA-256 is .* trained with"):
        load_model(replace(inputs, tokenizer=tokenizer))
    with pytest.raises(HarnessError, match=r"execution\.device is 'tpu'"):
        load_model(replace(inputs, execution=Execution(device="tpu")))


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
