"""A store in a bucket of any S3-compatible server.

Every request is tried again while its failure is of a network or a busy server (`tasks/store/retries.py`), for
`PATIENCE` seconds, with pauses that double and are drawn at random. The library's own retries are off: they know fewer
failures, and hide that a request whose answer was lost had arrived. Objects carry their SHA-256 as metadata; what is
read is compared with it and fetched again, until it agrees or the same bytes came three times.
"""

import contextlib
import hashlib
import http.client
import itertools
import logging
import os
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError
from urllib3.exceptions import HTTPError

from model.errors import reason_of
from tasks.store import s3_errors
from tasks.store.objects import READ_BYTES, Digest, StoreError, check_inside, check_key, digest_file
from tasks.store.probe import probe_store
from tasks.store.s3_bodies import (
    SLOWEST,
    call_with_deadline,
    checksum_fields,
    md5_header,
    read_body,
    require_unchanged,
    sha256_header,
    size_of,
)
from tasks.store.s3_errors import (
    UNREADABLE,
    UploadGoneError,
    error_after_tries,
    error_code_of,
    is_absent,
    is_retryable,
    status_of,
)

MULTIPART_BYTES = 16 * 2**20
PARTS_AT_ONCE = 8
MOST_PARTS = 9_000
"""Parts of one object; servers allow 10,000."""
PATIENCE = 90.0
"""Seconds for which a request is tried again; the last try may end later by its own timeout."""
SECONDS_TO_OPEN = 12.0
"""The same while somebody waits for a run to begin: an address with a typing error is to be seen soon."""
LONGEST_PAUSE = 15.0
CONNECT_SECONDS = 5
READ_SECONDS = (10, 30)
"""Seconds without a byte from the server after which a try is given up: the first two tries, and all others."""
SAME, FETCHES = 3, 12
"""So many times the same bytes, of so many fetches at most: they are what is stored, whatever the digest says."""
CAUGHT = (BotoCoreError, ClientError, HTTPError, http.client.HTTPException, OSError, RecursionError)
Answer = TypeVar("Answer")


