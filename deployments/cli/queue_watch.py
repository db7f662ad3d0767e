"""What `daily-train up` does about runs that nobody else ends: it looks at its work pool every few seconds.

* A run that no process executes any more, because its worker died with it or before it was started, is shown as
  *Crashed*, so that the queue moves on.
* A cancelled run leaves *Cancelling* within a minute, whoever died.
* Of several nights that are due, the newest is executed; the older ones are shown as *Skipped*.

A run is judged only if a worker of this `up` has taken it (the label `prefect.worker.name`), since its process is then
one of this machine. Runs of other workers of the pool, on other machines or in a cluster, are left to them.
"""

import os
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any
from uuid import UUID

from httpx import HTTPError
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import FlowRunFilter, WorkerFilter, WorkPoolFilter
from prefect.client.schemas.objects import FlowRun, StateType, WorkerStatus
from prefect.client.schemas.responses import SetStateStatus
from prefect.client.schemas.sorting import FlowRunSort
from prefect.exceptions import ObjectNotFound, PrefectException
from prefect.settings import PREFECT_API_REQUEST_TIMEOUT, PREFECT_CLIENT_MAX_RETRIES, temporary_settings
from prefect.states import State

from deployments.cli.run_processes import RunProcess, RunProcesses, find_run_processes
from model.errors import DailyTrainError
from tasks.runtime.liveness import DID_NOT_ANSWER

MISSED = "DAILY_TRAIN_MISSED"
SECONDS_BETWEEN_LOOKS = 5.0
SECONDS_FOR_WORKER = 45.0
"""A worker that lives ends a cancelled run itself, 30 s after it has heard of it at the latest."""
SECONDS_FOR_ORPHAN = 35.0
"""A training whose worker has died asks the server itself, saves, and says that it is cancelled."""
SECONDS_FOR_START = 15.0
"""A worker that lives ends a cancelled run that it has not started."""
NOT_ENDED = (StateType.SCHEDULED, StateType.PENDING, StateType.RUNNING, StateType.CANCELLING)
AT_ONCE = 200
"""Runs that one request asks for: the server's limit."""
GONE = f"{DID_NOT_ANSWER}: no process of this machine executes it any more. Run it again to resume."
NOT_STARTED = f"{DID_NOT_ANSWER}: the worker that had taken it ended before it was started. Run it again."
CANCELLED = "No process executes the run any more."
ENDED = "The run did not end by itself in time: its process was ended."
NO_WORKER = "The worker {worker}, which had taken the run, does not answer."
STILL_SAVING = "Its training goes on saving its last step; a run that trains waits until that is done."


class Missed(StrEnum):
    """Which of several due runs of one schedule are executed."""

    NEWEST = "newest"
    ALL = "all"


def missed_setting() -> Missed:
    """The setting of the environment. Raises DailyTrainError."""
    given = os.environ.get(MISSED) or Missed.NEWEST
    if given not in list(Missed):
        raise DailyTrainError(
            f"{MISSED} is {given!r}; expected `newest`, which skips the older of several nights that are due, or `all`"
        )
    return Missed(given)


@dataclass(frozen=True)
class Mark:
    """A state that a run is given."""

    type: StateType
    name: str
    message: str
    kill: bool = False
    """Whether its process is ended."""


@dataclass(frozen=True)
class Situation:
    """What is known when runs are judged."""

    now: datetime
    worker: str
    """Name of the worker of this `up`."""
    worker_since: datetime | None
    """When its process was started. None: it was not started yet, so what it holds was taken by one that is dead."""
    processes: RunProcesses
    online: frozenset[str]
    """Names of the pool's workers that the server has heard of lately."""

    def executing(self, run: FlowRun) -> RunProcess | None:
        return self.processes.executing.get(str(run.id))

    def seconds(self, run: FlowRun) -> float:
        """How long the run has been in its state."""
        assert run.state is not None
        return (self.now - run.state.timestamp).total_seconds()

    def is_saving(self, run: FlowRun) -> bool:
        return str(run.id) in self.processes.saving

    def is_held_by_worker(self, run: FlowRun) -> bool:
        """Whether the worker's process that runs now has taken the run, as far as one that is not started tells."""
        assert run.state is not None
        return self.worker_since is not None and run.state.timestamp >= self.worker_since


