"""The metrics file: one JSON object a line, also printed, so that a person or a task can follow.

In a terminal a progress bar takes the place of the printed lines.
"""

import json
import os
import sys
from pathlib import Path
from typing import Protocol

from model.training.progress_bar import ProgressBar


def read_lines(path: Path) -> list[dict]:
    """All whole lines of a metrics file; a line cut short by a crash ends it."""
    lines = []
    if path.exists():
        for text in path.read_text(errors="replace").splitlines():
            try:
                lines.append(json.loads(text))
            except ValueError:
                break
    return lines


class EventLog(Protocol):
    """Where the events of a run go."""

    def write(self, event: str, **values: object) -> None:
        """Record one event."""


class MetricsLog:
    """Appends events to a file. Times appear here only, so every other output can be compared byte by byte."""

    def __init__(self, path: Path, *, resumed_step: int) -> None:
        """Drop what was written after the resumed step: those steps are done again."""
        lines = read_lines(path) if resumed_step else []
        kept = [line for line in lines if line.get("step", 0) <= resumed_step]
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(path.name + ".tmp")
        temporary.write_text("".join(json.dumps(line) + "\n" for line in kept))
        temporary.replace(path)
        self._file = open(path, "a")  # noqa: SIM115 (held for the whole run)
        self._bar = ProgressBar(sys.stdout) if sys.stdout.isatty() else None
        self.followed = True
        """Whether whoever reads what is printed is still there."""

    def write(self, event: str, **values: object) -> None:
        line = json.dumps({"event": event} | values, allow_nan=False)
        self._file.write(line + "\n")
        self._file.flush()
        if self._bar is not None:
            self._bar.show({"event": event} | values)
            return
        try:
            print(line, flush=True)
        except BrokenPipeError:
            self.followed = False
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or the flush at exit fails once more

    def __enter__(self) -> "MetricsLog":
        return self

    def __exit__(self, *exception: object) -> None:
        self._file.close()


class Events:
    """Events of a run that does not know yet at which step it resumes: kept until its metrics are open."""

    def __init__(self) -> None:
        self.kept: list[tuple[str, dict]] = []
        self._log: EventLog | None = None

    def write(self, event: str, **values: object) -> None:
        if self._log is None:
            self.kept.append((event, values))
        else:
            self._log.write(event, **values)

    def open(self, log: EventLog | None, step: int = 0) -> None:
        """Write into this log from here on, first what was kept (of `step` where it names none); None: keep again."""
        self._log = log
        if log is not None:
            for event, values in self.kept:
                log.write(event, **{"step": step} | values)
            self.kept = []


class NoLog:
    """The log of every process but the first."""

    followed = True

    def write(self, event: str, **values: object) -> None:
        pass

    def __enter__(self) -> "NoLog":
        return self

    def __exit__(self, *exception: object) -> None:
        pass
