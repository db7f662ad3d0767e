"""What benchmarks.gpu measures of single kernels: memory bandwidth, matrix products, and every way to attention.

Shape suffixes: B batch, T tokens, H heads, K head size.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

from benchmarks.gpu_measure import cuda, device, kernels, milliseconds
from benchmarks.scheduler import Bench
from model import cudnn_attention
from model.attention import windowed_attention


def ceilings(bench: Bench) -> None:
    """Versions, memory bandwidth, and the rate of large matrix products."""
    rows, inner, outer = (32768, 1536, 6144) if cuda() else (64, 64, 64)
    x = torch.randn(rows, inner, device=device(), dtype=torch.bfloat16)
    weight = torch.randn(outer, inner, device=device(), dtype=torch.bfloat16)
    gradient = torch.randn(rows, outer, device=device(), dtype=torch.bfloat16)
    x8, weight8 = x.to(torch.float8_e4m3fn), weight.to(torch.float8_e4m3fn)
    gradient8 = gradient.to(torch.float8_e5m2)
    one = torch.ones((), device=device())
    flops = 2 * rows * inner * outer

    def fp8(a: Tensor, b: Tensor, fast: bool) -> Tensor:
        return torch._scaled_mm(a, b, scale_a=one, scale_b=one, out_dtype=torch.bfloat16, use_fast_accum=fast)

    products = {
        "bf16 forward": lambda: x @ weight.T,
        "bf16 gradient of the weight": lambda: gradient.T @ x,
        "fp8 forward": lambda: fp8(x8, weight8.T, True),
        "fp8 gradient of the input": lambda: fp8(gradient8, weight8.T.contiguous().T, False),
        "fp8 gradient of the input, fast": lambda: fp8(gradient8, weight8.T.contiguous().T, True),
        "fp8 gradient of the weight": lambda: fp8(gradient8.T.contiguous(), x8.T.contiguous().T, False),
        "fp8 gradient of the weight, without the copies": None,
    }
    left, right = gradient8.T.contiguous(), x8.T.contiguous().T
    products["fp8 gradient of the weight, without the copies"] = lambda: fp8(left, right, False)
    large = torch.empty(2**30 if cuda() else 2**20, dtype=torch.uint8, device=device())
    target = torch.empty_like(large)
    with bench.alone():
        took = milliseconds(lambda: target.copy_(large))
        bench.say("copy", gigabytes_per_second=round(2 * large.numel() / took / 1e6))
        for name, product in products.items():
            try:
                bench.say("product", kind=name, shape=[rows, inner, outer],
                          tflops=round(flops / milliseconds(product) / 1e9, 3))
            except RuntimeError as error:
                bench.say("product", kind=name, error=str(error)[:200])


Attention = Callable[[Tensor, Tensor, Tensor], Tensor]


def attention_paths(q_BHTK: Tensor, window: int) -> dict[str, Attention]:
    """Ways to compute windowed attention for q, k, v of this shape."""
    B, H, T, K = q_BHTK.shape
    starts = torch.arange(0, (B + 1) * T, T, dtype=torch.int32, device=q_BHTK.device)
    compiled = torch.compile if cuda() else (lambda function: function)
    mask = create_block_mask(lambda b, h, i, j: (i >= j) & (i - j < window), None, None, T, T, device=device().type)
    flex = compiled(flex_attention)

    def variable_length(window_size: tuple[int, int]) -> Attention:
        from torch.nn.attention.varlen import varlen_attn  # noqa: PLC0415 (needs CUDA, absent in older versions)

        def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            flat = (x.transpose(1, 2).reshape(B * T, H, K) for x in (q, k, v))
            return varlen_attn(*flat, starts, starts, T, T, window_size=window_size).view(B, T, H, K).transpose(1, 2)

        return attend

    return {
        "ours, windowed": lambda q, k, v: windowed_attention(q, k, v, window),
        "ours, windowed, compiled": compiled(lambda q, k, v: windowed_attention(q, k, v, window)),
        "SDPA, full causal": lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True),
        "cuDNN, window": lambda q, k, v: cudnn_attention.windowed_attention(q, k, v, window),
        "FlexAttention, window": lambda q, k, v: flex(q, k, v, block_mask=mask),
        "variable length, window": lambda *qkv: variable_length((window - 1, 0))(*qkv),
        "variable length, full causal": lambda *qkv: variable_length((-1, 0))(*qkv),
    }


def attention(bench: Bench) -> None:
    """Each path at the shape of `daily`: forward, forward and backward, kernels, and whether the results agree."""
    B, H, T, K, window = (8, 12, 2048, 128, 512) if cuda() else (1, 2, 64, 16, 16)
    q, k, v = (torch.randn(B, T, H, K, device=device(), dtype=torch.bfloat16).transpose(1, 2).requires_grad_()
               for _ in range(3))
    reference = {True: windowed_attention(q, k, v, window).detach().float(),
                 False: F.scaled_dot_product_attention(q, k, v, is_causal=True).detach().float()}
    for name, attend in attention_paths(q, window).items():
        measure_attention(bench, name, attend, (q, k, v), reference["full" not in name])


def measure_attention(bench: Bench, name: str, attend: Attention, qkv: tuple[Tensor, Tensor, Tensor],
                      expected: Tensor) -> None:
    try:
        gradient = torch.randn_like(attend(*qkv))
        attend(*qkv).backward(gradient)
        with bench.alone():
            forward = milliseconds(lambda: attend(*qkv))
            both = milliseconds(lambda: attend(*qkv).backward(gradient))
            rows = kernels(lambda: attend(*qkv).backward(gradient))
        y = attend(*qkv).detach().float()
        bench.say("attention", path=name, forward_ms=round(forward, 3), both_ms=round(both, 3),
                  kernels_ms=round(sum(row[1] for row in rows), 3), kernels=[row[0][:70] for row in rows[:4]],
                  relative_difference=round(float((y - expected).norm() / expected.norm()), 6))
    except Exception as error:  # a path that this version or device lacks
        bench.say("attention", path=name, error=f"{type(error).__name__}: {error}"[:200])
