"""Bodies of requests to an S3 server and of its answers: checksums of what is sent, and reading to the end."""

import base64
import hashlib
import http.client
import time
from pathlib import Path
from typing import Any

from tasks.objects import Digest, StoreError

SLOWEST = 100e3
"""Bytes a second below which a download is given up as one that stands still."""


def read_whole(answer: dict[str, Any], seconds: float, part: str | None = None) -> tuple[bytes, str]:
    """The whole body and the SHA-256 that was recorded with it, or "". Raises TimeoutError when it stands still, and
    StoreError when it is not the `part` (`bytes=0-9`) that was asked for."""
    if "ContentLength" not in answer:
        raise http.client.HTTPException("an answer without Content-Length")
    if part and not answer.get("ContentRange", "").startswith(part.replace("=", " ") + "/"):
        answer["Body"].close()
        raise StoreError(f"{part} of an object was asked for, and the server or a proxy gave another part, or all")
    deadline = time.monotonic() + seconds + answer["ContentLength"] / SLOWEST
    pieces, body = [], answer["Body"]
    while piece := body.read(2**20):
        pieces.append(piece)
        if time.monotonic() > deadline:
            body.close()
            raise TimeoutError(f"{answer['ContentLength']:,} bytes took longer than {SLOWEST:,.0f} bytes/s")
    content = b"".join(pieces)
    if len(content) != answer["ContentLength"]:
        raise http.client.IncompleteRead(content, answer["ContentLength"] - len(content))
    return content, "" if "ContentRange" in answer else answer["Metadata"].get("sha256", "")


def sha256_header(body: bytes) -> dict[str, str]:
    """The checksum that the server compares with what arrives."""
    return {"ChecksumSHA256": base64.b64encode(hashlib.sha256(body).digest()).decode()}


def md5_header(body: bytes) -> dict[str, str]:
    """The checksum that servers without the newer ones know (`AWS_REQUEST_CHECKSUM_CALCULATION=when_required`)."""
    return {"ContentMD5": base64.b64encode(hashlib.md5(body, usedforsecurity=False).digest()).decode()}


def known_sums(answer: dict[str, Any]) -> dict[str, str]:
    return {name: answer[name] for name in ("ChecksumSHA256",) if name in answer}


def require_unchanged(path: Path, found: Digest, wanted: Digest) -> None:
    if found != wanted:
        raise StoreError(f"{path}: changed while it was uploaded: it is {found}, was {wanted}")
