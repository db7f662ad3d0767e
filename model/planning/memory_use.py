"""What a training holds in memory, counted on the real network and optimizer.

Both run on fake tensors, which have shapes and no numbers: a trace takes seconds and no memory. On a GPU the network is
compiled; its forward and backward graph are then those that AOTAutograd gives torch.compile. What runs eagerly
(everything on a CPU; validation and optimizer everywhere) is counted storage by storage.

Fake CUDA tensors have no backward pass, so a GPU is imitated on CPU tensors: its attention kernels, and the operations
that its autocast runs in fp32. Scratch memory inside kernels, and what the allocator loses, is not seen.
"""

import importlib
import math
import warnings
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, fx
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode

from model.kernels.attention_kernels import WindowKernel, attention_kernels, set_attention_kernels
from model.network.attention_variants import ATTENTION_LAYERS
from model.network.config import GPTConfig
from model.network.fp8 import use_fp8
from model.network.gpt import GPT
from model.optimizers.optimizer import Optimizer
from model.planning.allocations import Allocations, by_sequence, graph_timeline, nbytes, storages
from model.training.config import Precision, TrainConfig
from model.training.precision import TYPES, autocast

PRIMES = (7, 11, 13, 17, 19, 23, 29, 31, 37, 41, 43, 47)
FP32_ON_CUDA = frozenset(
    function
    for function, operation in (
        (F.rms_norm, "rms_norm"),
        (F.layer_norm, "layer_norm"),
        (torch.square, "pow.Tensor_Scalar"),
        (Tensor.square, "pow.Tensor_Scalar"),
    )
    if torch._C._dispatch_has_kernel_for_dispatch_key(f"aten::{operation}", "AutocastCUDA")
)
"""What autocast runs in fp32 on CUDA, but not on a CPU; rms_norm since torch 2.12."""


@dataclass(frozen=True)
class NetworkMemory:
    """Bytes at one micro-batch beside weights, gradients and optimizer state."""

    activations: int
    """Saved in the forward for the backward pass, without logits."""
    logits: int
    """Saved of logits and loss."""
    step: int
    """At the peak of a micro-batch; activations and logits are part of it."""
    validation: int
    """At the peak of a batch of the validation."""


@dataclass(frozen=True)
class _Trace:
    """The same of a network that may be shallower; the last dimension is (fixed bytes, bytes a sequence)."""

    activations: np.ndarray
    logits: np.ndarray
    timelines: tuple[np.ndarray, np.ndarray, np.ndarray]
    """After each operation of the forward pass, the backward pass, and the validation."""


def network_memory(model: GPTConfig, train: TrainConfig, device: str) -> NetworkMemory:
    """What the network holds while it is trained and validated on `device`: cuda (compiled) or cpu (eager).

    Traces are made of at most two shallow networks with the layers of this one, and kept: another micro-batch of the
    same network costs nothing.
    """
    depths = _shallow_depths(model)
    traces = [_trace(replace(model, depth=depth), train.precision, train.fp8_smallest_size, device) for depth in depths]
    at = np.array([1, train.micro_batch_sequences])

    def peak(number: int) -> float:
        """Of a timeline: at its begin, where the layers' memory is held, or at its end; depth changes each linearly."""
        moments = [trace.timelines[number] @ at for trace in traces]
        length = len(moments[0]) // 2 if len(depths) > 1 else len(moments[0])
        return max(
            _at_depth([part[:length].max() for part in moments], depths, model.depth),
            _at_depth([part[-length:].max() for part in moments], depths, model.depth),
        )

    activations, logits = (
        _at_depth([getattr(trace, name) @ at for trace in traces], depths, model.depth)
        for name in ("activations", "logits")
    )
    forward, backward, validation = (peak(number) for number in range(3))
    return NetworkMemory(round(activations), round(logits), round(max(forward, backward)), round(validation))


def _shallow_depths(model: GPTConfig) -> list[int]:
    """Depths whose networks begin and end like this one and differ by a period of layers; its own if it is shallow."""
    period = math.lcm(len(model.window_pattern), 2 if model.value_embeddings else 1)
    first = model.depth % period + max(period, 2)
    return [first, first + period] if model.depth > first + period else [model.depth]


