"""A run of a preset on GPUs, before it is run: python -m benchmarks.gpu.day [--preset daily] [--hardware H100] [--gpus
1]

Whether its memory fits, and whether the whole run, data included, ends before the next night's begins. The speed of
training is read from the results of a GPU (benchmarks/results/); of a GPU that has none it is derived from those of the
H200: kernels that are bound by memory take longer in the ratio of the bandwidths, all others the same. Another network
than that of `daily` is assumed to reach the same FLOP/s, and several GPUs nine tenths of their sum.
"""

import argparse
import sys
from dataclasses import dataclass, replace

from benchmarks.goals import print_goal
from benchmarks.gpu.page import RESULTS, newest, of_same_stage, read
from eval.reporting.markdown import markdown_table
from flows.run_config import Preset, compose
from model.machine.hardware import Hardware, hardware_named
from model.network import flops
from model.network.config import GPTConfig
from model.planning.plan import choose_micro_batch, memory_bytes
from model.training.config import TrainConfig
from model.training.steps import resolve_steps, sequences_per_step

HOURS, TOKENS = 22.5, 9e9
"""Goals of `daily` on an H100."""
BANDWIDTH = {"H200": 4.8e12, "H100": 3.35e12}
"""Bytes/s of NVIDIA's data sheets."""
BOUND_BY_MEMORY = ("fused elementwise", "copies", "other")
TEXT_BYTES = 48e9
"""Of FineWeb-Edu's sample-10BT."""
CORES = 16
RATES = {
    "download": 80e6,  # reading and writing documents, one process
    "contamination": 100e6 * CORES,
    "shard": 3e6 * CORES,
}
"""Bytes of text a second: docs/contamination.md and README.md, measured on 2 cores, times the cores."""
SECONDS: dict[str, float] = {"tokenizer": 300, "evaluate and report": 180, "start and compile": 240}
"""Chosen on the safe side: 170 s of compiling and 80 s of scoring were measured on an H200's machine."""
CHECKPOINT_SECONDS, CHECKPOINT_STALL = 36.0, 1.4
"""Writing the checkpoint of `daily`, and what training waits for it."""
SCALING = 0.9
"""Share of the sum of several GPUs that they reach together."""


@dataclass(frozen=True)
class Speed:
    """Of a training."""

    tokens_per_second: float
    validated_per_second: float
    source: str

    def on(self, model: GPTConfig, gpus: int) -> "Speed":
        """Of this network on so many GPUs."""
        daily = compose("daily", {}).model.with_vocabulary(32_768)
        daily_flops, own_flops = (flops.flops_per_token(network, network.sequence_length) for network in (daily, model))
        factor = daily_flops / own_flops * (1 if gpus == 1 else SCALING * gpus)
        return Speed(factor * self.tokens_per_second, factor * self.validated_per_second, self.source)


def measured_speed(hardware: Hardware, precision: str) -> Speed:
    """Of the network of `daily`. Raises LookupError without results of an H200."""
    findings = read(sorted(RESULTS.glob("*.jsonl")))
    own = [line for line in findings if hardware.name in line["device"]]
    for lines, slower in (
        (own, 1.0),
        ([line for line in findings if "H200" in line["device"]], BANDWIDTH["H200"] / BANDWIDTH[hardware.name]),
    ):
        steps = newest(
            lines,
            "step",
            "what",
            where=lambda line: line["what"] == "daily" and line["depth"] == 24 and line["precision"] == precision,
        )
        validations = newest(lines, "validation", where=lambda line: line["stage"] == "daily-bf16")
        if not steps or not validations:
            continue
        step = steps[-1]
        profiles = newest(lines, "profile", where=of_same_stage(step))
        kinds = profiles[-1]["kinds"]
        share = sum(kinds[kind] for kind in BOUND_BY_MEMORY) / sum(kinds.values())
        factor = 1 + share * (slower - 1)
        validated = validations[0]["tokens"] / validations[0]["seconds"]
        source = (
            f"measured on an {hardware.name}"
            if slower == 1
            else (f"derived from an H200: {share:.0%} of the time is bound by memory, {slower:.2f} × slower")
        )
        return Speed(step["tokens_per_second"] / factor, validated / factor, source)
    raise LookupError(f"no results of a daily run in {precision} in {RESULTS}")


