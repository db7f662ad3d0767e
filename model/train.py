"""The training loop: `python -m model.train CONFIG.json`.

CONFIG.json is a model.run.RunConfig. The run writes into its run_dir:
  run.json              the resolved run, before step 0
  metrics.jsonl         events, also printed; the only file with times
  checkpoints/          the last two checkpoints
  samples.json          what the untrained and the trained model say
  final/                the finished model; when it is there, the run is done

Started again on the same run_dir, it continues after the last intact checkpoint and ends with the
same bytes as a run that was never stopped. SIGTERM saves and ends with exit code 143; an error that
has a reason is one line on stderr and exit code 1.
"""

import argparse
import json
import math
import os
import platform
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import torch

from model import checkpoint, cost
from model.checkpoint import CheckpointError, write_json
from model.config import ConfigError, Precision, TrainConfig
from model.generate import generate
from model.gpt import GPT, initialise
from model.loader import batch
from model.metrics import MetricsLog, read_lines
from model.mlp import rebalance
from model.optim import Optimizer
from model.run import Execution, RunConfig, check_same_run, literals, read_config, resolve
from model.schedule import learning_rate_multiplier, muon_momentum
from model.shards import ShardError, ShardSet, read_dataset
from model.validation import Validation, validate

TERMINATED = 128 + signal.SIGTERM  # the exit code of a process that SIGTERM ended


class TrainingError(RuntimeError):
    """Training cannot go on; the message names the step and the value."""


def prepare_device(execution: Execution) -> tuple[torch.device, str]:
    """The device to train on and its name."""
    if execution.threads is not None:
        torch.set_num_threads(execution.threads)
    cuda = torch.cuda.is_available()
    if execution.device == "cuda" and not cuda:
        raise ConfigError("device is 'cuda', but torch finds no CUDA device")
    if execution.device == "cpu" or not cuda:
        torch.use_deterministic_algorithms(True)
        torch.utils.deterministic.fill_uninitialized_memory = False  # a debugging aid that costs time
        return torch.device("cpu"), platform.processor() or platform.machine()
    torch.set_float32_matmul_precision("high")
    return torch.device("cuda"), torch.cuda.get_device_name()


