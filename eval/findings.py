"""What a contamination check found: matches, a verdict per item, and the files that hold them.

`Tally` adds up matches from any number of documents in any order; what it keeps does not grow with the documents.
"""

import heapq
import json
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from eval.ngrams import SHORTEST, located_words, words
from eval.references import Reference

_AROUND, _LONGEST_SNIPPET = 120, 600  # characters shown beside and of a match
_KEPT_MATCHES = 200
VERDICTS_SCHEMA = pa.schema(
    [
        ("suite", pa.string()),
        ("item", pa.int32()),
        ("verdict", pa.string()),
        ("longest_run", pa.int32()),  # words, the most in any document
        ("coverage", pa.float64()),  # share of the item's words, the most in any document
        ("documents", pa.int64()),  # documents with at least one n-gram of the item
        ("document", pa.string()),  # the best match: its document's id; null without a match
        ("start", pa.int64()),  # characters of its text
        ("end", pa.int64()),
        ("item_words", pa.int32()),
    ]
)


class ContaminationError(Exception):
    """Documents that cannot be read, or a check that does not find what was planted."""


class Verdict(StrEnum):
    CLEAN = "clean"
    CONTAMINATED = "contaminated"
    UNCHECKABLE = "uncheckable"


@dataclass(frozen=True, kw_only=True)
class ContaminationConfig:
    ngram: int = 8
    """Shortest run of words in common that counts at all."""
    run: int = 13
    """Words in one run from which an item is contaminated."""
    coverage: float = 0.5
    """Share of an item's words in runs, within one document, from which it is contaminated."""
    control_items: int = 50
    """Items of every suite that the positive control plants."""

    def __post_init__(self) -> None:
        if not (5 <= self.ngram <= self.run and 0 < self.coverage <= 1 and self.control_items >= 1):
            raise ContaminationError(
                f"expected 5 <= ngram <= run, 0 < coverage <= 1 and control_items >= 1, found {self}"
            )

    def contaminates(self, run: int, coverage: float) -> bool:
        return run >= self.run or coverage >= self.coverage


@dataclass(frozen=True, slots=True)
class Match:
    """What one document has of one item. Offsets are characters of the document's text, end exclusive."""

    reference: int
    form: int
    form_word: int
    run: int
    coverage: float
    document: str
    place: tuple[int, ...]
    """Where the document stands among all documents; makes the order of matches one."""
    start: int
    end: int
    snippet: tuple[str, str, str]
    """Before, in and after the longest run."""


@dataclass(frozen=True, slots=True)
class ItemVerdict:
    reference: Reference
    verdict: Verdict
    longest_run: int
    """Words, the most in any document."""
    coverage: float
    """Share of the item's words, the most in any document."""
    documents: int
    """Documents with at least one n-gram of the item."""
    best: Match | None
    item_words: int
    """Words of the form that matched best, else of the first."""


@dataclass(frozen=True)
class Findings:
    verdicts: list[ItemVerdict]
    """One per reference, in their order."""
    matches: list[Match]
    """The strongest, best first, at most 200."""
    documents: int
    words: int


class Tally:
    """Adds up what documents have in common with the references; any order of adding gives the same findings."""

    def __init__(self, config: ContaminationConfig) -> None:
        self._config = config
        self._items: dict[int, tuple[int, float, int, Match]] = {}
        self._strongest: list[Match] = []
        self.documents = 0
        self.words = 0

    def add(self, documents: int, word_count: int, matches: list[Match]) -> None:
        self.documents += documents
        self.words += word_count
        for match in matches:
            run, coverage, count, best = self._items.get(match.reference, (0, 0.0, 0, match))
            best = min(best, match, key=self._rank)
            self._items[match.reference] = (max(run, match.run), max(coverage, match.coverage), count + 1, best)
        if matches:
            self._strongest = heapq.nsmallest(_KEPT_MATCHES, [*self._strongest, *matches], key=self._rank)

    def _rank(self, match: Match) -> tuple:
        contaminates = self._config.contaminates(match.run, match.coverage)
        return (not contaminates, -match.run, -match.coverage, match.place, match.reference)

    def findings(self, items: list[Reference]) -> Findings:
        verdicts = []
        for number, reference in enumerate(items):
            run, coverage, count, best = self._items.get(number, (0, 0.0, 0, None))
            lengths = [len(words(form)) for form in reference.forms]
            verdict = Verdict.CLEAN if max(lengths) >= SHORTEST else Verdict.UNCHECKABLE
            if self._config.contaminates(run, coverage):
                verdict = Verdict.CONTAMINATED
            length = lengths[best.form if best else 0]
            verdicts.append(ItemVerdict(reference, verdict, run, coverage, count, best, length))
        return Findings(verdicts, self._strongest, self.documents, self.words)


