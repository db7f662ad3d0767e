"""The server on PostgreSQL: what is said of a database that cannot be used, and the services of compose.yaml.

Skipped where there is no PostgreSQL. `make test-postgres` does it all with more restarts.
"""

import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest
import yaml
from prefect.settings import PREFECT_HOME, PREFECT_SERVER_DATABASE_CONNECTION_URL, temporary_settings

from benchmarks.pipeline.kills import digests
from benchmarks.pipeline.postgres_restarts import (
    SLOW_FROM,
    TOKENS_PER_STEP,
    Running,
    restart_server,
    running,
    tokens_for,
)
from deployments.cli import postgres as database
from deployments.cli.postgres import Postgres, PostgresError, postgres_of
from deployments.cli.up import DEPLOYMENTS, up
from tasks.store.backends import open_store
from tests import postgres as server
from tests.compose import SECRETS
from tests.operations.live import free_port
from tests.postgres import MISSING, PASSWORD, PROGRAMS, postgres

pytestmark = pytest.mark.skipif(PROGRAMS is None, reason=MISSING)

RESTARTS = int(os.environ.get("POSTGRES_RESTARTS", "1"))
"""Of the server, in the middle of the run."""
TOKENS = tokens_for(RESTARTS) if RESTARTS > 1 else (SLOW_FROM + 8) * TOKENS_PER_STEP


@pytest.fixture(scope="module")
def running_postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[server.Postgres]:
    """A server with databases that cannot be used, each for another reason."""
    with postgres(tmp_path_factory.mktemp("postgres")) as started:
        for statement in (
            "CREATE USER weak PASSWORD 'weak'",
            "CREATE USER away PASSWORD 'away' NOLOGIN",
            "CREATE DATABASE owned OWNER weak",
            "CREATE DATABASE latin ENCODING 'LATIN1' LOCALE 'C' TEMPLATE template0",
            "CREATE DATABASE readable",
            "ALTER DATABASE readable SET default_transaction_read_only = on",
            "CREATE DATABASE others",
            "CREATE DATABASE untrusted",
        ):
            started.sql(statement)
        started.sql("CREATE TABLE alembic_version (version_num text)", "others")
        started.sql("GRANT CREATE ON SCHEMA public TO weak", "untrusted")
        yield started


def refusal(url: str) -> str:
    """The sentence by which a database is refused, before anything is started."""
    found = postgres_of(url, 1)
    assert found is not None
    with pytest.raises(PostgresError) as refused:
        found.require_usable()
    return str(refused.value)


@pytest.fixture
def password(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGPASSWORD", PASSWORD)


@pytest.mark.parametrize("scheme", ["postgresql", "postgres", "postgresql+asyncpg"])
def test_a_database_is_named_as_other_programs_name_it(running_postgres: server.Postgres, password: None, scheme: str):
    found = postgres_of(f"{scheme}://prefect@127.0.0.1:{running_postgres.port}/prefect?sslmode=prefer", 1)
    assert found is not None
    found.require_usable()
    assert found.environment["PGSSLMODE"] == "prefer" and "sslmode" not in str(found.url)
    assert str(found) == f"prefect at 127.0.0.1:{running_postgres.port}"


def test_a_socket_a_password_file_and_the_environment_name_a_database(
    running_postgres: server.Postgres, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    port = running_postgres.port
    by_socket = postgres_of(f"postgresql://prefect@/prefect?host={running_postgres.folder}/socket&port={port}", 1)
    assert by_socket is not None
    by_socket.require_usable()
    file = tmp_path / "pgpass"
    file.write_text(f"127.0.0.1:{port}:owned:weak:weak\n")
    address = f"postgresql://weak@127.0.0.1:{port}/owned?passfile={file}"
    with pytest.raises(PostgresError, match=f"{file} has mode 644.*chmod 600"):
        postgres_of(address, 1)
    file.chmod(0o600)
    by_file = postgres_of(address, 1)
    assert by_file is not None and by_file.environment["PGPASSFILE"] == str(file)
    by_file.require_usable()
    for name, value in running_postgres.environment.items():
        monkeypatch.setenv(name, value)
    by_environment = postgres_of("postgresql://", 1)
    assert by_environment is not None
    by_environment.require_usable()


def test_a_password_is_taken_from_the_setting_and_not_from_an_argument(running_postgres: server.Postgres):
    address = f"postgresql://prefect:{quote(PASSWORD, safe='')}@127.0.0.1:{running_postgres.port}/prefect"
    with temporary_settings({PREFECT_SERVER_DATABASE_CONNECTION_URL: address}):
        found = postgres_of(None, 1)
    assert found is not None
    found.require_usable()
    for argument in (
        address,
        "postgresql://prefect@h/d?password=secret",
        "postgresql://prefect@h/d?sslpassword=secret",
    ):
        with pytest.raises(PostgresError, match=r"must hold no password: .* ~/\.pgpass") as refused:
            postgres_of(argument, 1)
        assert "secret" not in str(refused.value) and PASSWORD not in str(refused.value)
    with temporary_settings({PREFECT_SERVER_DATABASE_CONNECTION_URL: "sqlite+aiosqlite:////tmp/p.db"}):
        assert postgres_of(None, 1) is None


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("nosuch", 'database "nosuch" does not exist; `createdb'),
        ("latin", "its encoding is LATIN1"),
        ("readable", "it can only be read"),
        ("others", "it holds the tables of another program"),
    ],
)
def test_a_database_that_cannot_be_used_is_refused(
    running_postgres: server.Postgres, password: None, name: str, words: str
):
    sentence = refusal(f"postgresql://prefect@127.0.0.1:{running_postgres.port}/{name}")
    assert sentence.startswith(f"PostgreSQL database {name} at 127.0.0.1:") and words in sentence


