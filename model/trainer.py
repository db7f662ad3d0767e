"""One run in progress: network, data, optimizer, and what a step, a validation and a checkpoint do."""

import json
import math
import platform
import time
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import torch

from model import checkpoint, cost
from model.checkpoint import write_json
from model.config import ConfigError, Precision
from model.generate import generate
from model.gpt import GPT, initialise
from model.guard import LossGuard
from model.hardware import known_hardware
from model.loader import batch
from model.metrics import MetricsLog
from model.mlp import mixtures, rebalance
from model.optim import Optimizer
from model.parallel import Processes, connect, shared_steps
from model.prefetch import Prefetch
from model.run import Execution, RunConfig, check_same_run, recorded_run, resolve
from model.schedule import learning_rate_multiplier, muon_momentum
from model.shards import ShardSet, read_dataset
from model.validation import Validation, validate

UNTIMED_STEPS, TIMED_STEPS, TIMED_SECONDS = 2, 10, 20.0


class TrainingError(RuntimeError):
    """Training cannot go on; the message names the step and the value."""


def prepare_device(execution: Execution) -> tuple[torch.device, str, Processes]:
    """The device of this process, its name, and the processes it trains with."""
    if execution.threads is not None:
        torch.set_num_threads(execution.threads)
    cuda = torch.cuda.is_available() and execution.device != "cpu"
    if execution.device == "cuda" and not cuda:
        raise ConfigError("device is 'cuda', but torch finds no CUDA device")
    processes = connect(cuda)
    if not cuda:
        torch.use_deterministic_algorithms(True)
        torch.utils.deterministic.fill_uninitialized_memory = False  # a debugging aid that costs time
        return torch.device("cpu"), platform.processor() or platform.machine(), processes
    torch.set_float32_matmul_precision("high")
    torch.cuda.set_device(processes.local_rank)
    return torch.device("cuda"), torch.cuda.get_device_name(), processes


