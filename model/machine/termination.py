"""Ending a process by a signal so that what it has begun is undone: temporary files, processes of its own."""

import signal
import sys


def unwind(number: int, _frame: object) -> None:
    """Handler of SIGTERM or SIGINT: raises SystemExit with 128 and the signal's number; a second signal is ignored, as
    it would interrupt what the first one has begun."""
    for ending in (signal.SIGTERM, signal.SIGINT):
        signal.signal(ending, signal.SIG_IGN)
    sys.exit(128 + number)
