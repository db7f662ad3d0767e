"""An HTTP proxy on loopback in front of an S3 server, which does to a share of the requests what networks do.

Which request is hit, and how, follows from a seed and the number of the request, so a run can be repeated as far as its
requests come in the same order.
"""

import http.client
import math
import random
import socket
import struct
import threading
from collections import Counter
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

MIXES = {
    "answers": ("500", "503", "429", "slow down"),
    "resets": ("reset", "reset after"),
    "truncation": ("truncated answer", "truncated request"),
    "flips": ("flipped answer", "flipped request"),
    "stalls": ("stall", "stall after"),
    "everything": (
        "500",
        "503",
        "429",
        "slow down",
        "reset",
        "reset after",
        "truncated answer",
        "truncated request",
        "flipped answer",
        "flipped request",
        "500 after",
    ),
}
"""Faults by the name of their mix. `after`: the server has done what was asked, and the client does not hear of it."""
ERROR = "<?xml version='1.0'?><Error><Code>{code}</Code><Message>injected</Message></Error>"
CODES = {
    "500": (500, "InternalError"),
    "503": (503, "ServiceUnavailable"),
    "429": (429, "TooManyRequests"),
    "slow down": (503, "SlowDown"),
    "expired": (400, "ExpiredToken"),
    "skewed": (403, "RequestTimeTooSkewed"),
    "unknown key": (403, "InvalidAccessKeyId"),
    "denied": (403, "AccessDenied"),
    "no condition": (501, "NotImplemented"),
    "elsewhere": (307, "TemporaryRedirect"),
    "no backend": (404, "default backend - 404"),
    "quota": (403, "QuotaExceeded"),
}
"""Answers instead of the server's; those below are of servers and credentials that refuse, or of proxies."""


@dataclass
class Faults:
    """What to do to which share of the requests."""

    kinds: tuple[str, ...] = ()
    share: float = 0.2
    seed: int = 0
    stall_seconds: float = 30.0
    """How long a request is held that stalls; then the connection is reset."""
    only: str = ""
    """Requests whose line, such as `PUT /bucket/key`, holds this text; empty: all."""
    most: float = math.inf
    """How many requests are harmed."""
    done: Counter = field(default_factory=Counter)
    """How often each fault was made, and all `requests`."""


class StoreProxy:
    """The proxy, as a context: `url` is its address, `faults` what it does, and may be changed while it runs."""

    def __init__(self, upstream: str, faults: Faults) -> None:
        self.upstream, self.faults = urlsplit(upstream), faults
        self.lock = threading.Lock()
        self.stopping = threading.Event()
        proxy = self

        class Handler(_Handler):
            store_proxy = proxy

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def __enter__(self) -> "StoreProxy":
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stopping.set()
        self.server.shutdown()
        self.server.server_close()

    def choose(self, line: str) -> tuple[str, random.Random]:
        """The fault of this request, or "", and the source of what else is drawn for it."""
        faults = self.faults
        with self.lock:
            draw = random.Random(f"{faults.seed} {faults.done['requests']}")
            faults.done["requests"] += 1
            hit = bool(faults.kinds) and faults.only in line and draw.random() < faults.share and faults.most > 0
            kind = draw.choice(faults.kinds) if hit else ""
            if kind:
                faults.done[kind] += 1
                faults.most -= 1
        return kind, draw


class _Handler(BaseHTTPRequestHandler):
    store_proxy: StoreProxy
    protocol_version = "HTTP/1.1"

    def handle(self) -> None:
        try:
            super().handle()
        except OSError:  # the client is gone
            self.close_connection = True

    def log_message(self, *_: object) -> None:
        pass

    def _serve(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        proxy = self.store_proxy
        kind, draw = proxy.choose(f"{self.command} {self.path}")
        if kind in CODES:
            return self._answer(CODES[kind][0], [], ERROR.format(code=CODES[kind][1]).encode())
        if kind == "reset":
            return self._reset()
        if kind == "stall":
            proxy.stopping.wait(proxy.faults.stall_seconds)
            return self._reset()
        if kind == "truncated request":
            self._forward(body, len(body) // 2)
            return self._reset()
        if kind == "flipped request":
            body = _flipped(body, draw)
        status, headers, content = self._forward(body)
        if kind == "reset after":
            return self._reset()
        if kind == "stall after":
            proxy.stopping.wait(proxy.faults.stall_seconds)
            return self._reset()
        if kind == "500 after":
            return self._answer(500, [], ERROR.format(code="InternalError").encode())
        if kind == "flipped answer":
            content = _flipped(content, draw)
        self._answer(status, headers, content, len(content) // 2 if kind == "truncated answer" else None)

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _serve

    def _forward(self, body: bytes, most: int | None = None) -> tuple[int, list[tuple[str, str]], bytes]:
        """Ask the server the same; with `most`, send so many bytes of the body and hang up."""
        upstream = http.client.HTTPConnection(self.store_proxy.upstream.netloc, timeout=60)
        try:
            upstream.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():
                if name.lower() not in ("expect", "connection"):
                    upstream.putheader(name, value)
            upstream.endheaders(body if most is None else body[:most])
            if most is not None:
                return 0, [], b""
            answer = upstream.getresponse()
            return answer.status, answer.getheaders(), answer.read()
        finally:
            upstream.close()

    def _answer(self, status: int, headers: list[tuple[str, str]], content: bytes, most: int | None = None) -> None:
        self.send_response_only(status)
        sized = False
        for name, value in headers:
            if name.lower() not in ("connection", "transfer-encoding", "content-length") or (
                name.lower() == "content-length" and self.command == "HEAD"
            ):
                self.send_header(name, value)
                sized |= name.lower() == "content-length"
        if not sized and status != 204:
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content if most is None else content[:most])
        if most is not None and (content or self.command == "HEAD"):
            self.close_connection = True

    def _reset(self) -> None:
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()
        self.close_connection = True


def _flipped(content: bytes, draw: random.Random) -> bytes:
    if not content:
        return content
    changed = bytearray(content)
    changed[draw.randrange(len(changed))] ^= 1 << draw.randrange(8)
    return bytes(changed)
