"""Batches are a pure function; an epoch sees every window once; ranks share one global batch."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from model.data.loader import batch, permuted, validation_batches
from model.data.shards import Dataset, ShardError, ShardSet, Split, write_dataset, write_shard

LENGTH = 8
TOKENS = 1000  # 124 windows


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> ShardSet:
    """Token i of the stream is i, so that every batch tells where it was read."""
    directory = tmp_path_factory.mktemp("shards")
    for number, part in enumerate(np.split(np.arange(TOKENS, dtype=np.uint16), [300, 307, 640])):
        write_shard(directory, "train", number, part, np.array([]), [])
    split = Split(documents=0, tokens=TOKENS, bytes=TOKENS, shards=4)
    write_dataset(directory, Dataset(TOKENS, 0, "", {"train": split}, np.ones(TOKENS)))
    return ShardSet(directory, "train")


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 3000), st.integers(0, 2**63), st.integers(0, 100))
def test_permutation_is_a_bijection(size, seed, epoch):
    result = permuted(np.arange(size), size, seed, epoch)
    assert np.array_equal(np.sort(result), np.arange(size))


def test_permutation_looks_random():
    size = 10_000
    orders = [permuted(np.arange(size), size, seed, epoch) for seed, epoch in ((1, 0), (1, 1), (2, 0))]
    for order in orders:
        assert abs(np.corrcoef(np.arange(size), order)[0, 1]) < 0.05
        assert abs(np.corrcoef(order[:-1], order[1:])[0, 1]) < 0.05
    for a, b in ((0, 1), (0, 2), (1, 2)):
        assert (orders[a] == orders[b]).mean() < 0.01


def test_targets_are_the_next_tokens(shards):
    x, y = batch(shards, 3, 5, 0, 1, 16, LENGTH)
    assert x.shape == y.shape == (16, LENGTH) and x.dtype == y.dtype == torch.int64
    assert torch.equal(y, x + 1)


def test_every_window_once_an_epoch_and_epochs_differ(shards):
    starts = torch.cat([batch(shards, 3, step, 0, 1, 8, LENGTH)[0][:, 0] for step in range(31)])
    first, second = starts.chunk(2)  # 31 steps of 8 windows are two epochs of 124
    assert sorted(first.tolist()) == sorted(second.tolist()) == list(range(0, 992, LENGTH))
    assert not torch.equal(first, second)


def test_pure(shards):
    once = batch(shards, 3, 17, 0, 1, 8, LENGTH)[0]
    batch(shards, 4, 2, 0, 1, 4, LENGTH)
    assert torch.equal(once, batch(ShardSet(shards.directory, "train"), 3, 17, 0, 1, 8, LENGTH)[0])
    assert not torch.equal(once, batch(shards, 4, 17, 0, 1, 8, LENGTH)[0])


@pytest.mark.parametrize("world", [2, 4])
def test_any_world_reads_the_same_global_batch(shards, world):
    for step in (0, 15, 400):  # 15: crosses from the first epoch into the second
        whole = batch(shards, 3, step, 0, 1, 8, LENGTH)
        parts = [batch(shards, 3, step, rank, world, 8, LENGTH) for rank in range(world)]
        for i in (0, 1):
            assert torch.equal(whole[i], torch.cat([part[i] for part in parts]))


def test_sequences_that_cannot_be_shared_are_refused(shards):
    for rank, world in ((0, 3), (2, 2)):
        with pytest.raises(ValueError, match=f"rank {rank} of world {world}"):
            batch(shards, 3, 0, rank, world, 8, LENGTH)


def test_validation_is_the_start_in_order(shards):
    x = torch.cat([x for x, _ in validation_batches(shards, 100, 5, LENGTH)])
    assert torch.equal(x.flatten(), torch.arange(96))
    everything = torch.cat([x for x, _ in validation_batches(shards, 10**9, 5, LENGTH)])
    assert torch.equal(everything.flatten(), torch.arange(992))


def test_split_shorter_than_a_window_is_an_error(shards):
    with pytest.raises(ShardError, match=r"1000 tokens.*1000 needs 1001"):
        batch(shards, 3, 0, 0, 1, 1, 1000)
