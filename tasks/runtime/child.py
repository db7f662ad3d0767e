"""A Python module as a child process that does not outlive its parent: `python tasks/runtime/child.py PARENT SIGNAL
MODULE …`.

However the parent ends, by SIGKILL too, the kernel sends the signal to the child (Linux), which then saves, unwinds or
ends. SIGTERM unwinds a module that does not handle it, so that temporary files and its own children go with it.
"""

import ctypes
import os
import runpy
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

PR_SET_PDEATHSIG = 1  # linux/prctl.h


def child_command(module: str, *arguments: str, ended_by: signal.Signals = signal.SIGTERM) -> list[str]:
    """The command that runs `python -m MODULE ARGUMENT …` and ends with this process, by the signal `ended_by`.

    The kernel takes the end of the thread that starts the command for the end of the process: that thread must wait.
    """
    return [sys.executable, __file__, str(os.getpid()), ended_by.name, module, *arguments]


def end_with_parent(parent: int, by: signal.Signals) -> None:
    """From now on this process gets the signal when its parent, the process of that number, ends."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, by)
    if os.getppid() != parent:  # it has ended before
        os.kill(os.getpid(), by)


def _main(arguments: Sequence[str]) -> None:
    parent, by, module, *rest = arguments
    sys.path[0] = str(Path(__file__).resolve().parents[2])  # not this folder, nor that of whoever uses the command
    from model.machine.termination import unwind  # noqa: PLC0415 (only found from here on)

    for number in (signal.SIGTERM, signal.SIGINT):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, unwind)
    end_with_parent(int(parent), signal.Signals[by])
    sys.argv = [module, *rest]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    _main(sys.argv[1:])
