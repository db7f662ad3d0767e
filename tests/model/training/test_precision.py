"""fp16 and fp8: errors within what rounding explains, overflow is no divergence, the same bytes after a kill."""

import json
import re
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from model.network import fp8
from model.network.choices import Activation
from model.network.config import GPTConfig
from model.network.fp8 import BACKWARD, FORWARD, Float8Linear, Float8MLP, quantise, use_fp8
from model.network.gpt import GPT, initialise
from model.network.mlp import MLP
from model.parsing import ConfigError, parse
from model.train import main
from model.training import checkpoint, loss_scale
from model.training.loss_scale import LossScale
from model.training.metrics import MetricsLog
from model.training.precision import autocast
from model.training.run import read_config
from model.training.trainer import Trainer
from tests.markov import VOCAB, write_markov_shards

MODEL = {"depth": 2, "width": 32, "heads": 2, "sequence_length": 16}
TRAIN = {
    "seed": 1,
    "tokens": 40 * 128,
    "tokens_per_step": 128,
    "micro_batch_sequences": 4,
    "optimizer": "muon",
    "learning_rate": 0.02,
    "embedding_learning_rate": 0.1,
    "head_learning_rate": 0.02,
    "scalar_learning_rate": 0.01,
    "warmup_steps": 2,
    "validation_every_steps": 40,
    "validation_tokens": 512,
    "checkpoint_every_steps": 10,
    "log_every_steps": 1,
    "sample_tokens": 4,
}


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> Path:
    return write_markov_shards(tmp_path_factory.mktemp("markov"))


def run(directory: Path, shards: Path, name: str, model: dict | None = None, **train: object) -> int:
    config = {
        "model": MODEL | (model or {}),
        "train": TRAIN | train,
        "shards": str(shards),
        "run_dir": str(directory / name),
        "sample_prompts": [[0]],
        "execution": {"device": "cpu", "threads": 1},
    }
    path = directory / f"{name}.json"
    path.write_text(json.dumps(config))
    return main([str(path)])


def events(run_dir: Path, name: str) -> list[dict]:
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["event"] == name]


def model_bytes(run_dir: Path) -> bytes:
    return (run_dir / "final" / "model.safetensors").read_bytes()


def normal(*shape: int, seed: int) -> torch.Tensor:
    return torch.empty(shape).normal_(generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"mlp": "moe", "experts": 4, "experts_per_token": 2},
        {"attention": "mla", "window_pattern": "SL", "activation": "swiglu"},
    ],
)
def test_fp16_gradients_with_a_scale_are_those_of_fp32_and_without_one_are_lost(settings):
    model = GPT(parse(GPTConfig, MODEL | settings | {"vocab_size": VOCAB, "zero_init_projections": False}, "model"))
    initialise(model, 0)
    tokens = torch.randint(0, VOCAB, (4, 17), generator=torch.Generator().manual_seed(1))

    def gradients(dtype: torch.dtype | None, scale: float) -> torch.Tensor:
        model.zero_grad()
        with torch.autocast("cpu", dtype, enabled=dtype is not None):
            loss = model(tokens[:, :-1], tokens[:, 1:])
        (loss * scale).backward()
        return torch.cat([parameter.grad.flatten() for parameter in model.blocks.parameters()]) / scale

    exact = gradients(None, 1.0)

    def error(dtype: torch.dtype, scale: float) -> float:
        return ((gradients(dtype, scale) - exact).norm() / exact.norm()).item()

    scaled = error(torch.float16, loss_scale.FIRST_SCALE)
    assert scaled < 10 * 2**-11, "a few roundings to eleven bits on the way"
    assert error(torch.bfloat16, 1.0) > 3 * scaled, "which has eight bits"
    assert error(torch.float16, 1.0) > 3 * scaled


def test_scale_halves_on_overflow_and_doubles_after_a_long_time_without():
    scaling = LossScale()
    for overflow in [True] + [False] * 2000 + [True, True]:
        scaling.observe(overflow)
    assert (scaling.scale, scaling.good_steps, scaling.skipped_steps) == (2.0**14, 0, 3)
    for _ in range(50 * 2000):
        scaling.observe(False)
    assert scaling.scale == loss_scale.LARGEST_SCALE


