"""Documents as Parquet files with string columns id and text: their names, their schema, and all that reads them.

Stages that need texts read them as Python strings (`read_documents`, `read_texts`), the contamination scan as UTF-8
bytes (`row_groups`, `read_row_group`). Only the canaries of the scan's positive control
(`eval/contamination/canaries.py`) are read by other code, so that a flaw in this one is noticed. Files of any other
schema, which a user names as a source, are read by `tasks/sources/document_sources.py`.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from model.errors import DailyTrainError

SCHEMA = pa.schema([("id", pa.string()), ("text", pa.string()), ("source", pa.string())])
"""Of the files that the download stage writes."""
_BATCH_ROWS = 256
_BATCH_BYTES = 2**24
_READ_BYTES = 2**20


class DocumentError(DailyTrainError):
    """A file of documents that cannot be read, or does not hold what is looked for; the message names it."""


def document_files(folder: Path, split: str) -> list[Path]:
    """The files of one split, in order."""
    return sorted(folder.glob(f"{split}_*.parquet"))


def read_documents(paths: Iterable[Path]) -> Iterator[tuple[str, str]]:
    """(id, text) of every document, in order."""
    for batch in _batches(paths, ["id", "text"]):
        yield from zip(batch.column("id").to_pylist(), batch.column("text").to_pylist(), strict=True)


def read_texts(paths: Iterable[Path], limit_bytes: int) -> Iterator[str]:
    """Texts in order, until they have `limit_bytes` of UTF-8 or more."""
    seen = 0
    for batch in _batches(paths, ["text"]):
        for text in batch.column("text").to_pylist():
            if seen >= limit_bytes:
                return
            seen += len(text.encode())
            yield text


def _batches(paths: Iterable[Path], columns: list[str]) -> Iterator[pa.RecordBatch]:
    for path in paths:
        with pq.ParquetFile(path) as file:
            yield from file.iter_batches(batch_size=_BATCH_ROWS, columns=columns)


def read_tables(path: Path) -> Iterator[pa.Table]:
    """The row groups of a file, with all columns."""
    with pq.ParquetFile(path) as file:
        for group in range(file.num_row_groups):
            yield file.read_row_group(group)


def find_text(path: Path, name: str) -> str:
    """The text of the document with the id `name`; raises `DocumentError` when the file has none."""
    for table in read_tables(path):
        for text in table.filter(pc.field("id") == name)["text"].to_pylist():
            return text
    raise DocumentError(f"{path}: there is no document {name!r}")


@dataclass(frozen=True, slots=True)
class RowGroup:
    """One unit of work."""

    file: int
    """Number of the file among all."""
    path: Path
    group: int


@dataclass(frozen=True, slots=True)
class Documents:
    """Documents as UTF-8 bytes, never as Python strings."""

    ids: list[str]
    data: np.ndarray
    """uint8; bytes that are not UTF-8 are allowed and separate words."""
    offsets: np.ndarray
    """int64: document i is data[offsets[i] : offsets[i + 1]]."""

    def text(self, row: int) -> np.ndarray:
        return self.data[self.offsets[row] : self.offsets[row + 1]]


def from_texts(documents: Iterable[tuple[str, bytes]]) -> Documents:
    """Documents that are in memory already."""
    pairs = list(documents)
    offsets = np.cumsum([0, *(len(text) for _, text in pairs)])
    data = np.frombuffer(b"".join(text for _, text in pairs), np.uint8)
    return Documents([document for document, _ in pairs], data, offsets)


def row_groups(paths: Iterable[Path]) -> tuple[list[RowGroup], int]:
    """(all row groups, number of documents); raises `DocumentError` naming a file that has no id or text."""
    groups: list[RowGroup] = []
    total = 0
    for number, path in enumerate(paths):
        try:
            metadata = pq.read_metadata(path)
        except (OSError, pa.ArrowException) as error:
            raise DocumentError(f"{path}: cannot be read as Parquet: {error}") from error
        names = metadata.schema.to_arrow_schema().names
        if missing := {"id", "text"} - set(names):
            raise DocumentError(f"{path}: column {min(missing)!r} is missing: found {names}")
        total += metadata.num_rows
        groups += [RowGroup(number, path, group) for group in range(metadata.num_row_groups)]
    return groups, total


def read_row_group(row_group: RowGroup) -> Iterator[Documents]:
    """The documents of one row group in pieces of about 16 MB; a null text is empty.

    Raises `DocumentError` naming the file.
    """
    path, group = row_group.path, row_group.group
    try:
        with pq.ParquetFile(path, buffer_size=_READ_BYTES, pre_buffer=False) as file:
            metadata = file.metadata.row_group(group)
            mean = metadata.total_byte_size // max(1, metadata.num_rows) + 1
            rows = max(1, min(metadata.num_rows, _BATCH_BYTES // mean))
            for batch in file.iter_batches(rows, row_groups=[group], columns=["id", "text"]):
                yield _documents(batch)
    except (OSError, pa.ArrowException) as error:
        raise DocumentError(f"{path}: row group {group} cannot be read: {error}") from error


def _documents(batch: pa.RecordBatch) -> Documents:
    texts = pc.fill_null(batch.column("text").cast(pa.large_binary()), b"")
    _, offsets, data = texts.buffers()
    offsets = np.frombuffer(offsets, np.int64)[texts.offset : texts.offset + len(texts) + 1].copy()
    ids = batch.column("id").cast(pa.large_binary()).to_pylist()
    names = [("None" if name is None else name.decode("utf-8", "replace")) for name in ids]
    return Documents(names, np.frombuffer(data or b"", np.uint8), offsets)
