"""The table of a run in a terminal: what is on the screen, which a real pseudo terminal receives."""

import fcntl
import io
import logging
import os
import pty
import re
import struct
import sys
import termios
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import pytest

from deployments.terminal.live_table import LiveTable, OneAtATime, shown_run
from deployments.terminal.run_state import RunState, State
from tasks.runtime.stage_events import Moment, StageEvent, announced, progress
from tests.screen import lines_on_screen


def run_with_a_failure() -> None:
    """What a terminal is to show: a stage that is skipped, one that trains while others print, and one that fails."""
    log = logging.getLogger("prefect.task_runs")
    log.setLevel(logging.INFO)
    log.handlers.clear()  # there is no server
    logging.getLogger().addHandler(logging.StreamHandler(sys.stderr))
    context = SimpleNamespace(cache=Path("cache"))

    @announced
    def build_or_skip(stage: SimpleNamespace, context: SimpleNamespace, build: Callable[[], object] | None) -> object:
        if build is not None:
            build()
        provenance = {"started": "2026-11-26T03:00:00", "run": "a run of last night"}
        return SimpleNamespace(skipped=build is None, manifest=SimpleNamespace(provenance=provenance))

    def stage(name: str, build: Callable[[], object] | None) -> None:
        build_or_skip(SimpleNamespace(name=name, key=f"{name}-key"), context, build)

    def train() -> None:
        progress(600, 1200, "step 600 of 1,200", "loss 3.210", "51,234 tokens/s", seconds_left=75)
        log.info("step 600/1200 loss 3.21", extra={"task_name": "train"})
        log.warning("a slow \x1b[31mneighbour\x1b]0;title\x07", extra={"task_name": "train"})
        print("a library says something", flush=True)
        print("on standard error too", file=sys.stderr, flush=True)
        time.sleep(0.4)

    planned = [(name, name) for name in ("benchmarks", "download", "train", "evaluate", "report")]
    with suppress(ZeroDivisionError), shown_run("daily-train run: smoke", planned):
        stage("benchmarks", None)
        stage("download", lambda: time.sleep(0.3))
        stage("train", train)
        stage("evaluate", lambda: 1 / 0)
    print("daily-train: error: it cannot be divided", file=sys.stderr, flush=True)


def in_terminal(width: int, height: int, **environment: str) -> str:
    """All that the run above writes to a terminal of that size, in a process of its own."""
    process, terminal = pty.fork()
    if not process:
        try:
            fcntl.ioctl(1, termios.TIOCSWINSZ, struct.pack("HHHH", height, width, 0, 0))
            for name in ("COLUMNS", "LINES", "NO_COLOR"):
                os.environ.pop(name, None)
            os.environ.update({"TERM": "xterm-256color", **environment})
            sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
            run_with_a_failure()
        finally:
            os._exit(0)
    written = b""
    with suppress(OSError):  # how Linux says that the other end is closed
        while True:
            written += os.read(terminal, 65536)
    os.close(terminal)
    os.waitpid(process, 0)
    return written.decode()


@pytest.mark.skipif(sys.platform != "linux", reason="reads a pseudo terminal as Linux ends it")
def test_one_table_is_on_the_screen_and_what_matters_stays_above_it():
    written = in_terminal(100, 30)
    lines = lines_on_screen(written, 100)
    assert sum(line.startswith("daily-train run: smoke") for line in lines) == 1, "every frame replaces the one before"
    title = lines.index("daily-train run: smoke")
    above, table = lines[:title], {line.split()[0]: line for line in lines[title + 2 : title + 7]}
    assert any(line.endswith("warning: train: a slow \\x1b[31mneighbour\\x1b]0;title\\x07") for line in above)
    assert {"a library says something", "on standard error too"} <= set(above)
    assert not any("step 600/1200" in line for line in above), "the table shows it"
    assert "skipped" in table["benchmarks"] and "built on 2026-11-26 by a run of last night" in table["benchmarks"]
    states = {name: line.split()[1] for name, line in table.items()}
    assert states == {
        "benchmarks": "skipped", "download": "done", "train": "done", "evaluate": "failed", "report": "waiting"
    }  # fmt: skip
    assert lines[title + 7].startswith("3 of 5 stages finished after ")
    assert lines[title + 8] == "daily-train: error: it cannot be divided", "and nothing between"
    assert written.endswith("\r\n") and written.rindex("\x1b[?25h") > written.rindex("\x1b[?25l")
    assert all(words in written for words in ("step 600 of 1,200", "50 %", "1 min 15 s left"))


