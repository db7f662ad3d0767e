"""Whether this machine can train what a run asks for: its memory, and the hours. Asked before anything is downloaded.

A child process projects both (`model.planning.projection`). An answer without objection is kept in `plans/` of the
cache, by configuration, source of model/ and machine. Where there is no GPU, memory is not planned, and trainings that
are short on any CPU are not projected at all.
"""

import json
import math
import os
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path
from typing import Any

from eval.words import duration
from model.errors import DailyTrainError
from model.network.config import ConfigError, GPTConfig
from model.planning.host_memory import why_too_large
from model.training.config import TrainConfig
from tasks.runtime.child_process import run_module
from tasks.runtime.devices import training_processes
from tasks.runtime.logs import logger
from tasks.store import provenance
from tasks.store.context import RunContext
from tasks.store.manifest import StageError, sha256_json
from tasks.store.source_digest import NOT_TRAINING, model_source_digest
from tasks.store.stage import finished_manifests

Training = tuple[GPTConfig, TrainConfig]

ANY_CPU = 5e9
"""FLOP/s that a training keeps on any CPU."""
OLDEST_DRIVER = {11: 450, 12: 525, 13: 580}
"""For each major version of CUDA, the first driver that runs programs built for it (NVIDIA's release notes)."""
WHEELS = "https://pytorch.org/get-started/locally"


class FeasibilityError(DailyTrainError):
    """This machine cannot train what was asked for; the message says what that needs, what there is and what to set."""


def require_feasible(trainings: Sequence[Training], vocabulary: int, context: RunContext) -> None:
    """Raise FeasibilityError when a training needs more memory than the GPU has, or all together more than
    `context.max_hours`; not for trainings that the store holds already. Raises ConfigError when `context.processes`
    cannot train it."""
    if not context.usd_per_hour and any(train.budget_unit == "usd" for _, train in trainings):
        raise ConfigError("a budget in dollars needs the price of the machine: execution.usd_per_hour is 0")
    processes = tuple(training_processes(model, train, context) for model, train in trainings)
    driver = None if context.device == "cpu" else provenance.gpu_driver()
    resolved = tuple(
        (
            replace(model, vocab_size=model.vocab_size or vocabulary, eot_token=model.eot_token or 0),
            replace(train, seed=0),
        )
        for model, train in trainings
    )
    most_hours = sum(most_flops(model, train) for model, train in resolved) / ANY_CPU / 3600
    if driver is None and context.device != "cuda":
        if (
            reason := next(filter(None, (why_too_large(*training) for training in resolved)), None)
        ) and not are_trained(trainings, context):
            raise FeasibilityError(reason)
        if most_hours <= context.max_hours and all(
            train.flops is None for _, train in resolved
        ):  # a step may cost more
            return
    paths = [
        context.cache / "plans" / f"{_plan_key(training, count, driver, context)}.json"
        for training, count in zip(resolved, processes, strict=True)
    ]
    projections = [projection for path in paths if (projection := _kept_projection(path)) is not None]
    if len(projections) < len(paths) or why_infeasible(projections, driver, context):
        projections = _projected(
            resolved, processes, context.device, context.workers, context.usd_per_hour or None, context.parallelism
        )
        if reason := why_infeasible(projections, driver, context):
            if not are_trained(trainings, context):
                raise FeasibilityError(reason)
            logger().info("the store holds the trainings already; this machine could not run them: %s", reason)
            return
        for path, projection in zip(paths, projections, strict=True):
            path.parent.mkdir(parents=True, exist_ok=True)
            whole = path.with_suffix(f".{os.getpid()}")
            whole.write_text(json.dumps({"projection": projection, "sha256": sha256_json(projection)}, indent=1))
            os.replace(whole, path)
    _log_plan(projections, driver)