class Trainer:
    """A run in progress: everything that a step reads or changes."""

    def __init__(self, config: RunConfig) -> None:
        dataset = read_dataset(Path(config.shards))
        self.config = replace(config, model=config.model.with_vocabulary(dataset.vocab_size))
        self.directory = Path(config.run_dir)
        self.dataset = dataset
        self.shards = {split: ShardSet(Path(config.shards), split) for split in ("train", "val")}
        self.run = resolve(self.config, dataset, self.shards["val"])
        check_same_run(self.directory / "run.json", self.run)
        self.directory.mkdir(parents=True, exist_ok=True)
        write_json(self.directory / "run.json", self.run)

        self.device, self.device_name = prepare_device(config.execution)
        self.peak_flops = config.execution.peak_flops or cost.peak_flops(self.device_name)
        self.autocast = torch.autocast(self.device.type, torch.bfloat16,
                                       enabled=config.train.precision is Precision.BF16)
        self.model = GPT(self.config.model)
        initialise(self.model, config.train.seed)
        self.model.to(self.device)
        self.forward = torch.compile(self.model) if config.execution.compile else self.model
        self.optimizer = Optimizer(self.model, config.train)
        self.step = self.saved_step = 0
        self.steps: int = self.run["steps"]
        self.validation: Validation | None = None
        self.seconds_before = 0.0
        self.started = time.perf_counter()

    def seconds(self) -> float:
        """Wall time of the run so far, over all its resumptions; lost steps do not count."""
        return round(self.seconds_before + time.perf_counter() - self.started, 3)

    def progress(self) -> dict:
        """The numbers that every event carries."""
        tokens = self.step * self.config.train.tokens_per_step
        return {"step": self.step, "tokens": tokens, "flops": tokens * self.run["flops_per_token"]}

    def sample(self, key: str) -> None:
        """Continue the prompts with the model as it is, into samples.json under `key`."""
        path, train = self.directory / "samples.json", self.config.train
        samples = [{"prompt": prompt} for prompt in self.config.sample_prompts]
        if self.step and path.exists():
            samples = json.loads(path.read_text())
        for number, sample in enumerate(samples):
            sample[key] = generate(self.model, sample["prompt"], train.sample_tokens,
                                   seed=train.seed + number)
        write_json(path, samples)

    def validate(self, metrics: MetricsLog) -> None:
        train = self.config.train
        self.validation = validate(
            self.model, self.shards["val"], self.dataset.token_bytes, tokens=train.validation_tokens,
            sequences=train.micro_batch_sequences, autocast=self.autocast)
        self.require_finite("validation loss", self.validation.loss)
        metrics.write("validation", **self.progress(), **asdict(self.validation))

    def require_finite(self, name: str, value: float) -> None:
        if not math.isfinite(value):
            raise TrainingError(f"{name} is {value} in step {self.step}; checkpoints from before it are in "
                                f"{self.directory / 'checkpoints'}")

    def train_step(self) -> dict:
        """One weight update, unless its loss is not finite; the values it is logged with."""
        train = self.config.train
        x_BT, y_BT = batch(self.shards["train"], train.seed, self.step, 0, 1,
                           self.run["sequences_per_step"], self.config.model.sequence_length)
        x_BT, y_BT = x_BT.to(self.device), y_BT.to(self.device)
        self.model.zero_grad(set_to_none=True)
        accumulation = self.run["gradient_accumulation"]
        total = torch.zeros((), device=self.device)
        for x, y in zip(x_BT.chunk(accumulation), y_BT.chunk(accumulation)):
            with self.autocast:
                loss = self.forward(x, y) / accumulation
            loss.backward()
            total += loss.detach()
        gradients = [parameter.grad for parameter in self.model.parameters()]
        grad_norm = torch.nn.utils.get_total_norm(gradients)
        values = {"loss": total.item(), "grad_norm": grad_norm.item()}
        self.step += 1
        for name, value in values.items():
            self.require_finite(name, value)
        if train.grad_clip is not None:
            torch.nn.utils.clip_grads_with_norm_(self.model.parameters(), train.grad_clip, grad_norm)
        multiplier = learning_rate_multiplier(train, self.step - 1, self.steps)
        self.optimizer.step(multiplier, muon_momentum(train, self.step - 1, self.steps))
        values["lr"] = train.learning_rate * multiplier
        if (largest_load := rebalance(self.model)) is not None:
            values["largest_expert_load"] = round(largest_load, 3)
        return values

    def save(self, metrics: MetricsLog) -> None:
        # the loss that shows a bad update comes one step later: never replace a good checkpoint by it
        for name, weight in self.model.named_parameters():
            self.require_finite(f"the largest weight of {name}", weight.detach().abs().max().item())
        state = {"seconds": self.seconds(), "validation": asdict(self.validation)}
        checkpoint.save(self.directory / "checkpoints", self.step, self.model.state_dict(),
                        self.optimizer.state_tensors(), state)
        self.saved_step = self.step
        metrics.write("checkpoint", **self.progress(), seconds=self.seconds())

    def resume(self) -> list[str]:
        """Continue from the newest intact checkpoint, if any; why newer ones were passed over."""
        found, refused = checkpoint.latest(self.directory / "checkpoints")
        if found is not None:
            self.model.load_state_dict(found.weights)
            self.optimizer.load_state_tensors(found.optimizer)
            self.step = self.saved_step = found.step
            self.seconds_before = found.state["seconds"]
            self.validation = Validation(**found.state["validation"])
        return refused

    def finish(self, metrics: MetricsLog) -> None:
        self.sample("trained")
        result = self.progress() | asdict(self.validation)
        checkpoint.publish_final(self.directory / "final", self.model, self.dataset.eot_token,
                                 self.dataset.tokenizer_sha256, result)
        metrics.write("done", **result, seconds=self.seconds())


