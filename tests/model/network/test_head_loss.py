"""The loss in bf16: the formula, in parts, with the gradients that autograd finds; and what a network saves with it."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from flows.run_config import compose
from model.network import head_loss
from model.network.config import GPTConfig
from model.network.gpt import GPT, initialise
from model.network.head_loss import IGNORED_TARGET, HeadLoss
from model.planning import memory_use
from model.planning.allocations import by_sequence
from model.training.config import Precision
from model.training.precision import autocast

TOKENS, WIDTH = 37, 32


def loss_and_gradients(
    loss: Callable[..., Tensor], dtype: torch.dtype, vocab_size: int, padded: int
) -> tuple[Tensor, ...]:
    torch.manual_seed(0)
    h_PD, weight_VD = torch.randn(TOKENS, WIDTH), torch.randn(padded, WIDTH).bfloat16().float()
    targets_P = torch.randint(0, vocab_size, (TOKENS,))
    targets_P[::5] = IGNORED_TARGET
    h_PD, weight_VD = h_PD.bfloat16().to(dtype), weight_VD.to(torch.promote_types(dtype, torch.float32))
    inputs = h_PD.requires_grad_(), weight_VD.requires_grad_()
    found = loss(*inputs, targets_P, vocab_size)
    return found.detach(), *torch.autograd.grad(3 * found, inputs)


@pytest.mark.parametrize("softcap", [None, 5.0])
@pytest.mark.parametrize(("vocab_size", "padded"), [(64, 64), (61, 64)])
def test_it_is_the_cross_entropy(softcap: float | None, vocab_size: int, padded: int, monkeypatch: pytest.MonkeyPatch):
    def formula(h_PD: Tensor, weight_VD: Tensor, targets_P: Tensor, vocab_size: int) -> Tensor:
        logits_PV = F.linear(h_PD, weight_VD)[:, :vocab_size]
        logits_PV = logits_PV if softcap is None else softcap * torch.tanh(logits_PV / softcap)
        return F.cross_entropy(logits_PV, targets_P, ignore_index=IGNORED_TARGET)

    def in_bf16(*arguments: object) -> Tensor:
        with autocast("cpu", Precision.BF16):
            return HeadLoss.apply(*arguments, softcap)

    expected = loss_and_gradients(formula, torch.float64, vocab_size, padded)
    for at_once in (8192, 8):
        monkeypatch.setattr(head_loss, "TOKENS_AT_ONCE", at_once)
        found = loss_and_gradients(in_bf16, torch.bfloat16, vocab_size, padded)
        for ours, exact in zip(found, expected, strict=True):
            assert (ours - exact).norm() / exact.norm() < 0.006  # two roundings to bf16
        assert not found[2][vocab_size:].any()


def test_a_network_trains_with_it_in_bf16_only(monkeypatch: pytest.MonkeyPatch):
    config = GPTConfig(depth=1, width=32, heads=2, sequence_length=16, vocab_size=61, eot_token=0, softcap=15.0)
    network, tokens_BT = GPT(config), torch.arange(32).view(2, 16)
    initialise(network, 0)
    calls: list[Precision] = []
    losses, apply = {}, HeadLoss.apply

    def counted(*arguments: object) -> Tensor:
        calls.append(precision)
        return apply(*arguments)

    monkeypatch.setattr(HeadLoss, "apply", counted)
    for precision in (Precision.FP32, Precision.BF16, Precision.FP16):
        with autocast("cpu", precision):
            losses[precision] = network(tokens_BT, tokens_BT)
            with torch.no_grad():
                network(tokens_BT, tokens_BT, reduction="none")
    assert calls == [Precision.BF16]
    assert losses[Precision.BF16].item() == pytest.approx(losses[Precision.FP32].item(), abs=0.01)


def test_daily_saves_no_logits_and_nothing_large_in_fp32():
    """Of 4 layers at a micro-batch of 32, less than nanochat, of which the same trace says 16.7 GB."""
    config, sequences = compose("daily", {"model": {"depth": 4, "vocab_size": 32_768}}).model, 7
    with FakeTensorMode(), memory_use.ImitatedDevice("cuda"):
        network = GPT(config)
        memory_use.use_imitated_attention_kernels(network, torch.bfloat16)
        tokens_BT = torch.zeros(sequences, config.sequence_length, dtype=torch.long)
        saved, _ = memory_use._compiled_network(network, tokens_BT, autocast("cpu", Precision.BF16))
    fixed, each = sum(by_sequence(size, sequences) for size, _ in saved)
    assert 12e9 < fixed + 32 * each < 16.7e9
    sizes = [
        (size / shape.numel(), shape.numel() // tokens_BT.numel())
        for size, shape in saved
        if shape.numel() % tokens_BT.numel() == 0
    ]
    assert len(sizes) > 40 and max(width for _, width in sizes) == 4 * config.width
    assert max(width for size, width in sizes if size == 4) < config.width / 100
