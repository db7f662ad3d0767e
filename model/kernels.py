"""Which kernel computes attention within a window, by what the device and the installation offer.

Forward and backward of one layer of `daily` (8 x 2048 tokens, 12 heads of 128, window 512, bf16) on an H200, torch
2.11, in ms: cuDNN 0.53, FlexAttention 0.82, SDPA over the whole past 0.84, FlashAttention-2 1.4, SDPA over stretches
with a mask 1.8; FlashAttention-3 0.5 (docs/gpu.md).
"""

from enum import StrEnum


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