def _loop(trainer: Trainer, metrics: MetricsLog, stop: Callable[[], bool]) -> bool:
    """Train to the end or until asked to stop; True when the end was reached."""
    train: TrainConfig = trainer.config.train
    window_steps, window_seconds = 0, 0.0  # since the last step line, without validation and saving
    while trainer.step < trainer.steps and not stop():
        began = time.perf_counter()
        values = trainer.train_step()
        window_steps, window_seconds = window_steps + 1, window_seconds + time.perf_counter() - began
        at_end = trainer.step == trainer.steps
        if trainer.step % train.log_every_steps == 0 or trainer.step == 1 or at_end:
            rate = window_steps * train.tokens_per_step / window_seconds
            flops_rate = rate * trainer.run["flops_per_token"]
            mfu = round(flops_rate / trainer.peak_flops, 4) if trainer.peak_flops else None
            metrics.write("step", **trainer.progress(), steps=trainer.steps, seconds=trainer.seconds(),
                          **values, tokens_per_second=round(rate), mfu=mfu)
            window_steps, window_seconds = 0, 0.0
        if trainer.step % train.validation_every_steps == 0 or at_end:
            trainer.validate(metrics)
        if trainer.step % train.checkpoint_every_steps == 0 and not at_end:
            trainer.save(metrics)
    if trainer.step < trainer.steps and trainer.step > trainer.saved_step:
        trainer.save(metrics)
    return trainer.step == trainer.steps


def _already_done(config: RunConfig) -> bool:
    """Report a finished run again; its shards need not be there any more."""
    directory = Path(config.run_dir)
    record = checkpoint.read_final(directory / "final")
    if record is None:
        return False
    check_same_run(directory / "run.json", literals(config, record["model"]["vocab_size"]))
    seconds = [line["seconds"] for line in read_lines(directory / "metrics.jsonl") if "seconds" in line]
    event = {"event": "done"} | record["result"] | {"seconds": max(seconds, default=None)}
    print(json.dumps(event), flush=True)
    return True


def train(config: RunConfig, stop: Callable[[], bool] = lambda: False) -> int:
    """Run or resume a training to its end; the exit code. `stop` is asked once a step."""
    if (world := int(os.environ.get("WORLD_SIZE", "1"))) > 1:
        raise ConfigError(f"WORLD_SIZE is {world}, but this version trains in one process")
    if _already_done(config):
        return 0
    trainer = Trainer(config)
    if not (trainer.directory / "samples.json").exists():
        trainer.sample("untrained")
    refused = trainer.resume()
    with MetricsLog(trainer.directory / "metrics.jsonl", resumed_step=trainer.step) as metrics:
        metrics.write("start", step=trainer.step, steps=trainer.steps, tokens=trainer.run["tokens"],
                      flops=trainer.run["flops"], parameters=trainer.run["parameters"]["total"],
                      device=trainer.device_name, threads=torch.get_num_threads(),
                      peak_flops=trainer.peak_flops)
        for reason in refused:
            metrics.write("damaged_checkpoint", step=trainer.step, reason=reason)
        if trainer.step:
            metrics.write("resume", step=trainer.step)
        else:
            trainer.validate(metrics)
        if not _loop(trainer, metrics, stop):
            metrics.write("interrupted", **trainer.progress(), seconds=trainer.seconds())
            return TERMINATED
        trainer.finish(metrics)
    return 0


def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m model.train", description="Train one model.")
    parser.add_argument("config", type=Path, help="JSON file of the run, see model.run.RunConfig")
    arguments = parser.parse_args(argv)
    signals: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, frame: signals.append(number))
    try:
        return train(read_config(arguments.config), stop=lambda: bool(signals))
    except (ConfigError, ShardError, CheckpointError, TrainingError) as error:
        message = str(error)
    except torch.OutOfMemoryError as error:
        message = f"the GPU's memory is full, lower micro_batch_sequences: {str(error).splitlines()[0]}"
    except OSError as error:
        message = f"{error.filename or 'writing the run'}: {error.strerror}"
    print(f"error: {message}", file=sys.stderr, flush=True)
    return 1


if __name__ == "__main__":
    sys.exit(main())
