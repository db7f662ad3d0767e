"""The next step's batch is read while this step computes, so that a step never waits for the disk.

Batches stay a pure function of the step: reading ahead changes when they are read, never what is in them.
"""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import torch
from torch import Tensor


class Prefetch:
    """Batches of consecutive steps, each read by one thread during the step before.

    An error of the thread is raised by `take` of the step whose batch it is, with its own message; that
    of a step nobody asks for is never raised. The thread ends with this object.
    """

    def __init__(self, read: Callable[[int], tuple[Tensor, ...]], device: torch.device) -> None:
        self._read, self._device = read, device
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="prefetch")
        self._step = -1  # none is read yet
        self._future: Future[tuple[Tensor, ...]] = Future()

    def _prepare(self, step: int) -> tuple[Tensor, ...]:
        tensors = self._read(step)
        # copying from pinned memory runs beside the GPU's work
        return tuple(tensor.pin_memory() for tensor in tensors) if self._device.type == "cuda" else tensors

    def _begin(self, step: int) -> None:
        self._step, self._future = step, self._thread.submit(self._prepare, step)

    def take(self, step: int) -> tuple[Tensor, ...]:
        """The tensors of this step on the device; the next step's are begun."""
        if step != self._step:  # the first step, one after a resume, or the same again
            self._begin(step)
        tensors = self._future.result()
        self._begin(step + 1)
        return tuple(tensor.to(self._device, non_blocking=True) for tensor in tensors)
