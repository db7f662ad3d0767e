"""What benchmarks.gpu measures: single kernels, the training step of `daily`, what surrounds it, scoring, and nanochat
at equal shapes. Without a GPU every stage runs at a tiny size.
"""

import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch

from benchmarks.gpu.kernels import attention, ceilings
from benchmarks.gpu.measure import by_kind, cuda, device, gigabytes, kernels, milliseconds, synchronise
from benchmarks.gpu.nanochat import nanochat_bf16, nanochat_fp8
from benchmarks.gpu.scheduler import Bench, Stage
from benchmarks.gpu.shapes import DAILY_MICRO_BATCH, DAILY_STEP, daily_network
from eval.scoring.arithmetic import set_matmul_precision
from eval.scoring.precision import Precision as ScoringPrecision
from eval.scoring.scorer import Scorer
from eval.scoring.trained_model import TrainedModel
from model.data.shards import Dataset, Split, write_dataset, write_shard
from model.kernels import flash_attention
from model.machine.hardware import known_hardware
from model.network import flops
from model.network.config import GPTConfig
from model.network.gpt import GPT
from model.network.scaling import learning_rates_for
from model.planning.plan import memory_bytes
from model.training import trainer as trainer_module
from model.training.checkpoint import FinalModel
from model.training.config import Precision, TrainConfig
from model.training.metrics import NoLog
from model.training.run import TrainerConfig, TrainerExecution
from model.training.trainer import Trainer


def zipf_shards(directory: Path, vocab_size: int, tokens: int) -> float:
    """Shards of independent tokens with P(k) = log((k + 2) / (k + 1)) / log(V + 1); their entropy in nats."""
    noise, splits = np.random.default_rng(0), {}
    for split, count in (("train", tokens), ("val", min(tokens, 2**19))):
        drawn = (np.exp(noise.random(count, np.float32) * np.log(vocab_size + 1)) - 1).clip(0, vocab_size - 1)
        drawn = drawn.astype(np.uint16)
        drawn[0] = 0
        write_shard(directory, split, 0, drawn, np.array([0]), ["all"])
        splits[split] = Split(documents=1, tokens=count, bytes=4 * count, shards=1)
    write_dataset(directory, Dataset(vocab_size, 0, "zipf", splits, np.full(vocab_size, 4)))
    k = np.arange(vocab_size)
    p = np.log((k + 2) / (k + 1)) / np.log(vocab_size + 1)
    return float(-(p * np.log(p)).sum())


def start_on_device() -> None:
    """Draw weights on the GPU: a minute less for 1.4 B weights."""
    if not cuda():
        return

    def initialise(model: GPT, seed: int) -> None:
        torch.manual_seed(seed)
        for name, parameter in model.named_parameters():
            parameter.data = torch.empty(parameter.shape, device="cuda")
            if parameter.ndim == 1:
                parameter.data.fill_(1.0)
            else:
                parameter.data.normal_(0.0, 0.001 if name == "head.weight" else parameter.shape[-1] ** -0.5)
                if name.endswith("project.weight"):
                    parameter.data.zero_()

    trainer_module.initialise = initialise


def training(
    bench: Bench, network: GPTConfig, precision: str, micro_batch: int, micro_batches: int, deterministic: bool = False
) -> TrainerConfig:
    """A run of this network with its own recipe and a budget that is never reached, on tokens drawn by Zipf's law."""
    start_on_device()
    shards, vocab_size = bench.folder / "shards", 32_768 if cuda() else 512
    if not shards.exists():
        shards.mkdir()
        zipf_shards(shards, vocab_size, 16_000_000 if cuda() else 100_000)
    network = network.with_vocabulary(vocab_size)
    step = micro_batches * micro_batch * network.sequence_length
    train = TrainConfig(
        seed=1,
        tokens=10**12,
        tokens_per_step=step,
        micro_batch_sequences=micro_batch,
        **learning_rates_for(network, step),
        muon_beta2=0.9,
        cautious_decay=True,
        weight_decay=0.1,
        warmup_steps=40,
        momentum_warmup_steps=400,
        precision=Precision(precision),
        validation_every_steps=10**9,
        validation_tokens=2**19 if cuda() else 256,
        checkpoint_every_steps=10**9,
    )
    execution = TrainerExecution(threads=None if cuda() else 1, deterministic=deterministic)
    return TrainerConfig(
        model=network,
        train=train,
        shards=str(shards),
        sample_prompts=[[1, 2, 3]],
        run_dir=str(bench.folder / "run"),
        execution=execution,
    )


