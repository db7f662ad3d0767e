"""Whether a training on the CPU can fit the memory of this machine at all: asked before anything is downloaded.

A lower bound: what weights, gradients and one moment take, and the logits of one micro-batch. On a GPU memory is
planned exactly (`model.planning.plan`); on a CPU only what cannot be is refused, because nothing else ends it but the
kernel, with SIGKILL.
"""

import os
from pathlib import Path

from model.network.choices import MLPKind, Position
from model.network.config import GPTConfig
from model.training.config import TrainConfig

BYTES_A_WEIGHT = 12
BYTES_A_LOGIT = 8
CGROUP = Path("/sys/fs/cgroup/memory.max")


def smallest_bytes(model: GPTConfig, train: TrainConfig) -> int:
    """Memory that a training takes at least, in fp32 on a CPU; `model.vocab_size` is known."""
    width, vocabulary = model.width, model.padded_vocab_size
    hidden = model.experts * model.expert_size if model.mlp is MLPKind.MOE else model.mlp_ratio * width
    weights = vocabulary * width * (1 if model.tied_head else 2) + model.depth * 2 * width * (width + hidden)
    if model.position is Position.LEARNED:
        weights += model.sequence_length * width
    tokens = (train.micro_batch_sequences or 1) * model.sequence_length
    return BYTES_A_WEIGHT * weights + BYTES_A_LOGIT * tokens * vocabulary


def host_bytes() -> int:
    """Memory of this machine, or of the container that this process is in."""
    machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    limit = CGROUP.read_text().strip() if CGROUP.is_file() else "max"
    return min(machine, int(limit)) if limit.isdigit() else machine


def why_too_large(model: GPTConfig, train: TrainConfig) -> str | None:
    """Why the training cannot fit, in one sentence; None: perhaps it can."""
    needed, available = smallest_bytes(model, train), host_bytes()
    if needed <= available:
        return None
    return (
        f"the training needs at least {needed / 1e9:,.1f} GB of memory on a CPU, but this machine has "
        f"{available / 1e9:,.1f} GB; set a smaller model.width ({model.width}), model.depth ({model.depth}), "
        f"model.sequence_length ({model.sequence_length}) or train.micro_batch_sequences"
    )
