"""What does a client see while the server is started again in mid-run? `python -m benchmarks.pipeline.postgres_restarts
[--restarts 20] [--database postgres|sqlite]`

The services of deployments/compose.yaml are started from packages (tests/compose.py); a run of the preset `smoke`,
whose steps are slowed down, trains; and the server is ended again and again, by SIGKILL and SIGTERM in turns, each time
after the run was seen to go on. The same with the server on SQLite, for comparison. On PostgreSQL afterwards

* PostgreSQL itself is restarted in mid-run, once as `pg_ctl restart` does and once away for a while;
* the worker's container is killed in mid-run while another run waits: how long until the queue moves again.

Counted are the longest time in which a question to the API was not answered, the longest time in which neither
progress nor log of the run moved (they do so every 5 s at best), the longest time between two events of the training,
and every answer 500 or 503 that the server gave to anybody. At the end every stage has the digest of a run that nothing
happened to.
"""

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx

from benchmarks.goals import print_goal
from benchmarks.pipeline.kills import digests
from deployments.access import AUTH_STRING_VARIABLE, basic_credentials
from eval.reporting.markdown import markdown_table
from tasks.store.backends import open_store
from tests.compose import SECRETS, Compose, compose_up
from tests.lingering import SITE
from tests.operations.live import ROOT, SECONDS_BETWEEN, STATES_AT_END

LONGEST_STAND_STILL = 15.0
LONGEST_QUEUE = 60.0
TOKENS_PER_STEP = 2048
SLOW_FROM = 40  # the first step that is slowed down
SECONDS_PER_STEP = 1.0
STEPS_PER_RESTART = 20
SECONDS = 600.0
"""The longest that anything may take."""


@dataclass
class Watch:
    """Asks the server for a run again and again, in threads, until it is left."""

    url: str
    run: str
    headers: dict[str, str]
    cache: Path
    answered: list[float] = field(default_factory=list)
    moved: list[float] = field(default_factory=list)
    stepped: list[float] = field(default_factory=list)
    state: dict[str, Any] = field(default_factory=dict)
    stopped: threading.Event = field(default_factory=threading.Event)
    threads: list[threading.Thread] = field(default_factory=list)
    seen: tuple[Any, ...] = ()

    def __enter__(self) -> "Watch":
        for look in (self._look_at_state, self._look_at_progress):
            self.threads.append(threading.Thread(target=self._ask, args=(look,), daemon=True))
        self.threads.append(threading.Thread(target=self._look_at_training, daemon=True))
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stopped.set()
        for thread in self.threads:
            thread.join(SECONDS)

    def _ask(self, look: Callable[[httpx.Client], None]) -> None:
        while not self.stopped.wait(0.2):
            with (
                suppress(httpx.HTTPError),
                httpx.Client(base_url=f"{self.url}/api", headers=self.headers, timeout=SECONDS) as client,
            ):
                while not self.stopped.wait(0.2):
                    look(client)

    def _look_at_state(self, client: httpx.Client) -> None:
        answer = client.get(f"/flow_runs/{self.run}")
        if answer.status_code == 200:
            self.answered.append(time.monotonic())
            self.state = answer.json()["state"]

    def _look_at_progress(self, client: httpx.Client) -> None:
        of_run = {"flow_runs": {"id": {"any_": [self.run]}}, "limit": 1}
        progress = client.post(
            "/artifacts/filter", json={**of_run, "artifacts": {"key": {"any_": ["training-progress"]}}}
        )
        logs = {"logs": {"flow_run_id": {"any_": [self.run]}}, "limit": 1, "sort": "TIMESTAMP_DESC"}
        lines = client.post("/logs/filter", json=logs)
        if progress.status_code == lines.status_code == 200:
            seen = (*(found["data"] for found in progress.json()), *(found["id"] for found in lines.json()))
            if seen != self.seen:
                self.seen = seen
                self.moved.append(time.monotonic())

    def _look_at_training(self) -> None:
        size = 0
        while not self.stopped.wait(0.1):
            if (now := len(metrics(self.cache))) != size:
                size = now
                self.stepped.append(time.monotonic())

    @property
    def ended(self) -> bool:
        return self.state.get("type") in STATES_AT_END

    def wait(self, condition: Callable[[], object], what: str) -> None:
        deadline = time.monotonic() + SECONDS
        while not condition():
            if time.monotonic() > deadline:
                raise SystemExit(f"not within {SECONDS:.0f} s: {what}; the run is {self.state}")
            time.sleep(0.1)


