"""How many processes train and score: one for each GPU that torch would use, unless a setting says otherwise."""

import subprocess
from functools import cache

from model.network.config import ConfigError, GPTConfig
from model.training.config import TrainConfig
from tasks.runtime.child import child_command
from tasks.store import provenance
from tasks.store.context import RunContext


@cache
def gpu_count() -> int:
    """GPUs that torch would use. A child process asks torch, whose import takes seconds."""
    done = subprocess.run(child_command("model.machine.hardware"), capture_output=True, text=True, check=False)
    return int(done.stdout) if done.stdout.strip().isdecimal() else 0


def scoring_processes(context: RunContext) -> int:
    """Processes that score together. Raises ConfigError when there are fewer GPUs than the setting asks for."""
    wanted = context.processes
    driver = None if context.device == "cpu" else provenance.gpu_driver()
    if driver is None or wanted == 1 or (wanted is None and len(provenance.hardware()["gpus"]) == 1):
        return wanted or 1  # without asking torch
    gpus = gpu_count()
    if gpus and wanted and wanted > gpus:
        raise ConfigError(
            f"execution.processes is {wanted}, but torch finds {gpus} GPU{'s' if gpus > 1 else ''} on "
            f"this machine; set it to at most {gpus}, or leave it empty for one process a GPU"
        )
    return wanted or gpus or 1


def training_processes(model: GPTConfig, train: TrainConfig, context: RunContext) -> int:
    """Processes that train together: they share the sequences of a step equally. Without a setting some GPUs may be
    left over. Raises ConfigError when the setting cannot be kept."""
    count, sequences = scoring_processes(context), train.tokens_per_step // model.sequence_length
    most = max(number for number in range(1, count + 1) if sequences % number == 0)
    if context.processes and most < count:
        raise ConfigError(
            f"execution.processes is {count}, but {count} processes cannot share the {sequences} "
            f"sequences of a step (train.tokens_per_step) equally; set it to {most}"
        )
    return most


def threads_per_process(processes: int, context: RunContext) -> int:
    """CPU threads of one of several processes, which share the workers."""
    return max(1, context.workers // processes)