def require_space(run_dir: Path, checkpoint_bytes: int) -> None:
    """Raise FeasibilityError when the disk cannot hold the two checkpoints that a training keeps."""
    held = sum(path.stat().st_size for path in run_dir.rglob("*") if path.is_file())
    free = shutil.disk_usage(run_dir).free
    if free + held < 2 * checkpoint_bytes:
        raise FeasibilityError(
            f"{run_dir}: {_gigabytes(free)} GB are free, but a training keeps two checkpoints of "
            f"{_gigabytes(checkpoint_bytes)} GB there; free some space, or set execution.cache to another disk"
        )


def _kept_projection(path: Path) -> dict[str, Any] | None:
    """A projection that was kept, or None when there is none or the file is damaged: it is made again."""
    try:
        kept = json.loads(path.read_text())
        return kept["projection"] if kept["sha256"] == sha256_json(kept["projection"]) else None
    except (OSError, ValueError, TypeError, KeyError, RecursionError, StageError):
        return None


def most_flops(model: GPTConfig, train: TrainConfig) -> float:
    """At least the FLOPs of a training, without the network, which needs torch; infinite for hours and dollars."""
    if train.tokens is None:
        return train.flops or math.inf
    width = model.width
    hidden = max(model.mlp_ratio * width, (model.experts_per_token + model.shared_experts) * model.expert_size)
    attention = 5 * width + 3 * (model.latent_size or width) + 64 * model.heads
    weights = model.depth * width * (attention + 3 * hidden + model.experts) + width * (model.padded_vocab_size + 64)
    return train.tokens * (6 * weights + 12 * width * model.sequence_length * model.depth)


def why_infeasible(projections: list[dict[str, Any]], driver: str | None, context: RunContext) -> str | None:
    """Why these trainings cannot be, in one sentence; None: they can."""
    [*_, machine] = projections
    no_gpu = why_no_gpu(machine, driver) if driver is not None and machine["device"] == "cpu" else ""
    if context.device == "cuda" and machine["device"] == "cpu":
        return f"device is 'cuda', but {no_gpu or 'this machine has no NVIDIA GPU'}"
    for projection in projections:
        if projection["device"] == "cuda" and projection["memory_bytes"]["total"] > projection["usable_bytes"]:
            return _memory_sentence(projection)
    hours = sum(projection["hours"] or 0 for projection in projections)
    if hours <= context.max_hours:
        return None
    where = machine.get("name") or f"the CPU of this machine ({context.workers} threads)"
    subject = "training is" if len(projections) == 1 else f"{len(projections)} trainings are together"
    text = (
        f"the {subject} projected to take {_hours_text(hours)} hours on {where}, more than max_hours "
        f"{_hours_text(context.max_hours)}; raise max_hours, choose a smaller preset or budget, or "
    )
    return text + (f"train on the GPU: {no_gpu}" if no_gpu else "use a machine with a faster GPU")


def why_no_gpu(machine: dict[str, Any], driver: str) -> str:
    """That torch finds no GPU where there is one, and what to do about it."""
    built = f"built for CUDA {machine['cuda']}" if machine["cuda"] else "built without CUDA"
    text = f"torch {machine['torch']}, {built}, finds no GPU although this machine has one"
    if not machine["cuda"]:
        return f"{text}: install the wheel of torch for your CUDA from {WHEELS}"
    oldest = OLDEST_DRIVER.get(int(machine["cuda"].split(".")[0]), 0)
    if driver and int(driver.split(".")[0]) < oldest:
        return (
            f"{text}: its driver {driver} is too old for that wheel, which needs {oldest} or newer; update the "
            f"driver, or install a wheel of torch for an older CUDA from {WHEELS}"
        )
    return (
        f"{text} with driver {driver or 'of unknown version'}: check that nvidia-smi lists it and that "
        f"CUDA_VISIBLE_DEVICES does not hide it"
    )


