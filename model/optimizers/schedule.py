"""Learning rate and momentum as pure functions of the step: a resumed run needs no state for them."""

import math

from model.training.config import Schedule, TrainConfig

FIRST_MOMENTUM = 0.85


def learning_rate_multiplier(config: TrainConfig, step: int, steps: int) -> float:
    """Share of the peak rate at 0-based `step`.

    The first step is not 0 and the last not final_lr_fraction: no step is spent on a zero rate.
    """
    warmup = min(1.0, (step + 1) / (config.warmup_steps + 1))
    if config.schedule is Schedule.COSINE:
        progress = max(0.0, (step - config.warmup_steps) / max(1, steps - config.warmup_steps))
        decay = 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
    else:
        decay = 1 - cooldown_progress(config, step, steps)
    return warmup * (config.final_lr_fraction + (1 - config.final_lr_fraction) * decay)


def cooldown_progress(config: TrainConfig, step: int, steps: int) -> float:
    """How far 0-based `step` is in the linear cooldown, from 0 to just under 1."""
    cooldown_steps = config.cooldown_fraction * steps
    return 1 - min(1.0, (steps - step) / cooldown_steps) if cooldown_steps else 0.0


def muon_momentum(config: TrainConfig, step: int, steps: int) -> float:
    """Muon's momentum: up over momentum_warmup_steps, down to momentum_final over the cooldown."""
    risen = min(1.0, step / config.momentum_warmup_steps) if config.momentum_warmup_steps else 1.0
    momentum = FIRST_MOMENTUM + (config.momentum - FIRST_MOMENTUM) * risen
    if config.momentum_final is not None:
        momentum += (config.momentum_final - momentum) * cooldown_progress(config, step, steps)
    return momentum