def longest_gap(moments: list[float], begin: float, end: float) -> float:
    """Seconds between two moments of a time."""
    inside = [begin, *(moment for moment in moments if begin < moment < end), end]
    return max(later - earlier for earlier, later in pairwise(inside))


def metrics(cache: Path) -> str:
    """The metrics file of the training in progress; empty without one."""
    with suppress(OSError):
        return "".join(file.read_text() for file in (cache / "work" / "train").glob("*/run/metrics.jsonl"))
    return ""


@dataclass
class Running:
    """The services, and what a person does with them."""

    compose: Compose
    folder: Path
    store: str
    headers: dict[str, str]

    def api(self) -> httpx.Client:
        return httpx.Client(base_url=f"{self.compose.url}/api", headers=self.headers, timeout=SECONDS)

    def deployment(self, name: str) -> dict[str, Any]:
        with self.api() as client:
            found = client.post("/deployments/filter", json={}).raise_for_status().json()
        return next(entry for entry in found if entry["name"] == name)

    def schedule_of(self, name: str) -> dict[str, Any]:
        [schedule] = self.deployment(name)["schedules"]
        return schedule

    def pause(self, schedule: dict[str, Any]) -> None:
        """What the switch of the UI does."""
        address = f"/deployments/{schedule['deployment_id']}/schedules/{schedule['id']}"
        with self.api() as client:
            client.patch(address, json={"active": False}).raise_for_status()

    def create(self, tokens: int) -> str:
        """The id of a new run."""
        deployment = self.deployment("by-hand")["id"]
        with self.api() as client:
            parameters = parameters_of(self.store, str(self.cache), tokens)
            answer = client.post(f"/deployments/{deployment}/create_flow_run", json={"parameters": parameters})
            return answer.raise_for_status().json()["id"]

    def wait_until_up(self) -> None:
        deadline = time.monotonic() + SECONDS
        worker = self.compose.services["worker"]
        while "is up: " not in worker.log.read_text():
            if time.monotonic() > deadline:
                raise SystemExit(worker.log.read_text()[-3000:])
            time.sleep(0.2)

    @property
    def cache(self) -> Path:
        return self.folder / "cache"

    def watch(self, run: str) -> Watch:
        return Watch(self.compose.url, run, self.headers, self.cache)

    def in_training(self) -> bool:
        """Whether a training has come to the steps that are slowed down."""
        return f'"checkpoint", "step": {SLOW_FROM}' in metrics(self.cache)

    def bad_answers(self) -> dict[str, int]:
        """How often the server answered anybody 500 or 503, by its log, and all its answers."""
        statuses = re.findall(r'HTTP/1\.1" (\d{3})', self.compose.services["server"].log.read_text())
        return {"503": statuses.count("503"), "500": statuses.count("500"), "all": len(statuses)}


def parameters_of(store: str, cache: str, tokens: int) -> dict[str, Any]:
    return {
        "preset": "smoke",
        "train": {
            "tokens": tokens,
            "log_every_steps": 1,
            "checkpoint_every_steps": SLOW_FROM,
            "validation_every_steps": SLOW_FROM,
        },
        "evaluation": {"items_per_suite": 4, "suites": ["arc_easy"]},
        "execution": {"store": store, "cache": cache, "workers": 1, "device": "cpu"},
    }


@contextmanager
def running(folder: Path, database: str) -> Iterator[Running]:
    """The services of compose.yaml with the server on `postgres` or `sqlite`, and a trainer that takes its time."""
    site = folder / "site"
    site.mkdir(parents=True)
    (site / "sitecustomize.py").write_text(SITE.format(seconds=SECONDS_PER_STEP))
    path = {"PYTHONPATH": f"{site}{os.pathsep}{ROOT}", "OMP_NUM_THREADS": "1", **SECONDS_BETWEEN}
    server = {**path, "PREFECT_SERVER_LOGGING_LEVEL": "INFO"}  # uvicorn logs every answer
    if database == "sqlite":
        server["PREFECT_SERVER_DATABASE_CONNECTION_URL"] = f"sqlite+aiosqlite:///{folder}/prefect.db"
    with compose_up(folder, {"server": server, "worker": path}) as compose:
        headers = {"Authorization": f"Basic {basic_credentials(SECRETS[AUTH_STRING_VARIABLE])}"}
        found = Running(compose, folder, compose.services["worker"].environment["DAILY_TRAIN_STORE"], headers)
        found.wait_until_up()
        yield found


