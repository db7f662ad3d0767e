"""Who runs here: an `up`, its server and its worker each hold a lock, a file below PREFECT_HOME, as long as they live.

An `up` that was killed leaves a server and a worker that the kernel has told to end (tasks/runtime/child.py): they are
waited for, since what they leave undone is for the next `up`.
"""

import fcntl
import secrets
import socket
import time
from hashlib import sha256
from typing import IO

from deployments.access import prefect_home

ENDING = "ending\n"


class Lock:
    """The lock of one part of the `up` of a port."""

    def __init__(self, part: str, port: int) -> None:
        self.path = prefect_home() / f"daily-train-{part}-{port}.lock"
        self.file: IO | None = None

    def take(self, seconds: float = 0) -> IO | None:
        """Hold the lock until this process ends, and those that inherit the file; None: another holds it so long."""
        deadline = time.monotonic() + seconds
        while True:
            file = self.path.open("a+")
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                file.close()
                if time.monotonic() >= deadline:
                    return None
                time.sleep(0.2)
            else:
                self.file = file
                return file

    def take_from_ending(self, seconds: float) -> IO | None:
        """Hold the lock; whoever holds it is waited for if it has said that it is ending."""
        file = self.take()
        if file is None and self.path.read_text() == ENDING:
            file = self.take(seconds)
        if file:
            file.truncate(0)
        return file

    def say_ending(self) -> None:
        """For others, if this process holds the lock."""
        if self.file:
            self.file.write(ENDING)
            self.file.flush()

    def owner(self) -> str:
        """A name for whoever holds the lock, now and after a restart of the machine. A copy of the folder, on another
        machine or not, has another name: what runs there is not ours."""
        if not self.path.exists() or not self.path.read_text():
            self.path.write_text(secrets.token_hex(16))
        known = f"{self.path.read_text()} {self.path.stat().st_ino}"
        return f"{socket.gethostname()} {sha256(known.encode()).hexdigest()[:8]}"