def started(bench: Bench, config: TrainerConfig) -> Trainer:
    """A trainer that has compiled, and what that took."""
    if cuda():
        torch.cuda.reset_peak_memory_stats()
    began = time.perf_counter()
    trainer = Trainer(config)
    built = time.perf_counter()
    losses = [trainer.train_step()["loss"]]
    compiled = time.perf_counter()
    losses += [trainer.train_step()["loss"] for _ in range(2)]
    train = trainer.config.train
    bench.say(
        "start",
        depth=config.model.depth,
        windows=trainer.kernels.windows,
        precision=str(train.precision),
        micro_batch=trainer.micro_batch_sequences,
        build_s=round(built - began, 1),
        first_step_s=round(compiled - built, 1),
        losses=[round(loss, 4) for loss in losses],
        peak_gb=gigabytes(),
        weights_and_optimizer_gb=gigabytes(peak=False),
        planned_gb=round(memory_bytes(trainer.config.model, train, device().type)["total"] / 1e9, 2),
    )
    return trainer


def micro_batch(trainer: Trainer) -> Callable[[], None]:
    """Forward and backward of one micro-batch, gradients added to those that are there."""
    x_BT, y_BT = trainer.batches.take(trainer.step)
    x, y = x_BT.chunk(trainer.micro_batches)[0], y_BT.chunk(trainer.micro_batches)[0]

    def run() -> None:
        with trainer.autocast:
            loss = trainer.forward(x, y)
        loss.backward()

    return run


def measure_step(bench: Bench, trainer: Trainer, what: str, profiled: bool = True) -> None:
    """Milliseconds of a micro-batch and of an update, hence tokens/s and MFU at the step of `daily`; kernels."""
    config, train = trainer.config.model, trainer.config.train
    tokens, run = trainer.micro_batch_sequences * config.sequence_length, micro_batch(trainer)
    counted, visible = (
        count(config, config.sequence_length) for count in (flops.flops_per_token, flops.visible_flops_per_token)
    )
    with bench.alone():
        took = milliseconds(run, 6 if cuda() else 2)
        update = milliseconds(lambda: trainer.optimizer.step(1e-3), 3)
        began = time.perf_counter()
        loss = trainer.train_step()["loss"]
        step = time.perf_counter() - began
        rows = kernels(run) if profiled else []
    rate = 1e3 * DAILY_STEP / (took * DAILY_STEP / tokens + update)
    hardware = known_hardware(torch.cuda.get_device_name()) if cuda() else None
    bench.say(
        "step",
        what=what,
        depth=config.depth,
        precision=str(train.precision),
        micro_batch=trainer.micro_batch_sequences,
        micro_batch_ms=round(took, 2),
        update_ms=round(update, 2),
        whole_step_s=round(step, 4),
        whole_step_tokens=train.tokens_per_step,
        tokens_per_second=round(rate),
        mfu=hardware and round(rate * counted / hardware.peak_flops, 4),
        mfu_of_visible_scores=hardware and round(rate * visible / hardware.peak_flops, 4),
        peak_gb=gigabytes(),
        loss=round(loss, 4),
    )
    if profiled:
        busy = sum(row[1] for row in rows)
        bench.say(
            "profile",
            what=what,
            wall_ms=round(took, 2),
            busy_ms=round(busy, 2),
            kinds=by_kind(rows),
            kernels=[[row[0][:90], round(row[1], 2), row[2]] for row in rows[:30]],
        )


