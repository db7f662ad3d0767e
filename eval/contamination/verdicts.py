"""What a contamination check found: matches, a verdict and a class per item, and the files that hold them.

`Tally` adds up matches from any number of documents in any order. What it keeps grows with the items and with the
documents that contaminate one, not with the corpus.
"""

import heapq
import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq

from eval.contamination.config import SHORTEST, ContaminationConfig
from eval.contamination.references import Reference, Severity
from eval.contamination.words import located_words, words
from model.errors import DailyTrainError

if TYPE_CHECKING:
    from eval.contamination.match import Overlap

_AROUND, _LONGEST_SNIPPET = 120, 600  # characters shown beside and of a match
_CHARACTER_BYTES = 4
_KEPT_MATCHES = 200
_SWEEP_RUNS, _SWEEP_COVERAGES = range(8, 41), [tenths / 10 for tenths in range(1, 11)]
RESULT_FILES = ("verdicts.parquet", "flagged.parquet", "matches.jsonl", "coverage.json", "sweep.json")
VERDICTS_SCHEMA = pa.schema(
    [
        ("suite", pa.string()),
        ("item", pa.int32()),
        ("verdict", pa.string()),
        ("kind", pa.string()),
        ("longest_run", pa.int32()),  # words, the most in any document
        ("coverage", pa.float64()),  # share of the item's words, the most in any document
        ("documents", pa.int64()),  # documents with something of the item
        ("document", pa.string()),  # the best match: its document's id; null without a match
        ("file", pa.string()),
        ("start", pa.int64()),  # characters of its text
        ("end", pa.int64()),
        ("start_byte", pa.int64()),  # the same in its UTF-8
        ("end_byte", pa.int64()),
        ("item_words", pa.int32()),
    ]
)
FLAGGED_SCHEMA = pa.schema([(name, pa.string()) for name in ("document", "file", "suite")] + [("item", pa.int32())])


class ContaminationError(DailyTrainError):
    """Documents that cannot be read, or a check that does not find what was planted."""


class Verdict(StrEnum):
    CLEAN = "clean"
    CONTAMINATED = "contaminated"
    UNCHECKABLE = "uncheckable"


class Kind(StrEnum):
    """What of an item stands in the text, the most serious first."""

    EXACT = "exact"
    """Question and right answer, near each other."""
    ANSWER_AND_CONTEXT = "answer+context"
    """The right answer and less than half of the question."""
    QUESTION = "question"
    """The question without the right answer near it."""
    SOURCE = "source"
    """The passage an item was made from, without its right continuation."""
    BOILERPLATE = "boilerplate"
    """Only a short part that many items have: not contaminated."""
    CLEAN = "clean"
    UNCHECKABLE = "uncheckable"


_KINDS = list(Kind)


@dataclass(frozen=True, slots=True)
class Match:
    """What one document has of one item."""

    overlap: "Overlap"
    document: str
    file: str
    place: tuple[int, ...]
    """Where the document stands among all documents; makes the order of matches one."""
    start: int
    """Character of the document's text; the overlap has bytes."""
    end: int
    snippet: tuple[str, str, str]
    """Before, in and after the longest run."""

    @property
    def reference(self) -> int:
        return self.overlap.reference


@dataclass(frozen=True, slots=True)
class ItemVerdict:
    reference: Reference
    verdict: Verdict
    kind: Kind
    longest_run: int
    """Words, the most in any document."""
    coverage: float
    """Share of the item's words, the most in any document."""
    documents: int
    """Documents with something of the item."""
    best: Match | None
    item_words: int
    """Words of the form that matched best, else of the first."""


@dataclass(frozen=True)
class ContaminationResult:
    verdicts: list[ItemVerdict]
    """One per reference, in their order."""
    matches: list[Match]
    """The best of every contaminated item and the 200 strongest, best first."""
    flagged: list[tuple[str, str, int]]
    """(document, file, reference): every document that contaminates an item that is scored."""
    documents: int
    words: int


@dataclass
class _Item:
    best: Match
    run: int = 0
    coverage: float = 0.0
    documents: int = 0
    kinds: set[Kind] = field(default_factory=set)
    """What the documents that contaminate have of the item."""


