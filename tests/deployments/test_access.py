"""The authentication string of the server: its file, who is told it, and the server that a run starts for itself."""

import asyncio
import contextvars
import json
import os
import sys
import threading
import time
from contextlib import closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from socket import AF_INET6, socket
from typing import Any
from urllib.request import proxy_bypass

import pytest
from prefect.context import refresh_global_settings_context
from prefect.settings import (
    PREFECT_API_AUTH_STRING,
    PREFECT_API_URL,
    PREFECT_HOME,
    PREFECT_SERVER_API_AUTH_STRING,
    get_current_settings,
    temporary_settings,
)
from starlette.types import Message, Receive, Scope, Send

from deployments import access, server, temporary_server
from deployments.access import AUTH_FILE, AccessError, auth_string, require_own_server
from deployments.cli.up import UpError, _hold_port
from deployments.origin import HOSTS, OwnOrigin


@pytest.fixture
def home(tmp_path: Path):
    with temporary_settings({PREFECT_HOME: tmp_path / "home"}, restore_defaults={PREFECT_SERVER_API_AUTH_STRING}):
        yield tmp_path / "home"


def test_the_string_is_made_once_for_its_owner_alone_whatever_the_umask(home: Path):
    home.mkdir(mode=0o755)
    before = os.umask(0)
    try:
        strings: list[str] = []
        contexts = [contextvars.copy_context() for _ in range(8)]  # where Prefect keeps the settings
        threads = [
            threading.Thread(target=each.run, args=(lambda: strings.append(auth_string()),)) for each in contexts
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        os.umask(before)
    assert len(strings) == 8 and len(set(strings)) == 1 and len(strings[0]) > 40
    assert os.listdir(home) == [AUTH_FILE]
    assert (home / AUTH_FILE).stat().st_mode & 0o777 == 0o600 and home.stat().st_mode & 0o777 == 0o700
    with temporary_settings({PREFECT_SERVER_API_AUTH_STRING: "a string of one's own"}):
        assert auth_string() == "a string of one's own"


def test_a_file_that_others_may_have_written_or_read_is_refused(home: Path, tmp_path: Path):
    auth_string()
    file = home / AUTH_FILE
    for mode in (0o640, 0o604, 0o620):
        file.chmod(mode)
        with pytest.raises(AccessError, match=f"has mode {mode:o}: other users may know"):
            auth_string()
    file.chmod(0o600)
    for content in ("", "short", "two words of some length"):
        file.write_text(content)
        with pytest.raises(AccessError, match="does not hold one"):
            auth_string()
    file.unlink()
    (tmp_path / "target").write_text("daily-train:" + 40 * "a")
    (tmp_path / "target").chmod(0o600)
    file.symlink_to(tmp_path / "target")
    with pytest.raises(AccessError, match="is a link"):
        auth_string()
    file.unlink()
    os.mkfifo(file, 0o600)
    with pytest.raises(AccessError, match="not a file of yours"):
        auth_string()


def test_a_ticket_is_worth_something_for_a_quarter_of_an_hour(monkeypatch: pytest.MonkeyPatch):
    made = access.login_ticket("string")
    assert access.is_valid_ticket(made, "string") and not access.is_valid_ticket(made, "other")
    until, rest = made.split(".", 1)
    for wrong in ("", ".", "..", "x.y.z", f"{int(until) + 1}.{rest}", made[:-1], "\x00.é.\N{REPLACEMENT CHARACTER}"):
        assert not access.is_valid_ticket(wrong, "string"), wrong
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + access.SECONDS_TO_LOG_IN + 1)
    assert not access.is_valid_ticket(made, "string")


def test_somebody_elses_server_on_the_port_is_not_told_the_string(home: Path, monkeypatch: pytest.MonkeyPatch):
    heard: list[str] = []

    class Impostor(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            heard.append(f"{self.path} {self.headers}")
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"true")

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Impostor)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        with (
            pytest.raises(AccessError, match="is not a Daily Train server"),
            access.connected_to_server(server.server_port, auth_string()),
        ):
            raise AssertionError("was connected")
        told = "".join(heard)
        heard.clear()
        monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{server.server_port}")
        for name in ("NO_PROXY", "no_proxy"):
            monkeypatch.delenv(name, raising=False)
        with closing(socket()) as free:
            free.bind(("127.0.0.1", 0))  # nobody listens
            assert not require_own_server(free.getsockname()[1], auth_string())
        assert not heard, "an HTTP proxy was asked"
    finally:
        server.shutdown()
        server.server_close()
    assert (
        "/enter?challenge=" in told
        and auth_string() not in told
        and access.basic_credentials(auth_string()) not in told
    )


