"""From hits of single n-grams in one document to what the document has of each item.

Every run is compared with the item word for word before it counts. Beside runs of n words there are two kinds of
evidence: a text of n to 2n - 1 words with one word changed, added or left out, and a question under n words with
the right answer after it.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from eval.index import POSITION_BITS, TEMPLATE_ITEMS, Form, Index
from eval.words import words

_BYTES_OF_WORD = 24
_BLOCK_HITS = 20_000
_KEPT_REPEATS = 4
"""Times that the same run of the same text is looked at in one document."""
_MOST_TRIES = 1000
"""Times that one short n-gram is tried in one document as part of an edited text or as a question."""
_LONGEST_REACH = 400
_NEARLY_WHOLE = 0.8


@dataclass(frozen=True, slots=True)
class Overlap:
    """What one document has of one item, by the form it has most of."""

    reference: int
    form: int
    run: int
    """Longest run of words in common."""
    coverage: float
    """Share of the form's words, or of its question's if that is more, that are in common."""
    question: bool
    """Whether half of the question, or more, is in common."""
    answer: bool
    """Whether the right answer is in common, or stands near the question."""
    start: int
    """First byte of the longest run in the document's UTF-8."""
    end: int
    form_word: int
    """First word of the longest run in the form."""
    ngrams: tuple[int, ...]
    """Numbers of the n-grams in common."""
    template: bool
    """Whether every one of them stands in many items, so that it tells none of them: "which of the following is"."""

    @property
    def exact(self) -> bool:
        return self.question and self.answer

    @property
    def whole(self) -> bool:
        """Question and right answer, nearly word for word: no coincidence, however common its parts are."""
        return self.exact and self.coverage >= _NEARLY_WHOLE


@dataclass(frozen=True, slots=True)
class _Run:
    """Words in common, one after the other; start and end are bytes of the document."""

    length: int
    word: int
    form_word: int
    start: int
    end: int


class _Evidence:
    """What the document has of one form."""

    def __init__(self) -> None:
        self.runs: list[_Run] = []
        self.edited: _Run | None = None
        """The unchanged half of the form, when the rest has one edit."""
        self.asked: _Run | None = None
        """The question, when it is short and the right answer follows."""
        self.ngrams: set[int] = set()


def overlaps(data: np.ndarray, hits: np.ndarray, index: Index) -> list[Overlap]:
    """One overlap for every reference that the document `data`, UTF-8, has something of, in their order.

    `hits` has the rows word, n-gram, start and end.
    """
    hits = hits[:, np.argsort(hits[0], kind="stable")]
    hits = hits[:, _telling(hits, index)]
    evidence: dict[int, _Evidence] = defaultdict(_Evidence)
    seen: dict[tuple[int, int, int], int] = defaultdict(int)
    for block in _blocks(hits[0]):
        _collect(data, hits[:, block], index, evidence, seen)
    best: dict[int, Overlap] = {}
    for number, found in sorted(evidence.items()):
        overlap = _overlap(data, number, found, index)
        other = best.get(overlap.reference)
        if other is None or _strength(overlap) > _strength(other):
            best[overlap.reference] = overlap
    return [best[reference] for reference in sorted(best)]


def _telling(hits: np.ndarray, index: Index) -> np.ndarray:
    """Positions of the hits that are not mere repeats: a document of one phrase a million times costs no more."""
    long = index.length[hits[1]] == index.n
    whole, short = np.flatnonzero(long), np.flatnonzero(~long)
    gaps = np.diff(hits[0, whole]) > 1
    alone = (np.append(True, gaps) & np.append(gaps, True))[: len(whole)]
    single = whole[alone]
    kept = [
        whole[~alone],
        single[_first_of_each(hits[1, single], _KEPT_REPEATS)],
        short[_first_of_each(hits[1, short], _MOST_TRIES)],
    ]
    return np.sort(np.concatenate(kept))


def _blocks(word: np.ndarray) -> Iterator[slice]:
    """Parts of many hits, cut where no run goes on: what one hit unfolds to can be thousands of places."""
    gaps = np.flatnonzero(np.diff(word) > 1) + 1
    first = 0
    while first < len(word):
        later = gaps[np.searchsorted(gaps, first + _BLOCK_HITS) :]
        last = int(later[0]) if len(later) else len(word)
        yield slice(first, last)
        first = last


