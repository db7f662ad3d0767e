"""The training loop: `python -m model.train CONFIG.json`.

CONFIG.json is a model.training.run.TrainerConfig. The run writes into its run_dir:
  run.json              the resolved run, before step 0, and how it is executed
  metrics.jsonl         events, also printed; the only file with times
  checkpoints/          the last two checkpoints
  samples.json          what the untrained and the trained model say
  final/                the finished model; when it is there, the run is done

Started again on the same run_dir, it continues after the last intact checkpoint. On the same kind of device with as
many processes it ends with the same bytes as a run that was never stopped; on a GPU only with execution.deterministic.
SIGTERM, or the death of whoever reads what is printed, saves and ends with exit code 143; until the first step is done
there is nothing to save, and SIGTERM ends the process at once. An error that has a reason is one line on stderr and
exit code 1. Exit code 75: the memory of one of several processes is full; started again, they resume with the smaller
micro-batch that is recorded.
"""

import argparse
import gc
import json
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from model.errors import name_file_in_errors, print_error
from model.machine.gpu_process import leave_process_group
from model.machine.hardware import HARDWARE, hardware_named
from model.machine.parallel import local_part
from model.machine.thread_waiting import Waiting
from model.parsing import require
from model.planning.plan import plan
from model.training import checkpoint
from model.training.config import TrainConfig
from model.training.metrics import EventLog, MetricsLog, NoLog, read_lines
from model.training.out_of_memory import SmallerMicroBatch, UpdateInterrupted, memory_limit_error, release_memory
from model.training.run import TrainerConfig, check_same_run, literals, read_config
from model.training.trainer import Trainer

TERMINATED = 128 + signal.SIGTERM  # the exit code of a process that SIGTERM ended
START_AGAIN = 75  # EX_TEMPFAIL


def _loop(
    trainer: Trainer, metrics: EventLog, waiting: Waiting, stop: Callable[[], bool], listen: Callable[[bool], None]
) -> bool:
    """Train to the end or until asked to stop; True when the end was reached."""
    train: TrainConfig = trainer.config.train
    sample_every = trainer.config.execution.sample_every_steps
    window_steps, window_seconds = 0, 0.0  # since the last step line, without validation and saving
    compiled_code = trainer.compiled_code if trainer.processes.first else None
    while trainer.step < trainer.steps:
        stopped, save = trainer.processes.any([stop(), trainer.checkpoint_is_due()], trainer.device)
        if stopped:
            break
        began = time.perf_counter()
        values = trainer.train_step()
        window_steps, window_seconds = window_steps + 1, window_seconds + time.perf_counter() - began
        listen(True)
        at_end = trainer.step == trainer.steps
        if compiled_code is not None:
            compiled_code.record()  # everything that a training compiles was needed once
            compiled_code = None
        if trainer.step % train.log_every_steps == 0 or trainer.step == 1 or at_end:
            rate = window_steps * train.tokens_per_step / window_seconds
            flops_rate = rate * trainer.run["flops_per_token"]
            peak = trainer.peak_flops and trainer.peak_flops * trainer.processes.count
            mfu = round(flops_rate / peak, 4) if peak else None
            metrics.write(
                "step",
                **trainer.progress(),
                steps=trainer.steps,
                seconds=trainer.seconds(),
                **values,
                tokens_per_second=round(rate),
                mfu=mfu,
            )
            window_steps, window_seconds = 0, 0.0
        if trainer.step % train.validation_every_steps == 0 or at_end:
            trainer.validate(metrics)
        if save and not at_end and not trainer.guard.spikes:
            trainer.save()
        if sample_every and trainer.step % sample_every == 0 and not at_end:
            trainer.sample_now(metrics)
        trainer.report_checkpoints(metrics)
        if warning := waiting.take_warning():
            metrics.write("warning", step=trainer.step, message=warning)
    if trainer.step < trainer.steps and trainer.step > trainer.saved_step:
        trainer.save()
    gc.unfreeze()
    trainer.writer.wait()
    trainer.report_checkpoints(metrics)
    trainer.processes.wait()  # when one process has ended, the others are ended soon
    return trainer.step == trainer.steps


def _already_done(config: TrainerConfig) -> bool:
    """Report a finished run again; its shards need not be there any more."""
    directory = Path(config.run_dir)
    record = checkpoint.read_final(directory / "final")
    if record is None:
        return False
    check_same_run(directory / "run.json", literals(config, record["model"]["vocab_size"], record["eot_token"]))
    seconds = [line["seconds"] for line in read_lines(directory / "metrics.jsonl") if "seconds" in line]
    event = {"event": "done"} | record["result"] | {"seconds": max(seconds, default=None)}
    print(json.dumps(event), flush=True)
    return True


