"""Runs the trainer, passes its events on and uploads its checkpoints: `python -m tasks.supervise CONFIG.json`.

It stands between a run and its trainer, in a session of its own, because the process of a run may be killed at any
moment: Prefect sends SIGKILL 30 s after a cancel, whatever is still being saved. When this process gets SIGTERM, or
nobody reads what it prints any more, it has the trainer save and end, uploads what that saved, and only then ends. The
time for both follows the size of a checkpoint (tasks/grace.py).
"""

import json
import math
import os
import signal
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

from tasks.checkpoints import Uploads
from tasks.grace import seconds_to_save
from tasks.store import open_store

TERMINATED = 128 + signal.SIGTERM  # the trainer's exit code when SIGTERM has ended it (model/train.py)


class Output:
    """Prints events, from any thread, as long as somebody reads them."""

    def __init__(self) -> None:
        self.lock = threading.RLock()  # a signal's handler prints as well
        self.read = True

    def line(self, line: str) -> None:
        with self.lock:
            try:
                print(line, flush=True)
            except BrokenPipeError:
                self.read = False
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())

    def warning(self, message: str) -> None:
        self.line(json.dumps({"event": "warning", "message": message}))


class Supervisor:
    """The trainer as a child process that SIGTERM to this process ends."""

    def __init__(self, command: list[str], output: Output) -> None:
        self.output = output
        self.stopping = self.ended = False
        self.checkpoint_bytes = 0
        # A session of its own, since a signal for all of this group is meant for this process alone. Inherited files
        # stay open: the lock of the device is held as long as the trainer lives.
        self.trainer = subprocess.Popen(
            command, stdout=subprocess.PIPE, text=True, close_fds=False, start_new_session=True
        )
        signal.signal(signal.SIGTERM, lambda *_: self.stop())
        signal.signal(signal.SIGALRM, lambda *_: self.too_late())

    def stop(self) -> None:
        """Have the trainer save and end; once."""
        if not self.stopping:
            self.stopping = True
            self.trainer.terminate()
            self.limit()

    def limit(self) -> None:
        """From now on there is time to write, or to upload, and no more."""
        signal.alarm(math.ceil(seconds_to_save(self.checkpoint_bytes)))

    def too_late(self) -> None:
        """What was to be saved takes too long: end the trainer, or leave the upload."""
        if not self.ended:
            with suppress(ProcessLookupError):
                os.killpg(self.trainer.pid, signal.SIGKILL)
        else:
            self.output.warning("the upload of the last checkpoint took too long; it is on this machine's disk")
            os._exit(1)

    def follow(self, uploads: Uploads) -> int:
        """Pass events on until the trainer has ended and what it saved is uploaded; the trainer's exit code."""
        for line in self.trainer.stdout:
            self.output.line(line.rstrip("\n"))
            if line.startswith("{"):
                event: dict[str, Any] = json.loads(line)
                self.checkpoint_bytes = event.get("checkpoint_bytes", self.checkpoint_bytes)
                uploads(event)
            if not self.output.read:
                self.stop()
        code = self.trainer.wait()
        signal.alarm(0)
        self.ended = True
        if code:
            self.limit()
        uploads.close(keep=code != 0)
        signal.alarm(0)
        return code


def main(argv: list[str] | None = None) -> int:
    """Run the trainer with the configuration that the file names; its exit code."""
    [file] = sys.argv[1:] if argv is None else argv
    config = json.loads(Path(file).read_text())
    output = Output()
    uploads = Uploads(config["key"], Path(config["run_dir"]), open_store(config["store"]), output.warning)
    code = Supervisor([sys.executable, "-m", "model.train", config["config"]], output).follow(uploads)
    if code < 0 or code == TERMINATED:
        number = signal.Signals(-code if code < 0 else signal.SIGTERM)
        print(f"error: model.train was ended by {number.name}; run again to resume", file=sys.stderr)
    return abs(code)


if __name__ == "__main__":
    sys.exit(main())
