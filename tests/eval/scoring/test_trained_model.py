"""Scores of a trained model are those of transformers and of lm-eval's hf backend for the same weights."""

import copy
import json
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from tokenizers import Tokenizer
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from eval.scoring.harness import HarnessConfig, evaluate_checkpoint
from eval.scoring.precision import Precision
from eval.suites.items import chosen_items, write_rows
from eval.suites.suites import SUITES, Shots, SuiteError
from eval.suites.task_files import write_tasks
from model.network.gpt import GPT, initialise
from model.training.checkpoint import load_final, publish_final
from tests.eval.scoring.invented import NETWORK, VOCAB, invented_rows


@pytest.fixture(scope="module")
def gpt2(inputs) -> GPT2LMHeadModel:
    return as_gpt2(inputs)


def as_gpt2(inputs: HarnessConfig) -> GPT2LMHeadModel:
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
    suite, train = (
        SUITES["arc_easy"],
        invented_rows("arc_easy", np.random.default_rng(5), SUITES["arc_easy"].train_rows),
    )
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


def test_contexts_too_long_are_cut_on_the_left(inputs, tmp_path):
    network = GPT(replace(NETWORK, sequence_length=9))
    initialise(network, seed=2)
    publish_final(tmp_path / "short", network, 0, load_final(inputs.checkpoint).tokenizer_sha256, {})
    config = replace(inputs, checkpoint=tmp_path / "short", suites=("arc_easy",), out=tmp_path)
    evaluate_checkpoint(config)
    assert json.loads((tmp_path / "scores.json").read_text())["scores"][0]["truncated"] == 12
    model, tokenizer = as_gpt2(config), Tokenizer.from_file(str(inputs.tokenizer))
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
