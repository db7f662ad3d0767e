"""Which kernels compute attention, by what the device and the installation offer.

Kernels of forward and backward of one layer of `daily` (8 x 2048 tokens, 12 heads of 128, window 512, bf16) on an H200,
torch 2.11, in ms: cuDNN 0.64, FlexAttention 0.93, SDPA over the whole past 0.94, FlashAttention-2 0.99. A micro-batch
of 16 sequences and 24 layers takes 4.8 ms of 250 less with FlashAttention-3 than with cuDNN; of 8 sequences and four
layers: FlashAttention-3 32.5, cuDNN 32.6, FlexAttention 33.1, no windows 33.6, FlashAttention-2 34.9 (docs/gpu.md).
FlashAttention-2 is therefore not in the table: on 9.0 it is slower than no window, and on 8.x nobody has measured it
against FlexAttention.
"""

import logging
from collections.abc import Callable, Iterable
from enum import StrEnum
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from model.kernels import cudnn_attention, flash_attention
from model.network.attention import Attention, windowed_attention
from model.network.attention_variants import attention_layers
from model.network.config import Window
from model.network.document_mask import Windowed
from model.network.gpt import GPT


class WindowKernel(StrEnum):
    """Implementations of causal attention in which a query sees a part of the past only."""

    CUDNN = "cudnn"
    """cuDNN's own window, through the package nvidia-cudnn-frontend."""
    FA3 = "fa3"
    """FlashAttention-3, through the package flash_attn_interface."""
    FLEX = "flex"
    """FlexAttention, which skips blocks of scores that no query sees."""
    SDPA = "sdpa"
    """scaled_dot_product_attention over stretches of the sequence, on every device."""


class PastKernel(StrEnum):
    """What runs for the whole past: FlashAttention-3, or what torch chooses in scaled_dot_product_attention."""

    FA3 = "fa3"
    CUDNN = "cudnn"
    FLASH = "flash"
    """FlashAttention-2; torch's own flash kernel on a CPU."""
    EFFICIENT = "efficient"
    """The memory-efficient kernel, also with a mask."""


class AttentionKernels(NamedTuple):
    """Of one training."""

    windows: WindowKernel
    past: PastKernel
    documents: WindowKernel


SMALLEST_HEAD = 16  # that FlexAttention has kernels for


def attention_kernels(
    capability: tuple[int, int] | None, *, half: bool, head_size: int, works: Callable[[WindowKernel], bool]
) -> AttentionKernels:
    """The fastest that work; none of windows is slower than the whole past at the shapes of the presets.

    `capability`: compute capability of the CUDA device, None on a CPU; `half`: whether products are in bf16 or fp16;
    `works`: whether a kernel is installed and computes correctly, asked of no more kernels than needed. cuDNN and
    FlashAttention-3 are for 9.0, where they were measured. FlexAttention needs a GPU with bf16: a T4 (7.5) stays with
    SDPA, in its memory-efficient kernel.
    """
    if capability is None:
        return AttentionKernels(WindowKernel.SDPA, PastKernel.FLASH, WindowKernel.SDPA)
    windows, documents = [], []
    if capability == (9, 0) and half and head_size % 8 == 0 and head_size <= 128:
        windows += [WindowKernel.FA3, WindowKernel.CUDNN]
    if capability >= (8, 0) and head_size >= SMALLEST_HEAD:
        windows.append(WindowKernel.FLEX)
        documents.append(WindowKernel.FLEX)
    past = PastKernel.EFFICIENT
    if capability >= (8, 0) and half and head_size % 8 == 0 and head_size <= 256:
        past = PastKernel.CUDNN if capability in ((9, 0), (10, 0)) and head_size <= 128 else PastKernel.FLASH
    chosen = next(filter(works, windows), WindowKernel.SDPA)
    past = PastKernel.FA3 if chosen is WindowKernel.FA3 else past
    return AttentionKernels(chosen, past, next(filter(works, documents), WindowKernel.SDPA))


