"""Which runs `up` ends: those that nothing executes, and never one that lives."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
from prefect.client.schemas.objects import CreatedBy, FlowRun, StateType
from prefect.states import State

from deployments.cli.locks import Lock
from deployments.cli.queue_watch import (
    MISSED,
    Missed,
    Situation,
    cancel_of,
    crash_of,
    missed_setting,
    skipped_nights,
)
from deployments.cli.run_processes import RunProcess, RunProcesses, find_run_processes
from model.errors import DailyTrainError
from tests.processes import wait_until

NOW = datetime(2026, 11, 27, 8, tzinfo=UTC)
OURS, OTHER = "host 1234", "elsewhere 5678"
DAILY, AHEAD = uuid4(), uuid4()
NIGHTLY = CreatedBy(id=uuid4(), type="SCHEDULE", display_value="nightly")
ATTENDED, ORPHAN = RunProcess(1, "0", attended=True), RunProcess(1, "0", attended=False)


def run_in(state: StateType, seconds: float = 300, worker: str | None = OURS, name: str | None = None) -> FlowRun:
    """A run that a worker has taken and that has been in its state so long."""
    labels: dict[str, Any] = {"prefect.worker.name": worker} if worker else {}
    since = State[Any](type=state, name=name or state.value.capitalize(), timestamp=NOW - timedelta(seconds=seconds))
    return FlowRun(id=uuid4(), flow_id=uuid4(), state=since, state_type=state, labels=labels)


def situation(
    *,
    run: FlowRun | None = None,
    process: RunProcess | None = None,
    saving: bool = False,
    worker_seconds: float | None = None,
    online: frozenset[str] = frozenset(),
) -> Situation:
    """What is known: the process of a run, and since when the worker of this `up` has been there, if it has."""
    executing = {str(run.id): process} if run and process else {}
    processes = RunProcesses(executing, frozenset({str(run.id)} if run and saving else ()))
    since = None if worker_seconds is None else NOW - timedelta(seconds=worker_seconds)
    return Situation(NOW, OURS, since, processes, online)


@pytest.mark.parametrize("state", [StateType.PENDING, StateType.RUNNING])
@pytest.mark.parametrize("process", [ATTENDED, ORPHAN])
@pytest.mark.parametrize("worker", [OURS, OTHER, None])
def test_a_run_whose_process_lives_is_never_crashed(state: StateType, process: RunProcess, worker: str | None):
    run = run_in(state, worker=worker)
    for worker_seconds in (None, 1, 1000):
        assert crash_of(run, situation(run=run, process=process, worker_seconds=worker_seconds)) is None


@pytest.mark.parametrize(
    ("state", "worker", "worker_seconds", "online", "crashed"),
    [
        (StateType.RUNNING, OURS, None, [], True),  # `up` starts
        (StateType.RUNNING, OURS, 10, [OURS], True),  # its worker was started again
        (StateType.RUNNING, OURS, 1000, [OURS, OTHER], True),  # the worker was there all the time, and says nothing
        (StateType.RUNNING, OTHER, None, [], False),  # of another machine: only its heartbeats tell
        (StateType.RUNNING, OTHER, 10, [OTHER], False),
        (StateType.RUNNING, None, None, [], False),
        (StateType.PENDING, OURS, None, [OURS], True),  # taken, and not started
        (StateType.PENDING, OURS, 10, [OURS, OTHER], True),  # by the worker before this one
        (StateType.PENDING, OURS, 1000, [OURS], False),  # the worker that lives is about to start it
        (StateType.PENDING, OTHER, None, [OTHER], False),
        (
            StateType.PENDING,
            OTHER,
            None,
            [],
            False,
        ),  # a job of a cluster may wait for its machine
        (StateType.PENDING, None, None, [], True),  # taken a moment before the worker died; there is no other
        (StateType.PENDING, None, None, [OURS], True),
        (StateType.PENDING, None, None, [OTHER], False),  # who has taken it is not known
        (StateType.PENDING, None, 1000, [OURS], False),
    ],
)
def test_a_run_without_a_process_is_crashed_if_it_was_ours(
    state: StateType, worker: str | None, worker_seconds: float | None, online: list[str], crashed: bool
):
    run = run_in(state, worker=worker)
    mark = crash_of(run, situation(worker_seconds=worker_seconds, online=frozenset(online)))
    assert (mark is not None) == crashed
    assert mark is None or (mark.type, mark.kill) == (StateType.CRASHED, False)


@pytest.mark.parametrize(
    ("seconds", "worker", "process", "saving", "online", "expected"),
    [
        (2, OURS, None, False, [OURS], ""),  # the worker, or the run itself, is about to say so
        (20, OURS, None, False, [OURS], "ended"),
        (20, OURS, None, False, [], "ended"),  # a restart of the machine
        (20, None, None, False, [OURS, OTHER], "ended"),
        (40, OURS, ATTENDED, True, [OURS], ""),  # a worker that lives gives 30 s
        (50, OURS, ATTENDED, True, [OURS], "killed"),
        (2, OURS, ORPHAN, False, [], ""),
        (10, OURS, ORPHAN, False, [], "killed"),  # it downloads, and asks nobody
        (20, OURS, ORPHAN, True, [], ""),  # it trains: it has asked, and saves
        (40, OURS, ORPHAN, True, [], "killed"),  # its training goes on saving
        (1000, OTHER, None, False, [OTHER], ""),  # the other machine's worker lives
        (20, OTHER, None, False, [], ""),
        (50, OTHER, None, False, [], "ended"),
    ],
)
def test_a_cancelled_run_is_ended_within_a_minute(
    seconds: float,
    worker: str | None,
    process: RunProcess | None,
    saving: bool,
    online: list[str],
    expected: str,
):
    run = run_in(StateType.CANCELLING, seconds, worker)
    known = situation(run=run, process=process, saving=saving, worker_seconds=5, online=frozenset(online))
    mark = cancel_of(run, known)
    assert expected == ("" if mark is None else "killed" if mark.kill else "ended")
    assert mark is None or (mark.type, mark.name) == (StateType.CANCELLED, "Cancelled")


def night(days_ago: int, by: CreatedBy | None = NIGHTLY, deployment: UUID = DAILY, **other: Any) -> FlowRun:
    """A run that was due some nights ago and was not executed."""
    values = {
        "id": uuid4(),
        "flow_id": uuid4(),
        "deployment_id": deployment,
        "auto_scheduled": by is not None,
        "created_by": by,
        "expected_start_time": NOW - timedelta(days=days_ago),
        "state_name": "Late",
    }
    return FlowRun.model_validate(values | other)


def test_of_four_missed_nights_the_newest_is_executed():
    nights = [night(ago) for ago in (2, 0, 3, 1)]
    marks = skipped_nights(nights)
    assert set(marks) == {run.id for run in nights if run.expected_start_time != NOW}
    assert {(mark.type, mark.name) for mark in marks.values()} == {(StateType.CANCELLED, "Skipped")}
    assert all("2026-11-27 08:00:00" in mark.message for mark in marks.values())


def test_other_runs_are_not_skipped_and_skip_none():
    slow, often = (CreatedBy(id=uuid4(), type="SCHEDULE", display_value="CronSchedule") for _ in range(2))
    alone = [
        night(5),
        night(9, None),  # by hand
        night(0, None),
        night(8, slow),  # schedules made in the UI, which have no name
        night(7, often),
        night(6, NIGHTLY, AHEAD),
        night(9, run_count=1),  # again, by hand
        night(0, state_name="AwaitingRetry"),
    ]
    assert skipped_nights(alone) == {}
    older = night(9)
    assert set(skipped_nights([*alone, older])) == {older.id}


def test_a_schedule_that_up_has_made_anew_is_the_same():
    again = CreatedBy(id=uuid4(), type="SCHEDULE", display_value="nightly")
    older, newer = night(1), night(0, again)
    assert set(skipped_nights([older, newer])) == {older.id}


def test_the_setting_of_missed_nights_is_checked(monkeypatch: pytest.MonkeyPatch):
    for given, expected in ((None, Missed.NEWEST), ("", Missed.NEWEST), ("newest", Missed.NEWEST), ("all", Missed.ALL)):
        monkeypatch.setenv(MISSED, given) if given is not None else monkeypatch.delenv(MISSED, raising=False)
        assert missed_setting() == expected
    monkeypatch.setenv(MISSED, "oldest")
    with pytest.raises(DailyTrainError, match="DAILY_TRAIN_MISSED is 'oldest'; expected `newest`"):
        missed_setting()


@contextmanager
def process_of(run: str, *arguments: str) -> Iterator[subprocess.Popen]:
    command = [sys.executable, "-c", "import time; time.sleep(100)", *arguments]
    process = subprocess.Popen(command, env={**os.environ, "PREFECT__FLOW_RUN_ID": run})
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def found() -> RunProcesses:
    processes = find_run_processes()
    assert processes is not None
    return processes


def test_processes_of_runs_are_found_and_ended():
    executed, saved = str(uuid4()), str(uuid4())
    with process_of(executed, "-m", "prefect.engine") as engine, process_of(saved, "-m", "tasks.runtime.supervise"):
        wait_until(lambda: executed in found().executing and saved in found().saving)
        process = found().executing[executed]
        assert process.number == engine.pid and not process.attended and saved not in found().executing
        assert executed not in found().saving
        RunProcess(process.number, "7", attended=False).kill()  # a process that had this number before
        assert engine.poll() is None
        process.kill()
        assert engine.wait() == -signal.SIGKILL
        assert executed not in found().executing  # also before somebody has waited for it


def test_the_process_of_a_run_is_the_first_of_its_family():
    run = str(uuid4())
    script = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'import time; time.sleep(100)'])"
    environment = {**os.environ, "PREFECT__FLOW_RUN_ID": run}
    with subprocess.Popen([sys.executable, "-c", script], env=environment) as parent:
        children = Path(f"/proc/{parent.pid}/task/{parent.pid}/children")
        wait_until(lambda: children.read_text())
        [child] = map(int, children.read_text().split())
        try:
            wait_until(lambda: found().executing[run].number == parent.pid)
        finally:
            os.kill(child, signal.SIGKILL)


def test_who_holds_a_lock_has_a_name_that_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("deployments.cli.locks.prefect_home", lambda: tmp_path)
    name = Lock("worker", 1).owner()
    assert Lock("worker", 1).owner() == name != Lock("worker", 2).owner()
    copied = tmp_path / "copy"
    copied.write_text(Lock("worker", 1).path.read_text())
    copied.rename(Lock("worker", 1).path)  # as a folder that is copied to another machine
    assert Lock("worker", 1).owner() != name

    held = Lock("up", 1)
    assert held.take_from_ending(0) and Lock("up", 1).take_from_ending(5) is None  # at once
    held.say_ending()
    began = time.monotonic()
    assert Lock("up", 1).take_from_ending(0.5) is None and time.monotonic() - began >= 0.5
    assert held.file is not None
    held.file.close()
    assert Lock("up", 1).take_from_ending(5) and held.path.read_text() == ""
