"""How a budget becomes a number of steps, and a step whole sequences."""

from model.network import flops
from model.network.config import GPTConfig
from model.parsing import ConfigError
from model.training.config import TrainConfig


def sequences_per_step(train: TrainConfig, model: GPTConfig) -> int:
    """Sequences a weight update sees; refuses a step that is not whole micro-batches, or not whole sequences."""
    length, micro_batch = model.sequence_length, train.micro_batch_sequences
    if micro_batch is None and train.tokens_per_step % length:
        raise ConfigError(f"tokens_per_step {train.tokens_per_step} must be a multiple of sequence_length {length}")
    if micro_batch is not None and train.tokens_per_step % (micro_batch * length):
        raise ConfigError(
            f"tokens_per_step {train.tokens_per_step} must be a multiple of micro_batch_sequences x "
            f"sequence_length = {micro_batch} x {length} = {micro_batch * length}"
        )
    return train.tokens_per_step // length


def resolve_steps(
    train: TrainConfig,
    model: GPTConfig,
    *,
    processes: int = 1,
    seconds_per_step: float | None = None,
    fixed_seconds: float = 0.0,
    usd_per_hour: float | None = None,
) -> int:
    """The number of steps that the budget pays for; the budget is never exceeded.

    Hours and dollars need the measured seconds a step, and are charged for `fixed_seconds` that do not depend on the
    number of steps; `usd_per_hour` is the price of all processes.
    """
    unit = train.budget_unit
    budget, fixed_cost = getattr(train, unit), 0.0
    step_cost: float
    if unit == "tokens":
        step_cost = train.tokens_per_step
    elif unit == "flops":
        step_cost = flops.flops_per_token(model, model.sequence_length) * train.tokens_per_step
    elif seconds_per_step is None:
        raise ConfigError(f"a budget in {unit} needs a timing on the machine")
    elif unit == "gpu_hours":
        step_cost, fixed_cost = (seconds * processes / 3600 for seconds in (seconds_per_step, fixed_seconds))
    else:
        step_cost, fixed_cost = (dollars(seconds, usd_per_hour) for seconds in (seconds_per_step, fixed_seconds))
    steps = int((budget - fixed_cost) // step_cost)
    if steps < 1:
        fixed = f" after {fixed_cost:.6g} for starting, validating and saving" if fixed_cost else ""
        raise ConfigError(f"the budget of {budget} {unit} is less than one step of {step_cost:.6g}{fixed}")
    return steps


def dollars(seconds: float, usd_per_hour: float | None) -> float:
    """Price of a time on this machine."""
    if usd_per_hour is None:
        raise ConfigError("dollars need the price of the machine: execution.usd_per_hour is null")
    return seconds / 3600 * usd_per_hour
