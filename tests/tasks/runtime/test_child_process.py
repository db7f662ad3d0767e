"""One run holds the device at a time, whoever dies; what is tried again; comparing designs."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from prefect.states import Failed

from eval.reporting.multiplier import Training, compare, render_comparison
from tasks.comparison import CompareConfig
from tasks.runtime.child_process import ProcessError, run_module
from tasks.runtime.progress import ServerUpdates
from tasks.sources.document_sources import FilesSource, SourceError, read
from tasks.store.backends import StoreError, open_store
from tasks.store.stage import transient
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
ORPHAN = """
import logging, sys
from pathlib import Path
from prefect.logging.configuration import setup_logging
from tasks.runtime.liveness import LivenessWatch
setup_logging()
LivenessWatch()
print("ready", flush=True)
sys.stdin.readline()
for number in range(3):
    logging.getLogger("daily_train").warning("line %d", number)
Path(sys.argv[1]).write_text("went on")
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


def test_a_log_line_that_nobody_reads_ends_nothing(tmp_path: Path):
    command = [sys.executable, "-c", ORPHAN, str(tmp_path / "end")]
    pipe = subprocess.PIPE
    run = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=subprocess.STDOUT, text=True)
    while output_of(run).readline() != "ready\n":
        assert run.poll() is None
    output_of(run).close()
    assert run.stdin is not None
    run.stdin.write("\n")
    run.stdin.close()
    assert run.wait() == 0 and (tmp_path / "end").read_text() == "went on"


def test_a_server_that_hangs_or_fails_holds_nothing_up(caplog: pytest.LogCaptureFixture):
    sent: list[int] = []
    hung, answers = threading.Event(), threading.Event()

    def hang() -> None:
        hung.set()
        answers.wait(60)

    def fail() -> None:
        raise ConnectionError("away")

    with ServerUpdates() as tell:
        tell("progress", hang)
        hung.wait(60)
        tell("figure", fail)
        for number in range(100):
            tell("progress", partial(sent.append, number))
        assert not sent
        answers.set()
    assert sent == [99], "of what had waited, the newest"
    assert "the run goes on: away" in caplog.text


def refused_connection(_: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, but nobody listens
        urllib.request.urlopen(f"http://127.0.0.1:{taken.getsockname()[1]}/", timeout=5)


def unknown_host(_: Path) -> None:
    urllib.request.urlopen("http://no-such-host.invalid/", timeout=5)


def bucket_that_does_not_answer(_: Path) -> None:
    open_store("s3://bucket/x").check()


def missing_file(folder: Path) -> None:
    list(read(FilesSource(path=str(folder / "none.txt")), folder))


def bad_line(folder: Path) -> None:
    (folder / "bad.jsonl").write_text("{no json\n")
    list(read(FilesSource(path=str(folder / "bad.jsonl")), folder))


def dead_child(folder: Path) -> None:
    run_module("no_such_module", {}, folder, lambda event: None)


@pytest.mark.parametrize(
    ("failure", "error", "again"),
    [
        (refused_connection, OSError, True),
        (unknown_host, OSError, True),
        (bucket_that_does_not_answer, StoreError, True),
        (missing_file, SourceError, False),
        (bad_line, SourceError, False),
        (dead_child, ProcessError, False),
    ],
)
def test_the_network_is_tried_again_and_bad_input_is_not(
    failure: Callable[[Path], None], error: type, again: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("tasks.store.s3.SECONDS_TO_OPEN", 0.5)
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "x")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "x")
    with pytest.raises(error) as raised:
        failure(tmp_path)
    assert transient(None, None, Failed(data=raised.value)) is again


def arms(better: float) -> dict[str, list[Training]]:
    """Losses that fall as a power of compute; the candidate is ahead by a known factor."""

    def run(seed: int, budget: float, ahead: float) -> Training:
        bits = (1.5 + 0.02 * seed) * (budget * ahead) ** -0.1
        return Training(seed=seed, budget=budget, flops=1e15 * budget, bits_per_byte=bits)

    return {
        "baseline": [run(seed, budget, 1) for seed in range(3) for budget in (0.5, 1, 2)],
        "candidate": [run(seed, 1, better * (1 + 0.05 * seed)) for seed in range(3)],
    }


def test_the_multiplier_is_the_compute_that_the_baseline_needs_for_the_same_loss():
    found = compare(**arms(1.5))
    assert found["difference"]["mean"] < 0 and found["difference"]["interval"][1] < 0
    low, high = found["multiplier"]["interval"]
    assert found["multiplier"]["mean"] == pytest.approx(1.5 * (1 * 1.05 * 1.1) ** (1 / 3)) and low < 1.57 < high < 2
    assert "Compute multiplier: 1.57" in render_comparison({"names": ["a", "b"], **found})
    same = compare(**arms(1 / 1.05))
    assert same["difference"]["interval"][0] < 0 < same["difference"]["interval"][1]


def test_outside_the_baselines_range_no_multiplier_is_made_up():
    found = compare(**arms(3))
    assert found["multiplier"] is None and found["outside"] == 3
    assert "cannot be given" in render_comparison({"names": ["a", "b"], **found})
    one_seed = {arm: [run for run in runs if run.seed == 0] for arm, runs in arms(1.5).items()}
    assert compare(**one_seed)["multiplier"] == {"mean": pytest.approx(1.5), "interval": None}


def test_budgets_must_hold_the_presets_own():
    with pytest.raises(ValueError, match="1 must be one of them"):
        CompareConfig(budgets=(0.5, 2.0))
