"""What benchmarks.gpu measures of single kernels: memory bandwidth, matrix products, and every way to attention.

Shape suffixes: B batch, T tokens, H heads, K head size.
"""

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

from benchmarks.gpu.measure import cuda, device, kernels, milliseconds
from benchmarks.gpu.scheduler import Bench
from model.kernels import cudnn_attention, flash_attention
from model.kernels.attention_kernels import block_mask
from model.network.attention import windowed_attention
from model.network.document_mask import attention_in_stretches


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

    left, right = gradient8.T.contiguous(), x8.T.contiguous().T
    products: dict[str, Callable[[], Tensor]] = {
        "bf16 forward": lambda: x @ weight.T,
        "bf16 gradient of the weight": lambda: gradient.T @ x,
        "fp8 forward": lambda: fp8(x8, weight8.T, True),
        "fp8 gradient of the input": lambda: fp8(gradient8, weight8.T.contiguous().T, False),
        "fp8 gradient of the input, fast": lambda: fp8(gradient8, weight8.T.contiguous().T, True),
        "fp8 gradient of the weight": lambda: fp8(gradient8.T.contiguous(), x8.T.contiguous().T, False),
        "fp8 gradient of the weight, without the copies": lambda: fp8(left, right, False),
    }
    large = torch.empty(2**30 if cuda() else 2**20, dtype=torch.uint8, device=device())
    target = torch.empty_like(large)
    with bench.alone():
        took = milliseconds(lambda: target.copy_(large))
        bench.say("copy", gigabytes_per_second=round(2 * large.numel() / took / 1e6))
        for name, product in products.items():
            try:
                bench.say(
                    "product",
                    kind=name,
                    shape=[rows, inner, outer],
                    tflops=round(flops / milliseconds(product) / 1e9, 3),
                )
            except RuntimeError as error:
                bench.say("product", kind=name, error=str(error)[:200])


Attention = Callable[[Tensor, Tensor, Tensor], Tensor]
MOST_DOCUMENTS = 512
"""Of a batch, in the offsets for the variable-length kernel: a length that changes would compile again."""


def variable_length_attention(q_BTHK: Tensor, k_BTHK: Tensor, v_BTHK: Tensor, starts: Tensor, left: int) -> Tensor:
    """y_BTHK by torch's kernel for sequences of different lengths, which begin at `starts`; a query sees `left` tokens
    before it, all with -1."""
    from torch.nn.attention.varlen import varlen_attn  # noqa: PLC0415 (needs CUDA)

    B, T, H, K = q_BTHK.shape
    q, k, v = (x.reshape(B * T, H, K) for x in (q_BTHK, k_BTHK, v_BTHK))
    y = varlen_attn(q, k, v, starts, starts, T, T, window_size=(left, 0))
    assert isinstance(y, Tensor)  # else the statistics come with it, which nobody asks for
    return y.view(B, T, H, K)


