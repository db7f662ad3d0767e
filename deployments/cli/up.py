"""`daily-train up`: Prefect server, worker and deployments on this machine's loopback, in one command.

What already runs is used as it is. A part that ends is started again; Ctrl-C stops what was started here. The server
keeps its state in SQLite below PREFECT_HOME, or in the database that PREFECT_SERVER_DATABASE_CONNECTION_URL names.
It answers its own pages and those who know its authentication string (deployments/server.py, deployments/access.py).
"""

import errno
import fcntl
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass, field
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
from deployments.cli.notify import SECONDS_BETWEEN_HEARTBEATS, notify, watch_for_dead_runs
from model.errors import DailyTrainError
from tasks.runtime.child import child_command
from tasks.store import provenance

PORT = 4200
POOL = "daily-train"
QUEUES = {"gpu": "Trains or scores: one run at a time.", "data": "Prepares data, beside a training: one run at a time."}
DEPLOYMENTS = Path(__file__).resolve().parents[1] / "prefect.yaml"
REPOSITORY, NOTIFY = "DAILY_TRAIN_REPOSITORY", "DAILY_TRAIN_NOTIFY"
SECONDS_TO_START = 300  # on a machine whose cores are all in use
SECONDS_TO_STOP = 60  # a worker kills its runs after 30; their trainers go on saving (tasks/runtime/supervise.py)
RESTARTS, RESTART_SECONDS = 5, 3600.0
SETTINGS = {
    "DO_NOT_TRACK": "1",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
    "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": str(SECONDS_BETWEEN_HEARTBEATS),
    "PREFECT_WORKER_QUERY_SECONDS": "5",
}


class UpError(DailyTrainError):
    """Server or worker cannot be started; the message says what to look at."""


@dataclass
class RestartedProcess:
    """A process that is started again when it ends, a few times an hour at most."""

    name: str
    arguments: list[str]
    environment: dict[str, str]
    lock: IO | None = None
    umask: int = -1
    process: subprocess.Popen | None = None
    started: list[float] = field(default_factory=list)

    def start(self) -> None:
        recent = [moment for moment in self.started if time.monotonic() - moment < RESTART_SECONDS]
        if len(recent) > RESTARTS:
            raise UpError(
                f"the {self.name} ended {len(recent)} times within an hour, last with exit code {self.exit_code}; "
                "its last lines say why"
            )
        self.started = [*recent, time.monotonic()]
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


def up(port: int) -> None:
    """Start everything, print the address, and stay until interrupted or until a part ends again and again."""
    string = access.auth_string()
    access.bypass_proxies()
    url = f"http://127.0.0.1:{port}"
    api = f"{url}/api"
    environment = {
        **SETTINGS,
        **os.environ,
        "PREFECT_API_URL": api,
        "PREFECT_API_AUTH_STRING": string,
        access.AUTH_STRING_VARIABLE: string,
        "PREFECT_SERVER_CORS_ALLOWED_ORIGINS": url,
        "DAILY_TRAIN_HOME": str(provenance.PROJECT),
        "DAILY_TRAIN_PRESET": "daily" if provenance.hardware()["gpus"] else "laptop",
        "DAILY_TRAIN_STORE": os.environ.get("DAILY_TRAIN_STORE", str(provenance.PROJECT / ".daily-train")),
        "DAILY_TRAIN_VERSION": provenance.commit(),
        "PREFECT_UI_URL": f"{url}/v2",  # where links to runs lead; the first UI is at the address itself
    }
    environment.pop(NOTIFY, None)  # runs have no use for it
    server = RestartedProcess("server", ["deployments.server", "--port", str(port)], environment, umask=0o077)
    work = ["prefect", "worker", "start", "--pool", POOL, "--type", "process"]
    worker = RestartedProcess("worker", work, environment, _worker_lock(port))
    try:
        if not access.require_own_server(port, string):
            held = _hold_port(port)  # noqa: F841 (as long as this runs)
            server.start()
            _wait_until_ready(port, string, server)
        with access.connected_to_server(port, string):
            _set_up(api, environment)
        if worker.lock:
            worker.start()
        parts = [part for part in (server, worker) if part.process]
        reused = [part.name for part in (server, worker) if not part.process]
        note = f" The {' and the '.join(reused)} ran already." if reused else ""
        print(
            f"\nThe Daily Train is up: {url}\nLog in, within 15 minutes: {url}/enter#{access.login_ticket(string)}\n"
            f"or at any time with the string of {access.where_auth_string_is()}.{note}"
            f"{' Ctrl-C stops it.' if parts else ''}",
            flush=True,
        )
        while parts:
            time.sleep(1)
            for part in parts:
                if part.ended() and (part is server or _server_answers(port, string)):  # a worker needs its server
                    print(f"The {part.name} ended with exit code {part.exit_code}; it is started again.")
                    part.start()
    finally:
        for part in (worker, server):
            part.stop()


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


def _worker_lock(port: int) -> IO | None:
    """A lock that the worker of this server holds as long as it lives; None when one does."""
    file = (access.prefect_home() / f"daily-train-worker-{port}.lock").open("w")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return None
    return file


def _set_up(api: str, environment: dict[str, str]) -> None:
    """Work pool, queues, deployments and automations; what is there is brought up to date."""
    with get_client(sync_client=True) as client:
        template = ProcessWorker.get_default_base_job_template()
        with suppress(ObjectAlreadyExists):
            client.create_work_pool(WorkPoolCreate(name=POOL, type="process", base_job_template=template))
        for name, description in QUEUES.items():
            _queue(client, {"name": name, "description": description, "concurrency_limit": 1})
        paused = [found.name for found in client.read_deployments() if not any(s.active for s in found.schedules)]
        watch_for_dead_runs()
        if address := os.environ.get(NOTIFY):
            notify(address)
    file = access.prefect_home() / "daily-train-deployments.yaml"
    file.write_text(deployments_yaml(os.environ.get(REPOSITORY), paused))
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


def deployments_yaml(repository: str | None, paused: list[str]) -> str:
    """prefect.yaml, with two things that it cannot say: a scheduled deployment pulls `main` of the repository where
    one is given, and a schedule that was paused in the UI stays so."""
    described = yaml.safe_load(DEPLOYMENTS.read_text())
    for deployment in described["deployments"]:
        if "schedules" not in deployment:
            continue
        for schedule in deployment["schedules"]:
            schedule["active"] = deployment["name"] not in paused
        if repository:
            if urlsplit(repository).password or urlsplit(repository).username not in (None, "git"):
                raise UpError(
                    f"{REPOSITORY} must hold no credentials: the server would store them; git's own "
                    "credential helper or an SSH key will do"
                )
            clone = {"repository": repository, "branch": "main"}
            deployment["pull"] = [{"prefect.deployments.steps.git_clone": clone}]
            checkouts = provenance.PROJECT / ".daily-train" / "checkouts"
            checkouts.mkdir(parents=True, exist_ok=True)
            deployment["work_pool"]["job_variables"] = {"working_dir": str(checkouts)}
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
