"""The services of deployments/compose.yaml, started from packages in place of images: no container engine is needed.

Commands, environments, health checks and the order of starts are read from the file and from the Dockerfile. In place
of the images are Debian's PostgreSQL (tests/postgres.py), the SeaweedFS of the virtual environment and this checkout.
Addresses and folders of containers are replaced by ports of loopback and folders below one: nothing else is.
"""

import os
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from tests.object_store import free_port_pair
from tests.operations.live import ROOT, free_port
from tests.postgres import Postgres, postgres

DEPLOYMENTS = ROOT / "deployments"
SECONDS_BETWEEN_STARTS = 0.1  # Docker's first delay; it doubles, and starts over after 10 s of work
SECRETS = {
    "POSTGRES_PASSWORD": "compose@postgres/7Jq2:%",
    "AWS_ACCESS_KEY_ID": "composekey",
    "AWS_SECRET_ACCESS_KEY": "compose-secret-4Wd9",
    "PREFECT_SERVER_API_AUTH_STRING": "compose-auth-string-Zx81",
}
"""What a person exports before `docker compose up`."""
OF_THE_CALLER = ("PREFECT_", "DAILY_TRAIN_", "AWS_", "PG", "POSTGRES_")
"""Beginnings of variables that a container would not inherit."""


def filled_in(value: Any, given: dict[str, str]) -> Any:
    """The value with `${NAME}`, `${NAME:-default}` and `${NAME:?message}` replaced, as compose does."""
    if isinstance(value, dict):
        return {key: filled_in(entry, given) for key, entry in value.items()}
    if isinstance(value, list):
        return [filled_in(entry, given) for entry in value]
    if not isinstance(value, str):
        return value

    def replaced(match: re.Match) -> str:
        name, rule, word = match.groups()
        if given.get(name):
            return given[name]
        assert rule != ":?", f"{name}: {word}"
        return word or ""

    return re.sub(r"\$\{(\w+)(:-|:\?)?([^}]*)\}", replaced, value)


def merged(environment: dict) -> dict[str, str]:
    """An environment whose `<<: [*a, *b]` YAML has left as a list, or has merged already."""
    return {name: str(value) for name, value in environment.items()}


def image_environment(dockerfile: str) -> dict[str, str]:
    """What the stage `base` sets by ENV."""
    base = dockerfile.partition(" AS base")[2].partition("\nFROM ")[0]
    lines = re.findall(r"^ENV (.*)$", base, re.MULTILINE)
    return dict(pair.split("=", 1) for line in lines for pair in shlex.split(line))


def entrypoint(dockerfile: str, target: str) -> list[str]:
    stage = dockerfile.partition(f" AS {target}")[2].partition("\nFROM ")[0]
    [found] = re.findall(r"^ENTRYPOINT (.*)$", stage, re.MULTILINE)
    return yaml.safe_load(found)


def words(command: str | list[str]) -> list[str]:
    return command if isinstance(command, list) else shlex.split(command)


@dataclass
class Service:
    """One process in place of a container; started again when it ends, as `restart: unless-stopped` says."""

    name: str
    command: list[str]
    environment: dict[str, str]
    health: dict[str, Any]
    log: Path
    restart: bool
    process: subprocess.Popen | None = None
    starts: list[float] = field(default_factory=list)
    stopped: threading.Event = field(default_factory=threading.Event)

    def start(self) -> None:
        self._start()
        threading.Thread(target=self._keep_alive, daemon=True, name=f"compose-{self.name}").start()

    def _start(self) -> None:
        self.starts.append(time.monotonic())
        with self.log.open("a") as log:
            self.process = subprocess.Popen(
                self.command, cwd=ROOT, env=self.environment, stdout=log, stderr=log, start_new_session=True
            )

    def _keep_alive(self) -> None:
        delay = SECONDS_BETWEEN_STARTS
        while self.process is not None:
            self.process.wait()
            if not self.restart or self.stopped.is_set():
                return
            worked = time.monotonic() - self.starts[-1] > 10
            delay = SECONDS_BETWEEN_STARTS if worked else min(2 * delay, 60)
            if self.stopped.wait(delay):
                return
            self._start()

    def kill(self, number: signal.Signals = signal.SIGKILL) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def is_healthy(self) -> bool:
        """Whether the health check of the file passes."""
        kind, *test = words(self.health["test"])
        command = ["sh", "-c", *test] if kind == "CMD-SHELL" else test
        if command[0] == "python":
            command[0] = sys.executable
        done = subprocess.run(command, env=self.environment, capture_output=True, check=False, timeout=30)
        return done.returncode == 0

    def wait_until_healthy(self) -> None:
        """For at most as long as the health check of the file allows."""
        interval = float(str(self.health["interval"]).removesuffix("s"))
        deadline = time.monotonic() + interval * self.health["retries"]
        while not self.is_healthy():
            assert time.monotonic() < deadline, f"{self.name} is not healthy:\n{self.log.read_text()[-3000:]}"
            time.sleep(0.3)

    def stop(self, seconds: float) -> None:
        self.stopped.set()
        if self.process is None:
            return
        if self.process.poll() is None:
            self.process.terminate()
        try:
            self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)