def _collect(
    data: np.ndarray,
    hits: np.ndarray,
    index: Index,
    evidence: dict[int, _Evidence],
    seen: dict[tuple[int, int, int], int],
) -> None:
    """Adds what the hits say to the evidence; `seen` counts how often a stretch of a form was met."""
    word, ngram, start, end = hits
    counts = index.place_first[ngram + 1] - index.place_first[ngram]
    hit = np.repeat(np.arange(len(word)), counts)
    within = np.arange(len(hit)) - np.repeat(np.cumsum(counts) - counts, counts)
    place = index.places[index.place_first[ngram[hit]] + within]
    form, form_word = place >> POSITION_BITS, place & (1 << POSITION_BITS) - 1
    long = index.length[ngram[hit]] == index.n

    firsts, lasts = _diagonals(form, form_word, word[hit], np.flatnonzero(long))
    lengths = word[hit[lasts]] - word[hit[firsts]] + index.n
    for each in _first_of_each(place[firsts] << POSITION_BITS | lengths, _KEPT_REPEATS).tolist():
        first, last = hit[firsts[each]], hit[lasts[each]]
        run = _Run(
            int(lengths[each]), int(word[first]), int(form_word[firsts[each]]), int(start[first]), int(end[last])
        )
        key = (int(form[firsts[each]]), run.form_word, run.length)
        seen[key] += 1
        if seen[key] <= _KEPT_REPEATS and _holds(data, run, index.forms[key[0]]):
            evidence[key[0]].runs.append(run)
    short = np.flatnonzero(~long)
    tries = _first_of_each(place[short] << POSITION_BITS | index.length[ngram[hit[short]]], _MOST_TRIES)
    for each in short[tries].tolist():
        at = hit[each]
        run = _Run(int(index.length[ngram[at]]), int(word[at]), int(form_word[each]), int(start[at]), int(end[at]))
        key = (int(form[each]), run.form_word, run.length)
        seen[key] += 1
        tried = seen[key] <= _MOST_TRIES and _holds(data, run, index.forms[key[0]])
        if tried and _is_evidence(data, run, key[0], index, evidence):
            evidence[key[0]].ngrams.add(int(ngram[at]))
    pairs = np.unique(np.stack([form[long], ngram[hit[long]]]), axis=1)
    for number, found in pairs.T.tolist():
        if number in evidence:
            evidence[number].ngrams.add(found)


def _strength(overlap: Overlap) -> tuple:
    return overlap.exact, overlap.run, overlap.coverage


