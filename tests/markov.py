"""Shards of a text that a tiny network learns in seconds."""

from pathlib import Path

import numpy as np

from model.data.shards import Dataset, Split, write_dataset, write_shard

VOCAB = 32


def write_markov_shards(directory: Path, train_tokens: int = 20_000) -> Path:
    """Each token has one likely successor; all are equally frequent, so unigram entropy is log 31."""
    noise, splits = np.random.default_rng(0), {}
    for split, count in (("train", train_tokens), ("val", 2_000)):
        tokens = np.zeros(count, dtype=np.uint16)
        for i in range(1, count):
            any_token = noise.random() < 0.1
            tokens[i] = noise.integers(1, VOCAB) if any_token else (7 * tokens[i - 1] + 3) % (VOCAB - 1) + 1
        write_shard(directory, split, 0, tokens, np.array([0]), ["all"])
        splits[split] = Split(documents=1, tokens=count, bytes=2 * (count - 1), shards=1)
    write_dataset(directory, Dataset(VOCAB, 0, "abc", splits, np.array([0] + [2] * (VOCAB - 1))))
    return directory
