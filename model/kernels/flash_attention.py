"""Causal sliding-window attention by FlashAttention-3, forward and backward.

Optional: it needs the package flash_attn_interface, which is built from github.com/Dao-AILab/flash-attention (folder
`hopper`; no package index has it), and a CUDA device of compute capability 9.0. torch's operators for one length call
it: those for sequences of different lengths take 0.12 ms more a layer of `daily` on an H200.

Shape suffixes: B batch, H heads, T tokens, K head size.
"""

import functools
import importlib
import logging
from typing import Any

import torch
from torch import Tensor

from model.kernels import cudnn_attention

PACKAGE = "flash_attn_interface"


def available(device: torch.device) -> bool:
    """Whether `windowed_attention` runs on `device` by FlashAttention-3; it then replaces torch's FlashAttention-2.

    Never raises. The first call for a device computes a small example and compares it with the formulas (seconds); a
    reason other than a missing package or device is logged.
    """
    return (
        device.type == "cuda"
        and torch.cuda.is_available()
        and torch.cuda.get_device_capability(device) == (9, 0)
        and _computes_correctly(device)
    )


@functools.cache
def _computes_correctly(device: torch.device) -> bool:
    try:
        importlib.import_module(PACKAGE)
    except ModuleNotFoundError:
        return False
    except Exception as error:  # built for another torch
        logging.getLogger(__name__).warning("FlashAttention-3 is not used: %s", error)
        return False
    try:
        torch.nn.attention.activate_flash_attention_impl("FA3")
        cudnn_attention.check_against_formulas(windowed_attention, device)
    except Exception as error:
        logging.getLogger(__name__).warning("FlashAttention-3 is not used on %s: %s", device, error)
        torch.nn.attention.restore_flash_attention_impl()
        return False
    return True


def windowed_attention(q_BHTK: Tensor, k_BHTK: Tensor, v_BHTK: Tensor, window: int) -> Tensor:
    """y_BHTK where a query sees itself and the window - 1 tokens before it; bf16 or fp16."""
    return _flash_forward(*(x.transpose(1, 2) for x in (q_BHTK, k_BHTK, v_BHTK)), window)[0].transpose(1, 2)


@torch.library.custom_op("daily_train::flash_attention_3", mutates_args=())
def _flash_forward(q_BTHK: Tensor, k_BTHK: Tensor, v_BTHK: Tensor, window: int) -> tuple[Tensor, Tensor]:
    arguments, sides = _seen(q_BTHK, window)
    q_BTHK, k_BTHK, v_BTHK = (x.contiguous() for x in (q_BTHK, k_BTHK, v_BTHK))
    y_BTHK, sums_BHT, *_ = torch.ops.aten._flash_attention_forward(
        q_BTHK, k_BTHK, v_BTHK, None, None, *arguments, return_debug_mask=False, **sides
    )
    return y_BTHK, sums_BHT


@torch.library.custom_op("daily_train::flash_attention_3_backward", mutates_args=())
def _flash_backward(
    dy_BTHK: Tensor, q_BTHK: Tensor, k_BTHK: Tensor, v_BTHK: Tensor, y_BTHK: Tensor, sums_BHT: Tensor, window: int
) -> tuple[Tensor, Tensor, Tensor]:
    arguments, sides = _seen(q_BTHK, window)
    dy_BTHK, q_BTHK, k_BTHK, v_BTHK = (x.contiguous() for x in (dy_BTHK, q_BTHK, k_BTHK, v_BTHK))
    empty = q_BTHK.new_empty(0)
    return tuple(
        torch.ops.aten._flash_attention_backward(
            dy_BTHK, q_BTHK, k_BTHK, v_BTHK, y_BTHK, sums_BHT, None, None, *arguments, empty, empty, **sides
        )
    )


def _seen(q_BTHK: Tensor, window: int) -> tuple[tuple[int, int, float, bool], dict[str, int]]:
    """Lengths, dropout, whether all of the past is seen, and how many tokens to either side, as aten takes them."""
    length = q_BTHK.size(1)
    whole = window >= length
    left = -1 if whole else window - 1
    return (length, length, 0.0, whole), {"window_size_left": left, "window_size_right": 0}


@_flash_forward.register_fake
def _(q_BTHK: Tensor, k_BTHK: Tensor, v_BTHK: Tensor, window: int) -> tuple[Tensor, Tensor]:
    B, T, H, _ = q_BTHK.shape
    return q_BTHK.new_empty(q_BTHK.shape), q_BTHK.new_empty((B, H, T), dtype=torch.float32)


@_flash_backward.register_fake
def _(
    dy_BTHK: Tensor, q_BTHK: Tensor, k_BTHK: Tensor, v_BTHK: Tensor, y_BTHK: Tensor, sums_BHT: Tensor, window: int
) -> tuple[Tensor, Tensor, Tensor]:
    return q_BTHK.new_empty(q_BTHK.shape), k_BTHK.new_empty(k_BTHK.shape), v_BTHK.new_empty(v_BTHK.shape)


def _flash_gradients(ctx: Any, dy_BTHK: Tensor, _: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
    return *_flash_backward(dy_BTHK, *ctx.saved_tensors, ctx.window), None


_flash_forward.register_autograd(_flash_gradients, setup_context=cudnn_attention.save_for_backward)
