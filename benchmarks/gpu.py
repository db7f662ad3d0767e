"""Training speed on one GPU: tokens/s, MFU, memory and loss of our networks, beside nanochat's at equal shapes.

    python -m benchmarks.gpu [--depths 12 24] [--precisions bf16 fp8] [--nanochat DIR] [--shards DIR] [--minutes 9]

* Needs torch, numpy and safetensors alone. Ends within `--minutes`, compilation included.
* Ours is the whole trainer (loader, guards, optimizer) as `python -m model.train` runs it, compiled; nanochat's is its
  own network and optimizer from a checkout in DIR, compiled, on the same batches. MFU counts FLOPs as model.cost does.
* Without --shards the tokens are drawn by Zipf's law: the loss then only falls to their entropy, which is printed.
* Without a GPU everything runs once at a tiny size, to see that it starts, and what was not measured is said.
"""

import argparse
import gc
import importlib
import json
import math
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch

from eval.markup import markdown_table
from model import cost
from model.config import Precision, TrainConfig
from model.hardware import known_hardware
from model.loader import batch
from model.plan import memory_bytes
from model.run import Execution, RunConfig
from model.scaling import learning_rates_for, sized
from model.shards import Dataset, ShardSet, Split, read_dataset, write_dataset, write_shard
from model.trainer import Trainer

UNTIMED_STEPS = 3
"""The first compiles, the next may compile again."""
MFU_GOAL = {(24, "bf16"): 0.55}
NANOCHAT_GOAL = 1.1


@dataclass
class Measured:
    """One system at one size; None is what could not be measured here."""

    system: str
    depth: int
    precision: str
    tokens_per_second: float | None = None
    mfu: float | None = None
    peak_bytes: int | None = None
    estimated_bytes: int | None = None
    loss: float | None = None
    """Mean of the last tenth of the steps."""
    steps: int = 0
    why_not: str = ""


def zipf_shards(directory: Path, vocab_size: int, tokens: int) -> float:
    """Shards of independent tokens with P(k) = log((k + 2) / (k + 1)) / log(V + 1); their entropy in nats."""
    noise, splits = np.random.default_rng(0), {}
    for split, count in (("train", tokens), ("val", 200_000)):
        drawn = (np.exp(noise.random(count) * math.log(vocab_size + 1)) - 1).astype(np.uint16)
        drawn[0] = 0
        write_shard(directory, split, 0, drawn, np.array([0]), ["all"])
        splits[split] = Split(documents=1, tokens=count, bytes=4 * count, shards=1)
    write_dataset(directory, Dataset(vocab_size, 0, "zipf", splits, np.full(vocab_size, 4)))
    k = np.arange(vocab_size)
    p = np.log((k + 2) / (k + 1)) / math.log(vocab_size + 1)
    return float(-(p * np.log(p)).sum())


def our_steps(config: RunConfig) -> Iterator[float]:
    """The loss of one weight update after the other."""
    trainer = Trainer(config)
    while True:
        yield trainer.train_step()["loss"]


def nanochat_steps(checkout: Path, config: RunConfig, device: torch.device) -> Iterator[float]:
    """The same of nanochat's network and optimizer, on the same batches."""
    sys.path.insert(0, str(checkout))
    network, ours, train = importlib.import_module("nanochat.gpt"), config.model, config.train
    with torch.device("meta"):
        model = network.GPT(network.GPTConfig(
            sequence_len=ours.sequence_length, vocab_size=read_dataset(Path(config.shards)).vocab_size,
            n_layer=ours.depth, n_head=ours.heads, n_kv_head=ours.key_heads, n_embd=ours.width,
            window_pattern=ours.window_pattern))  # fmt: skip
    model.to_empty(device=device)
    model.init_weights()
    optimizer = model.setup_optimizer(weight_decay=train.weight_decay)
    forward = torch.compile(model, dynamic=False) if device.type == "cuda" else model
    shards = ShardSet(Path(config.shards), "train")
    parts = train.tokens_per_step // (train.micro_batch_sequences * ours.sequence_length)
    step = 0
    while True:
        x_BT, y_BT = batch(shards, train.seed, step, 0, 1, train.tokens_per_step // ours.sequence_length,
                           ours.sequence_length)  # fmt: skip
        total = 0.0
        for x, y in zip(x_BT.chunk(parts), y_BT.chunk(parts)):
            loss = forward(x.to(device), y.to(device)) / parts
            loss.backward()
            total += loss.detach()
        optimizer.step()
        model.zero_grad(set_to_none=True)
        step += 1
        yield float(total)