class Tally:
    """Adds up what documents have in common with the references; any order of adding gives the same result."""

    def __init__(
        self, config: ContaminationConfig, items: list[Reference], lengths: list[list[int]] | None = None
    ) -> None:
        """`lengths`: `item_lengths(items)`, where they are known."""
        self._config = config
        self._references = items
        self._lengths = lengths or item_lengths(items)
        self._items: dict[int, _Item] = {}
        self._strongest: list[Match] = []
        self._contaminating: list[tuple[tuple[int, ...], str, str, int]] = []
        self.documents = 0
        self.words = 0

    @property
    def size(self) -> int:
        """How many references, of those that are looked for the first ones, it gives a verdict of."""
        return len(self._references)

    def add(self, documents: int, word_count: int, matches: list[Match]) -> None:
        self.documents += documents
        self.words += word_count
        for match in matches:
            overlap = match.overlap
            item = self._items.setdefault(match.reference, _Item(match))
            item.best = min(item.best, match, key=self._rank)
            item.run, item.coverage = max(item.run, overlap.run), max(item.coverage, overlap.coverage)
            item.documents += 1
            if not self._config.contaminates(overlap):
                continue
            kind = Kind.BOILERPLATE if self._config.is_template(overlap) else self._kind(overlap)
            item.kinds.add(kind)
            if kind is not Kind.BOILERPLATE:
                self._contaminating.append((match.place, match.document, match.file, match.reference))
        if matches:
            self._strongest = heapq.nsmallest(_KEPT_MATCHES, [*self._strongest, *matches], key=self._rank)

    def _rank(self, match: Match) -> tuple:
        found = match.overlap
        contaminates = self._config.contaminates(found) and not self._config.is_template(found)
        return (not contaminates, not found.exact, -found.run, -found.coverage, match.place, match.reference)

    def _kind(self, found: "Overlap") -> Kind:
        if found.answer:
            return Kind.EXACT if found.exact else Kind.ANSWER_AND_CONTEXT
        return Kind.SOURCE if self._references[found.reference].has_context else Kind.QUESTION

    def result(self) -> ContaminationResult:
        verdicts = [self._verdict(number) for number in range(len(self._references))]
        contaminated = {number for number, found in enumerate(verdicts) if found.verdict is Verdict.CONTAMINATED}
        kept = {(match.place, match.reference): match for match in self._strongest}
        for number in contaminated:
            best = self._items[number].best
            kept[best.place, number] = best
        flagged = [
            (document, file, number)
            for _, document, file, number in sorted(self._contaminating)
            if self._references[number].severity is Severity.TEST
        ]
        matches = sorted(kept.values(), key=self._rank)
        return ContaminationResult(verdicts, matches, flagged, self.documents, self.words)

    def _verdict(self, number: int) -> ItemVerdict:
        reference, lengths = self._references[number], self._lengths[number]
        found = self._items.get(number)
        if found is None:
            checkable = max(lengths) >= SHORTEST
            verdict = Verdict.CLEAN if checkable else Verdict.UNCHECKABLE
            return ItemVerdict(reference, verdict, Kind(verdict.value), 0, 0.0, 0, None, lengths[0])
        kind = min(found.kinds, key=_KINDS.index, default=Kind.CLEAN)
        verdict = Verdict.CLEAN if kind in (Kind.BOILERPLATE, Kind.CLEAN) else Verdict.CONTAMINATED
        length = lengths[found.best.overlap.form]
        return ItemVerdict(reference, verdict, kind, found.run, found.coverage, found.documents, found.best, length)


def item_lengths(items: Iterable[Reference]) -> list[list[int]]:
    """Words of every form of every item."""
    return [[len(words(form.text)) for form in item.forms] for item in items]


def snippet(data: bytes, start: int, end: int) -> tuple[str, str, str]:
    """Text before, in and after bytes start to end, each shortened, and always writable as UTF-8."""
    around, longest = _AROUND * _CHARACTER_BYTES, _LONGEST_SNIPPET * _CHARACTER_BYTES
    if end - start > 2 * longest:
        inside = _text(data[start : start + longest]) + _text(data[end - longest : end])
    else:
        inside = _text(data[start:end])
    if len(inside) > _LONGEST_SNIPPET:
        inside = f"{inside[: _LONGEST_SNIPPET // 2]} … {inside[-_LONGEST_SNIPPET // 2 :]}"
    before, after = _text(data[max(0, start - around) : start]), _text(data[end : end + around])
    return before[-_AROUND:], inside, after[:_AROUND]


def _text(data: bytes) -> str:
    return data.decode("utf-8", "replace")


