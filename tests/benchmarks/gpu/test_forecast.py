"""The forecast counts what a network computes, and finds the rates that measurements were made with."""

import json
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from benchmarks.gpu.compiled_work import scores, work_of
from benchmarks.gpu.forecast import COLUMNS, Counted, Rates, fitted, measured, table
from flows.run_config import compose
from model.network.fp8 import _Product as Product8
from model.training.config import Precision

TRUE = Rates(
    bf16=700e12,
    fp8=1300e12,
    attention={"daily": 500e12, "nanochat": 600e12},
    memory=4e12,
    rounding=2e12,
    loss=5e11,
    wall=1.05,
)


@pytest.mark.parametrize("fp8", [False, True])
def test_what_a_compiled_layer_computes(fp8: bool):
    """A linear layer with fp32 weights, ReLU² and a sum; every number by hand."""
    tokens, inputs, outputs = 4096, 1024, 2048
    x, h, w = tokens * inputs, tokens * outputs, inputs * outputs

    def loss(x_PD: Tensor, weight_ED: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return F.relu(layer(x_PD, weight_ED)).square().float().sum()

    def layer(x_PD: Tensor, weight_ED: Tensor) -> Tensor:
        return Product8.apply(x_PD, weight_ED, torch.bfloat16) if fp8 else F.linear(x_PD, weight_ED)

    with FakeTensorMode():
        work = work_of(
            loss,
            10**6,
            torch.zeros(tokens, inputs, dtype=torch.bfloat16),
            torch.zeros(outputs, inputs, requires_grad=True),
        )
    assert work.pop("fp8 products" if fp8 else "bf16 products") == 2 * 2 * x * outputs, "forward, and to the weight"
    # h is read for the loss; the gradient of the weight is rounded to bf16 by its product, then made fp32
    elementwise, rounding = 2 * h + (2 + 4) * w, 0
    if fp8:
        # x, the weight and the gradient of h (from h) are read for their largest values, and again to be rounded;
        # the product with a gradient needs that and x transposed
        elementwise += 2 * x + 4 * w + 2 * h + (4 + 1) * w
        rounding = (2 + 1 + 1) * x + (2 + 1) * h
    else:
        elementwise += (4 + 2) * w + (2 + 2) * h
    assert work.pop("elementwise") == pytest.approx(elementwise, rel=0.001)
    assert work.pop("rounding", 0) == pytest.approx(rounding, rel=0.001)
    assert not work


@pytest.mark.parametrize(("window", "blocks"), [(512, 10), (130, 9), (129, 7), (128, 7), (1, 4)])
def test_attention_computes_whole_blocks(window: int, blocks: int):
    assert scores(512, window) == blocks * 128**2


def counted() -> list[Counted]:
    """Both systems at two depths, with amounts that are not proportional to each other."""
    model = compose("daily", {}).model.with_vocabulary(32_768)
    found = []
    for number, (system, depth, precision) in enumerate(
        [("daily", 24, "bf16"), ("daily", 24, "fp8"), ("nanochat", 4, "bf16"), ("nanochat", 4, "fp8")]
    ):
        fp8 = precision == "fp8"
        work = {
            "bf16 products": (1 if fp8 else 9 + number) * 1e12,
            "fp8 products": (8 + number) * 1e12 * fp8,
            "attention": 1e12 + number * 1e11,
            "attention bytes": 2e9 + number * 1e8,
            "loss": 1e9,
            "elementwise": (10 + number) * 1e9,
            "rounding": 5e9 * fp8,
            "accumulation": 3e9,
        }
        found.append(Counted(system, replace(model, depth=depth), Precision(precision), 8, work, (2e13, 3e10)))
    return found


def findings(networks: list[Counted]) -> list[dict]:
    """What the GPU benchmark writes of them on an H200 with the true rates."""
    lines = []
    for one in networks:
        row = one.row(TRUE)
        wall = TRUE.wall * sum(TRUE.milliseconds(one.system, one.work).values())
        names = {
            "what": {"daily": "daily", "nanochat": "nanochat d4 fa3"}[one.system],
            "device": "NVIDIA H200",
            "stage": f"{one.system} {one.precision}",
            "commit": "abc",
        }
        kernels = [
            ["triton_red_fused__log_softmax_1", 1e3 * one.work["loss"] / TRUE.loss, 1],
            ["void cudnn::fusion::compute_dot_do_o", 0.1, 1],
            ["CUDAFunctor_add<float>", row["accumulation"], 9],
        ]
        lines.append(
            names
            | {
                "finding": "step",
                "depth": one.model.depth,
                "precision": str(one.precision),
                "micro_batch": 8,
                "micro_batch_ms": wall,
                "update_ms": row["update"],
                "tokens_per_second": row["tokens/s"],
            }
        )
        lines.append(
            names
            | {
                "finding": "profile",
                "busy_ms": wall / TRUE.wall,
                "kernels": kernels,
                "kinds": {
                    "matrix products": row["products"],
                    "attention": row["attention"] - 0.1,
                    "fused elementwise": row["elementwise"],
                },
            }
        )
    return json.loads(json.dumps(lines))


def test_rates_are_found_again_and_the_error_is_of_the_newest_measurement():
    networks = counted()
    lines = findings(networks)
    rates = fitted(lines, networks)
    for name in ("bf16", "fp8", "memory", "rounding", "loss", "wall", "attention"):
        assert getattr(rates, name) == pytest.approx(getattr(TRUE, name), rel=1e-6), name
    slower = [
        line | {"micro_batch_ms": 2 * line["micro_batch_ms"]} if line["finding"] == "step" else line for line in lines
    ]
    assert measured(lines + slower, networks[0])[0]["micro_batch_ms"] == slower[0]["micro_batch_ms"]
    errors = [line.split("|")[4:] for line in table(networks, rates, lines + slower).splitlines() if "error" in line]
    assert {line[COLUMNS.index("micro-batch")].strip() for line in errors} == {"-50.0"}
    assert {line[COLUMNS.index("products")].strip() for line in errors} == {"+0.0"}
