"""Attention by cuDNN: the operators compute windowed attention, trace into one graph and know where they run."""

import functools

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from model.kernels import cudnn_attention
from model.kernels.cudnn_attention import available, windowed_attention

CUDA = torch.device("cuda")
Sizes = tuple[int, int, int, int, int]


def example(
    B: int, T: int, H: int, J: int, K: int, dtype: torch.dtype = torch.float32, device: str = "cpu"
) -> list[Tensor]:
    """q_BHTK, k_BJTK, v_BJTK as views of one (B, T, ...) tensor, and a gradient of the output."""
    torch.manual_seed(7)
    together = torch.randn(B, T, H + 2 * J, K, device=device, dtype=dtype)
    parts = [x.transpose(1, 2).requires_grad_() for x in together.split((H, J, J), dim=2)]
    return [*parts, torch.randn(B, T, H, K, device=device, dtype=dtype).transpose(1, 2)]


def reference(q: Tensor, k: Tensor, v: Tensor, window: int | None) -> Tensor:
    T, shared = q.size(2), q.size(1) // k.size(1)
    seen = torch.ones(T, T, dtype=torch.bool, device=q.device).tril()
    if window is not None:
        seen = seen & ~torch.ones_like(seen).tril(-window)
    k, v = (x.repeat_interleave(shared, dim=1) for x in (k, v))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=seen)


def results(attention, q: Tensor, k: Tensor, v: Tensor, dy: Tensor, window: int | None) -> tuple[Tensor, ...]:
    y = attention(q, k, v, window)
    return y, *torch.autograd.grad(y, (q, k, v), dy)


@pytest.mark.parametrize("window", [1, 5, 17, 400, None])
@pytest.mark.parametrize("sizes", [(2, 17, 4, 4, 8), (1, 24, 4, 2, 16), (2, 1, 2, 1, 8)], ids=str)
def test_equals_masked_attention_forward_and_backward(sizes: Sizes, window: int | None):
    q, k, v, dy = example(*sizes)
    got, expected = (results(f, q, k, v, dy, window) for f in (windowed_attention, reference))
    for x, y in zip(got, expected):
        torch.testing.assert_close(x, y, rtol=1e-5, atol=2e-6)
        # (B, T, H, K) in memory: joining the heads is a view
        joined = x.detach().transpose(1, 2).view(x.size(0), x.size(2), -1)
        assert joined.data_ptr() == x.data_ptr()


@pytest.mark.parametrize("heads", [(2, 2), (4, 2)], ids=str)
def test_the_operators_keep_to_what_torch_expects_of_them(heads: tuple[int, int]):
    q, k, v, dy = example(2, 9, *heads, 8)
    torch.library.opcheck(torch.ops.daily_train.windowed_attention.default, (q, k, v, 4))
    saved = [x.detach() for x in (q, k, v)]
    y, stats = torch.ops.daily_train.windowed_attention(*saved, 4)
    torch.library.opcheck(torch.ops.daily_train.windowed_attention_backward.default, (dy, *saved, y, stats, 4))


@pytest.mark.parametrize("recompute", [False, True])
def test_compiles_into_one_graph(recompute: bool):
    def block(q: Tensor, k: Tensor, v: Tensor, window: int | None) -> Tensor:
        return 2 * windowed_attention(1.5 * q, k, v, window)

    attention = functools.partial(checkpoint, block, use_reentrant=False) if recompute else block
    q, k, v, dy = example(2, 12, 4, 2, 8)
    compiled = torch.compile(attention, backend="aot_eager", fullgraph=True)
    for x, y in zip(results(compiled, q, k, v, dy, 5), results(block, q, k, v, dy, 5)):
        torch.testing.assert_close(x, y)
        assert x.stride() == y.stride()


@pytest.mark.parametrize(
    "change, error",
    [
        (lambda q, k, v: (q, k[:, :, 1:], v[:, :, 1:], 4), r"\(1, 3, 6, 8\).*do not fit"),
        (lambda q, k, v: (q, k[:, :2], v[:, :2], 4), "multiple of J"),
        (lambda q, k, v: (q, k, v, 0), "the window is 0"),
    ],
    ids=["tokens", "heads", "window"],
)
def test_says_what_does_not_fit(change, error: str):
    q, k, v, _ = example(1, 6, 3, 3, 8)
    with pytest.raises(ValueError, match=error):
        windowed_attention(*change(q, k, v))


def test_is_not_available_without_a_gpu():
    assert not available(torch.device("cpu"))
    if not torch.cuda.is_available():
        assert not available(CUDA)


def test_a_package_that_fails_makes_it_unavailable_instead_of_raising(monkeypatch, caplog):
    def broken():
        raise OSError("libcudnn.so.9: cannot open shared object file")

    monkeypatch.setattr(cudnn_attention, "library", broken)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    cudnn_attention._computes_correctly.cache_clear()
    try:
        assert not available(torch.device("cuda:0"))
        assert "cannot open shared object file" in caplog.text
    finally:
        cudnn_attention._computes_correctly.cache_clear()


@pytest.mark.skipif(not available(CUDA), reason="needs a CUDA device and nvidia-cudnn-frontend")
@pytest.mark.parametrize("window", [1, 100, None])
@pytest.mark.parametrize("sizes", [(2, 384, 4, 4, 128), (2, 333, 4, 2, 64)], ids=str)
def test_cudnn_agrees_with_the_formulas(sizes: Sizes, window: int | None):
    q, k, v, dy = example(*sizes, dtype=torch.bfloat16, device="cuda")
    got = results(windowed_attention, q, k, v, dy, window)
    q, k, v, dy = (x.detach().cpu().requires_grad_(x.requires_grad) for x in (q, k, v, dy))
    for x, y in zip(got, results(windowed_attention, q, k, v, dy, window)):
        assert x.stride() == y.stride()
        assert (x.cpu().float() - y.float()).norm() <= 0.01 * y.float().norm() + 1e-4 * y.numel() ** 0.5
