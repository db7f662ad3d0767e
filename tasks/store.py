"""Where every stage's result lives: one small interface over a local directory or an S3 bucket.

A key is a slash-separated path such as `stages/shard/<key>/manifest.json`. Nothing else in the project knows
which backend is used. Credentials and the endpoint of an S3 server come from the standard AWS environment
(`AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY`, `AWS_ENDPOINT_URL_S3`, ...) and never from a configuration.
"""

import errno
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

import boto3
from boto3.exceptions import Boto3Error
from boto3.s3.transfer import TransferConfig
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from model.errors import DailyTrainError, expanded, regular_file

MULTIPART_BYTES = 16 * 2**20


class StoreError(DailyTrainError):
    """The store cannot do what was asked; the message names the object and the reason."""


@dataclass(frozen=True)
class Digest:
    """Size in bytes and SHA-256 (lower-case hex) of one object's content."""

    bytes: int
    sha256: str


class Store(Protocol):
    """What a stage needs of a store. Every method raises StoreError with the object's name when it fails."""

    url: str

    def check(self) -> None:
        """Fail now, in one sentence, when the store cannot be reached or written."""

    def put(self, key: str, path: Path, digest: Digest) -> None:
        """Store the file at `path`, whose digest the caller measured; the file may be moved away."""

    def get(self, key: str, cache: Path) -> Path:
        """A local file with the object's content: in place for a directory, else downloaded below `cache`."""

    def read(self, key: str) -> bytes | None:
        """The content of a small object, or None when there is none."""

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


def open_store(url: str) -> Store:
    """`s3://bucket/prefix` gives an S3Store, anything else is a local directory."""
    if url.startswith("s3://"):
        return S3Store(url)
    if "://" in url:
        raise StoreError(f"store {url!r}: known kinds are a local directory and s3://bucket/prefix")
    return LocalStore(url)


def digest_file(path: Path) -> Digest:
    """Size and SHA-256 of a file's content, read once in constant memory."""
    with regular_file(path).open("rb") as file:
        return Digest(path.stat().st_size, hashlib.file_digest(file, "sha256").hexdigest())


