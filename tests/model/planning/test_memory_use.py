"""Planned memory beside what real tensors take, beside an H200, and beside traces of the daily network."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.autograd.graph import saved_tensors_hooks

import model.network.gpt
from flows.run_config import compose
from model.kernels.attention_kernels import AttentionKernels, PastKernel, WindowKernel
from model.network.config import GPTConfig
from model.network.gpt import GPT, initialise
from model.optimizers.optimizer import Optimizer
from model.planning import joint_graph, memory_use
from model.planning.allocations import Allocations, storages
from model.planning.memory_use import network_memory, optimizer_bytes
from model.planning.plan import choose_micro_batch, memory_bytes
from model.training.config import Precision, TrainConfig
from model.training.precision import autocast

SMALL: dict[str, Any] = {"depth": 7, "width": 64, "heads": 4, "sequence_length": 64, "vocab_size": 320, "eot_token": 0}
SHAPES: dict[str, dict[str, Any]] = {
    "daily": {
        "window_pattern": "SSSL",
        "value_embeddings": True,
        "residual_lambdas": True,
        "embedding_lambdas": True,
        "softcap": 15.0,
        "qk_scale": 1.2,
        "depth": 10,
    },
    "gpt2": {
        "norm": "layer",
        "position": "learned",
        "activation": "gelu",
        "qk_norm": False,
        "tied_head": True,
        "bias": True,
        "vocab_multiple": 1,
        "vocab_size": 333,
        "width": 96,
    },
    "sparse": {
        "mlp": "moe",
        "attention": "mla",
        "window_pattern": "NL",
        "short_window": 16,
        "sparse_block": 8,
        "sparse_blocks": 2,
        "sequence_length": 96,
    },
    "documents": {
        "kv_heads": 2,
        "activation": "swiglu",
        "document_mask": "own",
        "smear": "key",
        "window_pattern": "SL",
    },
    "rest": {
        "smear": "embedding",
        "backout": True,
        "attention_gate": True,
        "partial_key_offset": True,
        "rotary_fraction": 0.5,
        "vocab_size": 300,
        "mlp": "moe",
        "balance": "loss",
        "activation": "swiglu",
    },
}

STRETCHES = AttentionKernels(WindowKernel.SDPA, PastKernel.FLASH, WindowKernel.SDPA)


def configured(shape: str, precision: str, sequences: int, **changes: object) -> tuple[GPTConfig, TrainConfig]:
    train = compose("smoke", {"train": {"precision": precision, "micro_batch_sequences": sequences, **changes}}).train
    return GPTConfig(**SMALL | SHAPES[shape]), train


def saved_bytes(network: Callable, own: GPT, sequences: int, precision: Precision) -> int:
    """What a forward pass on real tensors saves for the backward pass, besides weights and tokens."""
    config = own.config
    assert config.vocab_size is not None
    tokens_BT = torch.randint(0, config.vocab_size, (sequences, config.sequence_length))
    known = storages([*own.parameters(), *own.buffers(), tokens_BT])
    saved: dict[int, torch.Tensor] = {}

    def save(tensor: torch.Tensor) -> torch.Tensor:
        saved.setdefault(tensor.untyped_storage()._cdata, tensor)
        return tensor

    with saved_tensors_hooks(save, lambda tensor: tensor), autocast("cpu", precision):
        network(tokens_BT, tokens_BT)
    return sum(tensor.untyped_storage().nbytes() for address, tensor in saved.items() if address not in known)


@pytest.mark.parametrize("sequences", [2, 8])
@pytest.mark.parametrize(
    ("shape", "precision"),
    [("daily", "bf16"), ("gpt2", "fp32"), ("sparse", "fp16"), ("documents", "bf16"), ("rest", "fp32")],
)
def test_what_a_cpu_saves_is_what_was_planned(shape: str, precision: str, sequences: int):
    config, train = configured(shape, precision, sequences)
    network = GPT(config)
    initialise(network, 0)
    planned = network_memory(config, train, "cpu")
    counted = saved_bytes(network, network, sequences, train.precision)
    assert planned.activations + planned.logits == pytest.approx(counted, rel=0.02)


@pytest.mark.parametrize("shape", ["daily", "sparse"])
def test_what_a_compiled_network_saves_is_what_was_planned(shape: str, monkeypatch: pytest.MonkeyPatch):
    """Compiled for a CPU, which computes windows by SDPA; its attention kernels save as much as a GPU's."""
    monkeypatch.setattr(memory_use, "attention_kernels", lambda *device, **settings: STRETCHES)
    memory_use._trace.cache_clear()
    config, train = configured(shape, "bf16", 4)
    config = dataclasses.replace(config, depth=2)
    network = GPT(config)
    initialise(network, 0)
    torch.compiler.reset()
    compiled = torch.compile(network, backend="aot_eager_decomp_partition")
    planned = network_memory(config, train, "cuda")
    counted = saved_bytes(compiled, network, 4, train.precision)
    assert planned.activations + planned.logits == pytest.approx(counted, rel=0.05)
    assert planned.activations + planned.logits < 0.95 * sum(
        dataclasses.astuple(network_memory(config, train, "cpu"))[:2]
    )
    memory_use._trace.cache_clear()


