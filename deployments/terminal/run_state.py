"""How far the stages of a run are, as their events tell (tasks/runtime/stage_events.py): what the table in a terminal
shows, and what the line after Ctrl-C says."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from threading import Lock

from deployments.terminal.stop_line import note_progress
from flows.planned_stages import Planned
from tasks.runtime.stage_events import Moment, StageEvent
from tasks.store.run_states import built_by

SECONDS_OF_A_RATE = 2.0
"""From the first progress on, before its rate says when the stage ends."""


class State(StrEnum):
    """What a stage is doing."""

    WAITING = "waiting"
    RUNNING = "running"
    SKIPPED = "skipped"
    DONE = "done"
    FAILED = "failed"
    STOPPED = "stopped"


FINISHED = (State.SKIPPED, State.DONE)
ENDS = {
    Moment.SKIPPED: State.SKIPPED,
    Moment.BUILT: State.DONE,
    Moment.FAILED: State.FAILED,
    Moment.STOPPED: State.STOPPED,
}


@dataclass
class StageRow:
    """A stage of the run; `benchmarks` is one row for all of its suites."""

    stage: str
    label: str
    state: State = State.WAITING
    keys: set[str] = field(default_factory=set)
    work: Path | None = None
    began: float | None = None
    """Since when it runs, by the clock."""
    earlier_seconds: float = 0.0
    built: int = 0
    builders: list[str] = field(default_factory=list)
    """When and by which runs that was built what was skipped."""
    done: int = 0
    total: int = 0
    facts: tuple[str, ...] = ()
    note: str = ""
    """What it does instead of going on."""
    left_at: float | None = None
    """When it ends, by the clock, as far as that is known."""
    first: tuple[float, int] | None = None
    """Time and count of the first progress."""

    def seconds(self, now: float) -> float:
        """How long it has run."""
        return self.earlier_seconds + (now - self.began if self.began is not None else 0.0)

    def begin(self, event: StageEvent, now: float) -> None:
        self.state, self.work = State.RUNNING, event.work
        self.keys.add(event.key)
        self.began = now if self.began is None else self.began
        self.done, self.total, self.facts, self.note, self.left_at, self.first = 0, 0, (), "", None, None

    def progress(self, event: StageEvent, now: float) -> None:
        self.done, self.total, self.facts, self.note = event.done, event.total, event.facts, ""
        if self.first is None or event.done < self.first[1]:
            self.first = (now, event.done)
        passed, counted = now - self.first[0], event.done - self.first[1]
        if event.seconds_left is not None:
            self.left_at = now + event.seconds_left
        elif event.total and counted and passed > SECONDS_OF_A_RATE:
            self.left_at = now + (event.total - event.done) * passed / counted

    def end(self, event: StageEvent, now: float) -> None:
        self.earlier_seconds, self.began = self.seconds(now), None
        self.state = ENDS[event.moment]
        if event.moment is Moment.BUILT:
            self.built += 1
        elif event.moment is Moment.SKIPPED:
            self.builders.append(built_by(event.manifest))
            self.state = State.DONE if self.built else State.SKIPPED


class RunState:
    """The rows of a run: first those that are planned; one that nobody has planned comes before what waits."""

    def __init__(self, planned: Planned, clock: Callable[[], float] = time.monotonic) -> None:
        self.rows = [StageRow(stage, label) for stage, label in planned]
        self.clock = clock
        self.began = clock()
        self.lock = Lock()
        self._note(None)

    def __call__(self, event: StageEvent) -> None:
        """Listen to an event of a stage."""
        now = self.clock()
        with self.lock:
            row = self._row(event.stage, event.key)
            match event.moment:
                case Moment.BEGUN:
                    for other in self.rows:  # the run went on without it
                        if other.state is State.FAILED and (other.built or other.builders):
                            other.state = State.DONE if other.built else State.SKIPPED
                    row.begin(event, now)
                case Moment.PROGRESS:
                    row.progress(event, now)
                case Moment.NOTE:
                    row.note = " ".join(event.facts)
                case _:
                    row.end(event, now)
            self._note(row)

    def mark_failed(self, stage: str) -> None:
        """A task failed: its row says so, also where the stage itself had ended well."""
        with self.lock:
            rows = [row for row in self.rows if row.stage == stage and row.state is not State.WAITING]
            row = rows[-1] if rows else self._row(stage, "")
            if row.state is not State.STOPPED:
                row.state = State.FAILED

    def label_of(self, stage: str) -> str:
        """What the stage of that name is called that was begun last."""
        begun = [row.label for row in self.rows if row.stage == stage and row.state is not State.WAITING]
        return begun[-1] if begun else stage

    @property
    def finished(self) -> int:
        """How many stages are finished."""
        return sum(row.state in FINISHED for row in self.rows)

    def _row(self, stage: str, key: str) -> StageRow:
        named = [row for row in self.rows if row.stage == stage]
        for row in named:
            if key in row.keys:
                return row
        if waiting := [row for row in named if row.state is State.WAITING]:
            return waiting[0]
        if named:
            return named[-1]
        place = next((at for at, row in enumerate(self.rows) if row.state is State.WAITING), len(self.rows))
        self.rows.insert(place, StageRow(stage, stage))
        return self.rows[place]

    def _note(self, row: StageRow | None) -> None:
        trains = row is not None and row.stage == "train" and row.state not in FINISHED
        if trains and row is not None and row.work is not None:
            note_progress(self.finished, len(self.rows), row.work / "run", row.done, row.total)
        else:
            note_progress(self.finished, len(self.rows), None, 0, 0)