@pytest.mark.parametrize(
    ("user", "given", "name", "words"),
    [
        ("prefect", "wrong-secret", "prefect", 'password authentication failed for user "prefect"'),
        ("prefect", None, "prefect", "no password was given, and"),
        ("away", "away", "prefect", 'role "away" is not permitted to log in'),
        ("weak", "weak", "prefect", "may not create tables in the schema public"),
        ("weak", "weak", "untrusted", "may not create the extension pg_trgm"),
    ],
)
def test_a_user_who_may_not_use_it_is_refused(
    running_postgres: server.Postgres,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    user: str,
    given: str | None,
    name: str,
    words: str,
):
    monkeypatch.setenv("PGPASSFILE", str(tmp_path / "none"))
    monkeypatch.delenv("PGPASSWORD", raising=False)
    if given:
        monkeypatch.setenv("PGPASSWORD", given)
    sentence = refusal(f"postgresql://{user}@127.0.0.1:{running_postgres.port}/{name}")
    assert words in sentence and "wrong-secret" not in sentence


USABLE = {
    "version": 150000,
    "version_text": "15.0",
    "is_replica": False,
    "read_only": False,
    "encoding": "UTF8",
    "name": "prefect",
    "schema": "public",
    "may_create_tables": True,
    "may_create_extensions": True,
    "has_trigrams": False,
    "offers_trigrams": True,
    "is_of_others": False,
}


@pytest.mark.parametrize(
    ("found", "words"),
    [
        ({}, None),
        ({"version": 130012, "version_text": "13.12"}, "it is PostgreSQL 13.12, and Prefect needs 14 or newer"),
        ({"is_replica": True}, "it is a replica, which can only be read; name the primary"),
        ({"offers_trigrams": False}, "the server lacks the extension pg_trgm"),
        ({"has_trigrams": True, "offers_trigrams": False, "may_create_extensions": False}, None),
        ({"schema": None, "may_create_tables": False}, "any schema of its search_path"),
    ],
)
def test_other_servers_are_refused_by_what_they_answer(found: dict, words: str | None):
    problem = database._problem(USABLE | found)
    assert problem is None if words is None else words in (problem or "")


