"""What a process sets up before it uses a GPU: how memory is allocated, and the processes that it works with.

Apart from what trains with them (model/machine/parallel.py), whose import takes a second.
"""

import os
from datetime import timedelta

import torch
import torch.distributed as dist

from model.parsing import ConfigError

LONGEST_WAIT = timedelta(minutes=30)
"""Of one process for the others, such as for the first, which compiles, writes or samples alone. Whoever starts them
ends them all when one dies."""


def join_process_group(backend: str, rank: int, count: int) -> None:
    """Begin to communicate. Where the flow has started the processes, the first one listens on the socket that it was
    given, so that no other program can have taken the port."""
    if dist.is_initialized():
        return
    store, descriptor = None, os.environ.get("MASTER_DESCRIPTOR")  # of the first; empty in the others
    if descriptor is not None:
        store = dist.TCPStore(
            os.environ["MASTER_ADDR"],
            int(os.environ["MASTER_PORT"]),
            count,
            rank == 0,
            LONGEST_WAIT,
            master_listen_fd=int(descriptor) if descriptor else None,
        )
    dist.init_process_group(backend, store=store, rank=rank, world_size=count, timeout=LONGEST_WAIT)


def leave_process_group() -> None:
    """End the communication, if any, while all processes are still there: NCCL's own end at exit may hang."""
    if dist.is_initialized():
        dist.destroy_process_group()


def require_own_gpu(local_rank: int) -> None:
    """Refuse more processes on this machine than it has GPUs."""
    if local_rank >= (count := torch.cuda.device_count()):
        raise ConfigError(
            f"each process needs a GPU of its own, but torch finds {count} for "
            f"{os.environ.get('LOCAL_WORLD_SIZE', local_rank + 1)} processes: set execution.processes to "
            f"at most {count}"
        )


def use_expandable_segments() -> None:
    """Have torch's allocator of GPU memory enlarge what it has, unless the environment says how it works: tensors of
    many sizes then leave fewer gaps that nothing fits into. Call it before CUDA is used."""
    if not {"PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"} & os.environ.keys():
        os.environ["PYTORCH_ALLOC_CONF"] = "expandable_segments:True"
