"""The work of one micro-batch of a network that is compiled for a GPU, counted without one.

The network is traced on fake tensors as in model.planning.memory_use, and its two graphs go through Inductor's own
passes and its scheduler for an NVIDIA GPU: that fuses operations into kernels, and knows the bytes that each of them
reads and writes.
Nothing is compiled or run. Counted are floating-point operations of products and of attention, elements of the loss
(whose kernels wait for exp and tanh, not for memory), and bytes of everything else.
"""

import importlib
import os
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, redirect_stdout
from math import prod
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
import torch._inductor.fx_passes.post_grad as post_grad
import torch._inductor.scheduler as scheduler
from torch import Tensor, fx, nn
from torch._inductor import ir
from torch._inductor.compile_fx import partition_fn
from torch._inductor.graph import GraphLowering
from torch._inductor.runtime.hints import DeviceProperties
from torch._inductor.virtualized import V
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.gpu.nanochat import load_nanochat, nanochat_network, use_nanochat_fp8
from model.kernels import cudnn_attention
from model.network.config import GPTConfig
from model.network.fp8 import use_fp8
from model.network.gpt import GPT
from model.optimizers.optimizer import Optimizer
from model.planning import memory_use
from model.planning.joint_graph import graphs_of
from model.training.config import Precision, TrainConfig
from model.training.precision import TYPES, autocast

BLOCK = 128
"""Attention kernels skip blocks of so many queries and keys of which no score is read."""
GPU = {
    "multi_processor_count": 132,
    "major": 9,
    "regs_per_multiprocessor": 65_536,
    "warp_size": 32,
    "max_threads_per_multi_processor": 2048,
    "max_threads_per_block": 1024,
}
"""What Inductor asks of an H100 or an H200."""
PRODUCTS = {"mm": 0, "bmm": 0, "_scaled_mm": 0, "addmm": 1, "baddbmm": 1}
"""Operators, and the place of the first matrix among their arguments."""
SLOW = {"exp", "tanh", "prepare_softmax_online"}
"""Operators of the loss."""

Work = dict[str, float]
"""By kind: FLOPs of `bf16 products`, `fp8 products` and `attention`, elements of `loss`, bytes of `attention bytes`,
`elementwise`, `rounding` (kernels that write an fp8 tensor transposed) and `accumulation`."""


def ours(model: GPTConfig, train: TrainConfig) -> Work:
    """Of our network, with gradients added to those of the micro-batches before."""
    with FakeTensorMode(), memory_use.ImitatedDevice("cuda"):
        network = GPT(model)
        if train.precision is Precision.FP8:
            use_fp8(network, train.fp8_smallest_size)
        memory_use.use_imitated_attention_kernels(network, TYPES[train.precision])
        return _work(network, model, train, autocast("cpu", train.precision))


def nanochat(checkout: Path, model: GPTConfig, train: TrainConfig) -> Work:
    """Of nanochat's network of the same shape; its attention is traced as cuDNN's, which has the same inputs."""
    peer = _nanochat_network(checkout, model, train.precision)
    with FakeTensorMode():
        return _work(_fake(peer), model, train, ExitStack())


def update_of_ours(model: GPTConfig, train: TrainConfig) -> tuple[float, float]:
    """FLOPs and bytes of one update of the optimizer."""
    with FakeTensorMode():
        network = GPT(model)
        for parameter in network.parameters():
            parameter.grad = torch.zeros_like(parameter)
        optimizer = Optimizer(network, train)
        return _update(network, lambda: optimizer.step(1.0), lambda: optimizer.state_tensors().values())


def update_of_nanochat(checkout: Path, model: GPTConfig, train: TrainConfig) -> tuple[float, float]:
    peer = _nanochat_network(checkout, model, train.precision)
    with FakeTensorMode():
        network = _fake(peer)
        for parameter in network.parameters():
            parameter.grad = torch.zeros_like(parameter)
        with redirect_stdout(sys.stderr):
            optimizer = network.setup_optimizer(weight_decay=0.1)
        return _update(
            network,
            optimizer.step,
            lambda: [
                value for state in optimizer.state.values() for value in state.values() if isinstance(value, Tensor)
            ],
        )


