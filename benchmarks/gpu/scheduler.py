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
from multiprocessing.context import BaseContext
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

SECONDS_TO_IDLE = 0.5
"""After the other stages are suspended: their queued kernels finish."""
SECONDS_TO_END = 1.0
"""Before the deadline, for ending children."""
SPAWN = get_context("spawn")

Finding = dict[str, Any]


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
    context: BaseContext = SPAWN,
) -> None:
    """Run stages in the given order of value, at most `together` at once and within `gigabytes` of GPU memory
    (null: not limited), in processes of `context`. Returns after at most `seconds`."""
    deadline = time.time() + seconds - SECONDS_TO_END
    waiting, running = list(stages), []
    compile_threads = max(1, (os.cpu_count() or 1) // together)
    timed: _Child | None = None
    queue: list[_Child] = []

    def fits(stage: Stage) -> bool:
        used = sum(child.stage.gigabytes for child in running)
        return not running or (len(running) < together and (gigabytes is None or used + stage.gigabytes <= gigabytes))

    def signal_others(number: int) -> bool:
        """Whether there are any."""
        others = [child.process.pid for child in running if child is not timed and child.process.is_alive()]
        for process in others:
            try:
                os.killpg(process, number)  # with the programs that it runs
            except ProcessLookupError:
                os.kill(process, number)  # it has no group of its own yet
        return bool(others)

    def begin_next_timing() -> None:
        nonlocal timed
        timed = queue.pop(0) if queue else None
        if timed:
            if signal_others(signal.SIGSTOP):
                time.sleep(SECONDS_TO_IDLE)
            timed.connection.send("go")

    def stop_timing() -> None:
        nonlocal timed
        signal_others(signal.SIGCONT)
        timed = None

    def end(child: _Child, how: str) -> None:
        if child is timed:
            stop_timing()
        if child in queue:
            queue.remove(child)
        running.remove(child)
        try:
            os.killpg(child.process.pid, signal.SIGKILL)
        except ProcessLookupError:
            child.process.kill()  # it had no group of its own yet
        child.process.join()
        on_finding({"stage": child.stage.name, "finding": how, "seconds": round(time.time() - child.began, 1)})

    try:
        while (waiting or running) and time.time() < deadline:
            if timed is None:
                for stage in list(waiting):
                    if deadline - time.time() < stage.seconds:
                        on_finding(
                            {
                                "stage": stage.name,
                                "finding": "skipped",
                                "reason": f"{deadline - time.time():.0f} s left, {stage.seconds:.0f} s needed",
                            }
                        )
                        waiting.remove(stage)
                    elif fits(stage):
                        ours, theirs = context.Pipe()
                        arguments = (stage, options, deadline, compile_threads, theirs)
                        process = context.Process(target=_main, args=arguments)
                        process.start()
                        theirs.close()
                        running.append(_Child(stage, process, ours))
                        waiting.remove(stage)
            ready = wait([child.connection for child in running], timeout=min(1.0, max(0.0, deadline - time.time())))
            for child in [child for child in running if child.connection in ready]:
                try:
                    kind, value = child.connection.recv()
                except EOFError:
                    kind, value = "end", False
                if kind == "finding":
                    on_finding(value)
                elif kind == "alone":
                    queue.append(child)
                elif kind == "shared" and child is timed:
                    stop_timing()
                elif kind == "end":
                    end(child, "completed" if value else "failed")
            if timed is None and queue:
                begin_next_timing()
    finally:
        for child in list(running):
            end(child, "stopped")
        for stage in waiting:
            on_finding({"stage": stage.name, "finding": "skipped", "reason": "the time was up"})
