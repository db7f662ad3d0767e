"""Exact word n-gram search: which stretches of which items stand in a document, and where.

* Text becomes words: NFKC, case-folded, everything that is not a letter or digit separates. Words and not tokens,
  so that a change of tokenizer changes no verdict.
* Keys are the words themselves: no hash is trusted and no document is sampled, so nothing is missed or invented.
* A document without a hit costs one pass in C (a generator of tuples tested against a dict); positions in the
  original text are worked out only for documents that have one.
"""

import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from operator import itemgetter

_WORD = re.compile(r"[^\W_]+")
_PIECE = re.compile(r"\S+")
_WORD_BITS = 16
_ASCII = {code: chr(code).lower() if chr(code).isalnum() else " " for code in range(128)}
SHORTEST = 4
"""Texts of fewer words cannot be told from ordinary prose and are reported as not checkable."""


def normalised(text: str) -> str:
    return unicodedata.normalize("NFKC", text).casefold()


def words(text: str) -> list[str]:
    """The words of a text, in order."""
    if text.isascii():
        return text.translate(_ASCII).split()
    return _WORD.findall(normalised(text))


def located_words(text: str) -> list[tuple[str, int, int]]:
    """(word, start, end) for every word of `words(text)`: characters of the original text, end exclusive.

    Normalising may change the length of a text, but never across white space, so each piece between white space is
    normalised alone. Where a piece does not normalise character by character its words get the whole piece.
    """
    found = []
    for piece in _PIECE.finditer(text):
        origins, parts = [], []
        for position, character in enumerate(piece.group(), piece.start()):
            part = normalised(character)
            parts.append(part)
            origins += [position] * len(part)
        whole = normalised(piece.group())
        exact = "".join(parts) == whole
        for word in _WORD.finditer(whole):
            if exact:
                found.append((word.group(), origins[word.start()], origins[word.end() - 1] + 1))
            else:
                found.append((word.group(), piece.start(), piece.end()))
    return found


def ngrams(sequence: Sequence[str], n: int) -> Iterator[tuple[str, ...]]:
    """All runs of n words."""
    return zip(*(islice(sequence, first, None) for first in range(n)))


@dataclass(frozen=True, slots=True)
class Form:
    """One text of one item that is looked for."""

    reference: int
    """Position in the list of references."""
    number: int
    """Which of the reference's forms."""
    words: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Overlap:
    """What one document has of one item, by the form it has most of."""

    reference: int
    form: int
    run: int
    """Longest run of words in common."""
    coverage: float
    """Share of the form's words that lie in a common run."""
    start: int
    """First character of the longest run in the document's original text."""
    end: int
    form_word: int
    """First word of the longest run in the form."""


@dataclass(frozen=True)
class Index:
    """All forms by their n-grams; forms of `SHORTEST` to n - 1 words by their first words, compared whole."""

    n: int
    forms: list[Form]
    by_ngram: dict[tuple[str, ...], int] = field(repr=False)
    """n-gram to its first place, packed as (position in `forms`) * 2^16 + (word position in the form)."""
    repeats: dict[tuple[str, ...], list[int]] = field(repr=False)
    """Further places of the few n-grams that have more than one: a list for each would triple the memory."""
    by_start: dict[tuple[str, ...], list[int]] = field(repr=False)


def build_index(forms_of_references: list[tuple[str, ...]], n: int) -> Index:
    """Index of every reference's forms, given as texts."""
    forms: list[Form] = []
    by_ngram: dict[tuple[str, ...], int] = {}
    repeats: dict[tuple[str, ...], list[int]] = defaultdict(list)
    by_start: dict[tuple[str, ...], list[int]] = defaultdict(list)
    same: dict[str, str] = {}
    for reference, texts in enumerate(forms_of_references):
        for number, text in enumerate(texts):
            form = Form(reference, number, tuple(same.setdefault(word, word) for word in words(text)))
            if len(form.words) < SHORTEST:
                continue
            if len(form.words) < n:
                by_start[form.words[:SHORTEST]].append(len(forms))
            for position, ngram in enumerate(ngrams(form.words, n)):
                place = (len(forms) << _WORD_BITS) + position
                if by_ngram.setdefault(ngram, place) != place:
                    repeats[ngram].append(place)
            forms.append(form)
    return Index(n, forms, by_ngram, dict(repeats), dict(by_start))


def find(text: str, index: Index) -> tuple[int, list[Overlap]]:
    """(number of words in the document, one `Overlap` for every reference it has an n-gram of)."""
    sequence = words(text)
    if index.by_ngram.keys().isdisjoint(ngrams(sequence, index.n)) and (
        not index.by_start or index.by_start.keys().isdisjoint(ngrams(sequence, SHORTEST))
    ):
        return len(sequence), []
    located = located_words(text)
    sequence = [word for word, _, _ in located]
    # Words in common lie on one diagonal: form and document advance together.
    positions: dict[int, dict[int, list[int]]] = defaultdict(lambda: defaultdict(list))
    for position, ngram in enumerate(ngrams(sequence, index.n)):
        if ngram not in index.by_ngram:
            continue
        for place in (index.by_ngram[ngram], *index.repeats.get(ngram, ())):
            form, form_word = divmod(place, 1 << _WORD_BITS)
            positions[form][position - form_word].append(position)
    runs = {form: list(_runs(diagonals, index.n)) for form, diagonals in positions.items()}
    for position, start in enumerate(ngrams(sequence, SHORTEST)):
        for form in index.by_start.get(start, ()):
            length = len(index.forms[form].words)
            if tuple(sequence[position : position + length]) == index.forms[form].words:
                runs.setdefault(form, [(length, position, 0)])
    best: dict[int, Overlap] = {}
    for form_position, found in sorted(runs.items()):
        form = index.forms[form_position]
        overlap = _overlap(form, found, located)
        other = best.get(form.reference)
        if other is None or (overlap.run, overlap.coverage) > (other.run, other.coverage):
            best[form.reference] = overlap
    return len(sequence), sorted(best.values(), key=lambda overlap: overlap.reference)


def _runs(diagonals: dict[int, list[int]], n: int) -> Iterator[tuple[int, int, int]]:
    """(length in words, first word in the document, first word in the form) of every maximal common run."""
    for shift, positions in diagonals.items():
        first = previous = positions[0]
        for position in [*positions[1:], -1]:
            if position != previous + 1:
                yield previous - first + n, first, first - shift
                first = position
            previous = position


def _overlap(form: Form, runs: list[tuple[int, int, int]], located: list[tuple[str, int, int]]) -> Overlap:
    in_form, in_document = set(), set()
    for length, position, form_word in runs:
        in_form.update(range(form_word, form_word + length))
        in_document.update(range(position, position + length))
    run, position, form_word = max(runs, key=itemgetter(0))
    return Overlap(
        reference=form.reference,
        form=form.number,
        run=run,
        # a phrase that an item repeats is not twice as much of it when the document has it once
        coverage=min(len(in_form), len(in_document)) / len(form.words),
        start=located[position][1],
        end=located[position + run - 1][2],
        form_word=form_word,
    )
