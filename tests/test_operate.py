"""Operating it: one real server and worker started by `daily-train up`, a bucket, and people who are told.

The tests of this file share them and go in order: what one leaves in the store, the next finds done.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import boto3
import httpx
import pytest
import yaml
from prefect import flow
from prefect.settings import PREFECT_API_URL, temporary_settings

from deployments.notify import NotifyError, apprise_url
from deployments.up import UpError, deployments_yaml
from tasks.announce import announce

ROOT = Path(__file__).resolve().parents[1]
SECONDS = 600
pytestmark = pytest.mark.server
SECRETS = {"HF_TOKEN": "hf_QkZpT3JTZWNyZXQ", "DAILY_TRAIN_NOTIFY": "https-token-9f2c7d41"}
STATES_AT_END = ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")
SHORT, LONG = 20_480, 40_960_000  # tokens: seconds, and longer than any test
FIRST = {"tokens": SHORT}


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
    process: subprocess.Popen
    messages: list[dict[str, str]]
    lost_run: str = ""

    @property
    def api(self) -> httpx.Client:
        return httpx.Client(base_url=f"{self.url}/api", timeout=120, transport=Patient())

    @property
    def log(self) -> str:
        return (self.folder / "log").read_text()

    @property
    def cache(self) -> Path:
        return self.folder / "cache"

    def deployment(self, name: str) -> dict[str, Any]:
        found = self.api.post("/deployments/filter", json={}).json()
        return next(deployment for deployment in found if deployment["name"] == name)

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

    def lines(self, run: str) -> list[str]:
        body = {"logs": {"flow_run_id": {"any_": [run]}}, "limit": 200, "sort": "TIMESTAMP_DESC"}
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

    def processes(self, words: str, run: str = "") -> list[int]:
        """Processes of this server with words in their command, and of one run where given."""
        found = subprocess.run(["pgrep", "-f", words], capture_output=True, text=True, check=False).stdout.split()
        kept = []
        for number in found:
            try:
                environment = Path(f"/proc/{number}/environ").read_bytes()
            except (FileNotFoundError, ProcessLookupError):
                continue
            if f"{self.url}/api".encode() in environment and run.encode() in environment:
                kept.append(int(number))
        return kept

    def kill(self, words: str, run: str = "") -> None:
        numbers = self.processes(words, run)
        assert numbers, words
        for number in numbers:
            os.kill(number, signal.SIGKILL)

    def events(self) -> list[dict[str, Any]]:
        """What the training in progress has recorded."""
        [file] = (self.cache / "work" / "train").glob("*/run/metrics.jsonl")
        return [json.loads(line) for line in file.read_text().splitlines()]

    def message(self, words: str) -> dict[str, str]:
        return wait_for(lambda: next((found for found in self.messages if words in found["title"]), None), 90)


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory, s3_environment: dict[str, str], s3_url: str) -> Iterator[Up]:
    """Server, worker and deployments, with credentials in the environment and a receiver of messages."""
    folder = tmp_path_factory.mktemp("up")
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
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    hook = f"http://127.0.0.1:{receiver.server_port}/{SECRETS['DAILY_TRAIN_NOTIFY']}"
    environment = {
        **os.environ, **s3_environment, **SECRETS, "DAILY_TRAIN_NOTIFY": hook, "PREFECT_HOME": str(folder / "home"),
        "PREFECT_WORKER_QUERY_SECONDS": "1",
    }  # fmt: skip
    environment.pop("PREFECT_API_URL", None)
    command = [sys.executable, "-m", "deployments.cli", "up", "--port", str(port)]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=log, stderr=log, start_new_session=True
        )
    running = Up(f"http://127.0.0.1:{port}", f"{s3_url}/operate", folder, command, environment, process, messages)
    try:
        wait_for(lambda: process.poll() is not None or "is up: http://127.0.0.1" in running.log)
        assert process.poll() is None, running.log
        yield running
    finally:
        process.terminate()
        code = process.wait(90)
        receiver.shutdown()
    assert code == 130, "Ctrl-C or SIGTERM is an orderly end"
    assert not running.processes("prefect"), "nothing of it is left"


@pytest.fixture(scope="module")
def lost(up: Up) -> float:
    """When a run and its worker died together, so that nobody could tell the server; the run's id is in the log."""
    run = up.create("prepare-data", {"preset": "smoke", "execution": {"store": str(up.folder / "lost")}})
    wait_for(lambda: up.state(run)["type"] == "RUNNING")
    up.kill("prefect worker start")
    up.kill("prefect.engine", run)
    up.lost_run = run
    return time.monotonic()