def test_the_server_that_a_run_starts_for_itself_answers_the_run_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    names = (access.AUTH_STRING_VARIABLE, "PREFECT_API_AUTH_STRING", "PREFECT_SERVER_CORS_ALLOWED_ORIGINS")
    for name in (*names, "PREFECT_API_URL", "PREFECT_UI_URL", "NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, "")  # to be put back
        monkeypatch.delenv(name)
    monkeypatch.setenv("no_proxy", "example.org")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    program = "import json, os, sys; json.dump(dict(os.environ), open(sys.argv[1], 'w')); sys.exit(3)"
    command = [sys.executable, "-c", program, str(tmp_path / "environment")]
    monkeypatch.setattr(temporary_server, "child_command", lambda *_, **__: command)
    server = temporary_server.TemporaryServer()
    with pytest.raises(temporary_server.TemporaryServerError, match="ended with code 3"):
        server.wait_until_ready()
    try:
        access.choose_server(server.environment)
        assert all(map(proxy_bypass, ("127.0.0.1", "localhost", "example.org"))) and not proxy_bypass("example.com")
        sent, url = PREFECT_API_AUTH_STRING.value(), PREFECT_API_URL.value()
        assert get_current_settings().ui_url == "", "no link to pages that there are not"
    finally:
        monkeypatch.undo()
        refresh_global_settings_context()
    given = json.loads((tmp_path / "environment").read_text())
    assert len(sent) > 40 and sent == given[access.AUTH_STRING_VARIABLE] and url == server.api_url
    assert given["PREFECT_SERVER_CORS_ALLOWED_ORIGINS"] == "http://127.0.0.1"


def test_up_holds_its_port_for_localhost_too():
    """A browser that is given http://localhost:4200 asks ::1 first."""
    with closing(socket(AF_INET6)) as other:
        try:
            other.bind(("::1", 0))
        except OSError:
            pytest.skip("a machine without IPv6")
        port = other.getsockname()[1]
        with pytest.raises(UpError, match=f"port {port} of ::1 cannot be used"):
            _hold_port(port)
    held = _hold_port(port)
    with closing(socket(AF_INET6)) as other, pytest.raises(OSError, match="in use"):
        other.bind(("::1", port))
    for each in held:
        each.close()


def test_a_string_that_could_be_guessed_or_not_be_entered_is_refused(home: Path):
    for given in ("admin:pass", "fifteen-letters", "with white space at its end ", "é" * 20, "a" * 20 + "\x1b"):
        with (
            temporary_settings({PREFECT_SERVER_API_AUTH_STRING: given}),
            pytest.raises(AccessError, match="must have at least 16 characters") as refused,
        ):
            auth_string()
        assert given not in str(refused.value)


def test_prefect_hears_the_right_string_or_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(server, "SECONDS_TO_AUTHENTICATE", 0.05)
    string, heard = "daily-train:a string", []

    async def application(scope: Scope, receive: Receive, send: Send) -> None:
        heard.append((await receive())["text"] if scope["type"] == "websocket" else dict(scope["headers"]))

    async def ask(kind: str, header: bytes = b"", message: Message | None = None) -> Any:
        async def receive() -> Message:
            if message is None:
                await asyncio.sleep(60)
                raise AssertionError("it waits no longer than SECONDS_TO_SAY_IT")
            return message

        async def send(message: Message) -> None:
            raise AssertionError("the application answers")

        scope = {"type": kind, "path": "/api/events/out", "headers": [(b"authorization", header), (b"accept", b"*")]}
        await server.Login(application, 4200, string, tmp_path)(scope, receive, send)
        return heard.pop()

    async def every() -> None:
        right = f"Basic {access.basic_credentials(string)}".encode()
        assert (await ask("http", right))[b"authorization"] == right
        for header in (b"", b"Basic w6k=", b"Basic \xe9", right.lower(), right + b"=", b"Bearer x"):
            assert await ask("http", header) == {b"accept": b"*"}, header
        login = json.dumps({"type": "auth", "token": string})
        assert await ask("websocket", message={"type": "websocket.receive", "text": login}) == login
        said = (
            "[]",
            "1",
            "null",
            "no JSON",
            "[" * 5000,
            '{"type": "auth"}',
            login.replace("auth", "x"),
            *(login.replace(f'"{string}"', token) for token in ("1", "[]", '"é"', r'"\ud800"')),
        )
        for message in (None, {"bytes": b"\xff"}, *({"text": text} for text in said)):
            given = message and {"type": "websocket.receive", **message}
            assert await ask("websocket", message=given) == server.REFUSED_LOGIN, message

    asyncio.run(every())


def test_the_address_of_a_tunnel_or_a_proxy_is_named_by_one_setting(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(HOSTS, "train.example.org, localhost:8080")

    async def application(scope: Scope, receive: Receive, send: Send) -> None:
        raise AssertionError("it is not asked")

    own = OwnOrigin(application, 4200, "")

    def refused(host: str, *origins: str) -> str:
        """Why a request is refused; empty: it is not."""
        headers = [(b"host", host.encode()), *((b"origin", origin.encode()) for origin in origins)]
        return own.refused({"type": "websocket", "headers": headers}) or ""

    for host, *origins in (
        ("127.0.0.1:4200",),
        ("LOCALHOST:4200", "http://localhost:4200"),
        ("train.example.org", "https://train.example.org"),
        ("localhost:8080", "http://localhost:8080"),
        ("127.0.0.1:4200", "https://train.example.org"),  # a proxy that goes by its own name for the server
    ):
        assert not refused(host, *origins), host
    assert "'localhost:8081' is not an address" in refused("localhost:8081")
    for origin in (
        "http://evil.test",
        "null",
        "",
        "http://[",
        "http://train.example.org.evil.test",
        "file://train.example.org",
    ):
        assert f"a page of {origin!r} may not" in refused("train.example.org", origin)
    assert refused("127.0.0.1:4200", "http://127.0.0.1:4200", "http://evil.test")