def test_the_peak_of_a_step_of_a_validation_and_of_an_update_on_a_cpu():
    """Real tensors at the real depth and micro-batch, beside traces of two shallower networks at another."""
    config, train = configured("daily", "bf16", 6)
    network = GPT(config)
    initialise(network, 0)
    optimizer = Optimizer(network, train)
    tokens_BT = torch.randint(0, config.vocab_size, (6, config.sequence_length))

    def step() -> None:
        with autocast("cpu", train.precision):
            loss = network(tokens_BT, tokens_BT)
        loss.backward()

    def validation() -> None:
        with torch.no_grad(), autocast("cpu", train.precision):
            network(tokens_BT, tokens_BT, reduction="none").double()

    def update() -> None:
        optimizer.step(1.0)

    step()
    update()
    given = storages(
        [
            *network.state_dict().values(),
            *network.buffers(),
            tokens_BT,
            *(weight.grad for weight in network.parameters()),
            *optimizer.state_tensors().values(),
        ]
    )
    peaks = {}
    for work in (step, validation, update):
        with Allocations(1, given) as allocations:
            work()
        peaks[work.__name__] = np.array(allocations.timeline).sum(1).max()
    planned = memory_bytes(config, train, "cpu")
    step_bytes = planned["activations"] + planned["logits"] + planned["temporaries"]
    assert step_bytes == pytest.approx(peaks["step"], rel=0.02)
    assert planned["validation"] == pytest.approx(peaks["validation"], rel=0.02)
    assert planned["update"] == pytest.approx(peaks["update"], rel=0.02)
    assert planned["optimizer"] == sum(tensor.nbytes for tensor in optimizer.state_tensors().values())


def daily(sequences: int, depth: int = 24, precision: str = "bf16") -> dict[str, float]:
    """Planned gigabytes of the preset on a GPU."""
    run = compose(
        "daily",
        {
            "model": {"depth": depth, "vocab_size": 32_768},
            "train": {"micro_batch_sequences": sequences, "precision": precision},
        },
    )
    return {name: size / 1e9 for name, size in memory_bytes(run.model, run.train).items()}


def loss_of_whole_logits(
    h_PD: torch.Tensor, weight_VD: torch.Tensor, targets_P: torch.Tensor, vocab_size: int, softcap: float
) -> torch.Tensor:
    """What was measured on the H200."""
    logits_PV = softcap * torch.tanh(F.linear(h_PD, weight_VD).float() / softcap)
    return F.cross_entropy(logits_PV, targets_P)


