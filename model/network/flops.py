"""What a network costs in parameters and FLOPs.

FLOPs follow the convention of PaLM (arXiv 2204.02311, appendix B) and nanoGPT: 6 for each weight of
a matrix multiplication (2 forward, 4 backward) plus 12 * width * span for the attention of a layer,
not halved for causality. The span is what a query sees in a layer: the sequence, its window, or in a
sparse layer summaries, selected blocks and window. Of routed experts those that work on a token
count. Look-ups are free, the head is a matrix also when tied. One convention for all designs, or
their comparison means nothing. It counts what the design needs: an implementation that computes
masked scores spends more and shows it as a lower MFU. A kernel that skips what causality hides does
less than is counted for the whole past; `visible_flops_per_token` says how much less at most.
"""

from functools import cache

import torch

from model.network.attention_variants import attention_layers
from model.network.config import GPTConfig
from model.network.gpt import GPT

ROLES = ("embedding", "position", "tables", "matrices", "experts", "gates", "head", "scalars")


def _role(name: str, parameter: torch.Tensor) -> str:
    if parameter.ndim < 2:
        return "scalars"
    if name.startswith("value_embeddings"):
        return "tables"
    if name.endswith(("gate.weight", "router.weight")):
        return "gates"
    outside = {"token_embedding": "embedding", "position_embedding": "position", "head": "head"}
    return outside.get(name.split(".")[0], "experts" if parameter.ndim == 3 else "matrices")


@cache
def parameters(config: GPTConfig) -> dict[str, int]:
    """Number of weights by role, and their total; a tied head counts once, as embedding. `tables`
    (value embeddings) cost memory and no FLOPs; `experts` are all routed ones, working or not."""
    counted = dict.fromkeys(ROLES, 0)
    with torch.device("meta"):
        model = GPT(config)
    for name, parameter in model.named_parameters():
        counted[_role(name, parameter)] += parameter.numel()
    return counted | {"total": sum(counted.values())}


def counted_keys(config: GPTConfig, sequence_length: int) -> list[int]:
    """Keys that a query of each layer is counted with."""
    return [layer.counted_keys(config, sequence_length) for layer in attention_layers(config)]


def visible_keys(config: GPTConfig, sequence_length: int) -> list[float]:
    """Keys that a query of each layer sees, as the mean over a sequence."""
    return [layer.visible_keys(config, sequence_length) for layer in attention_layers(config)]


def flops_per_token(config: GPTConfig, sequence_length: int) -> int:
    """Training FLOPs a token, forward and backward, in sequences of this length."""
    counted = parameters(config)
    multiplied = counted["matrices"] + counted["gates"] + config.padded_vocab_size * config.width
    multiplied += counted["experts"] * config.experts_per_token // config.experts
    return 6 * multiplied + 12 * config.width * sum(counted_keys(config, sequence_length))


def visible_flops_per_token(config: GPTConfig, sequence_length: int) -> float:
    """The same with the scores that a query sees instead of its span: an MFU by it flatters no kernel."""
    hidden = sum(counted_keys(config, sequence_length)) - sum(visible_keys(config, sequence_length))
    return flops_per_token(config, sequence_length) - 12 * config.width * hidden
