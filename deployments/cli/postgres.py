"""The PostgreSQL database that `daily-train up` gives its Prefect server, looked at before the server is started.

The address is that of `--postgres`, which may hold no password, or of PREFECT_SERVER_DATABASE_CONNECTION_URL, as libpq
and psql spell it. A password is never printed.
"""

import asyncio
import os
import socket
import ssl
import stat
import time
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import asyncpg
from prefect.settings import PREFECT_SERVER_DATABASE_CONNECTION_URL
from pydantic import SecretStr
from sqlalchemy.engine.url import URL, make_url
from sqlalchemy.exc import ArgumentError

from model.errors import DailyTrainError, shown_value

SETTING = "PREFECT_SERVER_DATABASE_CONNECTION_URL"
APPLICATION_NAME = "PREFECT_SERVER_DATABASE_SQLALCHEMY_CONNECT_ARGS_APPLICATION_NAME"
SECRETS_OF_DATABASE = (
    SETTING,
    "PREFECT_SERVER_DATABASE_PASSWORD",
    "PREFECT_API_DATABASE_CONNECTION_URL",
    "PREFECT_API_DATABASE_PASSWORD",
    "PGPASSWORD",
)
"""Variables for the server alone: worker and runs have no use for them."""
OLDEST = 140000
"""The version that Prefect wants, as `server_version_num` writes it."""
SECONDS_TO_CONNECT = 10.0
SECONDS_TO_RECOVER = 60.0  # of a server that says that it is starting
SECONDS_BETWEEN_TRIES = 1.0
SECRET_PARAMETERS = ("password", "sslpassword")
IN_ADDRESS = ("host", "port", "user", "dbname", "database", *SECRET_PARAMETERS)
IN_ENVIRONMENT = {
    "passfile": "PGPASSFILE",
    "service": "PGSERVICE",
    "servicefile": "PGSERVICEFILE",
    "ssl": "PGSSLMODE",
    "sslmode": "PGSSLMODE",
    "sslrootcert": "PGSSLROOTCERT",
    "sslcert": "PGSSLCERT",
    "sslkey": "PGSSLKEY",
    "sslcrl": "PGSSLCRL",
    "sslnegotiation": "PGSSLNEGOTIATION",
    "ssl_min_protocol_version": "PGSSLMINPROTOCOLVERSION",
    "ssl_max_protocol_version": "PGSSLMAXPROTOCOLVERSION",
    "target_session_attrs": "PGTARGETSESSIONATTRS",
    "krbsrvname": "PGKRBSRVNAME",
    "gsslib": "PGGSSLIB",
    "application_name": APPLICATION_NAME,
}
"""Parameters of an address that SQLAlchemy would not pass on, by the variables that do."""
WHERE_TO_PUT = (
    f"an argument can be read by every user of this machine; put it into ~/.pgpass (mode 600), PGPASSWORD or {SETTING}"
)
QUESTIONS = """
SELECT current_setting('server_version_num')::int AS version,
    current_setting('server_version') AS version_text,
    pg_is_in_recovery() AS is_replica,
    current_setting('transaction_read_only') = 'on' AS read_only,
    current_setting('server_encoding') AS encoding,
    current_user::text AS name,
    current_schema() AS schema,
    CASE WHEN current_schema() IS NULL THEN false
        ELSE has_schema_privilege(current_schema(), 'CREATE') END AS may_create_tables,
    has_database_privilege(current_database(), 'CREATE') AS may_create_extensions,
    EXISTS (SELECT FROM pg_extension WHERE extname = 'pg_trgm') AS has_trigrams,
    EXISTS (SELECT FROM pg_available_extensions WHERE name = 'pg_trgm') AS offers_trigrams,
    to_regclass('alembic_version') IS NOT NULL AND to_regclass('flow_run') IS NULL AS is_of_others
"""
TRIGRAMS = "the extension pg_trgm, which Prefect's migrations create"


class PostgresError(DailyTrainError):
    """The database cannot be used; the message says why, what to do, and never the password."""


