"""What `eval/scoring/precision.py` names, set up in torch. Needs torch alone."""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain

import torch
from torch import nn

from eval.scoring.precision import Precision

DTYPES = {Precision.FP32: torch.float32, Precision.TF32: torch.float32, Precision.BF16: torch.bfloat16}
"""Of weights and activations."""


def set_matmul_precision(precision: Precision) -> None:
    """Set how this process multiplies matrices of fp32; on a CPU both ways are the same."""
    torch.set_float32_matmul_precision("high" if precision is Precision.TF32 else "highest")


def computed_in(precision: Precision, device: torch.device) -> Precision:
    """What `device` computes when it is asked for `precision`: fp32 where it has no TF32.

    A run may be scored on another machine than it was trained on, hours after it began: a missing TF32 is recorded
    and does not end it, because fp32 is what TF32 approximates.
    """
    if precision is not Precision.TF32:
        return precision
    has_tf32 = device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)
    return Precision.TF32 if has_tf32 else Precision.FP32


def round_weights(model: nn.Module, precision: Precision) -> None:
    """Cast in place what a file of weights holds, as `transformers` does when it loads the export of the same model.

    Not autocast: that rounds in other places, so its scores are further from those of `hf` with the same dtype than
    fp32 is (docs/evaluation.md), and without gradients it casts every weight again in each forward pass.
    Computed buffers keep their type: in bf16 the angles of rotary positions would lose the position after 256 tokens.
    """
    for tensor in model.state_dict(keep_vars=True).values():
        tensor.data = tensor.data.to(DTYPES[precision])


@contextmanager
def in_fp32(model: nn.Module) -> Iterator[None]:
    """The model multiplies the same weights in fp32, without TF32; afterwards it is what it was, bit for bit.

    Two ways of running a model that agree in fp32 differ in a lower precision by rounding alone.
    """
    before, kept = torch.get_float32_matmul_precision(), []
    torch.set_float32_matmul_precision("highest")
    try:
        for tensor in chain(model.parameters(), model.buffers()):
            if tensor.is_floating_point() and tensor.dtype is not torch.float32:
                kept.append((tensor, tensor.dtype))
                tensor.data = tensor.data.float()
        yield
    finally:
        for tensor, dtype in kept:
            tensor.data = tensor.data.to(dtype)
        torch.set_float32_matmul_precision(before)