def _update(
    network: nn.Module, step: Callable[[], object], state: Callable[[], Iterable[Tensor]]
) -> tuple[float, float]:
    """Weights and state are read and written once, gradients read: what an update that fuses everything does."""
    counter = FlopCounterMode(display=False)
    with torch.compiler.set_stance("force_eager"), counter:
        step()
    weights = sum(parameter.nbytes for parameter in network.parameters())
    return counter.get_total_flops(), 3 * weights + 2 * sum(tensor.nbytes for tensor in state())


def _nanochat_network(checkout: Path, model: GPTConfig, precision: Precision) -> Any:
    """On the device meta."""
    os.environ["NANOCHAT_DTYPE"] = "bfloat16"  # as on a GPU
    module = load_nanochat(checkout, windows=False)
    fallback = importlib.import_module("nanochat.flash_attention")

    def attend(q: Tensor, k: Tensor, v: Tensor, causal: bool, window_size: tuple[int, int]) -> Tensor:
        left = window_size[0]
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        return cudnn_attention.windowed_attention(q, k, v, left + 1 if 0 <= left < q.size(2) else None).transpose(1, 2)

    fallback.flash_attn.flash_attn_func = attend
    peer = nanochat_network(module, model)
    with torch.device("meta"):
        peer.init_weights()  # makes the embeddings bf16
        if precision is Precision.FP8:
            use_nanochat_fp8(peer)
    return peer


def _fake(network: Any) -> Any:
    """The same with fake CPU tensors for those on the device meta."""
    for module in network.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                module._parameters[name] = nn.Parameter(torch.empty(parameter.shape, dtype=parameter.dtype))
        for name, buffer in module.named_buffers(recurse=False):
            module._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype)
    return network


def _work(network: nn.Module, model: GPTConfig, train: TrainConfig, context: torch.autocast | ExitStack) -> Work:
    if train.micro_batch_sequences is None or model.vocab_size is None:
        raise ValueError("work is counted for a given micro-batch and vocabulary")
    tokens_BT = torch.zeros(train.micro_batch_sequences, model.sequence_length, dtype=torch.long)
    names, tensors = zip(*network.named_parameters(), *network.named_buffers())

    def loss(x_BT: Tensor, y_BT: Tensor, *tensors: Tensor) -> Tensor:
        with context:
            return torch.func.functional_call(network, dict(zip(names, tensors)), (x_BT, y_BT))

    work = work_of(loss, model.vocab_size, tokens_BT, tokens_BT.clone(), *tensors)
    # the gradient and the sum so far are read, the new sum is written
    work["accumulation"] = 3 * sum(parameter.nbytes for parameter in network.parameters())
    return work


def work_of(loss: Callable[..., Tensor], vocab_size: int, *arguments: Tensor) -> Work:
    """Of the forward and the backward pass of a function of fake tensors."""
    work: Work = defaultdict(float)
    with mock.patch.object(post_grad, "prepare_softmax_extra_check", lambda match: True):  # asks for CUDA tensors
        for graph in graphs_of(loss, *arguments, cut=partition_fn):
            assert graph.owning_module is not None  # a traced graph is that of a module
            for kind, amount in _of_graph(graph.owning_module, vocab_size):
                work[kind] += amount
    return work


def _of_graph(module: fx.GraphModule, vocab_size: int) -> Iterator[tuple[str, int]]:
    """Kinds and amounts of the operations and kernels of a forward or backward graph."""
    mode = next(node.meta["val"].fake_mode for node in module.graph.nodes if isinstance(node.meta["val"], FakeTensor))
    with _gpu(), V.set_fake_mode(mode):
        post_grad.post_grad_passes(module, is_inference=False)
        _move(module.graph)
        for node in module.graph.nodes:
            yield from _of_operator(node)
        inputs = [node.meta["val"] for node in module.graph.find_nodes(op="placeholder")]
        lowering = GraphLowering(module, example_inputs=inputs, is_inference=False)
        with V.set_graph_handler(lowering):
            lowering.run(*inputs)
            lowering._update_scheduler()
            for kernel in lowering.scheduler.nodes:
                yield from _of_kernel(kernel, vocab_size)


@contextmanager
def _gpu() -> Iterator[None]:
    """Answers Inductor's questions about the GPU, and the one whether Triton is installed."""
    properties = DeviceProperties(type="cuda", index=0, cc=90, **GPU)
    answers = {
        (DeviceProperties, "create"): classmethod(lambda cls, device: properties),
        (torch.cuda, "get_device_properties"): lambda device=None: SimpleNamespace(
            **GPU, minor=0, name="", gcnArchName=""
        ),
        (torch.cuda, "get_device_capability"): lambda device=None: (9, 0),
        (torch.cuda, "current_device"): lambda: 0,
        (scheduler, "has_triton"): lambda *device: True,
    }
    with ExitStack() as stack:
        for (place, name), answer in answers.items():
            stack.enter_context(mock.patch.object(place, name, answer))
        stack.enter_context(V.set_debug_handler(mock.MagicMock()))
        yield


