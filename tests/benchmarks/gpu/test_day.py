"""A day of `daily` fits an H100 and 24 hours at the measured speed, and its rates are those of the scaling rule."""

from dataclasses import replace

import pytest

from benchmarks.gpu.day import CHECKPOINT_SECONDS, CHECKPOINT_STALL, SECONDS, Speed, main, simulate
from flows.run_config import compose
from model.machine.hardware import known_hardware
from model.network.scaling import learning_rates_for, sized
from model.planning.plan import memory_bytes, plan
from model.training.config import TrainConfig


def test_the_day_of_daily_on_an_h100(capsys: pytest.CaptureFixture):
    assert main([]) == 0
    told = capsys.readouterr().out
    goals = {line.split(":")[0]: line.rsplit(" ", 1)[1] for line in told.splitlines() if line.startswith("goal ")}
    assert goals["goal planned peak, GB"] == goals["goal whole run, hours"] == "met"
    assert "derived from an H200" in told and "| whole run |" in told


@pytest.mark.parametrize("preset", ["daily", "nanopoor"])
def test_a_preset_for_a_gpu_takes_the_largest_micro_batch_that_leaves_a_margin(preset: str):
    run = compose(preset, {"model": {"vocab_size": 32_768}})
    hardware = known_hardware("T4" if preset == "nanopoor" else "H100")
    assert hardware is not None
    found = plan(run.model, run.train, hardware, 0.5)
    chosen, sequences = found["micro_batch_sequences"], run.train.tokens_per_step // run.model.sequence_length
    assert run.train.micro_batch_sequences is None and sequences % chosen == 0
    assert found["memory_bytes"]["total"] <= 0.9 * hardware.memory_bytes and found["fits"]
    larger = next((size for size in range(chosen + 1, sequences + 1) if sequences % size == 0), None)
    if larger is not None:
        train = replace(run.train, micro_batch_sequences=larger)
        assert memory_bytes(run.model, train)["total"] > 0.9 * hardware.memory_bytes


def test_a_simulated_training_by_hand():
    train = TrainConfig(
        seed=0,
        tokens=10 * 1000,
        tokens_per_step=1000,
        learning_rate=0.1,
        micro_batch_sequences=1,
        embedding_learning_rate=0.1,
        head_learning_rate=0.1,
        scalar_learning_rate=0.1,
        validation_every_steps=4,
        validation_tokens=600,
        checkpoint_every_steps=5,
    )
    speed = Speed(tokens_per_second=10.0, validated_per_second=20.0, source="a test")  # 100 s a step, 30 a validation
    found = simulate(train, 10, speed, checkpoint_minutes=1000)
    validations, checkpoints = 4, 1  # before the first step, after 4, 8 and 10; the one after step 10 is the last
    assert found["checkpoints"] == checkpoints
    start = SECONDS["start and compile"]
    assert found["seconds"] == pytest.approx(
        start + 10 * 100 + validations * 30 + checkpoints * CHECKPOINT_STALL + CHECKPOINT_SECONDS
    )
    assert found["lost"] == pytest.approx(5 * 100 + 2 * 30 + CHECKPOINT_STALL)  # at the end, since that of step 5
    often = simulate(train, 10, speed, checkpoint_minutes=2)
    assert often["checkpoints"] > 3 and often["lost"] < found["lost"]


@pytest.mark.parametrize("preset", ["daily", "monthly"])
def test_rates_follow_the_rule(preset: str):
    run = compose(preset, {})
    rule = learning_rates_for(sized(run.model.depth, vocab_size=run.model.vocab_size), run.train.tokens_per_step)
    for name, rate in rule.items():
        assert getattr(run.train, name) == pytest.approx(rate, rel=0.005), name
    assert run.model == sized(run.model.depth)
