"""The kernel of windowed attention is chosen by a table, and every kernel computes the same attention."""

import pytest
import torch

from model.attention import windowed_attention
from model.config import GPTConfig
from model.gpt import GPT, initialise
from model.kernels import WindowKernel, set_window_kernel, use_window_kernel, window_kernel

TABLE = [
    # capability, cudnn, compiled, half, head size, expected
    (None, True, True, True, 128, "sdpa"),  # a CPU
    ((7, 5), True, True, True, 128, "sdpa"),  # T4
    ((8, 0), True, True, True, 128, "flex"),  # A100
    ((8, 9), False, True, True, 128, "flex"),  # L4
    ((9, 0), False, True, True, 128, "flex"),  # H100 without the package
    ((9, 0), True, True, True, 128, "cudnn"),
    ((9, 0), True, False, True, 64, "cudnn"),
    ((9, 0), True, True, False, 128, "flex"),  # fp32
    ((9, 0), True, True, True, 256, "flex"),
    ((9, 0), False, False, True, 128, "sdpa"),  # FlexAttention is slow where it is not compiled
    ((9, 0), False, True, True, 8, "sdpa"),
]


@pytest.mark.parametrize(("capability", "cudnn", "compiled", "half", "head_size", "expected"), TABLE)
def test_the_table(capability, cudnn, compiled, half, head_size, expected):
    chosen = window_kernel(capability, cudnn=cudnn, compiled=compiled, half=half, head_size=head_size)
    assert chosen == expected


def test_cudnns_window_is_that_of_sdpa():
    """Loss and gradients through the operator that is cuDNN's on a GPU; a shorter row, as in samples, too."""
    config = GPTConfig(depth=2, width=64, heads=2, sequence_length=40, vocab_size=64, window_pattern="SL",
                       short_window=12)
    tokens = torch.randint(64, (3, 41), generator=torch.Generator().manual_seed(1))
    results = {}
    for kernel in (WindowKernel.SDPA, WindowKernel.CUDNN):
        model = GPT(config)
        initialise(model, 1)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if name.endswith("project.weight"):  # zero at the start: attention would not matter
                    parameter.normal_(0, 0.1, generator=torch.Generator().manual_seed(2))
        assert use_window_kernel(model, torch.device("cpu"), torch.bfloat16, compiled=True) is WindowKernel.SDPA
        set_window_kernel(model, kernel, torch.device("cpu"))
        loss = model(tokens[:, :-1], tokens[:, 1:])
        loss.backward()
        short = model(tokens[:, :20])
        results[kernel] = [loss.detach(), short.detach(), *(parameter.grad for parameter in model.parameters())]
    for one, other in zip(*results.values()):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_flex_attention_always_gets_the_mask_of_the_window():
    """Also where only sparse layers have a window; without a mask every token would see the future."""
    config = GPTConfig(depth=2, width=64, heads=2, sequence_length=32, vocab_size=64, window_pattern="NL",
                       short_window=8)
    model = GPT(config)
    set_window_kernel(model, WindowKernel.FLEX, torch.device("cpu"))
    q, k, v = (torch.randn(2, 2, 32, 32, generator=torch.Generator().manual_seed(seed)) for seed in range(3))
    compiled = torch.compile(lambda q, k, v: model.blocks[0].attention.windowed(q, k, v, 8), backend="eager")
    torch.testing.assert_close(compiled(q, k, v), windowed_attention(q, k, v, 8))
