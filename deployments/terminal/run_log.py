"""The log of a run as a person reads it: on lines of their own, or above the table of a terminal."""

import logging
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import prefect
from prefect.logging.handlers import PrefectConsoleHandler

from deployments.terminal.run_state import RunState
from model.errors import in_one_line

PREFECT = str(Path(prefect.__file__).parent)
RUNS = ("prefect.task_runs", "prefect.flow_runs")
WORDS = {logging.ERROR: "error: ", logging.WARNING: "warning: "}


class RunLogHandler(logging.Handler):
    """Writes records as `11:05:33 download: built in 0.6 s`, at once.

    For a `table` only warnings, errors and retries are written: the rest is what it shows, and how the run ends is said
    below it.
    """

    def __init__(self, write: Callable[[str, int], None], state: RunState, *, table: bool) -> None:
        super().__init__()
        self.write, self.state, self.table = write, state, table

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record, if it is one to read; the state learns which task has failed for good."""
        try:
            message = record.getMessage()
            by_prefect = record.pathname.startswith(PREFECT)
            of_run = record.name in RUNS
            task = getattr(record, "task_name", None)
            if by_prefect and of_run and task and record.levelno >= logging.ERROR:
                self.state.mark_failed(task)
            level = record.levelno
            if by_prefect and of_run and "; retry " in message:
                level = logging.WARNING
            elif by_prefect and (level < logging.WARNING if not of_run else self.table):
                return  # of the temporary server; of states, which the table shows
            elif (self.table and level < logging.WARNING) or message.startswith("Beginning flow run"):
                return
            self.write(self._line(record, message, task, level), level)
        except Exception:
            self.handleError(record)

    def _line(self, record: logging.LogRecord, message: str, task: str | None, level: int) -> str:
        at = time.strftime("%H:%M:%S", time.localtime(record.created))
        word = next((word for least, word in WORDS.items() if level >= least), "")
        name = self.state.label_of(task) if task else getattr(record, "flow_name", "")
        named = f"{name}: " if name and not message.startswith((f"{name}:", f"{name} ")) else ""
        return in_one_line(f"{at} {word}{named}{message}")


@contextmanager
def handled_by(handler: logging.Handler) -> Iterator[None]:
    """Have the handler write whatever the loggers of this process would write on standard error."""
    loggers = [logging.getLogger(), *(logging.getLogger(name) for name in list(logging.root.manager.loggerDict))]
    streams = (sys.stderr, sys.__stderr__)
    replaced = [
        (logger, old)
        for logger in loggers
        for old in list(logger.handlers)
        if isinstance(old, PrefectConsoleHandler) or (isinstance(old, logging.StreamHandler) and old.stream in streams)
    ]
    for logger, old in replaced:
        logger.removeHandler(old)
        logger.addHandler(handler)
    try:
        yield
    finally:
        for logger, old in replaced:
            logger.removeHandler(handler)
            logger.addHandler(old)
