"""Which failures a retry may mend: one answer for the errors of every library that talks over a network.

Libraries are known by name, so that nothing has to be imported: a supervisor beside a training stays small.
"""

import errno
import http.client
import socket
import ssl
from collections.abc import Iterator

STATUSES = {408, 425, 429}
"""Beside 5xx: what HTTP answers when the same request may succeed later."""
NEVER = {501, 505, 511}
"""Answers of 5xx that no retry changes."""
CODES = {
    "BadDigest",
    "BandwidthLimitExceeded",
    "ConditionalRequestConflict",
    "IncompleteBody",
    "InternalError",
    "InternalFailure",
    "InvalidPart",
    "InvalidPartOrder",
    "MalformedXML",
    "OperationAborted",
    "PriorRequestNotComplete",
    "RequestLimitExceeded",
    "RequestTimeout",
    "RequestTimeoutException",
    "ServiceUnavailable",
    "SlowDown",
    "SlowDownRead",
    "SlowDownWrite",
    "Throttling",
    "ThrottlingException",
    "TooManyRequests",
    "TooManyRequestsException",
    "XAmzContentChecksumMismatch",
    "XAmzContentSHA256Mismatch",
}
"""Error codes of S3 servers: overload, a request that arrived cut short or with other bytes, one in conflict."""
CLASSES = {
    "aiohttp.ClientConnectionError",
    "aiohttp.ClientPayloadError",
    "aiohttp.ServerTimeoutError",
    "botocore.ConnectionError",
    "botocore.FlexibleChecksumError",
    "botocore.HTTPClientError",
    "botocore.IncompleteReadError",
    "botocore.ResponseParserError",
    "botocore.ResponseStreamingError",
    "httpcore.NetworkError",
    "httpcore.ProtocolError",
    "httpcore.TimeoutException",
    "httpcore2.NetworkError",
    "httpcore2.ProtocolError",
    "httpcore2.TimeoutException",
    "httpx.DecodingError",
    "httpx.NetworkError",
    "httpx.ProtocolError",
    "httpx.ProxyError",
    "httpx.TimeoutException",
    "httpx2.DecodingError",
    "httpx2.NetworkError",
    "httpx2.ProtocolError",
    "httpx2.ProxyError",
    "httpx2.TimeoutException",
    "requests.ChunkedEncodingError",
    "requests.ConnectionError",
    "requests.ContentDecodingError",
    "requests.Timeout",
    "urllib3.DecodeError",
    "urllib3.MaxRetryError",
    "urllib3.NewConnectionError",
    "urllib3.ProtocolError",
    "urllib3.ProxyError",
    "urllib3.SSLError",
    "urllib3.TimeoutError",
}
"""Exceptions, by package and class, with those that inherit from them: no connection, none in time, an answer cut
short, or one whose bytes are not those that were sent."""
LASTING = {"huggingface_hub.OfflineModeIsEnabled", "requests.InvalidURL", "requests.MissingSchema"}
ERRNOS = {
    errno.ENETDOWN,
    errno.ENETUNREACH,
    errno.ENETRESET,
    errno.EHOSTDOWN,
    errno.EHOSTUNREACH,
    errno.ESTALE,
    errno.ETIMEDOUT,
}


def is_transient(error: BaseException | None) -> bool:
    """Whether a retry may succeed: the error, or one that caused it, is of a network or of a busy server. Never so for
    bad input, refused credentials or a certificate that does not fit."""
    errors = list(_chain(error))
    if any(isinstance(one, ssl.SSLCertVerificationError) or LASTING & _names(one) for one in errors):
        return False
    return any(_transient(one) for one in errors)


def _transient(error: BaseException) -> bool:
    if isinstance(known := getattr(error, "transient", None), bool):
        return known
    if (status := _status(error)) is not None:
        return status in STATUSES or (status >= 500 and status not in NEVER) or _code(error) in CODES
    network = ConnectionError | TimeoutError | socket.gaierror | ssl.SSLError | http.client.HTTPException
    if isinstance(error, network) or (isinstance(error, OSError) and error.errno in ERRNOS):
        return True
    return bool(CLASSES & _names(error))


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """The error, what it was raised from, and what those wrap."""
    waiting, seen = [error], set()
    while waiting:
        one = waiting.pop()
        if not isinstance(one, BaseException) or id(one) in seen:
            continue
        seen.add(id(one))
        yield one
        waiting.append(one.__cause__ if one.__suppress_context__ else one.__context__)
        waiting += [getattr(one, name, None) for name in ("reason", "last_exception")]  # urllib, urllib3, boto3
        waiting += getattr(one, "exceptions", ())


def _names(error: BaseException) -> set[str]:
    return {f"{kind.__module__.split('.')[0]}.{kind.__name__}" for kind in type(error).__mro__}


def _status(error: BaseException) -> int | None:
    """The HTTP status that the error carries: of botocore, requests, httpx and huggingface_hub, urllib, aiohttp."""
    answer = getattr(error, "response", None)
    if isinstance(answer, dict):
        answer = answer.get("ResponseMetadata", {}).get("HTTPStatusCode")
    else:
        answer = getattr(answer, "status_code", None)
    for status in (answer, getattr(error, "status", None), getattr(error, "code", None)):
        if isinstance(status, int) and 100 <= status < 600:
            return status
    return None


def _code(error: BaseException) -> str:
    answer = getattr(error, "response", None)
    return answer.get("Error", {}).get("Code", "") if isinstance(answer, dict) else ""
