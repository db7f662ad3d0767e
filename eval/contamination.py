"""Which benchmark items stand in the training documents: `python -m eval.contamination CONFIG.json`.

* Every document is scanned, none is sampled; every item gets a verdict and a class, or is named as not checkable.
* An item is contaminated when one document shares a run of 13 words with it, or half of its words or of its
  question's in runs of at least 8; shorter items need the whole text, one edit allowed from 8 words on. Thresholds
  are configuration.
* Before a result counts, the positive control plants items in the same documents and must find them.
* Row groups are scanned by worker processes in constant memory; results do not depend on their number. With
  `resume`, a scan that was killed continues with the row groups that are left.

Not seen: paraphrase, translation, and words changed every few words.
Writes `verdicts.parquet`, `flagged.parquet` (the documents to drop), `matches.jsonl` (both texts side by side, best
first), `coverage.json` and `sweep.json`.
"""

import contextlib
import hashlib
import json
import multiprocessing
import os
import sys
import tempfile
import threading
import time
import unicodedata
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path

import numpy as np

from eval.command import Progress, run
from eval.documents import Documents, RowGroup, from_texts, read_documents, row_groups
from eval.findings import ContaminationConfig, ContaminationError, Findings, Match, Tally, snippet, write_findings
from eval.index import Index, build_index
from eval.injection import positive_control
from eval.matching import find_all
from eval.overlaps import Overlap
from eval.references import Reference, references
from eval.suites import SuiteError

_HOSTS = 64
_HOST_BYTES = 4000
_COUNTED_BYTES = 2**20
_RESULT_VERSION = 2


@dataclass(frozen=True, slots=True)
class Scanned:
    """What a part of the documents has in common with the items."""

    documents: int
    words: int
    matches: list[Match]


def scan_documents(parts: Iterable[Documents], index: Index, file: str, place: tuple[int, ...]) -> Scanned:
    """Scans documents that stand one after the other, beginning at `place`."""
    row, word_count = 0, 0
    matches: list[Match] = []
    for part in parts:
        for number, found in enumerate(find_all(part.data, part.offsets, index)):
            word_count += found.words
            if found.overlaps:
                text = part.text(number)
                matches += _matches(found.overlaps, text, part.ids[number], file, (*place, row + number))
        row += len(part.ids)
    return Scanned(row, word_count, matches)


def _matches(
    overlaps: list[Overlap], text: np.ndarray, document: str, file: str, place: tuple[int, ...]
) -> Iterator[Match]:
    characters = _characters(text, {at for overlap in overlaps for at in (overlap.start, overlap.end)})
    content = text.tobytes()
    for overlap in overlaps:
        yield Match(
            overlap=overlap,
            document=document,
            file=file,
            place=place,
            start=characters[overlap.start],
            end=characters[overlap.end],
            snippet=snippet(content, overlap.start, overlap.end),
        )


def _characters(text: np.ndarray, positions: set[int]) -> dict[int, int]:
    """Positions in bytes, each the beginning of a character, as positions in characters."""
    found, byte, count = {}, 0, 0
    for position in sorted(positions):
        while byte < position:
            end = min(position, byte + _COUNTED_BYTES)
            while end < position and text[end] & 0xC0 == 0x80:
                end += 1
            count += len(text[byte:end].tobytes().decode("utf-8", "replace"))
            byte = end
        found[position] = count
    return found


def check(documents: Iterable[tuple[str, str]], items: list[Reference], config: ContaminationConfig) -> Findings:
    """Scans (id, text) pairs in this process."""
    tally = Tally(config, items)
    texts = from_texts((name, text.encode("utf-8", "replace")) for name, text in documents)
    found = scan_documents([texts], build_index(items, config.ngram), "", ())
    tally.add(found.documents, found.words, found.matches)
    return tally.findings()


@dataclass(frozen=True, kw_only=True)
class CommandConfig:
    documents: tuple[Path, ...]
    """Parquet files with string columns id and text; all of it is scanned."""
    benchmarks: Path
    """Directory of normalised rows, `{suite}.parquet`; of train splits, as released, `{suite}-train.parquet`."""
    suites: tuple[str, ...]
    config: ContaminationConfig
    seed: int
    """Decides what the positive control plants."""
    workers: int
    """Processes; never changes a result."""
    out: Path
    resume: Path | None = None
    """Directory for the results of single row groups, from which a killed scan continues; null: start again."""


_worker_index: Index


