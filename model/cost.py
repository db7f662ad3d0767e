"""What a run costs in parameters and FLOPs, and how a budget becomes a number of steps.

FLOPs follow the convention of PaLM (arXiv 2204.02311, appendix B) and nanoGPT: 6 for each weight of
a matrix multiplication (2 forward, 4 backward) plus 12 * depth * width * sequence_length for
attention, not halved for causality. Embedding look-ups are free, the head is a matrix also when
tied. One convention for all designs, or their comparison means nothing.
"""

from model.config import ConfigError, GPTConfig, Norm, Position, TrainConfig

PEAK_FLOPS_BF16 = {  # dense bf16 (fp16 on the T4), NVIDIA data sheets
    "H200": 989e12,
    "H100": 989e12,
    "A100": 312e12,
    "T4": 65e12,
}


def parameters(config: GPTConfig) -> dict[str, int]:
    """Number of weights by role, and their total; a tied head counts once, as embedding."""
    width, hidden = config.width, config.mlp_ratio * config.width
    norms = 2 * config.depth + 1
    scalars = 0
    if config.norm is Norm.LAYER:
        scalars += norms * width * (2 if config.bias else 1)
    if config.bias:
        scalars += config.depth * (5 * width + hidden)
    roles = {
        "embedding": config.padded_vocab_size * width,
        "position": config.sequence_length * width if config.position is Position.LEARNED else 0,
        "matrices": config.depth * (4 * width * width + 2 * width * hidden),
        "head": 0 if config.tied_head else config.padded_vocab_size * width,
        "scalars": scalars,
    }
    return roles | {"total": sum(roles.values())}


def flops_per_token(config: GPTConfig, sequence_length: int) -> int:
    """Training FLOPs a token, forward and backward, in sequences of this length."""
    multiplied = parameters(config)["matrices"] + config.padded_vocab_size * config.width
    return 6 * multiplied + 12 * config.depth * config.width * sequence_length


def sequences_per_step(train: TrainConfig, model: GPTConfig) -> int:
    """Sequences a weight update sees; refuses a step that is not whole micro-batches."""
    micro_batch_tokens = train.micro_batch_sequences * model.sequence_length
    if train.tokens_per_step % micro_batch_tokens:
        raise ConfigError(f"tokens_per_step {train.tokens_per_step} must be a multiple of "
                          f"micro_batch_sequences x sequence_length = {train.micro_batch_sequences} x "
                          f"{model.sequence_length} = {micro_batch_tokens}")
    return train.tokens_per_step // model.sequence_length


def resolve_steps(train: TrainConfig, model: GPTConfig) -> int:
    """The number of steps that the budget pays for; the budget is never exceeded."""
    if train.tokens is not None:
        budget, step_cost = train.tokens, train.tokens_per_step
    else:
        budget = train.flops
        step_cost = flops_per_token(model, model.sequence_length) * train.tokens_per_step
    steps = int(budget // step_cost)
    if steps < 1:
        unit = "tokens" if train.tokens is not None else "flops"
        raise ConfigError(f"the budget of {budget} {unit} is less than one step of {step_cost}")
    return steps


def peak_flops(device_name: str) -> float | None:
    """Peak FLOP/s that MFU divides by; None when the device is not in the table (a CPU)."""
    return next((peak for name, peak in PEAK_FLOPS_BF16.items() if name in device_name), None)
