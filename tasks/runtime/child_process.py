"""Heavy work in a child process of its own: its memory comes back, its crash stays its own, it can be cancelled.

The child gets one JSON file and prints one JSON object a line. On cancellation the whole process group gets
SIGTERM, time to save that follows the size of its checkpoints, and then SIGKILL. A child that uses the device holds a
lock of this machine, so that a second run waits; the kernel frees it when the last process that uses the device is
gone, however it ended. A child may be several processes, one for each GPU (tasks/runtime/ranks.py).
"""

import json
import math
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from model.errors import DEBUG, DailyTrainError, debugging
from tasks.runtime.grace_period import seconds_to_end
from tasks.runtime.liveness import LivenessWatch
from tasks.runtime.lock import locked
from tasks.runtime.ranks import Ranks
from tasks.runtime.stage_events import note, progress


class ProcessError(DailyTrainError):
    """A child process ended with an error; the message is the child's own last words."""


def run_module(
    module: str,
    config: dict[str, Any],
    work: Path,
    on_event: Callable[[dict[str, Any]], None],
    lock: Path | None = None,
    prepare: Callable[[], None] = lambda: None,
    processes: int = 1,
) -> None:
    """Run `python -m MODULE CONFIG.json` to its end, handing every JSON line of its output to `on_event`, and every
    other line as an event `output`.

    With a `lock` it waits until no other process on this machine holds that, after an event `waiting`. `prepare` is
    called when the lock is held. A child that saves says by an event with `checkpoint_bytes` how much. Of several
    `processes` the output of the first is followed.
    Raises ProcessError when it fails.
    """
    work.mkdir(parents=True, exist_ok=True)
    config_file = work / f"{module.rsplit('.', 1)[-1]}.json"
    config_file.write_text(json.dumps(config, indent=1))
    checkpoint_bytes = 0
    with _device_lock(lock, on_event) as descriptors:
        prepare()
        child = Ranks(module, config_file, processes, descriptors)
        try:
            watch = LivenessWatch()
            for line in child.stdout:
                if watch.cancelled():
                    _end_child(child, checkpoint_bytes, on_event)
                    watch.leave()
                if line.startswith("{"):
                    event = _event(module, line)
                    checkpoint_bytes = event.get("checkpoint_bytes", checkpoint_bytes)
                    if event["event"] == "progress":
                        progress(event["done"], event["total"])
                    on_event(event)
                elif line.strip():
                    on_event({"event": "output", "line": line.rstrip()})
            code = child.wait()
        except BaseException:
            _end_child(child, checkpoint_bytes, on_event)
            raise
    if code:
        raise ProcessError(_last_words(module, code, child.words))


def _event(module: str, line: str) -> dict[str, Any]:
    """One line of a child's output; a library may print what begins as an object does."""
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return {"event": "output", "line": line.rstrip()}


@contextmanager
def _device_lock(lock: Path | None, on_event: Callable[[dict[str, Any]], None]) -> Iterator[tuple[int, ...]]:
    """Hold a lock file; gives the descriptor that a child inherits, since the child may outlive this process."""
    if lock is None:
        yield ()
        return

    def wait(message: str) -> None:
        note(f"waits {message}")
        on_event({"event": "waiting", "until": message})

    with locked(lock, wait) as descriptor:
        yield (descriptor,)


def _end_child(child: Ranks, checkpoint_bytes: int, on_event: Callable[[dict[str, Any]], None]) -> None:
    """Ask the child to end and wait. Nobody reads its output any more: it is closed, so that no full pipe holds it."""
    if child.ended():
        return
    child.signal(signal.SIGTERM)
    child.stdout.close()
    seconds = seconds_to_end(checkpoint_bytes)
    with suppress(Exception):  # it may be what failed
        on_event({"event": "ending", "at_most_seconds": math.ceil(seconds)})
    try:
        child.wait(seconds)
    except subprocess.TimeoutExpired:
        child.signal(signal.SIGKILL)
        child.wait()


def _last_words(module: str, code: int, words: str) -> str:
    for line in reversed(words.splitlines()):
        if line.startswith("error: "):
            return line.removeprefix("error: ")
    if debugging():
        print(words, file=sys.stderr)
    last = next((line for line in reversed(words.splitlines()) if line.strip()), "it printed nothing on stderr")
    return f"{module} failed with exit code {code}: {last}; {DEBUG}=1 shows all it printed"
