"""Who may use the Prefect server of this machine: those who know its authentication string.

The string is PREFECT_SERVER_API_AUTH_STRING where that is set. Else it is made at the first start and kept in a file
below PREFECT_HOME that its owner alone can read. Server, worker, runs and commands get it in their environment, which
other users of a machine cannot read; it is in no argument, parameter, log or database.

A port on loopback can be taken by any user. So a client asks for a proof before it sends the string: an HMAC of a
random challenge, with a key that is derived from the string.
"""

import functools
import hashlib
import hmac
import http.client
import os
import secrets
import stat
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import urlsplit

from prefect.context import refresh_global_settings_context
from prefect.settings import (
    PREFECT_API_AUTH_STRING,
    PREFECT_API_URL,
    PREFECT_HOME,
    PREFECT_SERVER_API_AUTH_STRING,
    temporary_settings,
)

from deployments.temporary_server import AUTH_STRING_VARIABLE
from model.errors import DailyTrainError
from tasks.runtime.pages import PAGES
from tasks.runtime.pages import basic_credentials as basic_credentials

AUTH_FILE = "daily-train-auth"
SHORTEST_AUTH_STRING = 16
SECONDS_TO_LOG_IN = 15 * 60
SECONDS_TO_ANSWER = 30  # of a server on a machine whose cores are all in use
NO_PROXY = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # of a server on loopback nobody else hears


class AccessError(DailyTrainError):
    """The server cannot be used, or not safely; the message says what to do."""


def prefect_home() -> Path:
    """PREFECT_HOME, closed to other users: the server's database holds webhook addresses and their key."""
    folder = Path(PREFECT_HOME.value())
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        if folder.stat().st_uid != os.geteuid():
            raise AccessError(f"{folder} belongs to another user; set PREFECT_HOME to a folder of your own")
        if stat.S_IMODE(folder.stat().st_mode) & 0o077:
            folder.chmod(0o700)
    except OSError as error:
        raise AccessError(f"{folder} (PREFECT_HOME) cannot be used: {error.strerror}") from error
    return folder


def auth_string() -> str:
    """The authentication string; the first call on a machine makes it. Raises AccessError."""
    if given := PREFECT_SERVER_API_AUTH_STRING.value():
        if not _is_usable(given):
            raise AccessError(
                f"{AUTH_STRING_VARIABLE} must have at least {SHORTEST_AUTH_STRING} characters of ASCII and no white "
                "space at its ends: whoever may connect can try words; `openssl rand -hex 32` gives one"
            )
        return given
    file = prefect_home() / AUTH_FILE
    try:
        if not os.path.lexists(file):
            _make_auth_file(file)
        return _read_auth_file(file)
    except OSError as error:
        raise AccessError(f"{file}, the authentication string, cannot be used: {error.strerror}") from error


def _make_auth_file(file: Path) -> None:
    """Under its name only when whole; of two processes at once the first one's string stays."""
    descriptor, name = tempfile.mkstemp(dir=file.parent, prefix=f".{AUTH_FILE}-")  # O_EXCL, mode 600
    try:
        with os.fdopen(descriptor, "w") as temporary:
            temporary.write(f"daily-train:{secrets.token_urlsafe(32)}\n")
        with suppress(FileExistsError):
            os.link(name, file)
    finally:
        os.unlink(name)


def _read_auth_file(file: Path) -> str:
    if file.is_symlink():
        raise AccessError(f"{file} is a link; delete it, and the next start makes a new string")
    descriptor = os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    with os.fdopen(descriptor, "rb") as opened:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or status.st_uid != os.geteuid():
            raise AccessError(f"{file} is not a file of yours; delete it, and the next start makes a new string")
        if mode := stat.S_IMODE(status.st_mode) & 0o077:
            raise AccessError(
                f"{file} has mode {status.st_mode & 0o777:o}: other users may know the string ({mode:o}); "
                "delete it, and the next start makes a new one"
            )
        lines = opened.read(4096).decode(errors="replace").split()
    if len(lines) != 1 or not _is_usable(lines[0]):
        raise AccessError(f"{file} does not hold one authentication string; delete it, and the next start makes one")
    return lines[0]


def _is_usable(string: str) -> bool:
    """Whether nobody guesses it, and Prefect, which compares ASCII alone, and the login page can take it."""
    return (
        len(string) >= SHORTEST_AUTH_STRING and string.isascii() and string.isprintable() and string == string.strip()
    )


