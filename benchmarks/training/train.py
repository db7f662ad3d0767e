"""Training speed and loss of our trainer beside nanoGPT at equal GPT-2 shapes on a CPU, in one run.

    python -m benchmarks.training.train --nanogpt DIR [--shapes char middle gpt2] [--threads 1 2] [--pairs 8]
    [--compile]

* DIR is a checkout of https://github.com/karpathy/nanoGPT; its model.py is used as it is, and the step does what its
  train.py does on a CPU: fp32 (it has no autocast there), its own optimizer, clipping, zero_grad, a batch from memmap.
* Both start from nanoGPT's initial weights and read the same windows in the same order, in two processes of which one
  computes at a time: a few steps of one, then of the other. A pair gives a ratio; the table shows the median ratio with
  a 95 % bootstrap interval, in wall time and in CPU time, which other load on the machine moves less.
* Losses after all steps differ by GELU (nanoGPT's is exact, GPT-2's and ours the tanh form) and by rounding only.
* --compile compiles both; nanoGPT's README turns it off on a CPU.
"""

import argparse
import contextlib
import dataclasses
import importlib.util
import io
import multiprocessing
import sys
import tempfile
import time
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch

from eval.reporting.markdown import markdown_table
from model.data import loader
from model.data.shards import Dataset, ShardSet, Split, write_dataset, write_shard
from model.network.config import Activation, GPTConfig, Norm, Position
from model.training.config import OptimizerName, Precision, TrainConfig
from model.training.run import TrainerConfig, TrainerExecution
from model.training.trainer import Trainer

WHERE = "git clone https://github.com/karpathy/nanoGPT"
SEED, LEARNING_RATE, WEIGHT_DECAY, BETAS, CLIP = 1337, 6e-4, 0.1, (0.9, 0.95), 1.0  # nanoGPT's defaults
SIDES = ("nanoGPT", "ours fp32", "ours bf16")


@dataclass(frozen=True)
class Shape:
    """A network and a batch of nanoGPT's."""

    depth: int
    heads: int
    width: int
    sequence_length: int
    vocab_size: int
    sequences: int
    bias: bool
    steps: int
    """Steps a turn."""


SHAPES = {
    "char": Shape(4, 4, 128, 64, 65, 12, False, 20),  # its shakespeare-char on a CPU
    "middle": Shape(6, 6, 384, 256, 65, 8, False, 1),  # its shakespeare-char, with a smaller batch
    "gpt2": Shape(12, 12, 768, 1024, 50304, 1, True, 1),  # 124M, its padded vocabulary
}


def write_data(folder: Path, vocab_size: int) -> None:
    """Markov text: what is read has no influence on the speed, and the loss has something to fall by."""
    random, splits = np.random.default_rng(0), {}
    for split, count in (("train", 400_000), ("val", 4_096)):
        noise, steps = random.random(count) < 0.2, random.integers(1, 5, count)
        tokens = np.zeros(count, dtype=np.uint16)
        for place in range(1, count):
            last = int(tokens[place - 1])
            tokens[place] = random.integers(vocab_size) if noise[place] else (5 * last + steps[place]) % vocab_size
        write_shard(folder, split, 0, tokens, np.array([0]), ["all"])
        splits[split] = Split(documents=1, tokens=count, bytes=count, shards=1)
    write_dataset(folder, Dataset(vocab_size, 0, "", splits, np.ones(vocab_size)))


def nanogpt(checkout: Path, shape: Shape) -> Any:
    """nanoGPT's network, a torch module with methods of its own, with its own initialisation from the seed."""
    spec = importlib.util.spec_from_file_location("nanogpt_model", checkout / "model.py")
    if spec is None or spec.loader is None:
        raise ImportError(f"{checkout / 'model.py'} is no Python module")
    module = importlib.util.module_from_spec(spec)
    sys.modules["nanogpt_model"] = module
    spec.loader.exec_module(module)
    torch.manual_seed(SEED)
    return module.GPT(
        module.GPTConfig(
            block_size=shape.sequence_length,
            vocab_size=shape.vocab_size,
            n_layer=shape.depth,
            n_head=shape.heads,
            n_embd=shape.width,
            dropout=0.0,
            bias=shape.bias,
        )
    )


