"""Validation loss in nats a token and in bits a byte; only bits a byte compares tokenizers."""

import math
from dataclasses import dataclass

import numpy as np
import torch

from model.data.loader import validation_batches
from model.data.shards import ShardError, ShardSet
from model.machine.parallel import Processes
from model.network.gpt import GPT


@dataclass(frozen=True)
class Validation:
    """Result of one pass over the validation tokens."""

    loss: float
    """Mean nats a token, over all tokens."""
    bits_per_byte: float | None
    """Bits over the tokens that stand for text / UTF-8 bytes of that text; null: bytes of tokens are not known."""


@torch.no_grad()
def validate(
    model: GPT,
    shards: ShardSet,
    token_bytes: np.ndarray | None,
    *,
    tokens: int,
    sequences: int,
    autocast: torch.autocast,
    processes: Processes = Processes(),  # noqa: B008
) -> Validation:
    """Loss over the first `tokens` tokens, `sequences` windows a forward pass, shared by the processes.

    `model` may be compiled.

    Special tokens (0 bytes) count in the loss and not in the bits: a tokenizer that needs more of
    them would otherwise look better for free.
    """
    device = next(model.parameters()).device
    known = np.zeros(shards.vocab_size) if token_bytes is None else token_bytes
    bytes_V = torch.from_numpy(known.astype(np.int64)).to(device)
    nats, text_nats, count, text_bytes = 0.0, 0.0, 0, 0
    batches = validation_batches(shards, tokens, sequences, model.config.sequence_length)
    for (x_BT, y_BT), counts in processes.share(batches):
        y_BT = y_BT.to(device)
        with autocast:
            losses = model(x_BT.to(device), y_BT, reduction="none").double()
        if not counts:
            continue
        targets = y_BT.flatten()
        sizes = bytes_V[targets]
        nats += losses.sum().item()
        text_nats += losses[sizes > 0].sum().item()
        text_bytes += int(sizes.sum())
        count += len(targets)
    sums = torch.tensor([nats, text_nats, count, text_bytes], dtype=torch.float64, device=device)
    nats, text_nats, count, text_bytes = processes.sum_(sums).tolist()
    if token_bytes is None:
        return Validation(nats / count, None)
    if not text_bytes:
        raise ShardError(
            f"{shards.directory}: the first {count:.0f} tokens of split {shards.split!r} stand for "
            f"0 bytes of text, bits per byte are not defined"
        )
    return Validation(nats / count, text_nats / math.log(2) / text_bytes)
