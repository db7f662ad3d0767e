"""The shapes at which benchmarks.gpu measures: those of `daily`, and tiny ones without a GPU."""

from benchmarks.gpu.measure import cuda
from model.network.config import GPTConfig
from model.network.scaling import sized

DAILY_STEP = 2**20
"""Tokens a weight update of `daily` sees: the rate that is reported is for this."""
DAILY_MICRO_BATCH = 16
"""Sequences, the largest that an H100 holds."""


def daily_network(depth: int) -> GPTConfig:
    """The network of `daily` with this many of its layers."""
    return sized(depth, width=1536, heads=12) if cuda() else sized(2, sequence_length=64)
