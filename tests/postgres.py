"""A real PostgreSQL server on loopback, for tests and benchmarks: Debian's package, in a folder of its own."""

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.operations.live import free_port

USER, DATABASE, PASSWORD = "prefect", "prefect", "test-Password:@/9"
"""The password has characters that an URL must escape."""
SECONDS = 120


def _folder_of_programs() -> Path | None:
    """Of the newest PostgreSQL: Debian keeps its servers out of PATH."""
    versions = sorted(
        (path for path in Path("/usr/lib/postgresql").glob("*/bin") if (path / "initdb").exists()),
        key=lambda path: float(path.parent.name),
    )
    if versions:
        return versions[-1]
    found = shutil.which("initdb")
    return Path(found).resolve().parent if found else None


PROGRAMS = _folder_of_programs()
MISSING = "no PostgreSQL server on this machine: `apt-get install postgresql` runs these tests"


def as_server_user() -> list[str]:
    """What a command begins with that PostgreSQL refuses to run as root."""
    if os.geteuid():
        return []
    names = {entry.pw_name for entry in pwd.getpwall()}
    return ["setpriv", "--reuid", "postgres" if "postgres" in names else "nobody", "--clear-groups"]


@dataclass
class Postgres:
    """A running cluster with a superuser and a database."""

    folder: Path
    log: Path
    port: int
    user: str
    database: str
    password: str
    process: subprocess.Popen

    @property
    def environment(self) -> dict[str, str]:
        """For `psql` and other clients, as this superuser."""
        return {
            "PGHOST": "127.0.0.1",
            "PGPORT": str(self.port),
            "PGUSER": self.user,
            "PGDATABASE": self.database,
            "PGPASSWORD": self.password,
        }

    def sql(self, statement: str, database: str = "") -> str:
        """What psql prints for a statement."""
        command = ["psql", "--no-psqlrc", "--tuples-only", "--no-align", "--command", statement]
        command += ["--dbname", database or self.database, "--set", "ON_ERROR_STOP=1"]
        environment = os.environ | self.environment
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=SECONDS)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def restart(self, seconds_away: float = 0.0) -> None:
        """End it as `pg_ctl restart --mode fast` does, connections and all, and start it again."""
        self.stop()
        time.sleep(seconds_away)
        self.process = _start(self.folder, self.log, self.port)
        _wait_until_ready(self)

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)  # fast shutdown
            self.process.wait(SECONDS)


@contextmanager
def postgres(
    folder: Path, port: int = 0, user: str = USER, database: str = DATABASE, password: str = PASSWORD
) -> Iterator[Postgres]:
    """A new cluster as the official image makes it: one superuser with a password, one database, scram over TCP.

    Its socket is in `socket` of its folder, where the superuser needs no password; its log is in `folder`.
    """
    assert PROGRAMS is not None, MISSING
    folder.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix="postgres-"))  # pytest closes its own folders to other users
    (work / "socket").mkdir()
    secret = work / "password"
    secret.write_text(password)
    if server_user := as_server_user():
        owner = pwd.getpwnam(server_user[2])
        for path in (work, work / "socket", secret):
            os.chown(path, owner.pw_uid, owner.pw_gid)
    command = [str(PROGRAMS / "initdb"), f"--pgdata={work / 'data'}", f"--username={user}", f"--pwfile={secret}"]
    command += ["--auth-host=scram-sha-256", "--auth-local=trust", "--encoding=UTF8", "--locale=C.UTF-8", "--no-sync"]
    done = subprocess.run([*server_user, *command], cwd=work, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    secret.unlink()
    running = _started(folder / "postgres.log", work, port, user, database, password)
    try:
        if database != "postgres":
            running.sql(f'CREATE DATABASE "{database}"', "postgres")
        yield running
    finally:
        running.stop()
        shutil.rmtree(work)


def _started(log: Path, work: Path, port: int, user: str, database: str, password: str) -> Postgres:
    """Once more where somebody took the free port first."""
    for last in (False, False, True):
        chosen = port or free_port()
        running = Postgres(work, log, chosen, user, database, password, _start(work, log, chosen))
        try:
            _wait_until_ready(running)
            return running
        except AssertionError:
            running.stop()
            if last or port:
                raise
    raise AssertionError("unreachable")


def _start(work: Path, log: Path, port: int) -> subprocess.Popen:
    assert PROGRAMS is not None
    settings = {
        "listen_addresses": "127.0.0.1",
        "unix_socket_directories": str(work / "socket"),
        "fsync": "off",  # it is thrown away
    }
    options = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
    command = [*as_server_user(), str(PROGRAMS / "postgres"), "-D", str(work / "data"), "-p", str(port), *options]
    with log.open("a") as file:
        return subprocess.Popen(command, cwd=work, stdout=file, stderr=file)


def _wait_until_ready(running: Postgres) -> None:
    command = ["pg_isready", "--quiet", "--host", "127.0.0.1", "--port", str(running.port)]
    deadline = time.monotonic() + SECONDS
    while subprocess.run(command, check=False).returncode:
        assert running.process.poll() is None, running.log.read_text()[-2000:]
        assert time.monotonic() < deadline, "PostgreSQL does not answer"
        time.sleep(0.1)
