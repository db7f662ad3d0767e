"""What a run would cost, before there is any data: `python -m model.train CONFIG --dry-run`.

Memory is an estimate: fp32 weights and gradients, optimizer state, the logits of a micro-batch and
about 16 numbers a token, layer and unit of width that the backward pass reads. Time is FLOPs over
the share of the peak that is assumed (--mfu).
"""

from bisect import bisect_right
from dataclasses import replace

import torch

from model import cost
from model.config import ConfigError, GPTConfig, OptimizerName, Precision, TrainConfig
from model.gpt import GPT
from model.hardware import Hardware
from model.optim import roles

ACTIVATIONS = 16  # kept a token and layer, in widths: norms, q, k, v, attention, MLP hidden twice, residuals

MARGIN = 0.1  # of the free memory that a chosen micro-batch leaves: kernels' workspaces, fragments, an imperfect plan
CPU_TOKENS = 2048  # of a micro-batch on a CPU, where more is not faster; fixed, so that machines round alike


def memory_bytes(model: GPTConfig, train: TrainConfig) -> dict[str, int]:
    """Estimated memory of one process by what it is for, and their total."""
    counted = cost.parameters(model)
    hidden = counted["matrices"] + counted["experts"] if train.optimizer is not OptimizerName.ADAMW else 0
    tokens = train.micro_batch_sequences * model.sequence_length
    number = 4 if train.precision is Precision.FP32 else 2
    parts = {
        "weights and gradients": 8 * counted["total"],
        "optimizer": 8 * (counted["total"] - hidden) + 4 * hidden,  # AdamW has two moments, Muon and PSGD one
        "activations": ACTIVATIONS * number * tokens * model.depth * model.width,
        "logits": (number + 8) * tokens * model.padded_vocab_size,  # themselves, fp32, and their gradient
    }
    if train.optimizer is OptimizerName.PSGD:
        with torch.device("meta"):
            matrices = [parameter for _, parameter in roles(GPT(model))["matrix"]]
        sizes = [parameter.shape[-2:] for parameter in matrices]
        parts["preconditioners"] = sum(4 * parameter.numel() * (rows**2 + columns**2) // (rows * columns)
                                       for parameter, (rows, columns) in zip(matrices, sizes))
    return parts | {"total": sum(parts.values())}


def choose_micro_batch(model: GPTConfig, train: TrainConfig, sequences: int, free_bytes: float | None) -> int:
    """Sequences of a micro-batch where the configuration leaves the number open: the most that divide the `sequences`
    of a process in a step and whose planned memory leaves a margin in `free_bytes` (None: a CPU, a fixed number of
    tokens). 1 where nothing fits."""
    sizes = [size for size in range(1, sequences + 1) if sequences % size == 0]
    if free_bytes is None:
        fitting = bisect_right(sizes, CPU_TOKENS, key=lambda size: size * model.sequence_length)
    else:
        fitting = bisect_right(sizes, (1 - MARGIN) * free_bytes, key=lambda size: memory_bytes(
            model, replace(train, micro_batch_sequences=size))["total"])
    return sizes[max(fitting, 1) - 1]


def plan(model: GPTConfig, train: TrainConfig, hardware: Hardware, mfu: float) -> dict:
    """Parameters, FLOPs a token, memory, steps, tokens, hours and dollars on one such GPU."""
    if model.vocab_size is None:
        raise ConfigError("vocab_size is null: without shards a dry run needs the number")
    sequences = cost.sequences_per_step(train, model)
    if train.micro_batch_sequences is None:
        chosen = choose_micro_batch(model, train, sequences, hardware.memory_bytes)
        train = replace(train, micro_batch_sequences=chosen)
    flops_per_token = cost.flops_per_token(model, model.sequence_length)
    tokens_per_second = mfu * hardware.peak_flops / flops_per_token
    steps = cost.resolve_steps(train, model, seconds_per_step=train.tokens_per_step / tokens_per_second,
                               usd_per_hour=hardware.usd_per_hour)
    seconds = steps * train.tokens_per_step / tokens_per_second
    memory = memory_bytes(model, train)
    return {
        "hardware": hardware.name, "mfu": mfu,
        "parameters": cost.parameters(model), "flops_per_token": flops_per_token,
        "micro_batch_sequences": train.micro_batch_sequences,
        "memory_bytes": memory, "fits": memory["total"] <= hardware.memory_bytes,
        "steps": steps, "tokens": steps * train.tokens_per_step,
        "flops": steps * train.tokens_per_step * flops_per_token,
        "tokens_per_second": round(tokens_per_second),
        "gpu_hours": round(seconds / 3600, 4), "usd": round(cost.dollars(seconds, hardware.usd_per_hour), 4),
    }
