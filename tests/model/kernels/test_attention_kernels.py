"""The kernels of attention are chosen by a table, and every kernel computes the same attention."""

import dataclasses
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.training.attention import presets_with_windows, scores_a_query
from flows.run_config import compose
from model.kernels import cudnn_attention, flash_attention
from model.kernels.attention_kernels import (
    WindowKernel,
    attention_kernels,
    set_attention_kernels,
    use_attention_kernels,
)
from model.kernels.cudnn_attention import EXAMPLE_LENGTH, check_against_formulas
from model.network import flops
from model.network.attention import windowed_attention
from model.network.config import GPTConfig
from model.network.document_mask import STRETCH, Documents
from model.network.gpt import GPT, initialise

ALL = {"cudnn", "fa3", "flex"}
TABLE = [
    # capability, kernels that work, half, head size; expected for windows, the whole past, documents
    (None, ALL, True, 128, "sdpa", "flash", "sdpa"),  # a CPU
    ((7, 5), ALL, True, 64, "sdpa", "efficient", "sdpa"),  # T4
    ((8, 0), ALL, True, 128, "flex", "flash", "flex"),  # A100
    ((8, 0), set(), True, 128, "sdpa", "flash", "sdpa"),  # without a compiler
    ((8, 9), ALL, True, 128, "flex", "flash", "flex"),  # L4
    ((9, 0), ALL, True, 128, "fa3", "fa3", "flex"),  # H100
    ((9, 0), {"cudnn", "flex"}, True, 128, "cudnn", "cudnn", "flex"),  # without FlashAttention-3
    ((9, 0), {"flex"}, True, 128, "flex", "cudnn", "flex"),
    ((9, 0), {"cudnn"}, True, 64, "cudnn", "cudnn", "sdpa"),
    ((9, 0), ALL, False, 128, "flex", "efficient", "flex"),  # fp32
    ((9, 0), ALL, True, 256, "flex", "flash", "flex"),
    ((9, 0), ALL, True, 20, "flex", "efficient", "flex"),
    ((9, 0), ALL, True, 8, "fa3", "fa3", "sdpa"),
    ((10, 0), ALL, True, 128, "flex", "cudnn", "flex"),  # B200: nothing else was measured there
    ((12, 0), ALL, True, 128, "flex", "flash", "flex"),
]


@pytest.mark.parametrize(("capability", "working", "half", "head_size", "windows", "past", "documents"), TABLE)
def test_the_table(capability, working, half, head_size, windows, past, documents):
    chosen = attention_kernels(capability, half=half, head_size=head_size, works=working.__contains__)
    assert chosen == (windows, past, documents)


def test_attention_costs_what_its_window_costs():
    """At the shapes of the presets: at most a stretch more than is counted, and less than the whole past."""
    for name, config in presets_with_windows().items():
        length, window = config.sequence_length, config.short_window_tokens
        config = dataclasses.replace(config, depth=2, window_pattern="SL")
        counted, _ = flops.counted_keys(config, length)
        visible, past = flops.visible_keys(config, length)
        distance = torch.arange(length)[:, None] - torch.arange(length)
        assert visible == ((distance >= 0) & (distance < window)).sum() / length
        scores = scores_a_query(length, window)
        assert visible < scores["stretches"] == scores["flex"] < counted + STRETCH, name
        assert scores["stretches"] < 0.7 * past, name
    config = compose("daily", {"model": {"vocab_size": 32_768}}).model
    share = flops.visible_flops_per_token(config, 2048) / flops.flops_per_token(config, 2048)
    assert share == pytest.approx(0.972, abs=1e-3)  # docs/trainer.md


