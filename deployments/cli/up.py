"""`daily-train up`: Prefect server, worker and deployments on this machine's loopback, in one command.

What already runs is used as it is. A part that ends is started again; Ctrl-C stops what was started here. The server
keeps its state in SQLite below PREFECT_HOME, or in PostgreSQL (deployments/cli/postgres.py).
It answers its own pages and those who know its authentication string (deployments/server.py, deployments/access.py).
"""

import errno
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlsplit

import yaml
from httpx import HTTPStatusError, codes
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.exceptions import ObjectAlreadyExists
from prefect.workers.process import ProcessWorker

from deployments import access
from deployments.cli.defaults import NOTIFY
from deployments.cli.locks import Lock
from deployments.cli.notify import SECONDS_BETWEEN_HEARTBEATS, notify, watch_for_dead_runs
from deployments.cli.postgres import SECRETS_OF_DATABASE, Postgres, postgres_of
from deployments.cli.queue_watch import QueueWatch, missed_setting
from model.errors import DailyTrainError
from tasks.runtime.child import child_command
from tasks.runtime.pages import PAGES
from tasks.store import provenance

POOL = "daily-train"
QUEUES = {"gpu": "Trains or scores: one run at a time.", "data": "Prepares data, beside a training: one run at a time."}
DEPLOYMENTS = Path(__file__).resolve().parents[1] / "prefect.yaml"
REPOSITORY, PREPARE_AT = "DAILY_TRAIN_REPOSITORY", "DAILY_TRAIN_PREPARE_AT"
STORE = "DAILY_TRAIN_STORE"
PREPARED_AT = "01:00"
SECONDS_TO_START = 300  # on a machine whose cores are all in use
SECONDS_TO_STOP = 60  # a worker kills its runs after 30; their trainers go on saving (tasks/runtime/supervise.py)
RESTARTS, SECONDS_OF_WORK = 5, 60.0
"""A part is started again without end as long as it works for a minute in between; one that does not, so often."""
SETTINGS = {
    "DO_NOT_TRACK": "1",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
    "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": str(SECONDS_BETWEEN_HEARTBEATS),
    "PREFECT_WORKER_QUERY_SECONDS": "5",
    "PREFECT_SERVER_SERVICES_SCHEDULER_MIN_RUNS": "8",  # nights: what was not scheduled before the server went is lost
}


class UpError(DailyTrainError):
    """Server or worker cannot be started; the message says what to look at."""


@dataclass
class RestartedProcess:
    """A process that is started again when it ends, unless it ends right after each of several starts in a row."""

    name: str
    arguments: list[str]
    environment: dict[str, str]
    lock: IO | None = None
    umask: int = -1
    process: subprocess.Popen | None = None
    started: list[float] = field(default_factory=list)
    since: datetime | None = None

    def start(self) -> None:
        if self.started and time.monotonic() - self.started[-1] > SECONDS_OF_WORK:
            self.started.clear()
        if len(self.started) > RESTARTS:
            raise UpError(
                f"the {self.name} ended {len(self.started)} times in a row within {SECONDS_OF_WORK:.0f} s, last with "
                f"exit code {self.exit_code}; its last lines say why"
            )
        self.started.append(time.monotonic())
        self.since = datetime.now(UTC)
        self.process = subprocess.Popen(
            child_command(*self.arguments),
            env=self.environment,
            cwd=provenance.PROJECT,
            start_new_session=True,
            umask=self.umask,
            stdin=subprocess.DEVNULL,
            pass_fds=(self.lock.fileno(),) if self.lock else (),
        )

    @property
    def exit_code(self) -> int | None:
        """None: it runs, or was never started."""
        return self.process.returncode if self.process else None

    def ended(self) -> bool:
        return self.process is not None and self.process.poll() is not None

    def stop(self) -> None:
        if self.process is None:
            return
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGTERM)
        try:
            self.process.wait(SECONDS_TO_STOP)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)


