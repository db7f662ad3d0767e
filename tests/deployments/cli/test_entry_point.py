"""The command ends when it is asked to, at any moment, and whatever it has started ends with it.

`python -m benchmarks.pipeline.kills` ends whole runs at every stage; here are programs that behave as badly as a run
can.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.processes import wait_until

ROOT = Path(__file__).resolve().parents[3]
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="adopts processes and finds them in /proc")


# The limits are scaled. The run starts a child as Ranks does; `how` is what it does then.
PROGRAM = """
import itertools, os, subprocess, sys, threading, time
from pathlib import Path
from deployments.cli import entry_point
entry_point.SECONDS_TO_UNWIND, entry_point.SECONDS_TO_END = 0.4, 0.3
entry_point.continue_in_child()
from tasks.runtime.child import child_command
folder, how = Path(sys.argv[1]), sys.argv[2]

def main():
    child = subprocess.Popen(child_command(*sys.argv[3:], str(folder)), start_new_session=True)
    stopped = threading.Event()
    entry_point.end_when_child_ends(child, "the child", stopped)
    if how == "stops it":
        stopped.set()
    while not (folder / "child").exists():
        time.sleep(0.01)
    (folder / "begun").touch()
    while True:
        try:
            time.sleep(60) if how != "c" else sum(itertools.repeat(1, 10**11))  # it never comes back to Python
        except KeyboardInterrupt:
            if how == "unwinds":
                return 130

entry_point.run_interruptibly(main)
"""
CHILD = """
import signal, sys, time
from pathlib import Path
folder = Path(sys.argv[-1])

def save(*_):
    time.sleep(1.5)
    (folder / "saved").touch()
    sys.exit()

if "tasks.runtime.supervise" in sys.argv:
    signal.signal(signal.SIGTERM, save)
if "deaf" in sys.argv:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
(folder / "child").touch()
while True:
    time.sleep(60)
"""


def hear() -> None:
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


class Command:
    """PROGRAM at work, with a mark in the environment of all its processes."""

    def __init__(self, folder: Path, how: str, *arguments: str) -> None:
        (folder / "endless.py").write_text(CHILD)
        self.mark = f"TEST_COMMAND={folder}\0".encode()
        environment = {**os.environ, "TEST_COMMAND": str(folder), "PYTHONPATH": f"{folder}{os.pathsep}{ROOT}"}
        self.process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(folder), how, "endless", *arguments],
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            preexec_fn=hear,  # under nohup, or in the background of a script, the tests ignore some
        )
        wait_until((folder / "begun").exists, 60)

    def left(self) -> list[int]:
        found = []
        for process in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                if self.mark in (process / "environ").read_bytes():
                    found.append(int(process.name))
        return found

    def ended(self) -> tuple[int, str]:
        """Exit code and what was said, when nothing is left."""
        _, said = self.process.communicate(timeout=60)
        return self.process.returncode, said


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Command]]:
    started: list[Command] = []

    def starting(*arguments: str) -> Command:
        started.append(Command(tmp_path, *arguments))
        return started[0]

    yield starting
    for process in [process for command in started for process in command.left()]:
        os.kill(process, signal.SIGKILL)


@pytest.mark.parametrize(
    ("how", "child", "number"),
    [
        ("unwinds", "", signal.SIGTERM),
        ("c", "deaf", signal.SIGTERM),
        ("swallows", "deaf", signal.SIGHUP),
        ("unwinds", "tasks.runtime.supervise", signal.SIGINT),
    ],
)
def test_a_signal_ends_the_command_and_all_that_it_started(
    start: Callable[..., Command], tmp_path: Path, how: str, child: str, number: signal.Signals
):
    command = start(how, *filter(None, [child]))
    assert len(command.left()) == 3
    for _ in range(2):
        command.process.send_signal(number)
        time.sleep(0.1)
    code, said = command.ended()
    assert code == 128 + number and not command.left()
    assert said.count("daily-train: stopped; ") == 1
    assert (tmp_path / "saved").exists() == (child == "tasks.runtime.supervise")


@pytest.mark.parametrize("who", ["the command", "its group", "the run"])
def test_what_is_killed_takes_its_children_along(start: Callable[..., Command], who: str):
    command = start("unwinds", *["deaf"] * (who == "the run"))
    if who == "its group":
        os.killpg(command.process.pid, signal.SIGKILL)
    else:
        [run] = [process for process in command.left() if parent(process) == command.process.pid]
        os.kill(run if who == "the run" else command.process.pid, signal.SIGKILL)
    code, said = command.ended()
    assert code == (137 if who == "the run" else -9)
    assert ("ended by SIGKILL; nothing was begun" in said) == (who == "the run")
    wait_until(lambda: not command.left(), 30)


@pytest.mark.parametrize("how", ["swallows", "stops it"])
def test_what_the_command_cannot_do_without_ends_it(start: Callable[..., Command], how: str):
    command = start(how)
    [child] = [process for process in command.left() if parent(parent(process)) == command.process.pid]
    os.kill(child, signal.SIGKILL)
    if how == "stops it":
        time.sleep(0.3)
        assert len(command.left()) == 2, "nothing that it has stopped itself ends it"
        return
    code, said = command.ended()
    assert code == 128 + signal.SIGTERM and "error: the child was ended by SIGKILL; what is finished is kept" in said
    assert not command.left()


def parent(process: int) -> int:
    return int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1])


def test_closed_standard_streams_are_nothing_and_no_file_takes_their_place():
    code = (
        "import os, sys; from deployments.cli.entry_point import open_standard_streams; open_standard_streams(); "
        "print('x', file=sys.stdout, flush=True); sys.stdin.read(); sys.exit(os.open('/dev/null', 0))"
    )
    done = subprocess.run(["sh", "-c", f'{sys.executable} -c "$0" <&- >&-', code], stderr=subprocess.PIPE, text=True)
    assert (done.returncode, done.stderr) == (3, "")
