"""Stage 1: raw documents from their source, split into training and validation, with a lock of what was read."""

import hashlib
import json
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from prefect.artifacts import create_markdown_artifact

from eval.document_parquet import SCHEMA
from eval.reporting.markdown import CODE_CHARACTERS, code_block, markdown_table, passage, untrusted
from model.parsing import Bounds, check_fields
from tasks.runtime.logs import logger
from tasks.sources.document_folder import left_out, left_out_sentences
from tasks.sources.document_sources import (
    Document,
    FilesSource,
    Source,
    SourceError,
    files_of_source,
    read_source,
    source_lock,
)
from tasks.store.context import RunContext
from tasks.store.run_states import stage_task
from tasks.store.stage import Stage, StageResult, build_or_skip, read_json

VERSION = 2
SPLITS = ("train", "val")
ROWS_PER_GROUP = 256
IDS_AT_ONCE = 2**16
LONGEST_SPACE = 1_000_000
NOT_SPACE = re.compile(r"\S")
BYTES_PER_FILE = 256 * 2**20
MOST_FILES_SHOWN = 20


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """What the model reads."""

    source: Source
    """Where the documents come from."""
    validation_fraction: Annotated[float, Bounds(gt=0, lt=0.5)]
    """Share of documents kept for validation, chosen by the digest of their text."""

    def __post_init__(self) -> None:
        check_fields(self)


@stage_task("download")
def download(config: DataConfig, context: RunContext) -> StageResult:
    """Fetch the documents and split them. Outputs: train_*.parquet, val_*.parquet (id, text, source), lock.json."""
    identity = {"source": source_lock(config.source, context.cache), "validation_fraction": config.validation_fraction}
    stage = Stage(name="download", version=VERSION, config=identity, inputs={})
    files = files_of_source(config.source) if isinstance(config.source, FilesSource) else []
    for sentence in left_out_sentences(files):
        logger().warning("download: %s", sentence)

    def build(_: Path, out: Path) -> dict[str, Any]:
        write_documents(config, context.cache, out)
        if json.loads((out / "lock.json").read_text())["source"] != json.loads(json.dumps(identity["source"])):
            raise SourceError("the source's files changed while they were read; run again")
        return {"left_out": left_out(files)}

    result = build_or_skip(stage, context, build)
    create_markdown_artifact(key="documents", description="What was downloaded", markdown=describe(result, context))
    return result


def write_documents(config: DataConfig, cache: Path, out: Path) -> None:
    """Read all documents once, in the memory of one file and 8 bytes a document, into parquet files of each split;
    empty ones are counted. Raises SourceError for an id that two documents have."""
    parts = {split: _Part(out, split) for split in SPLITS}
    empty, ids = 0, _Ids()
    samples: list[dict[str, str]] = []
    for document in read_source(config.source, cache):
        _refuse_lone_surrogates(document)
        _refuse_endless_space(document)
        if not document.text.strip():
            empty += 1
            continue
        split = "val" if is_validation(document.text, config.validation_fraction) else "train"
        ids.add(document)
        parts[split].add(document)
        if len(samples) < 3:
            samples.append({"id": document.id, "start": document.text[:600]})
    ids.check()
    counts = {split: part.close() for split, part in parts.items()}
    for split, count in counts.items():
        if not count["documents"]:
            raise SourceError(
                f"the {split} split is empty: {sum(c['documents'] for c in counts.values())} documents with "
                f"validation_fraction {config.validation_fraction}; give more documents or another fraction"
            )
    summary = {
        "source": source_lock(config.source, cache),
        "splits": counts,
        "empty_documents": empty,
        "samples": samples,
    }
    (out / "lock.json").write_text(json.dumps(summary, indent=1, sort_keys=True, ensure_ascii=False))


def _refuse_endless_space(document: Document) -> None:
    """The rule that cuts texts into pieces gives up in such a run, in the middle of the tokenizer's training."""
    text = document.text
    for at in range(0, len(text), LONGEST_SPACE) if len(text) > LONGEST_SPACE else ():  # a longer run holds one of them
        if text[at].isspace():
            before = text[max(0, at - LONGEST_SPACE) : at]
            after = NOT_SPACE.search(text, at)
            run = len(before) - len(before.rstrip()) + (after.start() if after else len(text)) - at
            if run > LONGEST_SPACE:
                raise SourceError(
                    f"{document.source}: document {document.id!r} has {run:,} white-space characters in "
                    f"a row, expected at most {LONGEST_SPACE:,}"
                )


