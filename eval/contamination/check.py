"""Which benchmark items stand in the training documents: `python -m eval.contamination.check CONFIG.json`.

* Every document is scanned, none is sampled; every item gets a verdict and a class, or is named as not checkable.
* An item is contaminated when one document shares a run of 13 words with it, or half of its words or of its
  question's in runs of at least 8; shorter items need the whole text, one edit allowed from 8 words on. Thresholds
  are configuration.
* A result counts only when the positive control (`eval/contamination/positive_control.py`) found what it planted in the
  same scan.
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
import shutil
import sys
import tempfile
import threading
import time
import unicodedata
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from itertools import islice
from multiprocessing.process import BaseProcess
from pathlib import Path

import numpy as np

from eval import document_parquet
from eval.command import Progress, run
from eval.contamination.audit import Audit, check_index, check_items
from eval.contamination.config import ContaminationConfig
from eval.contamination.index import Index, build_index
from eval.contamination.match import Overlap, find_overlaps
from eval.contamination.positive_control import PLANTED_FILE, Control, compose_control
from eval.contamination.references import Reference, references
from eval.contamination.verdicts import (
    RESULT_FILES,
    ContaminationError,
    ContaminationResult,
    Match,
    Tally,
    item_lengths,
    snippet,
    write_result,
)
from eval.document_parquet import DocumentError, Documents, RowGroup, from_texts, read_row_group, row_groups

_HOSTS = 64
_HOST_BYTES = 1000
_COUNTED_BYTES = 2**20


@dataclass(frozen=True, slots=True)
class ScanResult:
    """What a part of the documents has in common with the items."""

    documents: int
    bytes: int
    """Of text, in UTF-8."""
    words: int
    matches: list[Match]


def scan_documents(parts: Iterable[Documents], index: Index, file: str, place: tuple[int, ...]) -> ScanResult:
    """Scans documents that stand one after the other, beginning at `place`."""
    row = byte_count = word_count = 0
    matches: list[Match] = []
    for part in parts:
        every = zip(part.ids, find_overlaps(part.data, part.offsets, index), strict=True)
        for number, (name, found) in enumerate(every):
            byte_count += int(part.offsets[number + 1] - part.offsets[number])
            word_count += found.words
            if found.overlaps:
                text = part.text(number)
                matches += _matches(found.overlaps, text, name, file, (*place, row + number))
        row += len(part.ids)
    return ScanResult(row, byte_count, word_count, matches)


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


def check(
    documents: Iterable[tuple[str, str]], items: list[Reference], config: ContaminationConfig
) -> ContaminationResult:
    """Scans (id, text) pairs in this process."""
    tally = Tally(config, items)
    texts = from_texts((name, text.encode("utf-8", "replace")) for name, text in documents)
    found = scan_documents([texts], build_index(items, config.ngram), "", ())
    tally.add(found.documents, found.words, found.matches)
    return tally.result()


@dataclass(frozen=True, kw_only=True)
class Counts:
    """What somebody else counted."""

    documents: int
    bytes: int
    """Of text, in UTF-8."""


@dataclass(frozen=True, kw_only=True)
class ScanConfig:
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
    counted: Counts | None = None
    """What the files must hold by the count of whoever wrote them; null: as many documents as their footers say."""


_worker_index: Index
_worker_fingerprint: str


def _start_worker(index: Index) -> None:
    global _worker_index, _worker_fingerprint
    _worker_index, _worker_fingerprint = index, index.fingerprint
    if (parent := multiprocessing.parent_process()) is not None:
        threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: BaseProcess) -> None:
    """A worker would wait for work for ever after its parent was killed."""
    parent.join()
    os._exit(1)


def _scan_to_file(row_group: RowGroup, result: Path) -> None:
    """Scans one row group and writes what was found, at once or not at all."""
    place = (row_group.file, row_group.group)
    found = scan_documents(read_row_group(row_group), _worker_index, row_group.path.name, place)
    partial = result.with_suffix(".partial")
    with partial.open("w", encoding="utf-8") as file:
        head = {"file": row_group.path.name, "group": row_group.group, "index": _worker_fingerprint}
        head |= {"documents": found.documents, "bytes": found.bytes, "words": found.words}
        head |= {"matches": len(found.matches)}
        file.write(json.dumps(head) + "\n")
        for match in found.matches:
            file.write(json.dumps(asdict(match)) + "\n")
    _digest_file(result).write_text(_sha256(partial))  # first: a result without it does not count
    partial.replace(result)


def _digest_file(result: Path) -> Path:
    return result.with_suffix(".sha256")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _is_intact(result: Path) -> bool:
    """Whether an earlier scan left this result, and nothing has harmed it since."""
    try:
        return _digest_file(result).read_text() == _sha256(result)
    except (OSError, ValueError):
        return False


def _read_result(path: Path) -> ScanResult:
    with path.open(encoding="utf-8") as file:
        counts = json.loads(next(file))
        matches = [_match(json.loads(line)) for line in file]
    return ScanResult(counts["documents"], counts["bytes"], counts["words"], matches)


def _match(row: dict) -> Match:
    tuples = {name: tuple(row[name]) for name in ("place", "snippet")}
    return Match(**row | tuples | {"overlap": Overlap(**row["overlap"])})


def _identity(index: Index, control: Control, documents: Iterable[Path]) -> str:
    """Digest of all that the results of row groups depend on; a file is known by its Parquet footer."""
    digest = hashlib.sha256(f"{index.fingerprint} {control.digest} {unicodedata.unidata_version}".encode())
    room = Path(__file__).parent
    for source in [Path(document_parquet.__file__), *sorted([*room.glob("*.py"), *room.glob("*.toml")])]:
        digest.update(source.read_bytes())
    for path in documents:
        with path.open("rb") as file:
            file.seek(-8, 2)
            size = int.from_bytes(file.read(4), "little")
            file.seek(-8 - size, 2)
            digest.update(path.name.encode() + file.read())
    return digest.hexdigest()


@contextlib.contextmanager
def _results_folder(resume: Path | None, identity: str) -> Iterator[Path]:
    """Where the results of row groups lie; results of anything else are never used, nor those of a scan that failed
    its control."""
    if resume is None:
        with tempfile.TemporaryDirectory(prefix="contamination-") as temporary:
            yield Path(temporary)
    else:
        folder = resume / identity[:16]
        folder.mkdir(parents=True, exist_ok=True)
        try:
            yield folder
        except (ContaminationError, DocumentError):
            shutil.rmtree(folder)
            raise


def _host_texts(groups: list[RowGroup]) -> Iterator[str]:
    """Beginnings of the first documents that are not empty."""
    parts = (part for group in groups for part in read_row_group(group))
    texts = (part.text(row)[:_HOST_BYTES].tobytes() for part in parts for row in range(len(part.ids)))
    return islice((text.decode("utf-8", "replace") for text in texts if text.strip()), _HOSTS)


def scan_files(command: ScanConfig) -> dict:
    """Checks every document of the files and writes the outputs; returns what the last event reports.

    Nothing is written when the positive control fails.
    """
    started = time.monotonic()
    if command.workers < 1 or not command.documents or not command.suites:
        raise ContaminationError(
            f"expected at least one worker, document file and suite, found {command.workers}, "
            f"{len(command.documents)} and {len(command.suites)}"
        )
    config, items = command.config, references(command.benchmarks, command.suites)
    check_items(items, command.benchmarks, command.suites)
    groups, total = row_groups(command.documents)
    control = compose_control(items, command.documents, config, command.seed, _host_texts(groups))
    everything = control.references
    lengths = item_lengths(everything)
    index = build_index(everything, config.ngram)
    check_index(index, everything, lengths)
    with _results_folder(command.resume, _identity(index, control, command.documents)) as folder:
        planted = folder / PLANTED_FILE
        control.write(planted)
        groups, _ = row_groups([*command.documents, planted])
        audit = Audit(control, planted, index.fingerprint)
        tallies = {False: Tally(config, items, lengths), True: Tally(config, control.planted_references, lengths)}
        progress = Progress(total)
        for group, result in _scan_in_workers(groups, folder, index, command.workers):
            audit.add(result, group)
            found, tally = _read_result(result), tallies[group.path == planted]
            own = [match for match in found.matches if match.reference < tally.size]
            tally.add(found.documents, found.words, own)
            if group.path != planted:
                progress(tally.documents)
        counted = command.counted
        audit.check_results(command.documents, (counted.documents, counted.bytes) if counted else None)
        write_result(folder / "planted", tallies[True].result(), {}, config)
        write_result(command.out, tallies[False].result(), audit.check_planted(folder / "planted"), config)
        try:
            audit.check_real(command.out)
        except ContaminationError:
            for name in RESULT_FILES:
                (command.out / name).unlink()
            raise
    real = tallies[False]
    return {"seconds": round(time.monotonic() - started, 3), "documents": real.documents, "words": real.words}


def _scan_in_workers(
    groups: list[RowGroup], folder: Path, index: Index, workers: int
) -> Iterator[tuple[RowGroup, Path]]:
    """Every row group with the file of its result, in order; what lies there already is not scanned again."""
    results = [folder / f"{group.file:05d}-{group.group:05d}.jsonl" for group in groups]
    todo = [(group, result) for group, result in zip(groups, results) if not _is_intact(result)]
    # A worker that dies raises BrokenProcessPool here, where multiprocessing.Pool would wait for ever.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, context, _start_worker, (index,))
    try:
        pending = dict(zip((result for _, result in todo), [pool.submit(_scan_to_file, *each) for each in todo]))
        for group, result in zip(groups, results):
            if result in pending:
                pending[result].result()
            yield group, result
    except BaseException:
        for worker in multiprocessing.active_children():  # each could take minutes; half a result counts for nothing
            worker.kill()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:], ScanConfig, scan_files))
