"""How the CPU threads of this process wait for each other: adapted to what else the processors have to do.

Between two operations the threads of OpenMP wait for work. In GNU's libgomp a waiting thread spins, for some
milliseconds, before it sleeps. That is fastest while each thread has a processor of its own. On a processor that
another program needs too, a thread that spins holds up the one that still computes, and a training takes many times as
long. libgomp spins 1/3000 of that time while a process has more threads than there are processors. So while others slow
this process down, a second team of its threads is kept, all asleep, and libgomp takes the shorter time. The threads
that compute stay the same, and so do the bytes.

Linux with GNU's libgomp alone. Where OMP_WAIT_POLICY or GOMP_SPINCOUNT is set, that decides; others are told of still.
"""

import ctypes
import os
import threading
import time
from pathlib import Path

import torch

SECONDS_BETWEEN_LOOKS = 0.5
SECONDS_BETWEEN_WARNINGS = 600.0
SLOWED, UNDISTURBED = 0.08, 0.03
"""Share of the time in which the threads were ready to compute but had no processor: above the one, others slow this
process down; below the other, for `UNDISTURBED_LOOKS` looks, they do so no more."""
UNDISTURBED_LOOKS = 6
SLOWED_LOOKS = 10
"""In a row, before others are spoken of: a shorter disturbance costs nothing worth a warning."""


class Waiting:
    """While entered, a thread looks twice a second whether others need the processors that this process computes on.
    It does not where a GPU computes, nor where the process itself has more threads than there are processors."""

    def __init__(self, device: torch.device) -> None:
        self.threads = torch.get_num_threads()
        self.processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 0
        self.looks = device.type == "cpu" and self.threads <= self.processors
        chosen = {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & os.environ.keys()
        self.libraries = [] if chosen or self.threads == 1 else _libgomps()
        self.end = threading.Event()
        self.end_of_team: threading.Event | None = None
        """Set, it ends the second team; None: there is none."""
        self.warned_at: float | None = None
        self.warning: str | None = None

    def __enter__(self) -> "Waiting":
        if self.looks:
            threading.Thread(target=self._watch, daemon=True, name="waiting").start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.end.set()

    def take_warning(self) -> str | None:
        """A sentence, once, when others have begun to slow this process down."""
        warning, self.warning = self.warning, None
        return warning

    def _watch(self) -> None:
        delays, at, undisturbed = _delays(), time.monotonic(), 0
        slowed: list[float] = []
        while not self.end.wait(SECONDS_BETWEEN_LOOKS):
            before, delays = delays, _delays()
            then, at = at, time.monotonic()
            delayed = sum(delay - before.get(thread, 0) for thread, delay in delays.items())
            share = delayed / 1e9 / (at - then) / self.threads
            undisturbed = undisturbed + 1 if share < UNDISTURBED else 0
            slowed = [*slowed[1 - SLOWED_LOOKS :], share] if share > SLOWED else []
            if len(slowed) == SLOWED_LOOKS:
                self._warn(sum(slowed) / SLOWED_LOOKS)
            if share > SLOWED and self.end_of_team is None:
                self._keep_team()
            elif undisturbed >= UNDISTURBED_LOOKS:
                self._drop_team()
        self._drop_team()

    def _warn(self, share: float) -> None:
        now = time.monotonic()
        if self.warned_at is None or now - self.warned_at > SECONDS_BETWEEN_WARNINGS:
            self.warned_at = now
            seconds = SLOWED_LOOKS * SECONDS_BETWEEN_LOOKS
            self.warning = (
                f"other programs slow this one down: its {self.threads} CPU threads were ready to compute "
                f"but had no processor for {share:.0%} of the last {seconds:g} s"
            )

    def _keep_team(self) -> None:
        self.end_of_team = threading.Event()
        size = self.processors - self.threads + 2  # with the threads that compute, one more than there are processors
        for library in self.libraries:
            threading.Thread(target=_have_team, args=(library, size, self.end_of_team), daemon=True).start()

    def _drop_team(self) -> None:
        if self.end_of_team is not None:
            self.end_of_team.set()
            self.end_of_team = None


def _have_team(library: ctypes.CDLL, size: int, end: threading.Event) -> None:
    """A thread's team of OpenMP threads, which sleep, lives as long as the thread."""
    library.GOMP_parallel(library.omp_get_thread_num, None, size, 0)
    end.wait()


def _libgomps() -> list[ctypes.CDLL]:
    """Those that this process has loaded."""
    try:
        mapped = [line.split(maxsplit=5) for line in Path("/proc/self/maps").read_text().splitlines()]
    except OSError:
        return []
    return [
        ctypes.CDLL(path)
        for path in sorted({fields[5] for fields in mapped if len(fields) > 5})
        if Path(path).name.startswith("libgomp") and Path(path).exists()
    ]


def _delays() -> dict[str, int]:
    """Nanoseconds for which each thread of this process was ready to run but had no processor; {}: not known."""
    delays = {}
    for thread in Path("/proc/self/task").glob("*"):
        try:
            delays[thread.name] = int((thread / "schedstat").read_text().split()[1])
        except (OSError, IndexError, ValueError):  # the thread has ended, or the kernel does not count
            continue
    return delays
