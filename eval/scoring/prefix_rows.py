"""Token sequences with common beginnings, laid into rows in which every shared token stands once.

Sorted, sequences that begin alike are neighbours; each is added to the row of its predecessor if that is cheaper
than a row of its own, and only its tokens after the common beginning are new. The choices of an item share its
context, WinoGrande's two sentences what stands before the gap, TruthfulQA's questions the examples before them, and
equal sequences everything. A row is a forest in depth-first order, so the tokens that see a token are an interval.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import takewhile

import numpy as np

Sequence = tuple[int, ...]


@dataclass
class Row:
    """A forest of tokens; arrays have one entry a token."""

    tokens: np.ndarray
    positions: np.ndarray
    """Place of a token in its sequence."""
    parents: np.ndarray
    """Place in the row of the token before; a first token names itself."""
    ends: np.ndarray
    """Place in the row after the last descendant: token i sees token j if j <= i < ends[j]."""
    paths: dict[Sequence, np.ndarray]
    """For every sequence of the row the places of its tokens."""

    @property
    def branched(self) -> bool:
        """Whether the row holds more than one plain sequence."""
        return len(self.paths) > 1


@dataclass
class Batch:
    """Rows padded on the right to one length; padding sees itself alone. Arrays (rows, longest)."""

    rows: list[Row]
    tokens: np.ndarray
    positions: np.ndarray
    parents: np.ndarray
    ends: np.ndarray

    @property
    def branched(self) -> bool:
        return any(row.branched for row in self.rows)


def batch_of(rows: list[Row]) -> Batch:
    shape = (len(rows), max(len(row.tokens) for row in rows))
    place = np.broadcast_to(np.arange(shape[1]), shape)
    batch = Batch(rows, np.zeros(shape, np.int64), np.zeros(shape, np.int64), place.copy(), place + 1)
    for number, row in enumerate(rows):
        for name in ("tokens", "positions", "parents", "ends"):
            getattr(batch, name)[number, : len(row.tokens)] = getattr(row, name)
    return batch


def row_of(sequences: list[Sequence]) -> Row:
    """One row of sorted, distinct sequences."""
    tokens: list[int] = []
    positions: list[int] = []
    parents: list[int] = []
    paths: dict[Sequence, np.ndarray] = {}
    before: Sequence = ()
    path = np.zeros(0, np.int64)
    ends: dict[int, int] = {}
    for sequence in sequences:
        shared, start = common(before, sequence), len(tokens)
        ends.update(dict.fromkeys(path[shared:].tolist(), start))
        new = np.arange(start, start + len(sequence) - shared)
        parents += [int(path[shared - 1]) if shared else start, *new[:-1].tolist()]
        tokens += sequence[shared:]
        positions += range(shared, len(sequence))
        path = np.concatenate((path[:shared], new))
        paths[sequence] = path
        before = sequence
    ends.update(dict.fromkeys(path.tolist(), len(tokens)))
    return Row(
        tokens=np.array(tokens, np.int64),
        positions=np.array(positions, np.int64),
        parents=np.array(parents, np.int64),
        ends=np.array([ends[place] for place in range(len(tokens))], np.int64),
        paths=paths,
    )


def common(one: Sequence, other: Sequence) -> int:
    """Length of the common beginning."""
    return sum(1 for _ in takewhile(bool, map(int.__eq__, one, other)))


def rows_of(sequences: Iterable[Sequence], width: int, longest: int) -> list[Row]:
    """Rows for all distinct sequences, sharing where it saves work, the longest row first.

    A row of T tokens costs about T (2 width + T): matrix products, and attention over the whole row, whose mask is
    dense. Rows of several sequences have at most `longest` tokens.
    """

    def cost(tokens: int) -> int:
        return tokens * (2 * width + tokens)

    groups: list[list[Sequence]] = []
    before: Sequence = ()
    length = 0
    for sequence in sorted(set(sequences)):
        joined = length + len(sequence) - common(before, sequence)
        if groups and joined <= longest and cost(joined) < cost(length) + cost(len(sequence)):
            groups[-1].append(sequence)
            length = joined
        else:
            groups.append([sequence])
            length = len(sequence)
        before = sequence
    return sorted((row_of(group) for group in groups), key=lambda row: -len(row.tokens))


def batches(rows: list[Row], tokens: int) -> Iterator[Batch]:
    """Consecutive rows, so many that rows times longest row stays within `tokens`; at least one."""
    start = 0
    while start < len(rows):
        end = start + max(1, tokens // len(rows[start].tokens))
        yield batch_of(rows[start:end])
        start = end
