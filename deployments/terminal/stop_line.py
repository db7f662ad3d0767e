"""What a command that a signal stops says at its end: what is saved, and how to go on.

The command may be killed before it can say anything. So it keeps the facts in memory that it shares with the process
which waits for it, and that says the line when everything has ended (deployments/cli/entry_point.py).
"""

import json
import mmap
import shlex
import shutil
import sys
from pathlib import Path
from typing import Any

from tasks.store.objects import saved_steps

BYTES = 2**14
LONGEST_COMMAND = 800
"""Characters of a command that is shown again."""
_memory = mmap.mmap(-1, BYTES)  # shared with every process that is forked from this one
ONLY_READS = "the command only reads, nothing in the store was changed; again"
KEPT = {
    "up": "what it had started is stopped; a training that ran saves its last step, and goes on when its run is "
    "started again; to start",
    "notify": "the messages may not be set up yet; to set them up",
    "evaluate": "no scores were written; the same command begins again",
    "export": "no model was exported; the same command begins again",
    **dict.fromkeys(("explain", "leaderboard", "chat", "demo"), ONLY_READS),
}
"""By the name of the command, for those that are no run of stages."""


def note_progress(finished: int, planned: int, run_dir: Path | None, step: int, steps: int) -> None:
    """Keep how far a run of stages is: stages that are finished of those `planned`, and of a training that is under way
    its folder, its last step and how many it has (0: it has not begun)."""
    facts = {"finished": finished, "planned": planned, "step": step, "steps": steps}
    text = json.dumps(facts | {"run_dir": str(run_dir) if run_dir else None}).encode()
    _memory[:4] = bytes(4)  # nothing, while it is written
    if len(text) <= BYTES - 4:
        _memory[4 : 4 + len(text)] = text
        _memory[:4] = len(text).to_bytes(4, "big")


def kept_and_how_to_go_on(argv: list[str]) -> str:
    """What the command with these arguments leaves, and the command line that goes on from there."""
    command = argv[1] if len(argv) > 1 else ""
    if command in KEPT:
        kept = KEPT[command]
    elif size := int.from_bytes(_memory[:4], "big"):
        kept = _kept_of_run(json.loads(_memory[4 : 4 + size]))
    else:
        kept = "nothing was begun yet; the same command begins again"
    line = _command_line(argv)
    return f"{kept}: {line}" if line else kept


def _kept_of_run(facts: dict[str, Any]) -> str:
    finished, planned = facts["finished"], facts["planned"]
    if finished and finished == planned:
        return f"all {planned} stages are finished and kept; the same command shows the report"
    if facts["run_dir"] and (steps := saved_steps(Path(facts["run_dir"]))):
        of = f" of {facts['steps']:,}" if facts["steps"] else ""
        return f"the training is saved at step {steps[-1]:,}{of}; the same command goes on from there"
    stages = f"{finished} of {planned} stages are finished and kept" if finished else "no stage is finished yet"
    if facts["steps"]:
        what = "could not be saved" if facts["step"] else "had no step to save"
        return f"{stages}, the training {what}; the same command goes on from there"
    return f"{stages}; the same command {'goes on from there' if finished else 'begins again'}"


def _command_line(argv: list[str]) -> str:
    """The command as one would type it; empty where nobody would."""
    program = Path(argv[0])
    if program.name == "daily-train":
        found = shutil.which("daily-train")
        on_path = found is not None and program.exists() and Path(found).samefile(program)
        words = ["daily-train" if on_path else str(program), *argv[1:]]
    else:
        words = sys.orig_argv
    line = shlex.join(words)
    return line if line.isprintable() and len(line) <= LONGEST_COMMAND else ""
