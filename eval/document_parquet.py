"""Training documents from Parquet, as UTF-8 bytes and never as Python strings."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from eval.contamination.verdicts import ContaminationError

_BATCH_BYTES = 2**24
_READ_BYTES = 2**20


@dataclass(frozen=True, slots=True)
class RowGroup:
    """One unit of work."""

    file: int
    """Number of the file among all."""
    path: Path
    group: int


@dataclass(frozen=True, slots=True)
class Documents:
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
    """(all row groups, number of documents); raises `ContaminationError` naming a file that has no id or text."""
    groups, total = [], 0
    for number, path in enumerate(paths):
        try:
            metadata = pq.read_metadata(path)
        except (OSError, pa.ArrowException) as error:
            raise ContaminationError(f"{path}: cannot be read as Parquet: {error}") from error
        names = metadata.schema.to_arrow_schema().names
        if missing := {"id", "text"} - set(names):
            raise ContaminationError(f"{path}: column {min(missing)!r} is missing: found {names}")
        total += metadata.num_rows
        groups += [RowGroup(number, path, group) for group in range(metadata.num_row_groups)]
    return groups, total


def read_documents(row_group: RowGroup) -> Iterator[Documents]:
    """The documents of one row group in pieces of about 16 MB; a null text is empty.

    Raises `ContaminationError` naming the file.
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
        raise ContaminationError(f"{path}: row group {group} cannot be read: {error}") from error


def _documents(batch: pa.RecordBatch) -> Documents:
    texts = pc.fill_null(batch.column("text").cast(pa.large_binary()), b"")
    _, offsets, data = texts.buffers()
    offsets = np.frombuffer(offsets, np.int64)[texts.offset : texts.offset + len(texts) + 1].copy()
    ids = batch.column("id").cast(pa.large_binary()).to_pylist()
    names = [("None" if name is None else name.decode("utf-8", "replace")) for name in ids]
    return Documents(names, np.frombuffer(data or b"", np.uint8), offsets)
