"""Processes that a test starts: what they print, whose children they are, and when they have got somewhere."""

import subprocess
import time
from collections.abc import Callable
from typing import IO


def output_of(process: subprocess.Popen[str]) -> IO[str]:
    """The pipe that the process writes its standard output to."""
    assert process.stdout is not None, "it was started with stdout=PIPE"
    return process.stdout


def family(process: int) -> list[int]:
    """A process, its children and theirs."""
    children = subprocess.run(["pgrep", "-P", str(process)], capture_output=True, text=True, check=False)
    return [process, *(member for child in children.stdout.split() for member in family(int(child)))]


def wait_until(condition: Callable[[], object], seconds: float = 300) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} s"
        time.sleep(0.02)
