"""Where every stage's result lives: one small interface over a local directory or an S3 bucket.

A key is a slash-separated path such as `stages/shard/<key>/manifest.json`. Nothing else in the project knows
which backend is used. Credentials and the endpoint of an S3 server come from the standard AWS environment
(`AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY`, `AWS_ENDPOINT_URL_S3`, ...) and never from a configuration.
"""

import contextlib
import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from model.errors import expand_home
from tasks.store.objects import READ_BYTES, Digest, ReadOnlyStoreError, StoreError, check_key, digest_file, printable
from tasks.store.probe import probe_store

NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK)


class Store(Protocol):
    """What a stage needs of a store. Every method raises StoreError with the object's name when it fails."""

    url: str

    def check(self) -> None:
        """Fail now, in one sentence, when the store cannot be reached or lacks what runs need
        (`tasks/store/probe.py`)."""

    def shorten_patience(self) -> None:
        """Somebody waits: give up soon when the store does not answer."""

    def put(self, key: str, path: Path, digest: Digest) -> None:
        """Store the file at `path`, whose digest the caller measured. The file stays, and must not be changed."""

    def get(self, key: str, cache: Path) -> Path:
        """A local file with the object's content: in place for a directory, else downloaded below `cache`. Its bytes
        are those that are stored, also where the network changes what it carries."""

    def read(self, key: str, most: int = READ_BYTES) -> bytes | None:
        """The content of a small object, or None when there is none. Raises StoreError for one of more bytes."""

    def publish(self, key: str, content: bytes) -> bool:
        """Write a small object atomically if it is absent; False when somebody else's is there."""

    def digest(self, key: str) -> Digest | None:
        """The stored object's digest, or None when there is none. See each backend for what is re-read."""

    def exists(self, key: str) -> bool:
        """Whether the object is there."""

    def list(self, prefix: str) -> Iterator[str]:
        """Keys below `prefix`, sorted."""

    def delete(self, key: str) -> None:
        """Remove one object; absent is fine."""

    def clear(self, prefix: str) -> None:
        """Remove everything below `prefix`, half-written files and empty folders too."""


def open_store(url: str) -> Store:
    """`s3://bucket/prefix` gives an S3Store, anything else is a local directory."""
    if url.startswith("s3://"):
        from tasks.store.s3 import S3Store  # noqa: PLC0415 (boto, which a directory does not need)

        return S3Store(url)
    if "://" in url or url.startswith("s3:") or not url.strip():
        raise StoreError(f"store {url!r}: known kinds are a local directory and s3://bucket/prefix")
    return LocalStore(url)


def _link_new(content: bytes, path: Path) -> None:
    """Give a finished file its name. Unlike a rename, a link refuses to replace what is there. The file has no name
    before, where the file system can do that, so that a killed process leaves nothing."""
    try:
        file = os.open(path.parent, os.O_TMPFILE | os.O_WRONLY, 0o666)
        name = f"/proc/self/fd/{file}"
    except (OSError, AttributeError):
        file, name = tempfile.mkstemp(dir=path.parent, prefix=".")
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        with os.fdopen(file, "wb", closefd=False) as writer:
            writer.write(content)
        os.fsync(file)
        os.link(name, path.name, dst_dir_fd=folder, follow_symlinks=True)
    finally:
        os.close(file)
        os.close(folder)
        if Path(name).parent == path.parent:
            os.unlink(name)


def _unlisted(error: OSError) -> None:
    """What cannot be listed is not empty: a training would begin anew beside its checkpoints."""
    if not isinstance(error, FileNotFoundError | NotADirectoryError):
        raise error


class LocalStore:
    """A directory. Writes go to a temporary file first and are renamed, so that a reader never sees half of one."""

    def __init__(self, root: str) -> None:
        self.root = expand_home(root).absolute()
        self.url = str(self.root)

    def check(self) -> None:
        with self._explained(self.root):
            if os.path.lexists(self.root) and not self.root.is_dir():
                raise StoreError(
                    f"{printable(self.root)}: is no directory; a store is a directory or s3://bucket/prefix"
                )
            self.root.mkdir(parents=True, exist_ok=True)
        probe_store(self)

    def shorten_patience(self) -> None:
        pass

    def put(self, key: str, path: Path, digest: Digest) -> None:
        target = self._path(key)
        partial = target.with_name(f".{target.name}.partial")  # one name: the next try removes what a killed one left
        with self._explained(target):
            for _ in range(3):  # another process may remove the folder while it is empty
                target.parent.mkdir(parents=True, exist_ok=True)
                with contextlib.suppress(FileNotFoundError):
                    return self._place(path, partial, target)
            self._place(path, partial, target)

    def _place(self, path: Path, partial: Path, target: Path) -> None:
        partial.unlink(missing_ok=True)
        try:
            try:
                os.link(path, partial)
            except OSError as error:
                if error.errno not in (errno.EXDEV, *NO_LINKS):
                    raise
                shutil.copyfile(path, partial)
            os.replace(partial, target)
        finally:
            partial.unlink(missing_ok=True)  # a link that replaces itself is left by the system

    def get(self, key: str, cache: Path) -> Path:
        if not self.exists(key):
            raise StoreError(f"{self._path(key)}: there is no such object in the store")
        return self._path(key)

    def read(self, key: str, most: int = READ_BYTES) -> bytes | None:
        path = self._path(key)
        with self._explained(path):
            if not path.is_file():
                if os.path.lexists(path):  # nothing could be published in its place
                    raise StoreError(
                        f"{printable(path)}: is a folder, a link that leads nowhere or the like, not a file"
                    )
                return None
            if (size := path.stat().st_size) > most:
                raise StoreError(f"{printable(path)}: is {size:,} bytes, expected at most {most:,}")
            return path.read_bytes()

    def publish(self, key: str, content: bytes) -> bool:
        path = self._path(key)
        with self._explained(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                _link_new(content, path)
            except FileExistsError:
                return False
            except OSError as error:
                if error.errno in NO_LINKS:
                    why = "which keep two processes from replacing each other's results; use another one"
                    raise StoreError(f"{path}: this file system has no hard links, {why}") from error
                raise
        return True

    def digest(self, key: str) -> Digest | None:
        """Reads the whole file: a flipped byte on this disk is found here."""
        path = self._path(key)
        with self._explained(path):
            return digest_file(path) if path.is_file() else None

    def exists(self, key: str) -> bool:
        path = self._path(key)
        with self._explained(path):
            return path.is_file()

    def list(self, prefix: str) -> Iterator[str]:
        below = self._path(prefix) if prefix else self.root
        with self._explained(below):
            found = (Path(folder, name) for folder, _, names in os.walk(below, onerror=_unlisted) for name in names)
            files = (path for path in found if not path.name.startswith(".") and path.is_file())
            yield from sorted(path.relative_to(self.root).as_posix() for path in files)

    def delete(self, key: str) -> None:
        path = self._path(key)
        with self._explained(path):
            path.unlink(missing_ok=True)

    def clear(self, prefix: str) -> None:
        below = self._path(prefix)
        with self._explained(below):
            if below.is_dir() and not below.is_symlink():
                shutil.rmtree(below)

    def _path(self, key: str) -> Path:
        return self.root / check_key(key)

    @contextlib.contextmanager
    def _explained(self, path: Path) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            refused = error.errno in (errno.EROFS, errno.EACCES, errno.EPERM) and self.root.is_dir()
            error_type = ReadOnlyStoreError if refused else StoreError
            raise error_type(f"{printable(path)}: {error.strerror or error}") from error
