"""The compiled inner loop: words and their n-gram hashes straight from UTF-8 bytes, looked up in a table.

* One pass, no copies: a document costs its bytes and nothing else, however long its lines are.
* A hash only proposes. Every hit is compared word for word by `eval/contamination/match.py`, and equal words always
  have equal hashes, so nothing is missed and nothing is invented.
* Every character stands for itself (`eval/contamination/words.py`), so a table says what it contributes. One that
  contributes nothing, such as a soft hyphen, costs no more than a letter.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numba
import numpy as np

from eval.contamination.renderings import MARKS, may_begin_mark
from eval.contamination.words import folding_tables

_BLOCK = 256
_RING = 1024  # words that are remembered: a block and the longest n-gram before it
_PRIME = np.uint64(0x100000001B3)
_BASIS = np.uint64(0xCBF29CE484222325)
_MIX = np.uint64(0xD6E8FEB86659FD93)
_STEP = np.uint64(0x9E3779B97F4A7C15)
_HALF = np.uint64(32)
_PACKED = np.uint64(63)
_SIX = np.uint64(6)
_TWELVE = np.uint64(12)
_ONE = np.uint64(1)
_FEWEST_HITS = 4096
_MOST_BITS = 23


@dataclass(frozen=True)
class NgramTable:
    """n-grams of several lengths by hash: open addressing behind two bitmaps that refuse nearly every word.

    A bitmap has one 64-bit word, chosen by a hash's highest bits, in which two more of its bits stand.
    """

    lengths: np.ndarray
    """int64, ascending; the last is the length of nearly all n-grams."""
    powers: np.ndarray
    """uint64: _STEP ** length, to take the words before an n-gram out of a hash."""
    long_bitmap: np.ndarray
    """uint64: the n-grams of the last length."""
    short_bitmap: np.ndarray
    """uint64: the last words of all shorter n-grams, as many as the shortest has."""
    hashes: np.ndarray
    """uint64: hash of every n-gram, ascending within a length."""
    first: np.ndarray
    """int64: number of the first n-gram of each length, and the number of all."""
    slots: np.ndarray
    """int32, a power of two of them: n-gram that stands there, or -1."""


def build_table(
    hashes_by_length: dict[int, np.ndarray], short_endings: np.ndarray
) -> tuple[NgramTable, dict[int, np.ndarray]]:
    """The table, and for every length the number that each of its hashes got.

    `short_endings` are the hashes of the last words of all n-grams but the longest, as many as the shortest has.
    """
    lengths = sorted(hashes_by_length)
    numbers, unique, total = {}, [], 0
    for length in lengths:
        distinct, inverse = np.unique(hashes_by_length[length], return_inverse=True)
        numbers[length] = inverse + total
        unique.append(distinct)
        total += len(distinct)
    hashes = np.concatenate(unique)
    slots = np.full(1 << max(4, int(np.ceil(np.log2(2 * total + 1)))), -1, np.int32)
    _fill_slots(hashes, slots)
    table = NgramTable(
        lengths=np.array(lengths, np.int64),
        powers=np.array([pow(int(_STEP), length, 1 << 64) for length in lengths], np.uint64),
        long_bitmap=_bitmap(unique[-1]),
        short_bitmap=_bitmap(np.unique(short_endings)),
        hashes=hashes,
        first=np.cumsum([0, *map(len, unique)]),
        slots=slots,
    )
    return table, numbers


def _bitmap(distinct: np.ndarray) -> np.ndarray:
    # ten bits or more for each, sparse enough to refuse nearly all words, and small enough for the L2 cache
    bits = max(18, min(_MOST_BITS, int(np.ceil(np.log2(len(distinct) + 1))) + 3))
    bitmap = np.zeros(1 << (bits - 6), np.uint64)
    place = (distinct >> np.uint64(32)) & np.uint64(len(bitmap) - 1)
    for shift in (np.uint64(0), _SIX, _TWELVE):
        np.bitwise_or.at(bitmap, place, _ONE << (distinct >> shift & _PACKED))
    return bitmap


@numba.njit(inline="always")
def _may_hold(bitmap: np.ndarray, ngram: np.uint64) -> bool:
    packed = bitmap[(ngram >> _HALF) & np.uint64(len(bitmap) - 1)]
    both = packed >> (ngram & _PACKED) & packed >> (ngram >> _SIX & _PACKED)
    return both & packed >> (ngram >> _TWELVE & _PACKED) & _ONE != 0


@numba.njit(cache=True)
def _fill_slots(hashes: np.ndarray, slots: np.ndarray) -> None:
    mask = np.uint64(len(slots) - 1)
    for number in range(len(hashes)):
        place = (hashes[number] >> _HALF) & mask
        while slots[place] >= 0:
            place = (place + _ONE) & mask
        slots[place] = number


@dataclass(frozen=True)
class Hits:
    """Places of n-grams of the table, in order; the arrays are as long as there are hits."""

    document: np.ndarray
    word: np.ndarray
    """Position of the n-gram's first word among the document's words."""
    ngram: np.ndarray
    start: np.ndarray
    """First byte, from the document's beginning."""
    end: np.ndarray
    words: np.ndarray
    """Of every document: how many words it has."""
    marked: np.ndarray
    """Of every document: whether it may have a rendering (`eval/contamination/renderings.py`); plain prose has none."""


