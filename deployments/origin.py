"""Keeps other web pages away from a server on this machine, whatever the server itself would answer them.

Any page that a browser shows can send requests to loopback. The browser names the page in the header Origin (or says
`cross-site` in Sec-Fetch-Site), and in the header Host the address that it believes to talk to: a name of somebody
else's there is DNS rebinding. Such requests are refused before the application hears of them.
"""

import os

from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

HOSTS = "DAILY_TRAIN_HOSTS"
"""More addresses under which people reach the server, as a browser shows them, such as `train.example.org` or
`localhost:8080`, separated by commas: those of a reverse proxy or of an SSH tunnel."""
HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
}


class OwnOrigin:
    """An ASGI application that only its own pages reach, and programs that are no browser; http and websocket."""

    def __init__(self, app: ASGIApp, port: int, policy: str) -> None:
        """`policy`: the Content-Security-Policy of all answers that bring none of their own."""
        self.app = app
        self.configured = {name.strip().lower() for name in os.environ.get(HOSTS, "").split(",") if name.strip()}
        loopback = ("127.0.0.1", "localhost", "[::1]")
        self.hosts = self.configured | {name if port == 80 else f"{name}:{port}" for name in loopback}
        self.headers = {
            name.lower().encode(): value.encode()
            for name, value in {**HEADERS, "Content-Security-Policy": policy}.items()
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
        elif reason := self.refused(scope):
            if scope["type"] == "websocket":
                await send({"type": "websocket.close", "code": 1008})
            else:
                await PlainTextResponse(f"{reason}\n", 403)(scope, receive, send)
        else:
            await self.app(scope, receive, lambda message: send(self.with_headers(message)))

    def refused(self, scope: Scope) -> str | None:
        """Why a request is not answered; None for one that is."""

        def values(wanted: bytes) -> list[str]:
            return [value.decode("latin-1").lower() for name, value in scope["headers"] if name == wanted]

        hosts = values(b"host")
        if len(hosts) != 1 or hosts[0] not in self.hosts:
            return f"{', '.join(hosts) or 'no address'!r} is not an address of this server; {HOSTS} can name more"
        for origin in values(b"origin"):
            scheme, _, page = origin.partition("://")
            if scheme not in ("http", "https") or (page != hosts[0] and page not in self.configured):
                return f"a page of {origin!r} may not use this server; {HOSTS} can name more"
        if any(site in ("cross-site", "same-site") for site in values(b"sec-fetch-site")):
            link = values(b"sec-fetch-dest") == ["document"] and scope.get("method") in ("GET", "HEAD")
            if not link:  # to follow a link from elsewhere is what a person does
                return "a page from elsewhere may not use this server"
        return None

    def with_headers(self, message: Message) -> Message:
        """A message of the application with the headers above, and without a permission for other pages to read it."""
        if message["type"] != "http.response.start":
            return message
        given = [
            (name, value)
            for name, value in message.get("headers", ())
            if not name.lower().startswith(b"access-control-allow-")
        ]
        there = {name.lower() for name, _ in given}
        return {**message, "headers": given + [pair for pair in self.headers.items() if pair[0] not in there]}
