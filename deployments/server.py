"""The Prefect server behind a door: `python -m deployments.server --port 4200`, which `daily-train up` starts.

Around Prefect's own application, from the outside in: requests of other web pages and under other names are refused
(deployments/origin.py); the pages need a login, Prefect's and our own of runs (deployments/pages.py); the API needs the
authentication string, which Prefect checks itself.

A person logs in at /enter, with a ticket behind the `#` of an address that `up` prints, or with the string. The
browser keeps the string where Prefect's pages look for it, and a cookie that opens the pages and nothing of the API.
"""

import argparse
import asyncio
import json
import secrets
import socket
import sys
from http.cookies import CookieError, SimpleCookie
from pathlib import Path

import uvicorn
from fastapi import FastAPI
from prefect.server.api.server import create_app
from prefect.settings import (
    PREFECT_SERVER_API_AUTH_STRING,
    PREFECT_SERVER_API_KEEPALIVE_TIMEOUT,
    PREFECT_SERVER_API_WEBSOCKET_PING_INTERVAL,
    PREFECT_SERVER_API_WEBSOCKET_PING_TIMEOUT,
    PREFECT_SERVER_LOGGING_LEVEL,
)
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
from starlette.routing import Mount
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from deployments.access import (
    AccessError,
    auth_string,
    basic_credentials,
    equal_in_constant_time,
    is_valid_ticket,
    prefect_home,
    signature,
)
from deployments.origin import OwnOrigin
from deployments.pages import FOLDER, Pages
from model.errors import print_error

POLICY = (
    "default-src 'self'; connect-src 'self'; script-src 'self' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; worker-src 'self' blob:; object-src 'none'; "
    "base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
)
"""Content-Security-Policy of Prefect's pages: they talk to this server alone, and not to an analytics host. Their forms
and graphs compile functions."""
LOGIN_PATH = "/enter"
LOGIN_PAGE = Path(__file__).with_name("enter.html").read_text()
LONGEST_LOGIN_BYTES = 4096  # bytes of what a person sends to log in
SECONDS_TO_AUTHENTICATE = 30  # the string, after a websocket was opened
REFUSED_LOGIN = '{"type": "auth", "token": ""}'


class Login:
    """An ASGI application whose pages need a login. The API below /api is left to Prefect, which checks the string: it
    hears the right one or none, since of others it takes some for mistakes of its own, with a traceback each."""

    def __init__(self, app: ASGIApp, port: int, string: str, pages: Path) -> None:
        self.app, self.port, self.string = app, port, string
        self.cookie, self.pass_word = f"daily-train-{port}", signature(string, "pages")
        self.used: set[str] = set()
        self.pages = Pages(app, pages, string)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope.get("path", "")
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] == "websocket":
            await self.app(scope, self.checked_first_message(receive), send)
            return
        request = Request(scope, receive)
        if path == "/api" or path.startswith("/api/"):
            if not self.has_string(request):
                scope = {**scope, "headers": [pair for pair in scope["headers"] if pair[0] != b"authorization"]}
            await self.app(scope, receive, send)
            return
        if path == LOGIN_PATH:
            answer = await self.answer_login(request)
        elif not self.is_logged_in(request):
            answer = login_page(401)
        elif self.pages.owns(path):
            answer = await self.pages.answer(request, may_write=self.has_string(request))
        elif path == "/ui-settings":
            answer = await self.settings(request)
        else:
            await self.app(scope, receive, send)
            return
        await answer(scope, receive, send)

    def has_string(self, request: Request) -> bool:
        return equal_in_constant_time(
            request.headers.get("authorization", ""), f"Basic {basic_credentials(self.string)}"
        )

    def checked_first_message(self, receive: Receive) -> Receive:
        """What a websocket sends; its first message, if that is not the string, or does not come, as one that Prefect
        refuses."""
        heard = False

        async def checked() -> Message:
            nonlocal heard
            if heard:
                return await receive()
            try:
                message = await asyncio.wait_for(receive(), SECONDS_TO_AUTHENTICATE)
            except TimeoutError:
                message = {"type": "websocket.receive"}
            if message["type"] == "websocket.receive":
                heard = True
                if not self.is_login(message.get("text")):
                    return {"type": "websocket.receive", "text": REFUSED_LOGIN}
            return message

        return checked

    def is_login(self, text: str | None) -> bool:
        try:
            message = json.loads(text or "")
        except (ValueError, RecursionError):
            return False
        token = message.get("token") if isinstance(message, dict) and message.get("type") == "auth" else None
        return isinstance(token, str) and equal_in_constant_time(token, self.string)

    def is_logged_in(self, request: Request) -> bool:
        """Whether the request comes with the string, or from a browser that has logged in."""
        if self.has_string(request):
            return True
        try:
            cookie = SimpleCookie(request.headers.get("cookie", "")).get(self.cookie)
        except CookieError:
            return False
        return cookie is not None and equal_in_constant_time(cookie.value, self.pass_word)

    async def answer_login(self, request: Request) -> Response:
        """The page, a proof that this server knows the string, or a login: a ticket or the string for the string."""
        if request.method == "GET":
            if challenge := request.query_params.get("challenge"):
                return PlainTextResponse(signature(self.string, "server", str(self.port), challenge))
            return login_page(200)
        if request.method != "POST":
            return Response(status_code=405)
        body = b""
        async for part in request.stream():
            body += part
            if len(body) > LONGEST_LOGIN_BYTES:
                return Response(status_code=413)
        word = body.decode(errors="replace")
        if not equal_in_constant_time(word, self.string):
            if not is_valid_ticket(word, self.string):
                reason = "That is not the string, or the address is older than a quarter of an hour."
                return PlainTextResponse(reason, 401)
            if word in self.used:
                return PlainTextResponse("This address was used already.", 401)
            self.used.add(word)
        answer = PlainTextResponse(basic_credentials(self.string), headers={"Cache-Control": "no-store"})
        answer.set_cookie(self.cookie, self.pass_word, httponly=True, samesite="lax")
        return answer

    async def settings(self, request: Request) -> Response:
        """Prefect's settings of its pages, with the API under the name by which the browser knows this server."""
        parts: list[Message] = []

        async def collect(message: Message) -> None:
            parts.append(message)

        plain = [pair for pair in request.scope["headers"] if pair[0] != b"accept-encoding"]
        await self.app({**request.scope, "headers": plain}, request.receive, collect)
        settings = json.loads(b"".join(part.get("body", b"") for part in parts))
        settings["api_url"] = f"{request.url.scheme}://{request.headers['host']}/api"
        return Response(json.dumps(settings), media_type="application/json")