@dataclass(frozen=True)
class Postgres:
    """A database of the server."""

    url: URL
    """As SQLAlchemy takes it; it may hold a password."""
    environment: dict[str, str]
    """What the server gets: the address, and what only the environment can say."""

    def __str__(self) -> str:
        """The address without a password."""
        hosts = self.url.query.get("host") or self.url.host or os.environ.get("PGHOST") or "localhost"
        host = hosts if isinstance(hosts, str) else ",".join(hosts)
        port = self.url.query.get("port") or self.url.port or os.environ.get("PGPORT") or 5432
        name = self.url.database or os.environ.get("PGDATABASE") or ""
        return shown_value(f"{name} at {host}{'' if ':' in host else f':{port}'}").strip("'\"")

    def require_usable(self) -> None:
        """Raises PostgresError, in one sentence, where the Prefect server could not work with the database. One that
        is starting, as after a boot of the machine, is waited for."""
        deadline = time.monotonic() + SECONDS_TO_RECOVER
        while True:
            try:
                asyncio.run(self._check())
                return
            except _StartingError:
                if time.monotonic() > deadline:
                    raise
            time.sleep(SECONDS_BETWEEN_TRIES)

    def wait_until_usable(self) -> None:
        """For a server that is started again: a database that is away comes back. Each new reason is printed."""
        said = None
        while True:
            try:
                asyncio.run(self._check())
                return
            except PostgresError as error:
                if str(error) != said:
                    said = str(error)
                    print(f"The server waits for its database: {said}", flush=True)
            time.sleep(SECONDS_BETWEEN_TRIES)

    def is_used(self) -> bool:
        """Whether the server is connected to it, by the name that `up` gives it."""

        async def ask() -> bool:
            connection = await self._connection()
            try:
                question = "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE application_name = $1)"
                return cast(bool, await connection.fetchval(question, self.environment[APPLICATION_NAME]))
            finally:
                await connection.close()

        return asyncio.run(ask())

    async def _check(self) -> None:
        connection = await self._connection()
        try:
            if problem := _problem(dict(await connection.fetchrow(QUESTIONS, timeout=SECONDS_TO_CONNECT))):
                raise PostgresError(f"PostgreSQL database {self}: {problem}")
        finally:
            await connection.close(timeout=SECONDS_TO_CONNECT)

    async def _connection(self) -> asyncpg.Connection:
        """Raises PostgresError."""
        plain = self.url.set(drivername="postgresql").render_as_string(hide_password=False)
        kept = {name: os.environ.get(name) for name in self.environment}
        os.environ.update(self.environment)
        try:
            return await asyncpg.connect(plain, timeout=SECONDS_TO_CONNECT)
        except asyncpg.CannotConnectNowError as error:
            raise _StartingError(f"PostgreSQL database {self}: {error}") from error
        except Exception as error:
            raise PostgresError(f"PostgreSQL database {self}: {self._reason(error)}") from None
        finally:
            for name, value in kept.items():
                if value is None:
                    del os.environ[name]
                else:
                    os.environ[name] = value

    def _reason(self, error: Exception) -> str:
        """Why nobody could connect, in words."""
        if isinstance(error, asyncpg.InvalidCatalogNameError):
            return f"{error}; `createdb --encoding UTF8 --template template0 NAME` makes one"
        if isinstance(error, asyncpg.InvalidAuthorizationSpecificationError):  # a wrong password is one of them
            return f"{error}{self._password_advice()}"
        if isinstance(error, asyncpg.InterfaceError) and "password" in str(error):
            return f"the server asks for a password{self._password_advice()}"
        if isinstance(error, socket.gaierror | UnicodeError):
            return "no machine of this name is known; is the address mistyped?"
        if isinstance(error, TimeoutError):
            return f"no answer within {SECONDS_TO_CONNECT:.0f} s; is it PostgreSQL that listens? is there a firewall?"
        if isinstance(error, ssl.SSLError):
            return f"the encrypted connection failed ({error.reason or error}); see sslmode and sslrootcert"
        if isinstance(error, ConnectionRefusedError | FileNotFoundError) or "Errno 111" in str(error):
            return "nobody listens there; is PostgreSQL started?"
        if isinstance(error, PermissionError):
            return "its socket may not be used by this user"
        if isinstance(error, asyncpg.PostgresError | asyncpg.InterfaceError | OSError):
            return str(error) or type(error).__name__
        return f"it does not answer as PostgreSQL does ({type(error).__name__})"

    def _password_advice(self) -> str:
        file = Path(self.environment.get("PGPASSFILE") or os.environ.get("PGPASSFILE") or "~/.pgpass").expanduser()
        given = self.url.password or os.environ.get("PGPASSWORD")
        problem = None if given else _why_not_read(file)
        if problem:
            return f" (no password was given, and {problem})"
        return f"; the password is taken from the address, PGPASSWORD or {file}"


class _StartingError(PostgresError):
    """The database server does not take connections yet."""


def _why_not_read(file: Path) -> str | None:
    """Why clients pass over a password file."""
    try:
        mode = file.stat().st_mode
    except OSError as error:
        return f"{file}: {error.strerror}"
    if not stat.S_ISREG(mode):
        return f"{file} is not a file"
    if mode & 0o077:
        return f"{file} has mode {mode & 0o777:o}, so that no client reads it; `chmod 600` it"
    return None


