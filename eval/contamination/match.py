"""All documents against all items: the compiled scan over each document as it stands and over its renderings, and
from its hits of single n-grams to what a document has of each item.

Every run is compared with the item word for word before it counts. Beside runs of n words there are two kinds of
evidence: a text of n to 2n - 1 words with one word changed, added or left out, and a question under n words with
the right answer after it.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from eval.contamination.index import POSITION_BITS, TEMPLATE_ITEMS, Form, Index
from eval.contamination.ngram_scan import Hits, lookup, ngram_hashes, scan, word_hashes
from eval.contamination.renderings import Rendering, renderings
from eval.contamination.words import words

_BYTES_OF_WORD, _MOST_BYTES_OF_WORD = 24, 1536
"""Bytes of text in which so many words are expected, and so many more that are tried where they hold fewer: between
the letters of a word there may be others that nobody sees."""
_BLOCK_HITS = 20_000
_SCANNED_BYTES = 2**22
"""Bytes of renderings that are scanned at once, unless one is larger."""
_KEPT_REPEATS = 4
"""Times that the same run of the same text is looked at in one document."""
_MOST_TRIES = 1000
"""Times that one short n-gram is tried in one document as part of an edited text or as a question."""
_LONGEST_REACH = 400
_NEARLY_WHOLE, _WHOLE = 0.8, 0.9


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
    template: bool
    """Whether it is a part of the item that tells it from no other, as each of its n-grams stands in many items:
    "which of the following is an example of". Never the whole question, context or text."""

    @property
    def exact(self) -> bool:
        return self.question and self.answer


@dataclass(frozen=True, slots=True)
class DocumentOverlaps:
    """What one document has of all items."""

    words: int
    overlaps: list[Overlap]
    """One for every reference with something in common."""


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
        self.distinctive = False
        """Whether one of the n-grams in common stands in few items."""


def find_overlaps(data: np.ndarray, offsets: np.ndarray, index: Index) -> Iterator[DocumentOverlaps]:
    """What every document has, data[offsets[i] : offsets[i + 1]]."""
    hits = scan(data, offsets, index.table)
    rendered = _in_renderings(data, offsets, hits.marked, index)
    plain = _by_document(data, offsets, hits, index)
    for document, (count, found) in enumerate(zip(hits.words.tolist(), plain, strict=True)):
        more = rendered.get(document, [])
        yield DocumentOverlaps(count, merge_overlaps([*found, *more]) if more else found)


def _by_document(data: np.ndarray, offsets: np.ndarray, hits: Hits, index: Index) -> Iterator[list[Overlap]]:
    bounds = np.searchsorted(hits.document, np.arange(len(offsets)))
    for document in range(len(offsets) - 1):
        part = slice(bounds[document], bounds[document + 1])
        if part.start == part.stop:
            yield []
        else:
            rows = np.stack([hits.word[part], hits.ngram[part], hits.start[part], hits.end[part]])
            yield _in_document(data[offsets[document] : offsets[document + 1]], rows, index)


def _in_renderings(data: np.ndarray, offsets: np.ndarray, marked: np.ndarray, index: Index) -> dict[int, list[Overlap]]:
    """By document what its renderings have of the items; bytes are those of the document."""
    found: dict[int, list[Overlap]] = {}
    for batch in _rendered_batches(data, offsets, marked):
        texts = [rendering.data for _, rendering in batch]
        content, ends = np.concatenate(texts), np.cumsum([0, *map(len, texts)])
        hits = scan(content, ends, index.table)
        for (document, rendering), each in zip(batch, _by_document(content, ends, hits, index), strict=True):
            for overlap in each:
                start, end = rendering.span(overlap.start, overlap.end)
                found.setdefault(document, []).append(replace(overlap, start=start, end=end))
    return found


def _rendered_batches(
    data: np.ndarray, offsets: np.ndarray, marked: np.ndarray
) -> Iterator[list[tuple[int, Rendering]]]:
    batch, size = [], 0
    for document in np.flatnonzero(marked).tolist():
        for rendering in renderings(data[offsets[document] : offsets[document + 1]]):
            batch.append((document, rendering))
            size += len(rendering.data)
            if size >= _SCANNED_BYTES:
                yield batch
                batch, size = [], 0
    if batch:
        yield batch


def _in_document(data: np.ndarray, hits: np.ndarray, index: Index) -> list[Overlap]:
    """One overlap for every reference that the document `data`, UTF-8, has something of, in their order.

    `hits` has the rows word, n-gram, start and end.
    """
    hits = hits[:, np.argsort(hits[0], kind="stable")]
    hits = hits[:, _drop_repeats(hits, index)]
    evidence: dict[int, _Evidence] = defaultdict(_Evidence)
    seen: dict[tuple[int, int, int], int] = defaultdict(int)
    for block in _blocks(hits[0]):
        _collect_evidence(data, hits[:, block], index, evidence, seen)
    return merge_overlaps(_overlap(data, number, found, index) for number, found in sorted(evidence.items()))


def merge_overlaps(overlaps: Iterable[Overlap]) -> list[Overlap]:
    """One overlap a reference, in their order: of its forms, and of renderings of the document, the longest run, and
    with it the most that any of them has."""
    by_reference: dict[int, list[Overlap]] = defaultdict(list)
    for overlap in overlaps:
        by_reference[overlap.reference].append(overlap)
    return [_strongest(same) for _, same in sorted(by_reference.items())]


def _strongest(same: list[Overlap]) -> Overlap:
    telling = [overlap for overlap in same if not overlap.template] or same
    longest = max(telling, key=lambda overlap: (overlap.run, overlap.exact, overlap.coverage))
    exact = any(overlap.exact for overlap in telling)
    return replace(
        longest,
        coverage=max(overlap.coverage for overlap in telling),
        question=longest.question or exact,
        answer=longest.answer or exact,
    )


def _drop_repeats(hits: np.ndarray, index: Index) -> np.ndarray:
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


def _collect_evidence(
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
        if seen[key] <= _KEPT_REPEATS and _has_words(data, run, index.forms[key[0]]):
            evidence[key[0]].runs.append(run)
    short = np.flatnonzero(~long)
    tries = _first_of_each(place[short] << POSITION_BITS | index.length[ngram[hit[short]]], _MOST_TRIES)
    for each in short[tries].tolist():
        at = hit[each]
        run = _Run(int(index.length[ngram[at]]), int(word[at]), int(form_word[each]), int(start[at]), int(end[at]))
        key = (int(form[each]), run.form_word, run.length)
        seen[key] += 1
        if seen[key] <= _MOST_TRIES and _has_words(data, run, index.forms[key[0]]):
            _add_short(data, run, key[0], index, evidence)
    for number in np.unique(form[long & (index.items[ngram[hit]] < TEMPLATE_ITEMS)]).tolist():
        if number in evidence:
            evidence[number].distinctive = True


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


def _has_words(data: np.ndarray, run: _Run, form: Form) -> bool:
    """Whether the words really are the form's; a character that is several words may add some at both ends."""
    found = words(_text(data, run.start, run.end))
    expected = list(form.words[run.form_word : run.form_word + run.length])
    return any(found[first : first + run.length] == expected for first in range(len(found) - run.length + 1))


