"""nanochat's network and optimizer (github.com/karpathy/nanochat) from a checkout, and its training step at the shapes
of `daily`.
"""

import importlib
import sys
import time
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.gpu.kernels import variable_length_attention
from benchmarks.gpu.measure import by_kind, cuda, device, gigabytes, kernels, milliseconds, synchronise
from benchmarks.gpu.scheduler import Bench
from benchmarks.gpu.shapes import DAILY_MICRO_BATCH, DAILY_STEP, daily_network
from model.kernels import flash_attention
from model.network.config import GPTConfig


def load_nanochat(checkout: Path, windows: bool) -> ModuleType:
    """nanochat's network module; with `windows` its attention runs FlashAttention-3 from flash_attn_interface where the
    hub that it takes it from is out of reach, or else torch's variable-length kernel, because plain SDPA with a mask
    would make nanochat look slower than it is."""
    if str(checkout) not in sys.path:
        sys.path.insert(0, str(checkout))
    network = importlib.import_module("nanochat.gpt")
    fallback = importlib.import_module("nanochat.flash_attention")
    if windows and cuda() and not fallback.HAS_FA3:
        with suppress(ImportError):
            fallback.flash_attn.flash_attn_func = importlib.import_module(flash_attention.PACKAGE).flash_attn_func
            return network

        def attend(q: Tensor, k: Tensor, v: Tensor, causal: bool, window_size: tuple[int, int]) -> Tensor:
            B, T, _, _ = q.shape
            starts = torch.arange(0, (B + 1) * T, T, dtype=torch.int32, device=q.device)
            left = window_size[0] if 0 <= window_size[0] < T else -1
            return variable_length_attention(q, k, v, starts, left)

        fallback.flash_attn.flash_attn_func = attend
    return network


def nanochat_network(module: ModuleType, config: GPTConfig) -> Any:
    """nanochat's network of this shape, a torch module with methods of its own, on the device meta."""
    with torch.device("meta"):
        return module.GPT(
            module.GPTConfig(
                sequence_len=config.sequence_length,
                vocab_size=config.vocab_size,
                n_layer=config.depth,
                n_head=config.heads,
                n_kv_head=config.key_heads,
                n_embd=config.width,
                window_pattern=config.window_pattern,
            )
        )


def use_nanochat_fp8(peer: nn.Module) -> None:
    """As its training script does."""
    converting = importlib.import_module("nanochat.fp8")
    converting.convert_to_float8_training(
        peer,
        config=converting.Float8LinearConfig.from_recipe_name("tensorwise"),
        module_filter_fn=lambda module, name: isinstance(module, nn.Linear) and min(module.weight.shape) >= 128,
    )


def nanochat_step(bench: Bench, depth: int, micro_batch_sequences: int, fp8: bool, what: str) -> None:
    """Micro-batch and update of nanochat's network and optimizer at the shape of `daily`."""
    vocab_size = 32_768 if cuda() else 512
    config = daily_network(depth).with_vocabulary(vocab_size)
    peer = nanochat_network(load_nanochat(bench.options.nanochat, windows=True), config)
    peer.to_empty(device=device())
    peer.init_weights()
    optimizer = peer.setup_optimizer(weight_decay=0.1)
    if fp8:
        use_nanochat_fp8(peer)
    forward = torch.compile(peer, dynamic=False) if cuda() else peer
    x, y = (
        torch.randint(vocab_size, (micro_batch_sequences, config.sequence_length), device=device()) for _ in range(2)
    )

    def run() -> None:
        forward(x, y).backward()

    if cuda():
        torch.cuda.reset_peak_memory_stats()
    began = time.perf_counter()
    for _ in range(2):
        run()
        optimizer.step()
        peer.zero_grad(set_to_none=True)
    synchronise()
    first = time.perf_counter() - began
    run()
    with bench.alone():
        took = milliseconds(run, 6 if cuda() else 2)
        update = milliseconds(optimizer.step, 3)
        rows = kernels(run)
    tokens = x.numel()
    rate = 1e3 * DAILY_STEP / (took * DAILY_STEP / tokens + update)
    bench.say(
        "step",
        what=what,
        depth=config.depth,
        precision="fp8" if fp8 else "bf16",
        micro_batch=micro_batch_sequences,
        micro_batch_ms=round(took, 2),
        update_ms=round(update, 2),
        tokens_per_second=round(rate),
        peak_gb=gigabytes(),
        first_steps_s=round(first, 1),
    )
    bench.say(
        "profile",
        what=what,
        wall_ms=round(took, 2),
        busy_ms=round(sum(row[1] for row in rows), 2),
        kinds=by_kind(rows),
        kernels=[[row[0][:90], round(row[1], 2), row[2]] for row in rows[:30]],
    )


def nanochat_bf16(bench: Bench) -> None:
    nanochat_step(bench, 24, DAILY_MICRO_BATCH if cuda() else 2, False, "nanochat")


def nanochat_fp8(bench: Bench) -> None:
    nanochat_step(bench, 24, DAILY_MICRO_BATCH if cuda() else 2, cuda(), "nanochat")