def test_a_run_by_hand_fills_a_bucket_and_its_pages(up: Up, lost: float, tmp_path: Path):
    daily = up.deployment("daily")
    assert daily["schedules"][0]["schedule"]["cron"] == "0 3 * * *" and daily["work_queue_name"] == "gpu"
    path = f"/deployments/{daily['id']}/create_flow_run"
    refused = up.api.post(path, json={"parameters": {"preset": "no-such"}})
    assert refused.status_code == 409 and "no-such" in refused.text  # before anything starts

    run = up.start(**FIRST)
    state = up.ended(run)
    assert state["type"] == "COMPLETED", (state, up.lines(run))
    found = up.api.post("/artifacts/filter", json={"flow_runs": {"id": {"any_": [run]}}}).json()
    artifacts = {artifact["key"]: artifact for artifact in found}
    assert {"documents", "tokenizer", "shards", "benchmarks", "contamination", "training", "loss", "scores", "report",
            "score-table", "leaderboard", "training-progress"} <= set(artifacts)  # fmt: skip
    assert artifacts["training-progress"]["data"] == 100
    assert "| arc_easy" in artifacts["report"]["data"]
    for key in ("loss", "score-table", "report", "contamination"):
        assert "](data:image/png;base64," in artifacts[key]["data"]

    told = up.message("smoke finished")["message"]
    assert "bits per byte" in told and "arc_easy acc" in told and f"/runs/flow-run/{run}" in told

    # A second machine: nothing in its cache, the same bucket.
    command = [sys.executable, "-m", "deployments.cli", "run", "--preset", "smoke", "--store", up.store]
    for name, value in {"items_per_suite": 4, "suites": '["arc_easy"]'}.items():
        command += ["--set", f"evaluation.{name}={value}"]
    command += ["--set", f"train.tokens={SHORT}", "--cache", str(tmp_path / "elsewhere")]
    elsewhere = {**up.environment, "PREFECT_API_URL": f"{up.url}/api"}
    done = subprocess.run(command, cwd=ROOT, env=elsewhere, capture_output=True, text=True, check=False)
    assert "8 of 8 were skipped" in done.stdout, done.stdout + done.stderr


def test_overlapping_runs_queue_and_a_cancelled_one_saves_and_resumes(up: Up):
    first, second = up.start(tokens=LONG), up.start(tokens=LONG)
    up.in_training(first)
    assert up.state(second)["type"] == "SCHEDULED"
    wait_for(lambda: any(event["event"] == "checkpoint" for event in up.events()))
    assert "](data:image/png;base64," in wait_for(lambda: up.artifact(first, "loss-so-far"))["data"]
    up.cancel(first)
    names = wait_for(lambda: "interrupted" in (seen := [event["event"] for event in up.events()]) and seen, 30)
    assert up.ended(first)["type"] == "CANCELLED"
    place = names.index("interrupted")  # what follows is the queued run, whose turn has come
    saved, end = up.events()[place - 1 : place + 1]
    assert (saved["event"], end["event"]) == ("checkpoint", "interrupted") and saved["step"] == end["step"] > 0

    up.in_training(second)  # its turn has come; the same training, so it goes on where the first stopped
    assert f"resume {{'step': {saved['step']}}}" in up.lines(second)

    # The process of the run is killed: the worker reports it at once, the trainer saves and ends by itself.
    trainers = up.processes("model.train")
    assert trainers
    up.kill("prefect.engine", second)
    state = up.ended(second)
    assert state["type"] == "CRASHED" and "SIGKILL" in state["message"]
    wait_for(lambda: not any(Path(f"/proc/{number}").exists() for number in trainers))
    assert up.events()[-1]["event"] == "interrupted"
    assert "SIGKILL" in up.message("crashed")["message"]


def test_a_run_survives_its_server_and_its_worker_and_can_still_be_cancelled(up: Up):
    run = up.start(tokens=LONG)
    up.in_training(run)
    up.kill("prefect server start")
    step = up.events()[-1]["step"]
    wait_for(lambda: up.state(run)["type"] == "UNKNOWN", 60)
    up.kill("prefect worker start")
    wait_for(lambda: up.state(run)["type"] == "RUNNING")  # `up` has started the server again
    assert wait_for(lambda: [e for e in up.events() if e["event"] == "checkpoint" and e["step"] > step + 20])
    progress = up.artifact(run, "training-progress")["data"]
    wait_for(lambda: up.artifact(run, "training-progress")["data"] > progress, 90)
    up.cancel(run)
    state = up.ended(run)
    assert (state["type"], state["message"]) == ("CANCELLED", "The run had lost its worker and stopped itself.")
    wait_for(lambda: not up.processes("model.train"), 30)
    assert up.events()[-1]["event"] == "interrupted"
    wait_for(lambda: not up.processes("prefect.engine", run), 30)
    assert up.state(run)["type"] == "CANCELLED"  # nothing that ends later has called it a crash


