"""Batches as a pure function of the shards: the loader has no state, so resuming needs one integer.

The stream is cut into windows of sequence_length tokens, each read with the one token after it, which
is its last target; or documents are packed into rows of that size (model.data.packing). Every epoch visits
every window or row once, in an order drawn from (seed, epoch). The order is a Feistel network (Luby and
Rackoff, 1988) on the smallest even number of bits that holds all their numbers; a result that is none of
them is sent through again until it is one ("cycle walking"), which keeps it a permutation and takes no
memory, however large the data.

Shape suffixes: B sequences, T tokens.
"""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from model.data.packing import Packing, pack
from model.data.shards import ShardError, ShardSet

_ROUNDS = 6


def _mix(values: np.ndarray) -> np.ndarray:
    """SplitMix64's finaliser: every input bit changes every output bit with probability 1/2."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def permuted(positions: np.ndarray, size: int, seed: int, epoch: int) -> np.ndarray:
    """Where a random permutation of range(size), drawn from (seed, epoch), sends `positions`."""
    half_bits = max(1, -(-(size - 1).bit_length() // 2))
    half, mask = np.uint64(half_bits), np.uint64(2**half_bits - 1)
    numbers = np.array([seed % 2**64, epoch], dtype=np.uint64)
    key = _mix(_mix(numbers[:1]) + numbers[1:])
    round_keys = _mix(key + np.arange(1, _ROUNDS + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15))
    result = positions.astype(np.uint64)
    walking = np.ones(len(result), dtype=bool)
    while walking.any():
        left, right = result[walking] >> half, result[walking] & mask
        for round_key in round_keys:
            left, right = right, left ^ (_mix(right + round_key) & mask)
        result[walking] = (left << half) | right
        walking = result >= size
    return result.astype(np.int64)


def window_count(shards: ShardSet, sequence_length: int) -> int:
    """Windows in the stream; an error when there is not even one."""
    windows = (shards.tokens - 1) // sequence_length
    if windows < 1:
        raise ShardError(
            f"{shards.directory}: split {shards.split!r} has {shards.tokens} tokens, one window "
            f"of sequence_length {sequence_length} needs {sequence_length + 1}"
        )
    return windows


def _read(
    shards: ShardSet, windows: np.ndarray, sequence_length: int, packing: Packing | None = None
) -> tuple[Tensor, Tensor]:
    if packing is None:
        rows = [shards.slice(start, start + sequence_length + 1) for start in (windows * sequence_length).tolist()]
    else:
        rows = [np.concatenate([shards.slice(*piece) for piece in packing.pieces(row)]) for row in windows]
    tokens = torch.from_numpy(np.stack(rows).astype(np.int64))
    return tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()


def batch(
    shards: ShardSet,
    seed: int,
    step: int,
    rank: int,
    world: int,
    sequences: int,
    sequence_length: int,
    packing: Packing | None = None,
) -> tuple[Tensor, Tensor]:
    """Inputs x_BT and targets y_BT (int64) of one process in one step, of windows or of packed rows.

    `sequences` is the size of the step over all `world` processes; rank r gets the r-th contiguous
    part, so that the processes together read the same batch whatever their number.
    """
    if sequences % world or not 0 <= rank < world:
        raise ValueError(f"{sequences} sequences cannot be shared by rank {rank} of world {world}")
    windows = window_count(shards, sequence_length) if packing is None else len(packing)
    share = sequences // world
    visits = step * sequences + rank * share + np.arange(share)
    epochs, positions = np.divmod(visits, windows)
    chosen = np.empty(share, dtype=np.int64)
    for epoch in np.unique(epochs):  # a step may cross from one epoch into the next
        in_epoch = epochs == epoch
        chosen[in_epoch] = permuted(positions[in_epoch], windows, seed, int(epoch))
    return _read(shards, chosen, sequence_length, packing)


def pack_documents(shards: ShardSet, sequence_length: int) -> Packing:
    """The documents of a split as rows of sequence_length + 1 tokens; an error when there is not even one."""
    packing = pack(shards.document_starts(), shards.tokens, sequence_length + 1)
    if not len(packing):
        raise ShardError(
            f"{shards.directory}: the documents of split {shards.split!r} do not fill one row of "
            f"sequence_length {sequence_length} + 1 tokens"
        )
    return packing


def validation_windows(shards: ShardSet, tokens: int, sequence_length: int) -> int:
    """Windows that a validation over the first `tokens` tokens reads: at least 1, at most all."""
    return min(window_count(shards, sequence_length), max(1, tokens // sequence_length))


def validation_batches(
    shards: ShardSet, tokens: int, sequences: int, sequence_length: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """The first `tokens` tokens in order, `sequences` windows at a time; the last may have fewer."""
    windows = validation_windows(shards, tokens, sequence_length)
    for first in range(0, windows, sequences):
        yield _read(shards, np.arange(first, min(windows, first + sequences)), sequence_length)
