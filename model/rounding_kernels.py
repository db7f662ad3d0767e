"""Triton kernels that round to fp8 and write the result twice: as it is, and transposed.

The hardware multiplies fp8 matrices only along contiguous numbers, so a product and the one of its gradient need both.
Inductor's own kernel for that reaches less than half of the memory's bandwidth. Imported on a GPU alone.

Shape suffixes: P tokens, M hidden size.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

CONFIGS = [triton.Config({"BLOCK_P": p, "BLOCK_M": m}, num_warps=warps)
           for p, m, warps in ((64, 64, 4), (128, 64, 4), (64, 128, 4), (128, 128, 8))]


def relu_squared(h_PM: Tensor, dy_PM: Tensor | None, scale: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """relu(h)² / scale, or with `dy_PM` its gradient 2 relu(h) dy / scale, in an fp8 `dtype`: (P, M) and (M, P)."""
    P, M = h_PM.shape
    out_PM = torch.empty(P, M, dtype=dtype, device=h_PM.device)
    out_MP = torch.empty(M, P, dtype=dtype, device=h_PM.device)

    def grid(sizes: dict[str, int]) -> tuple[int, int]:
        return triton.cdiv(P, sizes["BLOCK_P"]), triton.cdiv(M, sizes["BLOCK_M"])

    _relu_squared[grid](h_PM, h_PM if dy_PM is None else dy_PM, scale, out_PM, out_MP, P, M,
                        LARGEST=torch.finfo(dtype).max, GRADIENT=dy_PM is not None)
    return out_PM, out_MP


@triton.autotune(CONFIGS, key=["P", "M", "GRADIENT"])
@triton.jit
def _relu_squared(h_pointer, dy_pointer, scale_pointer, out_pointer, transposed_pointer, P, M,
                  LARGEST: tl.constexpr, GRADIENT: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_M: tl.constexpr):
    p = tl.program_id(0).to(tl.int64) * BLOCK_P + tl.arange(0, BLOCK_P)
    m = tl.program_id(1).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    place = p[:, None] * M + m[None, :]
    inside = (p < P)[:, None] & (m < M)[None, :]
    relu = tl.maximum(tl.load(h_pointer + place, mask=inside, other=0.0).to(tl.float32), 0.0)
    if GRADIENT:  # noqa: SIM108 (the load must not be traced)
        y = 2.0 * relu * tl.load(dy_pointer + place, mask=inside, other=0.0).to(tl.float32)
    else:
        y = relu * relu
    y = y * (1.0 / tl.load(scale_pointer))
    y8 = tl.minimum(tl.maximum(y, -LARGEST), LARGEST).to(out_pointer.dtype.element_ty)
    tl.store(out_pointer + place, y8, mask=inside)
    tl.store(transposed_pointer + m[:, None] * P + p[None, :], tl.trans(y8),
             mask=(m < M)[:, None] & (p < P)[None, :])
