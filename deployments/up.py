"""`daily-train up`: Prefect server, worker and deployments on this machine's loopback, in one command.

A server that already answers on the port is used as it is. Ctrl-C stops what was started here.
"""

import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from types import FrameType

from tasks import provenance

PORT = 4200
POOL = "daily-train"
SECONDS_TO_START = 120
SECONDS_TO_STOP = 20


class UpError(Exception):
    """Server or worker cannot be started; the message says what to look at."""


def up(port: int) -> None:
    """Start everything, print the address, and stay until interrupted or until a part ends."""
    api = f"http://127.0.0.1:{port}/api"
    environment = {
        **os.environ,
        "PREFECT_API_URL": api,
        "DAILY_TRAIN_HOME": str(provenance.PROJECT),
        "DAILY_TRAIN_PRESET": "daily" if provenance.hardware()["gpus"] else "laptop",
        "DAILY_TRAIN_VERSION": provenance.commit(),
    }
    parts: dict[str, subprocess.Popen] = {}
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _interrupt)
    try:
        if not _healthy(api):
            parts["server"] = _start(["server", "start", "--host", "127.0.0.1", "--port", str(port)], environment)
            _wait_until_healthy(api, parts["server"])
        _run(["work-pool", "create", POOL, "--type", "process", "--overwrite"], environment)
        _run(["--no-prompt", "deploy", "--all", "--prefect-file", "deployments/prefect.yaml"], environment)
        parts["worker"] = _start(["worker", "start", "--pool", POOL, "--type", "process"], environment)
        print(f"\nThe Daily Train is up: http://127.0.0.1:{port}\nCtrl-C stops it.", flush=True)
        while all(part.poll() is None for part in parts.values()):
            time.sleep(1)
        ended = next(name for name, part in parts.items() if part.poll() is not None)
        raise UpError(f"the {ended} ended with exit code {parts[ended].returncode}; its last lines say why")
    finally:
        for part in reversed(parts.values()):
            _stop(part)


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _command(arguments: list[str]) -> list[str]:
    return [sys.executable, "-m", "prefect", *arguments]


def _start(arguments: list[str], environment: dict[str, str]) -> subprocess.Popen:
    return subprocess.Popen(
        _command(arguments), env=environment, cwd=provenance.PROJECT, start_new_session=True, stdin=subprocess.DEVNULL
    )


def _run(arguments: list[str], environment: dict[str, str]) -> None:
    done = subprocess.run(
        _command(arguments), env=environment, cwd=provenance.PROJECT, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise UpError(f"`prefect {' '.join(arguments)}` failed:\n{(done.stdout + done.stderr)[-2000:]}")


def _healthy(api: str) -> bool:
    try:
        with urllib.request.urlopen(f"{api}/health", timeout=5) as answer:
            return answer.status == 200
    except (urllib.error.URLError, TimeoutError, ConnectionError):
        return False


def _wait_until_healthy(api: str, server: subprocess.Popen) -> None:
    deadline = time.monotonic() + SECONDS_TO_START
    while not _healthy(api):
        if server.poll() is not None:
            raise UpError(f"the server ended with exit code {server.returncode}; is the port of {api} in use?")
        if time.monotonic() > deadline:
            raise UpError(f"the server does not answer on {api}/health after {SECONDS_TO_START} s")
        time.sleep(0.5)


def _stop(part: subprocess.Popen) -> None:
    if part.poll() is None:
        os.killpg(part.pid, signal.SIGTERM)
    try:
        part.wait(SECONDS_TO_STOP)
    except subprocess.TimeoutExpired:
        os.killpg(part.pid, signal.SIGKILL)
