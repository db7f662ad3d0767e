"""Causal sliding-window attention by cuDNN, forward and backward.

Optional: it needs the package nvidia-cudnn-frontend (`import cudnn`; tested with 1.32) and a CUDA device that
`available` accepts. cuDNN skips the blocks outside the window, in the forward and in the backward pass. On the CPU
the same operators compute the formulas in fp32, so results and traces can be tested without a GPU.

cuDNN builds a plan for every new shape, which takes about a second: meant for training, where shapes repeat.

Shape suffixes: B batch, H query heads, J key and value heads, T tokens, K head size, S = 1.
"""

import functools
import importlib
import logging
import os
import threading
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

NAMES = ("q", "k", "v", "o", "stats", "dO", "dQ", "dK", "dV")  # in the graphs, where the position + 1 is the uid
OUTPUTS = {False: ("o", "stats"), True: ("dQ", "dK", "dV")}  # of the forward and of the backward pass
ALIGNED = 8  # elements: 16 bytes, the width of the widest load

_lock = threading.RLock()  # a handle serves one thread at a time; autograd has a thread for each device
_handles: dict[int, Any] = {}
_plans: dict["Problem", tuple[Any, int]] = {}


class Problem(NamedTuple):
    """What a plan is built for. `layouts` has name, shape and strides of every tensor in (B, H, T, K) order."""

    layouts: tuple[tuple[str, tuple[int, ...], tuple[int, ...]], ...]
    window: int
    dtype: torch.dtype
    device_index: int
    backward: bool
    deterministic: bool


@functools.cache
def library() -> Any:
    """The module `cudnn` of nvidia-cudnn-frontend, which uses the cuDNN and the CUDA runtime that torch has loaded."""
    major = (torch.version.cuda or "").split(".")[0]
    if major:  # it would prefer another major version of the runtime where the machine has one
        os.environ.setdefault("CUDNN_FRONTEND_CUDART_LIB_NAME", f"libcudart.so.{major}")
    return importlib.import_module("cudnn")


def available(device: torch.device) -> bool:
    """Whether `windowed_attention` runs on `device` by cuDNN: package, device and cuDNN version suffice.

    Never raises. Call it outside compiled functions. The first call for a device computes a small example and
    compares it with the formulas (seconds); a reason other than a missing package or device is logged.
    """
    return device.type == "cuda" and torch.cuda.is_available() and _computes_correctly(device)


@functools.cache
def _computes_correctly(device: torch.device) -> bool:
    try:
        library()
    except ModuleNotFoundError:
        return False
    except Exception as error:  # the package is installed and does not load, for instance without a cuDNN library
        logging.getLogger(__name__).warning("cuDNN attention is not used: %s", error)
        return False
    try:
        if torch.cuda.get_device_capability(device) < (8, 0):
            return False
        with torch.no_grad():
            values = torch.arange(4 * 2 * 128 * 64, device=device).sin().to(torch.bfloat16)
            q_BHTK, k_BHTK, v_BHTK, dy_BHTK = values.view(4, 1, 128, 2, 64).transpose(2, 3)
            y_BHTK, stats_BHTS = _forward_cuda(q_BHTK, k_BHTK, v_BHTK, 32)
            expected_y, expected_stats = _forward_formulas(q_BHTK, k_BHTK, v_BHTK, 32)
            saved = (q_BHTK, k_BHTK, v_BHTK, expected_y, expected_stats, 32)
            pairs = [
                (y_BHTK, expected_y),
                (stats_BHTS, expected_stats),
                *zip(_backward_cuda(dy_BHTK, *saved), _backward_formulas(dy_BHTK, *saved)),
            ]
            errors = [float((a.float() - b.float()).norm() / b.float().norm()) for a, b in pairs]
        if not max(errors) < 0.02:
            raise RuntimeError(f"relative errors of output, statistics and gradients are {errors}, expected below 0.02")
    except Exception as error:
        logging.getLogger(__name__).warning("cuDNN attention is not used on %s: %s", device, error)
        return False
    return True


