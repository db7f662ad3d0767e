"""The configuration of a small training on random tokens."""

import json
from pathlib import Path

import numpy as np

from model.data.shards import Dataset, Split, write_dataset, write_shard

VOCAB, SEQUENCE = 400, 24  # long items are cut on the left, as lm-eval does


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
