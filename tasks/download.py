"""Stage 1: raw documents from their source, split into training and validation, with a lock of what was read."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from prefect import task
from prefect.artifacts import create_markdown_artifact
from pydantic import Field

from eval.markup import code, markdown_table, passage, untrusted
from tasks.documents import Document, Source, SourceError, lock, read
from tasks.settings import Settings
from tasks.stage import STAGE_TASK, Place, Result, Stage, finish, read_json

VERSION = 1
SPLITS = ("train", "val")
ROWS_PER_GROUP = 256
BYTES_PER_FILE = 256 * 2**20
SCHEMA = pa.schema([("id", pa.string()), ("text", pa.string()), ("source", pa.string())])


class DataConfig(Settings):
    """What the model reads."""

    source: Source = Field(description="Where the documents come from.")
    validation_fraction: float = Field(
        gt=0, lt=0.5, description="Share of documents kept for validation, chosen by the digest of their text."
    )


@task(name="download", **STAGE_TASK)
def download(config: DataConfig, place: Place) -> Result:
    """Fetch the documents and split them. Outputs: train_*.parquet, val_*.parquet (id, text, source), lock.json."""
    identity = {"source": lock(config.source, place.cache), "validation_fraction": config.validation_fraction}
    stage = Stage(name="download", version=VERSION, config=identity, inputs={})
    result = finish(stage, place, lambda _, out: write_documents(config, place.cache, out))
    create_markdown_artifact(key="documents", description="What was downloaded", markdown=describe(result, place))
    return result


def write_documents(config: DataConfig, cache: Path, out: Path) -> None:
    """Read all documents once, in constant memory, into parquet files of each split; empty ones are counted."""
    parts = {split: _Part(out, split) for split in SPLITS}
    empty, samples = 0, []
    for document in read(config.source, cache):
        _refuse_lone_surrogates(document)
        if not document.text.strip():
            empty += 1
            continue
        split = "val" if is_validation(document.text, config.validation_fraction) else "train"
        parts[split].add(document)
        if len(samples) < 3:
            samples.append({"id": document.id, "start": document.text[:600]})
    counts = {split: part.close() for split, part in parts.items()}
    for split, count in counts.items():
        if not count["documents"]:
            raise SourceError(
                f"the {split} split is empty: {sum(c['documents'] for c in counts.values())} documents with "
                f"validation_fraction {config.validation_fraction}; give more documents or another fraction"
            )
    summary = {"source": lock(config.source, cache), "splits": counts, "empty_documents": empty, "samples": samples}
    (out / "lock.json").write_text(json.dumps(summary, indent=1, sort_keys=True, ensure_ascii=False))


def is_validation(text: str, fraction: float) -> bool:
    """Whether a text belongs to the validation split: decided by its own SHA-256, so that it never moves and
    equal texts never stand on both sides."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") < fraction * 2**64


def _refuse_lone_surrogates(document: Document) -> None:
    try:
        document.text.encode()
    except UnicodeEncodeError as error:
        raise SourceError(
            f"{document.source}: document {document.id}: character {error.start} is the lone surrogate "
            f"{document.text[error.start]!r}, which no UTF-8 text can hold"
        ) from error


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


def documents_files(folder: Path, split: str) -> list[Path]:
    """The parquet files of one split, in order."""
    return sorted(folder.glob(f"{split}_*.parquet"))


def lock_tables(source: dict[str, Any]) -> list[str]:
    """What identifies the documents: the source's settings and, of local files, each digest."""
    rows = [[name, code(str(value))] for name, value in source.items() if name != "files" and value is not None]
    tables = [markdown_table(["source", ""], rows)]
    if files := source.get("files"):
        tables.append(markdown_table(["file", "sha256"], [[code(f["path"]), code(f["sha256"])] for f in files]))
    return tables


def describe(result: Result, place: Place) -> str:
    """The stage's artifact: counts, the lock, and how the first documents begin."""
    found: dict[str, Any] = read_json(result, place, "lock.json")
    rows = [[split, counts["documents"], counts["bytes"]] for split, counts in found["splits"].items()]
    lines = [
        f"{found['empty_documents']} empty documents were left out.",
        markdown_table(["split", "documents", "bytes"], rows),
        "**Lock**",
        *lock_tables(found["source"]),
    ]
    for sample in found["samples"]:
        lines += [f"**{untrusted(sample['id'])}** begins", passage(sample["start"])]
    return "\n\n".join(lines)