def measure(result: Measured, steps: Iterator[float], seconds: float, tokens_per_step: int, curve: list) -> None:
    """Run for `seconds`, the untimed steps included; fills in `result` and adds to the curve."""
    cuda, began = torch.cuda.is_available(), time.perf_counter()
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    losses, clock = [], began
    while len(losses) <= UNTIMED_STEPS or time.perf_counter() - began < seconds:
        losses.append(next(steps))  # a number, so the GPU has finished the step
        if len(losses) == UNTIMED_STEPS:
            clock = time.perf_counter()
        curve.append([result.system, result.depth, result.precision, len(losses), len(losses) * tokens_per_step,
                      round(time.perf_counter() - began, 3), losses[-1]])  # fmt: skip
    result.steps = len(losses)
    result.tokens_per_second = (len(losses) - UNTIMED_STEPS) * tokens_per_step / (time.perf_counter() - clock)
    result.loss = float(np.mean(losses[-max(1, len(losses) // 10):]))
    result.peak_bytes = torch.cuda.max_memory_allocated() if cuda else None


def run_config(arguments: argparse.Namespace, depth: int, precision: str, shards: Path, run_dir: Path) -> RunConfig:
    """Our modern network of this depth under its own recipe, as a run that nobody ends."""
    cuda = torch.cuda.is_available()
    model = sized(depth, sequence_length=arguments.sequence_length)
    model = model.with_vocabulary(read_dataset(shards).vocab_size)
    train = TrainConfig(
        seed=1, tokens=10**12, tokens_per_step=arguments.tokens_per_step,
        micro_batch_sequences=arguments.micro_batch_sequences, **learning_rates_for(model, arguments.tokens_per_step),
        muon_beta2=0.9, cautious_decay=True, weight_decay=0.1, warmup_steps=40, momentum_warmup_steps=400,
        precision=Precision(precision), validation_every_steps=10**9, validation_tokens=arguments.sequence_length,
        checkpoint_every_steps=10**9)  # fmt: skip
    return RunConfig(model=model, train=train, shards=str(shards), run_dir=str(run_dir), sample_prompts=[],
                     execution=Execution(threads=None if cuda else 1))  # fmt: skip


def run_case(result: Measured, steps: Callable[[], Iterator[float]], seconds: float, config: RunConfig,
             curve: list) -> None:  # fmt: skip
    """One system at one size; what keeps it from running is written down, and the next one has its turn."""
    try:
        measure(result, steps(), seconds, config.train.tokens_per_step, curve)
    except Exception as error:  # of foreign code, out of memory, an unknown precision: the others still count
        result.why_not = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"[:200]
    gc.collect()
    torch.compiler.reset()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def add_mfu(result: Measured, flops_per_token: float) -> None:
    hardware = known_hardware(torch.cuda.get_device_name()) if torch.cuda.is_available() else None
    if hardware and result.tokens_per_second:
        result.mfu = result.tokens_per_second * flops_per_token / hardware.peak_flops


def tell(results: list[Measured]) -> str:
    """The table, the goals beside the figures, and what could not be measured."""
    gib = 2**30
    rows = [[r.system, r.depth, r.precision, r.tokens_per_second and round(r.tokens_per_second),
             r.mfu and round(100 * r.mfu, 1), r.peak_bytes and r.peak_bytes / gib,
             r.estimated_bytes and r.estimated_bytes / gib, r.loss, r.steps] for r in results]  # fmt: skip
    lines = [markdown_table(["system", "depth", "precision", "tokens/s", "MFU %", "peak GiB", "estimate GiB", "loss",
                             "steps"], rows), ""]  # fmt: skip
    for ours in (result for result in results if result.system == "ours"):
        name = f"depth {ours.depth}, {ours.precision}"
        goal = MFU_GOAL.get((ours.depth, ours.precision))
        if goal and ours.mfu:
            lines.append(f"{name}: MFU {ours.mfu:.1%}, goal at least {goal:.0%}")
        peer = next((r for r in results if r.system == "nanochat" and r.depth == ours.depth), None)
        if torch.cuda.is_available() and peer and peer.tokens_per_second and ours.tokens_per_second:
            ratio = ours.tokens_per_second / peer.tokens_per_second
            lines.append(f"{name}: {ratio:.2f} x nanochat's tokens/s (bf16), goal at least {NANOCHAT_GOAL}")
        if ours.peak_bytes and ours.estimated_bytes:
            lines.append(f"{name}: the dry run's memory is {ours.estimated_bytes / ours.peak_bytes:.2f} x the measured")
    lines += [f"not measured: {r.system}, depth {r.depth}, {r.precision}: {r.why_not}" for r in results if r.why_not]
    if not torch.cuda.is_available():
        lines.append("not measured: MFU, peak memory and the goals; torch finds no CUDA device, and tokens/s at this "
                     "size on a CPU say nothing about a GPU")  # fmt: skip
    elif not known_hardware(torch.cuda.get_device_name()):
        lines.append(f"not measured: MFU; model/hardware.py does not know the peak of {torch.cuda.get_device_name()}")
    return "\n".join(lines)


def parse(argv: list[str] | None) -> argparse.Namespace:
    cuda = torch.cuda.is_available()
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__.splitlines()[0])
    parser.add_argument("--depths", type=int, nargs="+", default=[12, 24] if cuda else [2], help="width is 64 a layer")
    parser.add_argument("--precisions", nargs="+", default=["bf16"], help="of ours; nanochat runs in bf16")
    parser.add_argument("--nanochat", type=Path, metavar="DIR", help="a checkout of github.com/karpathy/nanochat")
    parser.add_argument("--shards", type=Path, metavar="DIR", help="shards to train on instead of Zipf's tokens")
    parser.add_argument("--minutes", type=float, default=9.0 if cuda else 0.1, help="for everything together")
    parser.add_argument("--sequence-length", type=int, default=2048 if cuda else 64)
    parser.add_argument("--micro-batch-sequences", type=int, default=32 if cuda else 2)
    parser.add_argument("--tokens-per-step", type=int, default=2**18 if cuda else 256)
    parser.add_argument("--out", type=Path, default=Path("gpu-benchmark"), metavar="DIR", help="gets the loss curves")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> list[Measured]:
    arguments, began = parse(argv), time.perf_counter()
    cuda = torch.cuda.is_available()
    device = torch.device("cuda" if cuda else "cpu")
    print(f"torch {torch.__version__}, {torch.cuda.get_device_name() if cuda else 'no CUDA device: a tiny size'}")
    cases = [(depth, precision, system) for depth in arguments.depths for precision in arguments.precisions
             for system in ("ours", *(["nanochat"] if arguments.nanochat and precision == "bf16" else []))]  # fmt: skip
    results, curve = [], []
    with tempfile.TemporaryDirectory() as folder:
        shards = arguments.shards or Path(folder) / "shards"
        if arguments.shards is None:
            shards.mkdir()
            entropy = zipf_shards(shards, 32_768 if cuda else 512, 50_000_000 if cuda else 100_000)
            print(f"tokens drawn by Zipf's law, entropy {entropy:.3f} nats")
        for number, (depth, precision, system) in enumerate(cases):
            result = Measured(system, depth, precision)
            results.append(result)
            seconds = (60 * arguments.minutes - (time.perf_counter() - began)) / (len(cases) - number)
            if precision not in list(Precision):
                result.why_not = f"this version trains in {', '.join(Precision)}"
                continue
            config = run_config(arguments, depth, precision, shards, Path(folder) / f"run{number}")
            if system == "ours":
                result.estimated_bytes = memory_bytes(config.model, config.train)["total"]
                run_case(result, partial(our_steps, config), seconds, config, curve)
            else:
                run_case(result, partial(nanochat_steps, arguments.nanochat, config, device), seconds, config, curve)
            add_mfu(result, cost.flops_per_token(config.model, config.model.sequence_length))
            print(json.dumps(asdict(result)), flush=True)
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "results.json").write_text(json.dumps([asdict(result) for result in results], indent=1) + "\n")
    header = "system,depth,precision,step,tokens,seconds,loss\n"
    (arguments.out / "curve.csv").write_text(header + "".join(",".join(map(str, row)) + "\n" for row in curve))
    print("\n" + tell(results) + f"\n\nloss curves: {arguments.out / 'curve.csv'}")
    return results


if __name__ == "__main__":
    main()
