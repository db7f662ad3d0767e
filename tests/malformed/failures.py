"""Inputs that are answered wrongly: a traceback, a hang, too much memory, or a message that says too little."""

import faulthandler
import random
import signal
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from model.errors import LONGEST_SENTENCE, DailyTrainError
from tests.malformed.inputs import Area, Input

SECONDS = 5.0
"""CPU time of one input; the slowest that is taken needs 0.2 s."""
FREE_BYTES, BYTES_A_BYTE = 96 * 2**20, 200
"""Memory that any input may take, and more for each of its bytes."""
LAST_RESORT = 120
"""Seconds after which what even a signal does not end ends the process, with a traceback of where it hangs."""


class TooLong(BaseException):
    """An input took more CPU time than it may."""


@contextmanager
def limited(seconds: float) -> Iterator[None]:
    """Ends Python code after so many seconds of CPU time, or four times as long of waiting, and the process where even
    that is not heard."""

    def too_long(*_: object) -> None:
        raise TooLong

    before = {number: signal.signal(number, too_long) for number in (signal.SIGVTALRM, signal.SIGALRM)}
    signal.setitimer(signal.ITIMER_VIRTUAL, seconds)
    signal.setitimer(signal.ITIMER_REAL, 4 * seconds)
    faulthandler.dump_traceback_later(LAST_RESORT, exit=True)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)
        faulthandler.cancel_dump_traceback_later()
        for number, handler in before.items():
            signal.signal(number, handler)


def peak_bytes() -> int:
    [line] = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
    return int(line.split()[1]) * 1024


def failure(given: Input) -> str | None:
    """What is wrong with how an input was answered; None: nothing."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak is from here on
    before, began = peak_bytes(), time.process_time()
    try:
        with limited(SECONDS):
            given.act()
    except DailyTrainError as error:
        text = str(error)
        if "\n" in text or len(text) > LONGEST_SENTENCE:
            return f"not one sentence: {type(error).__name__}: {text[:150]!r} ({len(text)} characters)"
        if not any(name in text for name in given.names):
            return f"names neither file nor setting: {type(error).__name__}: {text[:200]}"
    except TooLong:
        return "hang"
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        return f"raw {type(error).__name__}: {str(error)[-160:]}"
    if time.process_time() - began > SECONDS:
        return "hang"
    if (taken := peak_bytes() - before) > FREE_BYTES + BYTES_A_BYTE * given.size:
        return f"takes {taken / 2**20:.0f} MiB for an input of {given.size} bytes"
    return None


def failures(area: Area, count: int) -> list[tuple[int, str]]:
    """Those of `count` inputs that are answered wrongly, with the seed that makes each again."""
    found: dict[int, str | None] = {}

    @settings(
        max_examples=count,
        deadline=None,
        database=None,
        derandomize=True,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(st.integers(0, 2**48))
    def every(seed: int) -> None:
        with tempfile.TemporaryDirectory(prefix="malformed-") as folder:
            found[seed] = failure(area(Path(folder), random.Random(seed)))

    every()
    return [(seed, wrong) for seed, wrong in found.items() if wrong]