def _problem(found: dict) -> str | None:
    """What the Prefect server would fail on, the first that a person has to change."""
    if found["version"] < OLDEST:
        return f"it is PostgreSQL {found['version_text']}, and Prefect needs {OLDEST // 10000} or newer"
    if found["is_replica"]:
        return "it is a replica, which can only be read; name the primary"
    if found["read_only"]:
        return "it can only be read (default_transaction_read_only)"
    if found["encoding"] != "UTF8":
        return (
            f"its encoding is {found['encoding']}, and texts of runs need UTF8; "
            "`createdb --encoding UTF8 --template template0 NAME` makes another"
        )
    if found["is_of_others"]:
        return "it holds the tables of another program; give the server a database of its own"
    if not found["may_create_tables"]:
        where = f"the schema {found['schema']}" if found["schema"] else "any schema of its search_path"
        return f"the user {found['name']} may not create tables in {where}; make it the owner of the database"
    if not found["has_trigrams"] and not found["offers_trigrams"]:
        return f"the server lacks {TRIGRAMS} (Debian: it is part of postgresql, elsewhere of postgresql-contrib)"
    if not found["has_trigrams"] and not found["may_create_extensions"]:
        return (
            f"the user {found['name']} may not create {TRIGRAMS}; "
            "make it the owner of the database, or have a superuser run CREATE EXTENSION pg_trgm in it"
        )
    return None


def postgres_of(argument: str | None, port: int) -> Postgres | None:
    """The database of `--postgres`, else of the setting; None for SQLite. The server of this port will use it.

    Raises PostgresError for an address that cannot be read, holds a password in the argument, or names no PostgreSQL.
    """
    kept = PREFECT_SERVER_DATABASE_CONNECTION_URL.value()
    text = argument if argument is not None else kept.get_secret_value() if isinstance(kept, SecretStr) else kept
    origin = SETTING if argument is None else "--postgres"
    if argument is None and (not text or text.startswith("sqlite")):
        return None
    url = _parsed(text or "", origin)
    if argument is not None and (url.password or any(name in url.query for name in SECRET_PARAMETERS)):
        raise PostgresError(f"--postgres must hold no password: {WHERE_TO_PUT}")
    query, environment = {}, {APPLICATION_NAME: application_name(port)}
    for name, value in url.query.items():
        if name in ("dbname", "database"):
            url = url.set(database=_one(value))
        elif name == "user":
            url = url.set(username=_one(value))
        elif name == "password":
            url = url.set(password=_one(value))
        elif name in IN_ENVIRONMENT:
            environment[IN_ENVIRONMENT[name]] = _one(value)
        elif name in IN_ADDRESS:
            query[name] = value
        else:
            known = sorted({*IN_ADDRESS, *IN_ENVIRONMENT})
            raise PostgresError(f"{origin}: unknown parameter {shown_value(name)}; expected of {', '.join(known)}")
    if file := environment.get("PGPASSFILE"):
        environment["PGPASSFILE"] = str(Path(file).expanduser())
        if problem := _why_not_read(Path(environment["PGPASSFILE"])):
            raise PostgresError(f"{origin}, passfile: {problem}")
    url = url.set(drivername="postgresql+asyncpg", query=query)
    return Postgres(url, {**environment, SETTING: url.render_as_string(hide_password=False)})


def application_name(port: int) -> str:
    """How the server of this machine and port calls itself to PostgreSQL, which keeps 63 bytes."""
    return f"{f'daily-train {socket.gethostname()}'[:50]} {port}"


def _one(value: str | tuple[str, ...]) -> str:
    """The last of a parameter's values, as in libpq."""
    return value if isinstance(value, str) else value[-1]


def _parsed(text: str, origin: str) -> URL:
    expected = "expected postgresql://USER@HOST/DATABASE, or postgresql:///DATABASE?host=FOLDER for a unix socket"
    scheme, separator, _ = text.partition("://")
    if not separator or scheme.partition("+")[0] not in ("postgresql", "postgres"):
        shown = f"{shown_value(scheme)}://" if separator else "text without ://"
        raise PostgresError(f"{origin} is {shown}; {expected}")
    if scheme.partition("+")[2] not in ("", "asyncpg"):
        raise PostgresError(f"{origin} names the driver {shown_value(scheme)}; Prefect's is postgresql+asyncpg")
    if scheme.startswith("postgres+") or scheme == "postgres":
        text = text.replace("postgres", "postgresql", 1)
    try:
        url = make_url(text)
        if "@" not in (url.host or "") and (url.port or 0) < 2**16:
            return url
    except (ArgumentError, ValueError):  # whose text may hold a part of the password
        pass
    raise PostgresError(
        f"{origin} cannot be read; {expected}, with %40 for @, %2F for / and %3A for : in a name or password"
    )
