"""Precision is part of what a score is: of the stage's key, of comparisons, and of every variant's arithmetic."""

from typing import Any

import pytest
import torch

from eval.reporting.paired_tests import compare
from eval.scoring.arithmetic import in_fp32, round_weights, set_matmul_precision
from eval.scoring.precision import Precision
from eval.scoring.scorer import Scorer
from eval.scoring.trained_model import TrainedModel
from flows.preset_files import Preset
from flows.run_config import compose
from model.training.checkpoint import FinalModel
from tasks.benchmarks import Items
from tasks.config import EvaluationConfig
from tasks.evaluate import VERSION, scoring_settings
from tasks.store.stage import Stage
from tests.eval.reporting.test_paired_tests import evaluation
from tests.eval.scoring.test_prefix_rows import SEQUENCES, VARIANTS, _network

CPU = torch.device("cpu")


def key(**settings: Any) -> str:
    """Of the stage `evaluate`, but for what it reads."""
    config = EvaluationConfig(suites=("arc_easy", "hellaswag"), seed=7, **settings)
    nothing: Any = None  # of which no setting is made
    items = Items(results=dict.fromkeys(config.suites, nothing), train={}, missing={})
    return Stage(name="evaluate", version=VERSION, config=scoring_settings(config, items), inputs={}).key


def test_golden_key_without_a_precision_is_that_of_fp32():
    """But for the versions that define a score, which are those of this machine (tests/tasks/test_keys.py)."""
    assert key() == key(precision="fp32") == "0f8548b4dfc7cb0ec378781d3026823461bb43848aee5fc4308c76362a3761e8"


def test_each_precision_is_another_evaluation():
    assert len({key(precision=precision) for precision in Precision}) == 3


@pytest.mark.parametrize("preset", list(Preset))
def test_presets_score_in_fp32_and_a_setting_changes_it(preset):
    assert compose(preset, {}).evaluation.precision is Precision.FP32
    assert compose(preset, {"evaluation": {"precision": "bf16"}}).evaluation.precision is Precision.BF16


def test_scores_of_two_precisions_are_not_compared_and_old_ones_are_of_fp32():
    right = [float(item % 3 == 0) for item in range(60)]
    old, fp32, bf16 = evaluation(right), evaluation(right, precision="fp32"), evaluation(right, precision="bf16")
    assert compare(old, fp32)["rows"] and not compare(old, fp32)["omitted"]
    assert compare(bf16, old)["omitted"] == {"winogrande": "precision: fp32 there, bf16 here"}


@pytest.mark.parametrize("name", VARIANTS)
def test_every_variant_scores_in_bf16(name):
    """Shared rows, in weights of bf16, within what rounding to 8 bits explains of the scores in fp32."""
    inputs = [sequence[:-1] for sequence in SEQUENCES if len(sequence) > 2]
    answers = [[sequence[-1]] for sequence in SEQUENCES if len(sequence) > 2]
    scores = {}
    for precision in (Precision.FP32, Precision.BF16):
        network = TrainedModel(FinalModel(_network(VARIANTS[name]), 0, "", {}), CPU, precision)
        scorer = Scorer(network, CPU)
        scores[precision] = [logprob for logprob, _ in scorer(inputs, answers, lambda done: None)]
        assert scorer.tokens < sum(map(len, inputs))
        weights = {weight.dtype for weight in network._model.parameters()}
        assert weights == {torch.bfloat16 if precision is Precision.BF16 else torch.float32}
        angles = [table for table_name, table in network._model.named_buffers() if table_name.startswith("rotary")]
        assert all(table.dtype is torch.float32 for table in angles)
    assert scores[Precision.BF16] != scores[Precision.FP32]
    assert scores[Precision.BF16] == pytest.approx(scores[Precision.FP32], abs=0.15)


def test_in_fp32_a_model_of_bf16_multiplies_exactly_and_is_afterwards_what_it_was():
    network = _network({})
    round_weights(network, Precision.BF16)
    before = {name: weight.clone() for name, weight in network.state_dict().items()}
    set_matmul_precision(Precision.TF32)
    try:
        with torch.no_grad(), in_fp32(network):
            assert torch.get_float32_matmul_precision() == "highest"
            inside = network(torch.tensor([SEQUENCES[0]]))
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        set_matmul_precision(Precision.FP32)
    exact = _network({})
    exact.load_state_dict(before)
    with torch.no_grad():
        torch.testing.assert_close(inside, exact(torch.tensor([SEQUENCES[0]])), rtol=0, atol=0)
    for name, weight in network.state_dict().items():
        assert weight.dtype is torch.bfloat16 and torch.equal(weight, before[name]), name