def where_auth_string_is() -> str:
    """Where a person finds the string."""
    return AUTH_STRING_VARIABLE if PREFECT_SERVER_API_AUTH_STRING.value() else str(prefect_home() / AUTH_FILE)


@functools.cache
def _key(string: str) -> bytes:
    """Slow to derive, so that what it signs does not help to guess a string that a person has chosen."""
    return hashlib.scrypt(string.encode(), salt=b"daily-train", n=2**14, r=8, p=1, dklen=32)


def signature(string: str, *words: str) -> str:
    """What only those who know the string can say about these words."""
    return hmac.new(_key(string), "\0".join(words).encode(), "sha256").hexdigest()


def equal_in_constant_time(given: str, expected: str) -> bool:
    """Compare without telling by the time it takes how much is right."""
    return hmac.compare_digest(given.encode(errors="surrogatepass"), expected.encode())


def login_ticket(string: str) -> str:
    """For one login within a quarter of an hour: what an address may hold, since it is worth nothing afterwards."""
    until, once = str(int(time.time()) + SECONDS_TO_LOG_IN), secrets.token_urlsafe(8)
    return ".".join((until, once, signature(string, "ticket", until, once)))


def is_valid_ticket(given: str, string: str) -> bool:
    """Whether it was made with the string and is not too old; that it is used once, the server sees to."""
    until, _, rest = given.partition(".")
    once, _, signed = rest.partition(".")
    return equal_in_constant_time(signed, signature(string, "ticket", until, once)) and time.time() < int(until)


def require_own_server(port: int, string: str) -> bool:
    """Whether a server answers on this port of loopback. Raises AccessError when it does not know the string, or does
    not say so in time."""
    challenge = secrets.token_urlsafe(16)
    address = f"http://127.0.0.1:{port}/enter?challenge={challenge}"
    try:
        with NO_PROXY.open(address, timeout=SECONDS_TO_ANSWER) as answer:
            proof = answer.read(200).decode(errors="replace")
    except urllib.error.HTTPError as error:
        proof = f"HTTP {error.code}"
    except ConnectionRefusedError:
        return False
    except (OSError, http.client.HTTPException) as error:
        if isinstance(getattr(error, "reason", None), ConnectionRefusedError):
            return False
        raise AccessError(f"the server on port {port} does not answer: {error}") from error
    if not equal_in_constant_time(proof, signature(string, "server", str(port), challenge)):
        raise AccessError(
            f"what answers on port {port} is not a Daily Train server that knows the string of "
            f"{where_auth_string_is()}: end it, or choose another --port"
        )
    return True


def bypass_proxies() -> None:
    """What goes to loopback, the string with it, goes through no HTTP proxy."""
    for name in ("NO_PROXY", "no_proxy"):
        named = list(filter(None, os.environ.get(name, "").split(",")))
        os.environ[name] = ",".join([*named, *(host for host in ("127.0.0.1", "localhost") if host not in named)])


@contextmanager
def connected_to_server(port: int, string: str) -> Iterator[None]:
    """Prefect's clients in this process use the server on this port, once that has proved itself."""
    bypass_proxies()
    if not require_own_server(port, string):
        raise AccessError(f"no server answers on port {port}; `daily-train up` starts one")
    with temporary_settings({PREFECT_API_URL: f"http://127.0.0.1:{port}/api", PREFECT_API_AUTH_STRING: string}):
        yield


def choose_server(own: dict[str, str] | None) -> None:
    """For a run in a terminal: it uses its `own` temporary server, by the environment of its clients, or the one of
    PREFECT_API_URL, with the string of our file if that server is ours.

    A temporary server answers this process and its children alone: it writes to the database of PREFECT_HOME, from
    which the worker of a later `up` would take deployments."""
    bypass_proxies()
    if own:
        os.environ |= own
        refresh_global_settings_context()
        return
    url = urlsplit(PREFECT_API_URL.value() or "")
    given = PREFECT_API_AUTH_STRING.value()
    if url.hostname != "127.0.0.1" or not (given or (prefect_home() / AUTH_FILE).exists()):
        return
    string = given or auth_string()
    try:
        if require_own_server(url.port or 80, string):
            os.environ.setdefault(PAGES, f"http://{url.netloc}")
    except AccessError:  # somebody else's server: with another string, or with none
        return
    os.environ["PREFECT_API_AUTH_STRING"] = string
    refresh_global_settings_context()
