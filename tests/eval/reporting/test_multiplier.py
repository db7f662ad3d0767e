"""The compute multiplier of a candidate over a baseline, on losses whose answer is known."""

import pytest

from eval.reporting.multiplier import Training, compare, render_comparison


def arms(better: float) -> dict[str, list[Training]]:
    """Losses that fall as a power of compute; the candidate is ahead by a known factor."""

    def run(seed: int, budget: float, ahead: float) -> Training:
        bits = (1.5 + 0.02 * seed) * (budget * ahead) ** -0.1
        return Training(seed=seed, budget=budget, flops=1e15 * budget, bits_per_byte=bits)

    return {
        "baseline": [run(seed, budget, 1) for seed in range(3) for budget in (0.5, 1, 2)],
        "candidate": [run(seed, 1, better * (1 + 0.05 * seed)) for seed in range(3)],
    }


def test_the_multiplier_is_the_compute_that_the_baseline_needs_for_the_same_loss():
    found = compare(**arms(1.5))
    assert found["difference"]["mean"] < 0 and found["difference"]["interval"][1] < 0
    low, high = found["multiplier"]["interval"]
    assert found["multiplier"]["mean"] == pytest.approx(1.5 * (1 * 1.05 * 1.1) ** (1 / 3)) and low < 1.57 < high < 2
    assert "Compute multiplier: 1.57" in render_comparison({"names": ["a", "b"], **found})
    same = compare(**arms(1 / 1.05))
    assert same["difference"]["interval"][0] < 0 < same["difference"]["interval"][1]


def test_outside_the_baselines_range_no_multiplier_is_made_up():
    found = compare(**arms(3))
    assert found["multiplier"] is None and found["outside"] == 3
    assert "cannot be given" in render_comparison({"names": ["a", "b"], **found})
    one_seed = {arm: [run for run in runs if run.seed == 0] for arm, runs in arms(1.5).items()}
    assert compare(**one_seed)["multiplier"] == {"mean": pytest.approx(1.5), "interval": None}