def _at_depth(values: list[float], depths: list[int], depth: int) -> float:
    """Linear in the depth through one or two known values."""
    if len(values) == 1:
        return values[0]
    return values[0] + (values[1] - values[0]) * (depth - depths[0]) / (depths[1] - depths[0])


@cache
def _trace(model: GPTConfig, precision: Precision, fp8_smallest_size: int, device: str) -> _Trace:
    """Trace the network at its own depth. What torch cannot trace as compiled is taken as if it ran eagerly."""
    with FakeTensorMode(), ImitatedDevice(device):
        network = GPT(model)
        if precision is Precision.FP8:
            use_fp8(network, fp8_smallest_size)
        if device == "cuda":
            use_imitated_attention_kernels(network, TYPES[precision])
        sequences = _sequences(network)
        tokens_BT = torch.zeros(sequences, model.sequence_length, dtype=torch.long)
        context = autocast("cpu", precision)
        if device == "cuda":
            try:
                saved, timelines = _compiled_network(network, tokens_BT, context)
            except Exception as error:
                warnings.warn(
                    f"torch {torch.__version__} cannot trace the compiled network, so its memory is counted "
                    f"as if it ran eagerly, which takes more: {str(error).partition(chr(10))[0]}",
                    stacklevel=2,
                )
                saved, timelines = _eager_network(network, tokens_BT, context)
        else:
            saved, timelines = _eager_network(network, tokens_BT, context)
    kept = np.zeros((2, 2))  # activations, logits
    for tensor_bytes, shape in saved:
        is_logits = shape[-1:] in ((model.vocab_size,), (model.padded_vocab_size,))
        kept[int(is_logits)] += by_sequence(tensor_bytes, sequences)
    return _Trace(kept[0], kept[1], timelines)


def use_imitated_attention_kernels(network: GPT, dtype: torch.dtype) -> None:
    """Of a GPU of compute capability 9: FlexAttention saves what cuDNN saves, and fake tensors know the latter."""
    kernels = attention_kernels(
        (9, 0), half=dtype is not torch.float32, head_size=network.config.head_size, works=lambda kernel: True
    )
    windows = kernels.windows if kernels.windows is WindowKernel.SDPA else WindowKernel.CUDNN
    set_attention_kernels(network, windows, WindowKernel.SDPA, torch.device("cpu"))
    if kernels.documents is WindowKernel.FLEX:
        network.document_kernel = lambda number_BT: lambda q_BHTK, k_BHTK, v_BHTK, _: _flash(q_BHTK, k_BHTK, v_BHTK)


def _sequences(network: GPT) -> int:
    """A number that divides no size of the network: it divides the size of a buffer only if that has so many rows."""
    sizes = {network.config.experts_per_token}
    sizes = sizes.union(*(layer.tensor_sizes(network.config) for layer in ATTENTION_LAYERS.values()))
    sizes |= {size for tensor in (*network.parameters(), *network.buffers()) for size in tensor.shape}
    return next((prime for prime in PRIMES if all(size % prime for size in sizes)), PRIMES[-1])


def _compiled_network(network: GPT, tokens_BT: Tensor, context: torch.autocast) -> tuple[list, tuple]:
    """Saved tensors as (bytes, shape), and the three timelines, of the graphs that torch.compile makes."""
    names, tensors = zip(*network.named_parameters(), *network.named_buffers())
    graphs_of = importlib.import_module(
        "model.planning.joint_graph"
    ).graphs_of  # imports the compiler, which takes seconds

    def loss(x_BT: Tensor, y_BT: Tensor, *tensors: Tensor) -> Tensor:
        with context:
            return torch.func.functional_call(network, dict(zip(names, tensors)), (x_BT, y_BT))

    forward, backward = graphs_of(loss, tokens_BT, tokens_BT.clone(), *tensors)
    given = storages([node.meta["val"] for node in forward.find_nodes(op="placeholder")])
    results = forward.output_node().args[0]
    kept = storages([node.meta.get("val") for node in results[1:] if isinstance(node, fx.Node)])
    saved = [(nbytes(tensor), tensor.shape) for storage, tensor in kept.items() if storage not in given]
    passes = [graph_timeline(graph, len(tokens_BT), set(given)) for graph in (forward, backward)]
    forward.output_node().args = (results[:1],)  # the validation is a forward pass that keeps nothing
    forward.eliminate_dead_code()
    return saved, (*passes, graph_timeline(forward, len(tokens_BT), set(given)))


