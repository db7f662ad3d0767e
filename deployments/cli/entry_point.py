"""The command `daily-train`: a small process that answers to signals at any moment, and the real one as its child.

Python handles a signal between two instructions of its main thread, and not while that is in C code: waiting for a hub
or a disk, training a tokenizer, reading a table. So this process imports nothing large and does nothing but wait. It
adopts whatever the command starts and leaves behind: SIGTERM, Ctrl-C or a terminal that is closed ends all of it within
15 s, `up` within a minute, but for a training, which saves its last step first (tasks/runtime/grace_period.py says how
long). Should this process be killed itself, its child ends with it, and so do the children of that
(tasks/runtime/child.py).
"""

import ctypes
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from deployments.init import PR_SET_CHILD_SUBREAPER
from deployments.init import SECONDS as SECONDS_FOR_LARGEST
from deployments.terminal.stop_line import kept_and_how_to_go_on
from tasks.runtime.child import end_with_parent

if TYPE_CHECKING:
    from subprocess import Popen

STOPPING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
SECONDS_TO_UNWIND = 9.0
"""For the command to end its children, to tell the server and to remove its temporary files."""
SECONDS_OF_UP = 50.0
"""The same for `up`, whose worker kills its runs after 30 s."""
SECONDS_TO_END = 3.0
"""For what the command has left behind."""
SAVES = (b"tasks.runtime.supervise", b"model.train")
"""Children that save before they end."""
_interrupted = False
"""Whether a signal has asked this process to end."""
_watched = False
"""Whether this process is the child that `continue_in_child` has made."""


def main() -> int:
    """The console script `daily-train`."""
    continue_in_child()
    from deployments.cli import commands  # noqa: PLC0415 (takes seconds, in which a signal is answered to already)

    return run_interruptibly(commands.main)


def continue_in_child() -> None:
    """Return in a new process; this one waits for it, ends what it leaves behind, and exits with its code.

    Elsewhere than on Linux, where processes are not adopted, there is one process as of any program.
    """
    open_standard_streams()
    if sys.platform != "linux":
        return
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)
    heard = [number for number in STOPPING if signal.getsignal(number) is not signal.SIG_IGN]  # nohup stays nohup
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [*heard, signal.SIGCHLD])
    parent = os.getpid()
    command = os.fork()
    if command:
        os._exit(_CommandWatch(command, heard).code())
    end_with_parent(parent, signal.SIGKILL)
    global _watched
    _watched = True
    for number in heard:
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, before)


