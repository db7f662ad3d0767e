"""Names, digests and errors of what lies in a store."""

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

from model.errors import DailyTrainError, regular_file

READ_BYTES = 16 * 2**20
"""The largest object that is read into memory unless its size is known."""
LONGEST_KEY = 1024


class StoreError(DailyTrainError):
    """The store cannot do what was asked; the message names the object and the reason."""

    transient: bool | None = None
    """Whether a retry may succeed; None: the error that caused this one says (tasks/store/retries.py)."""


class ReadOnlyStoreError(StoreError):
    """The store can be read at most; the message says what was refused."""


def saved_steps(run_dir: Path) -> list[int]:
    """Steps of the checkpoints in a trainer's folder, ascending. A checkpoint has its name when it is whole."""
    names = (re.fullmatch(r"step_(\d{9})", path.name) for path in (run_dir / "checkpoints").glob("step_*"))
    return sorted(int(name[1]) for name in names if name)


@dataclass(frozen=True)
class Digest:
    """Size in bytes and SHA-256 (lower-case hex) of one object's content."""

    bytes: int
    sha256: str


def digest_file(path: Path) -> Digest:
    """Size and SHA-256 of a file's content, read once in constant memory."""
    with regular_file(path).open("rb") as file:
        return Digest(path.stat().st_size, hashlib.file_digest(file, "sha256").hexdigest())


def name_problem(name: object) -> str | None:
    """Why a slash-separated name must not become a path below a folder, or None when it may."""
    if not isinstance(name, str):
        return "it is no text"
    try:
        size = len(name.encode())
    except UnicodeEncodeError:
        return "it is no UTF-8"
    if not 0 < size <= LONGEST_KEY:
        return f"it has {size} bytes, expected 1 to {LONGEST_KEY}"
    if any(not character.isprintable() or character == "\\" for character in name):
        return "it has a backslash or a character that cannot be printed"
    if any(part in ("", ".", "..") for part in name.split("/")):
        return "it leaves its folder, or has an empty part"
    return None


def check_key(key: str, *, empty: bool = False) -> str:
    """The key. Raises StoreError for one that would leave the store; `empty` stands for the store itself."""
    if not (empty and not key.strip("/")) and (reason := name_problem(key.removesuffix("/"))):
        raise StoreError(f"{printable(key)}: no name of an object: {reason}")
    return key


def check_inside(path: Path, folder: Path) -> None:
    """Raises StoreError when a link leads from inside the folder to outside it."""
    if not path.parent.resolve().is_relative_to(folder.resolve()):
        raise StoreError(f"{path}: a link leads from there to {path.parent.resolve()}, outside {folder}")


def printable(name: object) -> str:
    """A name as text that can be printed, whatever its bytes are, and not longer than a line."""
    text = str(name).encode("utf-8", "backslashreplace").decode()
    text = "".join(character if character.isprintable() else ascii(character)[1:-1] for character in text)
    return text if len(text) <= 300 else f"{text[:300]}…"
