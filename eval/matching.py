"""All documents against all items: the compiled scan, and Python's normalisation where characters act on each other.

Both give the same words, so both find the same.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from eval.index import Index
from eval.overlaps import Overlap, overlaps
from eval.textscan import lookup, ngram_hashes, scan, word_hashes
from eval.words import located_words, words

_PIECE_BYTES, _FOLLOWING_BYTES = 2**20, 2**16


@dataclass(frozen=True, slots=True)
class Found:
    """What one document has of all items."""

    words: int
    overlaps: list[Overlap]
    """One for every reference with something in common."""
    ngrams: np.ndarray
    """Numbers of all n-grams of the index that the document has, each once."""


def find_all(data: np.ndarray, offsets: np.ndarray, index: Index) -> Iterator[Found]:
    """`Found` for every document data[offsets[i] : offsets[i + 1]]."""
    hits = scan(data, offsets, index.table)
    bounds = np.searchsorted(hits.document, np.arange(len(offsets)))
    nothing = np.zeros(0, np.int64)
    for document, count in enumerate(hits.words.tolist()):
        text = data[offsets[document] : offsets[document + 1]]
        if count < 0:
            count, found = _slow_hits(text, index)
        else:
            part = slice(bounds[document], bounds[document + 1])
            found = np.stack([hits.word[part], hits.ngram[part], hits.start[part], hits.end[part]])
        if found.shape[1] == 0:
            yield Found(count, [], nothing)
        else:
            yield Found(count, overlaps(text, found, index), np.unique(found[1]))


def _slow_hits(data: np.ndarray, index: Index) -> tuple[int, np.ndarray]:
    """(words, hits as rows word, n-gram, start, end) by Python's normalisation, a megabyte at a time."""
    count, first, found = 0, 0, [np.zeros((4, 0), np.int64)]
    while first < len(data):
        last = _piece_end(data, first, _PIECE_BYTES)
        own = len(words(_decoded(data[first:last])))
        # with the beginning of what follows, so that no n-gram is cut
        text = _decoded(data[first : _piece_end(data, last, _FOLLOWING_BYTES)])
        hashed = word_hashes(words(text))
        for length in index.table.lengths.tolist():
            ngrams = lookup(ngram_hashes(hashed, length), length, index.table)[:own]
            positions = np.flatnonzero(ngrams >= 0)
            if len(positions):
                located = np.array([(start, end) for _, start, end in located_words(text)])
                byte_of = first + _byte_offsets(text)
                starts, ends = byte_of[located[positions, 0]], byte_of[located[positions + length - 1, 1]]
                found.append(np.stack([count + positions, ngrams[positions], starts, ends]))
        count += own
        first = last
    return count, np.concatenate(found, axis=1)


def _piece_end(data: np.ndarray, first: int, size: int) -> int:
    """End of a piece of at most `size` bytes: at white space, or inside of a word that is longer than that."""
    last = min(len(data), first + size)
    if last == len(data):
        return last
    piece = data[first + 1 : last + 1]
    spaces = np.flatnonzero((piece == 32) | (piece == 10))
    if len(spaces):
        return first + 1 + int(spaces[-1])
    while last > first + 1 and data[last] & 0xC0 == 0x80:
        last -= 1
    return last


def _decoded(data: np.ndarray) -> str:
    """Bytes that are not UTF-8 become one surrogate each, which separates words as U+FFFD does."""
    return data.tobytes().decode("utf-8", "surrogateescape")


def _byte_offsets(text: str) -> np.ndarray:
    """Where every character of a `_decoded` text starts, and where the text ends."""
    codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)
    widths = 1 + (codes >= 0x80).astype(np.int64) + (codes >= 0x800) + (codes >= 0x10000)
    widths[(codes >= 0xD800) & (codes <= 0xDFFF)] = 1
    return np.concatenate([[0], np.cumsum(widths)])
