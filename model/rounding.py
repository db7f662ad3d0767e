"""ReLU² and its gradient, rounded to fp8 and written as they are and transposed, in one pass over memory.

On CUDA by a Triton kernel (model.rounding_kernels), elsewhere by the formulas. Compiled networks call it as one
operator.

Shape suffixes: P tokens, M hidden size.
"""

import functools
import importlib
import logging

import torch
from torch import Tensor

EXAMPLE = (80, 112)  # no multiples of the kernel's blocks


@torch.library.custom_op("daily_train::relu_squared_in_fp8", mutates_args=())
def relu_squared(h_PM: Tensor, dy_PM: Tensor | None, scale: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """relu(h)² / scale, or with `dy_PM` its gradient 2 relu(h) dy / scale, in an fp8 `dtype`: (P, M) and (M, P).

    Larger numbers than the type has become its largest. `h_PM` and `dy_PM` are contiguous.
    """
    if h_PM.device.type == "cuda" and _kernel_works(h_PM.device):
        return importlib.import_module("model.rounding_kernels").relu_squared(h_PM, dy_PM, scale, dtype)
    return _formulas(h_PM, dy_PM, scale, dtype)


@relu_squared.register_fake
def _(h_PM: Tensor, dy_PM: Tensor | None, scale: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    return h_PM.new_empty(h_PM.shape, dtype=dtype), h_PM.new_empty(h_PM.mT.shape, dtype=dtype)


def _formulas(h_PM: Tensor, dy_PM: Tensor | None, scale: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    largest, relu_PM = torch.finfo(dtype).max, h_PM.float().relu()
    y_PM = relu_PM * relu_PM if dy_PM is None else 2 * relu_PM * dy_PM.float()
    y8_PM = (y_PM * (1 / scale)).clamp(-largest, largest).to(dtype)
    return y8_PM, y8_PM.mT.contiguous()


@functools.cache
def _kernel_works(device: torch.device) -> bool:
    """Whether the kernel runs on `device` and computes a small example as the formulas do. Never raises."""
    try:
        kernels = importlib.import_module("model.rounding_kernels")
        values = torch.randn(2, *EXAMPLE, generator=torch.Generator().manual_seed(0)).to(device, torch.bfloat16)
        h_PM, dy_PM = values
        scale = torch.full((), 0.01, device=device)
        for dy, dtype in ((None, torch.float8_e4m3fn), (dy_PM, torch.float8_e5m2)):
            expected = _formulas(h_PM, dy, scale, dtype)[0].float()
            for result in (out.float() for out in kernels.relu_squared(h_PM, dy, scale, dtype)):
                error = float(((result if result.shape == expected.shape else result.mT) - expected).norm())
                if not error < 0.01 * float(expected.norm()):
                    raise RuntimeError(f"its result in {dtype} is off by {error} of {float(expected.norm())}")
    except ModuleNotFoundError:
        return False
    except Exception as error:
        logging.getLogger(__name__).warning("the fp8 rounding kernel is not used on %s: %s", device, error)
        return False
    return True
