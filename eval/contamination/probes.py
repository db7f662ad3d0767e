"""Probes: invented items with documents for which every figure of the verdict is known before the scan.

Real items show that leaks are found; probes show that nothing is counted wrongly. They stand at both sides of each
threshold, at both ends of a document, beyond its first megabyte, beside the end of a block of the scan, and in the
spellings that normalisation makes equal. Their words are coined, so that they occur in no corpus.
"""

import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product

import numpy as np

from eval.contamination.config import ContaminationConfig
from eval.contamination.references import Reference, Text
from eval.contamination.verdicts import Kind, Verdict
from eval.contamination.words import words

SUITE = "control"
_CONSONANTS, _VOWELS = "bdfgklmnprstvz", "aeiou"
_SHORTEST, _TEMPLATE_ITEMS = 4, 5  # as documented and not imported, so that another value is noticed
_COPIES = 40
_MANY_ITEMS = 300
_NO_ITEM = 10**9
"""Number of an item that no suite has."""
_LARGE_BYTES = 2**20 + 2**16
_SPELLINGS = (
    ("Größe Straße Fluß Äpfel groß Maß weiß heiß", "GRÖSSE STRASSE FLUSS ÄPFEL GROSS MASS WEISS HEISS"),
    ("café naïve élève señor façade über hôtel Ångström", None),  # None: the same, decomposed
    ("office fly first baffle muffin fjord waffle flight", "oﬃce ﬂy ﬁrst baﬄe muﬃn fjord waﬄe ﬂight"),
    ("ο δρόμος προς τους μύλους είναι μακρύς εδώ", "Ο ΔΡΌΜΟΣ ΠΡΟΣ ΤΟΥΣ ΜΎΛΟΥΣ ΕΊΝΑΙ ΜΑΚΡΎΣ ΕΔΏ"),
    ("в лесу родилась ёлочка высокая зелёная самая красивая", "В ЛЕСУ РОДИЛАСЬ ЁЛОЧКА ВЫСОКАЯ ЗЕЛЁНАЯ САМАЯ КРАСИВАЯ"),
    ("한국 사람 나라 바다 하늘 나무 학교 친구", None),
    (
        "letters and 1984 digits in width twice more",
        "ｌｅｔｔｅｒｓ ａｎｄ １９８４ ｄｉｇｉｔｓ ｉｎ ｗｉｄｔｈ ｔｗｉｃｅ ｍｏｒｅ",
    ),
    ("x2 of 1 2 litre no 5 snake case", "x²…of «½» litre—no.\u00a05; “snake_case”"),
    (
        "which of these rivers runs through seven towns",
        "which <b>of</b> these ri&shy;vers &#114;uns <br/>through se\u00adven towns",
    ),
    ("don t stop me now 😀 it s fine", "don't\n\nstop\tme\x00now😀it’s\u2028fine"),
)
"""(text of the item, the same words in another spelling)."""


@dataclass(frozen=True, slots=True)
class Expected:
    """What the verdict of a probe must say."""

    verdict: Verdict
    kind: Kind
    longest_run: int = 0
    coverage: float = 0.0
    documents: int = 0
    place: tuple[int, int, int] | None = None
    """(which of the probe's documents, first character, last + 1) of the best match; None: none, or not checked."""


@dataclass(frozen=True, slots=True)
class Probe:
    """Invented items, the documents in which they are planted, and the verdicts that must come back."""

    documents: tuple[str, ...]
    items: tuple[tuple[str, Reference, Expected], ...]
    """(what was planted where, as a noun phrase for an error message; the item; its verdict)."""


NOTHING = Expected(Verdict.CLEAN, Kind.CLEAN)


