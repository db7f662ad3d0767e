"""What a run would cost, before there is any data: `python -m model.train CONFIG --dry-run`.

Memory is counted on the real network and optimizer (`model.planning.memory_use`). Time is FLOPs over the share of the
peak that the GPU is known to reach (`model.machine.hardware`), or that is assumed (--mfu).
"""

from bisect import bisect_right
from dataclasses import replace

from model.machine.hardware import Hardware
from model.network import flops
from model.network.config import ConfigError, GPTConfig
from model.planning.memory_use import network_memory, optimizer_bytes
from model.training.config import Precision, TrainConfig
from model.training.steps import dollars, resolve_steps, sequences_per_step

MARGIN = 0.1  # of a GPU's memory, not planned with: CUDA's context, workspaces of kernels, fragments
CPU_TOKENS = 2048  # of a micro-batch on a CPU, where more is not faster; fixed, so that machines round alike


def memory_bytes(model: GPTConfig, train: TrainConfig, device: str = "cuda", sharers: int = 1) -> dict[str, int]:
    """Memory of one process that trains this network on `device` (cuda: compiled, cpu: eager), by what it is for.

    Weights, gradients and optimizer state are always there. Beside them a micro-batch needs activations, logits (both
    saved for the backward pass) and temporaries, all at once at its peak; a batch of the validation needs
    `validation`, a weight update `update`. `total` is the peak of all three. The first call for a network takes
    seconds; another micro_batch_sequences costs nothing.

    `sharers`: processes that share weights, gradients and optimizer state (fsdp). A micro-batch then needs `gathered`
    as well: outside the blocks all weights and gradients, of the blocks two with their gradients. That is derived from
    how FSDP2 works, and has not been measured.
    """
    weights = 4 * flops.parameters(model)["total"]
    state, update = optimizer_bytes(model, replace(train, micro_batch_sequences=1))
    network = network_memory(model, train, device)
    gathered = 0
    if sharers > 1:
        outside = 4 * sum(flops.parameters(model)[role] for role in ("embedding", "position", "tables", "head"))
        gathered = 2 * outside + 4 * (weights - outside) // model.depth
        weights, state = -(-weights // sharers), -(-state // sharers)
        update = min(update, 2 * update // sharers)  # a share of the matrices, and what the exchange copies
    peak = 2 * weights + state + max(network.step + gathered, network.validation + gathered, update)
    return (
        {
            "weights": weights,
            "gradients": weights,
            "optimizer": state,
            "activations": network.activations,
            "logits": network.logits,
            "temporaries": network.step - network.activations - network.logits,
            "validation": network.validation,
            "update": update,
        }
        | ({"gathered": gathered} if sharers > 1 else {})
        | {"total": peak}
    )


def usable_bytes(memory: float) -> int:
    """What a plan may use of a GPU's memory."""
    return int((1 - MARGIN) * memory)


def choose_micro_batch(
    model: GPTConfig, train: TrainConfig, sequences: int, memory: float | None, sharers: int = 1
) -> int | None:
    """The largest micro-batch that divides the `sequences` of a step and fits into the memory of a GPU, as far as that
    may be used; None: not even 1. Where `memory` is None, on a CPU, a fixed number of tokens. `sharers`: as above."""
    sizes = [size for size in range(1, sequences + 1) if sequences % size == 0]
    if memory is None:
        return sizes[max(1, bisect_right(sizes, CPU_TOKENS, key=lambda size: size * model.sequence_length)) - 1]
    fitting = bisect_right(
        sizes,
        usable_bytes(memory),
        key=lambda size: memory_bytes(model, replace(train, micro_batch_sequences=size), sharers=sharers)["total"],
    )
    return sizes[fitting - 1] if fitting else None


def plan(model: GPTConfig, train: TrainConfig, hardware: Hardware, mfu: float | None = None) -> dict:
    """Parameters, FLOPs a token, memory, steps, tokens, hours and dollars on one such GPU; `mfu` None: the known."""
    mfu = mfu or (hardware.fp8_mfu if train.precision is Precision.FP8 else None) or hardware.mfu
    if model.vocab_size is None:
        raise ConfigError("vocab_size is null: without shards a dry run needs the number")
    sequences = sequences_per_step(train, model)
    largest = choose_micro_batch(model, train, sequences, hardware.memory_bytes)
    train = replace(train, micro_batch_sequences=train.micro_batch_sequences or largest or 1)
    flops_per_token = flops.flops_per_token(model, model.sequence_length)
    tokens_per_second = mfu * hardware.peak_flops / flops_per_token
    steps = resolve_steps(
        train, model, seconds_per_step=train.tokens_per_step / tokens_per_second, usd_per_hour=hardware.usd_per_hour
    )
    seconds = steps * train.tokens_per_step / tokens_per_second
    memory, usable = memory_bytes(model, train), usable_bytes(hardware.memory_bytes)
    return {
        "hardware": hardware.name,
        "mfu": mfu,
        "parameters": flops.parameters(model),
        "flops_per_token": flops_per_token,
        "micro_batch_sequences": train.micro_batch_sequences,
        "memory_bytes": memory,
        "usable_bytes": usable,
        "fits": memory["total"] <= usable,
        "largest_micro_batch_sequences": largest,
        "steps": steps,
        "tokens": steps * train.tokens_per_step,
        "flops": steps * train.tokens_per_step * flops_per_token,
        "tokens_per_second": round(tokens_per_second),
        "gpu_hours": round(seconds / 3600, 4),
        "usd": round(dollars(seconds, hardware.usd_per_hour), 4),
    }
