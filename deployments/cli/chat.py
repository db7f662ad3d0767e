"""`daily-train chat` and `daily-train demo`: find a finished run in the store and talk with its model.

The model runs in a child process, so that the command line itself starts without torch.
"""

import importlib.util
import subprocess

from model.errors import DailyTrainError
from tasks.runtime.child import child_command
from tasks.store.attempts import fetch_outputs
from tasks.store.context import RunContext
from tasks.store.ledger import find_run, stage_of_run


class ChatError(DailyTrainError):
    """The model cannot be talked with; the message says what to do."""


def run_with_model(module: str, run: str, options: list[str], context: RunContext) -> None:
    """Run `python -m MODULE` on the model of the newest run, or of the one whose key begins with `run`."""
    row = find_run(run, context)
    folders = {stage: fetch_outputs(stage_of_run(stage, row, context), context) for stage in ("train", "tokenizer")}
    print(f"run {row['run'][:12]}, preset {row['preset']}, {row['bits_per_byte']:.4f} bits per byte", flush=True)
    paths = [str(folders["train"]), str(folders["tokenizer"] / "tokenizer.json")]
    done = subprocess.run(child_command(module, *paths, *options))
    if done.returncode:
        raise ChatError(f"{module} ended with exit code {done.returncode}; its last lines say why")


def require_gradio() -> None:
    """Say what to install when the page's library is not there."""
    if importlib.util.find_spec("gradio") is None:
        raise ChatError("the page needs Gradio: pip install -c constraints.txt -e '.[demo]'")
