"""How long the parts of a training take on the machine at hand, which turns a budget in hours or dollars into steps."""

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from model.data.loader import validation_windows
from model.training.out_of_memory import UpdateInterrupted, within_memory
from model.training.validation import validate

if TYPE_CHECKING:
    from model.training.trainer import Trainer

UNTIMED_STEPS, TIMED_STEPS, TIMED_SECONDS = 2, 10, 20.0
TIMED_BATCHES = 4
"""Of a validation, after as many that are not timed."""
SECONDS_PER_BYTE = 3e-9
"""Of writing a checkpoint: 36 s for the 13.9 GB of `daily` beside an H200 (docs/log.md)."""


@dataclass(frozen=True)
class Timing:
    """Seconds of wall time."""

    step: float
    """A weight update, with its share of the validations."""
    fixed: float
    """Everything else: compiling, the first and the last validation, the last checkpoint."""

    def seconds(self, steps: int) -> float:
        """Of the whole training."""
        return self.fixed + steps * self.step


def measure(trainer: "Trainer") -> Timing:
    """Train and validate for a short time, then start over. The mean of all processes, which wait for each other."""
    micro_batch, began = trainer.micro_batch_sequences, time.perf_counter()
    try:
        for _ in range(UNTIMED_STEPS):
            trainer.train_step()
        compiled, timed = time.perf_counter(), 0
        while (
            timed < TIMED_STEPS
            and not trainer.processes.any([time.perf_counter() - compiled > TIMED_SECONDS], trainer.device)[0]
        ):
            trainer.train_step()
            timed += 1
    except UpdateInterrupted:
        pass
    ended = time.perf_counter()
    trainer.start_over()
    first, again, share = _validation(trainer)
    if trainer.micro_batch_sequences != micro_batch:
        return measure(trainer)  # what was measured is of another size
    step, validation = (ended - compiled) / timed, again / share
    compiling = max(0.0, compiled - began - UNTIMED_STEPS * step) + max(0.0, first - again)
    fixed = compiling + 2 * validation + SECONDS_PER_BYTE * trainer.checkpoint_bytes()
    seconds = torch.tensor(
        [step + validation / trainer.config.train.validation_every_steps, fixed],
        dtype=torch.float64,
        device=trainer.device,
    )
    return Timing(*(trainer.processes.sum_(seconds) / trainer.processes.count).tolist())


def _validation(trainer: "Trainer") -> tuple[float, float, float]:
    """Seconds of a part of the validation, seconds of the same again, and which share of the whole it is."""
    train, length = trainer.config.train, trainer.config.model.sequence_length
    whole = validation_windows(trainer.shards["val"], train.validation_tokens, length)
    part = min(whole, TIMED_BATCHES * trainer.micro_batch_sequences * trainer.processes.count)
    seconds = []
    for _ in range(2):
        began = time.perf_counter()
        within_memory(
            trainer,
            lambda: validate(
                trainer.validated,
                trainer.shards["val"],
                None,
                tokens=part * length,
                sequences=trainer.micro_batch_sequences,
                autocast=trainer.autocast,
                processes=trainer.processes,
            ),
        )
        seconds.append(time.perf_counter() - began)
    return seconds[0], seconds[1], part / whole