class Trainer:
    """A run in progress: everything that a step reads or changes."""

    def __init__(self, config: RunConfig) -> None:
        dataset = read_dataset(Path(config.shards))
        self.config = replace(config, model=config.model.with_vocabulary(dataset.vocab_size))
        self.directory = Path(config.run_dir)
        self.dataset = dataset
        self.shards = {split: ShardSet(Path(config.shards), split) for split in ("train", "val")}
        sequences = cost.sequences_per_step(config.train, self.config.model)

        self.device, self.device_name, self.processes = prepare_device(config.execution)
        hardware = known_hardware(self.device_name)
        self.peak_flops = config.execution.peak_flops or (hardware and hardware.peak_flops)
        self.usd_per_hour = config.execution.usd_per_hour
        if self.usd_per_hour is None and hardware:
            self.usd_per_hour = hardware.usd_per_hour * self.processes.count
        self.micro_batches = shared_steps(sequences, config.train.micro_batch_sequences, self.processes.count)
        self.autocast = torch.autocast(self.device.type, torch.bfloat16,
                                       enabled=config.train.precision is Precision.BF16)
        self.batches = Prefetch(
            partial(batch, self.shards["train"], config.train.seed, rank=self.processes.rank,
                    world=self.processes.count, sequences=sequences, sequence_length=config.model.sequence_length),
            self.device)
        self.model = GPT(self.config.model).to(self.device)
        self.start_over()
        self.forward = self.processes.parallel(
            torch.compile(self.model) if config.execution.compile else self.model)
        self.steps = UNTIMED_STEPS + TIMED_STEPS  # until the budget is resolved
        self.run = self.resolve()
        self.steps = self.run["steps"]
        if self.processes.first:
            self.directory.mkdir(parents=True, exist_ok=True)
            write_json(self.directory / "run.json", self.run)
        self.saved_step = 0
        self.validation: Validation | None = None
        self.seconds_before = 0.0
        self.started = time.perf_counter()

    def start_over(self) -> None:
        """Set weights, optimizer and counters to the beginning of the run."""
        initialise(self.model, self.config.train.seed)
        self.optimizer = Optimizer(self.model, self.config.train)
        self.guard = LossGuard()
        self.step = 0

    def resolve(self) -> dict:
        """run.json: as recorded by an earlier start, else with the budget turned into steps, by a timing if
        it is in hours or dollars. Refuses a price over usd_limit."""
        path, limit = self.directory / "run.json", self.config.execution.usd_limit
        recorded = recorded_run(path)
        timed = self.config.train.budget_unit in ("gpu_hours", "usd")
        seconds = None
        if recorded:
            steps = recorded.get("steps") if timed else None
        else:
            steps = None
            seconds = self.seconds_per_step() if timed or limit is not None else None
        run = resolve(self.config, self.dataset, self.shards["val"], steps=steps, processes=self.processes.count,
                      seconds_per_step=seconds, usd_per_hour=self.usd_per_hour)
        check_same_run(path, run)
        if seconds is not None and limit is not None:
            projected = cost.dollars(seconds * run["steps"], self.usd_per_hour)
            if projected > limit:
                raise ConfigError(f"the run is projected to cost {projected:.2g} usd, over usd_limit {limit:.2g}: "
                                  f"{run['steps']} steps of {seconds:.3g} s at {self.usd_per_hour:.3g} usd an hour")
        return recorded or run

    def seconds_per_step(self) -> float:
        """Wall time of a weight update here, the slowest process's, with its share of validation."""
        for _ in range(UNTIMED_STEPS):
            self.train_step()
        began, timed = time.perf_counter(), 0
        while timed < TIMED_STEPS and not self.processes.any(time.perf_counter() - began > TIMED_SECONDS, self.device):
            self.train_step()
            timed += 1
        seconds = self.processes.sum_(torch.tensor((time.perf_counter() - began) / timed, device=self.device))
        self.start_over()
        train = self.config.train
        # a validated token costs a third of a trained one
        validation = train.validation_tokens / (3 * train.tokens_per_step * train.validation_every_steps)
        return seconds.item() / self.processes.count * (1 + validation)

    def seconds(self) -> float:
        """Wall time of the run so far, over all its resumptions; lost steps do not count."""
        return round(self.seconds_before + time.perf_counter() - self.started, 3)

    def progress(self) -> dict:
        """The numbers that every event carries."""
        tokens = self.step * self.config.train.tokens_per_step
        return {"step": self.step, "tokens": tokens, "flops": tokens * self.run["flops_per_token"]}

    def sample(self, key: str) -> None:
        """Continue the prompts with the model as it is, into samples.json under `key`."""
        if not self.processes.first:
            return
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
            sequences=train.micro_batch_sequences, autocast=self.autocast, processes=self.processes)
        self.require_finite("validation loss", self.validation.loss)
        metrics.write("validation", **self.progress(), **asdict(self.validation))

    def stop(self, reason: str) -> None:
        raise TrainingError(f"{reason}; checkpoints from before it are in {self.directory / 'checkpoints'}")

    def require_finite(self, name: str, value: float) -> None:
        if not math.isfinite(value):
            self.stop(f"{name} is {value} in step {self.step}")

    def check(self, loss: float, grad_norm: float) -> None:
        """Stop a run that computes nonsense."""
        train = self.config.train
        self.require_finite("loss", loss)
        self.require_finite("grad_norm", grad_norm)
        if grad_norm == 0:
            self.stop(f"grad_norm is 0 in step {self.step}: nothing is learned any more")
        if train.spike_deviations is None:
            return
        self.guard.observe(loss, train.spike_deviations)
        if self.guard.spikes >= train.spike_steps:
            self.stop(f"loss is {loss:.4f} in step {self.step}, over {self.guard.limit(train.spike_deviations):.4f} "
                      f"(its running mean {self.guard.mean:.4f} and {train.spike_deviations} deviations) for "
                      f"{self.guard.spikes} steps")

    def gradients(self) -> float:
        """Mean gradients of this step's batch, over all processes, in .grad; its mean loss."""
        processes = self.processes
        x_BT, y_BT = self.batches.take(self.step)
        self.model.zero_grad(set_to_none=True)
        total = torch.zeros((), device=self.device)
        parts = list(zip(x_BT.chunk(self.micro_batches), y_BT.chunk(self.micro_batches)))
        for number, (x, y) in enumerate(parts, start=1):
            if processes.count > 1:  # gradients travel once, with the last part
                self.forward.require_backward_grad_sync = number == len(parts)
            with self.autocast:
                loss = self.forward(x, y) / len(parts)
            loss.backward()
            total += loss.detach()
        return processes.sum_(total).item() / processes.count

    def train_step(self) -> dict:
        """One weight update, unless its loss is not finite; the values it is logged with."""
        train = self.config.train
        loss = self.gradients()
        gradients = [parameter.grad for parameter in self.model.parameters()]
        grad_norm = torch.nn.utils.get_total_norm(gradients)
        values = {"loss": loss, "grad_norm": grad_norm.item()}
        self.step += 1
        self.check(**values)
        if train.grad_clip is not None:
            torch.nn.utils.clip_grads_with_norm_(self.model.parameters(), train.grad_clip, grad_norm)
        multiplier = learning_rate_multiplier(train, self.step - 1, self.steps)
        self.optimizer.step(multiplier, muon_momentum(train, self.step - 1, self.steps))
        values["lr"] = train.learning_rate * multiplier
        for mixture in mixtures(self.model):
            self.processes.sum_(mixture.load)
        if (largest_load := rebalance(self.model)) is not None:
            values["largest_expert_load"] = round(largest_load, 3)
        return values

    def save(self, metrics: MetricsLog) -> None:
        # the loss that shows a bad update comes one step later: never replace a good checkpoint by it
        for name, weight in self.model.named_parameters():
            self.require_finite(f"the largest weight of {name}", weight.detach().abs().max().item())
        state = {"seconds": self.seconds(), "validation": asdict(self.validation), "guard": asdict(self.guard)}
        if self.processes.first:
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
            self.guard = LossGuard(**found.state["guard"])
        return refused

    def finish(self, metrics: MetricsLog) -> None:
        self.sample("trained")
        result = self.progress() | asdict(self.validation)
        if self.processes.first:
            checkpoint.publish_final(self.directory / "final", self.model, self.dataset.eot_token,
                                     self.dataset.tokenizer_sha256, result)
        metrics.write("done", **result, seconds=self.seconds())
        self.processes.wait()  # torchrun ends everyone when one process has ended
