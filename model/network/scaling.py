"""Rules that carry a recipe from one size to another, and `sized`: the whole modern network by one dial.

All are power laws measured by others on networks like these (nanochat's dev/LOG.md; for the batch
arXiv 2505.23971). They are starting points: check them on two sizes.
"""

import math
from typing import Any, TypedDict

from model.network.config import GPTConfig

HEAD_SIZE = 128
REFERENCE_WIDTH = 768  # of the 12-layer network that the recipe was tuned on
REFERENCE_BATCH = 2**19  # tokens a step


def sized(depth: int, **changes: Any) -> GPTConfig:
    """The modern network of `depth` layers: width 64 a layer, rounded up to whole heads of 128."""
    width = HEAD_SIZE * math.ceil(64 * depth / HEAD_SIZE)
    settings: dict[str, Any] = {
        "depth": depth,
        "width": width,
        "heads": width // HEAD_SIZE,
        "sequence_length": 2048,
        "rotary_base": 100_000.0,
        "softcap": 15.0,
        "qk_scale": 1.2,
        "window_pattern": "SSSL",
        "value_embeddings": True,
        "residual_lambdas": True,
        "embedding_lambdas": True,
    }
    return GPTConfig(**settings | changes)


def rate_for_width(rate: float, width: int, reference_width: int = REFERENCE_WIDTH) -> float:
    """AdamW's rate of embeddings and head falls with the root of the width. Muon's does not change:
    its update has the same size relative to the matrix whatever the width."""
    return rate * math.sqrt(reference_width / width)


def rate_for_batch(rate: float, tokens_per_step: int, reference: int = REFERENCE_BATCH) -> float:
    """Rates grow with the root of the batch, which keeps the noise of an epoch the same."""
    return rate * math.sqrt(tokens_per_step / reference)


class LearningRates(TypedDict):
    """Fields of TrainConfig."""

    learning_rate: float
    embedding_learning_rate: float
    head_learning_rate: float
    scalar_learning_rate: float


def learning_rates_for(config: GPTConfig, tokens_per_step: int) -> LearningRates:
    """The four rates of TrainConfig for a size, from those tuned at depth 12."""
    batch = rate_for_batch(1.0, tokens_per_step)
    return {
        "learning_rate": 0.02 * batch,
        "embedding_learning_rate": rate_for_width(0.3 * batch, config.width),
        "head_learning_rate": rate_for_width(0.008 * batch, config.width),
        "scalar_learning_rate": 0.01 * batch,
    }
