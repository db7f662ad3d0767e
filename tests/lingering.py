"""Trainings that last: killed before their end, however busy the machine, and idle while a test looks at them."""

import time

SITE = """
import sys
if "model.train" in sys.orig_argv:
    from tests.lingering import linger
    linger({seconds})
"""
"""A file sitecustomize.py for the trainer, which runs deep below the process that a test starts."""


def linger(seconds: float = 1.0) -> None:
    """Let each step from the 40th on take so much longer."""
    from model.training.trainer import Trainer  # torch is for the trainer, not for all that imports this file

    step = Trainer.train_step

    def slowed(self: Trainer) -> dict:
        if self.step >= 40:
            time.sleep(seconds)
        return step(self)

    Trainer.train_step = slowed  # type: ignore[method-assign]
