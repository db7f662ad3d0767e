"""Files that are written as a whole or not at all, and the SHA-256 of a file."""

import hashlib
import json
import os
from pathlib import Path

from model.errors import regular_file


def file_sha256(path: Path) -> str:
    """Hexadecimal digest of the content of a file."""
    with open(regular_file(path), "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync(path: Path) -> None:
    """Have a file, or the entries of a folder, written to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_json(path: Path, value: object) -> None:
    """Write a JSON file atomically."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")  # two processes may write the same
    temporary.write_text(json.dumps(value, indent=2) + "\n")
    sync(temporary)
    os.replace(temporary, path)