class LocalStore:
    """A directory. Writes go to a temporary file first and are renamed, so that a reader never sees half of one."""

    def __init__(self, root: str) -> None:
        self.root = expanded(root).absolute()
        self.url = str(self.root)

    def check(self) -> None:
        with self._explained(self.root):
            self.root.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=self.root):
                pass

    def put(self, key: str, path: Path, digest: Digest) -> None:
        target = self.root / key
        with self._explained(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                os.replace(path, target)
            except OSError as error:
                if error.errno != errno.EXDEV:
                    raise
                partial = target.with_name(f".{target.name}.partial")
                shutil.copyfile(path, partial)
                os.replace(partial, target)

    def get(self, key: str, cache: Path) -> Path:
        path = self.root / key
        if not path.is_file():
            raise StoreError(f"{path}: there is no such object in the store")
        return path

    def read(self, key: str) -> bytes | None:
        path = self.root / key
        with self._explained(path):
            return path.read_bytes() if path.is_file() else None

    def publish(self, key: str, content: bytes) -> bool:
        path = self.root / key
        with self._explained(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".", delete=False) as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            try:
                os.link(file.name, path)  # unlike a rename, a link refuses to replace what is there
            except FileExistsError:
                return False
            finally:
                os.unlink(file.name)
        return True

    def digest(self, key: str) -> Digest | None:
        """Reads the whole file: a flipped byte on this disk is found here."""
        path = self.root / key
        with self._explained(path):
            return digest_file(path) if path.is_file() else None

    def exists(self, key: str) -> bool:
        return (self.root / key).is_file()

    def list(self, prefix: str) -> Iterator[str]:
        below = self.root / prefix
        found = (path for path in below.rglob("*") if path.is_file() and not path.name.startswith("."))
        yield from sorted(path.relative_to(self.root).as_posix() for path in found)

    def delete(self, key: str) -> None:
        (self.root / key).unlink(missing_ok=True)

    @contextmanager
    def _explained(self, path: Path) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise StoreError(f"{path}: {error.strerror or error}") from error


class S3Store:
    """A bucket with a prefix on any S3-compatible server that honours conditional puts (`If-None-Match: *`)."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        if not parts.netloc:
            raise StoreError(f"store {url!r}: the bucket's name is missing, expected s3://bucket/prefix")
        self.url = url.rstrip("/")
        self.bucket = parts.netloc
        self.prefix = parts.path.strip("/")
        self.client = self._connect(attempts=5)

    def _connect(self, attempts: int) -> Any:
        own_endpoint = any(os.environ.get(name) for name in ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"))
        with self._explained(""):
            return boto3.Session().client(  # a session of its own: the default one remembers old credentials
                "s3",
                region_name=os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or "us-east-1",
                config=Config(
                    retries={"max_attempts": attempts, "mode": "standard"},
                    connect_timeout=5,
                    read_timeout=60,
                    s3={"addressing_style": "path" if own_endpoint else "auto"},
                ),
            )

    def check(self) -> None:
        with self._explained(""):
            self._connect(attempts=2).head_bucket(Bucket=self.bucket)

    def put(self, key: str, path: Path, digest: Digest) -> None:
        with self._explained(key):
            # The server checks the bytes against the checksum on arrival; the digest stays readable by a HEAD.
            self.client.upload_file(
                str(path),
                self.bucket,
                self._name(key),
                ExtraArgs={"ChecksumAlgorithm": "SHA256", "Metadata": {"sha256": digest.sha256}},
                Config=TransferConfig(multipart_threshold=MULTIPART_BYTES, multipart_chunksize=MULTIPART_BYTES),
            )

    def get(self, key: str, cache: Path) -> Path:
        target = cache / key
        with self._explained(key):
            target.parent.mkdir(parents=True, exist_ok=True)
            partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
            try:
                self.client.download_file(self.bucket, self._name(key), str(partial))
                os.replace(partial, target)
            finally:
                partial.unlink(missing_ok=True)
        return target

    def read(self, key: str) -> bytes | None:
        with self._explained(key):
            try:
                return self.client.get_object(Bucket=self.bucket, Key=self._name(key))["Body"].read()
            except self.client.exceptions.NoSuchKey:
                return None

    def publish(self, key: str, content: bytes) -> bool:
        with self._explained(key):
            try:
                self.client.put_object(
                    Bucket=self.bucket,
                    Key=self._name(key),
                    Body=content,
                    IfNoneMatch="*",
                    ChecksumAlgorithm="SHA256",
                    Metadata={"sha256": hashlib.sha256(content).hexdigest()},
                )
            except ClientError as error:
                if error.response["Error"]["Code"] in ("PreconditionFailed", "ConditionalRequestConflict", "412"):
                    return False
                raise
        return True

    def digest(self, key: str) -> Digest | None:
        """One HEAD request: the size now and the SHA-256 recorded when it was put. An object that was
        overwritten otherwise has another record or none; bytes are checked when they are downloaded."""
        with self._explained(key):
            try:
                head = self.client.head_object(Bucket=self.bucket, Key=self._name(key))
            except ClientError as error:
                if error.response["ResponseMetadata"]["HTTPStatusCode"] == 404:
                    return None
                raise
        return Digest(head["ContentLength"], head["Metadata"].get("sha256", "not recorded"))

    def exists(self, key: str) -> bool:
        return self.digest(key) is not None

    def list(self, prefix: str) -> Iterator[str]:
        start = self._name("")
        with self._explained(prefix):
            pages = self.client.get_paginator("list_objects_v2")
            for page in pages.paginate(Bucket=self.bucket, Prefix=self._name(prefix.rstrip("/") + "/")):
                yield from (entry["Key"].removeprefix(start) for entry in page.get("Contents", []))

    def delete(self, key: str) -> None:
        with self._explained(key):
            self.client.delete_object(Bucket=self.bucket, Key=self._name(key))

    def _name(self, key: str) -> str:
        return f"{self.prefix}/{key}" if self.prefix else key

    @contextmanager
    def _explained(self, key: str) -> Iterator[None]:
        where = f"{self.url}/{key}" if key else self.url
        try:
            yield
        except ClientError as error:
            status = error.response["ResponseMetadata"]["HTTPStatusCode"]
            no_bucket = not key or error.response["Error"]["Code"] == "NoSuchBucket"
            absent = f"there is no bucket {self.bucket!r}" if no_bucket else "there is no such object in the store"
            why = {404: absent, 403: "access denied"}.get(status, str(error))
            raise StoreError(f"{where}: {why}") from error
        except (BotoCoreError, Boto3Error, OSError) as error:
            raise StoreError(f"{where}: {error}") from error