@cache
def _tables() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """`folding_tables`, but a separator that may begin a mark is an expansion, so that the others cost no question."""
    fold, first, expansion = folding_tables()
    fold[[ord(mark) for mark in MARKS if fold[ord(mark)] == 0]] = -len(first)
    return fold, np.append(first, first[-1] + 1).astype(np.int32), np.append(expansion, 0).astype(np.int32)


def scan(data: np.ndarray, offsets: np.ndarray, table: NgramTable) -> Hits:
    """All hits in the documents data[offsets[i] : offsets[i + 1]], UTF-8 as uint8."""
    capacity = _FEWEST_HITS
    word_counts = np.zeros(len(offsets) - 1, np.int64)
    marked = np.zeros(len(offsets) - 1, np.bool_)
    while True:
        found = np.empty((capacity, 5), np.int64)
        count = _scan(
            data,
            offsets,
            *_tables(),
            table.lengths,
            table.powers,
            table.long_bitmap,
            table.short_bitmap,
            table.hashes,
            table.slots,
            found,
            word_counts,
            marked,
        )
        if count <= capacity:
            document, word, ngram, start, end = found[:count].T
            return Hits(document, word, ngram, start, end, word_counts, marked)
        capacity = count


def word_hashes(sequence: Sequence[str]) -> np.ndarray:
    """The hash of every word, as the scan has it."""
    joined = " ".join(sequence)
    data = np.frombuffer(joined.encode("utf-8"), np.uint8)
    hashes = np.zeros(len(sequence), np.uint64)
    count = _hash_words(data, hashes)
    if count != len(sequence):
        raise ValueError(f"{len(sequence)} words, but {count} when joined by spaces")
    return hashes


def ngram_hashes(hashes: np.ndarray, length: int) -> np.ndarray:
    """The hash of every run of `length` words, from `word_hashes`."""
    count = max(0, len(hashes) - length + 1)
    combined = np.zeros(count, np.uint64)
    for position in range(length):
        combined = combined * _STEP + hashes[position : position + count]
    return combined


def lookup(hashes: np.ndarray, length: int, table: NgramTable) -> np.ndarray:
    """Numbers of the n-grams of that length with these hashes; -1 where there is none."""
    number = int(np.searchsorted(table.lengths, length))
    first, last = table.first[number], table.first[number + 1]
    if first == last:
        return np.full(len(hashes), -1)
    found = first + np.minimum(np.searchsorted(table.hashes[first:last], hashes), last - first - 1)
    return np.where(table.hashes[found] == hashes, found, -1)


@numba.njit(inline="always")
def _letter(word: np.uint64, code: int | np.int64) -> np.uint64:
    return (word ^ np.uint64(code)) * _PRIME


@numba.njit(inline="always")
def _finished(word: np.uint64) -> np.uint64:
    word = (word ^ (word >> _HALF)) * _MIX
    return word ^ (word >> _HALF)


@numba.njit(inline="always")
def _decode(data: np.ndarray, i: int, end: int) -> tuple[int | np.int64, int]:
    """(code point, bytes) at i; a byte that starts no valid character is U+FFFD, as in bytes.decode."""
    lead = np.int64(data[i])
    if lead < 0x80:
        return lead, 1
    if 0xC2 <= lead <= 0xDF and i + 1 < end and data[i + 1] & 0xC0 == 0x80:
        return (lead & 0x1F) << 6 | np.int64(data[i + 1] & 0x3F), 2
    if 0xE0 <= lead <= 0xEF and i + 2 < end and data[i + 1] & 0xC0 == 0x80 and data[i + 2] & 0xC0 == 0x80:
        code = (lead & 0x0F) << 12 | np.int64(data[i + 1] & 0x3F) << 6 | np.int64(data[i + 2] & 0x3F)
        if code >= 0x800 and not 0xD800 <= code <= 0xDFFF:
            return code, 3
    if (
        0xF0 <= lead <= 0xF4
        and i + 3 < end
        and data[i + 1] & 0xC0 == 0x80
        and data[i + 2] & 0xC0 == 0x80
        and data[i + 3] & 0xC0 == 0x80
    ):
        code = (
            (lead & 0x07) << 18
            | np.int64(data[i + 1] & 0x3F) << 12
            | np.int64(data[i + 2] & 0x3F) << 6
            | np.int64(data[i + 3] & 0x3F)
        )
        if 0x10000 <= code <= 0x10FFFF:
            return code, 4
    return 0xFFFD, 1


@numba.njit(cache=True)
def _find_ngram(hashes: np.ndarray, slots: np.ndarray, ngram: np.uint64) -> int:
    """Number of the n-gram with this hash, or -1."""
    mask = np.uint64(len(slots) - 1)
    place = (ngram >> _HALF) & mask
    while slots[place] >= 0:
        if hashes[slots[place]] == ngram:
            return slots[place]
        place = (place + _ONE) & mask
    return -1