def use_attention_kernels(network: GPT, device: torch.device, dtype: torch.dtype, compiled: bool) -> AttentionKernels:
    """Choose the kernels of all layers for training on `device`, with products in `dtype`."""
    works = {
        WindowKernel.CUDNN: lambda: cudnn_attention.available(device),
        WindowKernel.FA3: lambda: flash_attention.available(device),
        WindowKernel.FLEX: lambda: compiled or _flex_works(device),
    }
    capability = torch.cuda.get_device_capability(device) if device.type == "cuda" else None
    kernels = attention_kernels(
        capability,
        half=dtype in (torch.bfloat16, torch.float16),
        head_size=network.config.head_size,
        works=lambda kernel: works[kernel](),
    )
    set_attention_kernels(network, kernels.windows, kernels.documents, device)
    return kernels


def set_attention_kernels(network: GPT, windows: WindowKernel, documents: WindowKernel, device: torch.device) -> None:
    """Have all layers use these kernels. Full rows only, which training and validation read: a sample grows token by
    token, and the kernels of a GPU would be prepared for each length."""
    config = network.config
    length = config.sequence_length
    layers = attention_layers(config)
    spans = {layer.span(config, length) for layer in layers if layer.window is not Window.LONG}
    windowed: Windowed = windowed_attention
    if windows is WindowKernel.CUDNN:
        windowed = _of_full_rows(cudnn_attention.windowed_attention, length)
    elif windows is WindowKernel.FA3:
        windowed = _of_full_rows(flash_attention.windowed_attention, length)
    elif windows is WindowKernel.FLEX and spans:
        windowed = _of_full_rows(_flex(length, spans, device), length)
    for attention in (module for module in network.modules() if isinstance(module, Attention)):
        # FlashAttention-3 is faster for the whole past as well
        every = windows is WindowKernel.FA3 or attention.window is not Window.LONG
        attention.attend = windowed if every else windowed_attention
    spans = {layer.span(config, length) for layer in layers}
    network.document_kernel = _flex_within_documents(spans) if documents is WindowKernel.FLEX else None


def _of_full_rows(kernel: Windowed, length: int) -> Windowed:
    def windowed(q_BHTK: Tensor, k_BHTK: Tensor, v_BHTK: Tensor, window: int) -> Tensor:
        attend = kernel if q_BHTK.size(2) == length else windowed_attention
        return attend(q_BHTK, k_BHTK, v_BHTK, window)

    return windowed


_compiled = cache(torch.compile)  # on first use: importing the compiler takes seconds


def _fused(function: Callable) -> Callable:
    """The function compiled, also where the network around it is not."""
    return function if torch.compiler.is_compiling() else _compiled(function)


def _flex(length: int, windows: Iterable[int], device: torch.device) -> Windowed:
    """Attention of rows of this length for layers with these windows."""

    def mask(window: int) -> BlockMask:
        def seen(row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
            return (key <= query) & (query - key < window)

        return create_block_mask(seen, None, None, length, length, device=device)

    blocks = {window: mask(window) for window in windows}
    return lambda q_BHTK, k_BHTK, v_BHTK, window: _fused(flex_attention)(
        q_BHTK, k_BHTK, v_BHTK, block_mask=blocks[window]
    )


def _flex_within_documents(windows: Iterable[int]) -> Callable[[Tensor], Windowed]:
    """Makes of number_BT (`Documents`) the attention within documents for layers with these windows."""

    def kernel(number_BT: Tensor) -> Windowed:
        blocks = {window: block_mask(number_BT, window, _fused(create_block_mask)) for window in windows}
        return lambda q_BHTK, k_BHTK, v_BHTK, window: _fused(flex_attention)(
            q_BHTK, k_BHTK, v_BHTK, block_mask=blocks[window]
        )

    return kernel


def block_mask(number_BT: Tensor, window: int, create: Callable = create_block_mask) -> BlockMask:
    """What `attention_in_stretches` masks, for FlexAttention."""

    def seen(row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        near = (key <= query) & (query - key < window)
        return near & (number_BT[row, query] == number_BT[row, key])

    B, T = number_BT.shape
    return create(seen, B, None, T, T, device=number_BT.device)


@cache
def _flex_works(device: torch.device) -> bool:
    """Whether FlexAttention compiles and computes correctly outside a compiled network: a compiler may be missing."""
    try:
        attend = _flex(cudnn_attention.EXAMPLE_LENGTH, [cudnn_attention.EXAMPLE_WINDOW], device)
        cudnn_attention.check_against_formulas(attend, device)
    except Exception as error:
        logging.getLogger(__name__).warning("FlexAttention is not used on %s: %s", device, error)
        return False
    return True