def _start_worker(index: Index) -> None:
    global _worker_index
    _worker_index = index
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A worker would wait for work for ever after its parent was killed."""
    multiprocessing.parent_process().join()
    os._exit(1)


def _scan_to_file(row_group: RowGroup, result: Path) -> None:
    """Scans one row group and writes what was found, at once or not at all."""
    place = (row_group.file, row_group.group)
    found = scan_documents(read_documents(row_group), _worker_index, row_group.path.name, place)
    partial = result.with_suffix(".partial")
    with partial.open("w", encoding="utf-8") as file:
        counts = {"documents": found.documents, "words": found.words}
        file.write(json.dumps(counts) + "\n")
        for match in found.matches:
            file.write(json.dumps(asdict(match)) + "\n")
    partial.replace(result)


def _read_result(path: Path) -> Scanned:
    with path.open(encoding="utf-8") as file:
        counts = json.loads(next(file))
        matches = [_match(json.loads(line)) for line in file]
    return Scanned(counts["documents"], counts["words"], matches)


def _match(row: dict) -> Match:
    tuples = {name: tuple(row[name]) for name in ("place", "snippet")}
    return Match(**row | tuples | {"overlap": Overlap(**row["overlap"])})


def _identity(items: list[Reference], config: ContaminationConfig, groups: list[RowGroup]) -> str:
    """Digest of all that the results of row groups depend on; a file is known by its Parquet footer."""
    digest = hashlib.sha256(f"{_RESULT_VERSION} {config.ngram} {unicodedata.unidata_version}".encode())
    for item in items:
        digest.update(json.dumps(asdict(item)).encode())
    for path in dict.fromkeys(group.path for group in groups):
        with path.open("rb") as file:
            file.seek(-8, 2)
            size = int.from_bytes(file.read(4), "little")
            file.seek(-8 - size, 2)
            digest.update(path.name.encode() + file.read())
    return digest.hexdigest()


@contextlib.contextmanager
def _results_folder(resume: Path | None, identity: str) -> Iterator[Path]:
    """Where the results of row groups lie; results of anything else are never used."""
    if resume is None:
        with tempfile.TemporaryDirectory(prefix="contamination-") as temporary:
            yield Path(temporary)
    else:
        folder = resume / identity[:16]
        folder.mkdir(parents=True, exist_ok=True)
        yield folder


def _hosts(groups: list[RowGroup]) -> Iterator[str]:
    """Beginnings of the first documents that are not empty."""
    parts = (part for group in groups for part in read_documents(group))
    texts = (part.text(row)[:_HOST_BYTES].tobytes() for part in parts for row in range(len(part.ids)))
    return islice((text.decode("utf-8", "replace") for text in texts if text.strip()), _HOSTS)


def scan_files(command: CommandConfig) -> dict:
    """Checks every document of the files and writes the outputs; returns what the last event reports."""
    started = time.monotonic()
    if command.workers < 1 or not command.documents or not command.suites:
        raise ContaminationError(
            f"expected at least one worker, document file and suite, found {command.workers}, "
            f"{len(command.documents)} and {len(command.suites)}"
        )
    items = references(command.benchmarks, command.suites)
    groups, total = row_groups(command.documents)
    index = build_index(items, command.config.ngram)
    control = positive_control(items, index, command.config, command.seed, _hosts(groups))
    tally, progress = Tally(command.config, items), Progress(total)
    with _results_folder(command.resume, _identity(items, command.config, groups)) as folder:
        results = [folder / f"{group.file:05d}-{group.group:05d}.jsonl" for group in groups]
        todo = [(group, result) for group, result in zip(groups, results) if not result.exists()]
        # A worker that dies raises BrokenProcessPool here, where multiprocessing.Pool would wait for ever.
        context = multiprocessing.get_context("spawn")
        pool = ProcessPoolExecutor(command.workers, context, _start_worker, (index,))
        try:
            pending = dict(zip((result for _, result in todo), [pool.submit(_scan_to_file, *each) for each in todo]))
            for result in results:
                if result in pending:
                    pending[result].result()
                found = _read_result(result)
                tally.add(found.documents, found.words, found.matches)
                progress(tally.documents)
        finally:
            pool.shutdown(cancel_futures=True)
    write_findings(command.out, tally.findings(), control, command.config)
    return {"seconds": round(time.monotonic() - started, 3), "documents": tally.documents, "words": tally.words}


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:], CommandConfig, scan_files, (ContaminationError, SuiteError, OSError)))
