"""The device of a training, and the settings that are fixed when a run begins because its bytes depend on them.

The same threads, micro-batch, number of processes and kind of device give the same bytes; with others the result is the
same up to rounding. run.json records them under `execution`, and a resumed run keeps its micro-batch and, with as many
processes, its threads: they share the cores. On a CPU every operation is deterministic. On a GPU sums in attention's
and the embedding's backward pass, and the choice of compiled kernels by timing, are not, unless
`execution.deterministic` asks for it.
"""

import os
import platform

import torch

from model.machine.gpu_process import use_expandable_segments
from model.machine.parallel import Processes, connect
from model.parsing import ConfigError
from model.training.run import TrainerExecution


def prepare_device(execution: TrainerExecution, recorded: dict) -> tuple[torch.device, str, Processes, list[str]]:
    """The device of this process, its name, the processes it trains with, and what differs from `recorded`, the
    settings with which the run was executed so far (empty: it begins), as sentences."""
    use_expandable_segments()
    cuda = torch.cuda.is_available() and execution.device != "cpu"
    if execution.device == "cuda" and not cuda:
        raise ConfigError("device is 'cuda', but torch finds no CUDA device")
    kind = "cuda" if cuda else "cpu"
    threads = execution.threads or torch.get_num_threads()
    deterministic = execution.deterministic or not cuda
    differences = []
    processes = connect(cuda)
    as_before = recorded.get("processes", processes.count) == processes.count
    if as_before and recorded.get("threads", threads) != threads:
        differences.append(
            f"threads: the run keeps the {recorded['threads']} that it began with, {threads} are set now"
        )
        threads = recorded["threads"]
    if recorded.get("device", kind) != kind:
        differences.append(
            f"device: {recorded['device']} until now, {kind} from here on; the results agree up to rounding"
        )
    elif recorded.get("deterministic", deterministic) != deterministic:
        differences.append(
            f"deterministic: the run keeps {recorded['deterministic']}, with which it began, {deterministic} is set now"
        )
        deterministic = recorded["deterministic"]
    torch.set_num_threads(threads)
    if deterministic:
        use_deterministic_algorithms(cuda)
    if not as_before:
        differences.append(
            f"processes: {recorded['processes']} until now, {processes.count} from here on; the results "
            f"agree up to rounding"
        )
    if not cuda:
        return torch.device("cpu"), platform.processor() or platform.machine(), processes, differences
    torch.set_float32_matmul_precision("high")
    return torch.device("cuda"), torch.cuda.get_device_name(), processes, differences


def use_deterministic_algorithms(cuda: bool) -> None:
    """Make every operation give the same bytes for the same input.

    The flag covers cuBLAS (with the workspace, which that reads when it starts), the gradient of embeddings, the
    backward passes of FlashAttention and of memory-efficient attention, and kernels that Inductor would choose by
    timing. torch runs cuDNN's attention without its deterministic backward pass, so that is switched off.
    """
    if cuda:
        os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"
        torch.backends.cuda.enable_cudnn_sdp(False)
    torch.use_deterministic_algorithms(True)
    # a debugging aid that costs time; torch makes the attribute when it is imported, where mypy does not see it
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def free_bytes(device: torch.device) -> int | None:
    """Memory of this process's GPU that nobody uses; None on a CPU."""
    return torch.cuda.mem_get_info()[0] if device.type == "cuda" else None