class _Events(NoLog):
    """Reports what a validation writes."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench

    def write(self, event: str, **values: object) -> None:
        self.bench.say("event", event=event, loss=values.get("loss"))


def surroundings(bench: Bench, trainer: Trainer) -> None:
    """What a run does besides steps: validation, samples, a checkpoint, resuming, and whether bytes repeat."""

    def timed(finding: str, function: Callable[[], object], **values: object) -> None:
        began = time.perf_counter()
        function()
        synchronise()
        bench.say(finding, seconds=round(time.perf_counter() - began, 3), **values)

    for finding in ("validation, with its compilation", "validation"):
        timed(finding, lambda: trainer.validate(_Events(bench)), tokens=trainer.config.train.validation_tokens)
    bench.say("memory after validation", peak_gb=gigabytes())
    timed("samples", lambda: trainer.sample("untrained"))
    timed("checkpoint, until training goes on", trainer.save)
    timed("checkpoint, until it is written", trainer.writer.wait)
    at = trainer.step
    losses = [trainer.train_step()["loss"] for _ in range(2)]
    weights = {name: weight.detach().clone() for name, weight in trainer.model.named_parameters()}
    timed("resume", trainer.resume, same_step=trainer.step >= at)
    again = [trainer.train_step()["loss"] for _ in range(2)]
    largest = max(
        float((weight.detach() - weights[name]).abs().max()) for name, weight in trainer.model.named_parameters()
    )
    bench.say(
        "repeated after resuming",
        losses=list(zip(losses, again)),
        largest_weight_difference=largest,
        same_bytes=largest == 0,
    )


def daily_bf16(bench: Bench) -> None:
    """The whole network of `daily`, as installed from package indexes alone."""
    flash_attention.available = lambda device: False
    trainer = started(bench, training(bench, daily_network(24), "bf16", DAILY_MICRO_BATCH if cuda() else 2, 4))
    measure_step(bench, trainer, "daily")
    surroundings(bench, trainer)


def daily_fp8(bench: Bench) -> None:
    trainer = started(
        bench, training(bench, daily_network(24), "fp8" if cuda() else "fp32", DAILY_MICRO_BATCH if cuda() else 2, 4)
    )
    measure_step(bench, trainer, "daily")


def same_bytes(bench: Bench, deterministic: bool) -> None:
    """Four layers of `daily`: what the setting costs, and whether a resumed training has the same bytes."""
    trainer = started(bench, training(bench, daily_network(4), "bf16", 8 if cuda() else 2, 2, deterministic))
    measure_step(bench, trainer, "4 layers, deterministic" if deterministic else "4 layers", profiled=False)
    surroundings(bench, trainer)


def four_layers(bench: Bench, what: str, flash: bool = True, **options: bool) -> None:
    """Four layers of `daily` in fp8, with these options of torch's compiler; without FlashAttention-3 if not
    `flash`."""
    for name, value in options.items():
        setattr(torch._inductor.config, name, value)
    if not flash:
        flash_attention.available = lambda device: False
    precision, sequences = ("fp8", DAILY_MICRO_BATCH) if cuda() else ("fp32", 2)
    trainer = started(bench, training(bench, daily_network(4), precision, sequences, 2))
    measure_step(bench, trainer, what)


def program(bench: Bench) -> None:
    """`python -m model.train` on four layers of `daily`, twice in processes of its own: the second has the compiled
    code of the first."""
    config = training(bench, daily_network(4), "fp8" if cuda() else "fp32", DAILY_MICRO_BATCH if cuda() else 2, 2)
    config = replace(
        config,
        train=replace(config.train, tokens=10 * config.train.tokens_per_step, warmup_steps=2, log_every_steps=1),
        execution=replace(config.execution, compile_cache=str(bench.folder / "compiled")),
    )
    environment = {name: value for name, value in os.environ.items() if name != "TORCHINDUCTOR_CACHE_DIR"}
    for start in (1, 2):
        run = replace(config, run_dir=str(bench.folder / f"program-{start}"))
        path = bench.folder / f"program-{start}.json"
        path.write_text(json.dumps(asdict(run)))
        began, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run(
            [sys.executable, "-m", "model.train", str(path)],
            env=environment,
            check=False,
            cwd=Path(__file__).resolve().parents[2],
            capture_output=True,
            text=True,
        )
        took, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
        lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
        steps = [line for line in lines if line["event"] == "step"]
        bench.say(
            "program",
            start=start,
            exit_code=done.returncode,
            seconds=round(took, 1),
            cpu_seconds=round(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, 1),
            first_step_s=steps and steps[0]["seconds"],
            last_step_s=steps and steps[-1]["seconds"],
            losses=[line["loss"] for line in steps],
            stderr=done.stderr[-600:],
            kernels={name: value for name, value in lines[0].items() if name.endswith("kernel")} if lines else {},
            events=[line for line in lines if line["event"] not in ("step", "start", "samples")][:12],
            kept_files=len(list((bench.folder / "compiled").rglob("*"))),
        )


@torch.inference_mode()
def padded_scores(network: GPT, inputs: list[tuple[int, ...]], answers: list[list[int]], batch: int) -> list[float]:
    """The same scores the way lm-eval's hf backend computes them: every request alone, the longest first, padded
    batches, all logits, log-softmax over all of them."""
    order = sorted(range(len(inputs)), key=lambda number: -len(inputs[number]))
    scores = [0.0] * len(inputs)
    for start in range(0, len(order), batch):
        numbers = order[start : start + batch]
        x = torch.zeros(len(numbers), len(inputs[numbers[0]]), dtype=torch.long)
        for row, number in enumerate(numbers):
            x[row, : len(inputs[number])] = torch.tensor(inputs[number])
        logprobs = network(x.to(device())).log_softmax(-1)
        for row, number in enumerate(numbers):
            end, answer = len(inputs[number]), torch.tensor(answers[number], device=device())
            chosen = logprobs[row, end - len(answer) : end].gather(1, answer[:, None])
            scores[number] = float(chosen.sum())
    return scores


def scoring(bench: Bench) -> None:
    """Questions with four answers, at each precision: ours, and the padded way of lm-eval's hf backend."""
    start_on_device()
    config = daily_network(24).with_vocabulary(32_768 if cuda() else 512)
    network = GPT(config).to(device())
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.normal_(0.0, 0.02) if parameter.ndim > 1 else parameter.fill_(1.0)
    draw, length = np.random.default_rng(0), 80 if cuda() else 10
    inputs, answers = [], []
    for _ in range(2000 if cuda() else 8):
        question = draw.integers(0, config.vocab_size, length).tolist()
        for _ in range(4):
            answer = draw.integers(0, config.vocab_size, length // 3).tolist()
            inputs.append(tuple(question + answer)[:-1])
            answers.append(answer)
    for precision in ScoringPrecision:  # bf16, which rounds the weights, comes last
        set_matmul_precision(precision)
        scorer = Scorer(TrainedModel(FinalModel(network, 0, None, {}), device(), precision), device())
        scorer(inputs[:200], answers[:200], lambda done: None)
        padded_scores(network, inputs[:64], answers[:64], 64)
        with bench.alone():
            began = time.perf_counter()
            ours = scorer(inputs, answers, lambda done: None)
            middle = time.perf_counter()
            theirs = padded_scores(network, inputs[:2000], answers[:2000], 64)
            ended = time.perf_counter()
        bench.say(
            "scoring",
            precision=precision,
            requests=len(inputs),
            seconds=round(middle - began, 4),
            padded_seconds=round((ended - middle) * len(inputs) / len(theirs), 4),
            largest_difference=max(abs(one[0] - other) for one, other in zip(ours, theirs)),
        )


STAGES = [
    Stage("ceilings", ceilings, 6, 15),
    Stage("daily-fp8", daily_fp8, 62, 100),
    Stage("nanochat-fp8", nanochat_fp8, 58, 100),
    Stage("attention", attention, 8, 40),
    Stage("daily-bf16", daily_bf16, 71, 100),
    Stage("nanochat-bf16", nanochat_bf16, 70, 100),
    Stage("four-layers", partial(four_layers, what="4 layers"), 12, 60),
    Stage("four-layers-cudnn", partial(four_layers, what="4 layers, cuDNN", flash=False), 12, 60),
    Stage(
        "compiler-tuned",
        partial(four_layers, what="4 layers, coordinate_descent_tuning", coordinate_descent_tuning=True),
        12,
        60,
    ),
    Stage(
        "compiler-pointwise",
        partial(four_layers, what="4 layers, max_autotune_pointwise", max_autotune_pointwise=True),
        12,
        60,
    ),
    Stage("program", program, 12, 60),
    Stage("scoring", scoring, 20, 60),
    Stage("bytes", partial(same_bytes, deterministic=False), 16, 60),
    Stage("bytes-deterministic", partial(same_bytes, deterministic=True), 16, 60),
]