def _text(data: np.ndarray, start: int, end: int) -> str:
    return data[max(0, start) : end].tobytes().decode("utf-8", "replace")


def _words_after(data: np.ndarray, end: int, count: int) -> list[str]:
    """Up to `count` words that follow."""
    for size in _window_sizes(count):
        stop = end + size
        found = words(_text(data, end, stop))
        whole = len(found) - (stop < len(data))  # the last may be cut
        if whole >= count or stop >= len(data):
            break
    return found[: min(count, max(0, whole))]


def _words_before(data: np.ndarray, start: int, count: int) -> list[str]:
    for size in _window_sizes(count):
        stop = start - size
        found = words(_text(data, stop, start))[stop > 0 :]
        if len(found) >= count or stop <= 0:
            break
    return found[-count:] if count else []


def _window_sizes(count: int) -> Iterator[int]:
    size = _BYTES_OF_WORD
    while size <= _MOST_BYTES_OF_WORD:
        yield count * size
        size *= 4


def _add_short(data: np.ndarray, run: _Run, number: int, index: Index, evidence: dict[int, _Evidence]) -> None:
    """Adds a run of under n words to the evidence if it says anything about its form."""
    form = index.forms[number]
    count = len(form.words)
    last = run.form_word + run.length
    if run.length == count:
        evidence[number].runs.append(run)
        return
    if (run.form_word, last) == (0, form.question_words) and _answer_after(data, run, last, form, index):
        evidence[number].asked = run
    if count >= index.n and _is_edited(data, run, form):
        evidence[number].edited = run


def _is_edited(data: np.ndarray, run: _Run, form: Form) -> bool:
    """Whether the run is one half of the form, and the other half stands beside it with one edit."""
    count, last = len(form.words), run.form_word + run.length
    if (run.form_word, last) == (0, count // 2):
        rest = form.words[last:]
        near = _words_after(data, run.end, len(rest) + 1)
    elif (run.form_word, last) == (count // 2, count):
        rest = form.words[: run.form_word][::-1]
        near = _words_before(data, run.start, len(rest) + 1)[::-1]
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
    found = _words_after(data, run.end, min(_LONGEST_REACH, index.reach[form.reference] + rest))
    return any(_contains(found, answer) for answer in index.answers[form.reference])


def _contains(sequence: Sequence[str], part: tuple[str, ...]) -> bool:
    size = len(part)
    return size > 0 and any(tuple(sequence[i : i + size]) == part for i in range(len(sequence) - size + 1))


def _overlap(data: np.ndarray, number: int, found: _Evidence, index: Index) -> Overlap:
    form = index.forms[number]
    count, asked = len(form.words), form.question_words
    in_form: set[int] = set()
    in_document: set[int] = set()
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
        template=not (short or found.distinctive or _is_whole(form, coverage, of_question, answer, index)),
    )


def _is_whole(form: Form, coverage: float, of_question: float, answer: bool, index: Index) -> bool:
    """Whether n-grams that many items share are, all the same, the whole of this one: question and right answer, or a
    question (a text, where it has none of n words) that is made of such n-grams alone."""
    if of_question >= 0.5 and answer and max(coverage, of_question) >= _NEARLY_WHOLE:
        return True
    asked = form.question_words if form.question_words >= index.n else len(form.words)
    share = of_question if asked == form.question_words else coverage
    if share < _WHOLE:
        return False
    hashes = ngram_hashes(word_hashes(form.words[:asked]), index.n)
    return bool(np.all(index.items[lookup(hashes, index.n, index.table)] >= TEMPLATE_ITEMS))