@pytest.mark.skipif(sys.platform != "linux", reason="reads a pseudo terminal as Linux ends it")
def test_a_narrow_terminal_without_colours_has_whole_words_and_none_but_its_own_lines():
    written = in_terminal(60, 12, NO_COLOR="1")
    lines = lines_on_screen(written, 60)
    assert sum(line.startswith("daily-train run: smoke") for line in lines) == 1
    assert all(len(line) <= 60 for line in lines) and any(line.startswith("benchmarks  skipped") for line in lines)
    assert not any(colour in written for colour in ("\x1b[31m", "\x1b[32m", "\x1b[1;36m"))


@pytest.mark.skipif(sys.platform != "linux", reason="reads a pseudo terminal as Linux ends it")
def test_a_dumb_terminal_gets_plain_lines():
    written = in_terminal(100, 30, TERM="dumb")
    assert "\x1b" not in written and "train: step 600/1200 loss 3.21" in written
    assert written.count("daily-train run: smoke") == 0


def test_a_terminal_that_becomes_narrower_has_broken_the_lines_that_are_erased():
    written = io.StringIO()
    console = OneAtATime(file=written, force_terminal=True, width=100, height=30, color_system=None)
    with LiveTable(console, "a title of thirty characters..", RunState([("a" * 50, "a" * 50), ("b", "b")])) as table:
        table.print("first", 0)
        before = len(written.getvalue())
        console.width = 40
        table.print("second", 0)
    erased = re.match(r"\r\x1b\[2K((?:\x1b\[1A\x1b\[2K)*)", written.getvalue()[before:])
    lines = {"title": 1, "header": 2, "row of a": 2, "row of b": 2, "footer": 1}  # b is waiting in column 52
    assert erased is not None and erased[1].count("\x1b[1A") == sum(lines.values()) - 1


def event(stage: str, moment: Moment, key: str = "", **more: object) -> StageEvent:
    manifest = SimpleNamespace(provenance={"started": "2026-11-26T03:00:00", "run": "one"})
    return StageEvent(stage=stage, key=key or stage, work=Path("work"), moment=moment, manifest=manifest, **more)  # type: ignore[arg-type]


@pytest.fixture
def told() -> Callable[..., RunState]:
    def tell(*events: StageEvent, planned: tuple[str, ...] = ("benchmarks", "train", "report")) -> RunState:
        state = RunState([(name, name) for name in planned])
        for one in events:
            state(one)
        return state

    return tell


def states(state: RunState) -> dict[str, State]:
    return {row.label: row.state for row in state.rows}


def test_a_suite_that_cannot_be_had_does_not_fail_its_row(told: Callable[..., RunState]):
    suites = [
        event("benchmarks", Moment.BEGUN, "a"),
        event("benchmarks", Moment.BUILT, "a"),
        event("benchmarks", Moment.BEGUN, "b"),
        event("benchmarks", Moment.FAILED, "b"),
    ]
    state = told(*suites)
    assert states(state)["benchmarks"] is State.FAILED
    state(event("train", Moment.BEGUN))
    assert states(state) == {"benchmarks": State.DONE, "train": State.RUNNING, "report": State.WAITING}
    assert state.finished == 1


def test_a_stage_that_is_tried_again_runs_again_and_one_that_nobody_planned_comes_before_what_waits(
    told: Callable[..., RunState],
):
    state = told(event("train", Moment.BEGUN), event("train", Moment.FAILED), event("train", Moment.BEGUN))
    assert states(state)["train"] is State.RUNNING
    state = told(event("benchmarks", Moment.BEGUN), event("benchmarks", Moment.SKIPPED), event("budget", Moment.BEGUN))
    assert list(states(state)) == ["benchmarks", "budget", "train", "report"]


def test_a_task_that_fails_after_its_stage_marks_that_stage(told: Callable[..., RunState]):
    state = told(event("benchmarks", Moment.BEGUN), event("benchmarks", Moment.BUILT))
    state.mark_failed("benchmarks")
    assert states(state)["benchmarks"] is State.FAILED and state.finished == 0
    state.mark_failed("rehearsal")
    assert list(states(state))[1] == "rehearsal" and states(state)["rehearsal"] is State.FAILED