def test_the_schedule_fires_and_a_pause_holds(up: Up):
    daily = up.deployment("daily")
    schedules = f"/deployments/{daily['id']}/schedules"
    soon = (datetime.now(UTC) + timedelta(seconds=15)).isoformat()
    schedule = {"interval": 60, "anchor_date": soon}
    often = {"schedule": schedule, "active": True, "parameters": up.parameters(**FIRST)}
    [made] = up.api.post(schedules, json=[often]).json()

    def runs(*types: str) -> list[dict[str, Any]]:
        chosen = {"state": {"type": {"any_": types}}, "deployment_id": {"any_": [daily["id"]]}}
        body = {"flow_runs": chosen, "sort": "EXPECTED_START_TIME_ASC", "limit": 3}
        return up.api.post("/flow_runs/filter", json=body).json()

    fired = wait_for(lambda: runs("RUNNING", "COMPLETED"))[0]
    assert fired["auto_scheduled"] and fired["created_by"]["type"] == "SCHEDULE"
    assert up.ended(fired["id"])["type"] == "COMPLETED"
    preset, commit = up.api.get(f"/flow_runs/{fired['id']}").json()["name"].split()[2:]
    assert preset == "smoke" and daily["version"].startswith(commit)
    for schedule in (made, daily["schedules"][0]):
        up.api.patch(f"{schedules}/{schedule['id']}", json={"active": False})
    wait_for(lambda: not runs("SCHEDULED", "PENDING", "RUNNING"))

    # The same command while it is up: nothing is started twice, and the pause holds.
    again = subprocess.run(up.command, cwd=ROOT, env=up.environment, capture_output=True, text=True, timeout=120)
    assert again.returncode == 0 and "The server and the worker ran already." in again.stdout, again.stderr
    assert len(up.processes("prefect worker start")) == 1
    assert [schedule["active"] for schedule in up.deployment("daily")["schedules"]] == [False]
    assert not runs("SCHEDULED", "PENDING", "RUNNING")


def test_a_regressed_run_is_told_with_its_statistics(up: Up):
    report = json.loads(_objects(up)["report.json"][0])
    assert report["regressed"] == []
    row = {"suite": "arc_easy", "metric": "acc", "n": 2376, "difference": -0.021, "interval": [-0.032, -0.01]}
    against = {"roles": ["yesterday"], "run": "a" * 64, "commit": "b" * 40, "rows": [row | {"p": 2e-4}]}
    report["against"] = [against | {"regressed": ["arc_easy acc"]}]

    @flow(name="regressed")
    def tell() -> None:
        announce(report, "s3://…/report.md")

    with temporary_settings({PREFECT_API_URL: f"{up.url}/api"}):
        tell()
    told = up.message("smoke regressed")["message"]
    assert "arc_easy acc: -2.10 points (95 % -3.20 to -1.00, p 0.0002, 2,376 items) against yesterday" in told


def test_a_run_that_died_with_its_worker_is_shown_as_crashed(up: Up, lost: float):
    state = up.ended(up.lost_run)
    assert state["type"] == "CRASHED" and "did not answer" in state["message"]
    assert up.processes("prefect worker start")


def test_no_secret_is_written_anywhere(up: Up, s3_environment: dict[str, str]):
    secrets = [*SECRETS.values(), s3_environment["AWS_SECRET_ACCESS_KEY"]]
    objects = [content for contents in _objects(up).values() for content in contents]
    files = [path.read_bytes() for path in up.folder.rglob("*") if path.is_file()]
    assert any(b"SQLite format 3" in content for content in files) and len(objects) > 20
    for content in [*objects, *files]:
        for secret in secrets:
            assert secret.encode() not in content


def _objects(up: Up) -> dict[str, list[bytes]]:
    """Everything in the bucket, by the last part of its name."""
    client = boto3.client(
        "s3", endpoint_url=up.environment["AWS_ENDPOINT_URL_S3"], region_name="us-east-1",
        aws_access_key_id=up.environment["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=up.environment["AWS_SECRET_ACCESS_KEY"],
    )  # fmt: skip
    found: dict[str, list[bytes]] = {}
    bucket, _, prefix = up.store.removeprefix("s3://").partition("/")
    for entry in client.list_objects_v2(Bucket=bucket, Prefix=prefix)["Contents"]:
        content = client.get_object(Bucket=bucket, Key=entry["Key"])["Body"].read()
        found.setdefault(entry["Key"].rsplit("/", 1)[-1], []).append(content)
    return found


def test_the_scheduled_deployment_pulls_main_where_a_repository_is_given():
    made = yaml.safe_load(deployments_yaml("git@host:a/b.git", []))["deployments"]
    described = {found["name"]: found for found in made}
    [step] = described["daily"]["pull"]
    assert step == {"prefect.deployments.steps.git_clone": {"repository": "git@host:a/b.git", "branch": "main"}}
    assert "pull" not in described["by-hand"]
    with pytest.raises(UpError, match="must hold no credentials"):
        deployments_yaml("https://token123@host/a/b.git", [])


@pytest.mark.parametrize(
    ("address", "service"),
    [
        ("https://discord.com/api/webhooks/1234567890/abcdefghijklmnop", "https"),
        ("mailto://someone:word@example.org", "mailto"),
        ("https://example.org/hook?token=1", "jsons"),
    ],
)
def test_an_address_says_which_service_it_is(address: str, service: str):
    assert apprise_url(address).startswith(f"{service}://")


def test_an_address_nobody_knows_is_refused_without_repeating_it():
    with pytest.raises(NotifyError, match="no service is known") as refused:
        apprise_url("carrier-pigeon://secret")
    assert "secret" not in str(refused.value)