def random_network(**changes: Any) -> GPT:
    settings: dict[str, Any] = {
        "depth": 2,
        "width": 64,
        "heads": 2,
        "sequence_length": 40,
        "vocab_size": 64,
        "window_pattern": "SL",
        "short_window": 12,
    }
    model = GPT(GPTConfig(**settings | changes))
    initialise(model, 1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("project.weight"):  # zero at the start: attention would not matter
                parameter.normal_(0, 0.1, generator=torch.Generator().manual_seed(2))
    return model


def test_cudnns_window_is_that_of_sdpa():
    """Loss and gradients through the operator that is cuDNN's on a GPU; a shorter row, as in samples, too."""
    tokens = torch.randint(64, (3, 41), generator=torch.Generator().manual_seed(1))
    results = {}
    for kernel in (WindowKernel.SDPA, WindowKernel.CUDNN):
        model = random_network()
        chosen = use_attention_kernels(model, torch.device("cpu"), torch.bfloat16, compiled=True)
        assert chosen.windows is chosen.documents is WindowKernel.SDPA
        set_attention_kernels(model, kernel, WindowKernel.SDPA, torch.device("cpu"))
        loss = model(tokens[:, :-1], tokens[:, 1:])
        loss.backward()
        short = model(tokens[:, :20])
        results[kernel] = [loss.detach(), short.detach(), *(parameter.grad for parameter in model.parameters())]
    for one, other in zip(*results.values()):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_flex_attention_always_gets_the_mask_of_the_window():
    """Also where only sparse layers have a window; without a mask every token would see the future."""
    model = random_network(sequence_length=32, window_pattern="NL", short_window=8)
    set_attention_kernels(model, WindowKernel.FLEX, WindowKernel.SDPA, torch.device("cpu"))
    q, k, v = (torch.randn(2, 2, 32, 32, generator=torch.Generator().manual_seed(seed)) for seed in range(3))
    compiled = torch.compile(lambda q, k, v: model.blocks[0].attention.attend(q, k, v, 8), backend="eager")
    torch.testing.assert_close(compiled(q, k, v), windowed_attention(q, k, v, 8))


def test_documents_by_flex_attention_are_one_graph_and_those_in_stretches():
    """A compiled network makes the masks inside its graph; a shorter row, as in samples, needs none."""
    model = random_network(document_mask="own", eot_token=0)
    tokens = torch.randint(8, (3, 40), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():  # FlexAttention has no gradients on a CPU
        expected, short = model(tokens), model(tokens[:, :20])
        set_attention_kernels(model, WindowKernel.SDPA, WindowKernel.FLEX, torch.device("cpu"))
        torch.compiler.reset()
        compiled = torch.compile(model, backend="eager", fullgraph=True)
        torch.testing.assert_close(compiled(tokens), expected, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(model(tokens[:, :20]), short)


@pytest.mark.parametrize(
    ("length", "window"),
    [(24, 5), (STRETCH + 1, 1), (300, 1), (300, 128), (300, 129), (300, 130), (300, 299), (2 * STRETCH, 257)],
)
def test_stretches_are_masked_attention(length: int, window: int):
    """Forward and backward, alone and within documents, where a window begins in any part of a stretch."""
    q, k, v, dy = (
        torch.randn(2, length, 3, 8, generator=torch.Generator().manual_seed(seed)).transpose(1, 2) for seed in range(4)
    )
    q, k, v = (x.requires_grad_() for x in (q, k, v))
    tokens = torch.randint(90, (2, length), generator=torch.Generator().manual_seed(4))
    documents = Documents(tokens, 0)
    distance = torch.arange(length)[:, None] - torch.arange(length)
    near = (distance >= 0) & (distance < window)
    number_BT = (tokens == 0).cumsum(1)
    own = near & (number_BT[:, :, None] == number_BT[:, None, :])
    for attend, mask in ((windowed_attention, near), (documents.attention, own[:, None])):
        results = [
            (y, *torch.autograd.grad(y, (q, k, v), dy))
            for y in (attend(q, k, v, window), F.scaled_dot_product_attention(q, k, v, attn_mask=mask))
        ]
        for one, other in zip(*results):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_stretches_in_bf16():
    q, k, v = (torch.randn(1, 2, 300, 16, generator=torch.Generator().manual_seed(seed)) for seed in range(3))
    exact = windowed_attention(q, k, v, 100)
    rounded = windowed_attention(*(x.bfloat16() for x in (q, k, v)), 100).float()
    assert (rounded - exact).norm() < 0.01 * exact.norm()


# FlashAttention-3


class FlashOnCPU:
    """Answers torch's flash operators on the CPU as its CUDA kernels define them: sequences of different lengths one
    after the other, in which a query sees `window_size_left` tokens before itself."""

    def __init__(self, extra: int) -> None:
        """`extra`: how many tokens more a query sees, which is a fault."""
        self.extra, self.library = extra, torch.library.Library("aten", "IMPL")
        self.library.impl("_flash_attention_forward", self.forward, "CPU")
        self.library.impl("_flash_attention_backward", self.backward, "CPU")

    def forward(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        starts: None,
        key_starts: None,
        longest: int,
        longest_key: int,
        dropout: float,
        whole: bool,
        with_mask: bool,
        *,
        window_size_left: int,
        window_size_right: int,
        **options: object,
    ) -> tuple[Tensor, ...]:
        assert q.dtype is torch.bfloat16 and q.is_contiguous() and (longest, window_size_right) == (q.size(1), 0)
        assert whole == (window_size_left == -1) and starts is None
        window = self.window(q, window_size_left)
        q, k, v = self.heads_first(q, k, v)
        y, stats = cudnn_attention._forward_formulas(q, k, v, window)
        empty = q.new_empty(0)
        return y.transpose(1, 2), stats[..., 0], empty, empty, empty

    def backward(
        self,
        dy: Tensor,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        y: Tensor,
        stats: Tensor,
        *rest: object,
        window_size_left: int,
        **options: object,
    ) -> list[Tensor]:
        window = self.window(q, window_size_left)
        dy, q, k, v, y = self.heads_first(dy, q, k, v, y)
        gradients = cudnn_attention._backward_formulas(dy, q, k, v, y, stats[..., None], window)
        return [x.transpose(1, 2) for x in gradients]

    @staticmethod
    def heads_first(*tensors_BTHK: Tensor) -> list[Tensor]:
        return [x.transpose(1, 2) for x in tensors_BTHK]

    def window(self, q_BTHK: Tensor, left: int) -> int:
        return (q_BTHK.size(1) if left < 0 else left + 1) + self.extra


@pytest.fixture
def flash(request: pytest.FixtureRequest):
    """CPU kernels where torch has none."""
    on_cpu = FlashOnCPU(getattr(request, "param", 0))
    yield on_cpu
    on_cpu.library._destroy()


def test_flash_attention_3_gets_the_window_that_the_formulas_have(flash: FlashOnCPU):
    check_against_formulas(flash_attention.windowed_attention, torch.device("cpu"))
    q, k, v, dy = (
        torch.randn(2, 40, 2, 16, generator=torch.Generator().manual_seed(seed)).bfloat16().transpose(1, 2)
        for seed in range(4)
    )
    q, k, v = (x.requires_grad_() for x in (q, k, v))
    torch.compiler.reset()
    compiled = torch.compile(flash_attention.windowed_attention, backend="aot_eager", fullgraph=True)
    for window in (1, 12, 40):
        ways = (compiled, flash_attention.windowed_attention, cudnn_attention.windowed_attention)
        results = [(y, *torch.autograd.grad(y, (q, k, v), dy)) for y in (attend(q, k, v, window) for attend in ways)]
        for graph, eager, formula in zip(*results):
            assert torch.equal(graph, eager)
            torch.testing.assert_close(eager, formula, rtol=0.02, atol=0.02)


@pytest.mark.parametrize("flash", [1], indirect=True)
def test_a_kernel_that_sees_one_key_too_many_is_found_out(flash: FlashOnCPU):
    with pytest.raises(RuntimeError, match="relative errors"):
        check_against_formulas(flash_attention.windowed_attention, torch.device("cpu"))


def test_the_check_passes_what_is_right_and_refuses_wrong_gradients():
    assert EXAMPLE_LENGTH > STRETCH
    check_against_formulas(windowed_attention, torch.device("cpu"))

    def without_a_part_of_the_gradient(q: Tensor, k: Tensor, v: Tensor, window: int) -> Tensor:
        return windowed_attention(q, torch.cat((k[:, :, :9].detach(), k[:, :, 9:]), dim=2), v, window)

    with pytest.raises(RuntimeError, match="relative errors"):
        check_against_formulas(without_a_part_of_the_gradient, torch.device("cpu"))