def _move(graph: fx.Graph) -> None:
    """Make a traced graph one of CUDA tensors."""
    cuda = torch.device("cuda", 0)

    def moved(value: object) -> object:
        if isinstance(value, FakeTensor):
            empty = torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device="meta")
            return FakeTensor(value.fake_mode, empty, cuda)
        return type(value)(map(moved, value)) if isinstance(value, tuple | list) else value

    for node in graph.nodes:
        if "val" in node.meta:
            node.meta["val"] = moved(node.meta["val"])
        node.kwargs = {name: cuda if isinstance(value, torch.device) else value for name, value in node.kwargs.items()}


def _of_operator(node: fx.Node) -> Iterator[tuple[str, int]]:
    """Of a product or of attention."""
    name = getattr(node.target, "_opname", "")
    if name in PRODUCTS:
        left = node.args[PRODUCTS[name]]
        assert isinstance(left, fx.Node)  # the first matrix
        inner = left.meta["val"].shape[-1]
        yield "fp8 products" if name == "_scaled_mm" else "bf16 products", 2 * inner * node.meta["val"].numel()
    if "attention" in name:
        inputs = [argument.meta["val"] for argument in node.args if isinstance(argument, fx.Node)]
        outputs = [value for value in node.meta["val"] if isinstance(value, Tensor)]
        B, H, T, K = inputs[0].shape
        window = node.args[-1] if "windowed" in name else T
        assert isinstance(window, int)
        products = 5 if "backward" in name else 2
        yield "attention", 2 * products * K * B * H * scores(T, window)
        yield "attention bytes", sum(tensor.nbytes for tensor in (*inputs, *outputs))


def scores(length: int, window: int) -> int:
    """Scores that a kernel computes for the queries of one head."""
    blocks = -(-length // BLOCK)
    seen = sum(query - max(0, query * BLOCK - window + 1) // BLOCK + 1 for query in range(blocks))
    return seen * BLOCK**2


def _of_kernel(kernel: scheduler.BaseSchedulerNode, vocab_size: int) -> Iterator[tuple[str, int]]:
    """Of a fused kernel, or of one that is neither a product nor attention."""
    if isinstance(kernel, scheduler.NopKernelSchedulerNode):
        return
    origins = {origin for node in kernel.get_nodes() for origin in getattr(node.node, "origins", ())}
    names = {getattr(origin.target, "_opname", "") for origin in origins}
    if isinstance(kernel, scheduler.ExternKernelSchedulerNode):
        own = getattr(getattr(kernel.node, "op_overload", None), "_opname", "")
        if own in PRODUCTS or "attention" in own or isinstance(kernel.node, ir.ExternKernelOut | ir.MultiOutput):
            return
        turns = None
    else:
        sizes: Any = kernel.group[1]  # of a kernel's loops; torch's annotation is that of another field
        turns = prod(int(size) for size in sizes)
    written = {dependency.name for dependency in kernel.read_writes.writes}
    kind = "elementwise"
    if "clone" in names and any(V.graph.get_dtype(name).itemsize == 1 for name in written):
        kind = "rounding"
    if turns is not None and turns > vocab_size * BLOCK and names & SLOW:  # of logits, not of one number a token
        yield "loss", turns
        return
    uses = Counter(dependency.name for dependency in (*kernel.read_writes.reads, *kernel.read_writes.writes))
    for name, size in kernel.get_read_write_buffer_accesses(include_reads=True, include_writes=True).items():
        if turns is not None:  # of a slice or a few elements Inductor counts the whole tensor
            size = min(size, turns * uses[name] * V.graph.get_dtype(name).itemsize)
        yield kind, size


def at_depth(depth: int, parts: dict[int, Work]) -> Work:
    """Linear through the counts of two depths, which differ by a period of windows and value embeddings."""
    (first, start), (second, end) = parts.items()
    return defaultdict(
        float, {kind: start[kind] + (end[kind] - start[kind]) * (depth - first) / (second - first) for kind in end}
    )
