"""Reading ahead changes no batch, shows its thread's errors in the step, and keeps no process alive."""

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch

import model
from model.data.loader import batch
from model.data.prefetch import Prefetch
from model.data.shards import Dataset, ShardError, ShardSet, Split, write_dataset, write_shard

TOKENS, VOCAB, LENGTH, SEED = 4_000, 40, 16, 3


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    directory, splits = tmp_path / "shards", {}
    for split in ("train", "val"):
        write_shard(
            directory,
            split,
            0,
            np.random.default_rng(0).integers(1, VOCAB, TOKENS).astype(np.uint16),
            np.array([0]),
            ["all"],
        )
        splits[split] = Split(documents=1, tokens=TOKENS, bytes=TOKENS, shards=1)
    write_dataset(directory, Dataset(VOCAB, 0, "abc", splits, np.array([0] + [1] * (VOCAB - 1))))
    return directory


def test_batches_are_those_of_the_pure_function(shards):
    """Also after a jump forward and back, as a resume and a timing do; epochs are crossed."""
    train = ShardSet(shards, "train")
    prefetch = Prefetch(lambda step: batch(train, SEED, step, 1, 2, 8, LENGTH), torch.device("cpu"))
    for step in [*range(40), 7, 8, 8, 0, 1, 100]:
        for ours, expected in zip(prefetch.take(step), batch(train, SEED, step, 1, 2, 8, LENGTH), strict=True):
            assert torch.equal(ours, expected)


def test_the_next_batch_is_read_before_it_is_asked_for():
    read = [threading.Event() for _ in range(3)]

    def note(step: int) -> tuple[torch.Tensor]:
        read[step].set()
        return (torch.tensor(step),)

    prefetch = Prefetch(note, torch.device("cpu"))
    prefetch.take(0)
    assert read[1].wait(timeout=30)
    assert not read[2].is_set()


def test_an_error_comes_in_its_own_step(shards):
    train, refused = ShardSet(shards, "train"), threading.Event()

    def read(step: int) -> tuple[torch.Tensor, torch.Tensor]:
        if step == 2:
            train.paths[0].unlink(missing_ok=True)
            refused.set()
        return batch(train, SEED, step, 0, 1, 8, LENGTH)

    prefetch = Prefetch(read, torch.device("cpu"))
    prefetch.take(0)
    prefetch.take(1)
    assert refused.wait(timeout=30)  # step 2 has begun, nobody has asked for it
    with pytest.raises(ShardError, match=r"train_000000\.bin: cannot be read: No such file"):
        prefetch.take(2)


def test_training_ends_with_the_message_when_a_shard_vanishes(shards, tmp_path):
    config = {
        "model": {"depth": 1, "width": 16, "heads": 2, "sequence_length": LENGTH},
        "train": {
            "seed": 1,
            "tokens": 128 * 1_000_000,
            "tokens_per_step": 128,
            "micro_batch_sequences": 8,
            "optimizer": "adamw",
            "learning_rate": 0.001,
            "validation_every_steps": 10**6,
            "validation_tokens": 128,
            "checkpoint_every_steps": 10**6,
            "log_every_steps": 1,
        },
        "shards": str(shards),
        "run_dir": str(tmp_path / "run"),
        "sample_prompts": [],
        "execution": {"device": "cpu", "threads": 1},
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    process = subprocess.Popen(
        [sys.executable, "-m", "model.train", str(tmp_path / "config.json")],
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": str(Path(model.__path__[0]).parent)},
    )
    for line in process.stdout:
        if json.loads(line)["event"] == "step":
            break
    path = shards / "train_000000.bin"
    path.unlink()
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 1
    assert errors == f"error: {path}: cannot be read: No such file or directory\n"
