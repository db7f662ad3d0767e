"""The score and the samples of a training while it runs: lm-eval's score, and nothing of the training changes."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from eval.scoring.harness import HarnessConfig, evaluate_checkpoint
from eval.suites.hellaswag import encoded_items
from eval.suites.items import write_rows
from eval.suites.suites import SUITES
from model.machine.parallel import Processes
from model.network.config import GPTConfig
from model.network.gpt import GPT, initialise
from model.parsing import ConfigError
from model.train import main
from model.training.checkpoint import publish_final
from model.training.multiple_choice import accuracy, read_items
from tests.eval.contamination.invented import suite_rows
from tests.model.training.small_run import SEQUENCE, VOCAB, write_run

ITEMS = 60


@pytest.fixture(scope="module")
def benchmarks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("benchmarks")
    rows = suite_rows("hellaswag", np.random.default_rng(0))
    write_rows(pa.Table.from_pylist(rows, schema=SUITES["hellaswag"].schema), folder / "hellaswag.parquet")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB, initial_alphabet=alphabet, special_tokens=["<|endoftext|>"], show_progress=False
    )
    tokenizer.train_from_iterator([row["ctx_a"] for row in rows[:300]], trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture(scope="module")
def items(benchmarks: Path) -> Path:
    """The file of encoded items, as the train stage writes it."""
    tokenizer = Tokenizer.from_file(str(benchmarks / "tokenizer.json"))
    encoded = encoded_items(benchmarks, lambda text: tokenizer.encode(text, add_special_tokens=False).ids, ITEMS)
    path = benchmarks / "items.json"
    path.write_text(json.dumps(encoded))
    return path


def test_the_score_in_training_is_lm_evals(benchmarks: Path, items: Path, tmp_path: Path):
    config = GPTConfig(
        depth=2, width=32, heads=2, sequence_length=SEQUENCE, vocab_size=VOCAB, zero_init_projections=False
    )
    model = GPT(config)
    initialise(model, 1)
    with torch.no_grad():
        model.head.weight.mul_(20)  # differences that rounding cannot hide
    digest = hashlib.sha256((benchmarks / "tokenizer.json").read_bytes()).hexdigest()
    publish_final(tmp_path / "final", model, 0, digest, {})
    evaluate_checkpoint(
        HarnessConfig(
            checkpoint=tmp_path / "final",
            tokenizer=benchmarks / "tokenizer.json",
            benchmarks=benchmarks,
            suites=("hellaswag",),
            items_per_suite=ITEMS,
            seed=0,
            out=tmp_path / "out",
        )
    )
    scores = json.loads((tmp_path / "out" / "scores.json").read_text())["scores"]
    [official] = [row["value"] for row in scores if row["metric"] == "acc_norm"]
    encoded = read_items(str(items), config)
    assert any(len(item["context"]) > SEQUENCE for item in encoded)
    for rows in (4, 24):
        mine = accuracy(model, encoded, rows=rows, autocast=torch.autocast("cpu", enabled=False), processes=Processes())
        assert mine == pytest.approx(official, abs=1e-6) and 0 < mine < 1


def events(run_dir: Path, name: str) -> list[dict]:
    return [
        line for line in map(json.loads, (run_dir / "metrics.jsonl").read_text().splitlines()) if line["event"] == name
    ]


def test_watching_is_in_the_metrics_and_changes_nothing_else(items: Path, tmp_path: Path):
    assert main([str(write_run(tmp_path, "watched", hellaswag=str(items), sample_every_steps=5))]) == 0
    assert main([str(write_run(tmp_path, "alone"))]) == 0
    watched, alone = tmp_path / "watched", tmp_path / "alone"
    scored = [event["hellaswag_acc_norm"] for event in events(watched, "validation")]
    assert len(scored) == 3 and set(scored) <= {round(right / ITEMS, 6) for right in range(ITEMS + 1)}
    samples = events(watched, "samples")
    assert [event["step"] for event in samples] == [5, 10, 15]
    assert all([len(tokens) for tokens in event["tokens_of_prompts"]] == [4, 4] for event in samples)
    for name in ("final/model.safetensors", "final/config.json", "samples.json", "run.json"):
        assert (watched / name).read_bytes() == (alone / name).read_bytes()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"context": [VOCAB]}, "item 0 has token ids that are not below 400"),
        ({"choices": [[1], []]}, "a choice of item 0 has no tokens"),
        ({"gold": 2}, "item 0 needs a length over 0 for each choice, and a gold one"),
        ({"lengths": None}, "is not a list of items"),
    ],
)
def test_items_that_cannot_be_scored_are_refused(tmp_path: Path, change: dict, message: str):
    path = tmp_path / "items.json"
    path.write_text(json.dumps([{"context": [1], "choices": [[1], [2]], "lengths": [1, 1], "gold": 0} | change]))
    with pytest.raises(ConfigError, match=message):
        read_items(str(path), GPTConfig(depth=1, width=16, heads=2, sequence_length=SEQUENCE, vocab_size=VOCAB))
