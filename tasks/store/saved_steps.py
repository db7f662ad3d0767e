"""Which steps of a training are saved on this machine. Imports next to nothing, for the process that only waits."""

import re
from pathlib import Path


def saved_steps(run_dir: Path) -> list[int]:
    """Steps of the checkpoints in a trainer's folder, ascending. A checkpoint has its name when it is whole."""
    names = (re.fullmatch(r"step_(\d{9})", path.name) for path in (run_dir / "checkpoints").glob("step_*"))
    return sorted(int(name[1]) for name in names if name)