def windowed_attention(q_BHTK: Tensor, k_BJTK: Tensor, v_BJTK: Tensor, window: int | None) -> Tensor:
    """y_BHTK where a query sees itself and the window - 1 tokens before it; None or window >= T: all before it.

    Takes views of any strides, bf16 or fp16 on CUDA; H is a multiple of J. The output and the gradients are
    (B, T, H, K) in memory, so that `y_BHTK.transpose(1, 2).reshape(B, T, D)` copies nothing. The gradients have the
    same bits every time where `torch.use_deterministic_algorithms` is on.

    Raises ValueError for shapes or a window that do not fit, TypeError for another type, and RuntimeError where cuDNN
    refuses the problem.
    """
    (B, H, T, K), (_, J, _, _) = q_BHTK.shape, k_BJTK.shape
    if k_BJTK.shape != v_BJTK.shape or k_BJTK.shape != (B, J, T, K) or H % J:
        raise ValueError(
            f"windowed_attention: q {tuple(q_BHTK.shape)}, k {tuple(k_BJTK.shape)} and v "
            f"{tuple(v_BJTK.shape)} do not fit (expected (B, H, T, K) and twice (B, J, T, K) with H a "
            "multiple of J)"
        )
    if window is not None and window < 1:
        raise ValueError(f"windowed_attention: the window is {window} (expected at least 1, or None)")
    return _forward(q_BHTK, k_BJTK, v_BJTK, T if window is None else min(window, T))[0]


def _allocate(x_BHTK: Tensor) -> Tensor:
    """Uninitialised, of the same shape, with the memory of a (B, T, H, K) tensor."""
    B, H, T, K = x_BHTK.shape
    return x_BHTK.new_empty((B, T, H, K)).transpose(1, 2)


# The operators. `window` is at most T, and T means no window.


@torch.library.custom_op("daily_train::windowed_attention", mutates_args=(), device_types="cpu")
def _forward(q_BHTK: Tensor, k_BJTK: Tensor, v_BJTK: Tensor, window: int) -> tuple[Tensor, Tensor]:
    return _forward_formulas(q_BHTK, k_BJTK, v_BJTK, window)


@torch.library.custom_op("daily_train::windowed_attention_backward", mutates_args=(), device_types="cpu")
def _backward(
    dy_BHTK: Tensor, q_BHTK: Tensor, k_BJTK: Tensor, v_BJTK: Tensor, y_BHTK: Tensor, stats_BHTS: Tensor, window: int
) -> tuple[Tensor, Tensor, Tensor]:
    return _backward_formulas(dy_BHTK, q_BHTK, k_BJTK, v_BJTK, y_BHTK, stats_BHTS, window)


@_forward.register_fake
def _(q_BHTK: Tensor, k_BJTK: Tensor, v_BJTK: Tensor, window: int) -> tuple[Tensor, Tensor]:
    return _allocate(q_BHTK), q_BHTK.new_empty((*q_BHTK.shape[:3], 1), dtype=torch.float32)


@_backward.register_fake
def _(
    dy_BHTK: Tensor, q_BHTK: Tensor, k_BJTK: Tensor, v_BJTK: Tensor, y_BHTK: Tensor, stats_BHTS: Tensor, window: int
) -> tuple[Tensor, Tensor, Tensor]:
    return _allocate(q_BHTK), _allocate(k_BJTK), _allocate(v_BJTK)


