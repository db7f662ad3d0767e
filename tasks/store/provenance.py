"""How a stage came to be: commit, versions, hardware, time and money. Recorded in manifests, never compared."""

import os
import platform
import re
import shutil
import subprocess
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from model.machine.hardware import known_hardware

PROJECT = Path(__file__).resolve().parents[2]
PACKAGES = ("prefect", "datasets", "tokenizers", "numpy", "torch", "lm_eval", "pyarrow", "boto3")

# List price of a small cloud machine. The flow's `usd_per_hour` overrides it.
USD_PER_CPU_CORE_HOUR = 0.04


@cache
def commit() -> str:
    """The checked-out git commit, with `-dirty` when tracked files were changed; `unknown` outside a checkout."""
    head = _git("rev-parse", "HEAD")
    if not head:
        return "unknown"
    return head + ("-dirty" if _git("status", "--porcelain", "--untracked-files=no") else "")


def _git(*arguments: str) -> str:
    try:
        done = subprocess.run(["git", *arguments], cwd=PROJECT, capture_output=True, text=True, check=False)
    except OSError:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


@cache
def hardware() -> dict[str, Any]:
    """Host processor, cores and GPU names (from the driver's own tool, since torch is not imported here)."""
    return {"cpu": _cpu_name(), "cores": os.cpu_count() or 1, "gpus": list(_gpu_names()), "system": platform.platform()}


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def _gpu_names() -> tuple[str, ...]:
    return _query_gpus("name")


@cache
def gpu_driver() -> str | None:
    """Version of the NVIDIA driver, empty when nobody tells; None on a machine without a sign of an NVIDIA GPU."""
    if versions := _query_gpus("driver_version"):
        return versions[0]
    try:
        number = re.search(r"\b\d+\.\d+(\.\d+)?\b", Path("/proc/driver/nvidia/version").read_text())
    except OSError:
        return "" if Path("/dev/nvidia0").exists() or shutil.which("nvidia-smi") else None
    return number.group() if number else ""


def _query_gpus(field: str) -> tuple[str, ...]:
    """A property of each GPU; empty when the driver's tool is absent or fails."""
    query = ["nvidia-smi", f"--query-gpu={field}", "--format=csv,noheader"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, check=False)
    except OSError:
        return ()
    return tuple(done.stdout.split("\n")[:-1]) if done.returncode == 0 else ()


def default_usd_per_hour() -> float:
    """List price of this machine: its GPUs where it has some (an unknown one as an H100), else its cores."""
    machine = hardware()
    if machine["gpus"]:
        unknown = known_hardware("H100")
        assert unknown is not None  # it is in the table
        return sum((known_hardware(gpu) or unknown).usd_per_hour for gpu in machine["gpus"])
    return USD_PER_CPU_CORE_HOUR * machine["cores"]


@cache
def packages() -> dict[str, str]:
    """Versions of the packages whose behaviour shows in results."""
    return {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}}
