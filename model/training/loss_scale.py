"""Dynamic loss scaling for fp16 (Micikevicius et al., arXiv 1710.03740).

Gradients under 6e-8 are 0 in fp16 and over 65,504 infinite. The loss is therefore multiplied by a scale
before the backward pass and the gradients are divided by it after. The scale is a power of two, so
both are exact, and moves as in torch.amp.GradScaler: half after an overflow, double after a long time
without one. It is state of the run: a resumed run that began again with another scale would skip other steps.
"""

from dataclasses import dataclass

FIRST_SCALE, SMALLEST_SCALE = 2.0**16, 1.0
LARGEST_SCALE = 2.0**24  # the gradient of the loss itself has to stay finite in fp32
STEPS_TO_DOUBLE = 2000


@dataclass
class LossScale:
    """The scale of one run. Saved in checkpoints."""

    scale: float = FIRST_SCALE
    """What the loss is multiplied by."""
    good_steps: int = 0
    """Steps without overflow since the scale last changed."""
    skipped_steps: int = 0
    """Steps of the whole run whose gradients overflowed: their batch was read and changed no weight."""

    def observe(self, overflow: bool) -> None:
        """Take in one step. A scale under SMALLEST_SCALE means gradients that overflow as they are."""
        if overflow:
            self.scale, self.good_steps = self.scale / 2, 0
            self.skipped_steps += 1
            return
        self.good_steps += 1
        if self.good_steps == STEPS_TO_DOUBLE:
            self.scale, self.good_steps = min(2 * self.scale, LARGEST_SCALE), 0
