"""One run in progress: network, data, optimizer, and what a step, a validation and a checkpoint do."""

import json
import math
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import cast

import torch
from torch.distributed.fsdp import FSDPModule
from torch.nn.parallel import DistributedDataParallel

from model.data.loader import batch, pack_documents
from model.data.packing import Packing
from model.data.prefetch import Prefetch
from model.data.shards import ShardSet, read_dataset
from model.files import write_json
from model.kernels.attention_kernels import use_attention_kernels
from model.machine.compile_cache import CompiledCode
from model.machine.hardware import known_hardware
from model.machine.parallel import Parallelism, full_tensor, load_weights, micro_batches_in_step
from model.network.config import ConfigError, MLPKind
from model.network.experts import mixtures, rebalance
from model.network.fp8 import use_fp8
from model.network.generate import generate
from model.network.gpt import GPT, initialise
from model.optimizers.muon import gradients_of
from model.optimizers.optimizer import Optimizer
from model.optimizers.schedule import learning_rate_multiplier, muon_momentum
from model.planning.plan import choose_micro_batch
from model.training import checkpoint
from model.training.config import Precision, Rows
from model.training.device import free_bytes, prepare_device
from model.training.loss_guard import LossGuard, TrainingError, reason_to_stop
from model.training.loss_scale import LossScale
from model.training.metrics import EventLog, Events
from model.training.multiple_choice import accuracy, read_items
from model.training.out_of_memory import all_or_nothing, within_memory
from model.training.precision import TYPES, autocast
from model.training.run import TrainerConfig, check_same_run, continued, recorded_run, resolve
from model.training.steps import dollars, sequences_per_step
from model.training.timing import TIMED_STEPS, UNTIMED_STEPS, Timing, measure
from model.training.validation import Validation, validate