@numba.njit(cache=True)
def _hash_words(data: np.ndarray, hashes: np.ndarray) -> int:
    """Hashes of words joined by single spaces."""
    count, i, end = 0, 0, len(data)
    word = _BASIS
    while i < end:
        code, width = _decode(data, i, end)
        if code == 32:
            hashes[count] = _finished(word)
            count += 1
            word = _BASIS
        else:
            word = _letter(word, code)
        i += width
    if end:
        hashes[count] = _finished(word)
        count += 1
    return count


@numba.njit(cache=True)
def _scan(
    data,
    offsets,
    fold,
    expansion_first,
    expansion,
    lengths,
    powers,
    long_bitmap,
    short_bitmap,
    hashes,
    slots,
    found,
    word_counts,
    marked,
):
    prefix = np.zeros(_RING, np.uint64)  # hash of all words up to one: an n-gram's is a difference of two
    starts = np.zeros(_RING, np.int64)
    ends = np.zeros(_RING, np.int64)
    likely = np.zeros(_BLOCK, np.int64)
    hit_count = 0
    for document in range(len(offsets) - 1):
        first, end = offsets[document], offsets[document + 1]
        count = looked_up = 0
        start, last = np.int64(-1), np.int64(0)
        word = _BASIS
        prefix[_RING - 1] = np.uint64(0)  # stands before word 0
        i = first
        while i <= end:
            # one character, or the end of the document as a separator
            if i == end:
                code, width = np.int64(0), 1
            elif data[i] < 0x80:
                code, width = np.int64(fold[data[i]]), 1
            else:
                point, width = _decode(data, i, end)
                code = np.int64(fold[point])
            if code > 0:
                if start < 0:
                    start = i
                word = _letter(word, code)
                i += width
                last = i
                continue
            part, parts = 0, 1
            if code < 0:
                part, parts = expansion_first[-1 - code], expansion_first[-code]
                marked[document] |= may_begin_mark(data, i, first, end)
            while part < parts:
                if code < 0 and expansion[part] > 0:
                    if start < 0:
                        start = i
                    word = _letter(word, expansion[part])
                    last = i + width
                elif start >= 0:
                    ring = count & (_RING - 1)
                    starts[ring], ends[ring] = start, last
                    prefix[ring] = prefix[(count - 1) & (_RING - 1)] * _STEP + _finished(word)
                    count += 1
                    start = np.int64(-1)
                    word = _BASIS
                    if count - looked_up == _BLOCK:
                        hit_count = _look_up(
                            prefix,
                            starts,
                            ends,
                            likely,
                            looked_up,
                            count,
                            document,
                            first,
                            lengths,
                            powers,
                            long_bitmap,
                            short_bitmap,
                            hashes,
                            slots,
                            found,
                            hit_count,
                        )
                        looked_up = count
                part += 1
            i += width
        word_counts[document] = count
        hit_count = _look_up(
            prefix,
            starts,
            ends,
            likely,
            looked_up,
            count,
            document,
            first,
            lengths,
            powers,
            long_bitmap,
            short_bitmap,
            hashes,
            slots,
            found,
            hit_count,
        )
    return hit_count


@numba.njit(inline="always")
def _ngram(prefix: np.ndarray, count: int, length: int, power: np.uint64) -> np.uint64:
    """Hash of the `length` words before word `count`."""
    return prefix[(count - 1) & (_RING - 1)] - prefix[(count - 1 - length) & (_RING - 1)] * power


@numba.njit(cache=True)
def _look_up(
    prefix,
    starts,
    ends,
    likely,
    looked_up,
    count,
    document,
    first,
    lengths,
    powers,
    long_bitmap,
    short_bitmap,
    hashes,
    slots,
    found,
    hit_count,
):
    """Write the hits of n-grams that end with words `looked_up` to `count` - 1; returns how many there are now.

    The bitmaps are asked for a whole block of words first: the loads do not depend on each other or on any branch, so
    the processor waits for many at once. Asked word by word they took half of the scan's time.
    """
    shortest, longest = lengths[0], lengths[-1]
    candidates = 0
    for after in range(looked_up + 1, count + 1):
        long = (after >= longest) & _may_hold(long_bitmap, _ngram(prefix, after, longest, powers[-1]))
        short = (after >= shortest) & _may_hold(short_bitmap, _ngram(prefix, after, shortest, powers[0]))
        likely[candidates] = after << 2 | long << 1 | short
        candidates += long | short
    for candidate in range(candidates):
        after, long, short = likely[candidate] >> 2, likely[candidate] & 2, likely[candidate] & 1
        for number in range(-1 if long else 0, len(lengths) - 1 if short else 0):  # the longest first
            length = lengths[number]
            if after < length:
                continue
            place = _find_ngram(hashes, slots, _ngram(prefix, after, length, powers[number]))
            if place >= 0:
                if hit_count < len(found):
                    begin, last = starts[(after - length) & (_RING - 1)], ends[(after - 1) & (_RING - 1)]
                    found[hit_count] = (document, after - length, place, begin - first, last - first)
                hit_count += 1
    return hit_count
