"""The first process of a container: `python -m deployments.init COMMAND …`.

A container ends with its first process, and with it everything in it that is still saving. This one runs the command,
passes SIGTERM on to it, and has what the command left behind save and end as well: a trainer outlives the process of
its run (tasks/runtime/supervise.py). Besides, the kernel drops a SIGTERM to the first process of a container that does
not handle it: a command that does not would never hear of a `docker stop` or an eviction.
"""

import ctypes
import os
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path

SECONDS = 1200
"""For the largest preset's checkpoint to be written and uploaded (tasks/runtime/grace_period.py); compose.yaml and
job-template.json give as much."""
PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h: orphans become this process's children, also where it is not the first


def children() -> set[int]:
    """The processes of this process, those that it has adopted among them."""
    processes = set()
    for status in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # it has ended meanwhile
            if int(status.read_text().rpartition(")")[2].split()[1]) == os.getpid():
                processes.add(int(status.parent.name))
    return processes


def end_children(seconds: float) -> None:
    """Send SIGTERM to every child, once each, and wait until all have ended or the time is over."""
    asked: set[int] = set()
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        for process in children() - asked:
            os.kill(process, signal.SIGTERM)  # one that has ended is there, as a zombie, until it is waited for
            asked.add(process)
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:  # all have ended
            return
        time.sleep(0.2)


def main(command: list[str]) -> int:
    """Run the command and wait for everything that it has started; its exit code."""
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)
    process = os.posix_spawnp(command[0], command, os.environ)

    def pass_on(number: int, _frame: object) -> None:
        with suppress(ProcessLookupError):
            os.kill(process, number)

    signal.signal(signal.SIGTERM, pass_on)
    signal.signal(signal.SIGINT, lambda *_: None)  # a terminal sends it to the command as well
    ended = status = 0
    while ended != process:
        ended, status = os.wait()
    end_children(SECONDS)
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
