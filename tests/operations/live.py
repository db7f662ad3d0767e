"""`daily-train up` on a port of its own, with a receiver of messages, as a person sees it from outside."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx

from deployments.access import AUTH_FILE, AUTH_STRING_VARIABLE, basic_credentials
from tests.lingering import SITE
from tests.processes import family

ROOT = Path(__file__).resolve().parents[2]
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
QUIET = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--disable-3d-apis",
]  # drawing the graph of a run in software takes a whole core
SECONDS = 300  # the longest that anything may take on a loaded machine
SECRETS = {"HF_TOKEN": "hf_QkZpT3JTZWNyZXQ", "DAILY_TRAIN_NOTIFY": "https-token-9f2c7d41"}
STATES_AT_END = ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")
SECONDS_BETWEEN = {
    "PREFECT_WORKER_QUERY_SECONDS": "1",
    "PREFECT_SERVER_SERVICES_SCHEDULER_LOOP_SECONDS": "5",
}
"""How often worker and scheduler look for work: oftener than the defaults, so that tests wait less."""


OUTSIDE = """
import os
def heard(event, arguments):
    if event == "socket.getaddrinfo":
        host = arguments[0]
    elif event in ("socket.connect", "socket.sendto") and isinstance(arguments[1], tuple):
        host = arguments[1][0]
    else:
        return
    if host and str(host) not in ("127.0.0.1", "localhost", "::1"):
        with open({file!r}, "a") as file:
            print(host, *sys.orig_argv[1:6], file=file)
