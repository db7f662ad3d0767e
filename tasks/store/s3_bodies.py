"""Bodies of requests to an S3 server and of its answers: checksums of what is sent, and reading to the end."""

import base64
import contextvars
import hashlib
import http.client
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from pathlib import Path
from typing import Any, TypeVar

from tasks.store.objects import Digest, StoreError

Answer = TypeVar("Answer")
SLOWEST = 100e3
"""Bytes a second below which a download is given up as one that stands still."""


def read_body(answer: dict[str, Any], seconds: float, part: str | None = None) -> tuple[bytes, str]:
    """The whole body and the SHA-256 that was recorded with it, or "". Raises TimeoutError when it stands still, and
    StoreError when it is not the `part` (`bytes=0-9`) that was asked for."""
    size = size_of(answer)
    if part and not answer.get("ContentRange", "").startswith(part.replace("=", " ") + "/"):
        answer["Body"].close()
        raise StoreError(f"{part} of an object was asked for, and the server or a proxy gave another part, or all")
    deadline = time.monotonic() + seconds + size / SLOWEST
    pieces, body = [], answer["Body"]
    while piece := body.read(2**20):
        pieces.append(piece)
        if time.monotonic() > deadline:
            body.close()
            raise TimeoutError(f"{size:,} bytes took longer than {SLOWEST:,.0f} bytes/s")
    content = b"".join(pieces)
    if len(content) != size:
        raise http.client.IncompleteRead(content, size - len(content))
    return content, "" if "ContentRange" in answer else answer["Metadata"].get("sha256", "")


def size_of(answer: dict[str, Any]) -> int:
    """The size of the object; a proxy that answers in chunks does not say it."""
    if answer.get("ContentLength", -1) < 0:
        raise http.client.HTTPException("an answer without Content-Length")
    return answer["ContentLength"]


def call_with_deadline(seconds: float, once: Callable[[], Answer]) -> Answer:
    """The answer, or TimeoutError: a byte now and then keeps every timeout of a socket from passing, so a thread asks,
    which is left alone when it takes longer."""
    answer: Future[Answer] = Future()

    def ask() -> None:
        try:
            answer.set_result(once())
        except BaseException as error:
            answer.set_exception(error)

    threading.Thread(target=contextvars.copy_context().run, args=(ask,), daemon=True).start()
    try:
        return answer.result(seconds)
    except FutureTimeoutError as error:
        if answer.done():
            raise
        raise TimeoutError(f"no whole answer within {seconds:.0f} s") from error


def sha256_header(body: bytes) -> dict[str, str]:
    """The checksum that the server compares with what arrives."""
    return {"ChecksumSHA256": base64.b64encode(hashlib.sha256(body).digest()).decode()}


def md5_header(body: bytes) -> dict[str, str]:
    """The checksum that servers without the newer ones know (`AWS_REQUEST_CHECKSUM_CALCULATION=when_required`)."""
    return {"ContentMD5": base64.b64encode(hashlib.md5(body, usedforsecurity=False).digest()).decode()}


def checksum_fields(answer: dict[str, Any]) -> dict[str, str]:
    return {name: answer[name] for name in ("ChecksumSHA256",) if name in answer}


def require_unchanged(path: Path, found: Digest, wanted: Digest) -> None:
    if found != wanted:
        raise StoreError(f"{path}: changed while it was uploaded: it is {found}, was {wanted}")