def _eager_network(network: GPT, tokens_BT: Tensor, context: torch.autocast) -> tuple[list, tuple]:
    """The same of a network that runs as it is written."""
    for parameter in network.parameters():
        parameter.grad = torch.zeros_like(parameter)
    given = storages(
        [*network.parameters(), *network.buffers(), *(weight.grad for weight in network.parameters()), tokens_BT]
    )
    saved: dict[int, tuple[int, torch.Size]] = {}

    def save(tensor: Tensor) -> Tensor:
        address = tensor.untyped_storage()._cdata
        if address not in given:
            saved[address] = (nbytes(tensor), tensor.shape)
        return tensor

    with Allocations(len(tokens_BT), given) as step:
        with torch.autograd.graph.saved_tensors_hooks(save, lambda tensor: tensor), context:
            loss = network(tokens_BT, tokens_BT)
        forward = len(step.timeline)
        loss.backward()
    del loss
    with Allocations(len(tokens_BT), given) as validation, torch.no_grad(), context:
        network(tokens_BT, tokens_BT, reduction="none").double()
    passes = step.timeline[:forward], step.timeline[forward:], validation.timeline
    return list(saved.values()), tuple(np.array(timeline) for timeline in passes)


@cache
def optimizer_bytes(model: GPTConfig, train: TrainConfig) -> tuple[int, int]:
    """Bytes of the optimizer's state, and what an update holds beside it at its peak."""
    with FakeTensorMode():
        network = GPT(model)
        for parameter in network.parameters():
            parameter.grad = torch.zeros_like(parameter)
        optimizer = Optimizer(network, train)
        optimizer.step(1.0)  # the first makes the state
        state = list(optimizer.state_tensors().values())
        given = [*network.parameters(), *(weight.grad for weight in network.parameters()), *state]
        with Allocations(1, storages(given)) as update:
            optimizer.step(1.0)
    return sum(tensor.nbytes for tensor in state), round(np.array(update.timeline).sum(1).max())


class ImitatedDevice(TorchFunctionMode):
    """Makes fake CPU tensors take the kernels and the types that tensors of the device take."""

    def __init__(self, device: str) -> None:
        super().__init__()
        self.cuda = device == "cuda"

    def __torch_function__(self, function: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        if function is torch._grouped_mm and args[0].dtype is not torch.bfloat16:  # fake tensors know it in bf16 alone
            return args[0] @ args[1][0]  # reads, writes and saves as much
        if self.cuda and function is F.scaled_dot_product_attention:
            return _attention_on_cuda(*args, **kwargs)
        if self.cuda and function in FP32_ON_CUDA and torch.is_autocast_enabled("cpu"):
            args = (args[0].float(), *args[1:])
        return function(*args, **kwargs)


def _flash(q_BHTK: Tensor, k_BHTK: Tensor, v_BHTK: Tensor) -> Tensor:
    """Saves q, k, v, the output and one number a query, as cuDNN and FlexAttention do."""
    return torch.ops.aten._scaled_dot_product_flash_attention(q_BHTK, k_BHTK, v_BHTK, 0.0, True)[0]


def _attention_on_cuda(
    q_BHTK: Tensor, k_BHTK: Tensor, v_BHTK: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False
) -> Tensor:
    """FlashAttention without a mask, the memory-efficient kernel with one."""
    B, H, T, _ = q_BHTK.shape
    if attn_mask is None and q_BHTK.dtype is not torch.float32:
        return _flash(q_BHTK, k_BHTK, v_BHTK)
    bias = None
    if attn_mask is not None:
        bias = torch.zeros((), dtype=q_BHTK.dtype, device=q_BHTK.device)
        bias = bias.masked_fill(attn_mask.logical_not(), -math.inf).expand(B, H, T, k_BHTK.size(2))
    return torch.ops.aten._scaled_dot_product_efficient_attention(q_BHTK, k_BHTK, v_BHTK, bias, True, 0.0, is_causal)[0]