def skipped_nights(due: Iterable[FlowRun]) -> dict[UUID, Mark]:
    """Of the scheduled runs that are due, those that are not the newest of their schedule. A run that a person has
    started, or has started again, is neither skipped nor counted."""
    of_schedule: dict[tuple[UUID | None, object], list[FlowRun]] = defaultdict(list)
    for run in due:
        by = run.created_by
        first_time = run.run_count == 0 and run.state_name in ("Scheduled", "Late")
        if run.auto_scheduled and by is not None and by.type == "SCHEDULE" and first_time:
            # a schedule without a slug is known by its kind there, which several may share
            named = by.display_value and not by.display_value.endswith("Schedule")
            of_schedule[run.deployment_id, by.display_value if named else by.id].append(run)
    marks: dict[UUID, Mark] = {}
    for runs in of_schedule.values():
        *older, newest = sorted(runs, key=_due)
        message = f"A newer run of the same schedule is due, that of {_due(newest):%Y-%m-%d %H:%M:%S} UTC."
        marks |= {run.id: Mark(StateType.CANCELLED, "Skipped", message) for run in older}
    return marks


def _due(run: FlowRun) -> datetime:
    assert run.expected_start_time is not None
    return run.expected_start_time.astimezone(UTC)


def crash_of(run: FlowRun, situation: Situation) -> Mark | None:
    """For a run that a worker holds, by its state: whether nothing executes it any more."""
    if situation.executing(run):
        return None
    worker = worker_of(run)
    if run.state_type == StateType.RUNNING:
        return Mark(StateType.CRASHED, "Crashed", GONE) if worker == situation.worker else None
    if situation.is_held_by_worker(run):
        return None
    if worker == situation.worker or (worker is None and not situation.online - {situation.worker}):
        return Mark(StateType.CRASHED, "Crashed", NOT_STARTED)
    return None


def cancel_of(run: FlowRun, situation: Situation) -> Mark | None:
    """For a run that is *Cancelling*: whether it is time to end it, and who does not."""
    seconds = situation.seconds(run)
    worker = worker_of(run)
    if process := situation.executing(run):
        if process.attended:
            limit = SECONDS_FOR_WORKER
        else:  # a stage that does not train asks nobody
            limit = SECONDS_FOR_ORPHAN if situation.is_saving(run) else SECONDS_BETWEEN_LOOKS
        return _cancelled(ENDED, kill=True) if seconds >= limit else None
    if worker is None or worker == situation.worker:
        return _cancelled(CANCELLED) if seconds >= SECONDS_FOR_START else None
    if worker not in situation.online and seconds >= SECONDS_FOR_WORKER:
        return _cancelled(NO_WORKER.format(worker=worker))
    return None


def _cancelled(message: str, kill: bool = False) -> Mark:
    return Mark(StateType.CANCELLED, "Cancelled", message, kill)


def _in_full(mark: Mark, run: FlowRun, situation: Situation) -> Mark:
    """The mark with what its training does."""
    return replace(mark, message=f"{mark.message} {STILL_SAVING}") if situation.is_saving(run) else mark


def worker_of(run: FlowRun) -> str | None:
    """Name of the worker that took the run last. None: it was taken a moment ago, or never."""
    name = run.labels.get("prefect.worker.name")
    return str(name) if name is not None else None


