"""One run holds the device at a time, whoever dies."""

import os
import signal
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path

import pytest

from tasks.runtime.child_process import run_module
from tests.processes import output_of

SLOW = """
import json, os, signal, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)  # it saves
config = json.load(open(sys.argv[1]))
print(json.dumps({"event": "began", "at": time.monotonic()}), flush=True)
while not os.path.exists(config["until"]):
    time.sleep(0.02)
print(json.dumps({"event": "ended", "at": time.monotonic()}), flush=True)
"""
PARENT = """
import sys
from pathlib import Path
from tasks.runtime.child_process import run_module
folder = Path(sys.argv[1])
run_module("slow", {"until": sys.argv[2]}, folder, lambda event: print(event, flush=True), folder / "device.lock")
"""


@pytest.fixture
def slow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a child program `slow` that a child process finds."""
    (tmp_path / "slow.py").write_text(SLOW)
    root = Path(__file__).resolve().parents[3]
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{root}")
    return tmp_path


def test_two_children_with_one_lock_never_run_together(slow: Path):
    events: dict[str, list[dict]] = {"a": [], "b": []}
    waits = threading.Event()

    def keep(name: str, event: dict) -> None:
        events[name].append(event)
        if event["event"] == "waiting":
            waits.set()

    def work(name: str) -> None:
        run_module("slow", {"until": str(slow / "go")}, slow / name, partial(keep, name), slow / "device.lock")

    threads = [threading.Thread(target=work, args=(name,)) for name in events]
    for thread in threads:
        thread.start()
    waited = waits.wait(60)
    time.sleep(0.5)  # in which it would begin
    (slow / "go").touch()
    for thread in threads:
        thread.join()
    assert waited, "the second does not wait for the first"
    spans = sorted([e["at"] for e in found if "at" in e] for found in events.values())
    assert spans[0][1] <= spans[1][0]
    assert sum(e["event"] == "waiting" for found in events.values() for e in found) == 1


def test_a_child_that_outlives_its_parent_still_holds_the_device(slow: Path):
    command = [sys.executable, "-c", PARENT, str(slow), str(slow / "go")]
    parent = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert "began" in output_of(parent).readline()
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    output_of(parent).close()
    events: list[dict] = []
    released: list[float] = []

    def keep(event: dict) -> None:
        events.append(event)
        if not released:
            released.append(time.monotonic())
            (slow / "go").touch()

    run_module("slow", {"until": str(slow / "go")}, slow / "next", keep, slow / "device.lock")
    assert [event["event"] for event in events] == ["waiting", "began", "ended"]
    assert events[1]["at"] > released[0]