def restart_server(services: Running, restarts: int, tokens: int) -> dict[str, Any]:
    """A run in whose middle the server is ended so often; what was seen."""
    run = services.create(tokens)
    with services.watch(run) as watch:
        watch.wait(lambda: watch.ended or services.in_training(), "the training starts")
        began = time.monotonic()
        before = services.bad_answers()
        done = 0
        while done < restarts and not watch.ended:
            seconds = restart_once(services, watch, signal.SIGKILL if done % 2 else signal.SIGTERM)
            done += 1
            print(f"restart {done}: an answer after {seconds:.1f} s", flush=True)
            time.sleep(2)
        ended = time.monotonic()
        watch.wait(lambda: watch.ended, "the run ends")
    after = services.bad_answers()
    return {
        "restarts": done,
        "silence": longest_gap(watch.answered, began, ended),
        "progress": longest_gap(watch.moved, began, ended),
        "steps": longest_gap(watch.stepped, began, watch.stepped[-1]),
        "bad": {name: after[name] - before[name] for name in after},
        "state": watch.state,
    }


def restart_once(services: Running, watch: Watch, by: signal.Signals) -> float:
    """Seconds from the end of the server to its next answer; returns when the run was seen to go on."""
    server = services.compose.services["server"]
    starts, moment = len(server.starts), time.monotonic()
    server.kill(by)
    watch.wait(lambda: len(server.starts) > starts, "the server is started again")
    watch.wait(lambda: watch.answered[-1] > server.starts[-1], "the server answers")
    seconds = watch.answered[-1] - moment
    watch.wait(lambda: watch.ended or watch.moved[-1] > server.starts[-1], "the run goes on")
    return seconds


def tokens_for(restarts: int) -> int:
    return TOKENS_PER_STEP * (SLOW_FROM + STEPS_PER_RESTART * (restarts + 1))


def restart_database(services: Running, seconds_away: float) -> dict[str, Any]:
    """A run in whose middle PostgreSQL is restarted."""
    run = services.create(tokens_for(2) + int(1 + seconds_away / 10) * TOKENS_PER_STEP)  # each trains anew
    with services.watch(run) as watch:
        watch.wait(lambda: watch.ended or services.in_training(), "the training starts")
        began, before = time.monotonic(), services.bad_answers()
        services.compose.database.restart(seconds_away)
        back = time.monotonic()
        watch.wait(lambda: watch.answered[-1] > back, "the server answers")
        watch.wait(lambda: watch.ended or watch.moved[-1] > back, "the run goes on")
        time.sleep(2)
        ended = time.monotonic()
        watch.wait(lambda: watch.ended, "the run ends")
    after = services.bad_answers()
    return {
        "away": back - began,
        "silence": longest_gap(watch.answered, began, ended),
        "progress": longest_gap(watch.moved, began, ended),
        "bad": {name: after[name] - before[name] for name in after},
        "state": watch.state,
    }


def crash_worker(services: Running) -> dict[str, Any]:
    """Kill all that the worker's container holds, in mid-run; seconds from the next start of `up` until a run that
    waited behind the dead one runs."""
    first = services.create(tokens_for(5))
    worker = services.compose.services["worker"]
    with services.watch(first) as watch:
        watch.wait(lambda: watch.ended or services.in_training(), "the training starts")
        second = services.create(tokens_for(0))
        starts = len(worker.starts)
        kill_family(worker.process.pid if worker.process else 0)
        watch.wait(lambda: len(worker.starts) > starts, "`up` is started again")
        with services.watch(second) as waiting:
            waiting.wait(lambda: waiting.state.get("type") in ("RUNNING", *STATES_AT_END), "the queue moves")
            moved = time.monotonic() - worker.starts[-1]
            waiting.wait(lambda: waiting.ended, "the second run ends")
    return {"seconds": moved, "first": watch.state, "second": waiting.state}