class S3Store:
    """A bucket with a prefix on any S3-compatible server that honours conditional puts (`If-None-Match: *`)."""

    def __init__(self, url: str, patience: float = PATIENCE) -> None:
        self.url = url.rstrip("/")
        self.bucket, _, prefix = url.removeprefix("s3://").partition("/")
        if not self.bucket:
            raise StoreError(f"store {url!r}: the bucket's name is missing, expected s3://bucket/prefix")
        self.prefix = check_key(prefix.strip("/"), empty=True)
        self.patience = patience
        self.read_seconds = READ_SECONDS
        with s3_errors.checked_aws_settings(self.url):
            self.session = boto3.Session()  # of its own: the default one remembers old credentials
        self.client = self._connect(self.read_seconds[0])
        self._patient: Any = None
        with_checksums = self.client.meta.config.request_checksum_calculation == "when_supported"
        self._checksum = sha256_header if with_checksums else md5_header

    def _connect(self, read_seconds: float) -> Any:
        own_endpoint = any(os.environ.get(name) for name in ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"))
        with s3_errors.checked_aws_settings(self.url):
            return self.session.client(
                "s3",
                region_name=os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or "us-east-1",
                config=Config(
                    retries={"total_max_attempts": 1},
                    connect_timeout=CONNECT_SECONDS,
                    read_timeout=read_seconds,
                    max_pool_connections=PARTS_AT_ONCE + 2,
                    response_checksum_validation="when_required",  # every byte is compared with our own digest
                    s3={"addressing_style": "path" if own_endpoint else "auto"},
                ),
            )

    def _client(self, number: int) -> Any:
        """The client of a try: from the third on it waits longer, for a server that is slow and not dead."""
        if number <= 2:
            return self.client
        self._patient = self._patient or self._connect(self.read_seconds[1])
        return self._patient

    def check(self) -> None:
        patience = self.patience
        try:
            self.shorten_patience()
            self._tried("", self._require_bucket)
            self.patience, self._patient = patience, None  # it answers, so the address is right
            probe_store(self)
        finally:
            self.patience, self._patient = patience, None

    def shorten_patience(self) -> None:
        self.patience = min(self.patience, SECONDS_TO_OPEN)
        self._patient = self.client

    def _require_bucket(self, client: Any) -> None:
        """Some servers would make the bucket of a first put."""
        try:
            client.head_bucket(Bucket=self.bucket)
        except ClientError as error:
            if status_of(error) not in (400, 403):  # no answer to HEAD says why: the first put does
                raise

    def put(self, key: str, path: Path, digest: Digest) -> None:
        if digest.bytes <= MULTIPART_BYTES:
            with self._explained(key):
                body = path.read_bytes()
            require_unchanged(path, Digest(len(body), hashlib.sha256(body).hexdigest()), digest)
            sent = {"Body": body, "Metadata": {"sha256": digest.sha256}, **self._checksum(body)}
            sent |= {"Bucket": self.bucket, "Key": self._name(key)}
            self._tried(key, lambda client: client.put_object(**sent), size=digest.bytes)
            return
        for number in itertools.count(1):
            try:
                self._put_parts(key, path, digest)
                break
            except UploadGoneError as error:
                if number == SAME:
                    raise StoreError(f"{self._where(key)}: the upload in parts was lost: {error}") from error
            finally:
                with contextlib.suppress(*CAUGHT):  # what is left costs money and is in no listing
                    self._abort_uploads(key)

    def _put_parts(self, key: str, path: Path, digest: Digest) -> None:
        """Upload parts in threads, and make one object of them when all have the bytes that were measured."""
        where = {"Bucket": self.bucket, "Key": self._name(key)}
        kind = {"ChecksumAlgorithm": "SHA256"} if self._checksum is sha256_header else {}
        upload = self._tried(
            key,
            lambda client: client.create_multipart_upload(**where, **kind, Metadata={"sha256": digest.sha256})[
                "UploadId"
            ],
        )
        stop, free = threading.Event(), threading.Semaphore(PARTS_AT_ONCE)

        def send(number: int, body: bytes) -> dict[str, Any]:
            def once(client: Any) -> dict[str, Any]:
                answer = client.upload_part(
                    **where, UploadId=upload, PartNumber=number, Body=body, **self._checksum(body)
                )
                return {"PartNumber": number, "ETag": answer["ETag"]} | checksum_fields(answer)

            try:
                return self._tried(key, once, stop, size)
            except BaseException:
                stop.set()
                raise
            finally:
                free.release()

        size, measured = max(MULTIPART_BYTES, -(-digest.bytes // MOST_PARTS)), hashlib.sha256()
        sending: list[Future[dict[str, Any]]] = []
        pool = ThreadPoolExecutor(PARTS_AT_ONCE)
        try:
            with self._explained(key), path.open("rb") as file:
                while not stop.is_set() and (body := file.read(size)):
                    measured.update(body)
                    free.acquire()
                    sending.append(pool.submit(send, len(sending) + 1, body))
            parts = [future.result() for future in sending]
        finally:
            stop.set()
            pool.shutdown(wait=False, cancel_futures=True)
        require_unchanged(path, Digest(digest.bytes, measured.hexdigest()), digest)

        def complete(client: Any) -> None:
            client.complete_multipart_upload(**where, UploadId=upload, MultipartUpload={"Parts": parts})

        try:
            self._tried(key, complete)
        except UploadGoneError:
            if self.digest(key) != digest:  # else an earlier try had arrived
                raise

    def _abort_uploads(self, key: str) -> None:
        """Drop uploads in parts to this key, in one try."""
        uploads = self.client.list_multipart_uploads(Bucket=self.bucket, Prefix=self._name(key)).get("Uploads", [])
        for upload in uploads:
            if upload["Key"] == self._name(key):
                self.client.abort_multipart_upload(Bucket=self.bucket, Key=upload["Key"], UploadId=upload["UploadId"])

    def get(self, key: str, cache: Path) -> Path:
        target = cache / check_key(key)
        with self._explained(key):
            target.parent.mkdir(parents=True, exist_ok=True)
        check_inside(target, cache.joinpath(*key.split("/")[:-1][:4]))  # no link below an attempt's folder
        wanted = self.digest(key)
        if wanted is None:
            raise StoreError(f"{self._where(key)}: there is no such object in the store")
        partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
        try:
            self._settled(key, lambda: (self._download(key, partial, wanted.bytes), wanted.sha256))
            with self._explained(key):
                os.replace(partial, target)
        finally:
            partial.unlink(missing_ok=True)
        return target

    def _download(self, key: str, target: Path, size: int) -> Digest:
        """The object's bytes in a file, in one request or in several at once."""
        starts = range(0, max(size, 1), MULTIPART_BYTES)
        stop = threading.Event()

        def fetch(start: int) -> None:
            part = {"Range": f"bytes={start}-{min(start + MULTIPART_BYTES, size) - 1}"} if len(starts) > 1 else {}
            try:
                content = self._tried(
                    key,
                    lambda client: read_body(
                        client.get_object(Bucket=self.bucket, Key=self._name(key), **part),
                        self.read_seconds[0],
                        part.get("Range"),
                    ),
                    stop,
                    MULTIPART_BYTES,
                )[0]
                with target.open("r+b") as file:
                    file.seek(start)
                    file.write(content)
            except BaseException:
                stop.set()
                raise

        with self._explained(key):
            target.write_bytes(b"")
            if len(starts) == 1:
                fetch(0)
            else:
                pool = ThreadPoolExecutor(PARTS_AT_ONCE)
                try:
                    for first in range(0, len(starts), MOST_PARTS):  # a wrong size takes no memory
                        list(pool.map(fetch, starts[first : first + MOST_PARTS]))
                finally:
                    stop.set()
                    pool.shutdown(wait=False, cancel_futures=True)
            return digest_file(target)

    def read(self, key: str, most: int = READ_BYTES) -> bytes | None:
        def once(client: Any) -> tuple[bytes, str] | None:
            try:
                answer = client.get_object(Bucket=self.bucket, Key=self._name(key))
            except ClientError as error:
                if is_absent(error):
                    return None
                raise
            if (size := size_of(answer)) > most:
                answer["Body"].close()
                raise StoreError(f"{self._where(key)}: is {size:,} bytes, expected at most {most:,}")
            return read_body(answer, self.read_seconds[0])

        contents: dict[Digest, bytes] = {}

        def fetch() -> tuple[Digest, str] | None:
            if (found := self._tried(key, once, size=2**20 if most == READ_BYTES else most)) is None:
                return None
            digest = Digest(len(found[0]), hashlib.sha256(found[0]).hexdigest())
            contents[digest] = found[0]
            return digest, found[1]

        settled = self._settled(key, fetch)
        return None if settled is None else contents[settled]

    def _settled(self, key: str, fetch: Callable[[], tuple[Digest, str] | None]) -> Digest | None:
        """Fetch until the bytes have the SHA-256 that was recorded, or the same others came several times: those are
        stored. None for what is not there."""
        seen: Counter[Digest] = Counter()
        for _ in range(FETCHES):
            if (fetched := fetch()) is None:
                return None
            digest, recorded = fetched
            seen[digest] += 1
            if digest.sha256 == recorded or not recorded or seen[digest] == SAME:
                return digest
        raise self._changed(key)

    def _changed(self, key: str) -> StoreError:
        error = StoreError(f"{self._where(key)}: {FETCHES} answers differ; the network changes what it carries")
        error.transient = True
        return error

    def publish(self, key: str, content: bytes) -> bool:
        unknown = False  # whether an earlier try may have arrived
        sent = {"Body": content, "Metadata": {"sha256": hashlib.sha256(content).hexdigest()}, **self._checksum(content)}

        def once(client: Any) -> bool:
            nonlocal unknown
            before, unknown = unknown, True
            try:
                client.put_object(Bucket=self.bucket, Key=self._name(key), IfNoneMatch="*", **sent)
            except ClientError as error:
                if status_of(error) == 412:
                    return before and self.read(key) == content
                if error_code_of(error) == "ConditionalRequestConflict" and self.exists(key):
                    return self.read(key) == content
                raise
            return True

        return self._tried(key, once)

    def digest(self, key: str) -> Digest | None:
        """One HEAD request: the size now and the SHA-256 recorded when it was put. An object that was
        overwritten otherwise has another record or none; bytes are checked when they are downloaded."""
        where = {"Bucket": self.bucket, "Key": self._name(key)}

        def once(client: Any) -> Digest | None:
            try:
                head = client.head_object(**where)
            except ClientError as error:
                try:
                    if status_of(error) in (400, 403, 404):
                        client.get_object(**where, Range="bytes=0-0")["Body"].close()  # says why; HEAD's answer cannot
                except ClientError as reason:
                    if is_absent(reason):
                        return None
                    raise
                raise
            return Digest(size_of(head), head["Metadata"].get("sha256", ""))

        return self._tried(key, once)

    def exists(self, key: str) -> bool:
        return self.digest(key) is not None

    def _page(self, prefix: str, below: str, after: str) -> tuple[list[str], bool]:
        """Up to 1,000 names, and whether there are more. No checksum protects a listing: it counts when it comes twice
        in a row."""

        def once(client: Any) -> tuple[Any, bool]:
            page = client.list_objects_v2(Bucket=self.bucket, Prefix=below, StartAfter=after)
            return [entry["Key"] for entry in page.get("Contents", [])], bool(page.get("IsTruncated"))

        before = self._tried(prefix, once)
        for _ in range(FETCHES):
            if (found := self._tried(prefix, once)) == before:
                return found
            before = found
        raise self._changed(prefix)

    def list(self, prefix: str) -> Iterator[str]:
        start, below = self._name(""), self._name(prefix.rstrip("/") + "/" if prefix else "")
        after, more = "", True
        while more:
            names, more = self._page(prefix, below, after)
            if more and (not names or names[-1] == after):
                raise StoreError(f"{self._where(prefix)}: its listing does not get beyond {after!r}")
            after = names[-1] if names else ""
            yield from (
                name.removeprefix(start)
                for name in names  # without a console's folder
                if name.startswith(below) and not name.endswith("/")
            )

    def delete(self, key: str) -> None:
        self._tried(key, lambda client: client.delete_object(Bucket=self.bucket, Key=self._name(key)))

    def clear(self, prefix: str) -> None:
        for _ in range(FETCHES):  # a listing that arrived changed may have named other keys
            if not (keys := list(self.list(prefix))):
                return
            for key in keys:
                self.delete(key)

    def _name(self, key: str) -> str:
        check_key(key, empty=True)
        return f"{self.prefix}/{key}" if self.prefix else key

    def _where(self, key: str) -> str:
        return f"{self.url}/{key}" if key else self.url

    def _tried(
        self, key: str, once: Callable[[Any], Answer], stop: threading.Event | None = None, size: int = 0
    ) -> Answer:
        """The answer to a request of so many bytes; tried again while its failures may pass and there is patience."""
        began, warned = time.monotonic(), False
        for number in itertools.count(1):
            try:
                client = self._client(number)
                seconds = CONNECT_SECONDS + 2 * self.read_seconds[client is not self.client] + size / SLOWEST
                return call_with_deadline(seconds, lambda: once(client))  # noqa: B023 (called here)
            except (*CAUGHT, *UNREADABLE) as error:
                pause = min(LONGEST_PAUSE, 0.05 * 2**number) * random.uniform(0.5, 1.0)
                waited = time.monotonic() - began
                again = is_retryable(error)
                late = number >= 3 and waited + pause >= self.patience
                if not again or late or (stop is not None and stop.is_set()):
                    raise self._error(key, error, waited, number) from error
                if waited > 10 and not warned:
                    warned = True
                    logging.getLogger("daily_train").warning(
                        "%s: no answer for %.0f s, tried for up to %.0f s: %s",
                        self._where(key),
                        waited,
                        self.patience,
                        reason_of(error),
                    )
                time.sleep(pause) if stop is None else stop.wait(pause)
        raise AssertionError("unreachable")

    @contextlib.contextmanager
    def _explained(self, key: str) -> Iterator[None]:
        try:
            yield
        except CAUGHT as error:
            raise self._error(key, error) from error

    def _error(self, key: str, error: BaseException, seconds: float = 0.0, tries: int = 1) -> StoreError:
        no_bucket = self.bucket if not key or error_code_of(error) == "NoSuchBucket" else None
        return error_after_tries(self._where(key), no_bucket, error, seconds, tries)