@dataclass
class Compose:
    """What `docker compose up` would have started."""

    folder: Path
    port: int
    database: Postgres
    services: dict[str, Service]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"


@contextmanager
def compose_up(folder: Path, extra: dict[str, dict[str, str]], port: int = 0) -> Iterator[Compose]:
    """All services, with more environment for some by their names, started in the order of `depends_on`."""
    described = filled_in(yaml.safe_load((DEPLOYMENTS / "compose.yaml").read_text()), SECRETS)["services"]
    dockerfile = (DEPLOYMENTS / "Dockerfile").read_text()
    port, s3 = port or free_port(), free_port_pair()
    image = merged(described["database"]["environment"])
    account = image["POSTGRES_USER"], image["POSTGRES_DB"], image["POSTGRES_PASSWORD"]
    with postgres(folder / "database", 0, *account) as database:
        changes = {
            "database:5432": f"127.0.0.1:{database.port}",
            "store:8333": f"127.0.0.1:{s3}",
            "127.0.0.1:4200": f"127.0.0.1:{port}",
            "--port 4200": f"--port {port}",
            "--host 0.0.0.0": "--host 127.0.0.1",  # the container's loopback is its own
            "/data": str(folder / "data"),
            "-s3.port=8333": f"-s3.port={s3}",
        }

        def here(text: str) -> str:
            for old, new in changes.items():
                text = text.replace(old, new)
            return text

        def service(name: str, start: list[str], of_image: dict[str, str]) -> Service:
            found = described[name]
            (folder / name).mkdir(exist_ok=True)
            inherited = {key: value for key, value in os.environ.items() if not key.startswith(OF_THE_CALLER)}
            given = of_image | merged(found.get("environment", {}))
            home = {"PREFECT_HOME": str(folder / name / "prefect")}  # below the home of the image's user
            environment = inherited | home | {key: here(value) for key, value in given.items()} | extra.get(name, {})
            health = {
                key: [here(word) for word in words(value)] if key == "test" else value
                for key, value in found.get("healthcheck", {}).items()
            }
            command = [*start, *words(here(found["command"]))]
            again = found["restart"] == "unless-stopped"
            return Service(name, command, environment, health, folder / f"{name}.log", again)

        bare = image_environment(dockerfile)
        target = described["worker"]["build"]["target"]
        python = [sys.executable, "-m"]
        worker_start = [*python, *entrypoint(dockerfile, target)[2:]]
        command_line = worker_start.index("daily-train")
        worker_start[command_line : command_line + 1] = [*python, "deployments.cli.entry_point"]
        services = {
            "store": service("store", [_weed(), "-logtostderr=true"], {}),
            "server": service("server", [*python, *described["server"]["entrypoint"][2:]], bare),
            "worker": service("worker", worker_start, bare),
        }
        services["store"].command += _other_ports_of_store()
        (folder / "data").mkdir(exist_ok=True)
        _require_health_of_database(described["database"], database)
        running = Compose(folder, port, database, services)
        try:
            for name in _order(described):
                if name not in services:
                    continue
                for other, condition in described[name].get("depends_on", {}).items():
                    if other in services and condition["condition"] == "service_healthy":
                        services[other].wait_until_healthy()
                services[name].start()
            yield running
        finally:
            for name in reversed(services):
                services[name].stop(90 if name == "worker" else 20 if name == "server" else 0.1)


def _weed() -> str:
    return str(Path(sys.executable).with_name("weed"))


def _other_ports_of_store() -> list[str]:
    """`weed mini` takes more ports of its container than the one that compose.yaml names."""
    ports = {name: free_port_pair() for name in ("master", "volume", "filer", "admin")}
    return [
        "-ip=127.0.0.1",
        "-ip.bind=127.0.0.1",
        *(f"-{name}.port={number}" for name, number in ports.items()),
        "-s3.port.iceberg=0",
        "-s3.port.lance=0",
    ]


def _require_health_of_database(described: dict, database: Postgres) -> None:
    """The health check of the file, against the server that is there."""
    _, test = described["healthcheck"]["test"]
    environment = os.environ | {"PGHOST": "127.0.0.1", "PGPORT": str(database.port)}
    subprocess.run(["sh", "-c", test], env=environment, check=True, capture_output=True)


def _order(described: dict) -> list[str]:
    """Every service after those that it depends on."""
    order: list[str] = []
    while len(order) < len(described):
        ready = [n for n, s in described.items() if n not in order and set(s.get("depends_on", {})) <= set(order)]
        assert ready, "services depend on each other"
        order += ready
    return order
