"""`daily-train up`: Prefect server, worker and deployments on this machine's loopback, in one command.

What already runs is used as it is. A part that ends is started again; Ctrl-C stops what was started here. The server
keeps its state in SQLite below PREFECT_HOME, or in the database that PREFECT_SERVER_DATABASE_CONNECTION_URL names.
"""

import fcntl
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
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
from prefect.settings import PREFECT_API_URL, PREFECT_HOME, temporary_settings
from prefect.workers.process import ProcessWorker

from deployments.notify import SECONDS_BETWEEN_HEARTBEATS, notify, watch_over_runs
from model.errors import DailyTrainError
from tasks import provenance
from tasks.child import child_command

PORT = 4200
POOL = "daily-train"
QUEUES = {"gpu": "Trains or scores: one run at a time.", "data": "Prepares data, beside a training: one run at a time."}
DEPLOYMENTS = Path(__file__).with_name("prefect.yaml")
REPOSITORY, NOTIFY = "DAILY_TRAIN_REPOSITORY", "DAILY_TRAIN_NOTIFY"
SECONDS_TO_START = 300  # on a machine whose cores are all in use
SECONDS_TO_STOP = 60  # a worker kills its runs after 30; their trainers go on saving (tasks/supervise.py)
RESTARTS, RESTART_SECONDS = 5, 3600.0
SETTINGS = {
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": str(SECONDS_BETWEEN_HEARTBEATS),
    "PREFECT_WORKER_QUERY_SECONDS": "5",
}


class UpError(DailyTrainError):
    """Server or worker cannot be started; the message says what to look at."""


@dataclass
class Part:
    """A process that is started again when it ends, a few times an hour at most."""

    name: str
    arguments: list[str]
    environment: dict[str, str]
    lock: IO | None = None
    process: subprocess.Popen | None = None
    started: list[float] = field(default_factory=list)

    def start(self) -> None:
        recent = [moment for moment in self.started if time.monotonic() - moment < RESTART_SECONDS]
        if len(recent) > RESTARTS:
            code = self.process and self.process.returncode
            raise UpError(f"the {self.name} ended {len(recent)} times within an hour, last with exit code {code}; "
                          "its last lines say why")
        self.started = [*recent, time.monotonic()]
        self.process = subprocess.Popen(
            child_command("prefect", *self.arguments),
            env=self.environment,
            cwd=provenance.PROJECT,
            start_new_session=True,
            stdin=subprocess.DEVNULL,
            pass_fds=(self.lock.fileno(),) if self.lock else (),
        )

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
    url = f"http://127.0.0.1:{port}"
    api = f"{url}/api"
    environment = {
        **SETTINGS,
        **os.environ,
        "PREFECT_API_URL": api,
        "DAILY_TRAIN_HOME": str(provenance.PROJECT),
        "DAILY_TRAIN_PRESET": "daily" if provenance.hardware()["gpus"] else "laptop",
        "DAILY_TRAIN_STORE": os.environ.get("DAILY_TRAIN_STORE", str(provenance.PROJECT / ".daily-train")),
        "DAILY_TRAIN_VERSION": provenance.commit(),
        "PREFECT_UI_URL": url,
    }
    server = Part("server", ["server", "start", "--host", "127.0.0.1", "--port", str(port)], environment)
    worker = Part("worker", ["worker", "start", "--pool", POOL, "--type", "process"], environment, _lock(port))
    try:
        if not _healthy(api):
            server.start()
            _wait_until_healthy(api, server)
        _set_up(api, environment)
        if worker.lock:
            worker.start()
        parts = [part for part in (server, worker) if part.process]
        reused = [part.name for part in (server, worker) if not part.process]
        told = f" The {' and the '.join(reused)} ran already." if reused else ""
        print(f"\nThe Daily Train is up: {url}\n{told}{'Ctrl-C stops it.' if parts else ''}", flush=True)
        while parts:
            time.sleep(1)
            for part in parts:
                if part.ended() and (part is server or _healthy(api)):  # a worker cannot start without its server
                    print(f"The {part.name} ended with exit code {part.process.returncode}; it is started again.")
                    part.start()
    finally:
        for part in (worker, server):
            part.stop()


def _lock(port: int) -> IO | None:
    """A lock that the worker of this server holds as long as it lives; None when one does."""
    home = Path(PREFECT_HOME.value())
    home.mkdir(parents=True, exist_ok=True)
    file = (home / f"daily-train-worker-{port}.lock").open("w")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return None
    return file


def _set_up(api: str, environment: dict[str, str]) -> None:
    """Work pool, queues, deployments and automations; what is there is brought up to date."""
    with temporary_settings({PREFECT_API_URL: api}), get_client(sync_client=True) as client:
        template = ProcessWorker.get_default_base_job_template()
        with suppress(ObjectAlreadyExists):
            client.create_work_pool(WorkPoolCreate(name=POOL, type="process", base_job_template=template))
        for name, told in QUEUES.items():
            _queue(client, {"name": name, "description": told, "concurrency_limit": 1})
        paused = [found.name for found in client.read_deployments() if not any(s.active for s in found.schedules)]
        watch_over_runs()
        if address := os.environ.get(NOTIFY):
            notify(address, api)
    file = Path(PREFECT_HOME.value()) / "daily-train-deployments.yaml"
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
                raise UpError(f"{REPOSITORY} must hold no credentials: the server would store them; git's own "
                              "credential helper or an SSH key will do")
            clone = {"repository": repository, "branch": "main"}
            deployment["pull"] = [{"prefect.deployments.steps.git_clone": clone}]
            checkouts = provenance.PROJECT / ".daily-train" / "checkouts"
            checkouts.mkdir(parents=True, exist_ok=True)
            deployment["work_pool"]["job_variables"] = {"working_dir": str(checkouts)}
    return yaml.safe_dump(described, sort_keys=False)


def _healthy(api: str) -> bool:
    try:
        with urllib.request.urlopen(f"{api}/health", timeout=5) as answer:
            return answer.status == 200
    except (urllib.error.URLError, TimeoutError, ConnectionError):
        return False


def _wait_until_healthy(api: str, server: Part) -> None:
    deadline = time.monotonic() + SECONDS_TO_START
    while not _healthy(api):
        if server.ended():
            code = server.process.returncode
            raise UpError(f"the server ended with exit code {code}; is the port of {api} in use?")
        if time.monotonic() > deadline:
            raise UpError(f"the server does not answer on {api}/health after {SECONDS_TO_START} s")
        time.sleep(0.5)
