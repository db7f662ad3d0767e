"""The results of a scan added up a second time, by other code, and compared with the files that people read.

What is compared needs no threshold but the two of the configuration: how many documents have something of an item, the
longest run, the largest share, and whether any of them reaches a threshold at all.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from eval.contamination.references import Reference, Severity
from eval.contamination.renderings import text_and_renderings
from eval.contamination.verdicts import ContaminationConfig, ContaminationError, Kind, Verdict
from eval.contamination.words import words
from eval.document_parquet import RowGroup

Row = dict[str, Any]
"""One match, as a line of a result file."""
Places = tuple[int, int, int, int]
"""Of the longest run: first character and last + 1, the same in bytes."""
_PLACES = ("start", "end", "start_byte", "end_byte")
_NEARLY_WHOLE = 0.8
_FEWEST_SHOWN = 200


def control_failure(planted: str, came_back: str) -> ContaminationError:
    """The error of a control that failed, as one sentence for whoever runs the check."""
    return ContaminationError(
        f"positive control: {planted}, but {came_back}; no verdict of this scan was kept, because the scan or what it "
        "reads is broken: undo changes to eval/ and to the documents and run it again, or report this line"
    )


@dataclass(slots=True)
class ReferenceSums:
    """What all documents have of one reference."""

    documents: int = 0
    run: int = 0
    coverage: float = 0.0
    contaminating: int = 0
    """Documents that reach a threshold."""
    whole: int = 0
    """Documents with question and answer nearly word for word, which nothing makes harmless."""
    best: tuple[Any, ...] | None = None
    """Of the document that has the most: whether it does not contaminate, whether it has not question and answer, run
    and coverage with a minus, its place, its id and file."""


@dataclass
class Recount:
    """Sums over the result files of one part of the scan: the real documents, or the planted ones."""

    config: ContaminationConfig
    fingerprint: str
    """Of the index that every result must have been made with."""
    documents: int = 0
    bytes: int = 0
    words: int = 0
    references: dict[int, ReferenceSums] = field(default_factory=dict)
    reaching: dict[tuple[str, str, int], tuple[bool, Places]] = field(default_factory=dict)
    """(document, file, reference) of every match that reaches a threshold: whether it is whole, and its places."""

    def add(self, result: Path, group: RowGroup) -> tuple[Row, list[Row]]:
        """Adds one result file; returns its counts and its matches. Raises `ContaminationError`."""
        with result.open(encoding="utf-8") as file:
            head, *rows = map(json.loads, file)
        where = f"row group {group.group} of {group.path.name}"
        rows_there = pq.read_metadata(group.path).row_group(group.group).num_rows
        if (head["file"], head["group"], head["index"]) != (group.path.name, group.group, self.fingerprint):
            raise control_failure(
                f"{where} was scanned", f"{result.name} is the result of another scan or another file"
            )
        if head["documents"] != rows_there or head["matches"] != len(rows):
            raise control_failure(
                f"{where} has {rows_there} documents",
                f"{head['documents']} were scanned, and {len(rows)} of {head['matches']} matches are in the result",
            )
        for row in rows:
            file_number, group_number, number = row["place"]
            if (row["file"], file_number, group_number) != (group.path.name, group.file, group.group):
                raise control_failure(f"{where} was scanned", f"a match names row {row['place']} of {row['file']}")
            if not 0 <= number < rows_there:
                raise control_failure(f"{where} has {rows_there} documents", f"a match names its document {number}")
        self.documents += head["documents"]
        self.bytes += head["bytes"]
        self.words += head["words"]
        return head, rows

    def count(self, row: Row) -> None:
        """Adds one match."""
        overlap = row["overlap"]
        sums = self.references.setdefault(overlap["reference"], ReferenceSums())
        reaches = overlap["run"] >= self.config.run or overlap["coverage"] >= self.config.coverage
        whole = reaches and overlap["question"] and overlap["answer"] and overlap["coverage"] >= _NEARLY_WHOLE
        sums.documents += 1
        sums.run = max(sums.run, overlap["run"])
        sums.coverage = max(sums.coverage, overlap["coverage"])
        sums.contaminating += reaches
        sums.whole += whole
        harmless = not reaches or (overlap["template"] and overlap["run"] < self.config.run)
        exact = overlap["question"] and overlap["answer"]
        rank = (harmless, not exact, -overlap["run"], -overlap["coverage"], row["place"], row["document"], row["file"])
        sums.best = min(sums.best or rank, rank)
        if reaches:
            places = (row["start"], row["end"], overlap["start"], overlap["end"])
            self.reaching[row["document"], row["file"], overlap["reference"]] = (whole, places)


def check_result_files(folder: Path, recount: Recount, items: Sequence[Reference]) -> None:
    """Raises `ContaminationError` unless the result files say what the recount does."""
    verdicts = pq.read_table(folder / "verdicts.parquet").to_pylist()
    named = [(row["suite"], row["item"]) for row in verdicts]
    if named != [(item.suite, item.item) for item in items]:
        raise control_failure(
            f"{len(items)} items were looked for", f"verdicts.parquet has {len(named)} rows, or other items"
        )
    for number, row in enumerate(verdicts):
        _check_verdict(row, recount.references.get(number, ReferenceSums()))
    _check_flagged(folder, recount, verdicts, items)
    coverage = json.loads((folder / "coverage.json").read_text())
    if (coverage["documents"], coverage["words"]) != (recount.documents, recount.words):
        raise control_failure(
            f"{recount.documents} documents of {recount.words} words were scanned",
            f"coverage.json has {coverage['documents']} of {coverage['words']}",
        )
    _check_suites(coverage, verdicts, items)
    _check_sweep(json.loads((folder / "sweep.json").read_text()), verdicts, items)
    _check_matches(folder, verdicts)


def _check_verdict(row: Row, sums: ReferenceSums) -> None:
    name = _item_name(row)
    found = (row["documents"], row["longest_run"], row["coverage"])
    if found != (sums.documents, sums.run, sums.coverage):
        raise control_failure(
            f"{sums.documents} documents have words of {name}, {sums.run} in a row and {sums.coverage:.3f} of it",
            f"its verdict has {found[0]} documents, {found[1]} in a row and {found[2]:.3f}",
        )
    if sums.best is not None and (row["document"], row["file"]) != sums.best[-2:]:
        raise control_failure(
            f"document {sums.best[-2]} has the most of {name}", f"document {row['document']} is shown for it"
        )
    verdict, kind = Verdict(row["verdict"]), Kind(row["kind"])
    dirty = verdict is Verdict.CONTAMINATED
    harmless = kind is Kind.BOILERPLATE if sums.contaminating else kind in (Kind.CLEAN, Kind.UNCHECKABLE)
    consistent = dirty == (kind not in (Kind.BOILERPLATE, Kind.CLEAN, Kind.UNCHECKABLE)) and (dirty or harmless)
    if not consistent or (dirty and not sums.contaminating) or (sums.whole and not dirty):
        raise control_failure(
            f"{sums.contaminating} documents reach a threshold of {name}, {sums.whole} with all of it",
            f"its verdict is {verdict}, of kind {kind}",
        )


def _check_flagged(folder: Path, recount: Recount, verdicts: list[Row], items: Sequence[Reference]) -> None:
    numbers = {(item.suite, item.item): number for number, item in enumerate(items)}
    rows = pq.read_table(folder / "flagged.parquet").to_pylist()
    flagged = {(row["document"], row["file"], numbers[row["suite"], row["item"]]) for row in rows}
    dirty = {
        number
        for number, row in enumerate(verdicts)
        if row["verdict"] == Verdict.CONTAMINATED and items[number].severity is Severity.TEST
    }
    for document, _, number in flagged - recount.reaching.keys():
        raise control_failure(
            f"document {document} has little of {_item_name(verdicts[number])}", "it is to be dropped"
        )
    for (document, file, number), (whole, _) in recount.reaching.items():
        if whole and items[number].severity is Severity.TEST and (document, file, number) not in flagged:
            raise control_failure(
                f"document {document} has all of {_item_name(verdicts[number])}", "it is not to be dropped"
            )
    if {number for _, _, number in flagged} != dirty:
        raise control_failure(
            f"{len(dirty)} items are contaminated", "the documents to be dropped are those of other items"
        )
    for number in dirty:
        best = verdicts[number]
        key, places = (best["document"], best["file"], number), (best["start"], best["end"])
        if key not in flagged or recount.reaching[key][1] != (*places, best["start_byte"], best["end_byte"]):
            raise control_failure(
                f"document {best['document']} contaminates {_item_name(best)}",
                f"it is not to be dropped or stands elsewhere than at characters {places}",
            )


def _item_name(row: Row) -> str:
    return f"{row['suite']}:{row['item']}"


def _check_suites(coverage: Row, verdicts: list[Row], items: Sequence[Reference]) -> None:
    from eval.reporting.contamination_report import control_suites, control_table, verdict_table  # noqa: PLC0415 (half a second in each worker)

    expected: dict[str, Row] = {}
    for row, item in zip(verdicts, items, strict=True):
        part = expected.setdefault(
            row["suite"],
            {
                "severity": item.severity.value,
                "items": 0,
                "checkable": 0,
                "uncheckable": [],
                "clean": 0,
                "contaminated": 0,
                "by_kind": {},
            },
        )
        part["items"] += 1
        part["by_kind"][row["kind"]] = part["by_kind"].get(row["kind"], 0) + 1
        if row["verdict"] == Verdict.UNCHECKABLE:
            part["uncheckable"].append(row["item"])
        else:
            part["checkable"] += 1
            part[row["verdict"]] += 1
    for suite, part in expected.items():
        if coverage["suites"].get(suite) != part:
            raise control_failure(
                f"the verdicts of {suite} are {part}", f"coverage.json has {coverage['suites'].get(suite)}"
            )
    if set(coverage["suites"]) != set(expected):
        raise control_failure(
            f"the suites {sorted(expected)} were scanned", f"coverage.json has {sorted(coverage['suites'])}"
        )
    verdicts_shown = _shown_by_suite(verdict_table(coverage))
    for suite, cells in verdicts_shown.items():
        part = expected[suite]
        shown = {name: int(cell.replace(",", "")) for name, cell in cells.items()}
        counts = {name: part[name] for name in ("items", "checkable", "clean", "contaminated")}
        if shown != {**{kind: part["by_kind"].get(kind, 0) for kind in shown}, **counts}:
            raise control_failure(f"the verdicts of {suite} are {part}", f"the report's table has {shown}")
    if len(verdicts_shown) != len(expected):
        raise control_failure(f"{len(expected)} suites were scanned", f"the report's table has {len(verdicts_shown)}")
    for suite, cells in _shown_by_suite(control_table(coverage)).items():
        line = list(cells.values())
        recall = [f"{count['found']} of {count['planted']}" for count in control_suites(coverage)[suite].values()]
        if [cell for cell in line if cell != "–"] != recall:
            raise control_failure(f"of planted items of {suite} were found {recall}", f"the report's table has {line}")


def _shown_by_suite(tables: str) -> dict[str, dict[str, str]]:
    """Cells of Markdown tables below each other, by the suite at the beginning of their row and by their header."""
    shown: dict[str, dict[str, str]] = {}
    for table in tables.split("\n\n"):
        header, _, *body = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]
        for suite, *cells in body:
            shown.setdefault(suite, {}).update(zip(header[1:], cells, strict=True))
    return shown


def _check_sweep(sweep: list[Row], verdicts: list[Row], items: Sequence[Reference]) -> None:
    scored = {item.suite for item in items if item.severity is Severity.TEST}
    by_suite: dict[str, list[Row]] = {}
    for row in verdicts:
        if row["kind"] != Kind.BOILERPLATE:
            by_suite.setdefault(row["suite"], []).append(row)
    for entry in sweep:
        kept = by_suite.get(entry["suite"], [])
        name, least = ("longest_run", entry["run"]) if "run" in entry else ("coverage", entry["coverage"])
        count = sum(row[name] >= least for row in kept)
        if count != entry["contaminated"]:
            raise control_failure(
                f"{count} items of {entry['suite']} have a {name} of {least}", f"sweep.json has {entry}"
            )
    if {entry["suite"] for entry in sweep} != scored:
        raise control_failure(f"the suites {sorted(scored)} are scored", "sweep.json has others")


def _check_matches(folder: Path, verdicts: list[Row]) -> None:
    shown = {}
    total = sum(row["documents"] for row in verdicts)
    by_item = {(row["suite"], row["item"]): row for row in verdicts}
    lines = (folder / "matches.jsonl").read_bytes().splitlines()  # of text, U+2028 would end a line
    for match in map(json.loads, lines):
        verdict = by_item[match["suite"], match["item"]]
        shown[match["suite"], match["item"], match["document"], match["file"]] = tuple(match[name] for name in _PLACES)
        if (match["verdict"], match["kind"]) != (verdict["verdict"], verdict["kind"]):
            raise control_failure(f"{_item_name(match)} is {verdict['verdict']}", f"a match says {match['verdict']}")
        text, item = match["document_text"]["match"], match["item_text"]["match"]
        if "…" not in text + item and not any(
            is_subsequence(words(item), words(reading)) for reading in text_and_renderings(text)
        ):
            raise control_failure(
                f"“{item}” of {_item_name(match)} is in document {match['document']}", f"“{text}” is shown"
            )
    if len(lines) < min(_FEWEST_SHOWN, total):
        raise control_failure(f"{total} matches were found", f"matches.jsonl has {len(lines)}")
    for row in verdicts:
        place = shown.get((row["suite"], row["item"], row["document"], row["file"]))
        if row["verdict"] == Verdict.CONTAMINATED and place != tuple(row[name] for name in _PLACES):
            raise control_failure(f"{_item_name(row)} is contaminated", f"matches.jsonl shows it at {place}")


def is_subsequence(expected: Sequence[str], found: Iterable[str]) -> bool:
    """Whether the expected words are among those that were found, in their order."""
    left = iter(found)
    return all(word in left for word in expected)
