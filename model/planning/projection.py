"""What trainings need of this machine, before there is any data: `python -m model.planning.projection CONFIG.json`.

CONFIG.json holds `trainings`, a list of objects with `model`, `train` and the number of `processes` that train
together, and `execution` (model.training.run.TrainerExecution). One line of JSON is printed:
  device                cuda or cpu, and of a GPU its `name` and `device_bytes`
  torch, cuda           versions of torch and of the CUDA that it was built for (null: without CUDA)
  trainings             of each: `hours`, null for dollars without a price; on a GPU `micro_batch_sequences` (the
                        configured one, else the largest that fits), the bytes by what they are for
                        (model.planning.plan), `usable_bytes`, and `fitting_micro_batch`, null where not even one
                        sequence fits; of one of several `processes`, which share what `parallelism` says
"""

import json
import sys
import time
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import torch

from model.errors import print_error
from model.machine.hardware import known_hardware
from model.machine.parallel import Parallelism
from model.network import flops
from model.network.config import GPTConfig
from model.parsing import parse
from model.planning.plan import choose_micro_batch, memory_bytes, usable_bytes
from model.training.config import Precision, TrainConfig
from model.training.precision import TYPES
from model.training.run import TrainerExecution
from model.training.steps import resolve_steps, sequences_per_step

MFU = 0.35  # of a known GPU: networks of 100 M weights and more reach it
PRODUCT_SHARE = 0.6  # of what a matrix product reaches on any other device: a step is not products alone
SEVERAL = 0.9  # of the sum of several GPUs
SECONDS = 0.2  # to measure that


def project(trainings: list[tuple[GPTConfig, TrainConfig, int]], execution: TrainerExecution) -> dict:
    """What is printed. Raises ConfigError for a training that cannot be."""
    if execution.threads is not None:
        torch.set_num_threads(execution.threads)
    cuda = execution.device != "cpu" and torch.cuda.is_available()
    result: dict[str, Any] = {
        "event": "projection",
        "device": "cuda" if cuda else "cpu",
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
    }
    if cuda:
        device_bytes = torch.cuda.get_device_properties(0).total_memory
        result |= {"name": torch.cuda.get_device_name(0), "device_bytes": device_bytes}
    result["trainings"] = [
        {"hours": hours(model, train, result, execution.usd_per_hour, processes)}
        | (memory(model, train, result["device_bytes"], processes, execution.parallelism) if cuda else {})
        for model, train, processes in trainings
    ]
    return result


def hours(
    model: GPTConfig, train: TrainConfig, machine: dict, usd_per_hour: float | None, processes: int = 1
) -> float | None:
    """Of a training on this machine: its budget in hours or dollars, else FLOPs over the rate of the device, or of one
    GPU for each process. On a CPU the processes share its threads."""
    sequences_per_step(train, model)
    if train.gpu_hours is not None:
        return train.gpu_hours / processes
    if train.usd is not None:
        return train.usd / usd_per_hour if usd_per_hour else None
    total = resolve_steps(train, model) * train.tokens_per_step * flops.flops_per_token(model, model.sequence_length)
    hardware = known_hardware(machine.get("name", ""))
    rate = MFU * hardware.peak_flops if hardware else PRODUCT_SHARE * product_flops(machine["device"], train.precision)
    if machine["device"] == "cuda" and processes > 1:
        rate *= SEVERAL * processes
    return total / rate / 3600


@cache
def product_flops(device: str, precision: Precision) -> float:
    """FLOP/s of a matrix product here and now."""
    size = 8192 if device == "cuda" else 1024
    a, b = (torch.ones(size, size, dtype=TYPES[precision], device=device) for _ in range(2))
    best, began = 0.0, time.perf_counter()
    while best == 0 or time.perf_counter() - began < SECONDS:
        started = time.perf_counter()
        (a @ b)[0, 0].item()  # waits for a GPU
        best = max(best, 2 * size**3 / (time.perf_counter() - started))
    return best


def memory(
    model: GPTConfig,
    train: TrainConfig,
    device_bytes: int,
    processes: int = 1,
    parallelism: Parallelism = Parallelism.DDP,
) -> dict:
    """The memory of a training on a GPU, and the micro-batch that fits into it."""
    share = sequences_per_step(train, model) // processes
    sharers = processes if parallelism is Parallelism.FSDP else 1
    fitting = choose_micro_batch(model, train, share, device_bytes, sharers)
    sequences = min(train.micro_batch_sequences or fitting or 1, share)
    return {
        "processes": processes,
        "parallelism": parallelism,
        "micro_batch_sequences": sequences,
        "fitting_micro_batch": fitting,
        "memory_bytes": memory_bytes(model, replace(train, micro_batch_sequences=sequences), sharers=sharers),
        "usable_bytes": usable_bytes(device_bytes),
    }


def main(argv: list[str]) -> int:
    """Command line; returns the exit code."""
    try:
        values = json.loads(Path(argv[0]).read_text())
        trainings = [
            (
                parse(GPTConfig, training["model"], "model"),
                parse(TrainConfig, training["train"], "train"),
                training["processes"],
            )
            for training in values["trainings"]
        ]
        print(json.dumps(project(trainings, parse(TrainerExecution, values["execution"], "execution"))))
    except Exception as error:
        return print_error(error)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
