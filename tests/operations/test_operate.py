"""Operating it: one real server and worker started by `daily-train up`, a bucket, and people who are told.

The tests of this file share them and go in order: what one leaves in the store, the next finds done.
"""

import json
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import boto3
import httpx
import pytest
import yaml
from prefect import flow
from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_URL, temporary_settings

from deployments.access import AUTH_FILE
from deployments.cli.notify import NotifyError, apprise_url
from deployments.cli.up import UpError, deployments_yaml
from tasks.runtime.events import emit_run_finished
from tasks.runtime.liveness import DID_NOT_ANSWER
from tests.operations.live import ROOT, SECRETS, Up, wait_for

SHORT, LONG = 20_480, 40_960_000  # tokens: seconds, and longer than any test
FIRST = {"tokens": SHORT}


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
    assert daily["work_queue_name"] == "gpu"
    path = f"/deployments/{daily['id']}/create_flow_run"
    refused = up.api.post(path, json={"parameters": {"preset": "no-such"}})
    assert refused.status_code == 409 and "no-such" in refused.text  # before anything starts

    run = up.start(**FIRST)
    state = up.ended(run)
    assert state["type"] == "COMPLETED", (state, up.lines(run))
    found = up.api.post("/artifacts/filter", json={"flow_runs": {"id": {"any_": [run]}}}).json()
    artifacts = {artifact["key"]: artifact for artifact in found}
    assert {
        "documents",
        "tokenizer",
        "shards",
        "benchmarks",
        "contamination",
        "training",
        "loss",
        "scores",
        "report",
        "score-table",
        "leaderboard",
        "training-progress",
    } <= set(artifacts)
    assert artifacts["training-progress"]["data"] == 100
    assert "| arc_easy" in artifacts["report"]["data"]
    for key in ("loss", "score-table", "report"):
        assert "](data:image/png;base64," in artifacts[key]["data"]

    told = up.message("smoke finished", f"/runs/flow-run/{run}")
    assert "bits per byte" in told and "arc_easy acc" in told

    # A second machine: nothing in its cache, the same bucket.
    command = [sys.executable, "-m", "deployments.cli.commands", "run", "--preset", "smoke", "--store", up.store]
    for name, value in {"items_per_suite": 4, "suites": '["arc_easy"]'}.items():
        command += ["--set", f"evaluation.{name}={value}"]
    command += ["--set", f"train.tokens={SHORT}", "--cache", str(tmp_path / "elsewhere")]
    elsewhere = {**up.environment, "PREFECT_API_URL": f"{up.url}/api"}
    done = subprocess.run(command, cwd=ROOT, env=elsewhere, capture_output=True, text=True, check=False)
    assert "8 of 8 were skipped" in done.stdout, done.stdout + done.stderr
    shown = httpx.get(f"{up.url}/live/data", headers=up.headers, timeout=60).json()
    steps = [found["curve"]["step"]["step"] for found in shown if (found["curve"] or {}).get("phase") == "finished"]
    assert steps[:2] == [10, 10], "the curve of the training, also where that was skipped"


def test_overlapping_runs_queue_and_a_cancelled_one_saves_and_resumes(up: Up):
    first, second = up.start(tokens=LONG), up.start(tokens=LONG)
    up.in_training(first)
    assert up.state(second)["type"] == "SCHEDULED"
    wait_for(lambda: any(event["event"] == "checkpoint" for event in up.events()))
    assert "](data:image/png;base64," in wait_for(lambda: up.artifact(first, "loss-so-far"))["data"]
    up.cancel(first)
    names = wait_for(lambda: "interrupted" in (seen := [event["event"] for event in up.events()]) and seen)
    assert up.ended(first)["type"] == "CANCELLED"
    loss = up.artifact(first, "loss-so-far")
    assert loss is not None and loss["data"].startswith(f"Step {up.events()[names.index('interrupted')]['step']:,} of ")
    place = names.index("interrupted")  # what follows is the queued run, whose turn has come
    saved, end = up.events()[place - 1 : place + 1]
    assert (saved["event"], end["event"]) == ("checkpoint", "interrupted") and saved["step"] == end["step"] > 0

    up.in_training(second)  # its turn has come; the same training, so it goes on where the first stopped
    assert f"resumed at step {saved['step']}" in up.lines(second)

    # The process of the run is killed: the worker reports it at once, the trainer saves and ends by itself.
    trainers = up.processes("model.train")
    assert trainers
    up.kill("prefect.engine", second)
    state = up.ended(second)
    assert state["type"] == "CRASHED" and "SIGKILL" in state["message"]
    wait_for(lambda: not any(Path(f"/proc/{number}").exists() for number in trainers))
    assert up.events()[-1]["event"] == "interrupted"
    assert "SIGKILL" in up.message("crashed", second)


