"""Stages of benchmarks.gpu that train: networks of 124 M on the same real text, at most 12 M tokens, each once.

`speedrun`, `gpt2-124m` and nanochat see the same batches under their own recipes, their rates scaled by the root of the
batch; each alone on the GPU, compilation not counted. The horizon is a hundredth of what the recipes were tuned for, so
this compares early progress per second, not final models.
"""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu.measure import cuda, device, gigabytes
from benchmarks.gpu.nanochat import load_nanochat, nanochat_network
from benchmarks.gpu.scheduler import Bench, Stage
from flows.preset_files import read_preset
from model.data.loader import batch, validation_batches
from model.data.shards import ShardSet, read_dataset
from model.network.config import GPTConfig
from model.training.config import TrainConfig
from model.training.run import TrainerConfig, TrainerExecution
from model.training.trainer import Trainer

TOKENS_PER_STEP = 2**17
TOKENS = 12_000_000
VALIDATED_TOKENS = 2**18
TINY: dict[str, Any] = {"depth": 2, "width": 64, "heads": 2, "sequence_length": 64}
"""The network without a GPU."""


def _sizes(shards: Path) -> tuple[int, int, int]:
    """Steps, tokens a step and sequences of a micro-batch."""
    if not cuda():
        return 6, 512, 4
    return min(TOKENS, read_dataset(shards).splits["train"].tokens - 1) // TOKENS_PER_STEP, TOKENS_PER_STEP, 64


def validation_loss(losses: Callable, shards: Path, sequence_length: int, sequences: int) -> float:
    """Mean nats a token of the first validation tokens; `losses` gives those of a batch."""
    total, count = 0.0, 0
    for x, y in validation_batches(
        ShardSet(shards, "val"), VALIDATED_TOKENS if cuda() else 512, sequences, sequence_length
    ):
        with torch.no_grad():
            total += losses(x.to(device()), y.to(device())).double().sum().item()
        count += y.numel()
    return total / count


def run_race(
    bench: Bench,
    system: str,
    steps: Iterator[float],
    count: int,
    tokens_per_step: int,
    validated: Callable[[], float],
    flops: float | None = None,
) -> None:
    curve = []
    with bench.alone():
        began = time.perf_counter()
        for step in range(1, count + 1):
            loss = next(steps)
            if step % 10 == 0 or step in (1, count):
                curve.append([step, round(time.perf_counter() - began, 3), round(loss, 4)])
        took = time.perf_counter() - began
        bench.say(
            "race",
            system=system,
            steps=count,
            tokens=count * tokens_per_step,
            seconds=round(took, 3),
            tokens_per_second=round(count * tokens_per_step / took),
            validation_loss=round(validated(), 4),
            peak_gb=gigabytes(),
            curve=curve,
        )


def ours(bench: Bench, preset: str) -> None:
    """One of our presets."""
    shards = bench.options.shards
    count, step, sequences = _sizes(shards)
    values = read_preset(preset)
    network, train = GPTConfig(**values["model"]), TrainConfig(**values["train"])
    if not cuda():
        network = replace(network, **TINY)
    scale = math.sqrt(step / train.tokens_per_step)
    rates = {
        name: rate * scale
        for name in ("learning_rate", "embedding_learning_rate", "head_learning_rate", "scalar_learning_rate")
        if (rate := getattr(train, name)) is not None
    }
    train = replace(
        train,
        **rates,
        tokens=count * step,
        tokens_per_step=step,
        micro_batch_sequences=sequences,
        warmup_steps=min(train.warmup_steps, count // 8),
        spike_deviations=None,
        momentum_warmup_steps=min(train.momentum_warmup_steps, count // 2),
        validation_tokens=VALIDATED_TOKENS if cuda() else 512,
    )
    trainer = Trainer(
        TrainerConfig(
            model=network,
            train=train,
            shards=str(shards),
            run_dir=str(bench.folder / "run"),
            sample_prompts=[],
            execution=TrainerExecution(threads=None if cuda() else 1),
        )
    )
    for _ in range(2):
        trainer.train_step()
    with trainer.autocast:
        losses = partial(trainer.validated, reduction="none")
        validation_loss(losses, shards, network.sequence_length, sequences)
    trainer.start_over()

    def steps() -> Iterator[float]:
        while True:
            yield trainer.train_step()["loss"]

    def validated() -> float:
        with trainer.autocast:
            return validation_loss(losses, shards, network.sequence_length, sequences)

    run_race(bench, preset, steps(), count, step, validated)


def nanochat(bench: Bench) -> None:
    """nanochat's network of 12 layers with its optimizer, schedule and published rates; weight decay without its rule
    for the horizon, which would multiply it by 50 here."""
    shards = bench.options.shards
    count, step, sequences = _sizes(shards)
    network = load_nanochat(bench.options.nanochat, windows=True)
    vocab_size = read_dataset(shards).vocab_size
    length = 1024 if cuda() else TINY["sequence_length"]
    depth, width, heads = (12, 768, 6) if cuda() else (TINY["depth"], TINY["width"], TINY["heads"])
    scale = math.sqrt(step / 2**19)
    config = GPTConfig(
        depth=depth, width=width, heads=heads, sequence_length=length, vocab_size=vocab_size, window_pattern="SSSL"
    )
    peer = nanochat_network(network, config)
    peer.to_empty(device=device())
    forward = torch.compile(peer, dynamic=False) if cuda() else peer
    data = ShardSet(shards, "train")

    def steps() -> Iterator[float]:
        torch.manual_seed(1)
        peer.init_weights()
        optimizer = peer.setup_optimizer(
            unembedding_lr=0.008 * scale,
            embedding_lr=0.3 * scale,
            scalar_lr=0.5 * scale,
            matrix_lr=0.02 * scale,
            weight_decay=0.28 * scale,
        )
        cooldown, warmup = round(0.65 * count), min(40, count // 8) or 1
        for number in range(count):
            left = (count - number) / cooldown
            rate = (number + 1) / warmup if number < warmup else 1.0 if left >= 1 else left + (1 - left) * 0.05
            momentum = 0.85 + 0.12 * min(1, number / 400) if left >= 1 else 0.97 * left + 0.90 * (1 - left)
            for group in optimizer.param_groups:
                group["lr"] = group["initial_lr"] * rate
                if group["kind"] == "muon":
                    group["momentum"] = momentum
                    group["weight_decay"] = 0.28 * scale * 0.5 * (1 + math.cos(math.pi * number / count))
            x_BT, y_BT = batch(data, 2026, number, 0, 1, step // length, length)
            parts = step // length // sequences
            total = 0.0
            for x, y in zip(x_BT.chunk(parts), y_BT.chunk(parts)):
                loss = forward(x.to(device()), y.to(device())) / parts
                loss.backward()
                total += loss.detach()
            optimizer.step()
            peer.zero_grad(set_to_none=True)
            yield float(total)

    losses = partial(forward, loss_reduction="none")
    warm = steps()
    for _ in range(2):
        next(warm)
    validation_loss(losses, shards, length, sequences)
    run_race(bench, "nanochat", steps(), count, step, lambda: validation_loss(losses, shards, length, sequences))


STAGES = [
    Stage("race-speedrun", partial(ours, preset="speedrun"), 40, 90),
    Stage("race-nanochat", nanochat, 40, 90),
    Stage("race-gpt2-124m", partial(ours, preset="gpt2-124m"), 40, 90),
]