def open_standard_streams() -> None:
    """Let standard input, output and errors that are closed (`>&-`) be nothing. Else Python has none, and the next file
    that is opened takes their place."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free, which is this one
            os.set_inheritable(number, True)
            setattr(sys, name, os.fdopen(number, "w" if number else "r", closefd=False))


def run_interruptibly(main: Callable[[], int]) -> int:
    """The exit code of `main`, which a signal interrupts from now on; until now it has ended this process.

    Once interrupted, it ends without waiting for its threads, which wait for whatever did not answer. The process that
    waits for this one says what is kept.
    """
    for number in STOPPING:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _interrupt)
    code = main()
    if code == 128 + signal.SIGINT and not _watched:
        print(f"daily-train: stopped; {kept_and_how_to_go_on(sys.argv)}", file=sys.stderr)
    if code == 128 + signal.SIGINT and sys.platform == "linux":  # what it leaves behind is ended
        with suppress(OSError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)
    return code


def end_when_child_ends(child: "Popen", name: str, stopped: threading.Event) -> None:
    """From now on the command ends, as SIGTERM ends it, when a child that it cannot do without has ended although
    nobody has `stopped` it."""

    def wait() -> None:
        code = child.wait()
        if stopped.is_set():
            return
        by = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"has ended with code {code}"
        with suppress(OSError):  # above a table, where there is one
            print(f"daily-train: error: {name} {by}; what is finished is kept", file=sys.stderr, flush=True)
        if _watched:
            os.kill(os.getppid(), signal.SIGTERM)

    threading.Thread(target=wait, daemon=True, name="end_when_child_ends").start()


def was_interrupted() -> bool:
    """Whether a signal has asked this process to end: what fails from then on fails for that reason."""
    return _interrupted


def _interrupt(_number: int, _frame: object) -> None:
    """Unwind, once: a second signal must not disturb that."""
    global _interrupted
    _interrupted = True
    for number in STOPPING:
        signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt


class _CommandWatch:
    """Waits for the command, with the signals `heard` blocked, and ends what it leaves behind."""

    def __init__(self, command: int, heard: list[signal.Signals]) -> None:
        self.command, self.heard = command, heard
        self.status: int | None = None
        self.asked = 0
        """The first signal."""
        self.up = "up" in sys.argv[1:2]

    def code(self) -> int:
        deadline = None
        while self.status is None:
            if self._wait(deadline) and deadline is None:
                deadline = time.monotonic() + (SECONDS_OF_UP if self.up else SECONDS_TO_UNWIND)
            if deadline is not None and time.monotonic() > deadline and self.status is None:
                if not self.up and (saving := [process for process in descendants() if _saves(process)]):
                    for process in saving:  # again, should the command not have come to it
                        _send(process, signal.SIGTERM)
                    deadline = time.monotonic() + SECONDS_TO_END  # to tell the server, when that is done
                else:
                    _send(self.command, signal.SIGKILL)
                    deadline = time.monotonic() + 1
        self._end_what_is_left()
        return self._told()

    def _wait(self, deadline: float | None) -> bool:
        """Until a process or the time has ended, or a signal has come; whether the command was asked to end."""
        rest = 0.5 if deadline is not None else 3600.0
        received = signal.sigtimedwait([*self.heard, signal.SIGCHLD], rest)
        if received is not None and received.si_signo != signal.SIGCHLD and not self.asked:
            self.asked = received.si_signo
            _send(self.command, signal.SIGINT if signal.SIGINT in self.heard else signal.SIGTERM)
        with suppress(ChildProcessError):
            while (ended := os.waitpid(-1, os.WNOHANG))[0]:
                if ended[0] == self.command:
                    self.status = ended[1]
        return bool(self.asked)

    def _end_what_is_left(self) -> None:
        """SIGTERM, time to end, and SIGKILL; trainings have the time they need, and do without `up`."""
        began, asked, killed = time.monotonic(), set(), set()
        while left := [process for process in descendants() if not (self.up and _saves(process))]:
            passed = time.monotonic() - began
            for process in left:
                if process not in asked:
                    _send(process, signal.SIGTERM)
                    asked.add(process)
                if passed > (SECONDS_FOR_LARGEST if _saves(process) else SECONDS_TO_END):
                    _send(process, signal.SIGKILL)
                    killed.add(process)
            if killed.issuperset(left) and passed > SECONDS_TO_END + 1:  # the kernel does not let them go
                return
            self._wait(began)

    def _told(self) -> int:
        """The exit code; says why, where the command did not end by itself, and how to go on."""
        code = os.waitstatus_to_exitcode(self.status or 0)
        if self.asked or code == 128 + signal.SIGINT:
            self._say(code, "stopped")
        elif code < 0:
            self._say(code, f"error: its process was ended by {signal.Signals(-code).name}")
        if self.asked:
            return 128 + self.asked
        return code if code >= 0 else 128 - code

    def _say(self, code: int, what: str) -> None:
        restored = "\x1b[?25h\n" if code < 0 and os.isatty(2) else ""  # a table hides the cursor
        with suppress(OSError):
            os.write(2, f"{restored}daily-train: {what}; {kept_and_how_to_go_on(sys.argv)}\n".encode())


def descendants() -> list[int]:
    """The processes below this one that have not ended, children before theirs (Linux)."""
    children: dict[int, list[int]] = {}
    for status in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # it has ended meanwhile
            state, parent = status.read_text().rpartition(")")[2].split()[:2]
            if state not in "ZX":
                children.setdefault(int(parent), []).append(int(status.parent.name))
    processes = list(children.get(os.getpid(), []))
    for process in processes:
        processes += children.get(process, [])
    return processes


def _send(process: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.kill(process, number)


def _saves(process: int) -> bool:
    with suppress(OSError):
        return any(word in Path(f"/proc/{process}/cmdline").read_bytes().split(b"\0") for word in SAVES)
    return False


if __name__ == "__main__":
    sys.exit(main())
