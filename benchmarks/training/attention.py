"""What attention within a window costs on a CPU, beside full causal attention: python -m benchmarks.training.attention

At the shapes of every preset that has windows, in one process and taking turns, forward and backward, in CPU time (user
and system). Then how many scores a query costs, counted and computed. FlexAttention has no backward pass on a CPU.

Shape suffixes: B batch, T tokens, H heads, K head size.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import create_block_mask
from torch.overrides import TorchFunctionMode

from benchmarks.goals import print_goal
from eval.reporting.markdown import markdown_table
from flows.run_config import Preset, compose
from model.network.attention import windowed_attention
from model.network.config import GPTConfig, Window
from model.network.flops import counted_keys, visible_keys

TOKENS = 2048
"""Of a micro-batch on a CPU, where no other number is set (model.planning.plan)."""
FULL, WINDOW, MASK = "full causal", "window", "mask"


def presets_with_windows() -> dict[str, GPTConfig]:
    models = {preset.value: compose(preset.value, {}).model for preset in Preset}
    return {name: model for name, model in models.items() if set(model.windows) != {Window.LONG}}


def attention_ways(length: int, window: int) -> dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]]:
    """Full causal attention, ours, and how SDPA's documentation has a window: a mask of all scores."""
    distance = torch.arange(length)[:, None] - torch.arange(length)
    seen = (distance >= 0) & (distance < window)
    return {
        FULL: lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True),
        WINDOW: lambda q, k, v: windowed_attention(q, k, v, window),
        MASK: lambda q, k, v: F.scaled_dot_product_attention(q, k, v, attn_mask=seen),
    }


def cpu_seconds(model: GPTConfig, dtype: torch.dtype, turns: int) -> dict[str, list[float]]:
    """Of forward and backward in each turn, of which the first is warm-up; small shapes several times a turn."""
    length = model.sequence_length
    shape = (max(1, TOKENS // length), length, model.heads, model.head_size)
    q, k, v, dy = (torch.randn(shape).to(dtype).transpose(1, 2) for _ in range(4))
    inputs = [x.requires_grad_() for x in (q, k, v)]
    ways = attention_ways(length, model.short_window_tokens)
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(turns + 1):
        for name in list(ways) if turn % 2 else list(ways)[::-1]:
            begin = time.process_time()
            for _ in range(max(1, 8 // model.heads)):
                torch.autograd.grad(ways[name](*inputs), inputs, dy)
            if turn:
                seconds[name].append(time.process_time() - begin)
    return seconds


class _Scores(TorchFunctionMode):
    """Counts the scores that calls of SDPA compute for one head of one row."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_function__(self, function: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if function is F.scaled_dot_product_attention:
            self.count += args[0].size(-2) * args[1].size(-2)
        return function(*args, **kwargs or {})


def scores_a_query(length: int, window: int) -> dict[str, float]:
    """What SDPA over stretches and FlexAttention compute for a window, as the mean over a row."""
    with _Scores() as scores:
        q, k, v = (torch.empty(1, 1, length, 8) for _ in range(3))
        windowed_attention(q, k, v, window)
    mask = create_block_mask(lambda b, h, i, j: (i >= j) & (i - j < window), None, None, length, length, device="cpu")
    blocks = int(mask.kv_num_blocks.sum())
    if mask.full_kv_num_blocks is not None:
        blocks += int(mask.full_kv_num_blocks.sum())
    return {"stretches": scores.count / length, "flex": blocks * mask.BLOCK_SIZE[0] * mask.BLOCK_SIZE[1] / length}


def times_table(models: dict[str, GPTConfig], turns: int) -> tuple[str, float]:
    """CPU time of a window and of a mask over that of full causal attention, and the largest median of a window."""
    rows, ratios = [], []
    for name, model in models.items():
        for dtype in (torch.float32, torch.bfloat16):
            seconds = cpu_seconds(model, dtype, turns)
            over = {way: sorted(one / full for one, full in zip(seconds[way], seconds[FULL])) for way in (WINDOW, MASK)}
            ratios.append(statistics.median(over[WINDOW]))
            shown = [f"{statistics.median(over[way]):.2f} ({over[way][0]:.2f} to {over[way][-1]:.2f})" for way in over]
            rows.append(
                [
                    name,
                    f"{model.heads} × {model.head_size}",
                    model.sequence_length,
                    model.short_window_tokens,
                    str(dtype).removeprefix("torch."),
                    *shown,
                ]
            )
    header = ["preset", "heads", "tokens", "window", "type", "window ÷ full causal", "SDPA with a mask ÷ full causal"]
    return markdown_table(header, rows), max(ratios)


def scores_table(models: dict[str, GPTConfig]) -> str:
    """Scores of a query: counted in FLOPs, visible, and computed."""
    rows = []
    for name, model in models.items():
        length, window = model.sequence_length, model.short_window_tokens
        scores = scores_a_query(length, window)
        both = replace(model, depth=2, window_pattern="SL")
        window_counted, past_counted = counted_keys(both, length)
        visible, past_visible = visible_keys(both, length)
        computed = [round(scores["stretches"]), round(scores["flex"])]
        rows.append([name, window_counted, round(visible), *computed, past_counted, round(past_visible)])
    header = ["preset", "window: counted", "visible", "SDPA over stretches", "FlexAttention"]
    return markdown_table([*header, "whole past: counted", "visible"], rows)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.training.attention")
    parser.add_argument("--turns", type=int, default=5, help="turns of each way that are counted")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    began = time.monotonic()
    models = presets_with_windows()
    times, worst = times_table(models, arguments.turns)
    print(f"torch {torch.__version__}, one thread, {arguments.turns} turns, {time.monotonic() - began:.0f} s")
    print(times)
    print()
    print(scores_table(models))
    print()
    print_goal("windowed attention over full causal at its worst preset", worst, 1.0, at_most=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
