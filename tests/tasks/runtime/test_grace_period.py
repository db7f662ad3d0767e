"""Nothing is lost when a run is ended, however large its checkpoint and however slow disk and store are.

A checkpoint of 14 GB, a disk and a store that take 200 MB/s, and the 30 s after which Prefect kills the process of a
run: all of it with fewer bytes and shorter seconds.
"""

import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tasks.runtime.grace_period import seconds_to_end, seconds_to_save
from tasks.store.context import open_context
from tests.processes import wait_until
from tests.tasks.store.test_checkpoints import trained, uploaded

ROOT = Path(__file__).resolve().parents[3]
SECOND = 1 / 30  # of the real world, here
BYTES = 245_768  # of a checkpoint here
BYTE = BYTES / 14e9  # of the real world, here
SLOW = 200e6 * BYTE / SECOND  # bytes a second


# In every process: the limits, scaled; in the trainer: a slow disk, and no end before the signal.
SITE = f"""
import sys, time
from tasks.runtime import grace_period
grace_period.SECONDS *= {SECOND}
grace_period.BYTES_PER_SECOND *= {BYTE / SECOND}
if "model.train" in sys.orig_argv:
    from model.training import checkpoint
    from tests.lingering import linger
    linger()
    write = checkpoint.write_tensors

    def write_slowly(path, tensors):
        written = write(path, tensors)
        time.sleep(written["bytes"] / {SLOW})
        return written

    checkpoint.write_tensors = write_slowly
"""


# The process of a run; SIGTERM raises there, as in Prefect's engine.
RUN = """
import signal, sys
from tests.tasks.runtime.test_grace_period import *

def end(*_):
    raise SystemExit(1)

signal.signal(signal.SIGTERM, end)
trained(open_context(sys.argv[1], sys.argv[2], 1, "cpu", None, 0.0, checkpoint_every_minutes=1e-3))
"""


class SlowNetwork:
    """A way to a server that passes so many bytes a second on to it, over all connections together."""

    def __init__(self, host: str, port: int, rate: float) -> None:
        self.server, self.rate = (host, port), rate
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.listener.getsockname()[1]}"
        self.turn = threading.Lock()
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with suppress(OSError):  # closed at the end of the test
            while True:
                client, _ = self.listener.accept()
                server = socket.create_connection(self.server)
                for pair in ((client, server), (server, client)):
                    threading.Thread(target=self._pump, args=(*pair, pair[0] is client), daemon=True).start()

    def _pump(self, source: socket.socket, target: socket.socket, slow: bool) -> None:
        with suppress(OSError):
            while content := source.recv(4096):
                if slow:
                    with self.turn:
                        time.sleep(len(content) / self.rate)
                target.sendall(content)
            target.shutdown(socket.SHUT_WR)


@pytest.fixture
def slow_store(s3_environment: dict[str, str]) -> Iterator[str]:
    """Address of the S3 server behind a slow network."""
    server = urlsplit(s3_environment["AWS_ENDPOINT_URL_S3"])
    assert server.hostname is not None and server.port is not None
    network = SlowNetwork(server.hostname, server.port, SLOW)
    yield network.url
    network.listener.close()


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_a_run_that_is_ended_has_its_last_step_in_a_slow_store(
    s3: str, slow_store: str, how: signal.Signals, tmp_path: Path
):
    first = open_context(f"{s3}/{tmp_path.name}", str(tmp_path / "first"), 1, "cpu", None, 0.0)
    (tmp_path / "sitecustomize.py").write_text(SITE)
    environment = os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}", "AWS_ENDPOINT_URL_S3": slow_store}
    command = [sys.executable, "-c", RUN, first.store.url, str(first.cache)]
    run = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
    work = first.cache / "work" / "train"
    wait_until(lambda: run.poll() is not None or list(work.glob("*/run/checkpoints/.step_*")))  # one is being written
    asked = time.monotonic()
    run.send_signal(how)
    if how is signal.SIGTERM:
        time.sleep(30 * SECOND)  # what Prefect gives
        assert run.poll() is None, "it waits for the trainer"
        run.kill()
    run.wait()
    with first.device_lock.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # until the trainer and whatever else uses the device have ended
    took = (time.monotonic() - asked) / SECOND

    [metrics] = work.glob("*/run/metrics.jsonl")
    events = [json.loads(line) for line in metrics.read_text().splitlines()]
    assert events[0]["checkpoint_bytes"] == BYTES
    saved, interrupted = [event for event in events if event["event"] != "warning"][-2:]
    assert (saved["event"], interrupted["event"]) == ("checkpoint", "interrupted")
    assert saved["step"] == interrupted["step"]
    assert uploaded(first)[-1].split("/")[2] == f"step_{saved['step']:09d}"
    assert took > 2 * 70, "nothing was tested: 14 GB at 200 MB/s take 70 s to write, and as long to upload"
    if how is signal.SIGTERM:
        resumed = trained(replace(first, cache=tmp_path / "second"))
        straight = trained(open_context(str(tmp_path / "other"), None, 1, "cpu", None, 0.0))
        assert resumed.digest == straight.digest


def test_the_limit_of_a_daily_checkpoint_is_enough_for_a_slow_disk_and_a_slow_store():
    size, rate = 14e9, 200e6
    assert seconds_to_save(size) > 30 + 2 * size / rate  # a step; the checkpoint that was under way, and the last
    assert seconds_to_end(size) > 2 * seconds_to_save(size)
    assert seconds_to_end(0) < 15 < seconds_to_end(1)  # a command that saves nothing ends within 15 s