def write_result(out: Path, result: ContaminationResult, control: dict, config: ContaminationConfig) -> None:
    """Writes `RESULT_FILES`; equal results give equal bytes."""
    out.mkdir(parents=True, exist_ok=True)
    rows = [_verdict_row(found) for found in result.verdicts]
    pq.write_table(pa.Table.from_pylist(rows, schema=VERDICTS_SCHEMA), out / "verdicts.parquet")
    flagged = []
    for document, file, number in result.flagged:
        reference = result.verdicts[number].reference
        flagged.append({"document": document, "file": file, "suite": reference.suite, "item": reference.item})
    pq.write_table(pa.Table.from_pylist(flagged, schema=FLAGGED_SCHEMA), out / "flagged.parquet")
    lines = [json.dumps(_match_row(match, result, config), ensure_ascii=False) for match in result.matches]
    (out / "matches.jsonl").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    (out / "coverage.json").write_text(json.dumps(_coverage(result, control, config), indent=2) + "\n")
    (out / "sweep.json").write_text(json.dumps(list(_sweep(result))) + "\n")


def _verdict_row(found: ItemVerdict) -> dict:
    best = found.best
    return {
        "suite": found.reference.suite,
        "item": found.reference.item,
        "verdict": found.verdict.value,
        "kind": found.kind.value,
        "longest_run": found.longest_run,
        "coverage": found.coverage,
        "documents": found.documents,
        "document": best and best.document,
        "file": best and best.file,
        "start": best and best.start,
        "end": best and best.end,
        "start_byte": best and best.overlap.start,
        "end_byte": best and best.overlap.end,
        "item_words": found.item_words,
    }


def _match_row(match: Match, result: ContaminationResult, config: ContaminationConfig) -> dict:
    """One match with both texts as {before, match, after}."""
    overlap, verdict = match.overlap, result.verdicts[match.reference]
    reference = verdict.reference
    text = reference.forms[overlap.form].text
    located = located_words(text)
    start, end = located[overlap.form_word][1], located[overlap.form_word + overlap.run - 1][2]
    item = snippet(text.encode(), len(text[:start].encode()), len(text[:end].encode()))
    parts = ("before", "match", "after")
    return {
        "suite": reference.suite,
        "item": reference.item,
        "verdict": verdict.verdict.value,
        "kind": verdict.kind.value,
        "contaminates": config.contaminates(overlap) and not config.is_template(overlap),
        "run": overlap.run,
        "coverage": overlap.coverage,
        "document": match.document,
        "file": match.file,
        "start": match.start,
        "end": match.end,
        "start_byte": overlap.start,
        "end_byte": overlap.end,
        "document_text": dict(zip(parts, match.snippet)),
        "item_text": dict(zip(parts, item)),
        "answers": reference.answers,
        "others": reference.others,
    }


def _coverage(result: ContaminationResult, control: dict, config: ContaminationConfig) -> dict:
    suites: dict[str, dict] = {}
    for found in result.verdicts:
        counts = {"items": 0, "checkable": 0, "uncheckable": [], "clean": 0, "contaminated": 0, "by_kind": {}}
        severity = found.reference.severity.value
        suite = suites.setdefault(found.reference.suite, {"severity": severity} | counts)
        suite["items"] += 1
        suite["by_kind"][found.kind.value] = suite["by_kind"].get(found.kind.value, 0) + 1
        if found.verdict is Verdict.UNCHECKABLE:
            suite["uncheckable"].append(found.reference.item)
        else:
            suite["checkable"] += 1
            suite[found.verdict.value] += 1
    return {
        "documents": result.documents,
        "words": result.words,
        "config": asdict(config),
        "suites": suites,
        "control": control,
    }


def _sweep(result: ContaminationResult) -> Iterator[dict]:
    """Contaminated items of every scored suite if a run of so many words, or such a coverage, alone decided."""
    by_suite: dict[str, list[ItemVerdict]] = {}
    for found in result.verdicts:
        if found.reference.severity is Severity.TEST:
            kept = by_suite.setdefault(found.reference.suite, [])
            if found.kind is not Kind.BOILERPLATE:
                kept.append(found)
    for suite, kept in by_suite.items():
        for run in _SWEEP_RUNS:
            yield {"suite": suite, "run": run, "contaminated": sum(found.longest_run >= run for found in kept)}
        for coverage in _SWEEP_COVERAGES:
            count = sum(found.coverage >= coverage for found in kept)
            yield {"suite": suite, "coverage": coverage, "contaminated": count}
