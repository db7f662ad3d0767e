"""Which runs of the Prefect server the processes of this machine execute, and which trainings outlive their runs.

A worker gives the process of a run, and so all that it starts, the run's id in the environment. The kernel shows a
process's environment as it was at its start, to its own user alone (Linux).
"""

import os
import signal
from collections import defaultdict
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

VARIABLE = b"PREFECT__FLOW_RUN_ID="
TRAINING = (b"tasks.runtime.supervise", b"model.train", b"tasks.runtime.ranks")
"""Modules that go on saving when the process of their run is gone; everything else executes the run."""


@dataclass(frozen=True)
class RunProcess:
    """The process that executes a run."""

    number: int
    started: str
    """When, in the kernel's ticks: a number is given to other processes later."""
    attended: bool
    """Whether a worker started it and lives."""

    def kill(self) -> None:
        """End it; the kernel tells its children, and a trainer saves (tasks/runtime/supervise.py)."""
        with suppress(OSError):
            if _status(Path(f"/proc/{self.number}"))[19] == self.started:
                os.kill(self.number, signal.SIGKILL)


@dataclass(frozen=True)
class RunProcesses:
    """The processes of this machine that belong to runs."""

    executing: dict[str, RunProcess]
    """By the id of the run, with hyphens."""
    saving: frozenset[str]
    """Ids of runs that have a trainer, which saves when its run ends."""


def find_run_processes(processes: Path = Path("/proc")) -> RunProcesses | None:
    """All of this user. None: this system does not show them."""
    if not (processes / "self" / "environ").exists():
        return None
    found: dict[str, dict[str, list[str]]] = defaultdict(dict)
    saving = set()
    for process in processes.glob("[0-9]*"):
        with suppress(OSError):  # of another user, or ended meanwhile
            environment = (process / "environ").read_bytes().split(b"\0")
            entry = next((entry for entry in environment if entry.startswith(VARIABLE)), None)
            if entry is None:
                continue
            run = entry.removeprefix(VARIABLE).decode()
            if any(module in (process / "cmdline").read_bytes() for module in TRAINING):
                saving.add(run)
            else:
                found[run][process.name] = _status(process)
    executing = {}
    for run, members in found.items():
        # all but the first are children of one of them
        first = next((number for number, status in members.items() if status[1] not in members), next(iter(members)))
        status = members[first]
        executing[run] = RunProcess(int(first), status[19], _is_worker(processes / status[1]))
    return RunProcesses(executing, frozenset(saving))


def _status(process: Path) -> list[str]:
    """Fields of `stat` from the third on (proc_pid_stat(5)): state, parent, …, the 20th the time it was started."""
    return (process / "stat").read_text().rpartition(")")[2].split()


def _is_worker(process: Path) -> bool:
    with suppress(OSError):
        command = (process / "cmdline").read_bytes().split(b"\0")
        return b"worker" in command and b"prefect" in b" ".join(command)
    return False
