"""The contract of the modules that run as their own process: `python -m eval.NAME CONFIG.json`.

* One JSON object in, which `model/parsing.py` reads as the dataclass of the command.
* Progress as JSON lines on stdout: `{"event": "progress", "done", "total"}` at most once a second, and a last
  `{"event": "done", ...}`.
* A failure is one line `error: ...` on stderr and exit status 1 (model/errors.py). SIGTERM unwinds the process, so
  that worker processes do not outlive it.
"""

import json
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from model.errors import name_file_in_errors, print_error
from model.machine.termination import unwind
from model.parsing import Config, ConfigError, read_json


@dataclass
class Progress:
    """Prints progress events; `clock` gives seconds."""

    total: int
    clock: Callable[[], float] = time.monotonic
    _last: float = -1e9

    def __call__(self, done: int) -> None:
        now = self.clock()
        if now - self._last >= 1.0 or done == self.total:
            self._last = now
            emit({"event": "progress", "done": done, "total": self.total})


def emit(event: dict) -> None:
    """One JSON line on stdout, flushed, so that a parent process can follow."""
    print(json.dumps(event), flush=True)


def run(
    arguments: list[str],
    cls: type[Config],
    work: Callable[[Config], dict],
) -> int:
    """Runs `work(config)` under the contract above and returns the exit status.

    `work` returns the fields of the last event.
    """
    signal.signal(signal.SIGTERM, unwind)
    try:
        if len(arguments) != 1:
            raise ConfigError(f"expected one argument, the path of a JSON configuration, found {arguments}")
        config = read_json(Path(arguments[0]), cls)
        with name_file_in_errors(getattr(config, "out", Path(arguments[0]))):
            emit({"event": "done"} | work(config))
    except Exception as error:
        return print_error(error)
    return 0
