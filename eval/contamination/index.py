"""Every text of every item that is looked for, by the hashes of its word n-grams.

* All runs of n words.
* Texts under n words as a whole, and questions under n words that have a longer text after them.
* Both halves of texts of n to 2n - 1 words: after one edit one of them is whole. From 2n words on, an edit leaves a
  run of n words in any case.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from eval.contamination.config import SHORTEST
from eval.contamination.ngram_scan import NgramTable, build_table, ngram_hashes, word_hashes
from eval.contamination.references import Reference, Severity
from eval.contamination.words import words

POSITION_BITS = 16
TEMPLATE_ITEMS = 5
"""From so many items on that share it, an n-gram says nothing about any of them."""


@dataclass(frozen=True, slots=True)
class Form:
    """One text of one item that is looked for."""

    reference: int
    """Position in the list of references."""
    number: int
    """Which of the reference's forms."""
    words: tuple[str, ...]
    question_words: int
    answer: tuple[int, int] | None


@dataclass(frozen=True)
class Index:
    n: int
    forms: list[Form]
    answers: list[list[tuple[str, ...]]] = field(repr=False)
    """Of every reference: its right answers' words."""
    reach: list[int] = field(repr=False)
    """Of every reference: words in which a listing of its choices ends."""
    table: NgramTable
    length: np.ndarray
    """Words of every n-gram."""
    place_first: np.ndarray
    """Places of n-gram i: places[place_first[i] : place_first[i + 1]]."""
    places: np.ndarray
    """int64: position in `forms` * 2^16 + word position in the form."""
    items: np.ndarray
    """Of every n-gram: how many items have it; canaries are none."""

    @property
    def fingerprint(self) -> str:
        """Digest of all that a scan looks for, so that a result names the index it was made with."""
        digest = hashlib.blake2b(f"{self.n} {len(self.forms)}".encode(), digest_size=16)
        table = (self.table.hashes, self.table.slots, self.table.long_bitmap, self.table.short_bitmap)
        for array in (*table, self.place_first, self.places, self.items):
            digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()


def build_index(references: list[Reference], n: int) -> Index:
    """Index of every reference's forms."""
    forms: list[Form] = []
    hashes: dict[int, list[np.ndarray]] = {length: [] for length in range(min(SHORTEST, n), n + 1)}
    places: dict[int, list[np.ndarray]] = {length: [] for length in hashes}
    endings: list[np.ndarray] = [np.zeros(0, np.uint64)]
    same: dict[str, str] = {}
    for number, reference in enumerate(references):
        for which, text in enumerate(reference.forms):
            sequence = tuple(same.setdefault(word, word) for word in words(text.text))
            if len(sequence) < SHORTEST:
                continue
            hashed = word_hashes(sequence)
            base = len(forms) << POSITION_BITS
            hashes[n].append(ngram_hashes(hashed, n))
            places[n].append(base + np.arange(len(hashes[n][-1])))
            for first, last in _short_parts(len(sequence), text.question_words, n):
                hashes[last - first].append(ngram_hashes(hashed[first:last], last - first))
                places[last - first].append(np.array([base + first]))
                endings.append(ngram_hashes(hashed[last - SHORTEST : last], SHORTEST))
            forms.append(Form(number, which, sequence, text.question_words, text.answer))
    empty = np.zeros(0, np.uint64)
    table, numbers = build_table(
        {length: np.concatenate([empty, *parts]) for length, parts in hashes.items()}, np.concatenate(endings)
    )
    number_of_place = np.concatenate([numbers[length] for length in hashes])
    all_places = np.concatenate([np.concatenate([np.zeros(0, np.int64), *places[length]]) for length in hashes])
    order = np.argsort(number_of_place, kind="stable")
    counts = np.bincount(number_of_place, minlength=len(table.hashes))
    owners = np.array([form.reference for form in forms], np.int64)
    is_item = np.array([references[form.reference].severity is not Severity.CANARY for form in forms], bool)
    owned = is_item[all_places >> POSITION_BITS]
    pairs = np.unique(np.stack([number_of_place, owners[all_places >> POSITION_BITS]])[:, owned], axis=1)
    return Index(
        n=n,
        forms=forms,
        answers=[[tuple(words(answer)) for answer in reference.answers] for reference in references],
        reach=[_reach(reference) for reference in references],
        table=table,
        length=np.repeat(table.lengths, np.diff(table.first)),
        place_first=np.concatenate([[0], np.cumsum(counts)]),
        places=all_places[order],
        items=np.bincount(pairs[0], minlength=len(table.hashes)),
    )


def _reach(reference: Reference) -> int:
    choices = [*reference.answers, *reference.others]
    return sum(len(words(choice)) + 2 for choice in choices) + 8  # a letter and a word such as "answer" with each


def _short_parts(count: int, question_words: int, n: int) -> Iterator[tuple[int, int]]:
    """Parts of a text of `count` words that are looked for though they are under n words: (first, last)."""
    parts = set()
    if count < n:
        parts.add((0, count))
    elif count < 2 * n:
        parts |= {(0, count // 2), (count // 2, count)}
    parts.add((0, question_words))
    return ((first, last) for first, last in sorted(parts) if SHORTEST <= last - first < n)