def test_an_address_where_no_postgres_answers(monkeypatch: pytest.MonkeyPatch):
    assert "nobody listens there" in refusal("postgresql://prefect@localhost:1/prefect")
    assert "nobody listens there" in refusal("postgresql:///prefect?host=/nosuch/folder&user=prefect")
    assert "no machine of this name" in refusal("postgresql://prefect@nosuch.invalid/prefect")
    monkeypatch.setattr(database, "SECONDS_TO_CONNECT", 0.5)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        assert "no answer within" in refusal(f"postgresql://prefect@127.0.0.1:{silent.getsockname()[1]}/prefect")

        def talk() -> None:
            client, _ = silent.accept()
            with client:
                client.recv(100)
                client.sendall(b"HTTP/1.0 400 Bad Request\r\n\r\n")

        threading.Thread(target=talk, daemon=True).start()
        assert "PostgreSQL database prefect at" in refusal(
            f"postgresql://prefect@127.0.0.1:{silent.getsockname()[1]}/prefect"
        )


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("", "text without ://"),
        ("db.example.org/prefect", "text without ://"),
        ("mysql://secret:secret@h/d", "'mysql'://; expected postgresql://"),
        ("postgresql+psycopg://u@h/d", "Prefect's is postgresql+asyncpg"),
        ("postgresql://u:se@cret@h/d", "cannot be read; expected"),
        ("postgresql://u:secret", "cannot be read; expected"),
        ("postgresql://u@h:99999/d", "cannot be read; expected"),
        ("postgresql://u@h/d?channel_binding=require", "unknown parameter 'channel_binding'"),
    ],
)
def test_an_address_that_cannot_be_read_is_refused_without_what_may_be_a_password(address: str, words: str):
    with pytest.raises(PostgresError) as refused:
        postgres_of(address, 1)
    assert words in str(refused.value) and "cret" not in str(refused.value)


def test_a_server_that_starts_is_waited_for(monkeypatch: pytest.MonkeyPatch):
    answers = iter([database._StartingError("the database system is starting up"), None])

    async def check(_: Postgres) -> None:
        if answer := next(answers):
            raise answer

    monkeypatch.setattr(Postgres, "_check", check)
    found = postgres_of("postgresql://u@h/d", 1)
    assert found is not None
    found.require_usable()


def test_up_refuses_a_database_before_it_starts_anything(tmp_path: Path):
    with temporary_settings({PREFECT_HOME: tmp_path}), pytest.raises(PostgresError, match="nobody listens there"):
        up(free_port(), "postgresql://u@127.0.0.1:1/d")


@pytest.fixture(scope="module")
def services(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """What compose.yaml describes, from packages."""
    with running(tmp_path_factory.mktemp("compose"), "postgres") as started:
        yield started


def test_a_run_of_the_compose_file_survives_restarts_of_its_server(services: Running, monkeypatch: pytest.MonkeyPatch):
    schedule = services.schedule_of("daily")
    services.pause(schedule)
    seen = restart_server(services, RESTARTS, TOKENS)
    assert seen["restarts"] == RESTARTS and seen["state"]["type"] == "COMPLETED", seen
    assert seen["bad"]["503"] == seen["bad"]["500"] == 0 and seen["bad"]["all"] > 100, seen
    worker = services.compose.services["worker"].environment
    for name, value in worker.items():
        if name.startswith("AWS_"):
            monkeypatch.setenv(name, value)
    assert services.store == "s3://daily-train/runs"
    stages = {key.split("/")[1] for key in digests(open_store(services.store)) if key.startswith("stages/")}
    assert stages >= {"download", "tokenizer", "shard", "train", "evaluate", "report"}
    described = yaml.safe_load(DEPLOYMENTS.read_text())["deployments"]
    assert services.compose.database.sql("SELECT count(*) FROM deployment") == str(len(described))
    assert int(services.compose.database.sql("SELECT count(*) FROM automation")) >= 2
    assert not services.schedule_of("daily")["active"], "a pause holds"


def test_while_its_database_is_away_the_server_asks_to_try_again(services: Running):
    with services.api() as client:

        def status() -> int:
            return client.post("/flow_runs/filter", json={"limit": 1}).status_code

        services.compose.database.stop()
        assert {status() for _ in range(3)} == {503}  # clients try 503 again, and 500 not
        services.compose.database.restart()
        assert status() == 200


def test_no_password_of_the_compose_file_is_in_a_log(services: Running):
    for name, service in services.compose.services.items():
        text = service.log.read_text()
        for secret in (value for variable, value in SECRETS.items() if variable != "AWS_ACCESS_KEY_ID"):  # a name
            assert secret not in text and quote(secret, safe="") not in text, name
    assert "PGPASSWORD" not in services.compose.services["worker"].environment