def login_page(status: int) -> Response:
    """The login page, whose script alone may run there."""
    nonce = secrets.token_urlsafe(16)
    policy = (
        f"default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    headers = {"Content-Security-Policy": policy, "Cache-Control": "no-store"}
    return HTMLResponse(LOGIN_PAGE.replace("NONCE", nonce), status, headers)


def guarded_app(app: ASGIApp, port: int, string: str, pages: Path) -> ASGIApp:
    """The application behind both doors; `pages`: the folder with what runs send."""
    return OwnOrigin(Login(app, port, string, pages), port, POLICY)


def ask_again_without_database(app: FastAPI) -> FastAPI:
    """Have the API answer 503, which clients try again, in place of 500 while nobody can connect to its database."""
    for route in app.routes:
        if isinstance(route, Mount) and route.name == "api" and isinstance(route.app, FastAPI):
            route.app.add_exception_handler(OSError, _unavailable)
    return app


async def _unavailable(_request: Request, _error: Exception) -> Response:
    return JSONResponse({"exception_message": "Service Unavailable"}, 503)


def listening_socket(host: str, port: int) -> socket.socket:
    """A socket of this address, which only the user who holds the port (deployments/cli/up.py) may bind beside him."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    listening.bind((host, port))
    return listening


def main(argv: list[str] | None = None) -> int:
    """Serve until SIGTERM or SIGINT, as `prefect server start` does: migrations, services, log level and timeouts."""
    parser = argparse.ArgumentParser(description="Serve Prefect's API and pages to those who know the string.")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    parser.add_argument("--port", type=int, required=True)
    given = parser.parse_args(argv)
    if not PREFECT_SERVER_API_AUTH_STRING.value():
        print("error: PREFECT_SERVER_API_AUTH_STRING is not set; nobody could log in", file=sys.stderr)
        return 1
    try:
        string, pages = auth_string(), prefect_home() / FOLDER
    except AccessError as error:
        return print_error(error)
    try:
        listening = listening_socket(given.host, given.port)
    except OSError as error:
        print(f"error: {given.host} port {given.port}: {error.strerror}", file=sys.stderr)
        return 1
    config = uvicorn.Config(
        guarded_app(ask_again_without_database(create_app(final=True)), given.port, string, pages),
        timeout_keep_alive=PREFECT_SERVER_API_KEEPALIVE_TIMEOUT.value(),
        ws_ping_interval=PREFECT_SERVER_API_WEBSOCKET_PING_INTERVAL.value(),
        ws_ping_timeout=PREFECT_SERVER_API_WEBSOCKET_PING_TIMEOUT.value(),
        log_level=PREFECT_SERVER_LOGGING_LEVEL.value().lower(),
    )
    server = uvicorn.Server(config)
    server.run(sockets=[listening])
    return 0 if server.started else 3


if __name__ == "__main__":
    sys.exit(main())