def our_weights(theirs: dict[str, torch.Tensor], depth: int) -> dict[str, torch.Tensor]:
    """The same weights under our names; theirs holds query, key and value in one matrix."""
    ours = {
        "token_embedding.weight": theirs["transformer.wte.weight"],
        "position_embedding.weight": theirs["transformer.wpe.weight"],
    }
    names = {
        "ln_1": "attention_norm",
        "attn.c_proj": "attention.project",
        "ln_2": "mlp_norm",
        "mlp.c_fc": "mlp.expand",
        "mlp.c_proj": "mlp.project",
    }
    for key, value in theirs.items():
        for kind in ("weight", "bias"):
            if key == f"transformer.ln_f.{kind}":
                ours[f"final_norm.{kind}"] = value
            for layer in range(depth):
                if key == f"transformer.h.{layer}.attn.c_attn.{kind}":
                    for name, part in zip(("query", "key", "value"), value.chunk(3)):
                        ours[f"blocks.{layer}.attention.{name}.{kind}"] = part
                for their_name, name in names.items():
                    if key == f"transformer.h.{layer}.{their_name}.{kind}":
                        ours[f"blocks.{layer}.{name}.{kind}"] = value
    return ours


class NanoGPT:
    """The training step of nanoGPT's train.py on one CPU, one micro-batch, constant rate."""

    def __init__(self, checkout: Path, shape: Shape, shards: Path, compiled: bool) -> None:
        self.shape, self.shards, self.step = shape, ShardSet(shards, "train"), 0
        self.model = nanogpt(checkout, shape)
        self.optimizer = self.model.configure_optimizers(WEIGHT_DECAY, LEARNING_RATE, BETAS, "cpu")
        self.forward = torch.compile(self.model) if compiled else self.model
        self.batch = self.next_batch()

    def next_batch(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Reads as its get_batch does; the places are those that our loader visits."""
        shape, shards = self.shape, self.shards
        windows = loader.window_count(shards, shape.sequence_length)
        visits = self.step * shape.sequences + np.arange(shape.sequences)
        places = loader.permuted(visits % windows, windows, SEED, int(visits[0]) // windows) * shape.sequence_length
        data = np.memmap(shards.paths[0], dtype=np.uint16, mode="r", offset=1024)
        x_BT, y_BT = (
            torch.stack(
                [
                    torch.from_numpy(data[place + shift : place + shift + shape.sequence_length].astype(np.int64))
                    for place in places
                ]
            )
            for shift in (0, 1)
        )
        self.step += 1
        return x_BT, y_BT

    def train_step(self) -> float:
        for group in self.optimizer.param_groups:
            group["lr"] = LEARNING_RATE
        _, loss = self.forward(*self.batch)
        self.batch = self.next_batch()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), CLIP)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return loss.item()


def our_trainer(
    checkout: Path, shape: Shape, shards: Path, folder: Path, threads: int, precision: Precision, compiled: bool
) -> Trainer:
    """Our trainer as a run has it, with nanoGPT's weights."""
    tokens = shape.sequences * shape.sequence_length
    model = GPTConfig(
        depth=shape.depth,
        width=shape.width,
        heads=shape.heads,
        sequence_length=shape.sequence_length,
        vocab_multiple=1,
        norm=Norm.LAYER,
        position=Position.LEARNED,
        activation=Activation.GELU,
        qk_norm=False,
        tied_head=True,
        bias=shape.bias,
        zero_init_projections=False,
    )
    train = TrainConfig(
        seed=SEED,
        tokens=100_000 * tokens,
        tokens_per_step=tokens,
        micro_batch_sequences=shape.sequences,
        optimizer=OptimizerName.ADAMW,
        learning_rate=LEARNING_RATE,
        weight_decay=WEIGHT_DECAY,
        adam_beta1=BETAS[0],
        adam_beta2=BETAS[1],
        cooldown_fraction=0.0,
        grad_clip=CLIP,
        precision=precision,
        validation_every_steps=10**6,
        validation_tokens=tokens,
        checkpoint_every_steps=10**6,
    )
    trainer = Trainer(
        TrainerConfig(
            model=model,
            train=train,
            shards=str(shards),
            run_dir=str(folder),
            sample_prompts=[],
            execution=TrainerExecution(device="cpu", threads=threads, compile=compiled),
        )
    )
    trainer.model.load_state_dict(our_weights(nanogpt(checkout, shape).state_dict(), shape.depth))
    return trainer


def work(
    connection: Connection,
    side: str,
    checkout: Path,
    shape: Shape,
    shards: Path,
    folder: Path,
    threads: int,
    compiled: bool,
) -> None:
    """One side in a process of its own: for a number of steps received, sends wall and CPU seconds and losses."""
    torch.set_num_threads(threads)
    with contextlib.redirect_stdout(io.StringIO()):
        if side == "nanoGPT":
            train_step = NanoGPT(checkout, shape, shards, compiled).train_step
        else:
            precision = Precision.BF16 if side == "ours bf16" else Precision.FP32
            trainer = our_trainer(checkout, shape, shards, folder / side, threads, precision, compiled)
            train_step = lambda: trainer.train_step()["loss"]  # noqa: E731
    while steps := connection.recv():
        wall, cpu = time.perf_counter(), time.process_time()
        losses = [train_step() for _ in range(steps)]
        connection.send((time.perf_counter() - wall, time.process_time() - cpu, losses))


def ratio(theirs: list[float], ours: list[float]) -> str:
    """Median of the pairs' ratios with a 95 % bootstrap interval."""
    ratios = np.array(theirs) / np.array(ours)
    draws = np.random.default_rng(0).choice(ratios, (2000, len(ratios)))
    low, high = np.quantile(np.median(draws, axis=1), (0.025, 0.975))
    return f"{np.median(ratios):.2f} ({low:.2f} to {high:.2f})"


def measure(checkout: Path, name: str, threads: int, pairs: int, compiled: bool, folder: Path) -> list[list]:
    """Rows of the table for one shape."""
    shape = SHAPES[name]
    shards = folder / f"{name}-shards"
    if not shards.exists():
        write_data(shards, shape.vocab_size)
    context, workers = multiprocessing.get_context("spawn"), {}
    for side in SIDES:
        ours, theirs = context.Pipe()
        arguments = (theirs, side, checkout, shape, shards, folder / f"{name}-{threads}-{compiled}", threads, compiled)
        process = context.Process(target=work, args=arguments, daemon=True)
        process.start()
        theirs.close()  # so that a worker that fails ends this process, too
        workers[side] = ours
    wall: dict[str, list[float]] = {side: [] for side in SIDES}
    cpu: dict[str, list[float]] = {side: [] for side in SIDES}
    losses: dict[str, list[float]] = {side: [] for side in SIDES}
    for turn in range(pairs + 1):
        for side in SIDES if turn % 2 else reversed(SIDES):
            workers[side].send(shape.steps)
            seconds, cpu_seconds, turn_losses = workers[side].recv()
            losses[side] += turn_losses
            if turn:  # the first is warm-up
                wall[side].append(seconds)
                cpu[side].append(cpu_seconds)
    for connection in workers.values():
        connection.send(0)
    tokens = shape.steps * shape.sequences * shape.sequence_length
    return [
        [
            name,
            threads,
            "yes" if compiled else "no",
            side,
            round(tokens / float(np.median(wall[side]))),
            ratio(wall["nanoGPT"], wall[side]) if side != "nanoGPT" else None,
            ratio(cpu["nanoGPT"], cpu[side]) if side != "nanoGPT" else None,
            len(losses[side]),
            f"{losses[side][0]:.4f}",
            f"{np.mean(losses[side][-shape.steps :]):.4f}",
        ]
        for side in SIDES
    ]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.training.train")
    parser.add_argument("--nanogpt", type=Path, required=True, help=f"checkout of nanoGPT: {WHERE}")
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--pairs", type=int, default=8, help="turns of each side that are counted")
    parser.add_argument("--compile", action="store_true", help="compile both sides as well; needs a C++ compiler")
    arguments = parser.parse_args()
    if not (arguments.nanogpt / "model.py").exists():
        parser.error(f"{arguments.nanogpt} holds no model.py; get nanoGPT with: {WHERE} {arguments.nanogpt}")
    print(f"torch {torch.__version__}; {', '.join(f'{k} {dataclasses.astuple(SHAPES[k])}' for k in arguments.shapes)}")
    with tempfile.TemporaryDirectory() as folder:
        rows = [
            row
            for name in arguments.shapes
            for threads in arguments.threads
            for compiled in ([False, True] if arguments.compile else [False])
            for row in measure(arguments.nanogpt, name, threads, arguments.pairs, compiled, Path(folder))
        ]
    print(
        markdown_table(
            (
                "shape",
                "threads",
                "compiled",
                "side",
                "tokens/s",
                "ours ÷ nanoGPT, wall time",
                "in CPU time",
                "steps",
                "first loss",
                "last loss",
            ),
            rows,
        )
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