sys.addaudithook(heard)
"""
"""For sitecustomize.py as well: every process writes down which other machines it asks for."""


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def wait_for(what: Callable[[], Any], seconds: float = SECONDS, every: float = 0.3) -> Any:
    """The first true answer."""
    deadline = time.monotonic() + seconds
    while not (answer := what()):
        assert time.monotonic() < deadline, f"not within {seconds} s"
        time.sleep(every)
    return answer


class Patient(httpx.HTTPTransport):
    """A busy server with SQLite, which takes one writer at a time, answers 503: try again."""

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        while (answer := super().handle_request(request)).status_code == 503:
            answer.close()
            time.sleep(0.5)
        return answer


@dataclass
class Up:
    """A running `daily-train up`, seen from outside."""

    url: str
    store: str
    folder: Path
    command: list[str]
    environment: dict[str, str]
    messages: list[dict[str, str]]
    process: subprocess.Popen = field(init=False)
    lost_run: str = ""

    @property
    def api(self) -> httpx.Client:
        return httpx.Client(base_url=f"{self.url}/api", timeout=SECONDS, transport=Patient(), headers=self.headers)

    @property
    def auth_string(self) -> str:
        return (self.folder / "home" / AUTH_FILE).read_text().strip()

    @property
    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Basic {basic_credentials(self.auth_string)}"}

    @property
    def log(self) -> str:
        return (self.folder / "log").read_text()

    @property
    def cache(self) -> Path:
        return self.folder / "cache"

    def deployment(self, name: str) -> dict[str, Any]:
        found = self.api.post("/deployments/filter", json={}).json()
        return next(deployment for deployment in found if deployment["name"] == name)

    def put_off_the_nightly_runs(self) -> None:
        """By half a day: they would hold the queues for minutes if they fired amid the tests."""
        for name in ("daily", "prepare-ahead"):
            deployment = self.deployment(name)
            [schedule] = deployment["schedules"]
            cron = f"0 {(datetime.now(UTC) + timedelta(hours=12)).hour} * * *"
            later = {"schedule": {"cron": cron, "timezone": "UTC"}}
            path = f"/deployments/{deployment['id']}/schedules/{schedule['id']}"
            self.api.patch(path, json=later).raise_for_status()

    def parameters(self, **train: Any) -> dict[str, Any]:
        return {
            "preset": "smoke",
            "train": train,
            "evaluation": {"items_per_suite": 4, "suites": ["arc_easy"]},
            "execution": {"store": self.store, "cache": str(self.cache), "workers": 1},
        }

    def start(self, **train: Any) -> str:
        return self.create("by-hand", self.parameters(**train))

    def create(self, name: str, parameters: dict[str, Any]) -> str:
        path = f"/deployments/{self.deployment(name)['id']}/create_flow_run"
        answer = self.api.post(path, json={"parameters": parameters})
        assert answer.status_code == 201, answer.text
        return answer.json()["id"]

    def state(self, run: str) -> dict[str, Any]:
        try:
            return self.api.get(f"/flow_runs/{run}").json()["state"]
        except httpx.TransportError:  # the server is being restarted
            return {"type": "UNKNOWN"}

    def ended(self, run: str) -> dict[str, Any]:
        return wait_for(lambda: (state := self.state(run))["type"] in STATES_AT_END and state)

    def lines(self, run: str | None = None) -> list[str]:
        """The last log lines of one run, or of all; the newest first."""
        chosen = {"flow_run_id": {"any_": [run]}} if run else {}
        body = {"logs": chosen, "limit": 200, "sort": "TIMESTAMP_DESC"}
        return [line["message"] for line in self.api.post("/logs/filter", json=body).json()]

    def in_training(self, run: str) -> None:
        """Wait until the run trains and has logged a step."""

        def trains() -> bool:
            assert self.state(run)["type"] not in STATES_AT_END, self.lines(run)
            return any(line.startswith("step ") for line in self.lines(run))

        wait_for(trains)

    def cancel(self, run: str) -> None:
        """What the button of the UI does."""
        state = {"type": "CANCELLING", "name": "Cancelling"}
        assert self.api.post(f"/flow_runs/{run}/set_state", json={"state": state}).json()["status"] == "ACCEPT"

    def artifact(self, run: str, key: str) -> dict[str, Any] | None:
        body = {"flow_runs": {"id": {"any_": [run]}}, "artifacts": {"key": {"any_": [key]}}}
        return next(iter(self.api.post("/artifacts/filter", json=body).json()), None)

    def progress(self, run: str) -> float:
        """The percentage of the progress bar of its training."""
        artifact = self.artifact(run, "training-progress")
        assert artifact is not None, run
        return artifact["data"]

    def processes(self, words: str, run: str = "") -> list[int]:
        """Processes of this server with words in their command, and of one run where given."""
        found = subprocess.run(["pgrep", "-f", words], capture_output=True, text=True, check=False).stdout.split()
        kept = []
        for number in found:
            try:
                environment = Path(f"/proc/{number}/environ").read_bytes()
            except OSError:  # ended meanwhile, or of another user
                continue
            if f"{self.url}/api".encode() in environment and run.encode() in environment:
                kept.append(int(number))
        return kept

    def cut_power(self, *, cancelling: str) -> None:
        """End everything at once, so that nobody tells the server anything: `up`, its parts and all runs. One of them
        has been cancelled a moment before."""
        everything = {*family(self.process.pid), *self.processes("")}
        server = set(self.processes("deployments.server"))
        self._signal(everything - server, signal.SIGSTOP)
        self.cancel(cancelling)
        self._signal(everything, signal.SIGSTOP)
        self._signal(everything, signal.SIGKILL)
        self.process.wait()

    @staticmethod
    def _signal(processes: Iterable[int], number: signal.Signals) -> None:
        for process in processes:
            with suppress(ProcessLookupError):
                os.kill(process, number)

    def start_up(self) -> None:
        """The command, for the first time or after its end; back when it says that it is up."""
        before = self.log.count("is up: http")
        with (self.folder / "log").open("a") as log:
            self.process = subprocess.Popen(
                self.command, cwd=ROOT, env=self.environment, stdout=log, stderr=log, start_new_session=True
            )
        wait_for(lambda: self.process.poll() is not None or self.log.count("is up: http") > before)
        assert self.process.poll() is None, self.log

    def kill(self, words: str, run: str = "") -> None:
        numbers = self.processes(words, run)
        assert numbers, words
        for number in numbers:
            os.kill(number, signal.SIGKILL)

    def events(self) -> list[dict[str, Any]]:
        """What the training in progress has recorded."""
        [file] = (self.cache / "work" / "train").glob("*/run/metrics.jsonl")
        return [json.loads(line) for line in file.read_text().splitlines()]

    def message(self, words: str, run: str = "") -> str:
        """The body of the first message with words in its title, about one run where given."""
        return wait_for(
            lambda: next(
                (found["message"] for found in self.messages if words in found["title"] and run in found["message"]),
                None,
            )
        )


@contextmanager
def daily_train_up(folder: Path, credentials: dict[str, str], store: str) -> Iterator[Up]:
    """Server, worker and deployments, with credentials in the environment and a receiver of messages."""
    messages: list[dict[str, str]] = []

    class Receiver(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            messages.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    receiver = ThreadingHTTPServer(("127.0.0.1", 0), Receiver)
    threading.Thread(target=receiver.serve_forever, daemon=True).start()
    port = free_port()
    hook = f"http://127.0.0.1:{receiver.server_port}/{SECRETS['DAILY_TRAIN_NOTIFY']}"
    (folder / "site").mkdir()
    site = SITE.format(seconds=0.2) + OUTSIDE.format(file=str(folder / "outside"))
    (folder / "site" / "sitecustomize.py").write_text(site)
    environment = {
        **os.environ,
        **credentials,
        **SECRETS,
        **SECONDS_BETWEEN,
        "DAILY_TRAIN_NOTIFY": hook,
        "PREFECT_HOME": str(folder / "home"),
        "PYTHONPATH": f"{folder / 'site'}{os.pathsep}{ROOT}",
    }
    for name in ("PREFECT_API_URL", "PREFECT_API_AUTH_STRING", AUTH_STRING_VARIABLE):
        environment.pop(name, None)
    command = [sys.executable, "-m", "deployments.cli.commands", "up", "--port", str(port)]
    (folder / "log").touch()
    running = Up(f"http://127.0.0.1:{port}", store, folder, command, environment, messages)
    try:
        running.start_up()
        running.put_off_the_nightly_runs()
        yield running
    finally:
        running.process.terminate()
        code = running.process.wait(90)
        receiver.shutdown()
    assert code == 128 + signal.SIGTERM, "an orderly end"
    assert not running.processes("prefect"), "nothing of it is left"