def save_for_backward(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
    """Of an operator that takes tensors and a window, and gives an output and its statistics."""
    *tensors, ctx.window = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(*tensors, *output)


def _gradients(ctx: Any, dy_BHTK: Tensor, _: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
    return *_backward(dy_BHTK, *ctx.saved_tensors, ctx.window), None


_forward.register_autograd(_gradients, setup_context=save_for_backward)


# On CUDA


@_forward.register_kernel("cuda")
def _forward_cuda(q_BHTK: Tensor, k_BJTK: Tensor, v_BJTK: Tensor, window: int) -> tuple[Tensor, Tensor]:
    if q_BHTK.size(2) == 1:  # cuDNN has no plan for one query and one key
        return _forward_formulas(q_BHTK, k_BJTK, v_BJTK, window)
    y_BHTK = _allocate(q_BHTK)
    stats_BHTS = q_BHTK.new_empty((*q_BHTK.shape[:3], 1), dtype=torch.float32)
    _execute((q_BHTK, k_BJTK, v_BJTK), (y_BHTK, stats_BHTS), window, backward=False)
    return y_BHTK, stats_BHTS


@_backward.register_kernel("cuda")
def _backward_cuda(
    dy_BHTK: Tensor, q_BHTK: Tensor, k_BJTK: Tensor, v_BJTK: Tensor, y_BHTK: Tensor, stats_BHTS: Tensor, window: int
) -> tuple[Tensor, Tensor, Tensor]:
    if q_BHTK.size(2) == 1:
        return _backward_formulas(dy_BHTK, q_BHTK, k_BJTK, v_BJTK, y_BHTK, stats_BHTS, window)
    gradients = _allocate(q_BHTK), _allocate(k_BJTK), _allocate(v_BJTK)
    _execute((q_BHTK, k_BJTK, v_BJTK, y_BHTK, stats_BHTS.contiguous(), dy_BHTK), gradients, window, backward=True)
    return gradients


def _readable(x: Tensor) -> Tensor:
    """`x` itself where cuDNN reads it in place, otherwise a contiguous copy."""
    aligned = x.data_ptr() % (ALIGNED * x.element_size()) == 0
    if x.stride(-1) == 1 and aligned and all(stride > 0 and stride % ALIGNED == 0 for stride in x.stride()[:-1]):
        return x
    return x.clone(memory_format=torch.contiguous_format)


def _execute(inputs: tuple[Tensor, ...], outputs: tuple[Tensor, ...], window: int, backward: bool) -> None:
    q_BHTK, device = inputs[0], inputs[0].device
    tensors = dict(zip((*NAMES[: len(inputs)], *OUTPUTS[backward]), (*inputs, *outputs)))
    types = {x.dtype for name, x in tensors.items() if name != "stats"}
    if len(types) != 1 or q_BHTK.dtype not in (torch.bfloat16, torch.float16):
        raise TypeError(
            f"windowed_attention: the types are {sorted(map(str, types))} (expected all torch.bfloat16 or "
            "all torch.float16)"
        )
    tensors = {name: x if name == "stats" else _readable(x) for name, x in tensors.items()}
    problem = Problem(
        layouts=tuple((name, tuple(x.shape), x.stride()) for name, x in tensors.items()),
        window=window,
        dtype=q_BHTK.dtype,
        device_index=device.index,
        backward=backward,
        deterministic=backward and torch.are_deterministic_algorithms_enabled(),
    )
    with _lock, torch.cuda.device(device):
        if device.index not in _handles:
            _handles[device.index] = library().create_handle()
        handle = _handles[device.index]
        library().set_stream(handle=handle, stream=torch.cuda.current_stream(device).cuda_stream)
        if problem not in _plans:
            _plans[problem] = _build(problem, handle)
        graph, workspace_bytes = _plans[problem]
        workspace = torch.empty(max(1, workspace_bytes), dtype=torch.uint8, device=device)
        graph.execute({NAMES.index(name) + 1: x.detach() for name, x in tensors.items()}, workspace, handle=handle)


def _build(problem: Problem, handle: Any) -> tuple[Any, int]:
    """A graph ready to run, and the bytes of its workspace."""
    cudnn = library()
    kinds = {torch.bfloat16: cudnn.data_type.BFLOAT16, torch.float16: cudnn.data_type.HALF}
    layouts = {name: (list(shape), list(stride)) for name, shape, stride in problem.layouts}
    types = {name: cudnn.data_type.FLOAT if name == "stats" else kinds[problem.dtype] for name in NAMES}
    _, _, T, K = layouts["q"][0]
    options = dict(
        attn_scale=K**-0.5, diagonal_alignment=cudnn.diagonal_alignment.TOP_LEFT, diagonal_band_right_bound=0
    )
    if problem.window < T:
        options["diagonal_band_left_bound"] = problem.window  # a query sees the keys > query - left bound
    try:
        graph = cudnn.pygraph(
            io_data_type=kinds[problem.dtype],
            intermediate_data_type=cudnn.data_type.FLOAT,
            compute_data_type=cudnn.data_type.FLOAT,
            handle=handle,
        )
        inputs = {
            name: graph.tensor(name=name, dim=shape, stride=stride, data_type=types[name], uid=NAMES.index(name) + 1)
            for name, (shape, stride) in layouts.items()
            if name not in OUTPUTS[problem.backward]
        }
        if problem.backward:
            outputs = graph.sdpa_backward(**inputs, use_deterministic_algorithm=problem.deterministic, **options)
        else:
            outputs = graph.sdpa(**inputs, generate_stats=True, **options)
        for name, output in zip(OUTPUTS[problem.backward], outputs):
            shape, stride = layouts[name]
            output.set_output(True).set_uid(NAMES.index(name) + 1).set_dim(shape).set_stride(stride)
            output.set_data_type(types[name])
        graph.validate()
        graph.build_operation_graph()
        graph.create_execution_plans([cudnn.heur_mode.A, cudnn.heur_mode.FALLBACK])
        graph.deselect_engines(["sdpa_"])  # kernels of the package itself: not measured here
        graph.check_support()
        graph.build_plans()
        return graph, graph.get_workspace_size()
    except Exception as error:  # the package has a class of its own for a refusal in some steps, not in all
        sizes = {name: tuple(shape) for name, (shape, _) in layouts.items() if name in ("q", "k")}
        raise RuntimeError(
            f"windowed_attention: cuDNN {cudnn.backend_version()} refuses q {sizes['q']} and k {sizes['k']} of "
            f"{problem.dtype} with window {problem.window} in the {'backward' if problem.backward else 'forward'} pass "
            f"(use another attention for this shape): {' '.join(str(error).split())}"
        ) from error


# The formulas, in fp32


EXAMPLE_LENGTH, EXAMPLE_WINDOW = 256, 100


def check_against_formulas(attend: Callable[[Tensor, Tensor, Tensor, int], Tensor], device: torch.device) -> None:
    """Raises RuntimeError unless `attend` computes a small example in bf16 as the formulas do, forward and backward.

    The example is two rows of EXAMPLE_LENGTH tokens and two heads of 64, with the window EXAMPLE_WINDOW.
    """
    values = torch.randn(4, 2, EXAMPLE_LENGTH, 2, 64, generator=torch.Generator().manual_seed(0))
    q_BHTK, k_BHTK, v_BHTK, dy_BHTK = values.to(device, torch.bfloat16).transpose(2, 3)
    with torch.enable_grad():
        inputs = [x.detach().requires_grad_() for x in (q_BHTK, k_BHTK, v_BHTK)]
        y_BHTK = attend(inputs[0], inputs[1], inputs[2], EXAMPLE_WINDOW)
        gradients = torch.autograd.grad(y_BHTK, inputs, dy_BHTK)
    expected_y, stats_BHTS = _forward_formulas(q_BHTK, k_BHTK, v_BHTK, EXAMPLE_WINDOW)
    expected = _backward_formulas(dy_BHTK, q_BHTK, k_BHTK, v_BHTK, expected_y, stats_BHTS, EXAMPLE_WINDOW)
    errors = [
        float((a.detach().float() - b.float()).norm() / b.float().norm())
        for a, b in zip((y_BHTK, *gradients), (expected_y, *expected))
    ]
    if not max(errors) < 0.02:
        raise RuntimeError(f"relative errors of output and gradients are {errors}, expected below 0.02")


def _probabilities(q_BHTK: Tensor, k_BHTK: Tensor, window: int, stats_BHTS: Tensor | None) -> tuple[Tensor, Tensor]:
    """Of every key for every query, and the log of the sum of exponentiated scores, computed where not given."""
    position = torch.arange(q_BHTK.size(2), device=q_BHTK.device)
    distance_TT = position[:, None] - position[None, :]
    scores_BHTT = (q_BHTK @ k_BHTK.mT) * q_BHTK.size(-1) ** -0.5
    scores_BHTT = scores_BHTT.masked_fill((distance_TT < 0) | (distance_TT >= window), -torch.inf)
    if stats_BHTS is None:
        stats_BHTS = torch.logsumexp(scores_BHTT, dim=-1, keepdim=True)
    return (scores_BHTT - stats_BHTS).exp(), stats_BHTS


def _for_each_head(q_BHTK: Tensor, *groups: Tensor) -> tuple[Tensor, ...]:
    """All in fp32, keys and values repeated for the query heads that share them."""
    shared = q_BHTK.size(1) // groups[0].size(1)
    return q_BHTK.float(), *(x.float().repeat_interleave(shared, dim=1) for x in groups)


def _like(result: Tensor, x_BHTK: Tensor) -> Tensor:
    """`result` in the type and with the heads of `x_BHTK`: summed over the query heads that share a key head."""
    heads = x_BHTK.size(1)
    return _allocate(x_BHTK).copy_(result.unflatten(1, (heads, result.size(1) // heads)).sum(2))


def _forward_formulas(q_BHTK: Tensor, k_BJTK: Tensor, v_BJTK: Tensor, window: int) -> tuple[Tensor, Tensor]:
    q, k, v = _for_each_head(q_BHTK, k_BJTK, v_BJTK)
    p_BHTT, stats_BHTS = _probabilities(q, k, window, None)
    return _like(p_BHTT @ v, q_BHTK), stats_BHTS


def _backward_formulas(
    dy_BHTK: Tensor, q_BHTK: Tensor, k_BJTK: Tensor, v_BJTK: Tensor, y_BHTK: Tensor, stats_BHTS: Tensor, window: int
) -> tuple[Tensor, Tensor, Tensor]:
    q, k, v = _for_each_head(q_BHTK, k_BJTK, v_BJTK)
    dy, y = dy_BHTK.float(), y_BHTK.float()
    p_BHTT, _ = _probabilities(q, k, window, stats_BHTS)
    ds_BHTT = p_BHTT * (dy @ v.mT - (dy * y).sum(-1, keepdim=True)) * q.size(-1) ** -0.5
    return _like(ds_BHTT @ k, q_BHTK), _like(ds_BHTT.mT @ q, k_BJTK), _like(p_BHTT.mT @ dy, v_BJTK)