def test_fp16_skips_overflowing_steps_and_learns(shards, tmp_path, monkeypatch):
    monkeypatch.setattr(LossScale.__init__, "__defaults__", (2.0**32, 0, 0))  # as after a long quiet time
    assert run(tmp_path, shards, "fp16", precision="fp16") == 0
    steps = events(tmp_path / "fp16", "step")
    skipped = [line for line in steps if line["grad_norm"] is None]
    assert 5 < len(skipped) < 20 and skipped[:6] == steps[:6]
    assert steps[-1]["skipped_steps"] == len(skipped)
    assert steps[-1]["loss_scale"] == 2.0 ** (32 - len(skipped))
    assert events(tmp_path / "fp16", "done")[0]["loss"] < 2.9


def test_fp16_resumes_to_the_same_bytes_with_its_scale(shards, tmp_path, monkeypatch):
    monkeypatch.setattr(LossScale.__init__, "__defaults__", (2.0**30, 0, 0))
    monkeypatch.setattr(loss_scale, "STEPS_TO_DOUBLE", 7)  # the scale moves all the time
    assert run(tmp_path, shards, "straight", precision="fp16") == 0
    done = []

    def interrupted(self):
        done.append(1)
        if len(done) == 25:
            raise KeyboardInterrupt
        return original(self)

    original = Trainer.train_step
    monkeypatch.setattr(Trainer, "train_step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, shards, "killed", precision="fp16")
    monkeypatch.setattr(Trainer, "train_step", original)
    monkeypatch.setattr(LossScale.__init__, "__defaults__", (1.0, 0, 0))  # must come from the checkpoint
    assert run(tmp_path, shards, "killed", precision="fp16") == 0
    assert events(tmp_path / "killed", "resume")[0]["step"] == 20
    assert model_bytes(tmp_path / "killed") == model_bytes(tmp_path / "straight")
    assert events(tmp_path / "killed", "step")[-1]["skipped_steps"] > 8


def test_gradients_that_overflow_at_any_scale_stop_the_run(shards, tmp_path, capsys, monkeypatch):
    class Exploding(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, gradient):
            return gradient * torch.inf

    monkeypatch.setattr(
        "model.network.gpt.RMSNorm.forward", lambda self, x: Exploding.apply(F.rms_norm(x, x.shape[-1:]))
    )
    assert run(tmp_path, shards, "run", precision="fp16") == 1
    assert re.search(r"loss_scale is 0.5 in step 17: .* at any scale", capsys.readouterr().err)


def elementwise_error(x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Largest rounding error: half the last kept bit of a normal number, half the spacing of subnormal ones."""
    information = torch.finfo(dtype)
    scale = x.abs().max() / information.max
    return torch.maximum(information.eps / 2 * x.abs(), information.smallest_normal * information.eps / 2 * scale)


@pytest.mark.parametrize("dtype", [FORWARD, BACKWARD])
def test_quantised_tensor_is_within_the_rounding_error(dtype):
    x = normal(200, 64, seed=0) * torch.logspace(-6, 0, 64)
    x8, scale = quantise(x, dtype)
    assert ((x8.float() * scale - x).abs() <= elementwise_error(x, dtype) * (1 + 1e-5)).all()
    assert x8.float().abs().max() == torch.finfo(dtype).max
    zero, _ = quantise(torch.zeros(3), dtype)
    assert zero.float().abs().max() == 0


def float8_layer(inputs: int, outputs: int, bias: bool) -> nn.Module:
    layer = nn.Linear(inputs, outputs, bias=bias)
    with torch.no_grad():
        layer.weight.copy_(normal(outputs, inputs, seed=1) / inputs**0.5)
    layer.__class__ = Float8Linear
    return layer


@pytest.mark.parametrize("bias", [False, True])
def test_fp8_products_are_within_the_rounding_error_and_are_fp8(bias):
    layer = float8_layer(64, 48, bias)
    x, gradient = normal(2, 16, 64, seed=2).bfloat16().float().requires_grad_(), normal(2, 16, 48, seed=3)
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x)
    assert y.dtype == torch.bfloat16
    y.backward(gradient.bfloat16())
    g, a, w = gradient.bfloat16().float().flatten(0, 1), x.detach().flatten(0, 1), layer.weight.detach()
    parts = {
        "y": (y.detach().float().flatten(0, 1) - (layer.bias if bias else 0), a, FORWARD, w.T, FORWARD),
        "x": (x.grad.flatten(0, 1), g, BACKWARD, w, FORWARD),
        "weight": (layer.weight.grad, g.T, BACKWARD, a, FORWARD),
    }
    for name, (ours, left, left_dtype, right, right_dtype) in parts.items():
        exact = left @ right
        left_error, right_error = elementwise_error(left, left_dtype), elementwise_error(right, right_dtype)
        bound = left_error @ right.abs() + left.abs() @ right_error + left_error @ right_error
        rounding = 2 * torch.finfo(torch.bfloat16).eps * exact.abs().max()
        assert ((ours - exact).abs() <= bound + rounding).all(), name
        emulated = [x8.float() * scale for x8, scale in (quantise(left, left_dtype), quantise(right, right_dtype))]
        torch.testing.assert_close(ours, emulated[0] @ emulated[1], rtol=0.01, atol=rounding.item(), msg=name)
        relative = ((ours - exact).norm() / exact.norm()).item()
        # rounding errors add up like noise: eps / sqrt(12 * 2) of a number for each of the two
        expected = sum(torch.finfo(dtype).eps ** 2 / 24 for dtype in (left_dtype, right_dtype)) ** 0.5
        assert 0.6 * expected < relative < 1.6 * expected, name


def float8_mlp() -> Float8MLP:
    config = GPTConfig(depth=1, width=64, heads=2, sequence_length=16, vocab_size=32, activation=Activation.RELU2)
    network = GPT(config)
    with torch.no_grad():
        for number, parameter in enumerate(network.blocks.parameters()):
            parameter.copy_(normal(*parameter.shape, seed=number) / parameter.shape[-1] ** 0.5)
    use_fp8(network, 32)
    mlp = network.blocks[0].mlp
    assert type(mlp) is Float8MLP
    return mlp


def test_the_mlp_of_relu_squared_multiplies_in_fp8_as_its_layers_do():
    mlp = float8_mlp()
    x, gradient = normal(4, 64, 64, seed=8), 1e-3 * normal(4, 64, 64, seed=9).bfloat16()
    results = {}
    for way in ("exact", "layers", "together"):
        mlp.zero_grad()
        inputs = x.clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=way != "exact"):
            y = MLP.forward(mlp, inputs) if way != "together" else mlp(inputs)
        y.backward(gradient.float() if way == "exact" else gradient)
        results[way] = [y.detach().float(), inputs.grad, mlp.expand.weight.grad, mlp.project.weight.grad]
    errors = {
        way: [
            ((ours - exact).norm() / exact.norm()).item()
            for ours, exact in zip(results[way], results["exact"], strict=True)
        ]
        for way in ("layers", "together")
    }
    assert all(0.02 < error < 0.12 for error in errors["together"]), "that of fp8"
    for layers, together in zip(errors["layers"], errors["together"]):
        assert together == pytest.approx(layers, rel=0.05), "a wider scale of the gradients costs nothing"


def test_a_gradient_far_above_those_that_its_scale_was_read_from_becomes_the_largest():
    mlp = float8_mlp()
    gradient = normal(32, 64, seed=3).bfloat16()
    gradient[1] *= 1e4  # of token 1, which is not read
    x = normal(32, 64, seed=4).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        mlp(x).backward(gradient)
    sizes = x.grad.norm(dim=-1)
    assert torch.isfinite(mlp.expand.weight.grad).all() and sizes[1] == sizes.max()
    assert sizes[1] < 1e3 * sizes[::2].mean() < 1e4 * sizes[::2].mean()


def test_fp8_is_for_training_products_of_whole_tiles_only():
    layer, x = float8_layer(32, 32, False), normal(3, 5, 32, seed=0)
    torch.testing.assert_close(layer(x), F.linear(x, layer.weight))
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(layer(x), F.linear(x, layer.weight))


def test_weights_trained_in_fp8_validate_choose_and_sample_without_fp8_and_train_on(shards, tmp_path, monkeypatch):
    """In fp8 and in bf16 the same weights have the same validation loss, bit for bit."""
    items = [{"context": [1, 2, 3 + i], "choices": [[4, 5], [6, 7]], "lengths": [2, 2], "gold": 0} for i in range(8)]
    (tmp_path / "items.json").write_text(json.dumps(items))

    def trainer(precision: str) -> Trainer:
        config = {
            "model": MODEL,
            "train": TRAIN | {"precision": precision, "fp8_smallest_size": 32},
            "shards": str(shards),
            "run_dir": str(tmp_path / precision),
            "sample_prompts": [[0]],
            "execution": {"device": "cpu", "threads": 1, "hellaswag": str(tmp_path / "items.json")},
        }
        (tmp_path / f"{precision}.json").write_text(json.dumps(config))
        return Trainer(read_config(tmp_path / f"{precision}.json"))

    in_fp8, in_bf16, products, validated = trainer("fp8"), trainer("bf16"), [], {}
    original = fp8._Product.apply
    monkeypatch.setattr(fp8._Product, "apply", lambda *parts: products.append(1) or original(*parts))
    in_fp8.train_step()
    assert len(products) > 8, "training multiplies in fp8"
    in_bf16.model.load_state_dict(in_fp8.model.state_dict())
    products.clear()
    for name, trained in (("fp8", in_fp8), ("bf16", in_bf16)):
        with MetricsLog(tmp_path / f"{name}.jsonl", resumed_step=0) as metrics:
            trained.validate(metrics)
            trained.sample_now(metrics)
        lines = [json.loads(line) for line in (tmp_path / f"{name}.jsonl").read_text().splitlines()]
        validated[name] = [
            {key: line.get(key) for key in ("loss", "bits_per_byte", "hellaswag_acc_norm", "tokens_of_prompts")}
            for line in lines
        ]
    assert not products and validated["fp8"][0]["loss"]
    assert validated["fp8"] == validated["bf16"]
    in_fp8.train_step()
    assert products, "validation leaves nothing switched off"


def test_fp8_compiled_is_fp8():
    layer, x, gradient = float8_layer(64, 32, False), normal(16, 64, seed=0), normal(16, 32, seed=1).bfloat16()
    results = []
    # traced whole, forward and backward; by hand also through inductor, which takes long to test
    for call in (layer, torch.compile(layer, backend="aot_eager", fullgraph=True)):
        layer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            y = call(x)
        y.backward(gradient)
        results.append((y.detach().float(), layer.weight.grad))
    for eager, compiled in zip(*results):
        assert (eager - compiled).norm() < 0.005 * eager.norm(), "far less than rounding to fp8 changes"
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):  # a compiled validation
        torch.testing.assert_close(call(x), F.linear(x, layer.weight), rtol=0, atol=0)


def test_fp8_is_chosen_by_size_and_never_silently_absent():
    model = GPT(GPTConfig(**MODEL, kv_heads=1, vocab_size=VOCAB))
    names = set(model.state_dict())
    use_fp8(model, 32)
    chosen = {name for name, layer in model.named_modules() if isinstance(layer, Float8Linear)}
    assert set(model.state_dict()) == names and not any("head" in name for name in chosen)
    assert chosen == {
        f"blocks.{i}.{name}"
        for i in (0, 1)
        for name in ("attention.query", "attention.project", "mlp.expand", "mlp.project")
    }
    with pytest.raises(ConfigError, match="fp8_smallest_size 4096"):
        use_fp8(GPT(model.config), 4096)


def test_fp8_training_follows_bf16(shards, tmp_path):
    for name in ("bf16", "fp8"):
        assert run(tmp_path, shards, name, precision=name, fp8_smallest_size=32) == 0
    losses = [[line["loss"] for line in events(tmp_path / name, "step")] for name in ("bf16", "fp8")]
    assert losses[0] != losses[1] and losses[1] == pytest.approx(losses[0], abs=0.1)
    assert losses[1][-1] < 2.5
    final = checkpoint.load_final(tmp_path / "fp8" / "final")
    assert not any(isinstance(module, Float8Linear) for module in final.model.modules())


@pytest.mark.parametrize(
    "components",
    [
        {"position": "learned", "norm": "layer"},
        {"smear": "embedding", "backout": True, "residual_lambdas": True, "embedding_lambdas": True},
    ],
)
def test_the_residual_stream_is_in_bf16_where_products_are(components):
    config = GPTConfig(depth=3, width=32, heads=2, sequence_length=8, vocab_size=16, eot_token=0, **components)
    network, tokens_BT, types = GPT(config), torch.arange(8)[None], []
    initialise(network, 0)
    for module in (*network.blocks, network.final_norm):
        module.register_forward_pre_hook(lambda module, inputs: types.append(inputs[0].dtype))
    with autocast("cpu", "bf16"):
        network(tokens_BT, tokens_BT)
    assert types == 4 * [torch.bfloat16]
