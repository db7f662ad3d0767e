"""What one thread and two threads train beside other programs, in tokens a second, in one run on a CPU.

    python -m benchmarks.training.threads [--seconds 10] [--rounds 3]

Two threads run as torch has them (without `model/machine/thread_waiting.py`) and as a run has them, each alone on the
machine, beside as many programs that compute without end as there are processors less one, and beside a second training
of the same kind. One thread is measured beside the same. Rounds take turns, and the table shows medians. The network is
that of `laptop`, on tokens made up. Nothing else should run meanwhile.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from contextlib import nullcontext
from pathlib import Path

from benchmarks.goals import print_goal
from benchmarks.training.train import write_data
from eval.reporting.markdown import markdown_table
from flows.run_config import compose
from model.machine.thread_waiting import Waiting
from model.training.run import TrainerConfig, TrainerExecution
from model.training.trainer import Trainer

KINDS = {"one thread": (1, True), "two threads, torch alone": (2, False), "two threads": (2, True)}
BESIDE = ("nothing", "busy programs", "a second training")
SETTLED = 5.0  # seconds before it is measured, in which threads learn how to wait


def train(shards: Path, threads: int, adapted: bool, start: float, seconds: float) -> None:
    """In a process of its own: train from now on, and print the tokens a second of the interval."""
    run = compose("laptop", {})
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            TrainerConfig(
                model=run.model,
                train=run.train,
                shards=str(shards),
                run_dir=folder,
                sample_prompts=[],
                execution=TrainerExecution(device="cpu", threads=threads),
            )
        )
        with Waiting(trainer.device) if adapted else nullcontext():
            steps, began = 0, None
            while began is None or time.time() < start + seconds:
                trainer.train_step()
                steps += 1
                if began is None and time.time() > start:
                    steps, began = 0, time.perf_counter()
            rate = steps * run.train.tokens_per_step / (time.perf_counter() - began)
    print(json.dumps(rate), flush=True)


def measured(shards: Path, kind: str, beside: str, seconds: float) -> float:
    """Tokens a second of one kind of training; beside a second one the mean of both."""
    threads, adapted = KINDS[kind]
    start = time.time() + 10 + SETTLED
    command = [
        sys.executable,
        "-m",
        "benchmarks.training.threads",
        "--train",
        str(shards),
        str(threads),
        str(int(adapted)),
        str(start),
        str(seconds),
    ]
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_"))}
    count = 2 if beside == "a second training" else 1
    trainings = [subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) for _ in range(count)]
    number = max(1, (os.cpu_count() or 2) - 1) if beside == "busy programs" else 0
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(number)]
    try:
        return statistics.fmean(json.loads(training.communicate()[0]) for training in trainings)
    finally:
        for process in busy:
            process.kill()
            process.wait()


def main() -> int:
    if sys.argv[1:2] == ["--train"]:
        shards, threads, adapted, start, seconds = sys.argv[2:]
        train(Path(shards), int(threads), adapted == "1", float(start), float(seconds))
        return 0
    parser = argparse.ArgumentParser(prog="python -m benchmarks.training.threads")
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    found: dict[tuple[str, str], list[float]] = defaultdict(list)
    with tempfile.TemporaryDirectory() as folder:
        write_data(Path(folder), compose("laptop", {}).tokenizer.entries)
        for _ in range(arguments.rounds):
            for beside in BESIDE:
                for kind in KINDS:
                    found[kind, beside].append(measured(Path(folder), kind, beside, arguments.seconds))
    median = {place: statistics.median(rates) for place, rates in found.items()}
    rows = [
        [
            kind,
            *(f"{median[kind, beside]:,.0f}" for beside in BESIDE),
            *(f"{median[kind, beside] / median['one thread', beside]:.2f}" for beside in BESIDE),
        ]
        for kind in KINDS
    ]
    print(markdown_table(["tokens/s beside", *BESIDE, *(f"÷ one thread, {beside}" for beside in BESIDE)], rows))
    for beside in BESIDE[1:]:
        print_goal(
            f"two threads beside {beside}, of what one thread gives",
            median["two threads", beside] / median["one thread", beside],
            0.85,
        )
    print_goal(
        "two threads beside nothing, of what torch alone gives",
        median["two threads", "nothing"] / median["two threads, torch alone", "nothing"],
        0.97,
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
