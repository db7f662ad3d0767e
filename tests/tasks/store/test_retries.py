"""Which failures are tried again: those of a network, and never those of an input."""

import errno
import http.client
import socket
import ssl
import urllib.error
import urllib.request
from collections.abc import Callable
from email.message import Message
from pathlib import Path
from types import SimpleNamespace

import httpx
import pytest
import requests
import urllib3
from botocore.exceptions import EndpointConnectionError, FlexibleChecksumError, IncompleteReadError, NoCredentialsError
from huggingface_hub.errors import OfflineModeIsEnabled
from prefect.states import Failed

from tasks.runtime.child_process import ProcessError, run_module
from tasks.sources.document_folder import SourceError
from tasks.sources.document_sources import FilesSource, read_source
from tasks.store import run_states
from tasks.store.backends import open_store
from tasks.store.objects import StoreError
from tasks.store.retries import is_transient


def refused_connection(_: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, but nobody listens
        urllib.request.urlopen(f"http://127.0.0.1:{taken.getsockname()[1]}/", timeout=5)


def unknown_host(_: Path) -> None:
    urllib.request.urlopen("http://no-such-host.invalid/", timeout=5)


def bucket_that_does_not_answer(_: Path) -> None:
    open_store("s3://bucket/x").check()


def missing_file(folder: Path) -> None:
    list(read_source(FilesSource(path=str(folder / "none.txt")), folder))


def bad_line(folder: Path) -> None:
    (folder / "bad.jsonl").write_text("{no json\n")
    list(read_source(FilesSource(path=str(folder / "bad.jsonl")), folder))


def dead_child(folder: Path) -> None:
    run_module("no_such_module", {}, folder, lambda event: None)


@pytest.mark.parametrize(
    ("failure", "error", "again"),
    [
        (refused_connection, OSError, True),
        (unknown_host, OSError, True),
        (bucket_that_does_not_answer, StoreError, True),
        (missing_file, SourceError, False),
        (bad_line, SourceError, False),
        (dead_child, ProcessError, False),
    ],
)
def test_the_network_is_tried_again_and_bad_input_is_not(
    failure: Callable[[Path], None], error: type, again: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("tasks.store.s3.SECONDS_TO_OPEN", 0.5)
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "x")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "x")
    with pytest.raises(error) as raised:
        failure(tmp_path)
    assert run_states.retry_condition(None, None, Failed(data=raised.value)) is again


def error_of(package: str, name: str, *bases: type) -> Exception:
    return type(name, bases or (Exception,), {"__module__": package})("broken")


def answered(status: int) -> Exception:
    error = error_of("huggingface_hub.errors", "HfHubHTTPError")
    vars(error)["response"] = SimpleNamespace(status_code=status)
    return error


@pytest.mark.parametrize(
    ("error", "again"),
    [
        (ConnectionResetError(), True),
        (TimeoutError(), True),
        (OSError(errno.EHOSTUNREACH, ""), True),
        (http.client.IncompleteRead(b""), True),
        (answered(429), True),
        (answered(503), True),
        (answered(404), False),
        (answered(403), False),
        (answered(501), False),
        (httpx.RemoteProtocolError("server disconnected"), True),
        (httpx.ReadTimeout("slow"), True),
        (requests.exceptions.ChunkedEncodingError(), True),
        (urllib3.exceptions.ProtocolError(), True),
        (error_of("elsewhere", "ProtocolError"), False),
        (EndpointConnectionError(endpoint_url="x"), True),
        (IncompleteReadError(actual_bytes=1, expected_bytes=2), True),
        (FlexibleChecksumError(error_msg="x"), True),
        (NoCredentialsError(), False),
        (ssl.SSLCertVerificationError("self-signed"), False),
        (OSError(errno.ENOSPC, ""), False),
        (ValueError(), False),
        (OfflineModeIsEnabled("offline"), False),
        (urllib.error.HTTPError("", 503, "", Message(), None), True),
    ],
)
def test_what_a_retry_may_mend_is_known_by_its_class_through_what_was_raised_of_it(error: Exception, again: bool):
    assert is_transient(error) is again
    try:
        raise StoreError("the store") from error
    except StoreError as raised:
        assert is_transient(raised) is again