@dataclass
class QueueWatch:
    """Looks at the runs of a work pool, and marks those that nobody else would."""

    pool: str
    worker: str
    """Name of the worker of this `up`."""
    missed: Missed
    connected: Callable[[], AbstractContextManager[None]]
    """Has Prefect's clients use our server. Raises DailyTrainError where it does not answer."""
    worker_since: Callable[[], datetime | None]
    """When the worker's process was started. None: not yet."""
    processes: Callable[[], RunProcesses | None] = find_run_processes
    lock: threading.Lock = field(default_factory=threading.Lock)
    judged: dict[UUID, tuple[Any, float]] = field(default_factory=dict)
    """The state of a run that is to be marked, and when it was seen first: it is marked if a later look sees it too."""
    saving: frozenset[str] = frozenset()
    """Runs that had ended at the last look, while their trainings saved."""

    def keep_looking(self, stopped: threading.Event) -> None:
        """Until stopped. A server that is away or busy is asked again at the next look."""
        while not stopped.is_set():
            self.look()
            stopped.wait(SECONDS_BETWEEN_LOOKS)

    def look(self) -> None:
        """Once; a run that seems to be dead is marked at the next look that finds it so."""
        with self.lock:
            self._look()

    def _look(self) -> None:
        patience = {PREFECT_CLIENT_MAX_RETRIES: 1, PREFECT_API_REQUEST_TIMEOUT: 20.0}
        with (
            suppress(HTTPError, PrefectException, DailyTrainError),
            self.connected(),
            temporary_settings(patience),
            get_client(sync_client=True) as client,
        ):
            runs = self._runs(client)
            if self.missed is Missed.NEWEST:
                self._skip_missed(client, [run for run in runs if run.state_type == StateType.SCHEDULED])
            self._end_lost(client, [run for run in runs if run.state_type != StateType.SCHEDULED])

    def _skip_missed(self, client: SyncPrefectClient, scheduled: list[FlowRun]) -> None:
        now = datetime.now(UTC)
        due = [run for run in scheduled if run.expected_start_time and _due(run) <= now]
        marks = skipped_nights(due)
        for run in due:
            if run.id in marks and self._mark(client, run, marks[run.id]):  # lists of runs show names, no messages
                client.update_flow_run(run.id, name=f"{_due(run):%Y-%m-%d %H:%M} skipped")

    def _end_lost(self, client: SyncPrefectClient, runs: list[FlowRun]) -> None:
        processes = self.processes()  # after the states: whoever is said to run must be there
        if processes is None:
            return
        online = self._online(client) if runs else frozenset()
        situation = Situation(datetime.now(UTC), self.worker, self.worker_since(), processes, online)
        judged = {}
        for run in runs:
            is_cancelling = run.state_type == StateType.CANCELLING
            mark = cancel_of(run, situation) if is_cancelling else crash_of(run, situation)
            if mark is None:
                continue
            state, first = self.judged.get(run.id, (None, 0.0))
            judged[run.id] = (run.state_id, first if state == run.state_id else time.monotonic())
            if time.monotonic() - judged[run.id][1] < SECONDS_BETWEEN_LOOKS - 1:
                continue
            if self._mark(client, run, _in_full(mark, run, situation)) and mark.kill:
                process = situation.executing(run)
                assert process is not None
                process.kill()
        self.judged = judged
        self._tell_of_saving(client, processes)

    def _tell_of_saving(self, client: SyncPrefectClient, processes: RunProcesses) -> None:
        """A worker says that a run is cancelled, but not that its training goes on saving."""
        left = processes.saving - processes.executing.keys()
        for run_id in left & self.saving:  # at two looks: most have saved by then
            with suppress(ObjectNotFound):  # a run of another server
                self._say_saving(client, client.read_flow_run(UUID(run_id)))
        self.saving = left

    def _say_saving(self, client: SyncPrefectClient, run: FlowRun) -> None:
        message = run.state.message or "" if run.state else ""
        if run.state_type == StateType.CANCELLED and STILL_SAVING not in message:
            self._mark(client, run, _cancelled(f"{message} {STILL_SAVING}".strip()))

    def _runs(self, client: SyncPrefectClient) -> list[FlowRun]:
        """All runs of the pool that have not ended."""
        runs: list[FlowRun] = []
        while True:
            page = client.read_flow_runs(
                flow_run_filter=FlowRunFilter.model_validate({"state": {"type": {"any_": NOT_ENDED}}}),
                work_pool_filter=WorkPoolFilter.model_validate({"name": {"any_": [self.pool]}}),
                sort=FlowRunSort.EXPECTED_START_TIME_ASC,
                limit=AT_ONCE,
                offset=len(runs),
            )
            runs += page
            if len(page) < AT_ONCE:
                return runs

    def _online(self, client: SyncPrefectClient) -> frozenset[str]:
        heard = WorkerFilter.model_validate({"status": {"any_": [WorkerStatus.ONLINE]}})
        workers = client.read_workers_for_work_pool(self.pool, worker_filter=heard, offset=0, limit=AT_ONCE)
        return frozenset(worker.name for worker in workers)

    def _mark(self, client: SyncPrefectClient, run: FlowRun, mark: Mark) -> bool:
        """Whether the server has taken it; a run that has got another state meanwhile is left."""
        if client.read_flow_run(run.id).state_id != run.state_id:
            return False
        state: State[Any] = State(type=mark.type, name=mark.name, message=mark.message)
        if client.set_flow_run_state(run.id, state).status != SetStateStatus.ACCEPT:
            return False
        print(f"{run.name}: {mark.name}. {mark.message}", flush=True)
        return True