def is_validation(text: str, fraction: float) -> bool:
    """Whether a text belongs to the validation split: decided by its own SHA-256, so that it never moves and
    equal texts never stand on both sides."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") < fraction * 2**64


def _refuse_lone_surrogates(document: Document) -> None:
    for value, what in ((document.id, "its id"), (document.text, "it")):
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise SourceError(
                f"{document.source}: document {document.id!r}: character {error.start} of {what} is the lone surrogate "
                f"{value[error.start]!r}, which no UTF-8 text can hold"
            ) from error


class _Ids:
    """Refuses an id that stands twice. What it keeps of each is a digest of 8 bytes: equal ones of different ids would
    refuse a corpus wrongly, with a chance of 3 in a million at 10 million documents."""

    def __init__(self) -> None:
        self.known = np.empty(0, dtype=np.uint64)
        self.new: list[Document] = []

    def add(self, document: Document) -> None:
        self.new.append(replace(document, text=""))
        if len(self.new) == IDS_AT_ONCE:
            self.check()

    def check(self) -> None:
        digests = [hashlib.blake2b(document.id.encode(), digest_size=8).digest() for document in self.new]
        new = np.frombuffer(b"".join(digests), dtype=np.uint64)
        unique, first = np.unique(new, return_index=True)
        again = np.isin(new, self.known)
        again |= ~np.isin(np.arange(len(new)), first)
        if again.any():
            document = self.new[int(again.argmax())]
            raise SourceError(
                f"{document.source}: the id {document.id!r} is that of two documents; ids must be unique, or dropping "
                "one document would drop the other: choose another id_column, or none"
            )
        self.known = np.sort(np.concatenate([self.known, unique]), kind="stable")
        self.new = []


class _Part:
    """The parquet files of one split, in the order the documents came."""

    def __init__(self, out: Path, split: str) -> None:
        self.out, self.split = out, split
        self.writer: pq.ParquetWriter | None = None
        self.rows: list[Document] = []
        self.files = self.documents = self.bytes = self.bytes_in_file = 0

    def add(self, document: Document) -> None:
        size = len(document.text.encode())
        self.rows.append(document)
        self.documents += 1
        self.bytes += size
        self.bytes_in_file += size
        if len(self.rows) == ROWS_PER_GROUP:
            self._write_group()
        if self.bytes_in_file >= BYTES_PER_FILE:
            self._end_file()

    def close(self) -> dict[str, int]:
        self._end_file()
        return {"documents": self.documents, "bytes": self.bytes, "files": self.files}

    def _write_group(self) -> None:
        if not self.rows:
            return
        if self.writer is None:
            path = self.out / f"{self.split}_{self.files:06d}.parquet"
            self.writer = pq.ParquetWriter(path, SCHEMA, compression="zstd")
            self.files += 1
        columns = {name: [getattr(row, name) for row in self.rows] for name in SCHEMA.names}
        self.writer.write_table(pa.table(columns, schema=SCHEMA))
        self.rows = []

    def _end_file(self) -> None:
        self._write_group()
        if self.writer is not None:
            self.writer.close()
        self.writer, self.bytes_in_file = None, 0


def source_lines(source: dict[str, Any]) -> list[str]:
    """What identifies the documents: the source's settings and, of local files, each digest. Code, since a digest is
    wider than a cell of a table may be."""
    settings = {name: value for name, value in source.items() if name != "files" and value is not None}
    lines = [code_block("\n".join(_beside_or_below(name, str(value)) for name, value in settings.items()))]
    if files := source.get("files"):
        shown = [_beside_or_below(file["path"], file["sha256"]) for file in files[:MOST_FILES_SHOWN]]
        more = f", of {len(files):,} in lock.json the first {MOST_FILES_SHOWN}" if len(files) > MOST_FILES_SHOWN else ""
        lines += [f"SHA-256 of each file{more}:", code_block("\n".join(shown))]
    return lines


def _beside_or_below(name: str, value: str) -> str:
    line = f"{name}: {value}"
    return line if len(line) <= CODE_CHARACTERS else f"{name}:\n{value}"


def describe(result: StageResult, context: RunContext) -> str:
    """The stage's artifact: counts, the lock, and how the first documents begin."""
    lock: dict[str, Any] = read_json(result, context, "lock.json")
    rows = [[split, counts["documents"], counts["bytes"]] for split, counts in lock["splits"].items()]
    empty = lock["empty_documents"]
    lines = [
        markdown_table(["split", "documents", "bytes"], rows),
        *([f"{empty:,} empty document{'s were' if empty > 1 else ' was'} left out."] if empty else []),
        *(
            f"Left out: {group['files']}, {group['reason']}:\n\n{code_block(chr(10).join(group['first']))}"
            for group in result.manifest.provenance.get("left_out", [])
        ),
        "**Source**",
        *source_lines(lock["source"]),
    ]
    for sample in lock["samples"]:
        lines += [f"**{untrusted(sample['id'])}** begins", passage(sample["start"])]
    return "\n\n".join(lines)
