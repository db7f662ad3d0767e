"""The ladder's arithmetic on curves whose answer is known, and that finished runs are not trained again."""

import dataclasses
import math

import numpy as np
import pytest

from benchmarks.training import ladder, ladder_report
from benchmarks.training.ladder import Ladder, Size
from benchmarks.training.ladder_report import Run, interval, multipliers, read_runs, report, trend
from eval.reporting.multiplier import compute_at
from flows.run_config import compose
from model.network.scaling import sized
from tasks.sources.config import FilesSource


def result(phase: str, arm: str, seed: int, flops: float, loss: float, multiple: float = 1, size: str = "d2") -> Run:
    return Run(
        key=f"{arm} {seed} {flops}",
        code="c",
        phase=phase,
        arm=arm,
        size=size,
        multiple=multiple,
        seed=seed,
        rate=0.1,
        tokens=1,
        flops=flops,
        matrices=1000,
        parameters=2000,
        bits_per_byte=loss,
        cpu_seconds=flops,
    )


def power_law(compute: float) -> float:
    return 3 * compute**-0.1


def test_multiplier_of_a_power_law_is_found_inside_and_outside_the_horizons():
    curve = [(c, power_law(c)) for c in (1.0, 2.0, 4.0)]
    assert compute_at(curve, power_law(3.1)) == (pytest.approx(3.1), 1)
    assert compute_at(curve, power_law(6.0)) == (pytest.approx(6.0), pytest.approx(1.5))
    assert compute_at(curve, power_law(0.8)) == (pytest.approx(0.8), pytest.approx(1.25))
    logs, outside = multipliers({1: (0.5, power_law(2.5)), 9: (1.0, 1.0)}, {1: curve})
    assert np.exp(logs) == pytest.approx([5.0]) and outside == 1
    # a loss floor bends the curve: between horizons a factor of 1.5 apart that is under 1 %
    bent = [(c, 1 + power_law(c)) for c in (4.0, 6.0)]
    assert compute_at(bent, 1 + power_law(4.9))[0] == pytest.approx(4.9, rel=0.01)


def test_a_curve_without_a_crossing_is_refused():
    with pytest.raises(ValueError, match="no curve"):
        compute_at([(1.0, 2.0)], 1.9)
    with pytest.raises(ValueError, match="does not fall"):
        compute_at([(1.0, 2.0), (2.0, 2.1)], 1.9)


@pytest.mark.parametrize("seeds", [3, 5])
def test_intervals_cover_the_truth_as_often_as_they_say(seeds):
    noise, covered, rounds = np.random.default_rng(0), 0, 2000
    for _ in range(rounds):
        curves = {
            seed: [(c, power_law(c) * math.exp(noise.normal(0, 0.004))) for c in (4.0, 6.0)] for seed in range(seeds)
        }
        better = {seed: (1.0, power_law(5.0) * math.exp(noise.normal(0, 0.002))) for seed in range(seeds)}
        _, low, high = interval(multipliers(better, curves)[0])
        covered += low <= 5 <= high
    assert 0.93 < covered / rounds < 0.97


def test_trend_finds_the_exponent():
    slope, low, high = trend(
        [1.0, 10.0, 100.0],
        [[math.log(8) - 0.1 * math.log(s) + e for e in (-0.01, 0, 0.01)] for s in (1.0, 10.0, 100.0)],
    )
    assert slope == pytest.approx(-0.1) and low < -0.1 < high < -0.09


def test_report_tells_what_each_technique_saves_and_which_way():
    runs = []
    for seed, luck in ((1, 1.0), (2, 1.01), (3, 0.99)):  # the same luck in every arm: pairs cancel it
        runs += [result("arms", "daily", seed, 1.0, luck * power_law(5.0))]
        runs += [result("arms", "gpt2", seed, c, luck * power_law(c), c) for c in (4.0, 6.0)]
        runs += [result("ablation", "daily", seed, c, luck * power_law(c), c) for c in (0.5, 1.0, 2.0)]
        runs += [
            result("ablation", "QK-norm off", seed, 1.0, luck * power_law(0.8)),  # as if with less compute
            result("ablation", "+ smear", seed, 1.0, luck * power_law(1.1)),
            result("ablation", "windows SSSL → L", seed, 1.25, luck * power_law(1.0)),
        ]  # dearer and no better
    runs.append(dataclasses.replace(result("sweep", "gpt2", 101, 1, 2.0), rate=0.01))
    runs.append(dataclasses.replace(result("sweep", "gpt2", 101, 1, 2.0), rate=0.02, bits_per_byte=None))
    text = report(runs)
    assert "| 5.00 | 5.00 to 5.00 |" in text
    assert "**0.01: 2.0000**, 0.02: diverged" in text
    lines = {line.split(" | ")[0].strip("| "): line for line in text.splitlines() if line.startswith("| ")}
    assert "| 1.250 |" in lines["QK-norm off"] and "helps" in lines["QK-norm off"]
    assert "| 1.100 |" in lines["+ smear"] and "helps" in lines["+ smear"]
    assert "| 1.250 |" in lines["windows SSSL → L"]


@pytest.mark.parametrize("preset", ["monthly", "mini-d2", "mini-d4", "mini-d6"])
def test_what_the_ladder_measures_is_the_daily_recipe(preset):
    """Presets of the family differ in size, data, rates and precision alone; `sized` gives the same network."""
    sizes = {
        "depth",
        "width",
        "heads",
        "sequence_length",
        "tokens",
        "tokens_per_step",
        "micro_batch_sequences",
        "learning_rate",
        "embedding_learning_rate",
        "head_learning_rate",
        "scalar_learning_rate",
        "momentum_warmup_steps",
        "precision",
    }
    daily, other = compose("daily", {}), compose(preset, {})
    for section in ("model", "train"):
        ours, theirs = (dataclasses.asdict(getattr(config, section)) for config in (daily, other))
        assert {name for name in ours if ours[name] != theirs[name]} <= sizes
    assert sized(24) == daily.model


def test_a_finished_run_is_read_and_not_trained_again(tmp_path, monkeypatch):
    texts = tmp_path / "texts"
    texts.mkdir()
    words = np.array(["the", "of", "a", "train", "model", "king", "sea", "light", "house", "old"])
    for number in range(60):
        (texts / f"{number}.txt").write_text(" ".join(np.random.default_rng(number).choice(words, 400)))
    monkeypatch.setattr(ladder, "VALIDATION_TOKENS", 256)
    monkeypatch.setattr(ladder, "VOCABULARY", 300)
    tiny = Size("d2", 1, 32, 2, {"daily": (0.01, 0.02, 0.04), "gpt2": (1e-3, 2e-3, 4e-3)}, 2, 2)

    def run(seed: int) -> Run:
        return Ladder(tmp_path / "out", FilesSource(path=str(texts))).run("arms", "daily", tiny, 1, seed, 0.02)

    first, second = run(1), run(2)
    assert first.bits_per_byte != second.bits_per_byte and first.tokens == 1024
    path = tmp_path / "out" / "runs.jsonl"
    with path.open("a") as file:
        file.write(path.read_text()[:50])  # a process was killed while it wrote
    trained = []
    train = Ladder.train
    spy = staticmethod(lambda config: trained.append(config.train.seed) or train(config))
    monkeypatch.setattr(Ladder, "train", spy)
    assert run(1) == first and run(2) == second and trained == []
    assert run(3).seed == 3 and trained == [3]
    assert ladder_report.best_rate([first, dataclasses.replace(second, rate=0.04, bits_per_byte=None)]) == 0.02
    assert len(read_runs(path)) == 3