def _memory_sentence(projection: dict[str, Any]) -> str:
    parts = {name: size for name, size in projection["memory_bytes"].items() if name != "total"}
    largest = sorted(parts, key=parts.__getitem__, reverse=True)[:4]
    largest_parts = ", ".join(f"{name} {_gigabytes(parts[name])}" for name in largest)
    fitting = projection["fitting_micro_batch"]
    advice = "not even one sequence fits: set a smaller model.depth, model.width or model.sequence_length"
    if fitting:
        advice = f"set train.micro_batch_sequences to {fitting}"
    elif projection["processes"] > 1 and projection["parallelism"] == "ddp":
        advice = "not even one sequence fits: set execution.parallelism to fsdp, or a smaller network"
    each = " in each process" if projection["processes"] > 1 else ""
    return (
        f"the training needs {_gigabytes(projection['memory_bytes']['total'])} GB of memory{each} with a "
        f"micro-batch of {projection['micro_batch_sequences']} sequences ({largest_parts}), but "
        f"{projection['name']} has {_gigabytes(projection['device_bytes'])} GB, of which "
        f"{_gigabytes(projection['usable_bytes'])} can be "
        f"used; {advice}"
    )


def _gigabytes(size: float) -> str:
    return f"{size / 1e9:.1f}"


def _hours_text(hours: float) -> str:
    return f"{hours:,.0f}" if hours >= 10 else f"{hours:.2g}"


def _plan_key(training: Training, processes: int, driver: str | None, context: RunContext) -> str:
    model, train = training
    machine = [
        context.device,
        context.workers,
        processes,
        context.parallelism,
        context.usd_per_hour,
        driver,
        *provenance.hardware()["gpus"],
    ]
    return sha256_json(
        {
            "model": asdict(model),
            "train": asdict(train),
            "torch": provenance.packages()["torch"],
            "model_source": model_source_digest(*NOT_TRAINING),
            "machine": machine,
        }
    )


@cache
def _projected(
    trainings: tuple[Training, ...],
    processes: tuple[int, ...],
    device: str | None,
    workers: int,
    usd_per_hour: float | None,
    parallelism: str,
) -> list[dict[str, Any]]:
    """What the child process finds for each training, with what it finds of the machine."""
    config = {
        "trainings": [
            {"model": asdict(model), "train": asdict(train), "processes": count}
            for (model, train), count in zip(trainings, processes, strict=True)
        ],
        "execution": {
            "device": None if device == "cuda" else device,  # where there is none, this says why
            "threads": workers,
            "parallelism": parallelism,
            "usd_per_hour": usd_per_hour,
        },
    }
    events: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="plan-") as folder:
        run_module("model.planning.projection", config, Path(folder), events.append)
    [machine] = [event for event in events if event["event"] == "projection"]
    return [
        {name: value for name, value in machine.items() if name != "trainings"} | training
        for training in machine["trainings"]
    ]


def are_trained(trainings: Sequence[Training], context: RunContext) -> bool:
    """Whether the store holds all of them, trained by this source of model/ on whatever data."""
    source = model_source_digest()
    done = [
        [manifest.config.get("model"), manifest.config.get("train")]
        for manifest in finished_manifests("train", context)
        if manifest.inputs.get("model_source") == source
    ]
    return all([asdict(model), asdict(train)] in done for model, train in trainings)


def _log_plan(projections: list[dict[str, Any]], driver: str | None) -> None:
    for projection in projections:
        if projection["device"] == "cuda":
            logger().info(
                "planned: %s of %s GB that can be used of %s, with a micro-batch of %d sequences",
                _gigabytes(projection["memory_bytes"]["total"]),
                _gigabytes(projection["usable_bytes"]),
                projection["name"],
                projection["micro_batch_sequences"],
            )
    if driver is not None and projections[-1]["device"] == "cpu":
        logger().warning("the run takes the CPU: %s", why_no_gpu(projections[-1], driver))
    seconds = 3600 * sum(projection["hours"] or 0 for projection in projections)
    logger().info("planned: about %s of training", duration(seconds))