class _Author:
    """Coins words, each one once."""

    def __init__(self, config: ContaminationConfig) -> None:
        self.config = config
        self.n, self.run = config.ngram, config.run
        self.long = 4 * self.run + int(np.ceil(self.run / config.coverage))
        """Words of an item of which a run as long as the threshold is not enough by its share of them."""
        self._generator = np.random.default_rng(0)
        self._coined: set[str] = set()
        self._items = 0
        filler = self.coin(600)
        self._filler = [" ".join(filler[first : first + 60]) for first in range(0, 600, 60)]

    def coin(self, count: int) -> list[str]:
        found: list[str] = []
        while len(found) < count:
            size = int(self._generator.integers(3, 5))
            letters = (self._generator.choice(list(part), size) for part in (_CONSONANTS, _VOWELS))
            word = "".join(consonant + vowel for consonant, vowel in zip(*letters))
            if word not in self._coined:
                self._coined.add(word)
                found.append(word)
        return found

    def prose(self, size: int = 0) -> str:
        """Filler of at least `size` characters; more than any n-gram."""
        text = self._filler[int(self._generator.integers(len(self._filler)))]
        if len(text) < size:
            text = " ".join([*self._filler] * (1 + size // sum(map(len, self._filler))))
        return text

    def reference(self, text: str, question_words: int = 0, answers: tuple[str, ...] = ()) -> Reference:
        count = len(words(text))
        self._items += 1
        form = Text(text, question_words, (question_words, count) if answers else None)
        return Reference(SUITE, self._items - 1, text, answers, (), (form,))

    def inside(self, planted: str) -> tuple[str, int, int]:
        """(document, start, end): the text between paragraphs."""
        before = f"{self.prose()}\n\n"
        return f"{before}{planted}\n\n{self.prose()}", len(before), len(before) + len(planted)

    def verdict(self, kind: Kind, run: int, share: float, documents: int, place: tuple | None) -> Expected:
        """What an overlap of so many words and such a share of the item leads to."""
        if run >= self.run or share >= self.config.coverage:
            return Expected(Verdict.CONTAMINATED, kind, run, share, documents, place)
        return Expected(Verdict.CLEAN, Kind.CLEAN, run, share, documents, place)

    def piece(self, name: str, item: Reference, text: str, kind: Kind, run: int, share: float) -> Probe:
        """An item of which one document has a text with so many of its words and such a share of them."""
        document, start, end = self.inside(text)
        return Probe((document,), ((name, item, self.verdict(kind, run, share, 1, (0, start, end))),))


def probes(config: ContaminationConfig) -> list[Probe]:
    """All probes; one that a configuration rules out is left out."""
    author = _Author(config)
    return [
        *_places(author),
        *_thresholds(author),
        *_short(author),
        *_kinds(author),
        *_common(author),
        *_spelled(author),
        *_absent(author),
        *_large(author),
    ]


def _places(author: _Author) -> Iterator[Probe]:
    def whole(name: str, before: str, after: str, count: int) -> Probe:
        split = author.coin(count)
        text = " ".join(split)
        item = author.reference(text, count - 4, (" ".join(split[-4:]),))
        place = (0, len(before), len(before) + len(text))
        expected = Expected(Verdict.CONTAMINATED, Kind.EXACT, count, 1.0, 1, place)
        return Probe((f"{before}{text}{after}",), ((name, item, expected),))

    size = author.run + 4
    yield whole("a whole item alone in a document", "", "", size)
    yield whole("a whole item at the beginning of a document", "", f" {author.prose()}", size)
    yield whole("a whole item at the end of a document", f"{author.prose()} ", "", size)
    accents = "Ça, là-bas: 東京の夏😀 Łódź żółw — naïve Ärger. "
    yield whole("a whole item after accented text", accents * 3, f" {accents}", size)
    yield whole("a whole item after decomposed accents", unicodedata.normalize("NFD", accents), f" {accents}", size)
    yield whole("an item of 5,000 words", f"{author.prose()} ", f" {author.prose()}", 5000)
    for _ in range(2):  # an end of a row group may part one pair
        split = author.coin(size)
        text = " ".join(split)
        item = author.reference(text, size - 4, (" ".join(split[-4:]),))
        expected = Expected(Verdict.CONTAMINATED, Kind.EXACT, size, 1.0, 1, (1, 0, len(text)))
        documents = (author.prose(16_000), f"{text} {author.prose()}")
        yield Probe(documents, (("a whole item at the beginning of a document behind a long one", item, expected),))
    for shift in range(0, 256, 37):
        before = " ".join(author.prose(8000).split()[: 256 + shift]) + " "
        yield whole(f"a whole item behind {256 + shift} words", before, f" {author.prose()}", size)


def _thresholds(author: _Author) -> Iterator[Probe]:
    n, run, coverage = author.n, author.run, author.config.coverage
    for count in sorted({run, run - 1, n} - {n - 1}):
        split = author.coin(author.long)
        item, text = author.reference(" ".join(split)), " ".join(split[2 : 2 + count])
        yield author.piece(f"{count} words of a long item", item, text, Kind.QUESTION, count, count / len(split))
    size = int(2 * n / coverage)
    if n < run and size >= 2 * n + 2:
        for count in (size, size + 1):
            split = author.coin(count)
            item = author.reference(" ".join(split))
            document, _, _ = author.inside(" ".join([*split[:n], *author.coin(3), *split[count - n :]]))
            expected = author.verdict(Kind.QUESTION, n, 2 * n / count, 1, None)
            yield Probe((document,), ((f"{2 * n} of the {count} words of an item, in two parts", item, expected),))


def _short(author: _Author) -> Iterator[Probe]:
    n = author.n
    text = " ".join(author.coin(_SHORTEST))
    yield author.piece(f"an item of {_SHORTEST} words", author.reference(text), text, Kind.QUESTION, _SHORTEST, 1.0)
    text = " ".join(author.coin(_SHORTEST))
    expected = Expected(Verdict.CONTAMINATED, Kind.QUESTION, _SHORTEST, 1.0, 1, (0, 0, len(text)))
    yield Probe((text,), ((f"an item of {_SHORTEST} words alone in a document", author.reference(text), expected),))
    text = " ".join(author.coin(_SHORTEST - 1))
    unknown = Expected(Verdict.UNCHECKABLE, Kind.UNCHECKABLE)
    document, _, _ = author.inside(text)
    yield Probe((document,), ((f"an item of {_SHORTEST - 1} words", author.reference(text), unknown),))
    count = max(n + 2, 2 * _SHORTEST)
    edits = {"changed": (1, 1), "left out": (0, 1), "after another word": (1, 0)}
    for edited, (edit, (put, taken)) in product((count // 2 - 1, count // 2), edits.items()):
        split = author.coin(count)
        item = author.reference(" ".join(split))
        document, _, _ = author.inside(" ".join([*split[:edited], *author.coin(put), *split[edited + taken :]]))
        half = count - count // 2 if edited < count // 2 else count // 2
        run = max(half, *(part for part in (edited, count - edited - taken) if part >= n), 0)
        expected = author.verdict(Kind.QUESTION, run, (count - 1) / count, 1, None)
        yield Probe((document,), ((f"an item of {count} words with word {edited + 1} {edit}", item, expected),))
    split = author.coin(min(n - 1, 5))
    asked, answer, wrong = " ".join(split), " ".join(author.coin(3)), " ".join(author.coin(2))
    item = author.reference(f"{asked} {answer}", len(split), (answer,))
    document, start, _ = author.inside(f"{asked}?\nA) {wrong}\nB) {answer}")
    expected = Expected(Verdict.CONTAMINATED, Kind.EXACT, len(split), 1.0, 1, (0, start, start + len(asked)))
    yield Probe((document,), (("a short question with its choices", item, expected),))


def _kinds(author: _Author) -> Iterator[Probe]:
    n, run = author.n, author.run
    split, answer = author.coin(run + 4), author.coin(4)
    item = author.reference(" ".join([*split, *answer]), len(split), (" ".join(answer),))
    yield author.piece("a question without its answer", item, " ".join(split), Kind.QUESTION, len(split), 1.0)
    split = author.coin(run + 4)
    item = replace(author.reference(" ".join(split)), suite="hellaswag", item=_NO_ITEM)
    yield author.piece("a passage that an item was made from", item, " ".join(split), Kind.SOURCE, len(split), 1.0)
    split, answer = author.coin(author.long), author.coin(4)
    item = author.reference(" ".join([*split, *answer]), len(split), (" ".join(answer),))
    share = max(run / (len(split) + 4), (run - 4) / len(split))
    text = " ".join([*split, *answer][-run:])
    yield author.piece("an answer and the end of its question", item, text, Kind.ANSWER_AND_CONTEXT, run, share)

    split = author.coin(run + 8)
    item = author.reference(" ".join(split), run, (" ".join(split[run:]),))
    part, (whole, start, end) = author.inside(" ".join(split[:n]))[0], author.inside(" ".join(split))
    expected = Expected(Verdict.CONTAMINATED, Kind.EXACT, len(split), 1.0, 4, (1, start, end))
    yield Probe((part, whole, part, whole), (("a whole item beside documents with a part of it", item, expected),))
    split = author.coin(run + 4)
    document, start, end = author.inside(" ".join(split))
    item = author.reference(" ".join(split), run, (" ".join(split[run:]),))
    expected = Expected(Verdict.CONTAMINATED, Kind.EXACT, len(split), 1.0, 2, (0, start, end))
    yield Probe((document, document), (("a whole item in two equal documents", item, expected),))
    texts = [" ".join(author.coin(run)) for _ in range(_MANY_ITEMS)]
    starts = np.cumsum([0, *(len(text) + 2 for text in texts)]).tolist()
    yield Probe(
        ("\n\n".join(texts),),
        tuple(
            (
                f"item {number + 1} of {_MANY_ITEMS} in one document",
                author.reference(text),
                Expected(Verdict.CONTAMINATED, Kind.QUESTION, run, 1.0, 1, (0, start, start + len(text))),
            )
            for number, (text, start) in enumerate(zip(texts, starts))
        ),
    )


def _common(author: _Author) -> Iterator[Probe]:
    """A short part that some items share is no leak, and with one item fewer it is; a long run is one, and so is what
    stands in many documents."""
    run, long = author.run, author.long
    short = max(author.n, run - 1)
    size = min(long, int(short / author.config.coverage))  # so that it is as much of the item as contaminates
    for count in (_TEMPLATE_ITEMS - 1, _TEMPLATE_ITEMS):
        kept = author.coin(short)
        document, start, end = author.inside(" ".join(kept))
        expected = author.verdict(Kind.QUESTION, short, short / size, 1, (0, start, end))
        if count == _TEMPLATE_ITEMS and short < run and short < 0.9 * size:  # no long run, not the whole text
            expected = replace(expected, verdict=Verdict.CLEAN, kind=Kind.BOILERPLATE)
        items = [author.reference(" ".join([*kept, *author.coin(size - short)])) for _ in range(count)]
        yield Probe((document,), tuple((f"words that {count} items share", item, expected) for item in items))
    kept = author.coin(run)
    document, start, end = author.inside(" ".join(kept))
    expected = author.verdict(Kind.QUESTION, run, run / long, 1, (0, start, end))
    items = [author.reference(" ".join([*kept, *author.coin(long - run)])) for _ in range(_TEMPLATE_ITEMS)]
    yield Probe((document,), tuple((f"a long run that {len(items)} items share", item, expected) for item in items))
    kept = author.coin(run)
    documents = tuple(author.inside(" ".join(kept))[0] for _ in range(_COPIES))
    expected = author.verdict(Kind.QUESTION, run, run / long, _COPIES, None)
    item = author.reference(" ".join([*kept, *author.coin(long - run)]))
    yield Probe(documents, ((f"words that {_COPIES} documents share", item, expected),))
    split = author.coin(run + 4)
    documents = tuple(author.inside(" ".join(split))[0] for _ in range(_COPIES))
    expected = Expected(Verdict.CONTAMINATED, Kind.EXACT, len(split), 1.0, len(documents))
    item = author.reference(" ".join(split), run, (" ".join(split[run:]),))
    yield Probe(documents, ((f"a whole item in {len(documents)} documents", item, expected),))


def _spelled(author: _Author) -> Iterator[Probe]:
    for text, other in _SPELLINGS:
        spelled = unicodedata.normalize("NFD", text) if other is None else other
        rest = " ".join(author.coin(max(0, author.run - len(words(text)))))
        item = author.reference(f"{text} {rest}".strip())
        document, _, _ = author.inside(f"{spelled} {rest}".strip())
        count = len(words(item.question))
        expected = Expected(Verdict.CONTAMINATED, Kind.QUESTION, count, 1.0, 1)
        yield Probe((document,), ((f"“{text}” in another spelling", item, expected),))


def _absent(author: _Author) -> Iterator[Probe]:
    """What must not be found."""
    n = author.n
    yield Probe(("",), ())

    def nothing(name: str, item: Reference, *texts: str) -> Probe:
        return Probe(tuple(author.inside(text)[0] for text in texts), ((name, item, NOTHING),))

    yield nothing("an item that is planted nowhere", author.reference(" ".join(author.coin(author.long))))
    split = author.coin(author.long)
    changed = [word if place % n else author.coin(1)[0] for place, word in enumerate(split)]
    yield nothing(f"an item with every {n}th word changed", author.reference(" ".join(split)), " ".join(changed))
    split = author.coin(max(n + 2, 2 * _SHORTEST))
    half = len(split) // 2
    changed = [*split[: half - 1], *author.coin(2), *split[half + 1 :]]
    yield nothing("a short item with two words changed", author.reference(" ".join(split)), " ".join(changed))
    plain = author.coin(author.run)
    accented = " ".join(f"{word}ø" for word in plain)
    item = author.reference(" ".join(f"{word}e" for word in plain))
    yield nothing("an item with another letter in each word", item, accented)
    split, answer = author.coin(min(n - 1, 5)), " ".join(author.coin(3))
    item = author.reference(f"{' '.join(split)} {answer}", len(split), (answer,))
    yield nothing("a short question without its answer", item, f"{' '.join(split)}?")
    split = author.coin(2 * n - 2)
    halves = (f"{author.prose()} {' '.join(split[: n - 1])}", f"{' '.join(split[n - 1 :])} {author.prose()}")
    item = author.reference(" ".join(split))
    yield Probe(halves, (("an item of which each of two documents holds one half", item, NOTHING),))


def _large(author: _Author) -> Iterator[Probe]:
    """Documents over a megabyte, plain and with decomposed accents: at the beginning, beyond a megabyte, at the end."""
    size = author.run + 4
    for name, filler in (("plain", author.prose(1000)), ("accented", f"{author.prose()}{' ' * 2**15}e\u0301")):
        texts = [" ".join(author.coin(size)) for _ in range(3)]
        # the second stands across the first megabyte's end
        room = 2**20 - len(texts[0]) - len(texts[1]) // 2
        unit = len(filler.encode()) + 1
        body = f" {filler}" * (room // unit)
        body = f"{body} {'z' * (room - len(body.encode()))} "
        rest = f" {filler}" * (1 + (_LARGE_BYTES - 2**20) // unit)
        document = f"{texts[0]}{body}{texts[1]}{rest} {texts[2]}"
        starts = (0, len(texts[0]) + len(body), len(document) - len(texts[2]))
        items = []
        for where, text, start in zip(("at the beginning", "beyond 1 MB", "at the end"), texts, starts):
            expected = Expected(Verdict.CONTAMINATED, Kind.QUESTION, size, 1.0, 1, (0, start, start + len(text)))
            items.append((f"an item {where} of a large {name} document", author.reference(text), expected))
        yield Probe((document,), tuple(items))
