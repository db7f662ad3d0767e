"""One module as several processes that work together, one for each GPU: started, ended and explained as one child.

It does what `torchrun` does for one machine. torchrun itself closes inherited files, so that the lock of the device
would be free while its processes still use the device; when it is killed they go on alone; it kills them 30 s after
SIGTERM, whatever they save; and what it says of a failure is a page. The first process prints events; each has a file
for its errors, so that the reason of a failure is told in the words of the process that failed first.
"""

import os
import signal
import socket
import subprocess
import tempfile
import threading
import time
from contextlib import nullcontext, suppress
from pathlib import Path

from tasks.runtime.child import child_command
from tasks.store.provenance import PROJECT

TERMINATED = 128 + signal.SIGTERM
"""The exit code of a process that has ended because of SIGTERM (model/train.py, eval/command.py)."""
SMALLER_MICRO_BATCH = 75
"""The exit code of a training that is to be started again with the recorded micro-batch (model/train.py)."""
SECONDS_TO_FOLLOW = 10.0
"""For the others to end when one has failed, and for the first to write what it has begun to write. Those that wait for
the one that failed do not end by themselves: on a GPU only after half an hour."""
SECONDS_TO_EXPLAIN = 1.0
"""For the others to end by themselves before they are asked: one whose memory was full closes its connections, by which
the others fail, before it has ended with the code that says so."""


class Ranks:
    """`count` processes of `python -m MODULE CONFIG`, which end with this one; `stdout` is that of the first."""

    def __init__(self, module: str, config: Path | str, count: int = 1, descriptors: tuple[int, ...] | None = None):
        """`descriptors`: open files that the processes inherit; None: all that can be inherited."""
        self.module = module
        self.errors = [tempfile.TemporaryFile("w+") for _ in range(count)]  # noqa: SIM115 (held while they run)
        self.processes: list[subprocess.Popen] = []
        self.failed: list[int] = []
        """Ranks in the order in which they failed, without those that were killed because another had failed."""
        self.killed = False
        self.words = ""
        """What the process that failed first wrote to stderr, and which signal ended it, if one did."""
        self.lock = threading.Lock()
        command = child_command(module, str(config))
        # the first process listens there for the others; it inherits the socket, so nobody else can take the port
        with socket.create_server(("127.0.0.1", 0)) if count > 1 else nullcontext() as listening:
            for rank in range(count):
                self.processes.append(self._start(command, rank, listening, descriptors))
        stdout = self.processes[0].stdout
        assert stdout is not None  # a pipe
        self.stdout = stdout
        self.watches = [threading.Thread(target=self._watch, args=(rank,), daemon=True) for rank in range(count)]
        for watch in self.watches:
            watch.start()

    def _start(
        self, command: list[str], rank: int, listening: socket.socket | None, descriptors: tuple[int, ...] | None
    ) -> subprocess.Popen:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT__")}
        inherited = {"close_fds": False} if descriptors is None else {"pass_fds": descriptors}
        if listening is not None:
            environment |= {
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "WORLD_SIZE": str(len(self.errors)),
                "LOCAL_WORLD_SIZE": str(len(self.errors)),
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(listening.getsockname()[1]),
                "MASTER_DESCRIPTOR": "" if rank else str(listening.fileno()),
            }
            listening.set_inheritable(rank == 0)
            if descriptors is not None and rank == 0:
                inherited = {"pass_fds": (*descriptors, listening.fileno())}
        try:
            return subprocess.Popen(
                command,
                stdout=subprocess.DEVNULL if rank else subprocess.PIPE,
                stderr=self.errors[rank],
                text=True,
                cwd=PROJECT,
                env=environment,
                # a session of its own: a signal for all of this group is meant for this process alone
                start_new_session=True,
                **inherited,
            )
        except BaseException:
            self.signal(signal.SIGKILL)
            raise

    def _watch(self, rank: int) -> None:
        """When this process is the first to fail, ask the others to end, and kill them if they do not."""
        if (code := self.processes[rank].wait()) == 0:
            return
        with self.lock:
            if not self.killed:
                self.failed.append(rank)
            if self.failed != [rank]:
                return
        if code not in (TERMINATED, -signal.SIGTERM):  # else all were asked
            self._wait_for_all(SECONDS_TO_EXPLAIN)
            self.signal(signal.SIGTERM)
        self._wait_for_all(SECONDS_TO_FOLLOW)
        with self.lock:
            self.killed = True
        self.signal(signal.SIGKILL)

    def _wait_for_all(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        for process in self.processes:
            with suppress(subprocess.TimeoutExpired):
                process.wait(max(0.0, deadline - time.monotonic()))

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to every process that is left, and to what it started."""
        for process in self.processes:
            if process.poll() is None:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, number)

    def ended(self) -> bool:
        return all(process.poll() is not None for process in self.processes)

    def wait(self, seconds: float | None = None) -> int:
        """The exit code of the process that failed first, below 0 for a signal; 0: none failed. `words` are its own.

        Raises subprocess.TimeoutExpired when one is still there after so many seconds.
        """
        deadline = None if seconds is None else time.monotonic() + seconds
        for process in self.processes:
            process.wait(None if deadline is None else max(0.0, deadline - time.monotonic()))
        for watch in self.watches:
            watch.join()
        rank = self._cause()
        code = self.processes[rank].returncode
        self.errors[rank].seek(0)
        self.words = self.errors[rank].read().strip()
        if code < 0 or (code == TERMINATED and "error: " not in self.words):
            self.words += f"\nerror: {self._ended_by_signal(rank, code)}"
        return code

    def _cause(self) -> int:
        """The process that failed first. SIGKILL and a full memory come before everything else: nobody gets them from
        a failure of another, and the failure of another may be seen first."""
        own = (-signal.SIGKILL, SMALLER_MICRO_BATCH)
        certain = [rank for code in own for rank in self.failed if self.processes[rank].returncode == code]
        return [*certain, *self.failed, 0][0]

    def _ended_by_signal(self, rank: int, code: int) -> str:
        number = signal.Signals(-code if code < 0 else signal.SIGTERM)
        alone = len(self.processes) == 1 or number is signal.SIGTERM  # which is for all of them
        who = self.module if alone else f"process {rank + 1} of {len(self.processes)} of {self.module}"
        return f"{who} was ended by {number.name}; run again to resume"
