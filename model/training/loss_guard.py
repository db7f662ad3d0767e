"""Stops a run that computes nonsense: a value that is not finite, a gradient of 0, or a loss that leaves its path, that
is spikes in a row, measured by the running mean and deviation.
"""

import math
from dataclasses import dataclass

from model.errors import DailyTrainError
from model.training.config import TrainConfig
from model.training.loss_scale import SMALLEST_SCALE, LossScale

MEMORY = 0.98  # of the running mean and variance, a step: they see about the last 50 steps
FIRST_STEPS = 100  # before this many losses there is nothing to compare with
SMALLEST_DEVIATION = 0.01  # nats; a loss that hardly moves would make every ripple a spike


class TrainingError(DailyTrainError, RuntimeError):
    """Training cannot go on; the message names the step and the value."""


@dataclass
class LossGuard:
    """Running statistics of the losses that were no spikes. Saved in checkpoints: resuming forgets nothing."""

    mean: float = 0.0
    """Nats a token."""
    variance: float = 0.0
    """Around the mean."""
    seen: int = 0
    """Losses so far."""
    spikes: int = 0
    """Spikes in a row, the last loss among them."""

    def limit(self, deviations: float) -> float:
        """The largest loss that is no spike."""
        return self.mean + deviations * max(math.sqrt(self.variance), SMALLEST_DEVIATION)

    def observe(self, loss: float, deviations: float) -> None:
        """Take in one finite loss."""
        if self.seen >= FIRST_STEPS and loss > self.limit(deviations):
            self.spikes += 1
            return
        self.spikes = 0
        self.seen += 1
        weight = max(1 - MEMORY, 1 / self.seen)
        difference = loss - self.mean
        self.mean += weight * difference
        self.variance = (1 - weight) * (self.variance + weight * difference**2)


def reason_to_stop(
    step: int, loss: float, grad_norm: float | None, guard: LossGuard, loss_scale: LossScale | None, train: TrainConfig
) -> str | None:
    """Why a run must not go on after this step, whose loss `guard` takes in; None: it may."""
    if not math.isfinite(loss):
        return f"loss is {loss} in step {step}"
    if loss_scale and loss_scale.scale < SMALLEST_SCALE:
        return f"loss_scale is {loss_scale.scale} in step {step}: gradients overflow at any scale"
    if grad_norm is None:  # a skipped step
        return None
    if not math.isfinite(grad_norm):
        return f"grad_norm is {grad_norm} in step {step}"
    if grad_norm == 0:
        return f"grad_norm is 0 in step {step}: nothing is learned any more"
    if train.spike_deviations is None:
        return None
    guard.observe(loss, train.spike_deviations)
    if guard.spikes < train.spike_steps:
        return None
    return (
        f"loss is {loss:.4f} in step {step}, over {guard.limit(train.spike_deviations):.4f} (its running mean "
        f"{guard.mean:.4f} and {train.spike_deviations} deviations) for {guard.spikes} steps"
    )
