"""Compares what came back from a scan with what the positive control planted, before a verdict counts.

* Every item of every requested suite is looked for, with every run of its words.
* Documents and bytes are those that were counted before, and every result is of this scan.
* Planted items, probes and canaries came back with their documents, places and figures.
* The files with the findings say what the results of the row groups add up to (`eval/contamination/recount.py`).

Each check raises `ContaminationError` with one sentence: what was planted where, what came back, what to do.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from eval.contamination.canaries import Canary
from eval.contamination.index import POSITION_BITS, Index
from eval.contamination.ngram_scan import ngram_hashes, word_hashes
from eval.contamination.planted_items import LEAST_RECALL, full_text, variants
from eval.contamination.positive_control import ROWS_PER_GROUP, Control, Plant, planted_name
from eval.contamination.recount import Recount, Row, check_result_files, control_failure, is_subsequence
from eval.contamination.references import Reference, Severity
from eval.contamination.renderings import text_and_renderings
from eval.contamination.verdicts import ContaminationError
from eval.contamination.words import words
from eval.document_parquet import RowGroup
from eval.suites.suites import suite_named

_SHORTEST = 4  # as documented and not imported, so that another value is noticed
_SPAN_FACTOR, _SPAN_MORE = 4, 256  # bytes that the place of a match may be longer than the words that it says
_VERDICT_FIELDS = ("verdict", "kind", "longest_run", "coverage", "documents")


class Audit:
    """Follows one scan, result by result."""

    def __init__(self, control: Control, planted: Path, fingerprint: str) -> None:
        """`planted` is the planted file; `fingerprint` that of the index."""
        self._control, self._file = control, planted
        self._real, self._planted = (Recount(control.config, fingerprint) for _ in range(2))
        self._heads: list[Row] = []
        self._planted_rows: list[Row] = []
        self._canary_rows: dict[int, list[Row]] = {}
        self._runs: dict[tuple[int, int], int] = {}

    def add(self, result: Path, group: RowGroup) -> None:
        """Adds the result of one row group."""
        planted, known = group.path == self._file, len(self._control.planted_references)
        account = self._planted if planted else self._real
        head, rows = account.add(result, group)
        for row in rows:
            number = row["overlap"]["reference"]
            if number < (known if planted else len(self._control.items)):
                account.count(row)
            if planted and number < known:
                self._planted_rows.append(row)
            if not planted and number >= known:
                canary = self._control.canaries[number - known]
                here = (group.path, group.group, row["place"][2]) == (canary.path, canary.group, canary.row)
                kept = self._canary_rows.setdefault(number - known, [])
                if here or not kept:
                    kept.append(row)
        if planted:
            self._heads.append(head)

    def check_results(self, files: Iterable[Path], counted: tuple[int, int] | None) -> None:
        """Before the findings are written: counts, canaries, and whether every match in a planted document is true.

        `files`: those with the documents; `counted`: documents and bytes by whoever wrote them.
        """
        total = sum(pq.read_metadata(path).num_rows for path in files)
        scanned = (self._real.documents, self._real.bytes)
        if scanned != (counted or (total, scanned[1])):
            size = f" with {counted[1]:,} bytes of text" if counted else ""
            raise control_failure(
                f"the files hold {(counted or (total,))[0]:,} documents{size}",
                f"{scanned[0]:,} documents with {scanned[1]:,} bytes were scanned",
            )
        check_canaries(self._control, self._canary_rows)
        self._runs = check_matches(self._control, self._heads, self._planted_rows)

    def check_planted(self, folder: Path) -> dict[str, Any]:
        """What coverage.json says of the control, from the findings of the planted file in `folder`."""
        found = check_planted(self._control, folder, self._file.name, self._runs)
        check_result_files(folder, self._planted, self._control.planted_references)
        canaries = self._control.canaries
        documents = {(canary.path, canary.group, canary.row) for canary in canaries}
        return found | {
            "canaries": {"drawn": len(canaries), "found": len(canaries), "documents": len(documents)},
            "scanned": {"documents": self._real.documents, "bytes": self._real.bytes},
        }

    def check_real(self, folder: Path) -> None:
        """The findings of the real documents in `folder`."""
        check_result_files(folder, self._real, self._control.items)


def check_items(items: list[Reference], benchmarks: Path, suites: Iterable[str]) -> None:
    """Raises `ContaminationError` unless every row of every suite is an item, once, with its question and right
    answer, and nothing else is."""
    found: dict[str, list[Reference]] = {}
    train: dict[str, int] = {}
    for item in items:
        if item.severity is Severity.TEST:
            found.setdefault(item.suite, []).append(item)
        else:
            train[item.suite] = train.get(item.suite, 0) + 1
    for suite in suites:
        path, count = benchmarks / f"{suite}-train.parquet", train.get(f"{suite}:train", 0)
        if suite_named(suite).split == "test" and path.exists() and pq.read_metadata(path).num_rows != count:
            raise control_failure(f"the items of {path.name} were to be looked for", f"{count} of them are")
        rows, looked_for = suite_named(suite).rows, found.pop(suite, [])
        if [item.item for item in looked_for] != list(range(rows)):
            raise control_failure(
                f"{rows} items of {suite} were to be looked for", f"{len(looked_for)} are among the items"
            )
        for item, row in zip(looked_for, pq.read_table(benchmarks / f"{suite}.parquet").to_pylist(), strict=True):
            question, answer, choices = _asked(row)
            told = (*item.answers, *item.others)
            if item.question != question or answer not in item.answers or set(told) != {answer, *choices}:
                raise control_failure(
                    f"{suite}:{item.item} asks “{question}” for “{answer}”",
                    f"“{item.question}” and “{item.answers[0]}” were to be looked for",
                )
    if found:
        raise control_failure(
            f"the suites {', '.join(suites)} were to be looked for", f"{min(found)} is among the items"
        )


def _asked(row: Row) -> tuple[str, str, list[str]]:
    """(question, right answer, all choices) of a row, straight from its columns."""
    if "answerKey" in row:
        choices = row["choices"]["text"]
        return row["question"], choices[row["choices"]["label"].index(row["answerKey"])], choices
    if "endings" in row:
        return row["ctx"], row["endings"][int(row["label"])], row["endings"]
    if "sentence" in row:
        return row["sentence"], row[f"option{row['answer']}"], [row["option1"], row["option2"]]
    targets = row["mc1_targets"]
    return row["question"], targets["choices"][targets["labels"].index(1)], row["mc2_targets"]["choices"]


def check_index(index: Index, references: Sequence[Reference], lengths: list[list[int]]) -> None:
    """Raises `ContaminationError` unless every word n-gram of every text of every reference is in the index.

    `lengths`: `item_lengths(references)`.
    """
    expected = [
        (number, which, count)
        for number, counts in enumerate(lengths)
        for which, count in enumerate(counts)
        if count >= _SHORTEST
    ]
    found = [(form.reference, form.number, len(form.words)) for form in index.forms]
    if found != expected:
        missing = next((each for each, other in zip(expected, [*found, None]) if each != other), expected[-1])
        raise _incomplete_index(references[missing[0]], len(set(expected) - set(found)))
    n, hashes = index.n, index.table.hashes
    counts = np.array([count for _, _, count in expected])
    begins = np.cumsum(counts) - counts
    hashed = ngram_hashes(word_hashes([word for form in index.forms for word in form.words]), n)
    number = np.repeat(np.arange(len(hashes)), np.diff(index.place_first))
    long = index.length[number] == n
    form, word = index.places[long] >> POSITION_BITS, index.places[long] & (1 << POSITION_BITS) - 1
    right = hashes[number[long]] == hashed[np.minimum(begins[form] + word, len(hashed) - 1)]
    held = np.bincount(form[right], minlength=len(expected))
    wrong = np.flatnonzero(held != np.maximum(0, counts - n + 1))
    if len(wrong):
        raise _incomplete_index(references[expected[wrong[0]][0]], len(wrong))
    slots = np.sort(index.table.slots[index.table.slots >= 0])
    if not np.array_equal(slots, np.arange(len(hashes))):
        raise control_failure(f"{len(hashes)} word n-grams were to be looked for", f"the table holds {len(slots)}")


def _incomplete_index(item: Reference, count: int) -> ContaminationError:
    return control_failure(
        f"every text of {item.suite}:{item.item} was to be looked for", f"the index lacks words of {count} texts"
    )


def check_canaries(control: Control, rows: dict[int, list[Row]]) -> None:
    """`rows` are the matches of every canary in the real documents. Raises `ContaminationError` naming the first that
    did not come back from its own document and place."""
    for number, canary in enumerate(control.canaries):
        matches = rows.get(number, [])
        here = [row for row in matches if row["file"] == canary.path.name and row["document"] == canary.document]
        here = [row for row in here if tuple(row["place"][1:]) == (canary.group, canary.row)]
        if not any(_is_canary(row["overlap"], canary, control.config.ngram) for row in here):
            spans = [(row["overlap"]["start"], row["overlap"]["end"]) for row in here]
            elsewhere = [f"{row['file']}, document {row['document']}" for row in matches if row not in here]
            came_back = f"at bytes {spans}" if here else f"only in {elsewhere[0]}" if elsewhere else "nowhere"
            text = " ".join(canary.text.split())
            raise control_failure(f"the words “{text}” stand in {canary.where}", f"they were found {came_back}")


def _is_canary(overlap: Row, canary: Canary, n: int) -> bool:
    """Whether an overlap is the canary; where the document has its words elsewhere too, in other case, that place is
    as good."""
    start, end, size = overlap["start"], overlap["end"], len(canary.text.encode())
    if overlap["run"] != n:
        return False
    if start <= canary.start and canary.start + size <= end <= start + _SPAN_FACTOR * size + _SPAN_MORE:
        return True
    with pq.ParquetFile(canary.path) as file:
        texts = file.read_row_group(canary.group, columns=["text"])["text"].cast(pa.large_binary())
    return words(texts[canary.row].as_py()[start:end].decode("utf-8", "replace")) == words(canary.text)


def check_matches(control: Control, heads: list[Row], rows: Iterable[Row]) -> dict[tuple[int, int], int]:
    """Words in a row by planted document and reference. `heads` and `rows` are the results of the planted file; raises
    `ContaminationError` when one of its documents does not have what a match says."""
    expected = control.expected_words()
    scanned = [head["words"] for head in heads]
    if scanned != expected:
        raise control_failure(f"the row groups of the planted file have {expected} words", f"{scanned} came back")
    references = control.planted_references
    matches = {}
    for row in rows:
        number, overlap = row["place"][2] + ROWS_PER_GROUP * row["place"][1], row["overlap"]
        item = references[overlap["reference"]]
        if row["document"] != planted_name(number) or not _is_true(control.texts[number], row, item):
            raise control_failure(
                f"document {planted_name(number)} was planted without them",
                f"{overlap['run']} words of {item.suite}:{item.item} were found in document {row['document']} at bytes "
                f"{overlap['start']} to {overlap['end']}",
            )
        matches[number, overlap["reference"]] = overlap["run"]
    return matches


def check_planted(control: Control, folder: Path, file: str, matches: dict[tuple[int, int], int]) -> dict[str, Any]:
    """How much of what was planted came back, as coverage.json keeps it; raises `ContaminationError` when it is not
    enough. `folder` holds the findings of the planted file named `file`; `matches` as of `check_matches`."""
    verdicts = pq.read_table(folder / "verdicts.parquet").to_pylist()
    _check_probes(control, verdicts[len(control.items) :])
    flagged = pq.read_table(folder / "flagged.parquet").to_pylist()
    dropped = {(row["document"], row["file"], row["suite"], row["item"]) for row in flagged}
    found = _check_recall(control, file, dropped, matches)
    suspected = {document for document, *_ in dropped}
    negatives = sum(planted_name(row) in suspected for row in control.negative_rows)
    return {
        **found,
        "hard_negatives": {"documents": len(control.negative_rows), "flagged": negatives},
        "probes": {"planted": len(verdicts) - len(control.items), "found": len(verdicts) - len(control.items)},
    }


def _is_true(text: str, row: Row, item: Reference) -> bool:
    """Whether the document has the words that a match says, where it says."""
    overlap, content = row["overlap"], text.encode()
    start, end = overlap["start"], overlap["end"]
    span, first = content[start:end].decode("utf-8", "replace"), overlap["form_word"]
    if (row["start"], row["end"]) != tuple(len(content[:place].decode("utf-8", "replace")) for place in (start, end)):
        return False
    expected = words(item.forms[overlap["form"]].text)[first : first + overlap["run"]]
    return len(expected) == overlap["run"] and any(
        is_subsequence(expected, there) and len(there) <= 2 * len(expected) + 8
        for there in map(words, text_and_renderings(span))
    )


def _check_probes(control: Control, verdicts: list[Row]) -> None:
    left = iter(verdicts)
    for probe, rows in zip(control.probes, control.probe_rows, strict=True):
        for title, item, expected in probe.items:
            row = next(left)
            wanted: tuple[Any, ...] = tuple(getattr(expected, name) for name in _VERDICT_FIELDS)
            came: tuple[Any, ...] = tuple(row[name] for name in _VERDICT_FIELDS)
            if expected.place:
                document, *places = expected.place
                text = control.texts[rows[document]]
                wanted += (planted_name(rows[document]), *places, *(len(text[:place].encode()) for place in places))
                came += (row["document"], row["start"], row["end"], row["start_byte"], row["end_byte"])
            if came != wanted or row["item_words"] != len(words(item.question)):
                where = ", ".join(map(planted_name, rows[:3])) or "no document"
                raise control_failure(
                    f"{title} was planted in {where}, for the verdict {_verdict_text(wanted)}",
                    f"it came back as {_verdict_text(came)}",
                )


def _verdict_text(verdict: tuple) -> str:
    name, kind, run, coverage, documents, *place = verdict
    told = f"“{name}, {kind}, {run} words in a row, {coverage:.3f} of the item, documents: {documents}"
    if place:
        told += f", {place[0]}, characters {place[1]} to {place[2]}, bytes {place[3]} to {place[4]}"
    return f"{told}”"


def _check_recall(
    control: Control, file: str, dropped: set[tuple[str, str, str, int]], matches: dict[tuple[int, int], int]
) -> dict[str, dict[str, dict[str, int]]]:
    """{suite: {form: {"planted", "found"}}}."""
    counts: dict[str, dict[str, dict[str, int]]] = {}
    missed: dict[tuple[str, str], Plant] = {}
    for planted in control.plants:
        item = control.items[planted.reference]
        count = counts.setdefault(item.suite, {}).setdefault(planted.form, {"planted": 0, "found": 0})
        found = (planted_name(planted.row), file, item.suite, item.item) in dropped
        # a sentence with the wrong option may be told by what it shares with the one with the right option
        if LEAST_RECALL[planted.form] == 1 and (item.suite, planted.form) != ("winogrande", "variant"):
            texts = variants(item) if planted.form == "variant" else [full_text(item)]
            found = found and matches.get((planted.row, planted.reference)) in [len(words(text)) for text in texts]
        count["planted"] += 1
        count["found"] += found
        if not found:
            missed.setdefault((item.suite, planted.form), planted)
    for (suite, form), planted in missed.items():
        count, least = counts[suite][form], LEAST_RECALL[form]
        if count["found"] < least * count["planted"]:
            run = matches.get((planted.row, planted.reference))
            raise control_failure(
                f"{count['planted']} items of {suite} were planted as {form.replace('_', ' ')}, of which {least:.0%} "
                "must be found",
                f"{count['found']} were: {suite}:{control.items[planted.reference].item} in document "
                f"{planted_name(planted.row)} came back {f'with {run} words in a row' if run else 'without a match'}",
            )
    return counts