def kill_family(process: int) -> None:
    """SIGKILL to a process and all below it, as the end of a container."""
    found = subprocess.run(["pgrep", "-P", str(process)], capture_output=True, text=True, check=False).stdout.split()
    with suppress(ProcessLookupError):
        os.kill(process, signal.SIGKILL)
    for child in found:
        kill_family(int(child))


def undisturbed_digests(folder: Path, tokens: int) -> dict[str, object]:
    """Of the same run in a terminal, to which nothing happens."""
    store = str(folder / "store")
    given = parameters_of(store, str(folder / "cache"), tokens)
    command = [sys.executable, "-m", "deployments.cli.commands", "run", "--preset", "smoke"]
    for section in ("train", "evaluation"):
        for name, value in given[section].items():
            command += ["--set", f"{section}.{name}={json.dumps(value)}"]
    for name, value in given["execution"].items():
        command += [f"--{name}", str(value)]
    folder.mkdir(parents=True, exist_ok=True)
    environment = os.environ | {"PREFECT_HOME": str(folder / "home"), "OMP_NUM_THREADS": "1"}
    environment.pop("PREFECT_API_URL", None)
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stdout[-2000:] + done.stderr[-2000:])
    return digests(open_store(store))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--restarts", type=int, default=20, help="ends of the server (default: %(default)s)")
    parser.add_argument("--database", choices=("postgres", "sqlite", "both"), default="both", help="of the server")
    parser.add_argument("--folder", type=Path, help="for stores, caches and logs; default: a temporary one")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # and end what was started
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.folder or Path(temporary)
        tokens = tokens_for(arguments.restarts)
        expected = undisturbed_digests(folder / "undisturbed", tokens)
        seen = {}
        for database in ("postgres", "sqlite"):
            if arguments.database not in (database, "both"):
                continue
            with running(folder / database, database) as services:
                seen[database] = restart_server(services, arguments.restarts, tokens)
                environment = services.compose.services["worker"].environment
                os.environ |= {name: value for name, value in environment.items() if name.startswith("AWS_")}
                seen[database]["same"] = digests(open_store(services.store)) == expected
                print_restarts(seen)
                if database == "postgres":
                    away = [restart_database(services, seconds) for seconds in (0.0, 30.0)]
                    crash = crash_worker(services)
    print_restarts(seen)
    if "postgres" in seen:
        print_database_restarts(away)
        print(
            f"`up` again after its container was killed: the next run began {crash['seconds']:.1f} s after its start.\n"
        )
        print_goals(seen["postgres"], crash["seconds"])


def print_restarts(seen: dict[str, dict[str, Any]]) -> None:
    head = ["database", "restarts", "no answer, s", "progress stood still, s", "training stood still, s"]
    head += ["answers 503", "answers 500", "answers", "the run", "same digests"]
    rows = [
        [
            name,
            found["restarts"],
            *(f"{found[key]:.1f}" for key in ("silence", "progress", "steps")),
            *(found["bad"][key] for key in ("503", "500", "all")),
            found["state"]["name"],
            "yes" if found["same"] else "no",
        ]
        for name, found in seen.items()
    ]
    print(markdown_table(head, rows) + "\n")


def print_database_restarts(seen: list[dict[str, Any]]) -> None:
    head = ["PostgreSQL away, s", "no answer, s", "progress stood still, s", "answers 503", "answers 500", "the run"]
    rows = [
        [
            *(f"{found[key]:.1f}" for key in ("away", "silence", "progress")),
            found["bad"]["503"],
            found["bad"]["500"],
            found["state"]["name"],
        ]
        for found in seen
    ]
    print(markdown_table(head, rows) + "\n")


def print_goals(found: dict[str, Any], queue: float) -> None:
    still = max(found["silence"], found["progress"])
    print_goal("restarts in mid-run", found["restarts"], 20)
    print_goal("longest stand-still, s", still, LONGEST_STAND_STILL, at_most=True)
    print_goal("answers 503 and 500", found["bad"]["503"] + found["bad"]["500"], 0, at_most=True)
    print_goal("runs that did not complete", int(found["state"]["type"] != "COMPLETED"), 0, at_most=True)
    print_goal("runs with other digests", int(not found["same"]), 0, at_most=True)
    print_goal("the queue after a crash of `up`, s", queue, LONGEST_QUEUE, at_most=True)


if __name__ == "__main__":
    main()