@pytest.fixture
def whole_logits(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(model.network.gpt.HeadLoss, "apply", loss_of_whole_logits)
    memory_use._trace.cache_clear()
    yield
    memory_use._trace.cache_clear()


def test_four_layers_took_what_an_h200_measured(whole_logits: None):
    """peak_gb of d4_cudnn and d4_flex in benchmarks/results/nvidia-h200.jsonl, before the head's loss came in parts."""
    assert daily(8, depth=4)["total"] == pytest.approx(10.19, rel=0.02)


def test_daily_took_what_an_h200_measured():
    """peak_gb of daily-bf16 at commit 37f05a6 in benchmarks/results/nvidia-h200.jsonl."""
    assert daily(16)["total"] == pytest.approx(69.78, rel=0.02)


def test_daily_fits_an_h100():
    assert daily(16)["total"] < 72 < daily(32)["total"]
    run = compose("daily", {"model": {"vocab_size": 32_768}})
    assert choose_micro_batch(run.model, run.train, 512, 80e9) == 16
    assert choose_micro_batch(run.model, run.train, 512, 20e9) is None


def stretches_of_a_window(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, window: int) -> torch.Tensor:
    """Attention within a window as it was when it was measured: all stretches of `window` tokens in one call."""
    B, H, T, K = q.shape
    q, k, v = (x.reshape(B * H, T // window, window, K) for x in (q, k, v))
    k, v = (torch.cat((F.pad(x, (0, 0, 0, 0, 1, 0))[:, :-1], x), dim=2) for x in (k, v))
    mask = torch.ones(1, T // window, window, 2 * window, dtype=torch.bool)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask).reshape(B, H, T, K)


def test_daily_with_an_fp32_stream_took_what_was_traced_and_measured(
    monkeypatch: pytest.MonkeyPatch, whole_logits: None
):
    """Before its residual stream was bf16 and windows had a kernel: traces of it with torch alone (saved activations of
    4 layers, and peaks), and peak_gb of daily-bf16, d4_as_is and d4_fa2 on the H200."""
    now = daily(32)["total"]
    monkeypatch.setattr(model.network.gpt, "_stream", lambda x_BTD: x_BTD)
    memory_use._trace.cache_clear()
    assert daily(8, depth=4)["total"] == pytest.approx(10.74, rel=0.02)
    monkeypatch.setattr(memory_use, "attention_kernels", lambda *device, **settings: STRETCHES)
    monkeypatch.setattr("model.kernels.attention_kernels.windowed_attention", stretches_of_a_window)
    memory_use._trace.cache_clear()
    assert daily(32, depth=4)["activations"] == pytest.approx(20.7, rel=0.03)
    assert daily(8, depth=4)["total"] == pytest.approx(11.2, rel=0.02)
    assert daily(8)["total"] == pytest.approx(52.15, rel=0.02)
    for sequences, traced in ((32, 148.5), (16, 85), (8, 54)):
        assert daily(sequences)["total"] == pytest.approx(traced, rel=0.05)
    assert daily(32)["total"] - now > 20
    memory_use._trace.cache_clear()


def test_another_micro_batch_needs_no_other_trace(monkeypatch: pytest.MonkeyPatch):
    config, train = configured("gpt2", "bf16", 4)
    sizes = [memory_bytes(config, train)["total"]]

    def refuse(*arguments: object) -> None:
        raise AssertionError("traced again")

    monkeypatch.setattr(memory_use, "FakeTensorMode", refuse)
    for sequences in (8, 12):
        changed = dataclasses.replace(train, micro_batch_sequences=sequences)
        sizes.append(memory_bytes(config, changed)["total"])
    assert 0 < sizes[1] - sizes[0] == pytest.approx(sizes[2] - sizes[1], rel=0.01)


def test_a_torch_that_cannot_trace_plans_for_more(monkeypatch: pytest.MonkeyPatch):
    config, train = configured("documents", "bf16", 4)
    config = dataclasses.replace(config, depth=2)
    compiled = network_memory(config, train, "cuda")
    memory_use._trace.cache_clear()

    def fail(*arguments: object) -> None:
        raise RuntimeError("changed its inside")

    monkeypatch.setattr(joint_graph, "graphs_of", fail)
    with pytest.warns(UserWarning, match="cannot trace the compiled network.*changed its inside"):
        eager = network_memory(config, train, "cuda")
    assert eager.step > compiled.step
    memory_use._trace.cache_clear()


@pytest.mark.parametrize(
    ("shape", "changes"),
    [
        ("rest", {"precision": "bf16", "optimizer": "psgd"}),
        ("daily", {"precision": "fp8", "fp8_smallest_size": 64}),
        ("sparse", {"precision": "fp16"}),
        ("gpt2", {"optimizer": "adamw"}),
    ],
)
def test_every_component_precision_and_optimizer_is_planned_on_a_gpu(shape: str, changes: dict, recwarn):
    config, train = configured(shape, sequences=4, **{"precision": "fp32"} | changes)
    found = memory_bytes(dataclasses.replace(config, depth=2), train)
    assert min(found.values()) >= 0 and found["activations"] > 4 * config.sequence_length * config.width * 2 * 2 * 8
    assert not [warning for warning in recwarn if "cannot trace" in str(warning.message)]


def test_psgd_holds_its_factors():
    config, train = configured("gpt2", "fp32", 4, optimizer="psgd")
    momentum, _ = optimizer_bytes(config, dataclasses.replace(train, optimizer="muon"))
    factors, _ = optimizer_bytes(config, train)
    assert factors > 1.5 * momentum