def test_a_run_survives_its_server_and_its_worker_and_can_still_be_cancelled(up: Up):
    run = up.start(tokens=LONG)
    up.in_training(run)
    up.kill("deployments.server")
    step = up.events()[-1]["step"]
    wait_for(lambda: up.state(run)["type"] == "UNKNOWN")
    up.kill("prefect worker start")
    wait_for(lambda: up.state(run)["type"] == "RUNNING")  # `up` has started the server again
    assert wait_for(lambda: [e for e in up.events() if e["event"] == "checkpoint" and e["step"] > step + 20])
    progress = up.progress(run)
    wait_for(lambda: up.progress(run) > progress)

    crashed = {"type": "CRASHED", "name": "Crashed", "message": f"{DID_NOT_ANSWER} for 90 s"}  # for want of heartbeats
    up.api.post(f"/flow_runs/{run}/set_state", json={"state": crashed, "force": True}).raise_for_status()
    wait_for(lambda: up.state(run)["type"] == "RUNNING")
    up.cancel(run)
    state = up.ended(run)
    assert (state["type"], state["message"]) == ("CANCELLED", "The run had lost its worker and stopped itself.")
    wait_for(lambda: not up.processes("model.train"))
    assert up.events()[-1]["event"] == "interrupted"
    wait_for(lambda: not up.processes("prefect.engine", run))
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
        emit_run_finished(report, "s3://…/report.md")

    with temporary_settings({PREFECT_API_URL: f"{up.url}/api", PREFECT_API_AUTH_STRING: up.auth_string}):
        tell()
    told = up.message("smoke regressed")
    assert "arc_easy acc: -2.10 points (95 % -3.20 to -1.00, p 0.0002, 2,376 items) against yesterday" in told


def test_a_run_that_died_with_its_worker_is_shown_as_crashed(up: Up, lost: float):
    state = up.ended(up.lost_run)
    assert state["type"] == "CRASHED" and "did not answer" in state["message"]
    assert up.processes("prefect worker start")


def test_after_a_power_cut_the_queue_moves_and_of_four_nights_one_is_executed(up: Up, record_property: Callable):
    daily = up.deployment("daily")
    preparing = {"preset": "smoke", "execution": {"store": str(up.folder / "cut")}}
    cancelled = up.create("prepare-data", preparing)
    queue = "/work_pools/daily-train/queues/gpu"
    up.api.patch(queue, json={"is_paused": True}).raise_for_status()
    taken, waiting = up.start(**FIRST), up.start(**FIRST)
    soon = datetime.now(UTC) + timedelta(seconds=20)
    four = {"rrule": f"DTSTART:{soon:%Y%m%dT%H%M%SZ}\nRRULE:FREQ=SECONDLY;INTERVAL=3;COUNT=4"}
    often = {"schedule": four, "active": True, "parameters": up.parameters(**FIRST)}
    up.api.post(f"/deployments/{daily['id']}/schedules", json=[often]).raise_for_status()

    def nights() -> list[dict[str, Any]]:
        due = {
            "after_": (soon - timedelta(seconds=1)).isoformat(),
            "before_": (soon + timedelta(seconds=11)).isoformat(),
        }
        chosen = {"deployment_id": {"any_": [daily["id"]]}, "expected_start_time": due}
        body = {"flow_runs": chosen, "sort": "EXPECTED_START_TIME_ASC"}
        return up.api.post("/flow_runs/filter", json=body).raise_for_status().json()

    wait_for(lambda: len(nights()) == 4)
    wait_for(lambda: up.state(cancelled)["type"] == "RUNNING")
    up.api.patch(queue, json={"is_paused": False}).raise_for_status()
    wait_for(lambda: up.state(taken)["name"] == "Submitting")
    up.cut_power(cancelling=cancelled)
    time.sleep(max(0.0, (soon - datetime.now(UTC)).total_seconds() + 10))  # all four are due
    up.start_up()
    began = time.monotonic()
    state = up.ended(taken)
    assert state["type"] == "CRASHED" and state["message"].startswith(DID_NOT_ANSWER)
    state = up.ended(cancelled)
    assert (state["type"], state["message"]) == ("CANCELLED", "No process executes the run any more.")
    wait_for(lambda: up.state(waiting)["type"] != "SCHEDULED", seconds=60)
    record_property("seconds until the queue moved", time.monotonic() - began)
    assert up.ended(waiting)["type"] == "COMPLETED"  # a run by hand is never skipped

    *_, newest = nights()
    assert up.ended(newest["id"])["type"] == "COMPLETED"
    skipped = nights()[:3]
    assert [run["state"]["name"] for run in skipped] == ["Skipped"] * 3
    assert all(run["state"]["type"] == "CANCELLED" and run["name"].endswith(" skipped") for run in skipped)


