"""Causal sliding-window attention by FlashAttention-3, forward and backward.

Optional: it needs the package flash_attn_interface, which is built from github.com/Dao-AILab/flash-attention (folder
`hopper`; no package index has it), and a CUDA device of compute capability 9.0. torch's operator for sequences of
different lengths calls it, with a fake implementation and gradients of its own.

Shape suffixes: B batch, H heads, T tokens, K head size, N = B T.
"""

import functools
import importlib
import logging

import torch
from torch import Tensor

from model import cudnn_attention

PACKAGE = "flash_attn_interface"


def available(device: torch.device) -> bool:
    """Whether `windowed_attention` runs on `device` by FlashAttention-3; it then replaces torch's FlashAttention-2.

    Never raises. The first call for a device computes a small example and compares it with the formulas (seconds); a
    reason other than a missing package or device is logged.
    """
    return (device.type == "cuda" and torch.cuda.is_available()
            and torch.cuda.get_device_capability(device) == (9, 0) and _computes_correctly(device))


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
    from torch.nn.attention.varlen import varlen_attn  # noqa: PLC0415 (imports the compiler, which takes seconds)

    B, H, T, K = q_BHTK.shape
    starts = torch.arange(0, (B + 1) * T, T, dtype=torch.int32, device=q_BHTK.device)
    q_NHK, k_NHK, v_NHK = (x.transpose(1, 2).reshape(B * T, H, K) for x in (q_BHTK, k_BHTK, v_BHTK))
    y_NHK = varlen_attn(q_NHK, k_NHK, v_NHK, starts, starts, T, T, window_size=(window - 1, 0))
    return y_NHK.view(B, T, H, K).transpose(1, 2)
