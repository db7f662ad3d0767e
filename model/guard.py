"""Stops a run whose loss leaves its path: spikes in a row, measured by the running mean and deviation."""

import math
from dataclasses import dataclass

MEMORY = 0.98  # of the running mean and variance, a step: they see about the last 50 steps
FIRST_STEPS = 100  # before this many losses there is nothing to compare with
SMALLEST_DEVIATION = 0.01  # nats; a loss that hardly moves would make every ripple a spike


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