def train(
    config: TrainerConfig,
    stop: Callable[[], bool] = lambda: False,
    listen: Callable[[bool], None] = lambda to_save: None,
) -> int:
    """Run or resume a training to its end; the exit code. `stop` is asked once a step. `listen` is told when there is
    something to save, and when there is not: while the network is built, loaded and compiled."""
    events: list[tuple[str, dict]] = []
    while not _already_done(config):
        try:
            listen(False)
            code = _train(config, stop, listen, events)
            leave_process_group()
            return code
        except UpdateInterrupted as error:
            events = error.events
        gc.unfreeze()
        release_memory(compiled=True)  # then resume from the last checkpoint, as after a kill
    return 0


def _train(
    config: TrainerConfig, stop: Callable[[], bool], listen: Callable[[bool], None], events: list[tuple[str, dict]]
) -> int:
    trainer = Trainer(config)
    trainer.events.kept += events
    if not (trainer.directory / "samples.json").exists():
        trainer.sample("untrained")
    refused = trainer.resume()
    first = trainer.processes.first
    log = MetricsLog(trainer.directory / "metrics.jsonl", resumed_step=trainer.step) if first else NoLog()
    with log as metrics, trainer.writer:
        metrics.write(
            "start",
            step=trainer.step,
            steps=trainer.steps,
            tokens=trainer.run["tokens"],
            flops=trainer.run["flops"],
            parameters=trainer.run["parameters"]["total"],
            device=trainer.device_name,
            window_kernel=trainer.kernels.windows,
            past_kernel=trainer.kernels.past,
            document_kernel=trainer.kernels.documents,
            threads=torch.get_num_threads(),
            deterministic=torch.are_deterministic_algorithms_enabled(),
            micro_batch_sequences=trainer.micro_batch_sequences,
            peak_flops=trainer.peak_flops,
            processes=trainer.processes.count,
            weight_bytes=sum(local_part(weight).nbytes for weight in trainer.model.parameters()),
            checkpoint_bytes=trainer.checkpoint_bytes(),
            cropped=trainer.packing and round(trainer.packing.cropped, 4),
        )
        trainer.events.open(metrics, trainer.step)
        for reason in refused:
            metrics.write("damaged_checkpoint", step=trainer.step, reason=reason)
        if trainer.step:
            metrics.write("resume", step=trainer.step)
        else:
            trainer.validate(metrics)
        gc.collect()
        gc.freeze()  # what is there now stays: looking for garbage in it would stop steps
        with Waiting(trainer.device) as waiting:
            ended = _loop(trainer, metrics, waiting, lambda: stop() or not metrics.followed, listen)
        if not ended:
            metrics.write("interrupted", **trainer.progress(), seconds=trainer.seconds())
            return TERMINATED
        trainer.finish(metrics)
    return 0


def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m model.train", description="Train one model.")
    parser.add_argument("config", type=Path, help="JSON file of the run, see model.training.run.TrainerConfig")
    parser.add_argument("--dry-run", action="store_true", help="print what the run would cost; reads no shards")
    parser.add_argument(
        "--hardware", choices=[hardware.name for hardware in HARDWARE], default="H100", help="GPU of the dry run"
    )
    parser.add_argument("--mfu", type=float, help="share of its peak that the dry run assumes; else the known one")
    arguments = parser.parse_args(argv)
    signals: list[int] = []

    def listen(to_save: bool) -> None:
        """Remember SIGTERM when there is something to save. Else let it kill: Python may not be asked for minutes."""
        signal.signal(signal.SIGTERM, (lambda number, _: signals.append(number)) if to_save else signal.SIG_DFL)
        if signals and not to_save:
            sys.exit(TERMINATED)

    try:
        config = read_config(arguments.config)
        if arguments.dry_run:
            require(arguments.mfu is None or 0 < arguments.mfu <= 1, "mfu", arguments.mfu, "in (0, 1]")
            hardware = hardware_named(arguments.hardware)
            print(json.dumps(plan(config.model, config.train, hardware, arguments.mfu), indent=2))
            return 0
        with name_file_in_errors(Path(config.run_dir)):
            return train(config, stop=lambda: bool(signals), listen=listen)
    except SmallerMicroBatch as error:
        print_error(error)
        return START_AGAIN
    except Exception as error:
        return print_error(memory_limit_error(error) or error)


if __name__ == "__main__":
    sys.exit(main())
