"""What a person sees of a training while it runs: scores, samples, a progress bar, trackers."""

import hashlib
import importlib.util
import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from eval.scoring.harness import HarnessConfig, evaluate_checkpoint
from eval.suites.hellaswag import encoded_items
from eval.suites.suites import SUITES, write_rows
from model.data.shards import Dataset, Split, write_dataset, write_shard
from model.machine.parallel import Processes
from model.network.config import ConfigError, GPTConfig
from model.network.gpt import GPT, initialise
from model.train import main
from model.training.checkpoint import publish_final
from model.training.multiple_choice import accuracy, read_items
from model.training.progress_bar import describe
from tasks.runtime.tracking import Tracker, Tracking, check_tracker
from tests.eval.contamination.invented import suite_rows

ITEMS = 60
VOCAB, SEQUENCE = 400, 24  # long items are cut on the left, as lm-eval does


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


def write_run(folder: Path, name: str, **execution: object) -> Path:
    shards = folder / "shards"
    if not shards.exists():
        shards.mkdir()
        noise = np.random.default_rng(0)
        splits = {}
        for split, count in (("train", 9000), ("val", 1000)):
            tokens = noise.integers(1, VOCAB, count).astype(np.uint16)
            tokens[0] = 0
            write_shard(shards, split, 0, tokens, np.array([0]), ["all"])
            splits[split] = Split(documents=1, tokens=count, bytes=2 * (count - 1), shards=1)
        write_dataset(shards, Dataset(VOCAB, 0, "abc", splits, np.array([0] + [2] * (VOCAB - 1))))
    train = {
        "seed": 1,
        "tokens": 20 * 192,
        "tokens_per_step": 192,
        "micro_batch_sequences": 4,
        "optimizer": "adamw",
        "learning_rate": 0.01,
        "validation_every_steps": 10,
        "validation_tokens": 192,
        "log_every_steps": 5,
        "checkpoint_every_steps": 10,
        "sample_tokens": 4,
    }
    config = {
        "model": {"depth": 1, "width": 16, "heads": 2, "sequence_length": SEQUENCE},
        "train": train,
        "shards": str(shards),
        "run_dir": str(folder / name),
        "sample_prompts": [[5], [6]],
        "execution": {"device": "cpu", "threads": 1} | execution,
    }
    path = folder / f"{name}.json"
    path.write_text(json.dumps(config))
    return path


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


def test_a_terminal_shows_a_bar_instead_of_json(tmp_path: Path):
    master, slave = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "model.train", str(write_run(tmp_path, "run"))],
        stdout=slave,
        env=os.environ | {"COLUMNS": "100"},
    )
    os.close(slave)
    shown = b""
    while True:
        try:
            shown += os.read(master, 65536)
        except OSError:  # how Linux says that the other end is closed
            break
    assert process.wait() == 0
    lines = shown.decode().replace("\r\x1b[K", "\n").splitlines()
    bars = [line for line in lines if line.startswith(("█", "░"))]
    assert [bar.split()[1] for bar in dict.fromkeys(bars)] == ["1/20", "5/20", "10/20", "15/20", "20/20"]
    assert "{" not in shown.decode() and any(line.startswith("validation step 10") for line in lines)
    assert all(len(line) < 100 for line in bars)


def test_the_bar_tells_share_speed_and_time_left():
    line = describe({"step": 250, "steps": 1000, "tokens": 250_000, "loss": 3.5, "tokens_per_second": 100})
    assert line.split() == ["█" * 6 + "░" * 18, "250/1,000", "loss", "3.5000", "100", "tok/s", "2:05:00", "left"]


def test_tensorboard_reads_the_numbers_back(tmp_path: Path):
    loader = pytest.importorskip("tensorboard.backend.event_processing.event_file_loader")
    with Tracking(Tracker.TENSORBOARD, tmp_path, "k" * 64, {}) as tracking:
        for step in (1, 2):
            tracking({"event": "step", "step": step, "steps": 2, "loss": 4.0 - step, "mfu": None})
        tracking({"event": "validation", "step": 2, "loss": 1.5})
        tracking({"event": "done", "step": 2, "loss": 9.0})
    [file] = (tmp_path / "tensorboard" / "kkkkkkkkkkkk").iterdir()
    found = [
        (event.step, value.tag, value.tensor.float_val[0])
        for event in loader.EventFileLoader(str(file)).Load()
        for value in event.summary.value
    ]
    assert found == [(1, "step/loss", 3.0), (2, "step/loss", 2.0), (2, "validation/loss", 1.5)]


def test_a_tracker_that_is_not_installed_is_refused_by_name(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'daily-train\[wandb\]'"):
        check_tracker(Tracker.WANDB)
    check_tracker(Tracker.NONE)