def attention_paths(q_BHTK: Tensor, window: int, first_BT: Tensor) -> dict[str, dict[str, Attention]]:
    """Ways to attention for q, k, v of this shape, by what a query sees: window, past, documents (from `first_BT`)."""
    B, _, T, _ = q_BHTK.shape
    compiled = torch.compile if cuda() else (lambda function: function)
    mask = create_block_mask(lambda b, h, i, j: (i >= j) & (i - j < window), None, None, T, T, device=device().type)
    flex, create = compiled(flex_attention), compiled(create_block_mask)
    rows = torch.arange(0, (B + 1) * T, T, dtype=torch.int32, device=q_BHTK.device)

    def variable_length(q: Tensor, k: Tensor, v: Tensor, starts: Tensor, left: int) -> Tensor:
        q_BTHK, k_BTHK, v_BTHK = (x.transpose(1, 2) for x in (q, k, v))
        return variable_length_attention(q_BTHK, k_BTHK, v_BTHK, starts, left).transpose(1, 2)

    def documents(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return variable_length(q, k, v, document_offsets(first_BT, MOST_DOCUMENTS), -1)

    def by_flash_3(attend: Attention) -> Attention:
        def checked(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            if not flash_attention.available(q_BHTK.device):
                raise RuntimeError("FlashAttention-3 is not installed, or does not work here")
            return attend(q, k, v)

        return checked

    def flex_documents(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return flex(q, k, v, block_mask=block_mask(first_BT.cumsum(1), T, create))

    return {
        "window": {
            "ours, windowed": lambda q, k, v: windowed_attention(q, k, v, window),
            "ours, windowed, compiled": compiled(lambda q, k, v: windowed_attention(q, k, v, window)),
            "cuDNN, window": lambda q, k, v: cudnn_attention.windowed_attention(q, k, v, window),
            "FlexAttention, window": lambda q, k, v: flex(q, k, v, block_mask=mask),
            "variable length, window": lambda q, k, v: variable_length(q, k, v, rows, window - 1),
        },
        "past": {
            "SDPA, full causal": lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True),
            "variable length, full causal": lambda q, k, v: variable_length(q, k, v, rows, -1),
        },
        "documents": {
            "ours, documents": lambda q, k, v: attention_in_stretches(q, k, v, T, first_BT.cumsum(1)),
            "FlexAttention, documents, with their masks": flex_documents,
            "variable length, documents, with their offsets": documents,
        },
        # last: where it is installed it takes the place of torch's flash kernels
        "window by FlashAttention-3": {
            "FlashAttention-3, window": by_flash_3(lambda q, k, v: flash_attention.windowed_attention(q, k, v, window)),
        },
        "documents by FlashAttention-3": {"FlashAttention-3, documents, with their offsets": by_flash_3(documents)},
    }


def document_offsets(first_BT: Tensor, most: int) -> Tensor:
    """Where documents begin in all rows together, the end behind the last one repeated up to `most` + 1 numbers."""
    first = first_BT.clone()
    first[:, 0] = True
    first = first.flatten()
    index = torch.where(first, first.cumsum(0) - 1, most).clamp(max=most)
    offsets = torch.full((most + 1,), len(first), device=first.device)
    offsets.scatter_(0, index, torch.arange(len(first), device=first.device))
    offsets[most] = len(first)  # what begins no document was written there
    return offsets.int()


def attention(bench: Bench) -> None:
    """Each path at the shape of `daily`: forward, forward and backward, kernels, and whether the results agree with
    SDPA that gets a mask."""
    B, H, T, K, window, length = (8, 12, 2048, 128, 512, 600) if cuda() else (1, 2, 64, 16, 16, 20)
    q, k, v = (
        torch.randn(B, T, H, K, device=device(), dtype=torch.bfloat16).transpose(1, 2).requires_grad_()
        for _ in range(3)
    )
    first_BT = torch.rand(B, T, device=device()) < 1 / length
    number_BT = first_BT.cumsum(1)
    distance = torch.arange(T, device=device())[:, None] - torch.arange(T, device=device())
    masks = {
        "window": (distance >= 0) & (distance < window),
        "past": distance >= 0,
        "documents": ((distance >= 0) & (number_BT[:, :, None] == number_BT[:, None, :]))[:, None],
    }
    gradient = torch.randn_like(q)
    for kind, paths in attention_paths(q, window, first_BT).items():
        mask = masks[kind.split()[0]]
        expected = with_gradients(partial(F.scaled_dot_product_attention, attn_mask=mask), (q, k, v), gradient)
        for name, attend in paths.items():
            measure_attention(bench, name, attend, (q, k, v), gradient, expected)


def with_gradients(attend: Attention, qkv: tuple[Tensor, Tensor, Tensor], gradient: Tensor) -> list[Tensor]:
    y = attend(*qkv)
    return [x.detach().float() for x in (y, *torch.autograd.grad(y, qkv, gradient))]


def measure_attention(
    bench: Bench,
    name: str,
    attend: Attention,
    qkv: tuple[Tensor, Tensor, Tensor],
    gradient: Tensor,
    expected: list[Tensor],
) -> None:
    try:
        attend(*qkv).backward(gradient)
        with bench.alone():
            forward = milliseconds(lambda: attend(*qkv))
            both = milliseconds(lambda: attend(*qkv).backward(gradient))
            rows = kernels(lambda: attend(*qkv).backward(gradient))
        results = with_gradients(attend, qkv, gradient)
        bench.say(
            "attention",
            path=name,
            forward_ms=round(forward, 3),
            both_ms=round(both, 3),
            kernels_ms=round(sum(row[1] for row in rows), 3),
            kernels=[row[0][:70] for row in rows[:4]],
            relative_difference=round(max(float((x - y).norm() / y.norm()) for x, y in zip(results, expected)), 6),
        )
    except Exception as error:  # a path that this version or device lacks
        bench.say("attention", path=name, error=f"{type(error).__name__}: {error}"[:200])