def _diagonals(
    form: np.ndarray, form_word: np.ndarray, word: np.ndarray, chosen: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """First and last of every series of neighbouring hits in which form and document advance together."""
    order = chosen[np.lexsort((word[chosen], word[chosen] - form_word[chosen], form[chosen]))]
    steps = np.diff(form[order]) | np.diff(form_word[order]) - 1 | np.diff(word[order]) - 1
    ends = np.append(np.flatnonzero(steps), len(order) - 1)[: len(order)]
    return order[np.append(0, ends[:-1] + 1)[: len(order)]], order[ends]


def _first_of_each(keys: np.ndarray, most: int) -> np.ndarray:
    """Positions of the first `most` of equal keys."""
    order = np.argsort(keys, kind="stable")
    new = np.append(True, np.diff(keys[order]) != 0)[: len(order)]
    first = np.flatnonzero(new)
    rank = np.arange(len(order)) - first[np.cumsum(new) - 1]
    return np.sort(order[rank < most])


def _holds(data: np.ndarray, run: _Run, form: Form) -> bool:
    """Whether the words really are the form's; a character that is several words may add some at both ends."""
    found = words(_text(data, run.start, run.end))
    expected = list(form.words[run.form_word : run.form_word + run.length])
    return any(found[first : first + run.length] == expected for first in range(len(found) - run.length + 1))


def _text(data: np.ndarray, start: int, end: int) -> str:
    return data[max(0, start) : end].tobytes().decode("utf-8", "replace")


def _after(data: np.ndarray, end: int, count: int) -> list[str]:
    """Up to `count` words that follow."""
    stop = end + count * _BYTES_OF_WORD
    found = words(_text(data, end, stop))
    return found[: min(count, len(found) - (stop < len(data)))]  # the last may be cut


def _before(data: np.ndarray, start: int, count: int) -> list[str]:
    stop = start - count * _BYTES_OF_WORD
    found = words(_text(data, stop, start))[stop > 0 :]
    return found[-count:] if count else []


def _is_evidence(
    data: np.ndarray, run: _Run, number: int, index: Index, evidence: dict[int, _Evidence]
) -> bool:
    """Whether a run of under n words says anything about its form; adds it to the evidence then."""
    form = index.forms[number]
    count = len(form.words)
    last = run.form_word + run.length
    if run.length == count:
        evidence[number].runs.append(run)
        return True
    asked = (run.form_word, last) == (0, form.question_words) and _answer_after(data, run, last, form, index)
    if asked:
        evidence[number].asked = run
    if count >= index.n and _is_edited(data, run, form):
        evidence[number].edited = run
        return True
    return asked


def _is_edited(data: np.ndarray, run: _Run, form: Form) -> bool:
    """Whether the run is one half of the form, and the other half stands beside it with one edit."""
    count, last = len(form.words), run.form_word + run.length
    if (run.form_word, last) == (0, count // 2):
        rest = form.words[last:]
        near = _after(data, run.end, len(rest) + 1)
    elif (run.form_word, last) == (count // 2, count):
        rest = form.words[: run.form_word][::-1]
        near = _before(data, run.start, len(rest) + 1)[::-1]
    else:
        return False
    return _one_edit(rest, tuple(near))


def _one_edit(expected: tuple[str, ...], found: tuple[str, ...]) -> bool:
    """Whether `found` begins with the expected words, one of them at most changed, left out or added."""
    same = 0
    while same < min(len(expected), len(found)) and expected[same] == found[same]:
        same += 1
    rest = expected[same + 1 :]
    left = found[same:]
    return left[: len(rest)] == rest or left[1 : len(rest) + 1] == rest or left[1 : len(rest) + 2] == expected[same:]


def _answer_after(data: np.ndarray, run: _Run, form_last: int, form: Form, index: Index) -> bool:
    """Whether a right answer stands in the words after the run where a listing of the choices would."""
    rest = len(form.words) - form_last
    found = _after(data, run.end, min(_LONGEST_REACH, index.reach[form.reference] + rest))
    return any(_contains(found, answer) for answer in index.answers[form.reference])


def _contains(sequence: Sequence[str], part: tuple[str, ...]) -> bool:
    size = len(part)
    return size > 0 and any(tuple(sequence[i : i + size]) == part for i in range(len(sequence) - size + 1))


def _overlap(data: np.ndarray, number: int, found: _Evidence, index: Index) -> Overlap:
    form = index.forms[number]
    count, asked = len(form.words), form.question_words
    in_form, in_document = set(), set()
    for run in found.runs:
        in_form.update(range(run.form_word, run.form_word + run.length))
        in_document.update(range(run.word, run.word + run.length))
    # a phrase that an item repeats is not twice as much of it when the document has it once
    coverage = min(len(in_form), len(in_document)) / count
    of_question = coverage
    if asked:
        of_question = min(sum(word < asked for word in in_form), len(in_document)) / asked
    longest = max([*found.runs, *filter(None, (found.edited, found.asked))], key=lambda run: run.length)
    answer = form.answer is not None and in_form.issuperset(range(*form.answer))
    if not answer and found.runs:
        answer = _answer_after(data, longest, longest.form_word + longest.length, form, index)
    if found.edited:
        coverage = max(coverage, (count - 1) / count)
        of_question, answer = 1.0, answer or form.answer is not None
    if found.asked:
        of_question, answer = 1.0, True
    short = bool(found.edited or found.asked) or count < index.n
    return Overlap(
        reference=form.reference,
        form=form.number,
        run=longest.length,
        coverage=max(coverage, of_question) if asked >= index.n or found.asked else coverage,
        question=of_question >= 0.5,
        answer=answer,
        start=longest.start,
        end=longest.end,
        form_word=longest.form_word,
        ngrams=tuple(sorted(found.ngrams)),
        template=not short and all(index.items[ngram] >= TEMPLATE_ITEMS for ngram in found.ngrams),
    )
