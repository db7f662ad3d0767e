"""Rows that start with a document: whole documents packed into rows by best fit, none padded.

The longest documents are placed first; the space left in a row is filled with the longest document that
fits. Where none fits, the shortest one that is left is cropped to the space, so that no position of
a row is wasted. A document longer than a row is cropped to it: its end is not trained on. All lengths
are known from the index, so the packing is one pure function of the lengths, made before step 0; which
row is read when is the loader's affair. (nanochat packs the same way from a buffer of documents as they
stream by, and so has to crop more.)

Rows of equal composition are made at once: the work grows with the number of different lengths, not of
documents. Memory: 12 bytes a document and 8 a row.
"""

from collections import Counter
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Packing:
    """Rows of equal length, each a list of pieces of the stream that start with a document."""

    row: int
    """Tokens a row."""
    starts: np.ndarray
    """Where each piece begins in the stream (int64), row after row."""
    lengths: np.ndarray
    """Tokens of each piece (int32)."""
    offsets: np.ndarray
    """First piece of each row (int64), and the number of pieces."""
    cropped: float
    """Share of the stream's tokens that is in no row."""

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def pieces(self, row: int) -> list[tuple[int, int]]:
        """(start, stop) in the stream of each piece of one row."""
        part = slice(self.offsets[row], self.offsets[row + 1])
        return [(int(start), int(start) + int(length)) for start, length in zip(self.starts[part], self.lengths[part])]


def pack(starts: np.ndarray, tokens: int, row: int) -> Packing:
    """Pack the documents of a stream of `tokens` tokens that begin at `starts` into rows of `row` tokens."""
    starts = np.asarray(starts, dtype=np.int64)
    lengths = np.minimum(np.diff(starts, append=tokens), row)
    order = np.argsort(lengths, kind="stable")
    counts = np.bincount(lengths, minlength=row + 1)
    first = np.concatenate(([0], np.cumsum(counts)))  # of each length, in `order`
    used = np.zeros(row + 1, dtype=np.int64)
    row_starts, row_lengths, row_sizes = [], [], []
    while (pattern := _pattern(counts - used, row)) is not None:
        needed: Counter[int] = Counter()
        for length, number, _ in pattern:
            needed[length] += number
        times = min(int(counts[length] - used[length]) // number for length, number in needed.items())
        piece_starts, sizes = [], []
        for length, number, kept in pattern:
            begin = first[length] + used[length]
            piece_starts.append(starts[order[begin : begin + times * number]].reshape(times, number))
            sizes += [kept] * number
            used[length] += times * number
        row_starts.append(np.concatenate(piece_starts, axis=1).ravel())
        row_lengths.append(np.tile(np.array(sizes, dtype=np.int32), times))
        row_sizes.append(np.full(times, len(sizes), dtype=np.int64))
    rows = sum(map(len, row_sizes))
    if not rows:
        return Packing(row, np.zeros(0, np.int64), np.zeros(0, np.int32), np.zeros(1, np.int64), 1.0)
    offsets = np.concatenate(([0], np.cumsum(np.concatenate(row_sizes))))
    return Packing(row, np.concatenate(row_starts), np.concatenate(row_lengths), offsets, 1 - rows * row / tokens)


def _pattern(left: np.ndarray, row: int) -> list[tuple[int, int, int]] | None:
    """Composition of the next row: (length, how many, tokens kept of each); None when no full row is left.

    `left` counts the documents of each length.
    """
    left, pattern, space = left.copy(), [], row
    available = np.flatnonzero(left)
    while (fitting := int(np.searchsorted(available, space, side="right"))) and space:
        length = int(available[fitting - 1])
        number = min(int(left[length]), space // length)
        pattern.append((length, number, length))
        left[length] -= number
        space -= number * length
        available = available[: fitting - 1]  # what is left of this length does not fit any more
    if space:
        longer = np.flatnonzero(left[space + 1 :])
        if not len(longer):
            return None
        pattern.append((space + 1 + int(longer[0]), 1, space))
    return pattern
