"""Which benchmark items stand in the training documents: `python -m eval.contamination CONFIG.json`.

* Every document is scanned, none is sampled; every item gets a verdict or is named as not checkable.
* An item is contaminated when one document shares a run of 13 words with question and answer, or half of their
  words in runs of at least 8; items under 8 words need the whole text. Thresholds are configuration.
* Before a result counts, the positive control plants items in prose and must find every one of them.
* Row groups are scanned by worker processes in constant memory; results do not depend on their number.

Not seen: paraphrase, translation, words changed every few words, and markup or hyphens inside a sentence.
Writes `verdicts.parquet`, `matches.jsonl` (both texts side by side, best first) and `coverage.json`.
"""

import multiprocessing
import sys
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from eval.command import Progress, run
from eval.findings import ContaminationConfig, ContaminationError, Findings, Match, Tally, snippet, write_findings
from eval.ngrams import Index, build_index, find
from eval.references import Reference, references
from eval.suites import SuiteError

_BATCH_DOCUMENTS = 256
_HOSTS = 64
_HOST_CHARACTERS = 4000


def _matches(place: tuple[int, ...], document: str, text: str, index: Index) -> tuple[int, list[Match]]:
    count, overlaps = find(text, index)
    return count, [
        Match(
            reference=overlap.reference,
            form=overlap.form,
            form_word=overlap.form_word,
            run=overlap.run,
            coverage=overlap.coverage,
            document=document,
            place=place,
            start=overlap.start,
            end=overlap.end,
            snippet=snippet(text, overlap.start, overlap.end),
        )
        for overlap in overlaps
    ]


def index_of(items: list[Reference], config: ContaminationConfig) -> Index:
    return build_index([reference.forms for reference in items], config.ngram)


def check(
    documents: Iterable[tuple[str, str]], items: list[Reference], config: ContaminationConfig
) -> Findings:
    """Scans (id, text) pairs in this process."""
    index = index_of(items, config)
    tally = Tally(config)
    for place, (document, text) in enumerate(documents):
        count, matches = _matches((place,), document, text, index)
        tally.add(1, count, matches)
    return tally.findings(items)


def positive_control(
    items: list[Reference], config: ContaminationConfig, seed: int, hosts: Iterable[str]
) -> dict[str, dict[str, int]]:
    """Plants items verbatim in prose and counts those found: {suite: {"planted", "found"}}.

    Each planted document is one host text with one item, form and place drawn from the seed. Raises
    `ContaminationError` naming the items when any is missed, or when there is no host text.
    """
    prose = [host for host in hosts if host.strip()]
    if not prose:
        raise ContaminationError("positive control: no document with text to plant items in")
    index = index_of(items, config)
    generator = np.random.default_rng(seed)
    forms_of: dict[str, dict[int, list[int]]] = {}
    for form in index.forms:
        forms_of.setdefault(items[form.reference].suite, {}).setdefault(form.reference, []).append(form.number)
    recall, missed = {}, []
    for suite, forms in forms_of.items():
        size = min(config.control_items, len(forms))
        found = 0
        for number in generator.choice(list(forms), size=size, replace=False).tolist():
            host = prose[generator.integers(len(prose))]
            place = int(generator.integers(len(host) + 1))
            text = items[number].forms[generator.choice(forms[number])]
            _, overlaps = find(f"{host[:place]}\n\n{text}\n\n{host[place:]}", index)
            if any(o.reference == number and config.contaminates(o.run, o.coverage) for o in overlaps):
                found += 1
            else:
                missed.append(f"{suite}:{items[number].item}")
        recall[suite] = {"planted": size, "found": found}
    if missed:
        raise ContaminationError(
            f"positive control: {len(missed)} planted items were not found ({', '.join(missed[:5])}), "
            "so a clean result of this check means nothing"
        )
    return recall


@dataclass(frozen=True, kw_only=True)
class CommandConfig:
    documents: tuple[Path, ...]
    """Parquet files with string columns id and text; all of it is scanned."""
    benchmarks: Path
    """Directory of normalised rows, `{suite}.parquet`."""
    suites: tuple[str, ...]
    config: ContaminationConfig
    seed: int
    """Decides what the positive control plants."""
    workers: int
    """Processes; never changes a result."""
    out: Path