class Trainer:
    """A run in progress: everything that a step reads or changes."""

    def __init__(self, config: TrainerConfig) -> None:
        self._read_data(config)
        self.directory = Path(config.run_dir)
        self.recorded = recorded_run(self.directory / "run.json")
        executed = self.recorded.get("execution", [{}])[-1]  # absent in records of earlier versions
        self.hellaswag = read_items(config.execution.hellaswag, self.config.model) if config.execution.hellaswag else []
        self._prepare_device(executed)
        self._choose_micro_batch(executed)
        self.autocast = autocast(self.device.type, config.train.precision)
        self.batches = Prefetch(
            partial(
                batch,
                self.shards["train"],
                config.train.seed,
                rank=self.processes.rank,
                world=self.processes.count,
                sequences=self.sequences,
                sequence_length=config.model.sequence_length,
                packing=self.packing,
            ),
            self.device,
        )
        self._build_network()
        # a run that has begun reads its weights from a checkpoint, see resume()
        self.start_over(drawn=not (self.recorded and (self.directory / "samples.json").exists()))
        self.steps = UNTIMED_STEPS + TIMED_STEPS  # until the budget is resolved
        self.run: dict = {}
        self.timing: Timing | None = None
        """Measured when a new run needs it."""
        self.run = self.resolve()
        self.steps = self.run["steps"]
        if not self.recorded:
            self.record_execution()
            if self.processes.first:
                self.write_run()
        self.saved_step, self.saved_at = 0, time.monotonic()
        self.writer = checkpoint.Writer(self.directory / "checkpoints")
        self.validation: Validation | None = None
        self.seconds_before = 0.0
        self.started = time.perf_counter()

    def _read_data(self, config: TrainerConfig) -> None:
        """The shards, and the configuration with their vocabulary."""
        self.dataset = read_dataset(Path(config.shards), config.model.vocab_size, config.model.eot_token)
        model = config.model.with_vocabulary(self.dataset.vocab_size, self.dataset.eot_token)
        self.config = replace(config, model=model)
        self.shards = {split: ShardSet(Path(config.shards), split, self.dataset) for split in ("train", "val")}
        if self.dataset.token_bytes is not None:
            self.shards["val"].check_bytes(self.dataset.token_bytes)
        self.packing: Packing | None = None
        if config.train.rows is Rows.DOCUMENTS:
            self.packing = pack_documents(self.shards["train"], model.sequence_length)
        self.sequences = sequences_per_step(config.train, model)

    def _prepare_device(self, executed: dict) -> None:
        """The device, the processes that train together, whether code is compiled, and what the machine costs.

        `executed`: the settings with which the run was executed so far.
        """
        execution, precision = self.config.execution, self.config.train.precision
        self.events = Events()
        self.device, self.device_name, self.processes, differences = prepare_device(execution, executed)
        for sentence in differences:
            self.events.write("execution", message=sentence)
        # torch can trace the products of a mixture of experts in bf16 only
        traceable = TYPES[precision] is torch.bfloat16 or self.config.model.mlp is not MLPKind.MOE
        compiled = execution.compile
        self.compiled = self.device.type == "cuda" and traceable if compiled is None else compiled
        self.compiled_code: CompiledCode | None = None
        if self.compiled and execution.compile_cache:
            try:
                self.compiled_code = CompiledCode(Path(execution.compile_cache), precision)
            except OSError as error:
                message = f"compiled code is not kept in {execution.compile_cache}: {error.strerror}"
                self.events.write("execution", message=message)
        hardware = known_hardware(self.device_name)
        self.peak_flops = execution.peak_flops or (hardware and hardware.peak_flops)
        self.usd_per_hour = execution.usd_per_hour
        if self.usd_per_hour is None and hardware:
            self.usd_per_hour = hardware.usd_per_hour * self.processes.count

    def _choose_micro_batch(self, executed: dict) -> None:
        """The recorded micro-batch, else the configured one, else the largest that fits the memory."""
        most = executed.get("micro_batch_sequences") or self.config.train.micro_batch_sequences
        if most is None:
            share = max(1, self.sequences // self.processes.count)
            sharers = self.processes.count if self.config.execution.parallelism is Parallelism.FSDP else 1
            memory = free_bytes(self.device)
            most = choose_micro_batch(self.config.model, self.config.train, share, memory, sharers) or 1
        self.set_micro_batch(self.processes.smallest(most, self.device))

    def _build_network(self) -> None:
        """The network, and what to call for a forward pass in training and in validation."""
        train = self.config.train
        self.model = GPT(self.config.model).to(self.device)
        if train.precision is Precision.FP8:
            use_fp8(self.model, train.fp8_smallest_size)
        self.kernels = use_attention_kernels(self.model, self.device, TYPES[train.precision], self.compiled)
        parallelism = self.config.execution.parallelism
        self.forward = self.processes.parallel(self.model, parallelism, compiled=self.compiled)
        # eagerly a validation takes three times as long; sharded weights are gathered by the hooks of the model itself
        self.sharded = isinstance(self.model, FSDPModule)
        self.validated = self.model
        if self.compiled and not self.sharded:  # torch types what it makes of a module as a function
            self.validated = cast(GPT, torch.compile(self.model, dynamic=False))

    def set_micro_batch(self, most: int) -> None:
        """Cut this process's share of a step into the fewest equal micro-batches of at most `most` sequences."""
        self.micro_batches = micro_batches_in_step(self.sequences, most, self.processes.count)
        self.micro_batch_sequences = self.sequences // self.processes.count // self.micro_batches

    def record_execution(self) -> None:
        """Put the settings from this step on into the run's record."""
        settings = {
            "device": self.device.type,
            "threads": torch.get_num_threads(),
            "processes": self.processes.count,
            "deterministic": torch.are_deterministic_algorithms_enabled(),
            "window_kernel": self.kernels.windows,
            "micro_batch_sequences": self.micro_batch_sequences,
        }
        self.run = self.run | {"execution": continued(self.run.get("execution", []), self.step, settings)}

    def write_run(self) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        write_json(self.directory / "run.json", self.run)

    def start_over(self, drawn: bool = True) -> None:
        """Set weights, optimizer and counters to the beginning of the run; without `drawn` leave the weights."""
        seed = self.config.train.seed
        if drawn and self.sharded:
            fresh = GPT(self.config.model)
            initialise(fresh, seed)
            load_weights(self.model, fresh.state_dict())
        elif drawn:
            initialise(self.model, seed)
        self.drawn = drawn
        self.optimizer = Optimizer(self.model, self.config.train)
        if self.compiled:
            self.optimizer.compile()
        self.guard = LossGuard()
        self.loss_scale = LossScale() if self.config.train.precision is Precision.FP16 else None
        self.step = 0

    def resolve(self) -> dict:
        """run.json: as recorded by an earlier start, else with the budget turned into steps, by a timing if
        it is in hours or dollars. Refuses a price over usd_limit."""
        path, limit, recorded = self.directory / "run.json", self.config.execution.usd_limit, self.recorded
        timed = self.config.train.budget_unit in ("gpu_hours", "usd")
        steps = recorded.get("steps") if timed and recorded else None
        if not recorded and (timed or limit is not None):
            self.timing = measure(self)
        run = resolve(
            self.config,
            self.dataset,
            self.shards["val"],
            steps=steps,
            processes=self.processes.count,
            seconds_per_step=self.timing.step if self.timing else None,
            fixed_seconds=self.timing.fixed if self.timing else 0.0,
            usd_per_hour=self.usd_per_hour,
        )
        check_same_run(path, run)
        if self.timing and limit is not None:
            projected = dollars(self.timing.seconds(run["steps"]), self.usd_per_hour)
            if projected > limit:
                raise ConfigError(
                    f"the run is projected to cost {projected:.2g} usd, over usd_limit {limit:.2g}: "
                    f"{run['steps']} steps of {self.timing.step:.3g} s at {self.usd_per_hour:.3g} usd "
                    f"an hour"
                )
        return recorded or run

    def seconds(self) -> float:
        """Wall time of the run so far, over all its resumptions; lost steps do not count."""
        return round(self.seconds_before + time.perf_counter() - self.started, 3)

    def progress(self, step: int | None = None) -> dict:
        """The numbers that every event carries."""
        step = self.step if step is None else step
        tokens = step * self.config.train.tokens_per_step
        return {"step": step, "tokens": tokens, "flops": tokens * self.run["flops_per_token"]}

    def sample(self, key: str) -> None:
        """Continue the prompts with the model as it is, into samples.json under `key`."""
        continuations = within_memory(self, self.continuations)
        if not self.processes.first:
            return
        path = self.directory / "samples.json"
        samples = [{"prompt": prompt} for prompt in self.config.sample_prompts]
        if self.step and path.exists():
            samples = json.loads(path.read_text())
        write_json(path, [sample | {key: tokens} for sample, tokens in zip(samples, continuations)])

    def sample_now(self, metrics: EventLog) -> None:
        """Continue the prompts with the model as it is, into the metrics."""
        metrics.write("samples", **self.progress(), tokens_of_prompts=within_memory(self, self.continuations))

    def continuations(self) -> list[list[int]]:
        """What the model as it is says after each prompt; nothing on all processes but the first."""
        model, train = self.whole_model(), self.config.train
        prompts = self.config.sample_prompts if self.processes.first else []
        return [
            generate(model, prompt, train.sample_tokens, seed=train.seed + number)
            for number, prompt in enumerate(prompts)
        ]

    def validate(self, metrics: EventLog) -> None:
        self.validation = within_memory(
            self,
            lambda: validate(
                self.validated,
                self.shards["val"],
                self.dataset.token_bytes,
                tokens=self.config.train.validation_tokens,
                sequences=self.micro_batch_sequences,
                autocast=self.autocast,
                processes=self.processes,
            ),
        )
        self.require_finite("validation loss", self.validation.loss)
        values = asdict(self.validation)
        if self.hellaswag:
            values["hellaswag_acc_norm"] = within_memory(
                self,
                lambda: accuracy(
                    self.model,
                    self.hellaswag,
                    rows=self.micro_batch_sequences,
                    autocast=self.autocast,
                    processes=self.processes,
                ),
            )
        metrics.write("validation", **self.progress(), **values)

    def stop(self, reason: str) -> None:
        raise TrainingError(f"{reason}; checkpoints from before it are in {self.directory / 'checkpoints'}")

    def require_finite(self, name: str, value: float) -> None:
        if not math.isfinite(value):
            self.stop(f"{name} is {value} in step {self.step}")

    def gradients(self) -> tuple[float, list[torch.Tensor], torch.Tensor]:
        """Mean loss of this step's batch over all processes, its gradients times the loss scale, and their norm."""
        processes = self.processes
        x_BT, y_BT = self.batches.take(self.step)
        self.model.zero_grad(set_to_none=True)
        total = torch.zeros((), device=self.device)
        parts = list(zip(x_BT.chunk(self.micro_batches), y_BT.chunk(self.micro_batches)))
        for number, (x, y) in enumerate(parts, start=1):
            if isinstance(self.forward, DistributedDataParallel):  # gradients travel once, with the last part
                self.forward.require_backward_grad_sync = number == len(parts)
            with self.autocast:
                loss = self.forward(x, y) / len(parts)
            (loss * self.loss_scale.scale if self.loss_scale else loss).backward()
            total += loss.detach()
        gradients = gradients_of(self.model.parameters())
        norm = full_tensor(torch.nn.utils.get_total_norm(gradients))  # queued before the GPU is waited for
        return processes.sum_(total).item() / processes.count, gradients, norm

    def unscale(self, gradients: list[torch.Tensor], grad_norm: torch.Tensor) -> bool:
        """Take the loss scale out of gradients and norm and move it; True when the gradients overflowed.

        Processes have averaged their gradients: all of them see the same overflow.
        """
        if self.loss_scale is None:
            return False
        factor, overflow = 1 / self.loss_scale.scale, not math.isfinite(grad_norm.item())
        self.loss_scale.observe(overflow)
        if not overflow:
            grad_norm *= factor
            torch._foreach_mul_(gradients, factor)
        return overflow

    def train_step(self) -> dict:
        """One weight update, unless fp16 gradients overflow; the values it is logged with."""
        train = self.config.train
        loss, gradients, grad_norm = within_memory(self, self.gradients)
        overflow = self.unscale(gradients, grad_norm)
        finite_norm = None if overflow else grad_norm.item()
        values: dict[str, float | None] = {"loss": loss, "grad_norm": finite_norm}
        self.step += 1
        if reason := reason_to_stop(self.step, loss, finite_norm, self.guard, self.loss_scale, train):
            self.stop(reason)
        multiplier = learning_rate_multiplier(train, self.step - 1, self.steps)
        if not overflow:
            all_or_nothing(self, lambda: self.update(multiplier, grad_norm))
        if self.loss_scale:
            values |= {"loss_scale": self.loss_scale.scale, "skipped_steps": self.loss_scale.skipped_steps}
        values["lr"] = train.learning_rate * multiplier
        for mixture in mixtures(self.model):
            self.processes.sum_(mixture.load)
        if (largest_load := rebalance(self.model)) is not None:
            values["largest_expert_load"] = round(largest_load, 3)
        return values

    def update(self, multiplier: float, grad_norm: torch.Tensor) -> None:
        """Change the weights by their gradients."""
        if self.config.train.grad_clip is not None:
            torch.nn.utils.clip_grads_with_norm_(self.model.parameters(), self.config.train.grad_clip, grad_norm)
        self.optimizer.step(multiplier, muon_momentum(self.config.train, self.step - 1, self.steps))

    def checkpoint_bytes(self) -> int:
        """Size of a checkpoint, about: the tensors without the headers of their files."""
        weights = sum(tensor.numel() * tensor.element_size() for tensor in self.model.state_dict().values())
        return weights + self.optimizer.state_bytes()

    def checkpoint_is_due(self) -> bool:
        """Whether a checkpoint follows the next step: by the number of steps, or by the time since the last was begun.

        The first process decides for all. One by time never waits for the writer, nor does one by step wait for it:
        while a checkpoint that was begun between two by step is being written, none is due.
        """
        if not self.processes.first:
            return False
        every_steps = self.config.train.checkpoint_every_steps
        by_step = (self.step + 1) % every_steps == 0
        if self.writer.busy:
            return by_step and self.saved_step % every_steps == 0
        return by_step or time.monotonic() - self.saved_at >= 60 * self.config.execution.checkpoint_every_minutes

    def save(self) -> None:
        """Begin to write a checkpoint; report_checkpoints tells when it is there."""
        # the loss that shows a bad update comes one step later: never replace a good checkpoint by it
        weights = list(self.model.parameters())
        if not torch.isfinite(full_tensor(torch.nn.utils.get_total_norm(weights))):
            for name, weight in self.model.named_parameters():
                self.require_finite(f"the largest weight of {name}", full_tensor(weight.detach()).abs().max().item())
        assert self.validation is not None  # a run begins with one
        state = {
            "seconds": self.seconds(),
            "validation": asdict(self.validation),
            "guard": asdict(self.guard),
            "loss_scale": self.loss_scale and asdict(self.loss_scale),
        }
        tensors = self.gathered(self.model.state_dict()), self.gathered(self.optimizer.state_tensors())
        if self.processes.first:
            self.writer.save(self.step, *tensors, state)
        else:
            for _ in chain(*tensors):
                pass  # each is gathered from all processes
        self.saved_step, self.saved_at = self.step, time.monotonic()

    def gathered(self, tensors: dict[str, torch.Tensor]) -> Iterator[tuple[str, torch.Tensor]]:
        """Whole tensors by name, one at a time: together they may be more than one GPU holds."""
        return ((name, full_tensor(tensor)) for name, tensor in tensors.items())

    def report_checkpoints(self, metrics: EventLog) -> None:
        """Tell which checkpoints were finished; raises what kept the writer from it."""
        for step in self.writer.written():
            metrics.write("checkpoint", **self.progress(step), seconds=self.seconds())

    def whole_model(self) -> GPT:
        """The network as generate() can run it on one process."""
        if not self.sharded:
            return self.model
        model = GPT(self.config.model)
        load_weights(model, {name: tensor.cpu() for name, tensor in self.gathered(self.model.state_dict())})
        return model.to(self.device) if self.processes.first else model

    def resume(self) -> list[str]:
        """Continue from the newest intact checkpoint, if any; why newer ones were passed over."""
        newest, refused = checkpoint.latest(self.directory / "checkpoints")
        if newest is None and not self.drawn:
            self.start_over()
        if newest is not None:
            load_weights(self.model, newest.weights)
            self.optimizer.load_state_tensors(newest.optimizer)
            self.step = self.saved_step = newest.step
            self.seconds_before = newest.state["seconds"]
            self.validation = Validation(**newest.state["validation"])
            self.guard = LossGuard(**newest.state["guard"])
            self.loss_scale = newest.state["loss_scale"] and LossScale(**newest.state["loss_scale"])
        self.record_execution()
        if self.processes.first:
            self.write_run()
        return refused

    def finish(self, metrics: EventLog) -> None:
        """Write the samples and the model of a run that has reached its last step."""
        self.sample("trained")
        assert self.validation is not None  # the last step was validated
        result = self.progress() | asdict(self.validation)
        model = self.whole_model()
        if self.processes.first:
            checkpoint.publish_final(
                self.directory / "final", model, self.dataset.eot_token, self.dataset.tokenizer_sha256, result
            )
        metrics.write("done", **result, seconds=self.seconds())
        self.processes.wait()  # when one process has ended, the others are ended soon
