"""What goes wrong with a request to an S3 server, as a sentence with what to do."""

import contextlib
import os
import time
from collections.abc import Iterator

from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError, PartialCredentialsError

from model.errors import reason_of
from tasks.store.objects import ReadOnlyStoreError, StoreError
from tasks.store.retries import is_transient

EXPIRED = "the credentials have expired: renew them (AWS_SESSION_TOKEN) and run the same command again"
REGION = "the bucket is in another region: set AWS_REGION"
ELSEWHERE = "the server sends requests elsewhere: check AWS_ENDPOINT_URL_S3 and AWS_REGION"
REFUSED = {
    "ExpiredToken": EXPIRED,
    "ExpiredTokenException": EXPIRED,
    "TokenRefreshRequired": EXPIRED,
    "InvalidToken": "the server does not know this session token: check AWS_SESSION_TOKEN",
    "InvalidAccessKeyId": "the server does not know this access key: check AWS_ACCESS_KEY_ID and the endpoint",
    "SignatureDoesNotMatch": "the secret key does not belong to the access key: check AWS_SECRET_ACCESS_KEY",
    "AuthorizationHeaderMalformed": REGION,
    "PermanentRedirect": REGION,
}
SKEWED = ("RequestTimeTooSkewed", "RequestExpired", "RequestInTheFuture")


UNREADABLE = (ValueError, LookupError, TypeError, AttributeError)
"""What the library raises for an answer whose bytes were changed on the way."""


class UploadGoneError(StoreError):
    """The server does not know the upload in parts: it was completed or aborted, or its name arrived changed."""


def error_after_tries(
    where: str, no_bucket: str | None, error: BaseException, seconds: float, tries: int
) -> StoreError:
    """The error to raise when a request failed so often; `no_bucket` as of `_refusal`."""
    if is_retryable(error):
        times = "1 try" if tries == 1 else f"{tries} tries"
        retryable = StoreError(
            f"{where}: the store did not answer as it should ({times} in {seconds:.0f} s): {reason_of(error)}"
        )
        retryable.transient = True
        return retryable
    if error_code_of(error) == "NoSuchUpload":
        return UploadGoneError(f"{where}: {reason_of(error)}")
    return _refusal(where, no_bucket, error)


def _refusal(where: str, no_bucket: str | None, error: BaseException) -> StoreError:
    """The error to raise; `no_bucket` is the bucket's name where a 404 means that it is not there."""
    code = error_code_of(error)
    if isinstance(error, RecursionError):  # the library asks for the bucket's region, and is redirected, and asks
        return StoreError(f"{where}: {ELSEWHERE}")
    if code in REFUSED:
        return StoreError(f"{where}: {REFUSED[code]}")
    if code in SKEWED:
        there = _header(error, "date") or "another time"
        here = time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime())
        return StoreError(f"{where}: the clock of this machine is wrong: it says {here}, the server's {there}; set it")
    if isinstance(error, NoCredentialsError | PartialCredentialsError):
        return StoreError(f"{where}: there are no credentials: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY")
    match status := status_of(error):
        case 301 | 302 | 303 | 307 | 308:
            there = _header(error, "location") or "no address"
            return StoreError(f"{where}: {ELSEWHERE} (answer {status}, to {there})")
        case 404:
            absent = f"there is no bucket {no_bucket!r}" if no_bucket else "there is no such object in the store"
            return StoreError(f"{where}: {absent}")
        case 403 | 405 if "Quota" not in code:
            operation = operation_of(error)
            return ReadOnlyStoreError(f"{where}: access denied: the credentials do not allow {operation}")
    return StoreError(f"{where}: {f'answer {status}: ' if status and not code else ''}{reason_of(error)}")


def is_retryable(error: BaseException) -> bool:
    """Whether the same request may succeed later. A 404 that does not say what is missing, as S3 servers do, is of a
    proxy whose server is away, or of no store at all."""
    unreadable = isinstance(error, UNREADABLE) and not isinstance(error, BotoCoreError)
    strange = status_of(error) == 404 and not error_code_of(error).startswith("NoSuch")
    return is_transient(error) or unreadable or (strange and operation_of(error) != "HeadBucket")


def is_absent(error: BaseException) -> bool:
    """Whether a store says that it does not hold the object, and nobody else does."""
    code = error_code_of(error)
    return status_of(error) == 404 and code.startswith("NoSuch") and code != "NoSuchBucket"


@contextlib.contextmanager
def checked_aws_settings(url: str) -> Iterator[None]:
    """Tells of settings of the AWS environment that cannot be used; of credentials that no header can carry without
    their text."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
        value = os.environ.get(name, "")
        if not value.isascii() or not value.isprintable() or " " in value:
            raise StoreError(f"{name} holds white space, such as a line break at its end, or a letter no key has")
    try:
        yield
    except Exception as error:
        raise StoreError(f"{url}: the settings of AWS cannot be used: {reason_of(error)}") from error


def status_of(error: BaseException) -> int | None:
    """The HTTP status of an answer."""
    return error.response["ResponseMetadata"].get("HTTPStatusCode") if isinstance(error, ClientError) else None


def operation_of(error: BaseException) -> str:
    """The request that was answered with this error, such as `PutObject`, or ""."""
    return error.operation_name if isinstance(error, ClientError) else ""


def _header(error: BaseException, name: str) -> str | None:
    """A header of an answer, by its name in lower case."""
    return (
        error.response["ResponseMetadata"].get("HTTPHeaders", {}).get(name) if isinstance(error, ClientError) else None
    )


def error_code_of(error: BaseException) -> str:
    """S3's name of an error, or ""."""
    return error.response.get("Error", {}).get("Code", "") if isinstance(error, ClientError) else ""
