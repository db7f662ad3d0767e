"""Runs the stages of a benchmark as child processes within a deadline, several at once, each timed alone.

Most of a stage's time on a GPU is importing and compiling, which occupies one CPU core. Stages therefore run side by
side, as many as their memory allows. A stage that wants to time something asks for the machine with `Bench.alone`: the
scheduler then suspends every other stage (SIGSTOP) until the timing is over, so that timings never overlap.

Every finding reaches the parent at once. A stage that fails or exceeds its deadline loses nothing that it reported.
"""

import os
import signal
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkServerContext, SpawnContext
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

SECONDS_TO_IDLE = 0.5
"""After the other stages are suspended: their queued kernels finish."""
SECONDS_TO_END = 1.0
"""Before the deadline, for ending children."""
SPAWN = get_context("spawn")

Finding = dict[str, Any]
Context = SpawnContext | ForkServerContext


@dataclass(frozen=True)
class Stage:
    """One independent part of a benchmark."""

    name: str
    run: Callable[["Bench"], None]
    gigabytes: float = 0.0
    """GPU memory it needs at most; stages run together only while the sum fits."""
    seconds: float = 30.0
    """Expected duration; a stage is not started when less time is left."""


@dataclass
class Bench:
    """What a stage gets: its options, its folder, its deadline and its connection to the parent."""

    name: str
    options: Any
    folder: Path
    deadline: float
    """On the clock of time.time()."""
    connection: Connection

    def say(self, finding: str, **values: Any) -> None:
        """Report one finding; it is kept whatever happens afterwards."""
        self.connection.send(("finding", {"stage": self.name, "finding": finding, **values}))

    @property
    def seconds_left(self) -> float:
        return self.deadline - time.time()

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Every other stage is suspended inside this block."""
        self.connection.send(("alone", None))
        self.connection.recv()
        try:
            yield
        finally:
            self.connection.send(("shared", None))


@dataclass
class _Child:
    stage: Stage
    process: BaseProcess
    connection: Connection
    began: float = field(default_factory=time.time)

    @property
    def pid(self) -> int:
        assert self.process.pid is not None  # it was started
        return self.process.pid


def _main(stage: Stage, options: Any, deadline: float, compile_threads: int, connection: Connection) -> None:
    """The child: its own process group, so that its compile workers end with it."""
    os.setsid()
    with tempfile.TemporaryDirectory(prefix=f"stage-{stage.name}-") as folder:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(Path(folder) / "inductor")  # locks in a shared one could be held
        os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")  # by a suspended stage
        os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", str(compile_threads))
        bench = Bench(stage.name, options, Path(folder), deadline, connection)
        completed = True
        try:
            stage.run(bench)
        except Exception as error:  # out of memory, foreign code: the findings so far count
            completed = False
            bench.say(
                "error", error=f"{type(error).__name__}: {error}"[:400], where=traceback.format_exc().splitlines()[-6:]
            )
    connection.send(("end", completed))


def run_stages(
    stages: list[Stage],
    options: Any,
    seconds: float,
    gigabytes: float | None,
    together: int,
    on_finding: Callable[[Finding], None],
    context: Context = SPAWN,
) -> None:
    """Run stages in the given order of value, at most `together` at once and within `gigabytes` of GPU memory
    (null: not limited), in processes of `context`. Returns after at most `seconds`."""
    deadline = time.time() + seconds - SECONDS_TO_END
    scheduler = _Scheduler(list(stages), options, deadline, gigabytes, together, on_finding, context)
    try:
        while scheduler.unfinished and time.time() < deadline:
            if scheduler.timed is None:
                scheduler.start_stages()
            scheduler.handle_messages()
            if scheduler.timed is None:
                scheduler.begin_next_timing()
    finally:
        scheduler.stop()


@dataclass
class _Scheduler:
    """The stages of one benchmark: those that wait, those that run, and the one that is timed."""

    waiting: list[Stage]
    options: Any
    deadline: float
    """On the clock of time.time()."""
    gigabytes: float | None
    together: int
    on_finding: Callable[[Finding], None]
    context: Context
    running: list[_Child] = field(default_factory=list)
    timed: _Child | None = None
    """The child whose timing is under way: all others are suspended."""
    queue: list[_Child] = field(default_factory=list)
    """Children that wait for a timing."""

    @property
    def unfinished(self) -> bool:
        """Whether a stage waits or runs."""
        return bool(self.waiting or self.running)

    def start_stages(self) -> None:
        """Start every waiting stage that fits, and skip those for which too little time is left."""
        for stage in list(self.waiting):
            seconds_left = self.deadline - time.time()
            if seconds_left < stage.seconds:
                self._skip(stage, f"{seconds_left:.0f} s left, {stage.seconds:.0f} s needed")
            elif self._fits(stage):
                self._start(stage)
            else:
                continue
            self.waiting.remove(stage)

    def _fits(self, stage: Stage) -> bool:
        used = sum(child.stage.gigabytes for child in self.running)
        within_memory = self.gigabytes is None or used + stage.gigabytes <= self.gigabytes
        return not self.running or (len(self.running) < self.together and within_memory)

    def _start(self, stage: Stage) -> None:
        compile_threads = max(1, (os.cpu_count() or 1) // self.together)
        ours, theirs = self.context.Pipe()
        arguments = (stage, self.options, self.deadline, compile_threads, theirs)
        process = self.context.Process(target=_main, args=arguments)
        process.start()
        theirs.close()
        self.running.append(_Child(stage, process, ours))

    def _skip(self, stage: Stage, reason: str) -> None:
        self.on_finding({"stage": stage.name, "finding": "skipped", "reason": reason})

    def handle_messages(self) -> None:
        """Wait up to a second for what the children send, and act on it."""
        timeout = min(1.0, max(0.0, self.deadline - time.time()))
        ready = wait([child.connection for child in self.running], timeout=timeout)
        for child in [child for child in self.running if child.connection in ready]:
            try:
                kind, value = child.connection.recv()
            except EOFError:
                kind, value = "end", False
            if kind == "finding":
                self.on_finding(value)
            elif kind == "alone":
                self.queue.append(child)
            elif kind == "shared" and child is self.timed:
                self._stop_timing()
            elif kind == "end":
                self._end(child, "completed" if value else "failed")

    def begin_next_timing(self) -> None:
        """Suspend all children but the first that waits for a timing, and tell that one to begin."""
        self.timed = self.queue.pop(0) if self.queue else None
        if self.timed:
            if self._signal_others(signal.SIGSTOP):
                time.sleep(SECONDS_TO_IDLE)
            self.timed.connection.send("go")

    def _stop_timing(self) -> None:
        self._signal_others(signal.SIGCONT)
        self.timed = None

    def _signal_others(self, number: int) -> bool:
        """Signal all children but the timed one; whether there are any."""
        others = [child for child in self.running if child is not self.timed and child.process.is_alive()]
        for child in others:
            try:
                os.killpg(child.pid, number)  # with the programs that it runs
            except ProcessLookupError:
                os.kill(child.pid, number)  # it has no group of its own yet
        return bool(others)

    def _end(self, child: _Child, how: str) -> None:
        """Kill a child and all that it started, and report how its stage ended."""
        if child is self.timed:
            self._stop_timing()
        if child in self.queue:
            self.queue.remove(child)
        self.running.remove(child)
        try:
            os.killpg(child.pid, signal.SIGKILL)
        except ProcessLookupError:
            child.process.kill()  # it had no group of its own yet
        child.process.join()
        seconds = round(time.time() - child.began, 1)
        self.on_finding({"stage": child.stage.name, "finding": how, "seconds": seconds})

    def stop(self) -> None:
        """End what still runs, and report the stages that never ran."""
        for child in list(self.running):
            self._end(child, "stopped")
        for stage in self.waiting:
            self._skip(stage, "the time was up")