def simulate(train: TrainConfig, steps: int, speed: Speed, checkpoint_minutes: float = 10) -> dict[str, float]:
    """Seconds of a training, step by step, with its validations and checkpoints; `lost` is the longest time since the
    begin of the newest checkpoint that was written, which is what the loss of the machine costs at most."""
    clock = begun = SECONDS["start and compile"]
    written, lost, checkpoints = clock, 0.0, 0
    validation = train.validation_tokens / speed.validated_per_second
    step_seconds = train.tokens_per_step / speed.tokens_per_second
    clock += validation
    pending: float | None = None
    for step in range(1, steps + 1):
        clock += step_seconds
        if step % train.validation_every_steps == 0 or step == steps:
            clock += validation
        if pending is not None and clock >= pending + CHECKPOINT_SECONDS:
            written, pending, checkpoints = pending, None, checkpoints + 1
        lost = max(lost, clock - written)
        due = step % train.checkpoint_every_steps == 0 or clock - begun >= 60 * checkpoint_minutes
        if due and pending is None and step < steps:
            begun = pending = clock
            clock += CHECKPOINT_STALL
    return {"seconds": clock + CHECKPOINT_SECONDS, "checkpoints": checkpoints, "lost": lost}


def day(training_seconds: float) -> dict[str, float]:
    """Hours of each stage."""
    hours = {name: TEXT_BYTES / rate / 3600 for name, rate in RATES.items()}
    return hours | {
        "tokenizer": SECONDS["tokenizer"] / 3600,
        "train": training_seconds / 3600,
        "evaluate and report": SECONDS["evaluate and report"] / 3600,
    }


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu.day", description=__doc__.splitlines()[0])
    parser.add_argument("--preset", choices=list(Preset), default="daily")
    parser.add_argument("--hardware", choices=list(BANDWIDTH), default="H100")
    parser.add_argument("--gpus", type=int, default=1)
    arguments = parser.parse_args(argv)
    run, hardware = compose(arguments.preset, {}), hardware_named(arguments.hardware)
    model = run.model.with_vocabulary(run.tokenizer.entries, run.model.eot_token)
    sequences = sequences_per_step(run.train, model)
    sequences //= arguments.gpus
    size = run.train.micro_batch_sequences or choose_micro_batch(model, run.train, sequences, hardware.memory_bytes)
    memory = memory_bytes(model, replace(run.train, micro_batch_sequences=size))
    speed = measured_speed(hardware, run.train.precision).on(model, arguments.gpus)
    steps = resolve_steps(run.train, model)
    training = simulate(run.train, steps, speed)
    stages = day(training["seconds"])
    hours = sum(stages.values())
    rows = [[name, round(value, 2)] for name, value in stages.items()]
    tokens = steps * run.train.tokens_per_step
    print(
        f"{arguments.preset} on {arguments.gpus} {hardware.name}: {speed.tokens_per_second:,.0f} tokens/s in "
        f"{run.train.precision} ({speed.source}), micro-batch {size}\n"
    )
    print(markdown_table(["stage", "hours"], [*rows, ["whole run", round(hours, 2)]]))
    print(
        f"\n{steps:,} steps, {tokens / 1e9:.2f} B tokens; {training['checkpoints']} checkpoints, at most "
        f"{training['lost'] / 60:.0f} minutes of work are lost with the machine\n"
    )
    print_goal("planned peak, GB", memory["total"] / 1e9, 0.9 * hardware.memory_bytes / 1e9, at_most=True)
    if arguments.preset == "daily":
        print_goal("whole run, hours", hours, HOURS, at_most=True)
        print_goal("tokens, billions", tokens / 1e9, TOKENS / 1e9)
    return 0


if __name__ == "__main__":
    sys.exit(main())
