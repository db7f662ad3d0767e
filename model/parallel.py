"""Data parallel training with torchrun: who this process is, and sums over all processes.

Every process holds the whole model, reads its part of each step's batch and averages gradients with
the others (DDP); the optimizer then does the same update everywhere. Without torchrun there is one
process and nothing here communicates.
"""

import os
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from model.parsing import ConfigError


@dataclass(frozen=True)
class Processes:
    """The processes of one training, seen from one of them."""

    rank: int = 0
    """Number of this process."""
    count: int = 1
    """How many there are."""
    local_rank: int = 0
    """Number of this process on its machine: the number of its GPU."""

    @property
    def first(self) -> bool:
        """The process that writes files."""
        return self.rank == 0

    def sum_(self, tensor: Tensor) -> Tensor:
        """Replace the tensor by its sum over all processes."""
        if self.count > 1:
            dist.all_reduce(tensor)
        return tensor

    def any(self, flag: bool, device: torch.device) -> bool:
        """True everywhere when it is true anywhere."""
        return flag if self.count == 1 else bool(self.sum_(torch.tensor(float(flag), device=device)))

    def parallel(self, module: nn.Module) -> nn.Module:
        """The module with gradients averaged over processes."""
        return module if self.count == 1 else DistributedDataParallel(module, broadcast_buffers=False)

    def wait(self) -> None:
        """Until all processes are here."""
        if self.count > 1:
            dist.barrier()


def connect(cuda: bool) -> Processes:
    """Join the processes that torchrun started, if it did."""
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count == 1:
        return Processes()
    missing = [name for name in ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if missing:
        raise ConfigError(f"WORLD_SIZE is {count}, but {missing[0]} is not set: start with torchrun")
    if not dist.is_initialized():
        dist.init_process_group("nccl" if cuda else "gloo")
    return Processes(int(os.environ["RANK"]), count, int(os.environ["LOCAL_RANK"]))


def shared_steps(sequences: int, micro_batch: int, processes: int) -> int:
    """Micro-batches of one process in a step: the fewest equal ones of at most `micro_batch` sequences."""
    if sequences % processes:
        raise ConfigError(f"{processes} processes cannot share the {sequences} sequences of a step equally")
    share = sequences // processes
    return next(parts for parts in range(-(-share // micro_batch), share + 1) if share % parts == 0)
