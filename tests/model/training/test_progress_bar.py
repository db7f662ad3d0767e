"""The progress bar of a training in a terminal."""

import os
import pty
import subprocess
import sys
from pathlib import Path

from model.training.progress_bar import describe
from tests.model.training.small_run import write_run


def test_a_terminal_shows_a_bar_instead_of_json(tmp_path: Path):
    master, slave = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "model.train", str(write_run(tmp_path, "run"))],
        stdout=slave,
        env=os.environ | {"COLUMNS": "100"},
    )
    os.close(slave)
    shown = b""
    while True:
        try:
            shown += os.read(master, 65536)
        except OSError:  # how Linux says that the other end is closed
            break
    assert process.wait() == 0
    lines = shown.decode().replace("\r\x1b[K", "\n").splitlines()
    bars = [line for line in lines if line.startswith(("█", "░"))]
    assert [bar.split()[1] for bar in dict.fromkeys(bars)] == ["1/20", "5/20", "10/20", "15/20", "20/20"]
    assert "{" not in shown.decode() and any(line.startswith("validation step 10") for line in lines)
    assert all(len(line) < 100 for line in bars)


def test_the_bar_tells_share_speed_and_time_left():
    line = describe({"step": 250, "steps": 1000, "tokens": 250_000, "loss": 3.5, "tokens_per_second": 100})
    assert line.split() == ["█" * 6 + "░" * 18, "250/1,000", "loss", "3.5000", "100", "tok/s", "2:05:00", "left"]
