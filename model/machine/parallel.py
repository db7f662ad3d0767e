"""Data parallel training: who this process is, sums over all processes, sharded tensors.

Every process reads its part of each step's batch. With ddp it holds the whole model and averages
gradients with the others; with fsdp it holds a share of the rows of every weight, gradient and
optimizer state (FSDP2, arXiv 2304.11277), and weights are gathered block by block when they are
needed. The update is the same either way. The processes are started by the flow (tasks/runtime/ranks.py) or
by torchrun; without either there is one and nothing here communicates.
"""

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import islice
from typing import TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Shard, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from model.machine.gpu_process import join_process_group, require_own_gpu
from model.parsing import ConfigError

Item = TypeVar("Item")


class Parallelism(StrEnum):
    """What the processes of one training share."""

    DDP = "ddp"
    FSDP = "fsdp"


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

    def any(self, flags: list[bool], device: torch.device) -> list[bool]:
        """Of each flag: true everywhere when it is true anywhere. All flags travel at once."""
        if self.count == 1:
            return flags
        return self.sum_(torch.tensor(flags, dtype=torch.float32, device=device)).bool().tolist()

    def smallest(self, number: int, device: torch.device) -> int:
        """The smallest of the numbers of all processes."""
        if self.count == 1:
            return number
        shared = torch.tensor(number, device=device)
        dist.all_reduce(shared, dist.ReduceOp.MIN)
        return int(shared)

    def parallel(self, model: nn.Module, parallelism: Parallelism, *, compiled: bool) -> nn.Module:
        """What to call for a forward pass whose gradients are averaged over processes; fsdp shards `model`."""
        if self.count > 1 and parallelism is Parallelism.FSDP:
            for block in model.get_submodule("blocks").children():
                if compiled:
                    block.compile(dynamic=False)  # inside the gathering of its weights, which cannot be compiled
                fully_shard(block)
            # the root would keep its weights whole after a forward pass without a backward one, and
            # zero_grad would then miss the gradients of its shards
            fully_shard(model, reshard_after_forward=True)
            return model
        # torch types what it makes of a module as a function
        module = cast(nn.Module, torch.compile(model, dynamic=False)) if compiled else model
        if self.count == 1:
            return module
        return DistributedDataParallel(module, broadcast_buffers=False, gradient_as_bucket_view=True)

    def share(self, items: Iterable[Item]) -> Iterator[tuple[Item, bool]]:
        """This process's share of the items, and whether it counts: where the last turn has too few, one
        is repeated, because a sharded network runs on all processes at once or not at all."""
        items = iter(items)
        while turn := list(islice(items, self.count)):
            yield turn[min(self.rank, len(turn) - 1)], self.rank < len(turn)

    def wait(self) -> None:
        """Until all processes are here."""
        if self.count > 1:
            dist.barrier()


def connect(cuda: bool) -> Processes:
    """Join the processes that were started together with this one, if any were."""
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count == 1:
        return Processes()
    missing = [name for name in ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if missing:
        raise ConfigError(f"WORLD_SIZE is {count}, but {missing[0]} is not set: start with torchrun")
    processes = Processes(int(os.environ["RANK"]), count, int(os.environ["LOCAL_RANK"]))
    if cuda:
        require_own_gpu(processes.local_rank)
        torch.cuda.set_device(processes.local_rank)
    join_process_group("nccl" if cuda else "gloo", processes.rank, count)
    return processes


def micro_batches_in_step(sequences: int, micro_batch: int, processes: int) -> int:
    """Micro-batches of one process in a step: the fewest equal ones of at most `micro_batch` sequences."""
    if sequences % processes:
        raise ConfigError(f"{processes} processes cannot share the {sequences} sequences of a step equally")
    share = sequences // processes
    return next(parts for parts in range(-(-share // micro_batch), share + 1) if share % parts == 0)


def full_tensor(tensor: Tensor) -> Tensor:
    """All of a sharded tensor; all processes must ask at once. Others come back as they are."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def local_part(tensor: Tensor) -> Tensor:
    """This process's part of a sharded tensor, sharing its memory."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


@torch.no_grad()
def assign_(target: Tensor, values: Tensor) -> None:
    """Copy a whole tensor, or this process's part of it, into `target`."""
    if isinstance(target, DTensor):
        values = distribute_tensor(values.to(target.device), target.device_mesh, target.placements, src_data_rank=None)
    target.copy_(values)


def load_weights(model: nn.Module, weights: dict[str, Tensor]) -> None:
    """Set parameters and buffers, sharded or not, to whole tensors by name."""
    own = model.state_dict()
    if different := sorted(set(own) ^ set(weights)):
        raise ConfigError(f"the weights are of another network: {different[0]!r} does not match")
    for name, tensor in own.items():
        assign_(tensor, weights[name])


def whole_matrices(stack_NRC: Tensor) -> Tensor:
    """From a share of the rows of every matrix to a share of the matrices (one all-to-all)."""
    return stack_NRC.redistribute(placements=[Shard(0)]) if isinstance(stack_NRC, DTensor) else stack_NRC


def rows_as(update_NRC: Tensor, parameters: Sequence[Tensor], stack_NRC: Tensor) -> list[Tensor]:
    """The inverse: updates of this process's matrices, the local part of `stack_NRC`, as updates of its
    parts of the parameters that the stack was made of."""
    sizes = [parameter.numel() // stack_NRC[0].numel() for parameter in parameters]
    if isinstance(stack_NRC, DTensor):
        update_NRC = DTensor.from_local(
            update_NRC,
            stack_NRC.device_mesh,
            [Shard(0)],
            run_check=False,
            shape=stack_NRC.shape,
            stride=stack_NRC.stride(),
        )
        update_NRC = update_NRC.redistribute(placements=[Shard(1)])
    parts = [part.reshape(parameter.shape) for part, parameter in zip(update_NRC.split(sizes), parameters)]
    return [
        local_part(part.redistribute(placements=parameter.placements))
        if isinstance(part, DTensor) and isinstance(parameter, DTensor)
        else part
        for part, parameter in zip(parts, parameters)
    ]