def up(port: int, postgres: str | None = None) -> None:
    """Start everything, print the address, and stay until interrupted or until a part ends again and again."""
    database = postgres_of(postgres, port)
    string = access.auth_string()
    access.bypass_proxies()
    url = f"http://127.0.0.1:{port}"
    environment = _environment(url, string)
    missed, prepare_at = missed_setting(), _prepare_setting()
    locks = {name: Lock(name, port) for name in ("up", "server", "worker")}
    first = locks["up"].take_from_ending(SECONDS_TO_STOP) is not None
    owner = locks["worker"].owner()
    of_server = environment | (database.environment if database else {})
    server = RestartedProcess("server", ["deployments.server", "--port", str(port)], of_server, umask=0o077)
    environment = {name: value for name, value in environment.items() if name not in SECRETS_OF_DATABASE}
    work = ["prefect", "worker", "start", "--pool", POOL, "--type", "process", "--name", owner]
    worker = RestartedProcess("worker", work, environment)
    watch = QueueWatch(
        POOL,
        owner,
        missed,
        connected=lambda: access.connected_to_server(port, string),
        worker_since=lambda: worker.since,
    )
    stopped = threading.Event()
    try:
        if first:  # a server whose `up` was killed is ending
            server.lock = locks["server"].take(SECONDS_TO_STOP)
        if first and not access.require_own_server(port, string):
            held = _hold_port(port)  # noqa: F841 (as long as this runs)
            if database:
                database.require_usable()
            server.start()
        elif postgres and database and not database.is_used():
            raise UpError(f"the server on port {port} runs already, with another database; end its `up` first")
        _wait_until_ready(port, string, server)
        if first:
            threading.Thread(target=watch.keep_looking, args=(stopped,), daemon=True).start()
        with access.connected_to_server(port, string):
            _set_up(environment, prepare_at)
        if first:
            watch.look()  # before the worker takes the oldest of several missed nights
            if lock := locks["worker"].take():
                worker.lock = lock
                worker.start()
        _print_address(url, string, first, [server, worker])
        if first:
            _keep_running(port, string, [server, worker], locks["worker"], database)
    finally:
        stopped.set()
        locks["up"].say_ending()
        for part in (worker, server):
            part.stop()


def _print_address(url: str, string: str, first: bool, parts: list[RestartedProcess]) -> None:
    reused = [part.name for part in parts if not part.process]
    note = f" The {' and the '.join(reused)} ran already." if reused else ""
    if first and "worker" in reused:
        note += " That worker is ending, since its `up` was killed; a new one is started then."
    print(
        f"\nThe Daily Train is up: {url}\nLog in, within 15 minutes: {url}/enter#{access.login_ticket(string)}\n"
        f"or at any time with the string of {access.where_auth_string_is()}.{note}"
        f"{' Ctrl-C stops it.' if first else ''}",
        flush=True,
    )


def _keep_running(
    port: int, string: str, parts: list[RestartedProcess], worker_lock: Lock, database: Postgres | None
) -> None:
    """Start again what ends, until interrupted; and a worker when that of an `up` that was killed has ended."""
    server, worker = parts
    while True:
        time.sleep(1)
        for part in parts:
            if part.ended() and (part is server or _server_answers(port, string)):  # a worker needs its server
                print(f"The {part.name} ended with exit code {part.exit_code}; it is started again.")
                if part is server and database:
                    database.wait_until_usable()
                part.start()
        if not worker.process and (held := worker_lock.take()):
            worker.lock = held
            worker.start()


def _environment(url: str, string: str) -> dict[str, str]:
    """Of server, worker and runs."""
    environment = {
        **SETTINGS,
        **os.environ,
        "PREFECT_API_URL": f"{url}/api",
        "PREFECT_API_AUTH_STRING": string,
        access.AUTH_STRING_VARIABLE: string,
        "PREFECT_SERVER_CORS_ALLOWED_ORIGINS": url,
        "DAILY_TRAIN_HOME": str(provenance.PROJECT),
        "DAILY_TRAIN_PRESET": "daily" if provenance.hardware()["gpus"] else "laptop",
        STORE: os.environ.get(STORE, str(provenance.PROJECT / ".daily-train")),
        "DAILY_TRAIN_VERSION": provenance.commit(),
        # where links to runs lead; the first UI is at the address itself
        "PREFECT_UI_URL": os.environ.get("PREFECT_UI_URL", f"{url}/v2"),
        PAGES: url,
    }
    environment.pop(NOTIFY, None)  # runs have no use for it
    return environment


def _hold_port(port: int) -> list[socket.socket]:
    """Take the port until this process ends: also while the server is being started again, no other user can listen
    there for what runs and browsers would send. The server binds it as well (deployments/server.py). Nobody listens on
    ::1, which browsers ask first for `localhost`; what is asked there is refused, and they go to 127.0.0.1."""
    held = []
    for family, host in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")):
        try:
            with socket.socket(family) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind((host, port))
            taken = socket.socket(family)
            taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            taken.bind((host, port))
        except OSError as error:
            if family is socket.AF_INET6 and error.errno in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
                continue  # a machine without IPv6
            raise UpError(f"port {port} of {host} cannot be used ({error.strerror}); choose another --port") from error
        held.append(taken)
    return held


