"""Several processes train together, started by the flow: the losses of one, a cancel, a death, a full memory."""

import fcntl
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from model.train import main as train_alone
from tasks.runtime import ranks
from tasks.runtime.child_process import ProcessError, run_module
from tasks.store.context import RunContext, open_context
from tasks.store.stage import StageResult, fetch_outputs
from tasks.train import read_metrics
from tests.processes import family, output_of, wait_until
from tests.tasks.store.test_checkpoints import TRAIN, trained

ROOT = Path(__file__).resolve().parents[3]
CONFIG = replace(TRAIN, tokens=200 * 128, log_every_steps=10)  # of 8 sequences each; a checkpoint every 5 steps


# In the second process of a training: a GPU whose memory holds 2 sequences, from its 13th micro-batch on.
FULL = """
import os, sys
if "model.train" in sys.orig_argv and os.environ["RANK"] == "1":
    import torch
    from model.network.gpt import GPT
    forward, calls = GPT.forward, []

    def limited(self, x, *rest, **settings):
        if torch.is_grad_enabled():
            calls.append(x)
        if len(calls) > 12 and len(x) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return forward(self, x, *rest, **settings)

    GPT.forward = limited
"""


# Without torch. The first process says that it has begun; then each does what the configuration says for it.
PROGRAM = """
import json, os, signal, sys, time
rank = int(os.environ["RANK"])
if rank == 0:
    print(json.dumps({"event": "began"}), flush=True)
for act, value in json.load(open(sys.argv[1]))["acts"][rank]:
    if act == "deaf":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if act == "sleep":
        time.sleep(value)
    if act == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if act == "fail":
        sys.exit(value)  # a text goes to stderr
"""
PARENT = """
import sys
from pathlib import Path
from tasks.runtime.child_process import run_module
folder = Path(sys.argv[1])
acts = [[["sleep", 60]], [["deaf", None], ["sleep", 2]]]
run_module("program", {"acts": acts}, folder, lambda event: print("began", flush=True), folder / "device.lock",
           processes=2)
"""


def process_of(rank: int, run: int) -> int:
    """The trainer's process of this rank, somewhere below the process `run`."""
    for process in family(run):
        command, environment = (
            Path(f"/proc/{process}/{name}").read_bytes().split(b"\0") for name in ("cmdline", "environ")
        )
        if b"model.train" in command and f"RANK={rank}".encode() in environment:
            return process
    raise AssertionError(f"no process of {run} trains as rank {rank}")


def ignores_sigterm(process: int) -> bool:
    status = Path(f"/proc/{process}/status").read_text()
    [ignored] = re.findall(r"SigIgn:\s*(\w+)", status)
    return bool(int(ignored, 16) >> (signal.SIGTERM - 1) & 1)


def assert_over(context: RunContext, before: set[int]) -> None:
    """No process is left but those of before, and the device is free."""
    assert set(family(os.getpid())) <= before
    with context.device_lock.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)


def trained_until(when: Callable[[], object], act: Callable[[], None], context: RunContext) -> StageResult:
    """What becomes of a training in whose middle something is done."""

    def wait_and_act() -> None:
        wait_until(when)
        act()

    acting = threading.Thread(target=wait_and_act)
    acting.start()
    try:
        return trained(context, CONFIG)
    finally:
        acting.join()


@pytest.fixture
def cancel() -> Iterator[Callable[[], None]]:
    """Raises SystemExit in the main thread, as SIGTERM does in the process of a run."""
    before = signal.signal(signal.SIGUSR1, lambda *_: sys.exit(1))
    yield partial(os.kill, os.getpid(), signal.SIGUSR1)
    signal.signal(signal.SIGUSR1, before)


@pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")
def test_two_processes_are_cancelled_killed_and_out_of_memory_and_end_with_the_losses_of_one(
    tmp_path: Path, cancel: Callable[[], None], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    context = open_context(str(tmp_path / "store"), None, 2, "cpu", None, 0.0, processes=2)
    work, before = context.cache / "work" / "train", set(family(os.getpid()))
    with pytest.raises(SystemExit):
        trained_until(lambda: list(work.glob("*/run/checkpoints/step_*")), cancel, context)
    assert_over(context, before)
    [run_dir] = work.glob("*/run")
    events = map(json.loads, (run_dir / "metrics.jsonl").read_text().splitlines())
    saved, interrupted = [event for event in events if event["event"] != "warning"][-2:]
    assert (saved["event"], interrupted["event"]) == ("checkpoint", "interrupted")
    assert saved["step"] == interrupted["step"] >= 5
    alone = json.loads((run_dir.parent / "train.json").read_text()) | {"run_dir": str(tmp_path / "one")}

    later = run_dir / "checkpoints" / f"step_{5 * (saved['step'] // 5) + 10:09d}"
    with pytest.raises(ProcessError) as failure:
        trained_until(later.exists, lambda: os.kill(process_of(1, os.getpid()), signal.SIGKILL), context)
    assert str(failure.value) == "process 2 of 2 of model.train was ended by SIGKILL; run again to resume"
    assert_over(context, before)

    (tmp_path / "sitecustomize.py").write_text(FULL)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{ROOT}")
    result = trained(context, CONFIG)
    assert "micro-batch of 4 sequences (CUDA out of memory.); started again, the run resumes with 2" in caplog.text
    first, second = result.manifest.provenance["execution"]
    assert second["from_step"] > saved["step"]
    assert [first, second] == [
        {**first, "processes": 2, "threads": 1, "micro_batch_sequences": 4},
        {**first, "from_step": second["from_step"], "micro_batch_sequences": 2},
    ]

    (tmp_path / "one.json").write_text(json.dumps(alone))
    assert train_alone([str(tmp_path / "one.json")]) == 0
    losses = [
        {(event["event"], event["step"]): event["loss"] for event in read_metrics(folder) if "loss" in event}
        for folder in (fetch_outputs(result, context), tmp_path / "one")
    ]
    assert len(losses[0]) > 20 and losses[0] == pytest.approx(losses[1], abs=1e-4)


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "program.py").write_text(PROGRAM)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{ROOT}")
    return tmp_path


def test_one_process_that_is_left_holds_the_device(program: Path):
    parent = subprocess.Popen([sys.executable, "-c", PARENT, str(program)], stdout=subprocess.PIPE, text=True)
    assert output_of(parent).readline() == "began\n"
    first, second = family(parent.pid)[1:]
    wait_until(lambda: ignores_sigterm(second))  # which it gets when its parent is gone
    for process in (parent.pid, first):
        os.kill(process, signal.SIGKILL)
    parent.wait()
    output_of(parent).close()
    with (program / "device.lock").open("w") as lock:
        with pytest.raises(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        fcntl.flock(lock, fcntl.LOCK_EX)
    assert not Path(f"/proc/{second}/exe").exists()


DEAF, DIE, OTHER = ["deaf", None], ["die", None], ["fail", "error: the other is gone"]


@pytest.mark.parametrize(
    ("acts", "message"),
    [
        ([[DEAF, ["sleep", 60]], [["sleep", 0.5], ["fail", "error: the value is 7"]]], "the value is 7"),
        ([[DEAF, ["sleep", 1], OTHER], [["sleep", 0.5], ["fail", "error: the value is 7"]]], "the value is 7"),
        (
            [[DEAF, ["sleep", 1], DIE], [["sleep", 0.5], OTHER]],
            "process 1 of 2 of program was ended by SIGKILL; run again",
        ),
        ([[["sleep", 60]], [["sleep", 0.5], DIE]], "process 2 of 2 of program was ended by SIGKILL; run again"),
    ],
)
def test_the_process_that_failed_first_says_why(program: Path, monkeypatch, acts: list, message: str):
    monkeypatch.setattr(ranks, "SECONDS_TO_FOLLOW", 3.0 if DEAF in acts[0] else 60.0)
    began = time.monotonic()
    with pytest.raises(ProcessError) as failure:
        run_module("program", {"acts": acts}, program, lambda event: None, processes=2)
    assert str(failure.value).startswith(message)
    assert "\n" not in str(failure.value) and time.monotonic() - began < 50


@pytest.mark.parametrize("code", [-signal.SIGKILL, ranks.SMALLER_MICRO_BATCH])
def test_what_nobody_gets_from_another_is_the_cause_whichever_is_seen_first(code: int):
    together = ranks.Ranks.__new__(ranks.Ranks)
    ended: list[Any] = [SimpleNamespace(returncode=1), SimpleNamespace(returncode=code)]
    together.processes = ended
    together.failed = [0, 1]
    assert together._cause() == 1
