"""How busy a run keeps its machine: GPUs, as the driver's tool says, and its processes, as Linux says."""

import math
import os
import subprocess
import time
from pathlib import Path

SECONDS_BETWEEN = 4.0
SECONDS_TO_ANSWER = 5.0
QUERY = "--query-gpu=utilization.gpu,memory.used,memory.total"


class MachineLoad:
    """Measures every few seconds at most."""

    def __init__(self) -> None:
        self.measured = -math.inf
        self.gpus = True
        self.cpu: tuple[float, float] | None = None

    def measure(self) -> dict[str, float]:
        """`gpu_percent` (mean over the GPUs), `gpu_bytes` and `gpu_bytes_total` (sums), where there are GPUs;
        `cpu_percent` (100 is one core) and `bytes` of the child processes of this one, on Linux. Nothing when
        it is too early to measure again."""
        if time.monotonic() - self.measured < SECONDS_BETWEEN:
            return {}
        self.measured = time.monotonic()
        return (self._gpus() if self.gpus else {}) | self._children()

    def _gpus(self) -> dict[str, float]:
        chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
        command = ["nvidia-smi", QUERY, "--format=csv,noheader,nounits", *([f"--id={chosen}"] if chosen else [])]
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=SECONDS_TO_ANSWER)
        except (OSError, subprocess.SubprocessError):
            self.gpus = False  # no GPU, or none that the tool knows by this name
            return {}
        return gpu_values(done.stdout)

    def _children(self) -> dict[str, float]:
        ticks, pages = 0, 0
        parents, used = {}, {}
        try:
            for file in Path("/proc").glob("[0-9]*/stat"):
                try:
                    fields = file.read_text().rpartition(")")[2].split()
                except OSError:  # it has ended meanwhile
                    continue
                parents[number := int(file.parent.name)] = int(fields[1])
                used[number] = (int(fields[11]) + int(fields[12]), int(fields[21]))
            for number, (time_used, memory) in used.items():
                if _descends(number, os.getpid(), parents):
                    ticks, pages = ticks + time_used, pages + memory
            now, seconds = time.monotonic(), ticks / os.sysconf("SC_CLK_TCK")
        except (OSError, ValueError, IndexError):
            return {}
        if not used:
            return {}
        values = {"bytes": float(pages * os.sysconf("SC_PAGE_SIZE"))}
        if self.cpu is not None and now > self.cpu[0]:
            values["cpu_percent"] = max(0.0, round(100 * (seconds - self.cpu[1]) / (now - self.cpu[0]), 1))
        self.cpu = (now, seconds)
        return values


def gpu_values(lines: str) -> dict[str, float]:
    """What nvidia-smi prints, one line a GPU; a number that it does not know (`[N/A]`) is left out."""
    numbers: list[list[float]] = []
    for words in zip(*(line.split(",") for line in lines.splitlines() if line.strip()), strict=True):
        try:
            numbers.append([float(word) for word in words])
        except ValueError:
            numbers.append([])
    if len(numbers) != 3:
        return {}
    busy, memory, total = numbers
    values = {"gpu_percent": round(sum(busy) / len(busy), 1)} if busy else {}
    for name, mebibytes in (("gpu_bytes", memory), ("gpu_bytes_total", total)):
        if mebibytes:
            values[name] = sum(mebibytes) * 2**20
    return values


def _descends(number: int, ancestor: int, parents: dict[int, int]) -> bool:
    while (number := parents.get(number, 0)) > 1:
        if number == ancestor:
            return True
    return False
