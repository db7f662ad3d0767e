"""Runs the trainer, passes its events on and uploads its checkpoints: `python -m tasks.runtime.supervise CONFIG.json`.

CONFIG.json holds `config`, the trainer's own file, `processes`, how many train together, `key` and `store` of the
checkpoints, and `run_dir`.

It stands between a run and its trainer, in a session of its own, because the process of a run may be killed at any
moment: Prefect sends SIGKILL 30 s after a cancel, whatever is still being saved. When this process gets SIGTERM, or
nobody reads what it prints any more, it has the trainer save and end, uploads what that saved, and only then ends. The
time for both follows the size of a checkpoint (tasks/runtime/grace_period.py).

When the memory of the GPU of one of several processes is full, the trainer records half the micro-batch and ends; it is
started again then, as long as the recorded one becomes smaller.
"""

import json
import math
import os
import signal
import sys
import threading
from pathlib import Path
from typing import Any

from model.errors import print_error
from tasks.runtime.grace_period import seconds_to_save
from tasks.runtime.ranks import SMALLER_MICRO_BATCH, Ranks
from tasks.store.backends import open_store
from tasks.store.checkpoints import CheckpointUploads


class EventPrinter:
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
    """The trainer as a child, of one or several processes, that SIGTERM to this process ends."""

    def __init__(self, config: str, run_dir: Path, processes: int, output: EventPrinter) -> None:
        self.config, self.run_dir, self.processes = config, run_dir, processes
        self.output = output
        self.stopping = self.ended = False
        self.checkpoint_bytes = 0
        self.trainer = self._start()
        signal.signal(signal.SIGTERM, lambda *_: self.stop())
        signal.signal(signal.SIGALRM, lambda *_: self.too_late())

    def _start(self) -> Ranks:
        # all open files are inherited: the lock of the device is held as long as any process of the trainer lives
        return Ranks("model.train", self.config, self.processes)

    def stop(self) -> None:
        """Have the trainer save and end; once."""
        if not self.stopping:
            self.stopping = True
            self.trainer.signal(signal.SIGTERM)
            self.limit()

    def limit(self) -> None:
        """From now on there is time to write, or to upload, and no more."""
        signal.alarm(math.ceil(seconds_to_save(self.checkpoint_bytes)))

    def too_late(self) -> None:
        """What was to be saved takes too long: end the trainer, or leave the upload."""
        if not self.ended:
            self.trainer.signal(signal.SIGKILL)
        else:
            self.output.warning("the upload of the last checkpoint took too long; it is on this machine's disk")
            os._exit(1)

    def follow(self, uploads: CheckpointUploads) -> int:
        """Pass events on until the trainer has ended and what it saved is uploaded; the trainer's exit code."""
        micro_batch = math.inf
        while True:
            self._pass_on(uploads)
            code = self.trainer.wait()
            before, micro_batch = micro_batch, self._micro_batch()
            if code != SMALLER_MICRO_BATCH or self.stopping or micro_batch >= before:
                break
            self.output.warning(self.trainer.words.rpartition("error: ")[2])
            self.trainer = self._start()
            if self.stopping:  # meanwhile
                self.trainer.signal(signal.SIGTERM)
        signal.alarm(0)
        self.ended = True
        if code:
            self.limit()
        uploads.close(keep=code != 0)
        signal.alarm(0)
        return code

    def _pass_on(self, uploads: CheckpointUploads) -> None:
        for line in self.trainer.stdout:
            self.output.line(line.rstrip("\n"))
            if line.startswith("{"):
                event: dict[str, Any] = json.loads(line)
                self.checkpoint_bytes = event.get("checkpoint_bytes", self.checkpoint_bytes)
                uploads(event)
            if not self.output.read:
                self.stop()

    def _micro_batch(self) -> int:
        """Sequences that go through the network at once, as the trainer has recorded it; 0: it has not."""
        try:
            return json.loads((self.run_dir / "run.json").read_text())["execution"][-1]["micro_batch_sequences"]
        except (OSError, ValueError, LookupError):
            return 0


def main(argv: list[str] | None = None) -> int:
    """Run the trainer with the configuration that the file names; its exit code."""
    try:
        [file] = sys.argv[1:] if argv is None else argv
        config = json.loads(Path(file).read_text())
        run_dir, output = Path(config["run_dir"]), EventPrinter()
        uploads = CheckpointUploads(config["key"], run_dir, open_store(config["store"]), output.warning)
        supervisor = Supervisor(config["config"], run_dir, config["processes"], output)
        code = supervisor.follow(uploads)
    except Exception as error:
        return print_error(error)
    if code:
        print(supervisor.trainer.words, file=sys.stderr)
    return abs(code)


if __name__ == "__main__":
    sys.exit(main())
