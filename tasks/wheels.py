"""Python wheels as a data source: downloaded by pip, checked against a pinned SHA-256, never installed."""

import subprocess
from pathlib import Path

from model.errors import DailyTrainError
from tasks.child import child_command
from tasks.lock import locked
from tasks.stage import logger
from tasks.store import digest_file


class WheelError(DailyTrainError):
    """A wheel cannot be had or is not the pinned one."""


def fetch_wheel(requirement: str, sha256: str, cache: Path) -> Path:
    """The wheel `NAME==VERSION` from the package index that pip is configured for, kept below `cache`.

    Raises WheelError when pip cannot get it or its content is not the pinned one.
    """
    folder = cache / "wheels" / sha256
    with locked(folder.with_suffix(".lock"), lambda message: logger().info("%s waits %s", requirement, message)):
        return _fetched(requirement, sha256, folder)


def _fetched(requirement: str, sha256: str, folder: Path) -> Path:
    if (found := _wheel_in(folder)) and digest_file(found).sha256 == sha256:
        return found
    folder.mkdir(parents=True, exist_ok=True)
    if found:
        found.unlink()
    command = child_command("pip", "download", "--quiet", "--no-deps", "--only-binary=:all:")
    done = subprocess.run([*command, "--dest", str(folder), requirement], capture_output=True, text=True, check=False)
    wheel = _wheel_in(folder)
    if done.returncode or wheel is None:
        reason = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
        raise WheelError(f"pip cannot download {requirement}: {reason[-1] if reason else done.stderr.strip()}")
    actual = digest_file(wheel).sha256
    if actual != sha256:
        wheel.unlink()
        raise WheelError(f"{wheel.name}: sha256 {actual}, but {requirement} is pinned to {sha256}")
    return wheel


def _wheel_in(folder: Path) -> Path | None:
    return next(iter(sorted(folder.glob("*.whl"))), None)