def _set_up(environment: dict[str, str], prepare_at: str) -> None:
    """Work pool, queues, deployments and automations; what is there is brought up to date."""
    with get_client(sync_client=True) as client:
        template = ProcessWorker.get_default_base_job_template()
        with suppress(ObjectAlreadyExists):
            client.create_work_pool(WorkPoolCreate(name=POOL, type="process", base_job_template=template))
        for name, description in QUEUES.items():
            _queue(client, {"name": name, "description": description, "concurrency_limit": 1})
        paused = [
            found.name
            for found in client.read_deployments()
            if found.schedules and not any(s.active for s in found.schedules)
        ]
        watch_for_dead_runs()
        if address := os.environ.get(NOTIFY):
            notify(address)
    file = access.prefect_home() / "daily-train-deployments.yaml"
    file.write_text(deployments_yaml(os.environ.get(REPOSITORY), paused, prepare_at))
    command = [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--all", "--prefect-file", str(file)]
    done = subprocess.run(command, env=environment, cwd=provenance.PROJECT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise UpError(f"`{' '.join(command[1:])}` failed:\n{(done.stdout + done.stderr)[-2000:]}")


def _queue(client: SyncPrefectClient, values: dict[str, Any]) -> None:
    place = {"work_pool_name": POOL}
    try:
        client.request("POST", "/work_pools/{work_pool_name}/queues", json=values, path_params=place)
    except HTTPStatusError as error:
        if error.response.status_code != codes.CONFLICT:
            raise
        place["name"] = values["name"]
        client.request("PATCH", "/work_pools/{work_pool_name}/queues/{name}", json=values, path_params=place)


def _prepare_setting() -> str:
    """When data is prepared ahead of the night, as the minute and the hour of a cron expression. Raises UpError."""
    given = os.environ.get(PREPARE_AT) or PREPARED_AT
    if not re.fullmatch(r"([01]?\d|2[0-3]):[0-5]\d", given):
        raise UpError(f"{PREPARE_AT} is {given!r}; expected an hour of UTC such as {PREPARED_AT!r}")
    hour, _, minute = given.partition(":")
    return f"{int(minute)} {int(hour)}"


def deployments_yaml(repository: str | None, paused: list[str], prepare_at: str) -> str:
    """prefect.yaml, with what it cannot say: a scheduled deployment pulls `main` of the repository where one is given,
    a schedule that was paused in the UI stays so, and data is prepared at a minute and an hour of choice."""
    described = yaml.safe_load(DEPLOYMENTS.read_text())
    for deployment in described["deployments"]:
        if "schedules" not in deployment:
            continue
        for schedule in deployment["schedules"]:
            schedule["active"] = deployment["name"] not in paused
            if schedule["slug"] == "ahead-of-the-night":
                schedule["cron"] = f"{prepare_at} * * *"
        if repository:
            if urlsplit(repository).password or urlsplit(repository).username not in (None, "git"):
                raise UpError(
                    f"{REPOSITORY} must hold no credentials: the server would store them; git's own "
                    "credential helper or an SSH key will do"
                )
            clone = {"repository": repository, "branch": "main"}
            deployment["pull"] = [{"prefect.deployments.steps.git_clone": clone}]
            # of its own: a pull would change the code of a run that is under way in the other queue
            checkouts = provenance.PROJECT / ".daily-train" / "checkouts" / deployment["name"]
            checkouts.mkdir(parents=True, exist_ok=True)
            deployment["work_pool"] = {**deployment["work_pool"], "job_variables": {"working_dir": str(checkouts)}}
            cache = provenance.PROJECT / ".daily-train" / "cache"  # with one cache nothing is downloaded twice
            if "://" in os.environ.get(STORE, ""):
                deployment["parameters"]["execution"].setdefault("cache", str(cache))
    return yaml.safe_dump(described, sort_keys=False)


def _server_answers(port: int, string: str) -> bool:
    """Whether our server is there; one that is too busy to say so is not."""
    try:
        return access.require_own_server(port, string)
    except access.AccessError:
        return False


def _wait_until_ready(port: int, string: str, server: RestartedProcess) -> None:
    deadline = time.monotonic() + SECONDS_TO_START
    while not _server_answers(port, string):
        if server.ended():
            raise UpError(f"the server ended with exit code {server.exit_code}; is the port {port} in use?")
        if time.monotonic() > deadline:
            raise UpError(f"the server does not answer on port {port} after {SECONDS_TO_START} s")
        time.sleep(0.5)
