"""A GPU's memory that runs out costs a run no step: half the micro-batch, and again from the state that was there.

Work that changes nothing when it fails (gradients, validation, samples) is done again. An update that was cut short
cannot be, so the run goes back to its last checkpoint.
"""

import gc
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

import torch

from model.network.experts import mixtures
from model.training.loss_guard import TrainingError

if TYPE_CHECKING:
    from model.training.trainer import Trainer

Result = TypeVar("Result")


class UpdateInterrupted(Exception):
    """The GPU's memory ran out while weights were changed: the state is lost, the last checkpoint is not."""

    def __init__(self, events: list[tuple[str, dict]]) -> None:
        super().__init__(events)
        self.events = events
        """What belongs into the metrics of the run when it has begun again."""


class SmallerMicroBatch(TrainingError):
    """One of several processes ran out of memory: all of them are to be started again with the recorded micro-batch."""


def out_of_memory(error: BaseException | None) -> str | None:
    """The first line of torch's message when the GPU's memory ran out, also while something was compiled; else None."""
    while error is not None:
        if isinstance(error, torch.OutOfMemoryError):
            return str(error).partition("\n")[0]
        error = getattr(error, "inner_exception", None) or error.__cause__
    return None


def memory_limit_error(error: BaseException) -> TrainingError | None:
    """The same error in words that help, where a network does not fit the memory at all; None: it is another one."""
    if (reason := out_of_memory(error)) is not None:
        return TrainingError(
            f"the network and its optimizer alone are too large for the GPU's memory ({reason}); "
            f"choose a smaller network, or share it between several GPUs (execution.parallelism "
            f"'fsdp')"
        ).with_traceback(error.__traceback__)
    if isinstance(error, MemoryError) or "can't allocate memory" in str(error):
        sentence = (
            "the network, its optimizer and a micro-batch are too large for the memory of this machine; set a "
            "smaller model.depth, model.width, model.sequence_length or train.micro_batch_sequences"
        )
        return TrainingError(sentence).with_traceback(error.__traceback__)
    return None


def within_memory(trainer: "Trainer", work: Callable[[], Result]) -> Result:
    """The result of `work`, which changes nothing when it fails; with half the micro-batch if memory runs out."""
    while True:
        try:
            return work()
        except Exception as error:
            reason = out_of_memory(error)
            if reason is None:
                raise
        _halve_micro_batch(trainer, reason)  # here the error, which holds on to the memory of the work, is gone


def all_or_nothing(trainer: "Trainer", update: Callable[[], None]) -> None:
    """Do `update`. When memory runs out in it, raise UpdateInterrupted: the weights are those of no step."""
    try:
        return update()
    except Exception as error:
        reason = out_of_memory(error)
        if reason is None:
            raise
    trainer.step -= 1  # the number of complete steps
    trainer.events.open(None)  # what the metrics hold of steps after the last checkpoint will be dropped
    _halve_micro_batch(trainer, reason)
    raise UpdateInterrupted(trainer.events.kept)


def _halve_micro_batch(trainer: "Trainer", reason: str) -> None:
    """Take half the sequences a micro-batch from here on, record it and give back the memory of what was begun.

    One of several processes then stops the run: the others are in a step that they cannot take back. Whoever has
    started them starts them again, and they resume with the recorded number.
    """
    before = trainer.micro_batch_sequences
    full = (
        f"the memory of {trainer.device_name} is full in step {trainer.step + 1} with a micro-batch of "
        f"{before} sequence{'s' if before > 1 else ''} ({reason})"
    )
    if before == 1:
        raise TrainingError(
            f"{full}; choose a smaller network or shorter sequences, or share the network between "
            f"several GPUs (execution.parallelism 'fsdp')"
        )
    trainer.set_micro_batch(before // 2)
    now = trainer.micro_batch_sequences
    if trainer.run:  # else the run has not begun, only its speed is measured
        trainer.record_execution()
        trainer.write_run()
    if trainer.processes.count > 1:
        if trainer.run:
            raise SmallerMicroBatch(f"{full}; started again, the run resumes with {now}")
        raise TrainingError(f"{full}; set train.micro_batch_sequences to {now}")
    trainer.events.write(
        "out_of_memory",
        step=trainer.step,
        micro_batch_sequences=now,
        before=before,
        message=f"{full}; it has {now} from here on",
    )
    trainer.model.zero_grad(set_to_none=True)
    for mixture in mixtures(trainer.model):
        mixture.load.zero_()
    release_memory(trainer.compiled)


def release_memory(compiled: bool) -> None:
    """Give back memory that no tensor needs any more; `compiled` code is dropped as well."""
    if compiled:
        torch.compiler.reset()  # else the next size of a batch would be compiled for all sizes, which is slower
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
