"""Which files of a folder are documents, and which are left out and why.

Folders are read recursively. A file counts when it matches a pattern, and is no note about the corpus, such as a
README. Nothing below a name that begins with a dot (`.git`, `.cache`) is looked at. The order is that of the files'
paths below the folder; neither the folder's own path, time stamps nor anything left out is part of a corpus' identity.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from model.errors import DailyTrainError

PLAIN_TEXT = (".txt", ".text", ".md")
NAMED = 100
DEEPEST = 200


class SourceError(DailyTrainError):
    """Documents cannot be read; the message names the file and the value."""


@dataclass(frozen=True)
class FolderFile:
    """One file below a folder."""

    name: str
    """Path below the folder, with slashes."""
    path: Path
    reason: str | None = None
    """Why it is left out; null: it holds documents."""


def find_document_files(root: Path, patterns: tuple[str, ...], notes: tuple[str, ...]) -> list[FolderFile]:
    """All files below a folder in order, each with the reason if it is left out. `notes` are patterns of plain text
    files to leave out. A file that several links lead to is read once.

    Raises SourceError for a folder that cannot be listed, a link that leads nowhere, and when no file is left.
    """
    files = sorted(_walk(root, os.path.realpath(root), "", patterns, notes, set()), key=lambda file: file.name)
    chosen: dict[str, FolderFile] = {}
    for file in sorted(files, key=lambda file: (file.path.is_symlink(), file.name)):  # a link after what it leads to
        if file.reason is None:
            chosen.setdefault(os.path.realpath(file.path), file)
    names = {file.name for file in chosen.values()}
    if not names:
        reasons = "; ".join(left_out_sentences(files)) or "it is empty"
        raise SourceError(f"{root}: no file of this folder holds documents: {reasons}")
    again = "leads to a file that is read already"
    return [file if file.reason or file.name in names else FolderFile(file.name, file.path, again) for file in files]


def left_out_sentences(files: list[FolderFile]) -> list[str]:
    """One sentence for each reason, with the first names."""
    return [
        f"{group['files']} left out, {group['reason']}: {', '.join(group['first'][:10])}"
        + (" …" if group["files"] > 10 else "")
        for group in left_out(files)
    ]


def left_out(files: list[FolderFile]) -> list[dict]:
    """The files that are left out by reason: how many, and the first of them by name."""
    reasons: dict[str, list[str]] = {}
    for file in files:
        if file.reason:
            reasons.setdefault(file.reason, []).append(os.fsencode(file.name).decode("utf-8", "backslashreplace"))
    return [{"reason": reason, "files": len(names), "first": names[:NAMED]} for reason, names in reasons.items()]


def _walk(
    folder: Path, true: str, prefix: str, patterns: tuple[str, ...], notes: tuple[str, ...], seen: set[str]
) -> Iterator[FolderFile]:
    """`true`: the folder's path without links. `seen`: those of the folders that were listed, so that a link to one of
    them ends there."""
    seen.add(true)
    if prefix.count("/") > DEEPEST:
        raise SourceError(f"{folder}: folders are nested more than {DEEPEST} deep")
    try:
        for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
            name, path = prefix + entry.name, Path(entry.path)
            if entry.name.startswith("."):
                yield FolderFile(name, path, "hidden")
            elif path.is_dir():
                inside = os.path.realpath(path) if entry.is_symlink() else os.path.join(true, entry.name)
                if inside in seen:
                    yield FolderFile(name, path, "leads to a folder that is read already")
                else:
                    yield from _walk(path, inside, name + "/", patterns, notes, seen)
            else:
                yield FolderFile(name, path, _reason(name, path, patterns, notes))
    except OSError as error:
        raise SourceError(f"{error.filename}: cannot be read: {error.strerror}") from error


def _reason(name: str, path: Path, patterns: tuple[str, ...], notes: tuple[str, ...]) -> str | None:
    if not _matches(name, patterns):
        return f"matches no pattern ({' '.join(patterns)})"
    if path.suffix.lower() in PLAIN_TEXT and _matches(name, notes):
        return "a note about the corpus by its name"
    if not path.exists():
        raise SourceError(f"{path}: the link leads to no file ({os.readlink(path)!r})")
    if not path.is_file():
        return "neither a file nor a folder"
    try:
        name.encode()
    except UnicodeEncodeError as error:
        raise SourceError(f"{os.fsencode(path)!r}: the name of the file is not valid UTF-8") from error
    return None if path.stat().st_size else "empty"


def _matches(name: str, patterns: tuple[str, ...]) -> bool:
    """A pattern with a slash is one of paths, any other one of names; the case of letters does not matter."""
    lower, last = name.lower(), name.lower().rsplit("/", 1)[-1]
    return any(fnmatchcase(lower if "/" in pattern else last, pattern.lower()) for pattern in patterns)