def test_no_secret_is_written_anywhere(up: Up, s3_environment: dict[str, str]):
    secrets = [*SECRETS.values(), s3_environment["AWS_SECRET_ACCESS_KEY"], up.auth_string]
    objects = [content for contents in _objects(up).values() for content in contents]
    files = [path.read_bytes() for path in up.folder.rglob("*") if path.is_file() and path.name != AUTH_FILE]
    assert any(b"SQLite format 3" in content for content in files) and len(objects) > 20
    for content in [*objects, *files]:
        for secret in secrets:
            assert secret.encode() not in content


def test_nobody_outside_is_asked_for_anything_but_data(up: Up):
    asked = (up.folder / "outside").read_text().splitlines()
    assert any(" pip download" in line for line in asked), "the record would hold it"
    assert {line for line in asked if " pip download" not in line and not line.startswith("huggingface.co ")} == set()


def _objects(up: Up) -> dict[str, list[bytes]]:
    """Everything in the bucket, by the last part of its name."""
    client = boto3.client(
        "s3",
        endpoint_url=up.environment["AWS_ENDPOINT_URL_S3"],
        region_name="us-east-1",
        aws_access_key_id=up.environment["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=up.environment["AWS_SECRET_ACCESS_KEY"],
    )
    found: dict[str, list[bytes]] = {}
    bucket, _, prefix = up.store.removeprefix("s3://").partition("/")
    for entry in client.list_objects_v2(Bucket=bucket, Prefix=prefix)["Contents"]:
        content = client.get_object(Bucket=bucket, Key=entry["Key"])["Body"].read()
        found.setdefault(entry["Key"].rsplit("/", 1)[-1], []).append(content)
    return found


def test_the_scheduled_deployment_pulls_main_where_a_repository_is_given():
    made = yaml.safe_load(deployments_yaml("git@host:a/b.git", ["prepare-ahead"], "30 23"))["deployments"]
    described = {found["name"]: found for found in made}
    night, ahead = described["daily"], described["prepare-ahead"]
    [step] = night["pull"]
    assert [(schedule["cron"], schedule["active"]) for schedule in night["schedules"]] == [("0 3 * * *", True)]
    assert [(schedule["cron"], schedule["active"]) for schedule in ahead["schedules"]] == [("30 23 * * *", False)]
    # the same code and settings, so that the keys agree; a folder of its own, where no pull changes a run's code
    assert (ahead["pull"], ahead["parameters"]) == (night["pull"], night["parameters"])
    folders = [found["work_pool"]["job_variables"]["working_dir"] for found in (night, ahead, described["by-hand"])]
    assert len(set(folders)) == 3 and ahead["work_pool"]["work_queue_name"] == "data"
    assert step == {"prefect.deployments.steps.git_clone": {"repository": "git@host:a/b.git", "branch": "main"}}
    assert "pull" not in described["by-hand"]
    with pytest.raises(UpError, match="must hold no credentials"):
        deployments_yaml("https://token123@host/a/b.git", [], "0 1")


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