def snippet(text: str, start: int, end: int) -> tuple[str, str, str]:
    """Text before, in and after text[start:end], each shortened, and always writable as UTF-8."""
    inside = text[start:end]
    if len(inside) > _LONGEST_SNIPPET:
        inside = f"{inside[: _LONGEST_SNIPPET // 2]} … {inside[-_LONGEST_SNIPPET // 2 :]}"
    parts = text[max(0, start - _AROUND) : start], inside, text[end : end + _AROUND]
    return tuple(part.encode("utf-8", "replace").decode() for part in parts)


def write_findings(
    out: Path, findings: Findings, control: dict[str, dict[str, int]], config: ContaminationConfig
) -> None:
    """Writes `verdicts.parquet`, `matches.jsonl` and `coverage.json`; equal findings give equal bytes."""
    out.mkdir(parents=True, exist_ok=True)
    rows = [
        {
            "suite": found.reference.suite,
            "item": found.reference.item,
            "verdict": found.verdict.value,
            "longest_run": found.longest_run,
            "coverage": found.coverage,
            "documents": found.documents,
            "document": found.best and found.best.document,
            "start": found.best and found.best.start,
            "end": found.best and found.best.end,
            "item_words": found.item_words,
        }
        for found in findings.verdicts
    ]
    pq.write_table(pa.Table.from_pylist(rows, schema=VERDICTS_SCHEMA), out / "verdicts.parquet")
    lines = [json.dumps(_match_row(match, findings, config), ensure_ascii=False) for match in findings.matches]
    (out / "matches.jsonl").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    (out / "coverage.json").write_text(json.dumps(_coverage(findings, control, config), indent=2) + "\n")


def _match_row(match: Match, findings: Findings, config: ContaminationConfig) -> dict:
    """One match with both texts as {before, match, after}."""
    reference = findings.verdicts[match.reference].reference
    text = reference.forms[match.form]
    located = located_words(text)
    start, end = located[match.form_word][1], located[match.form_word + match.run - 1][2]
    parts = ("before", "match", "after")
    return {
        "suite": reference.suite,
        "item": reference.item,
        "contaminates": config.contaminates(match.run, match.coverage),
        "run": match.run,
        "coverage": match.coverage,
        "document": match.document,
        "start": match.start,
        "end": match.end,
        "document_text": dict(zip(parts, match.snippet)),
        "item_text": dict(zip(parts, snippet(text, start, end))),
        "answers": reference.answers,
        "others": reference.others,
    }


def _coverage(findings: Findings, control: dict[str, dict[str, int]], config: ContaminationConfig) -> dict:
    suites = {}
    for found in findings.verdicts:
        suite = suites.setdefault(
            found.reference.suite, {"items": 0, "checkable": 0, "uncheckable": [], "clean": 0, "contaminated": 0}
        )
        suite["items"] += 1
        if found.verdict is Verdict.UNCHECKABLE:
            suite["uncheckable"].append(found.reference.item)
        else:
            suite["checkable"] += 1
            suite[found.verdict.value] += 1
    for name, counts in suites.items():
        counts["control"] = control.get(name, {"planted": 0, "found": 0})
    return {
        "documents": findings.documents,
        "words": findings.words,
        "config": asdict(config),
        "suites": suites,
    }
