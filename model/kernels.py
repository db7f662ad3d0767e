"""Which kernel computes attention within a window, by what the device and the installation offer.

Kernels of forward and backward of one layer of `daily` (8 x 2048 tokens, 12 heads of 128, window 512, bf16) on an H200,
torch 2.11, in ms: cuDNN 0.64, FlexAttention 0.93, SDPA over the whole past 0.94, FlashAttention-2 0.99, SDPA over
stretches with a mask 1.77 (docs/gpu.md).
"""

from collections.abc import Callable
from enum import StrEnum

import torch
from torch import Tensor, nn
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

from model import cudnn_attention
from model.attention import Attention, windowed_attention
from model.config import GPTConfig, Window


class WindowKernel(StrEnum):
    """Implementations of causal attention in which a query sees its window only."""

    CUDNN = "cudnn"
    """cuDNN's own window, through the package nvidia-cudnn-frontend."""
    FLEX = "flex"
    """FlexAttention, which skips blocks of scores that no query sees; only inside a compiled network."""
    SDPA = "sdpa"
    """scaled_dot_product_attention over stretches of the sequence, on every device."""


def window_kernel(capability: tuple[int, int] | None, *, cudnn: bool, compiled: bool, half: bool,
                  head_size: int) -> WindowKernel:
    """The fastest one that works.

    `capability`: compute capability of the CUDA device, None on a CPU; `cudnn`: whether cuDNN's window can be used;
    `half`: whether products are in bf16 or fp16. FlexAttention needs heads of at least 16, and a GPU with bf16:
    a T4 (7.5) stays with SDPA.
    """
    if capability is None:
        return WindowKernel.SDPA
    if cudnn and half and capability >= (9, 0) and head_size % 8 == 0 and head_size <= 128:
        return WindowKernel.CUDNN
    if compiled and capability >= (8, 0) and head_size >= 16:
        return WindowKernel.FLEX
    return WindowKernel.SDPA


def use_window_kernel(network: nn.Module, device: torch.device, dtype: torch.dtype, compiled: bool) -> WindowKernel:
    """Choose the kernel of all layers with a window for training on `device`, with products in `dtype`."""
    config: GPTConfig = network.config
    capability = torch.cuda.get_device_capability(device) if device.type == "cuda" else None
    kernel = window_kernel(capability, cudnn=cudnn_attention.available(device), compiled=compiled,
                           half=dtype in (torch.bfloat16, torch.float16), head_size=config.head_size)
    set_window_kernel(network, kernel, device)
    return kernel


def set_window_kernel(network: nn.Module, kernel: WindowKernel, device: torch.device) -> None:
    """Have all layers with a window use `kernel`. Full rows only, which training and validation read: a sample grows
    token by token, and cuDNN and FlexAttention would prepare a kernel for each length."""
    config: GPTConfig = network.config
    windowed = windowed_attention
    if kernel is WindowKernel.CUDNN:
        windowed = _of_full_rows(cudnn_attention.windowed_attention, config.sequence_length, lambda: True)
    elif kernel is WindowKernel.FLEX and set(config.windows) != {Window.LONG}:
        attend = _flex(config.sequence_length, config.short_window_tokens, device)
        windowed = _of_full_rows(attend, config.sequence_length, torch.compiler.is_compiling)
    for attention in (module for module in network.modules() if isinstance(module, Attention)):
        attention.windowed = windowed


Windowed = Callable[[Tensor, Tensor, Tensor, int], Tensor]


def _of_full_rows(kernel: Windowed, length: int, usable: Callable[[], bool]) -> Windowed:
    def windowed(q_BHTK: Tensor, k_BHTK: Tensor, v_BHTK: Tensor, window: int) -> Tensor:
        attend = kernel if q_BHTK.size(2) == length and usable() else windowed_attention
        return attend(q_BHTK, k_BHTK, v_BHTK, window)

    return windowed


def _flex(length: int, window: int, device: torch.device) -> Windowed:
    blocks = create_block_mask(lambda row, head, query, key: (key <= query) & (query - key < window), None, None,
                               length, length, device=device)
    return lambda q_BHTK, k_BHTK, v_BHTK, _: flex_attention(q_BHTK, k_BHTK, v_BHTK, block_mask=blocks)