def read_documents(path: Path, row_group: int) -> Iterator[tuple[str, str]]:
    """(id, text) of one row group, in pieces; raises `ContaminationError` naming the file.

    A null text is empty. Bytes that are not UTF-8 become U+FFFD, as a training text would have them.
    """
    try:
        with pq.ParquetFile(path) as file:
            batches = file.iter_batches(_BATCH_DOCUMENTS, row_groups=[row_group], columns=["id", "text"])
            for batch in batches:
                texts = batch.column("text").cast(pa.large_binary())
                for document, text in zip(batch.column("id").to_pylist(), texts):
                    yield str(document), (text.as_py() or b"").decode("utf-8", "replace")
    except (OSError, pa.ArrowException) as error:
        raise ContaminationError(f"{path}: row group {row_group} cannot be read: {error}") from error


def _jobs(paths: Iterable[Path]) -> tuple[list[tuple[int, Path, int]], int]:
    """((file number, file, row group) for every row group, number of documents)."""
    jobs, total = [], 0
    for number, path in enumerate(paths):
        try:
            metadata = pq.read_metadata(path)
        except (OSError, pa.ArrowException) as error:
            raise ContaminationError(f"{path}: cannot be read as Parquet: {error}") from error
        names = metadata.schema.to_arrow_schema().names
        if missing := {"id", "text"} - set(names):
            raise ContaminationError(f"{path}: column {min(missing)!r} is missing: found {names}")
        total += metadata.num_rows
        jobs += [(number, path, group) for group in range(metadata.num_row_groups)]
    return jobs, total


_worker_index: Index


def _start_worker(forms: list[tuple[str, ...]], n: int) -> None:
    """Builds the index once in every worker process."""
    global _worker_index
    _worker_index = build_index(forms, n)


def _scan(job: tuple[int, Path, int]) -> tuple[int, int, list[Match]]:
    """Documents, words and matches of one row group."""
    number, path, group = job
    documents, word_count, found = 0, 0, []
    for row, (document, text) in enumerate(read_documents(path, group)):
        count, matches = _matches((number, group, row), document, text, _worker_index)
        documents, word_count = documents + 1, word_count + count
        found += matches
    return documents, word_count, found


def _hosts(jobs: list[tuple[int, Path, int]]) -> Iterator[str]:
    """Beginnings of the first documents that are not empty."""
    texts = (text[:_HOST_CHARACTERS] for _, path, group in jobs for _, text in read_documents(path, group))
    return islice((text for text in texts if text.strip()), _HOSTS)


def scan_files(command: CommandConfig) -> dict:
    """Checks every document of the files and writes the three outputs; returns what the last event reports."""
    started = time.monotonic()
    if command.workers < 1 or not command.documents or not command.suites:
        raise ContaminationError(
            f"expected at least one worker, document file and suite, found {command.workers}, "
            f"{len(command.documents)} and {len(command.suites)}"
        )
    items = references(command.benchmarks, command.suites)
    jobs, total = _jobs(command.documents)
    control = positive_control(items, command.config, command.seed, _hosts(jobs))
    forms = [reference.forms for reference in items]
    tally, progress = Tally(command.config), Progress(total)
    # A worker that dies raises BrokenProcessPool here, where multiprocessing.Pool would wait for ever.
    pool = ProcessPoolExecutor(
        command.workers, multiprocessing.get_context("spawn"), _start_worker, (forms, command.config.ngram)
    )
    try:
        for result in pool.map(_scan, jobs):
            tally.add(*result)
            progress(tally.documents)
    finally:
        pool.shutdown(cancel_futures=True)
    findings = tally.findings(items)
    write_findings(command.out, findings, control, command.config)
    return {"seconds": round(time.monotonic() - started, 3), "documents": tally.documents, "words": tally.words}


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:], CommandConfig, scan_files, (ContaminationError, SuiteError, OSError)))
